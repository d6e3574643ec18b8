"""`cassata job`: jobs, by the contract of DTS-Go and with the flags of its command, over HTTP."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from cassata.cli.options import Forgiving
from cassata.cli.output import A_KEY_IS_WANTED, print_json
from cassata.client import DEFAULT_URL, checked_key
from cassata.model import check_application_id, check_series_id

TIMEOUT_SECONDS = 30
LARGEST_PAGE = 250
Document = Mapping[str, Any]


class Service:
    """Where the service is, and who asks."""

    def __init__(self, url: str, key: str | None, application: str | None) -> None:
        self._url = url.rstrip("/")
        token = checked_key(key or "")
        headers = {"Authorization": token and f"Bearer {token}", "Cassata-Application": application}
        self._headers = {name: value for name, value in headers.items() if value}

    def ask(self, method: str, path: str, *, body: Document | None = None, query: Document | None = None) -> Any:
        """Raises ClickException with what the service says, and ClientError if nothing was heard of it."""
        import requests

        from cassata.exchange import unanswered

        try:
            with requests.Session() as session:
                session.trust_env = False  # no proxies, no .netrc
                answered = session.request(
                    method,
                    f"{self._url}{path}",
                    json=body,
                    params=query,
                    headers=self._headers,
                    timeout=TIMEOUT_SECONDS,
                    allow_redirects=False,
                )
        except requests.RequestException as error:
            raise unanswered(self._url, error) from error
        try:
            document = answered.json()
        except ValueError:
            document = {}
        if answered.status_code != 200:
            raise click.ClickException(_refusal(answered.status_code, document))
        return document


def _refusal(status: int, document: Any) -> str:
    told = document if isinstance(document, dict) else {}
    if status == 404 and "code" not in told:
        return "the service does not speak of jobs: set service.dialects to [jobs]"
    if status == 401:
        return A_KEY_IS_WANTED
    return str(told.get("message") or f"the service answered {status}")


def _metadata(_context: click.Context, _parameter: click.Parameter, written: str | None) -> dict[str, str] | None:
    if written is None:
        return None
    try:
        found = json.loads(written)
    except ValueError as error:
        raise click.BadParameter(f"is no JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise click.BadParameter('must be an object of texts, such as \'{"key": "value"}\'')
    return found


def _id(_context: click.Context, _parameter: click.Parameter, written: str) -> str:
    """What can be no id would make another address."""
    with _in_words("--id"):
        return check_series_id(written)


def _application(_context: click.Context, _parameter: click.Parameter, written: str | None) -> str | None:
    """What can be no application may be nothing that a header can hold."""
    with _in_words("--app"):
        return check_application_id(written) if written else None


@contextlib.contextmanager
def _in_words(option: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise click.ClickException(f"{option}: {error}") from None


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


id_option = click.option("--id", "job_id", required=True, callback=_id, help="The job.")
metadata_option = click.option("--metadata", callback=_metadata, metavar="JSON", help="An object of texts; its url is where the job goes.")
cron_option = click.option("--cron", help="Five fields, in UTC, @hourly and the like, or @every 1h30m.")


@click.group(cls=Forgiving)
@click.option(
    "--service", metavar="URL", envvar="CASSATA_SERVICE_URL", default=DEFAULT_URL, show_default=True, show_envvar=True, help="Where it is."
)
@click.option("--key", metavar="TOKEN", envvar="CASSATA_KEY", show_envvar=True, help="Who asks. Others may see what stands in a command.")
@click.option(
    "--app",
    "application",
    envvar="CASSATA_APPLICATION",
    show_envvar=True,
    callback=_application,
    help="Whose jobs.  [default: the key's, or jobs]",
)
@click.pass_context
def job(ctx: click.Context, service: str, key: str | None, application: str | None) -> None:
    """Make, look at, list, change and delete jobs, as DTS-Go has them."""
    ctx.obj = Service(service, key, application)


@job.command()
@click.option("--name", required=True, help="What it is called.")
@click.option("--description", help="What it is for.")
@cron_option
@metadata_option
@click.pass_obj
def create(service: Service, name: str, description: str | None, cron: str | None, metadata: dict[str, str] | None) -> None:
    """Make a job. Without --cron it runs once, now."""
    print_json(service.ask("POST", "/v1/jobs", body=_given(name=name, description=description, cronExpression=cron, metadata=metadata)))


@job.command()
@id_option
@click.pass_obj
def get(service: Service, job_id: str) -> None:
    """Show a job."""
    print_json(service.ask("GET", f"/v1/jobs/{job_id}"))


@job.command(name="list")
@click.option("--page-size", type=click.IntRange(1, LARGEST_PAGE), default=10, show_default=True, help="At most so many.")
@click.option("--status", help="Only those: paused, scheduled, ...; active is all that are neither paused nor at their end.")
@click.option("--last-id", help="Only those after that one: the nextPage of the page before.")
@click.pass_obj
def list_jobs(service: Service, page_size: int, status: str | None, last_id: str | None) -> None:
    """List jobs."""
    print_json(service.ask("GET", "/v1/jobs", query=_given(page_size=page_size, status=status, last_id=last_id)))


@job.command()
@id_option
@click.option("--name", help="What it is called.")
@click.option("--description", help="What it is for.")
@cron_option
@metadata_option
@click.option("--status", help="paused; scheduled, to go on; cancelled; running, for a run now; retrying, after a failure.")
@click.pass_obj
def update(
    service: Service,
    job_id: str,
    name: str | None,
    description: str | None,
    cron: str | None,
    metadata: dict[str, str] | None,
    status: str | None,
) -> None:
    """Change a job. What is not named stays as it is."""
    body = _given(name=name, description=description, cronExpression=cron, metadata=metadata, status=status)
    print_json(service.ask("PUT", f"/v1/jobs/{job_id}", body=body))


@job.command()
@id_option
@click.pass_obj
def delete(service: Service, job_id: str) -> None:
    """Delete a job."""
    print_json(service.ask("DELETE", f"/v1/jobs/{job_id}"))

"""`cassata listen`: a local receiver that shows each request that arrives."""

from __future__ import annotations

import itertools
import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

from cassata.cli.output import harmless

if TYPE_CHECKING:
    from cassata.receiver import Received

_SHOWN_PREFIXES = ("cassata-", "webhook-")


@click.command()
@click.argument("port", type=click.IntRange(0, 65_535), default=8090)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--status", type=click.IntRange(200, 599), default=200, show_default=True, help="What to answer.")
@click.option("--fail-first", type=click.IntRange(min=0), default=0, metavar="N", help="Answer the first N requests with 503.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N requests.")
def listen(port: int, host: str, status: int, fail_first: int, count: int | None) -> None:
    """Receive requests on PORT (8090; 0 takes any free one), and show them."""
    from cassata.receiver import Receiver

    numbers = itertools.count(1)
    receiver = Receiver(
        port,
        host=host,
        answer=lambda _request: 503 if next(numbers) <= fail_first else status,
        on_request=lambda request: click.echo(described(request)),
        keep=False,
    )
    try:
        receiver.start()
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}") from error
    click.echo(f"listening on {receiver.url}", err=True)
    try:
        receiver.wait_for(count or sys.maxsize)
    except KeyboardInterrupt:
        click.echo(err=True)
    finally:
        receiver.stop()


def described(request: Received) -> str:
    """Write a request for a person to read."""
    time = datetime.fromtimestamp(request.at_ms / 1000).strftime("%H:%M:%S.%f")[:-3]
    lines = [f"{time} {request.method} {request.path}"]
    lines += [f"  {name}: {value}" for name, value in request.headers if name.lower().startswith(_SHOWN_PREFIXES)]
    lines += [f"  {line}" for line in _body(request.body).splitlines()]
    lines += [f"  ({request.left_out} more bytes)"] if request.left_out else []
    return harmless("\n".join(lines))


def _body(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return f"({len(body)} bytes that are not UTF-8)"
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text

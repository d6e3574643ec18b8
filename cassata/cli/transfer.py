"""`cassata event import` and `export`: events from and to newline-delimited JSON, in parts that can be gone on from."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

import click

from cassata.cli.event import filter_options
from cassata.cli.meter import Meter, counted
from cassata.cli.options import output_option
from cassata.cli.output import print_json
from cassata.client import BATCH_BYTES, Client
from cassata.model import BATCH_LENGTH, FINISHED

HELD_SECONDS = 60
"""So many times in a row a part is repeated that the service puts off, a second or more each time."""
PUT_OFF = frozenset({429, 503})
NOBODY_TAKES_IT = ("unknown-application", "application-inactive")
_ENDED = frozenset(status.name for status in FINISHED)
_IDS = ("application-id", "event-id")
_REQUEST = (
    *_IDS,
    "url",
    "destination",
    "method",
    "expiry",
    "request-headers",
    "event",
    "event-base64",
    "timeout",
    "retry",
    "max-lateness",
    "priority",
    "keep-output",
)
"""What an exported event has, if anything; and its status."""


# --- import --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """What has become of the lines. `there`: the very same event was stored already; `ended`: they had ended, and are left out."""

    lines: int = 0
    added: int = 0
    there: int = 0
    ended: int = 0
    rejected: int = 0

    def __str__(self) -> str:
        facts = {"added": self.added, "there already": self.there, "ended and left out": self.ended, "rejected": self.rejected}
        return ", ".join(f"{count:,} {name}" for name, count in facts.items() if count or name == "added")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file. `document` None: it is no JSON, as `fault` says."""

    number: int
    document: Any = None
    fault: str | None = None


@dataclass(slots=True)
class Source:
    """The file, and how far it has been read: what `digest` is of."""

    file: BinaryIO
    offset: int = 0
    line: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def parts(self) -> Iterator[list[bytes]]:
        """Yield the lines in parts that go into one request. Once the next one is asked for, this one is over."""
        part: list[bytes] = []
        size = 0
        for line in self.file:
            if part and (len(part) == BATCH_LENGTH or size + len(line) > BATCH_BYTES):
                yield part
                self._pass(part)
                part, size = [], 0
            part.append(line)
            size += len(line)
        if part:
            yield part
            self._pass(part)

    def _pass(self, part: Sequence[bytes]) -> None:
        for line in part:
            self.offset += len(line)
            self.line += 1
            self.digest.update(line)

    def go_on(self, offset: int, line: int, digest: str) -> bool:
        """Pass over what has been read before; say whether it still is what it was. If not, begin at the beginning."""
        left = offset
        while left and (read := self.file.read(min(left, 1 << 20))):
            self.digest.update(read)
            left -= len(read)
        if not left and self.digest.hexdigest() == digest:
            self.offset, self.line = offset, line
            return True
        self.file.seek(0)
        self.digest = hashlib.sha256()
        return False


@click.command(name="import")
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, exists=True, allow_dash=True))
@click.option("--app", "application_id", envvar="CASSATA_APPLICATION", show_envvar=True, help="Whose those are that do not say it.")
@click.option("--ended", is_flag=True, help="Also those that had ended when they were exported.")
@click.option("--restart", is_flag=True, help="Begin at the first line, wherever an import has come to.")
@output_option
@click.pass_context
def import_events(ctx: click.Context, file: str, application_id: str | None, ended: bool, restart: bool, output: str) -> None:
    """Add the events of FILE (- is standard input), one JSON object in each line, as in the body of an add.

    Interrupted, it goes on where it was when it is started again; what was added twice is stored once. What is rejected is
    told of in FILE.rejects, with the number of its line, and makes the exit code 1.
    """
    with ExitStack() as stack:
        source = Source(sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb")))
        asked = {"service": ctx.parent.params["service"] if ctx.parent else "", "application": application_id, "ended": ended}
        notes = Notes(None if file == "-" else Path(file), asked)
        tally = Tally() if restart else notes.resumed(source)
        stack.enter_context(notes)
        size = None if file == "-" else Path(file).stat().st_size
        with _stoppable(lambda: f"line {notes.line:,}", restart=restart, goes_on=file != "-"), Meter("import", size) as meter:
            for part in source.parts():
                lines = [_line(source.line + index, text, application_id) for index, text in enumerate(part, 1)]
                rejects = _add(ctx.obj, lines, tally, ended=ended)
                passed = source.offset + sum(map(len, part))
                notes.remember(source, part, tally, rejects)
                meter.show(passed, f"{counted(tally.lines, 'line')}: {tally}")
    notes.finish()
    if output == "json":
        print_json({**asdict(tally), "rejects": notes.rejects_told})
    else:
        click.echo(f"{counted(tally.lines, 'line')}: {tally}{notes.where}")
    if tally.rejected:
        raise click.exceptions.Exit(1)


@contextmanager
def _stoppable(place: Callable[[], str], *, restart: bool, goes_on: bool) -> Iterator[None]:
    """Tell whoever presses Ctrl-C how far it has come, and how to go on, if it can."""
    try:
        yield
    except KeyboardInterrupt:
        command = "the same command without --restart" if restart else "the same command"
        click.echo(f"stopped after {place()}" + (f"; {command} goes on from there" if goes_on else ""), err=True)
        raise click.exceptions.Exit(1) from None


def _line(number: int, text: bytes, application_id: str | None) -> Line:
    """Read a line. An event without an id gets one that follows from the line, so that it is the same event the next time."""
    from cassata.service.wire import ALIASES, MalformedDocument, read_json  # `event --help` need not wait for the whole service

    if not text.strip():
        return Line(number, fault="")
    if len(text) > BATCH_BYTES:
        return Line(number, fault=f"is longer than {BATCH_BYTES // 1024**2} MiB")
    try:
        document = read_json(text)
    except MalformedDocument as error:
        cause = error.__cause__
        return Line(number, fault=f"is not JSON (column {cause.colno})" if isinstance(cause, json.JSONDecodeError) else str(error))
    if isinstance(document, dict):
        given = {ALIASES.get(name, name) for name in document}
        if "event-id" not in given:
            document["event-id"] = hashlib.sha256(b"%d %s" % (number, text.strip())).hexdigest()[:32]
        if "application-id" not in given and application_id is not None:
            document["application-id"] = application_id
    return Line(number, document)


def _add(client: Client, lines: Sequence[Line], tally: Tally, *, ended: bool) -> list[dict[str, Any]]:
    """Add what can be added, and return what cannot."""
    rejects: list[dict[str, Any]] = [{"line": line.number, "detail": _of_line(line.number, line.fault)} for line in lines if line.fault]
    wanted = []
    for line in lines:
        if line.fault is not None:
            continue
        status = line.document.pop("status", None) if isinstance(line.document, dict) else None
        if status in _ENDED and not ended:
            tally.ended += 1
        else:
            wanted.append(line)
    tally.lines += len(lines)
    for line, result in _results(client, wanted):
        problem = result.get("problem", {})
        if result["status-code"] == 201:
            tally.added += 1
        elif problem.get("identical"):
            tally.there += 1
        else:
            rejects.append({"line": line.number, "event-id": result.get("event-id"), "detail": _detail(problem)})
    tally.rejected += len(rejects)
    return sorted(rejects, key=lambda reject: reject["line"])


def _of_line(number: int, fault: str) -> str:
    """Name the line in what is wrong with it: a reader of JSON counts lines too, and knows one only."""
    return f"line {number:,}{' ' if fault.startswith('is ') else ': '}{fault}"


def _results(client: Client, lines: Sequence[Line]) -> Iterator[tuple[Line, Mapping[str, Any]]]:
    """Add events until each has been decided on: those that the service puts off are added again after a while."""
    held = 0
    while lines:
        results = client.add_documents([line.document for line in lines])
        _check_anybody_takes_them(lines, results)
        put_off = []
        for line, result in zip(lines, results, strict=True):
            if result["status-code"] in PUT_OFF:
                put_off.append((line, result))
            else:
                yield line, result
        held = held + 1 if len(put_off) == len(lines) else 0
        lines = [line for line, _ in put_off]
        if put_off:
            problem = put_off[0][1]["problem"]
            if held >= HELD_SECONDS:
                raise click.ClickException(f"line {lines[0].number}: {_detail(problem)} Start again to go on from there.")
            time.sleep(min(problem.get("retry-after", 1), HELD_SECONDS))


def _check_anybody_takes_them(lines: Sequence[Line], results: Sequence[Mapping[str, Any]]) -> None:
    """Give up where a whole part is for nobody: so would be the others."""
    kinds = {result.get("problem", {}).get("type", "").rpartition(":")[2] for result in results}
    if len(kinds) == 1 and kinds <= set(NOBODY_TAKES_IT) and len(results) > 1:
        raise click.ClickException(f"lines {lines[0].number} to {lines[-1].number}: {_detail(results[0]['problem'])}")


def _detail(problem: Mapping[str, Any]) -> str:
    return "; ".join(map(_fault, problem.get("errors", ()))) or str(problem.get("detail", "was refused"))


def _fault(error: Mapping[str, str]) -> str:
    place = error.get("pointer") or error.get("parameter") or "it"
    hint = ": give --app" if place == "/application-id" and error["detail"].startswith("is required") else ""
    return f"{place}: {error['detail']}{hint}"


class Notes:
    """What is kept beside the file: FILE.progress, how far the import has come; and FILE.rejects. Nothing for standard input."""

    def __init__(self, file: Path | None, asked: Mapping[str, Any]) -> None:
        self.line = 0
        self._asked = dict(asked)  # what else makes it the same import, beside the file
        self._progress = None if file is None else file.with_name(f"{file.name}.progress")
        self._rejects = None if file is None else file.with_name(f"{file.name}.rejects")
        self._kept = 0  # bytes of the rejects of the parts that are over
        self._file: IO[bytes] | None = None
        self._any = False

    def resumed(self, source: Source) -> Tally:
        """Go on from where the same import of the same file was interrupted."""
        if self._progress is None or not self._progress.exists():
            return Tally()
        try:
            known = json.loads(self._progress.read_text())
            same = known["asked"] == self._asked and source.go_on(known["offset"], known["line"], known["sha256"])
            tally, kept = Tally(**known["tally"]), int(known["rejects"])
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            click.echo(
                f"{self._progress} is of another file, of another service or of other options: beginning at the first line", err=True
            )
            return Tally()
        self._kept, self._any, self.line = kept, tally.rejected > 0, source.line
        click.echo(f"going on after line {source.line:,}", err=True)
        return tally

    def __enter__(self) -> Notes:
        if self._rejects is not None and (self._kept or self._rejects.exists()):
            self._file = self._rejects.open("r+b" if self._rejects.exists() else "wb")
            self._file.truncate(self._kept)  # what a part has left that was interrupted is told of again
            self._file.seek(self._kept)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def remember(self, source: Source, part: Sequence[bytes], tally: Tally, rejects: Sequence[Mapping[str, Any]]) -> None:
        """Write down what was rejected of a part, and that it is over."""
        for reject in rejects:
            self._any = True
            if self._rejects is None:
                told = str(reject["detail"])
                click.echo(told if told.startswith("line ") else _of_line(reject["line"], told), err=True)
                continue
            self._file = self._file or self._rejects.open("wb")
            self._file.write(json.dumps(reject).encode() + b"\n")
        self.line = source.line + len(part)
        if self._progress is None:
            return
        if self._file is not None:
            self._file.flush()
            self._kept = self._file.tell()
        digest = source.digest.copy()
        for line in part:
            digest.update(line)
        place = {"offset": source.offset + sum(map(len, part)), "line": self.line, "sha256": digest.hexdigest()}
        replace_file(self._progress, {"asked": self._asked, **place, "rejects": self._kept, "tally": asdict(tally)})

    def finish(self) -> None:
        if self._progress is not None:
            self._progress.unlink(missing_ok=True)
        if self._rejects is not None and not self._any:
            self._rejects.unlink(missing_ok=True)

    @property
    def rejects_told(self) -> str | None:
        return str(self._rejects) if self._any and self._rejects is not None else None

    @property
    def where(self) -> str:
        return f" (see {self._rejects})" if self.rejects_told else ""


def replace_file(path: Path, document: Mapping[str, Any]) -> None:
    """Write a file so that it is never seen half-written."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(document))
    os.replace(new, path)  # noqa: PTH105 - the same, and as atomic


# --- export --------------------------------------------------------------------------------------------------------------


@click.command(name="export")
@click.argument("application_id", metavar="APP")
@click.argument("file", metavar="[FILE]", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@filter_options
@click.option("--restart", is_flag=True, help="Write FILE anew, whatever it holds.")
@click.pass_context
def export_events(ctx: click.Context, /, application_id: str, file: str, restart: bool, **wanted: Any) -> None:
    """Write events to FILE (or standard output), one JSON object in each line, as `import` reads them.

    Each line holds the event's request, its expiry and its status. Interrupted, it goes on where it was when it is started again.
    """
    query = _query(wanted)
    next(ctx.obj.iter_operations(application_id, page_length=1), None)  # raises NotFound, which a list of events does not
    if file == "-":
        _export(ctx.obj, application_id, query, sys.stdout.buffer, None, {})
        return
    path, progress = Path(file), Path(f"{file}.progress")
    asked = {"service": ctx.parent.params["service"] if ctx.parent else "", "application": application_id, "query": query}
    known = None if restart else _known(path, progress, asked)
    if restart or known is None:
        progress.unlink(missing_ok=True)
        path.write_bytes(b"")
        replace_file(progress, {**asked, "cursor": None, "events": 0, "bytes": 0})
    with path.open("r+b") as out:
        if known is not None:
            out.truncate(known["bytes"])
            out.seek(known["bytes"])
            click.echo(f"going on after {counted(known['events'], 'event')}", err=True)
        events = _export(ctx.obj, application_id, query, out, progress, asked, known, restart=restart)
    progress.unlink(missing_ok=True)
    click.echo(f"{counted(events, 'event')} in {file}")


def _query(wanted: Mapping[str, Any]) -> dict[str, Any]:
    facts = {
        "status": ",".join(sorted(status.name for status in wanted["status"])) or None,
        "expiry-from": wanted["expiry_from"] and wanted["expiry_from"].isoformat(),
        "expiry-until": wanted["expiry_until"] and wanted["expiry_until"].isoformat(),
        "host": wanted["host"],
        "last-status": wanted["last_status"],
        "series": wanted["series"],
        "tried": None if wanted["tried"] is None else str(wanted["tried"]).lower(),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _known(path: Path, progress: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how far an export has come that was interrupted, None if there was none. What is there is never overwritten unasked."""
    if not progress.exists():
        if path.exists() and path.stat().st_size:
            raise click.ClickException(f"{path} is there already: give another name, or --restart to write it anew")
        return None
    try:
        known = json.loads(progress.read_text())
        same = {name: known[name] for name in asked} == asked and path.stat().st_size >= known["bytes"]
    except (ValueError, KeyError, TypeError, OSError):
        same = False
    if not same:
        raise click.ClickException(f"{progress} is of another export: finish that one, or give --restart to begin anew")
    return dict(known)


def _export(
    client: Client,
    application_id: str,
    query: Mapping[str, Any],
    out: IO[bytes],
    progress: Path | None,
    asked: Mapping[str, Any],
    known: Mapping[str, Any] | None = None,
    *,
    restart: bool = False,
) -> int:
    cursor, events = (known["cursor"], known["events"]) if known else (None, 0)
    noted = events
    with _stoppable(lambda: counted(noted, "event"), restart=restart, goes_on=progress is not None), Meter("export") as meter:
        while True:
            page, cursor = client.full_page(application_id, {**query, "limit": BATCH_LENGTH}, cursor)
            out.writelines(json.dumps(_exported(event), ensure_ascii=False).encode() + b"\n" for event in page)
            out.flush()
            events += len(page)
            if cursor is None:
                return events
            if progress is not None:
                replace_file(progress, {**asked, "cursor": cursor, "events": events, "bytes": out.tell()})
            noted = events
            meter.show(events, counted(events, "event"))


def _exported(event: Mapping[str, Any]) -> dict[str, Any]:
    from cassata.service.wire import METHODS_WITH_BODY

    request = {name: event[name] for name in _REQUEST if event.get(name)}
    if event.get("blocked-by"):  # whatever waits for nothing any more is on its own
        request["after"] = event["after"]
    if "destination" in request:
        del request["url"]  # which follows from it
    elif request["method"] in METHODS_WITH_BODY and "event-base64" not in request:
        request.setdefault("event", "")
    if "retry" in request:
        request["retry"] = {name: value for name, value in request["retry"].items() if value is not None}
    return {**request, "status": event["status"]}


COMMANDS = {"import": import_events, "export": export_events}

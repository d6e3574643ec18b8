"""A small world to look at: a real service, a worker and a receiver, and events of every kind, for the browser and for pictures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cassata.model import Action, Filter, NewEvent, NewOperation, RetryOptions, Scope, Status
from cassata.receiver import Received, Receiver
from cassata.recurrence import Rule
from cassata.scheduler import Scheduler
from cassata.series import NewSeries
from cassata.tenants import Changes
from tests.conftest import Running, answers, start_process, unused_port, wait_until

QUICK = RetryOptions(count=1, initial_ms=200, multiplier=1, maximum_ms=200)
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"{{7*7}}"
"""What must stay text wherever it is shown."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where to look (`url`), with which keys, and at what."""

    url: str
    scheduler: Scheduler
    receiver: Receiver
    operator_token: str
    shop_token: str

    def event(self, event_id: str) -> Status:
        return self.scheduler.event("shop", event_id)[0].status


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Set it up in a folder. Whoever asks for the first time is answered by /flaky with 503; /broken is 500 until `receiver.answer` is
    changed."""
    url = f"sqlite:///{folder}/stage.db"
    scheduler = Scheduler.open(url, create_tables=True)
    flaky: set[str] = set()

    def answer(request: Received) -> tuple[int, str]:
        event_id = request.header("Cassata-Event-Id") or ""
        if request.path == "/broken":
            return 500, '{"error": "the till is closed"}'
        if request.path == "/gone":
            return 410, f"<b>gone</b> {EVIL}"
        if request.path == "/flaky" and event_id not in flaky:
            flaky.add(event_id)
            return 503, "come back later"
        return 200, '{"ok": true}'

    port = unused_port()
    started: list[Running] = []
    with Receiver(answer=answer) as receiver:
        try:
            operator = scheduler.tenants.create_key(None, {Scope.ADMIN}, name="night shift")[1]
            scheduler.tenants.create("shop")
            shop = scheduler.tenants.create_key("shop", {Scope.READ, Scope.PUBLISH}, name=EVIL[:90])[1]
            words = ["--database-url", url]
            env = {"CASSATA_SERVICE__AUTHENTICATION": "required", "CASSATA_SERVICE__PROCESSES": "1"}
            # All events go to one destination: what fails there must not keep the others waiting.
            patient = {"CASSATA_WORKER__BREAKERMINIMUMREQUESTS": "100000"}
            address = f"http://127.0.0.1:{port}"
            started.append(start_process("cassata", "service", "start", *words, "--port", str(port), log=folder / "service.log", env=env))
            started[0].wait_until(lambda: answers(f"{address}/livez"))
            started.append(start_process("cassata", "worker", "start", *words, log=folder / "worker.log", env=patient))
            started[1].wait_until(lambda: "worker started" in started[1].output())
            _fill(scheduler, receiver.url)
            yield Stage(address, scheduler, receiver, operator, shop)
        finally:
            for running in started:
                running.process.terminate()
            for running in started:
                running.process.wait(20)
                running.kill()
            scheduler.close()


def _fill(scheduler: Scheduler, receiver: str) -> None:
    chance = random.Random(7)

    def add(event_id: str, path: str = "/orders", delay_ms: int = 0, application_id: str = "shop", **facts: object) -> None:
        facts.setdefault("payload", f'{{"order": "{event_id}", "lines": 3}}'.encode())
        new = NewEvent(application_id, f"{receiver}{path}", event_id=event_id, delay_ms=delay_ms, **facts)  # type: ignore[arg-type]
        scheduler.add(new)

    headers = (("Content-Type", "application/json"), ("Authorization", "Bearer s3cret-of-the-shop"), ("X-Note", EVIL))
    for number in range(40):
        add(f"order-{1000 + number}", headers=headers if number == 7 else ())
    for number in range(4):
        add(f"refund-{number}", "/flaky", retry=RetryOptions(count=3, initial_ms=300, multiplier=1, maximum_ms=300))
    for number in range(5):
        add(f"invoice-{number}", "/broken", retry=QUICK)
    add("newsletter", "/gone", payload=EVIL.encode(), headers=(("X-Note", EVIL),))
    for number in range(900):
        wave = 60_000 * min(59, int(chance.triangular(0, 60, 22)))
        add(f"reminder-{number}", "/reminders", 120_000 + wave + chance.randrange(60_000))
    for number in range(300):
        add(f"digest-{number}", "/digests", 3_600_000 * chance.randrange(2, 700))
    for number in range(60):
        add(f"ping-{number}", "/ping", 3_600_000 + number * 60_000, "monitoring")
    scheduler.cancel("shop", "reminder-1")
    scheduler.tenants.create("warehouse", Changes(active=True))
    scheduler.tenants.change("shop", Changes(limits={"max_in_flight": 200, "deliveries_per_second": 500}, metadata={"owner": EVIL}))
    series = (
        ("daily-report", "Report of the day", Rule(cron="0 7 * * MON-FRI", timezone="Europe/Rome")),
        ("stock-check", "Stock check", Rule(every_ms=900_000)),
        ("rent", EVIL, Rule(recurrence="RRULE:FREQ=MONTHLY;BYMONTHDAY=-1", timezone="America/New_York", start_at=1_790_000_000_000)),
    )
    for series_id, name, rule in series:
        new = NewSeries(
            "shop", rule, f"{receiver}/{series_id}", series_id=series_id, name=name, description=name, payload=b'{"hello": "again"}'
        )
        scheduler.timetable.create(new)
    scheduler.operations.begin(
        NewOperation("shop", Action.RESCHEDULE, Filter(statuses=frozenset({Status.PENDING}), host="127.0.0.1"), shift_ms=1_000)
    )


def settled(world: Stage) -> None:
    """Wait until what was due has ended one way or the other."""
    ended = {f"invoice-{number}": Status.FAILED for number in range(5)} | {f"refund-{number}": Status.COMPLETED for number in range(4)}
    wait_until(lambda: all(world.event(event_id) is status for event_id, status in ended.items()), 60)

"""Why an event has not been sent yet: the reasons that the database knows, each in a sentence. Pure: whoever asks looks them up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cassata.model import Application, Breaker, Event, Limits, On, Status, destination_of, rfc3339


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an event is where it is. `until` is when that ends (ms), where it is known; `code` is for programs."""

    code: str
    text: str
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """What there is to know beside the event: `held` of its application's events are at workers, `next_at` is when its pace lets
    the next one go (ms), `workers` how many processes are alive, `ahead` how many events of the application are due before it.
    """

    now: int
    application: Application
    limits: Limits
    breakers: Sequence[Breaker]
    held: int
    next_at: int
    workers: int
    ahead: int


def reasons(event: Event, situation: Situation) -> list[Reason]:
    """Say why an event has not been sent, or is not sent any more: the weightiest reason first."""
    match event.status:
        case Status.COMPLETED:
            return [Reason("completed", "It was delivered.")]
        case Status.FAILED:
            return [Reason("failed", f"It failed, and is not tried again: {event.last_error or 'no reason is known'}.")]
        case Status.CANCELLED:
            return [Reason("cancelled", f"It was cancelled{f': {event.last_error}' if event.last_error else ''}.")]
        case Status.BLOCKED:
            return [_blocked(event)]
        case Status.PROCESSING:
            return [_under_way(event, situation.now)]
    found = [*_hindrances(event, situation), *_waits(event, situation.now)]
    return found or [_turn(situation)]


def _blocked(event: Event) -> Reason:
    if event.after is None:
        return Reason("blocked", "It waits for another event.")
    return Reason("blocked", f"It waits for {event.after.event_id} to end, and comes only after its {_WORDS[event.after.on]}.")


_WORDS = {On.SUCCESS: "success", On.FAILURE: "failure", On.ALWAYS: "end, whatever it is"}


def _under_way(event: Event, now: int) -> Reason:
    until = event.wake_at or now
    if until > now:
        return Reason(
            "leased", f"A worker has it. If nothing is heard of that worker, another one takes it over at {rfc3339(until)}.", until
        )
    return Reason("lease over", "The worker that had it has not been heard of: the next one that looks takes it over.")


def _waits(event: Event, now: int) -> Iterator[Reason]:
    wake_at = event.wake_at or now
    if wake_at <= now:
        return
    if event.due_at > now:
        yield Reason("not due", f"It is due at {rfc3339(event.due_at)}.", event.due_at)
    elif event.status is Status.SERVICE_UNAVAILABLE:
        yield Reason("retry", f"The last attempt failed ({event.last_error}); the next one is at {rfc3339(wake_at)}.", wake_at)
    else:
        yield Reason("put off", f"It was put off until {rfc3339(wake_at)}: its destination had enough to do, or was left alone.", wake_at)


def _hindrances(event: Event, situation: Situation) -> Iterator[Reason]:
    limits, now = situation.limits, situation.now
    if not situation.application.active:
        yield Reason("inactive", "Its application is deactivated: nothing of it is sent.")
    destination = destination_of(event.url) if event.url else ""
    for breaker in situation.breakers:
        if breaker.destination == destination:
            words = f"{destination} is left alone ({breaker.reason}); the next probe is at {rfc3339(breaker.retry_at)}."
            yield Reason("breaker", words, breaker.retry_at)
    if limits.max_in_flight is not None and situation.held >= limits.max_in_flight:
        yield Reason("in flight", f"Its application has {situation.held} events under way, which is its limit.")
    if limits.deliveries_per_second is not None and situation.next_at > now:
        rate = f"{limits.deliveries_per_second:g} a second"
        yield Reason("pace", f"Its application may send {rate}; the next one may go at {rfc3339(situation.next_at)}.", situation.next_at)
    if not situation.workers:
        yield Reason("no worker", "No worker has been heard of for half a minute.")


def _turn(situation: Situation) -> Reason:
    before = f"{situation.ahead:,} events of its application are due before it" if situation.ahead else "nothing is due before it"
    return Reason("turn", f"It is due, and waits for its turn: {before}.")

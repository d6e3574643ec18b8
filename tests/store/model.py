"""All of Cassata as a few dictionaries: what events there are, who holds them, and what may become of them.

What a client does is foretold to the last column. Which events a claim takes is the database's choice, and not foretold: for
each row that a claim has changed the model says whether that was allowed, and what the row must be now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from cassata.model import FINISHED, WAITING, ErrorKind, NewEvent, Status, destination_of
from cassata.scheduler import LOST_LEASES, Terms

Key = tuple[str, str]
"""Application id and event id."""
Place = tuple[str, str]
"""Application id and destination."""

RETRIES = 2
TIMEOUT_MS, MARGIN_MS = 2_000, 1_000
WAIT_MS = 400
PROXY_WAIT_MS = 700


class Row(NamedTuple):
    """What an event's row shows."""

    status: Status
    due_at: int
    wake_at: int | None
    fence: int
    attempts: int
    lost_leases: int
    cancel_requested: bool
    created_at: int
    finished_at: int | None
    request_hash: bytes
    payload: bytes | None


class Logged(NamedTuple):
    """What a line of an event's log shows."""

    number: int
    status_code: int | None
    error: str | None


class Broken(NamedTuple):
    """A breaker that is open."""

    retry_at: int
    openings: int
    probing: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What a database shows. `reasons` are the last errors of events; `errors` whatever no database should ever show."""

    rows: Mapping[Key, Row]
    log: Mapping[Key, Mapping[int, Logged]]
    reasons: Mapping[Key, str | None]
    breakers: Mapping[Place, Broken]
    holdings: Mapping[tuple[str, str], tuple[int, int]]
    errors: tuple[str, ...] = ()


class Answer(NamedTuple):
    """What came of an attempt, as far as it matters, and when it was made."""

    status_code: int | None
    error: ErrorKind | None
    started_at: int


class Asking(NamedTuple):
    """What a worker asks of a claim, and which of the applications has its turn first."""

    limit: int = 100
    look_ahead: int = 0
    suspects: bool = True
    turn: int = 0

    @property
    def terms(self) -> Terms:
        return Terms(request_timeout_ms=TIMEOUT_MS, lease_margin_ms=MARGIN_MS, look_ahead_ms=self.look_ahead)

    def lease_ms(self, timeout_ms: int | None) -> int:
        return self.look_ahead + (timeout_ms or TIMEOUT_MS) + MARGIN_MS


class Sent(NamedTuple):
    """What a worker is handed."""

    key: Key
    fence: int
    number: int
    send_at: int
    previous: Status
    suspect: bool
    payload: bytes | None
    signatures: int


@dataclass(slots=True)
class Claim:
    """One claim of an event. `birth` tells an event from an earlier one with the same key, `epoch` since which limit it counts."""

    key: Key
    birth: int
    fence: int
    number: int
    send_at: int
    previous: Status
    lease_until: int
    process: int
    epoch: int | None
    queue: int | None = None
    is_over: bool = False


@dataclass(slots=True)
class Tenant:
    active: bool = True
    limits: dict[str, int] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)  # when (by the count of changes) each limit was set that there is
    last_sent: tuple[int, float] | None = None  # the last delivery that was paced, and how long the next one has to wait (ms)
    secrets: list[int | None] = field(default_factory=lambda: [None])  # until when each is used

    @property
    def rate(self) -> int | None:
        return self.limits.get("deliveries_per_second")


@dataclass
class Model:
    tenants: dict[str, Tenant] = field(default_factory=dict)
    rows: dict[Key, Row] = field(default_factory=dict)
    log: dict[Key, dict[int, Logged]] = field(default_factory=dict)
    requests: dict[Key, NewEvent] = field(default_factory=dict)
    births: dict[Key, int] = field(default_factory=dict)
    claims: dict[int, Claim] = field(default_factory=dict)
    doubtful: dict[int, list[Claim]] = field(default_factory=dict)  # by process: claims whose COMMIT gave no answer
    count: int = 0

    def copy(self) -> Model:
        """Return what may be changed without this one. The claims are the same: what their workers know, happens."""
        tenants = {key: replace(tenant, limits=dict(tenant.limits), epochs=dict(tenant.epochs)) for key, tenant in self.tenants.items()}
        return replace(
            self,
            tenants=tenants,
            rows=dict(self.rows),
            log={key: dict(log) for key, log in self.log.items()},
            requests=dict(self.requests),
            births=dict(self.births),
            claims=dict(self.claims),
            doubtful={process: list(claims) for process, claims in self.doubtful.items()},
        )

    def is_shown_by(self, seen: Seen) -> bool:
        return seen.rows == self.rows and seen.log == {key: log for key, log in self.log.items() if log}

    def unfinished(self, application_id: str) -> list[Row]:
        return [row for key, row in self.rows.items() if key[0] == application_id and row.wake_at is not None]

    def agenda(self) -> dict[str, int]:
        pending = {application_id: [row.wake_at or 0 for row in self.unfinished(application_id)] for application_id in self.tenants}
        return {application_id: min(wakes) for application_id, wakes in pending.items() if wakes}

    # --- what clients do ---------------------------------------------------------------------------------------------

    def add(self, news: Sequence[NewEvent], now: int) -> list[str]:
        refusals = {new.application_id: self._refusal(new.application_id, news) for new in news}
        return [refusals[new.application_id] or self._place(new, now) for new in news]

    def put(self, new: NewEvent, now: int) -> str:
        (answer,) = self.add([new], now)
        if answer in {"ApplicationInactive", "LimitReached"} and self._repeats(new):
            return "identical"
        return answer

    def _refusal(self, application_id: str, news: Sequence[NewEvent]) -> str | None:
        tenant = self.tenants.get(application_id)
        if tenant is None:
            return None
        if not tenant.active:
            return "ApplicationInactive"
        adds = sum(new.application_id == application_id for new in news)
        most = tenant.limits.get("max_pending")
        return "LimitReached" if most is not None and len(self.unfinished(application_id)) + adds > most else None

    def _repeats(self, new: NewEvent) -> bool:
        row = self.rows.get((new.application_id, new.event_id))
        return row is not None and row.status is not Status.CANCELLED and row.request_hash == new.request_hash

    def _place(self, new: NewEvent, now: int) -> str:
        key = new.application_id, new.event_id
        row = self.rows.get(key)
        if row is not None and row.status is not Status.CANCELLED:
            return "identical" if row.request_hash == new.request_hash else "different"
        self.tenants.setdefault(new.application_id, Tenant())
        due_at = new.due_at if new.due_at is not None else now + (new.delay_ms or 0)
        self.rows[key] = Row(Status.PENDING, due_at, max(due_at, now), 0, 0, 0, False, now, None, new.request_hash, new.payload)
        self.log[key] = {}
        self.requests[key] = new
        self.count += 1
        self.births[key] = self.count
        return "added"

    def cancel(self, key: Key, now: int) -> str:
        row = self.rows.get(key)
        if row is None:
            return "UnknownEvent"
        if row.status in WAITING:
            self.rows[key] = _ended(row, Status.CANCELLED, now)._replace(fence=row.fence + 1)
        elif row.status is Status.PROCESSING:
            self.rows[key] = row._replace(cancel_requested=True)
        return "EventFinished" if row.status in {Status.COMPLETED, Status.FAILED} else self.rows[key].status.name

    def revise(self, key: Key, changes: Mapping[str, Any], is_current: bool, now: int) -> str:
        """Change what an event asks for; `is_current` says whether whoever does so has seen its newest version."""
        row = self.rows.get(key)
        if row is None:
            return "UnknownEvent"
        if row.status not in WAITING:
            return "EventUnderWay" if row.status is Status.PROCESSING else "EventFinished"
        before = replace(self.requests[key], due_at=row.due_at, delay_ms=None)
        other_time = {"due_at": None, "delay_ms": None} if changes.keys() & {"due_at", "delay_ms"} else {}
        asked = replace(before, **{**other_time, **changes})
        if asked == before:
            return "changed"
        if not is_current:
            return "EventChanged"
        due_at = asked.due_at if asked.due_at is not None else now + (asked.delay_ms or 0)
        wake_at = row.wake_at if due_at == row.due_at else max(due_at, now)
        self.rows[key] = row._replace(due_at=due_at, wake_at=wake_at, fence=row.fence + 1, payload=asked.payload)
        self.requests[key] = asked
        return "changed"

    def change(self, application_id: str, active: bool | None, limits: Mapping[str, int | None]) -> str:
        tenant = self.tenants.get(application_id)
        if tenant is None:
            return "UnknownApplication"
        self.count += 1
        tenant.active = tenant.active if active is None else active
        if limits.get("deliveries_per_second", tenant.rate) != tenant.rate:
            tenant.last_sent = None  # a pace that is no more binds nobody
        for name, value in limits.items():
            tenant.limits.pop(name, None)
            if value is None:
                tenant.epochs.pop(name, None)
            else:
                tenant.limits[name] = value
                tenant.epochs.setdefault(name, self.count)
        return "changed"

    def rotate(self, application_id: str, overlap_ms: int, now: int) -> str:
        tenant = self.tenants.get(application_id)
        if tenant is None:
            return "UnknownApplication"
        ends_at = now + overlap_ms
        tenant.secrets = [None, *(until for until in (min(old or ends_at, ends_at) for old in tenant.secrets) if until > now)]
        return "rotated"

    # --- what workers do ---------------------------------------------------------------------------------------------

    def owns(self, claim: Claim) -> bool:
        return self._has_same_claim(claim) and self.rows[claim.key].status is Status.PROCESSING

    def _has_same_claim(self, claim: Claim) -> bool:
        row = self.rows.get(claim.key)
        return row is not None and self.births[claim.key] == claim.birth and row.fence == claim.fence

    def record(self, outcomes: Iterable[tuple[Claim, Answer]], now: int) -> tuple[int, int]:
        """Return how many are kept, and how many came too late."""
        outcomes = list(outcomes)
        kept = [(claim, answer) for claim, answer in outcomes if self.owns(claim)]
        fenced = sum(not self._has_same_claim(claim) for claim, _ in outcomes)
        for claim, answer in kept:
            self.rows[claim.key] = self._after(claim, answer, self.rows[claim.key], now)._replace(lost_leases=0)
            self.log[claim.key][claim.fence] = Logged(claim.number, answer.status_code, answer.error)
        return len(kept), fenced

    def _after(self, claim: Claim, answer: Answer, row: Row, now: int) -> Row:
        if answer.error is None and answer.status_code is not None and 200 <= answer.status_code < 300:
            return _ended(row, Status.COMPLETED, now)
        is_proxys = answer.error is ErrorKind.PROXY_FAILED
        if answer.error is ErrorKind.TOO_LATE:
            return _ended(row._replace(attempts=row.attempts - 1), Status.FAILED, now)
        if not is_proxys and (not _may_pass(answer) or claim.number > self._retries(claim.key)):
            return _ended(row, Status.FAILED, now)
        counted = row._replace(attempts=row.attempts - is_proxys)
        if row.cancel_requested:
            return _ended(counted, Status.CANCELLED, now)
        return counted._replace(status=Status.SERVICE_UNAVAILABLE, wake_at=now + wait_ms(claim.number, is_proxys=is_proxys))

    def _retries(self, key: Key) -> int:
        retry = self.requests[key].retry
        return RETRIES if retry is None or retry.count is None else retry.count

    def attempts_allowed(self, key: Key) -> int:
        """Return the most attempts that may be counted: leases lost in a row may come on top of what the retries allow.

        What the proxy fails ends such a row, and counts for nothing: the same may come once more on top.
        """
        failed_by_proxy = sum(line.error == ErrorKind.PROXY_FAILED for line in self.log[key].values())
        return self._retries(key) + 1 + (LOST_LEASES - 1) * (1 + failed_by_proxy)

    def release(self, claims: Iterable[Claim], now: int) -> int:
        mine = [claim for claim in claims if self.owns(claim)]
        for claim in mine:
            row = self.rows[claim.key]
            counted = row._replace(attempts=row.attempts - 1)
            status = claim.previous if claim.previous in WAITING else Status.PENDING
            waiting = counted._replace(status=status, wake_at=claim.send_at)
            self.rows[claim.key] = _ended(counted, Status.CANCELLED, now) if row.cancel_requested else waiting
        return len(mine)


def _ended(row: Row, status: Status, now: int) -> Row:
    return row._replace(status=status, wake_at=None, finished_at=now)


def _may_pass(answer: Answer) -> bool:
    if answer.error is not None:
        return answer.error is not ErrorKind.BLOCKED_ADDRESS
    return answer.status_code in {408, 425, 429} or (answer.status_code or 0) >= 500


def wait_ms(number: int, *, is_proxys: bool) -> int:
    return PROXY_WAIT_MS if is_proxys else WAIT_MS * number


# --- what a claim may do -----------------------------------------------------------------------------------------------


@dataclass
class Look:
    """One claim, seen from outside: who made it, when and on what terms; and what the database showed before and after it."""

    model: Model  # with everything in it but what this claim did
    process: int
    now: int
    asking: Asking
    after: Seen
    before: Mapping[Key, Row] = field(default_factory=dict)
    claims: dict[Key, Claim] = field(default_factory=dict)
    buried: int = 0
    loose: set[Key] = field(default_factory=set)  # put back in this transaction, to a time that is known only if it was not paced

    def explain(self) -> None:
        """Bring the model to what the database shows now; fail if it may not show that."""
        before = self.before = dict(self.model.rows)
        assert before.keys() == self.after.rows.keys(), "a claim made or removed events"
        for key, row in self.after.rows.items():
            if row == before[key]:
                continue
            if before[key].status in FINISHED:
                raise AssertionError(f"{key} had ended and was changed: {before[key]} -> {row}")
            if row.status is Status.PROCESSING and row.fence == before[key].fence + 1:
                self._claim(key, before[key])
            elif before[key].status is Status.PROCESSING and row.status in FINISHED:
                self._bury(key, before[key])
            else:
                self._postpone(key, before[key], row)
        self._check_shares()
        suspects = [key for key in self.claims if before[key].status is Status.PROCESSING and before[key].lost_leases]
        assert len(self.claims) <= self.asking.limit, "more was claimed than asked for"
        assert len(suspects) <= self.asking.suspects, f"more suspects than one may have: {suspects}"

    def _claim(self, key: Key, row: Row) -> None:
        tenant, is_lost = self.model.tenants[key[0]], row.status is Status.PROCESSING
        assert row.wake_at is not None
        assert row.wake_at <= self.now + (0 if is_lost else self.asking.look_ahead), f"{key} was claimed before its time"
        assert tenant.active, f"{key} was claimed of an application that is not active"
        if is_lost:
            assert not row.cancel_requested, f"{key} was claimed again though it had been cancelled"
            assert row.lost_leases + 1 < LOST_LEASES, f"{key} was claimed again after {LOST_LEASES} lost leases"
            self._log_lost(key, row)
        self.model.rows[key] = row._replace(
            status=Status.PROCESSING,
            wake_at=self.now + self.asking.lease_ms(self.model.requests[key].timeout_ms),
            fence=row.fence + 1,
            attempts=row.attempts + 1,
            lost_leases=row.lost_leases + is_lost,
        )
        self.claims[key] = Claim(
            key=key,
            birth=self.model.births[key],
            fence=row.fence + 1,
            number=row.attempts + 1,
            send_at=row.wake_at,
            previous=row.status,
            lease_until=self.model.rows[key].wake_at or 0,
            process=self.process,
            epoch=tenant.epochs.get("max_in_flight"),
            queue=None if is_lost else tenant.epochs.get("max_in_flight_per_host"),
        )

    def _bury(self, key: Key, row: Row) -> None:
        assert row.wake_at is not None
        assert row.wake_at <= self.now, f"{key} was taken from its owner before the end of the lease"
        assert row.cancel_requested or row.lost_leases + 1 >= LOST_LEASES, f"{key} was ended without a reason"
        self._log_lost(key, row)
        status = Status.CANCELLED if row.cancel_requested else Status.FAILED
        self.model.rows[key] = _ended(row, status, self.now)._replace(fence=row.fence + 1)
        self.buried += 1

    def _log_lost(self, key: Key, row: Row) -> None:
        self.model.log[key][row.fence] = Logged(row.attempts, None, ErrorKind.WORKER_LOST)

    def _postpone(self, key: Key, row: Row, now_shown: Row) -> None:
        assert row.status in WAITING, f"{key} became what it may not: {row} -> {now_shown}"
        assert now_shown == row._replace(wake_at=now_shown.wake_at), f"{key} became what it may not: {row} -> {now_shown}"
        assert now_shown.wake_at is not None
        assert row.wake_at is not None
        if key not in self.loose:
            assert row.wake_at <= self.now + self.asking.look_ahead, f"{key} was postponed before it was due"
            assert now_shown.wake_at > self.now, f"{key} was postponed to the past"
            assert self._is_held_back(key), f"{key} was postponed for no reason"
        assert now_shown.wake_at >= row.wake_at, f"{key} was brought forward: {row} -> {now_shown}"
        self.model.rows[key] = now_shown

    def _is_held_back(self, key: Key) -> bool:
        is_narrow = "max_in_flight_per_host" in self.model.tenants[key[0]].limits
        return is_narrow or self.place_of(key) in self.after.breakers

    def place_of(self, key: Key) -> Place:
        return key[0], destination_of(self.model.requests[key].url)

    # --- what applications may have at a time ------------------------------------------------------------------------

    def _check_shares(self) -> None:
        for application_id in {key[0] for key in self.claims}:
            self._check_in_flight(application_id)
        for place in {self.place_of(key) for key in self.claims}:
            mine = [key for key in self.claims if self.place_of(key) == place and self.before[key].status in WAITING]
            self._check_breaker(place, mine)
            if mine:
                self._check_host(place)

    def _under_way(self) -> list[Claim]:
        """Return what is under way, or may be, whoever has claimed it: what its worker has not told the end of."""
        return [*(claim for claim in self.model.claims.values() if not claim.is_over), *self.claims.values()]

    def _check_in_flight(self, application_id: str) -> None:
        tenant = self.model.tenants[application_id]
        most, epoch = tenant.limits.get("max_in_flight"), tenant.epochs.get("max_in_flight")
        if most is None:
            return
        counted = [
            claim for claim in self._under_way() if claim.key[0] == application_id and claim.epoch == epoch and claim.lease_until > self.now
        ]
        assert len(counted) <= most, f"{application_id} has {len(counted)} under way: its limit is {most}"

    def _check_host(self, place: Place) -> None:
        tenant = self.model.tenants[place[0]]
        most, epoch = tenant.limits.get("max_in_flight_per_host"), tenant.epochs.get("max_in_flight_per_host")
        if most is None:
            return
        queued = [
            claim
            for claim in self._under_way()
            if claim.process == self.process and claim.queue == epoch and self.place_of(claim.key) == place
        ]
        assert len(queued) <= most, f"{len(queued)} are under way to {place}: the limit is {most}"

    def _check_breaker(self, place: Place, mine: Sequence[Key]) -> None:
        broken = self.after.breakers.get(place)
        if broken is None or not mine:
            return
        assert len(mine) == 1, f"{len(mine)} were claimed for {place}, whose breaker is open"
        assert broken.probing, f"{mine} was claimed for {place}, whose breaker is open, and is no probe"
        assert broken.retry_at == self.model.rows[mine[0]].wake_at, "a probe lasts for as long as its lease"

    # --- what the worker is handed -----------------------------------------------------------------------------------

    def check_handed(self, handed: Sequence[Sent]) -> None:
        """Compare what the worker was given with what was claimed; take over when it is to be sent."""
        assert sorted(sent.key for sent in handed) == sorted(self.claims), "what was handed out is not what was claimed"
        for sent in sorted(handed, key=lambda sent: (sent.send_at, sent.key)):
            claim, row = self.claims[sent.key], self.before[sent.key]
            tenant = self.model.tenants[sent.key[0]]
            assert (sent.fence, sent.number, sent.previous) == (claim.fence, claim.number, claim.previous)
            assert sent.suspect == (row.status is Status.PROCESSING and row.lost_leases > 0)
            assert sent.payload == row.payload
            if sent.key in self.loose:
                assert sent.send_at >= claim.send_at, f"{sent.key} is to be sent before its time"
                claim.send_at = sent.send_at
            else:
                assert sent.signatures == sum(until is None or until > max(row.wake_at or 0, self.now) for until in tenant.secrets)
            self._check_pace(sent, claim, tenant)

    def _check_pace(self, sent: Sent, claim: Claim, tenant: Tenant) -> None:
        rate = tenant.rate
        if rate is None:
            assert sent.send_at == claim.send_at, f"{sent.key} is to be sent at another time than planned"
            return
        assert sent.send_at >= claim.send_at, f"{sent.key} is to be sent before its time"
        if tenant.last_sent is not None:
            last, interval = tenant.last_sent
            assert sent.send_at >= last + interval - 1, f"{sent.key} is to be sent {sent.send_at - last} ms after the one before"
        tenant.last_sent = sent.send_at, 1_000 / rate
        claim.send_at = sent.send_at


# --- what holds whatever happens ---------------------------------------------------------------------------------------


def check_shape(seen: Seen, model: Model) -> None:
    """Check each row by itself."""
    assert not seen.errors
    for key, row in seen.rows.items():
        has_ended = row.status in FINISHED
        assert (row.wake_at is None) == (row.finished_at is not None) == has_ended, f"{key} neither waits nor has ended: {row}"
        assert row.lost_leases < LOST_LEASES
        assert row.attempts <= model.attempts_allowed(key), f"{key} has had {row.attempts} attempts"
        assert row.status is not Status.FAILED or seen.reasons[key], f"{key} has failed, and nothing says why"
        log = seen.log.get(key, {})
        counted = [line for line in log.values() if line.error not in {ErrorKind.PROXY_FAILED, ErrorKind.TOO_LATE}]
        assert len(counted) == row.attempts - (row.status is Status.PROCESSING), f"{key} has {row.attempts} attempts, and logged are {log}"
        assert max(log, default=0) <= row.fence
        assert row.wake_at is None or row.status is Status.PROCESSING or row.wake_at >= row.due_at


def check_step(before: Seen, after: Seen) -> None:
    """Check what became of each row."""
    for key, old in before.rows.items():
        new = after.rows.get(key)
        assert new is not None, f"{key} is gone"
        if old.status is Status.CANCELLED and new.status is Status.PENDING:
            continue  # added anew
        assert old.status not in FINISHED or new == old, f"{key} had ended, and was changed"
        assert new.fence in {old.fence, old.fence + 1}, f"the fence of {key} went from {old.fence} to {new.fence}"
        assert (new.created_at, new.request_hash) == (old.created_at, old.request_hash)
        is_changed = old.status is new.status and new.status in WAITING and new.fence == old.fence + 1
        assert is_changed or (new.due_at, new.payload) == (old.due_at, old.payload), f"{key} became another event"
        assert after.log.get(key, {}).items() >= before.log.get(key, {}).items(), f"the log of {key} was changed"
        if new.fence == old.fence and old.status is not Status.PROCESSING:
            assert new == old._replace(wake_at=new.wake_at), f"{key} was changed without a claim"

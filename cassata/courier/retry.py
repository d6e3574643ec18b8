"""What an outcome means for its event: done, another attempt and when, or the end. tenacity's stop, wait and retry objects decide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple, TypeVar

import tenacity

from cassata.model import DETAIL_CHARACTERS, ErrorKind, Outcome, RetryOn, RetryOptions, Status

_Number = TypeVar("_Number", int, float)

# RFC 9110 section 15: a client treats a code that it cannot place, such as 600, as a 5xx.
_RETRIED_CODES = frozenset({408, 425, 429, *range(500, 1000)})
_RETRIED_ERRORS = frozenset(
    {
        ErrorKind.DNS_FAILED,
        ErrorKind.CONNECT_FAILED,
        ErrorKind.TLS_FAILED,
        ErrorKind.TIMEOUT,
        ErrorKind.CONNECTION_LOST,
        ErrorKind.BAD_RESPONSE,
        ErrorKind.PROXY_FAILED,
        ErrorKind.PLUGIN_FAILED,
        ErrorKind.TYPE_MISSING,
    }
)


_PROXY_PAUSE = tenacity.wait_random(min=2, max=10)


class Verdict(NamedTuple):
    """The event's next status; for SERVICE_UNAVAILABLE how long to wait; and why, for a person, unless it is COMPLETED.

    `counts` says whether the attempt is one of those that an event has.
    """

    status: Status
    wait_ms: int | None = None
    reason: str | None = None
    counts: bool = True


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again: `count` times after the first attempt, with exponential backoff and full jitter.

    A Retry-After, up to `retry_after_cap_ms`, is waited for first, and the jitter added to it: those that were turned
    away together do not come back together.
    """

    count: int = 5
    initial_ms: int = 1000
    multiplier: float = 4.0
    maximum_ms: int = 3_600_000
    retry_after_cap_ms: int = 3_600_000

    def verdict(self, outcome: Outcome) -> Verdict:
        """Judge one attempt. The event's own retry options, where it has some, come before the policy's."""
        if outcome.is_delivered:
            return Verdict(Status.COMPLETED)
        rule = self._rule_for(outcome)
        state = _state(rule, outcome)
        if outcome.error is ErrorKind.PROXY_FAILED:  # our own way out is blocked: the event is not to blame, nor its destination
            return Verdict(Status.SERVICE_UNAVAILABLE, math.ceil(_PROXY_PAUSE(state) * 1000), _reason(outcome), counts=False)
        if outcome.error is ErrorKind.TOO_LATE:  # nothing was sent
            return Verdict(Status.FAILED, reason=_reason(outcome), counts=False)
        if not rule.retry(state):
            return Verdict(Status.FAILED, reason=_reason(outcome))
        if rule.stop(state):
            return Verdict(Status.FAILED, reason=_reason(outcome, attempts=outcome.delivery.number))
        return Verdict(Status.SERVICE_UNAVAILABLE, wait_ms=math.ceil(rule.wait(state) * 1000), reason=_reason(outcome))

    def _rule_for(self, outcome: Outcome) -> tenacity.Retrying:
        options = outcome.delivery.retry or RetryOptions()
        count = _first(options.count, self.count)
        backoff = tenacity.wait_random_exponential(
            multiplier=_first(options.initial_ms, self.initial_ms) / 1000,
            exp_base=_first(options.multiplier, self.multiplier),
            max=_first(options.maximum_ms, self.maximum_ms) / 1000,
        )
        floor_ms = min(max(0, outcome.retry_after_ms or 0), self.retry_after_cap_ms)
        return tenacity.Retrying(
            stop=tenacity.stop_after_attempt(count + 1),
            wait=tenacity.wait_fixed(floor_ms / 1000) + backoff,
            retry=tenacity.retry_if_result(_is_refused if options.on == RetryOn.ANY else may_pass),
        )


def _state(rule: tenacity.Retrying, outcome: Outcome) -> tenacity.RetryCallState:
    """What tenacity's objects look at. The attempts were made by anyone, at any time: only their number matters."""
    state = tenacity.RetryCallState(rule, None, (), {})
    state.attempt_number = outcome.delivery.number
    state.set_result(outcome)
    return state


def may_pass(outcome: Outcome) -> bool:
    """Whether the same request may get a better answer later."""
    if outcome.error is not None:
        return outcome.error in _RETRIED_ERRORS
    return outcome.status_code in _RETRIED_CODES


def _is_refused(outcome: Outcome) -> bool:
    """Whether to ask again all the same: who has asked for that takes no answer for the last one."""
    return outcome.error is None or may_pass(outcome)


def _reason(outcome: Outcome, attempts: int = 1) -> str:
    spent = f", after {attempts} attempts" if attempts > 1 else ""
    return f"{_sentence(outcome)[: DETAIL_CHARACTERS - len(spent)]}{spent}"


def _sentence(outcome: Outcome) -> str:
    if outcome.error is not None:
        kind = outcome.error.value.replace("_", " ")
        return f"{kind}: {outcome.detail}" if outcome.detail else kind
    if outcome.status_code is None:
        return "no answer"
    return f"HTTP {outcome.status_code} {_phrase(outcome.status_code)}".rstrip()


def _phrase(code: int) -> str:
    try:
        return HTTPStatus(code).phrase
    except ValueError:
        return ""


def _first(preferred: _Number | None, otherwise: _Number) -> _Number:
    return otherwise if preferred is None else preferred

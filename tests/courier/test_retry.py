"""What an outcome means for its event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cassata.courier.retry import RetryPolicy, Verdict, may_pass
from cassata.model import DETAIL_CHARACTERS, ErrorKind, Outcome, RetryOn, RetryOptions, Status
from tests.courier.sending import delivery

MANY = 300  # draws, where chance decides
NO_OUTCOMES = {ErrorKind.WORKER_LOST, ErrorKind.REPLAYED}  # they stand in the log only


def outcome(status_code: int | None = None, error: ErrorKind | None = None, *, detail: str | None = None, **of_delivery: Any) -> Outcome:
    retry_after_ms = of_delivery.pop("retry_after_ms", None)
    of = delivery("http://receiver.test/", **of_delivery)
    return Outcome(of, started_at=0, duration_ms=1, status_code=status_code, error=error, detail=detail, retry_after_ms=retry_after_ms)


def waits(policy: RetryPolicy, of: Outcome) -> list[int]:
    verdicts = [policy.verdict(of) for _ in range(MANY)]
    assert {verdict.status for verdict in verdicts} == {Status.SERVICE_UNAVAILABLE}
    return [verdict.wait_ms for verdict in verdicts if verdict.wait_ms is not None]


@pytest.mark.parametrize("code", [200, 201, 202, 204, 206, 299])
def test_a_2xx_completes(code: int) -> None:
    assert RetryPolicy().verdict(outcome(code)) == Verdict(Status.COMPLETED, None, None)


@pytest.mark.parametrize("code", [408, 425, 429, 500, 501, 502, 503, 504, 599, 600, 799, 999])
def test_a_code_that_may_pass_is_tried_again(code: int) -> None:
    assert RetryPolicy().verdict(outcome(code)).status is Status.SERVICE_UNAVAILABLE


@pytest.mark.parametrize("code", [101, 199, 300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 409, 410, 413, 422, 451, 499])
def test_any_other_code_fails_at_once(code: int) -> None:
    verdict = RetryPolicy().verdict(outcome(code))

    assert (verdict.status, verdict.wait_ms) == (Status.FAILED, None)


def test_what_knows_no_codes_says_by_itself_that_it_went_well() -> None:
    assert RetryPolicy().verdict(replace(outcome(None), succeeded=True)).status is Status.COMPLETED
    assert RetryPolicy().verdict(replace(outcome(None, ErrorKind.TIMEOUT), succeeded=True)).status is Status.SERVICE_UNAVAILABLE


@pytest.mark.parametrize("error", [error for error in ErrorKind if error not in NO_OUTCOMES])
@pytest.mark.parametrize("code", [None, 200, 404, 503])
def test_an_error_decides_before_the_code(error: ErrorKind, code: int | None) -> None:
    hopeless = error in {
        *(ErrorKind.BLOCKED_ADDRESS, ErrorKind.UNSENDABLE, ErrorKind.TOO_LATE),
        *(ErrorKind.REFUSED, ErrorKind.SCRIPT_FAILED),
    }

    assert RetryPolicy().verdict(outcome(code, error)).status is (Status.FAILED if hopeless else Status.SERVICE_UNAVAILABLE)


def test_neither_code_nor_error_is_no_success() -> None:
    assert RetryPolicy().verdict(outcome()).status is Status.FAILED


def test_five_retries_are_six_attempts() -> None:
    statuses = [RetryPolicy(count=5).verdict(outcome(503, number=number)).status for number in range(1, 8)]

    assert statuses == [Status.SERVICE_UNAVAILABLE] * 5 + [Status.FAILED] * 2


def test_without_retries_the_first_failure_is_the_last() -> None:
    assert RetryPolicy(count=0).verdict(outcome(503)) == Verdict(Status.FAILED, None, "HTTP 503 Service Unavailable")


@pytest.mark.parametrize(("number", "longest"), [(1, 1_000), (2, 4_000), (3, 16_000), (6, 1_024_000), (7, 3_600_000), (90, 3_600_000)])
def test_waits_are_drawn_from_zero_to_a_growing_bound(number: int, longest: int) -> None:
    drawn = waits(RetryPolicy(count=100), outcome(503, number=number))

    assert 0 <= min(drawn) < longest * 0.2
    assert longest * 0.8 < max(drawn) <= longest


@pytest.mark.parametrize("asked", [1, 90_000, 3_600_000])
def test_retry_after_is_a_floor(asked: int) -> None:
    drawn = waits(RetryPolicy(), outcome(429, retry_after_ms=asked))

    assert min(drawn) >= asked
    assert max(drawn) <= asked + 1_001
    assert len(set(drawn)) > MANY / 10  # and those that were told the same do not come back together


def test_retry_after_is_capped() -> None:
    drawn = waits(RetryPolicy(retry_after_cap_ms=60_000), outcome(503, retry_after_ms=10**15))

    assert 60_000 <= min(drawn) <= max(drawn) <= 61_001


def test_a_negative_retry_after_is_none() -> None:
    assert max(waits(RetryPolicy(), outcome(503, retry_after_ms=-5_000))) <= 1_000


def test_an_event_overrides_single_values() -> None:
    policy = RetryPolicy(count=5, initial_ms=1_000, multiplier=4, maximum_ms=3_600_000)

    assert policy.verdict(outcome(503, retry=RetryOptions(count=0))).status is Status.FAILED
    assert policy.verdict(outcome(503, number=8, retry=RetryOptions(count=8))).status is Status.SERVICE_UNAVAILABLE
    assert 50 < max(waits(policy, outcome(503, retry=RetryOptions(initial_ms=100)))) <= 100
    assert 1_000 < max(waits(policy, outcome(503, number=2, retry=RetryOptions(multiplier=2)))) <= 2_000
    assert 250 < max(waits(policy, outcome(503, number=5, retry=RetryOptions(maximum_ms=500)))) <= 500
    assert set(waits(policy, outcome(503, retry=RetryOptions(initial_ms=0)))) == {0}
    assert set(waits(policy, outcome(503, retry=RetryOptions(maximum_ms=0)))) == {0}
    assert max(waits(policy, outcome(503, number=5, retry=RetryOptions(multiplier=1)))) <= 1_000


def test_any_answer_but_a_2xx_is_tried_again_where_that_is_asked() -> None:
    asked = RetryOptions(count=2, initial_ms=0, on=RetryOn.ANY)

    for code in (302, 400, 404, 410, 429, 500):
        again = RetryPolicy().verdict(outcome(code, number=2, retry=asked))
        assert (again.status, again.wait_ms, again.counts) == (Status.SERVICE_UNAVAILABLE, 0, True)
        assert RetryPolicy().verdict(outcome(code, number=3, retry=asked)).status is Status.FAILED
    assert RetryPolicy().verdict(outcome(204, retry=asked)).status is Status.COMPLETED
    assert RetryPolicy().verdict(outcome(None, ErrorKind.BLOCKED_ADDRESS, retry=asked)).status is Status.FAILED
    assert not may_pass(outcome(404, retry=asked))  # to a breaker it is an answer like any other


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (outcome(503), "HTTP 503 Service Unavailable"),
        (outcome(503, number=6), "HTTP 503 Service Unavailable, after 6 attempts"),
        (outcome(404, number=3), "HTTP 404 Not Found"),
        (outcome(799), "HTTP 799"),
        (outcome(200, ErrorKind.TIMEOUT, detail="no complete answer within 20 s"), "timeout: no complete answer within 20 s"),
        (
            outcome(None, ErrorKind.TIMEOUT, detail="no connection within 5 s", number=6),
            "timeout: no connection within 5 s, after 6 attempts",
        ),
        (outcome(None, ErrorKind.CONNECTION_LOST), "connection lost"),
        (outcome(), "no answer"),
    ],
)
def test_the_reason_is_a_sentence_for_a_person(ended: Outcome, reason: str) -> None:
    assert RetryPolicy().verdict(ended).reason == reason


def test_a_long_reason_is_cut_but_not_its_end() -> None:
    reason = RetryPolicy().verdict(outcome(None, ErrorKind.BAD_RESPONSE, detail="x" * 5_000, number=6)).reason or ""

    assert len(reason) == DETAIL_CHARACTERS
    assert reason.endswith("x, after 6 attempts")

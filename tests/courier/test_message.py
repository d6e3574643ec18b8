"""What goes on the wire, and what is kept of the answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cassata.courier import message
from cassata.model import EXCERPT_CHARACTERS

NOW = 1_700_000_000_000


def test_a_webhook_id_is_the_same_for_every_attempt_and_another_for_every_event() -> None:
    assert message.webhook_id("shop", "order-1") == "evt_tsc5cm2oeoymroj3k6mm3y6v74"
    assert message.webhook_id("shop", "order-1") != message.webhook_id("shopo", "rder-1")


def test_a_retry_after_date_is_counted_from_now() -> None:
    assert message.retry_after_ms("Tue, 14 Nov 2023 22:14:20 GMT", now=NOW) == 60_000
    assert message.retry_after_ms("Tue, 14 Nov 2023 22:12:20 GMT", now=NOW) == 0


def test_a_retry_after_of_any_length_is_read() -> None:
    assert (message.retry_after_ms("9" * 10_000, now=NOW) or 0) > 3_600_000


def test_a_retry_after_that_makes_no_sense_is_none() -> None:
    for junk in (None, "", "soon", "-1", "1.5", "\u0661", "Tue, 99 Nov 2023 22:14:20 GMT", "1e9"):
        assert message.retry_after_ms(junk, now=NOW) is None


@given(st.text())
def test_no_retry_after_is_too_odd_to_read(value: str) -> None:
    found = message.retry_after_ms(value, now=NOW)

    assert found is None or found >= 0


@given(st.binary(max_size=64).map(lambda some: some * 200))
def test_an_excerpt_of_anything_is_short_text(received: bytes) -> None:
    found = message.excerpt(received)

    assert (found is None) == (not received)
    assert len(found or "") <= EXCERPT_CHARACTERS
    assert (found or "") == received.decode("utf-8", "replace")[:EXCERPT_CHARACTERS]

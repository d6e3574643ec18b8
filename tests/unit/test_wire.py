"""JSON in and values out, values in and JSON out: without Flask and without a database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cassata.model import LATEST_INSTANT, NewEvent, RetryOptions
from cassata.service import wire

GOOD: dict[str, Any] = {"application-id": "shop", "event": "x", "delay": 60, "url": "http://receiver.example/"}


def read(**changes: Any) -> NewEvent:
    fields = {**GOOD, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return wire.read_event({name: value for name, value in fields.items() if value is not ...}).new


def refusal(**changes: Any) -> list[dict[str, str]]:
    with pytest.raises(wire.InvalidDocument) as refused:
        read(**changes)
    return list(refused.value.errors)


@pytest.mark.parametrize(
    ("written", "due_at"),
    [
        (0, 0),
        (1524141245, 1_524_141_245_000),
        (1524141245.5, 1_524_141_245_500),
        (1524141245.123, 1_524_141_245_123),
        (1524141245.1231, 1_524_141_245_124),
        (1e9, 1_000_000_000_000),
        ("2018-04-19T12:34:05Z", 1_524_141_245_000),
        ("2018-04-19T14:34:05+02:00", 1_524_141_245_000),
        ("2018-04-19T12:34:05.1230001Z", 1_524_141_245_123),
        ("2018-04-19T12:34:05.123001Z", 1_524_141_245_124),
        ("20180419T123405Z", 1_524_141_245_000),
        ("1970-01-01T00:00:00-00:00", 0),
    ],
)
def test_an_instant_is_read_to_the_millisecond_and_never_earlier(written: Any, due_at: int) -> None:
    assert read(delay=..., expiry=written).due_at == due_at


@given(at=st.integers(0, 4_000_000_000_000))
def test_what_is_written_is_read_again_unchanged(at: int) -> None:
    assert wire.read_instant(wire.instant(at)) == at
    assert wire.read_instant(at / 1000) == at


@pytest.mark.parametrize("at", [0, LATEST_INSTANT])
def test_the_first_and_the_last_instant_can_be_written(at: int) -> None:
    text = wire.instant(at)
    assert text is not None
    assert datetime.fromisoformat(text).astimezone(UTC).timestamp() == pytest.approx(at / 1000)


@pytest.mark.parametrize(("written", "delay_ms"), [(0, 0), (1.001, 1001), (0.0001, 1), (2.0, 2000), (1e-320, 1)])
def test_a_delay_is_seconds(written: float, delay_ms: int) -> None:
    assert read(delay=written).delay_ms == delay_ms


@pytest.mark.parametrize(
    ("written", "payload"),
    [
        ("", b""),
        ("{arbitrary event JSON}", b"{arbitrary event JSON}"),
        ("\u4f60\u00e9\U0001f600", "\u4f60\u00e9\U0001f600".encode()),
        ({"b": [1, 2.5, None, True], "a": "\u4f60"}, '{"b":[1,2.5,null,true],"a":"\u4f60"}'.encode()),
        (None, b"null"),
        (0, b"0"),
        ([], b"[]"),
        (123456789012345678901234567890, b"123456789012345678901234567890"),
    ],
)
def test_a_string_is_sent_as_it_is_and_anything_else_as_compact_json(written: Any, payload: bytes) -> None:
    assert read(event=written).payload == payload


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_a_payload_is_optional_where_a_request_has_usually_none(method: str) -> None:
    assert read(event=..., method=method).payload is None
    assert read(method=method).payload == b"x"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_payload_is_required_where_a_request_usually_has_one(method: str) -> None:
    assert [error["pointer"] for error in refusal(event=..., method=method)] == ["/event"]
    assert read(event="", method=method).payload == b""


@pytest.mark.parametrize(
    ("written", "headers"),
    [
        (..., ()),
        ([], ()),
        (["content-type:text/plain"], (("content-type", "text/plain"),)),
        (["Referer: http://x:1/", "X-Empty:", "A:\tb "], (("Referer", "http://x:1/"), ("X-Empty", ""), ("A", "b"))),
        (["A: 1", "a: 2", "A: 1"], (("A", "1"), ("a", "2"), ("A", "1"))),
        ({"A": "1", "B": ["2", "3"]}, (("A", "1"), ("B", "2"), ("B", "3"))),
    ],
)
def test_headers_are_lines_or_an_object_and_keep_their_order(written: Any, headers: tuple[tuple[str, str], ...]) -> None:
    assert read(request_headers=written).headers == headers


@pytest.mark.parametrize("name", sorted(wire.ALIASES))
def test_every_name_of_the_ancestor_is_an_alias(name: str) -> None:
    values = {"event-id": "e1", "application-id": "shop", "event": "x", "url": "http://x/", "method": "PUT", "request-headers": ["A: b"]}
    ours = wire.ALIASES[name]
    renamed = {(name if field == ours else field): value for field, value in {**values, "delay": 60}.items()}

    assert wire.read_event(renamed).new == wire.read_event({**values, "delay": 60}).new


@pytest.mark.parametrize(("first", "second"), [("url", "destinationUrl"), ("destinationUrl", "url"), ("headers", "requestHeaders")])
def test_a_field_given_under_two_names_is_refused_at_the_second(first: str, second: str) -> None:
    document = {name: value for name, value in GOOD.items() if name != "url"} | {first: "http://x/", second: "http://x/"}

    with pytest.raises(wire.InvalidDocument) as refused:
        wire.read_event(document)

    assert {"pointer": f"/{second}", "detail": f"is given already, as /{first}: leave one of the two out"} in refused.value.errors


def test_null_stands_for_a_field_that_is_not_given() -> None:
    optional = ("event_id", "expiry", "method", "request_headers", "timeout", "retry")
    new = read(**dict.fromkeys(optional))
    assert (new.method, new.timeout_ms, new.retry, new.due_at) == ("POST", None, None, None)
    assert read(retry={"count": None}).retry == RetryOptions()


def test_retry_and_timeout_are_read_in_seconds() -> None:
    new = read(timeout=0.1, retry={"count": 0, "initial": 0.25, "multiplier": 2, "maximum": 60})
    assert new.timeout_ms == 100
    assert new.retry == RetryOptions(count=0, initial_ms=250, multiplier=2.0, maximum_ms=60_000)


@pytest.mark.parametrize("value", ["2", True, [], [2], {}, {"a": 2}])
def test_a_multiplier_that_is_no_number_is_told_to_be_none(value: Any) -> None:
    (told,) = refusal(retry={"multiplier": value})
    assert told["pointer"] == "/retry/multiplier"
    assert told["detail"].startswith("must be a number, not ")


def test_all_problems_are_told_at_once_whatever_their_kind() -> None:
    told = refusal(application_id=..., url="nowhere", delay=-1, method=7, request_headers=["x"], retry={"count": "a", "no": 1}, extra=1)
    assert sorted(error["pointer"] for error in told) == [
        "/application-id", "/delay", "/extra", "/method", "/request-headers/0", "/retry/count", "/retry/no", "/url",
    ]  # fmt: skip


def test_a_pointer_is_escaped() -> None:
    assert refusal(**{"a/b~c": 1})[0]["pointer"] == "/a~1b~0c"


def test_a_generated_id_differs_each_time() -> None:
    assert read().event_id != read().event_id


@pytest.mark.parametrize("digits", ["1.5", "1e300", "-0.0", "123456789012345678901234567890", "1E+2"])
def test_json_numbers_are_read(digits: str) -> None:
    assert wire.read_json(f'{{"a": {digits}}}'.encode()) == {"a": json.loads(digits)}


def test_an_escaped_surrogate_pair_is_a_character() -> None:
    assert wire.read_json(b'"\\ud83d\\ude00"') == "\U0001f600"


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_value_is_sent_on_as_the_same_value(value: Any) -> None:
    payload = read(event=wire.read_json(json.dumps(value).encode())).payload
    assert payload is not None
    assert payload.decode() == value if isinstance(value, str) else json.loads(payload) == value


@pytest.mark.parametrize(
    ("written", "duration_ms"),
    [
        *(("90", 90_000), ("1.5", 1_500)),
        *((90, 90_000), (0.0001, 1), ("90s", 90_000), ("15m", 900_000), ("1h30m", 5_400_000), ("2d", 172_800_000), ("250ms", 250)),
        *(("PT15M", 900_000), ("P1DT2H", 93_600_000), ("P1W", 604_800_000), ("PT0.0001S", 1)),
    ],
)
def test_a_duration_is_a_number_of_seconds_or_text(written: object, duration_ms: int) -> None:
    assert wire.read_duration(written) == duration_ms


@pytest.mark.parametrize(
    "written",
    ["", "-15", "1.", "-1s", "1 h", "s", "PT", "-PT5S", "P1M", "P1Y", "p1d", "15:00", "1h\n", "P" + "9" * 30 + "D", None, True, []],
)
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="must"):
        wire.read_duration(written)

"""JSON in and out: round trips, limits, and that nothing comes in that could not go out."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventmill.errors import InvalidEvent
from eventmill.events import CloudEventsJson, DecodeError, TooLarge, decode, decode_batch, encode
from eventmill.sdk.event import Event

MINIMAL = {"specversion": "1.0", "id": "1", "source": "/lab", "type": "org.lab.done"}


def test_round_trip() -> None:
    event = Event.new("org.lab.done", "/lab", subject="/a/ü.h5", data={"x": [1, 2.5, None]}, tries=3)
    assert decode(encode(event)) == event


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=10,
    )
)
def test_data_survives(data: object) -> None:
    raw = orjson.dumps({**MINIMAL, "data": data}) if _writable(data) else b"{}"
    if raw != b"{}":
        assert decode(encode(decode(raw)))["data"] == data


def _writable(data: object) -> bool:
    try:
        orjson.dumps(data)
        return True
    except TypeError:
        return False


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"nope", b"[]", b'"x"', b'{"id": NaN}', b"\xff\xfe", b'{"id": "\\ud800"}', b'{"id":"1"} x']
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidEvent):
        decode(raw)


def test_what_could_not_be_written_is_not_read() -> None:
    for depth, accepted in ((190, True), (199, True), (200, False), (1000, False), (5000, False)):
        raw = orjson.dumps(MINIMAL)[:-1] + b',"data":' + b"[" * depth + b"]" * depth + b"}"
        if accepted:
            assert decode(encode(decode(raw)))["data"]
        else:
            with pytest.raises(InvalidEvent):
                decode(raw)


def test_many_brackets_that_are_not_deep_are_fine() -> None:
    assert len(decode(orjson.dumps({**MINIMAL, "data": [[]] * 1000}))["data"]) == 1000


def test_what_is_not_json_is_not_encoded() -> None:
    with pytest.raises(InvalidEvent) as caught:
        encode(Event(MINIMAL, data=object()))
    assert caught.value.attribute == "data"


def test_size() -> None:
    raw = orjson.dumps({**MINIMAL, "data": "x" * 1000})
    assert decode(raw, bytes_max=len(raw))
    with pytest.raises(TooLarge, match=str(len(raw))) as caught:
        decode(raw, bytes_max=len(raw) - 1)
    assert caught.value.status == 413


def test_batch() -> None:
    events = [{**MINIMAL, "id": str(i)} for i in range(10)]
    raw = orjson.dumps(events)
    assert decode_batch(raw, events_max=10, bytes_max=100) == events
    assert decode_batch(b"[]") == []
    with pytest.raises(TooLarge, match="at most 9"):
        decode_batch(raw, events_max=9)
    with pytest.raises(TooLarge, match="event 3 of the batch"):
        decode_batch(orjson.dumps([*events[:2], {**MINIMAL, "data": "x" * 100}]), bytes_max=100)
    with pytest.raises(InvalidEvent, match="array"):
        decode_batch(orjson.dumps(MINIMAL))


def test_a_batch_says_which_event_is_wrong() -> None:
    with pytest.raises(InvalidEvent, match="event 2 of the batch: attribute 'source'") as caught:
        decode_batch(orjson.dumps([MINIMAL, {**MINIMAL, "source": " "}]))
    assert caught.value.attribute == "source"
    with pytest.raises(InvalidEvent, match="event 1 of the batch"):
        decode_batch(b"[null]")


def test_our_own_log_is_decoded_without_being_checked_again() -> None:
    decoder = CloudEventsJson()
    fields = decoder.fields(encode(Event(MINIMAL)))
    assert fields is not None
    event = decoder.event(fields)
    assert type(event) is Event
    assert event == MINIMAL
    for torn in (b'{"id": "1', b"[]", b"\x00" * 20):
        with pytest.raises(DecodeError) as caught:
            decoder.fields(torn)
        assert caught.value.reason

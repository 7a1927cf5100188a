"""CloudEvents that others have written to Kafka: checked, told apart by source, in structured and in binary mode."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from eventmill.events import CloudEventsDecoder, CloudEventsJson, DecodeError
from eventmill.events.kafka import Headers, structured
from eventmill.sdk.event import Event

EVENT = {"specversion": "1.0", "id": "1", "source": "//lab/device", "type": "org.lab.done", "data": {"n": 1}}


def event_of(raw: bytes, source: str | None = "") -> Event | None:
    made = CloudEventsDecoder(source)
    fields = made.fields(raw)
    return None if fields is None else made.event(fields)


# structured


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"data": None},
        {"subject": "/x", "time": "2026-05-06T07:08:09Z", "datacontenttype": "application/json"},
        {"depth": 3, "traceparent": "00-1-1-01", "dataschema": "https://lab.example/schema"},
        {"datacontenttype": "text/plain", "data": "x"},
    ],
)
def test_an_event_stays_as_it_is(more: dict[str, Any]) -> None:
    event = event_of(orjson.dumps({**EVENT, **more}))
    assert type(event) is Event
    assert event == {**EVENT, **more}


def test_a_null_attribute_is_an_absent_one_for_patterns_too() -> None:
    made = CloudEventsDecoder()
    fields = made.fields(orjson.dumps({**EVENT, "subject": None}))
    assert fields == EVENT
    assert made.event(fields) == EVENT


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "not valid JSON: "),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "attribute 'specversion': is missing"),
        (orjson.dumps({**EVENT, "specversion": "0.3"}), "attribute 'specversion': must be \"1.0\""),
        (orjson.dumps({**EVENT, "source": 7}), "attribute 'source': must be a string, not a number"),
        (orjson.dumps({**EVENT, "time": "yesterday"}), "attribute 'time': must be a timestamp"),
        (orjson.dumps({**EVENT, "Extension": 1}), "attribute 'Extension': is not a name"),
        (orjson.dumps(EVENT)[:-2] + b":" + b"[" * 300 + b"]" * 300 + b"}}", "not valid JSON"),
        (orjson.dumps(EVENT)[:-2] + b',"x":' + b"[" * 300 + b"]" * 300 + b"}}", "nested more than 200 levels deep"),
    ],
)
def test_what_is_no_event_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as refused:
        event_of(raw)
    assert reason in refused.value.reason


@pytest.mark.parametrize("decoder", [CloudEventsDecoder(), CloudEventsJson()])
def test_confluents_wire_format_is_named_with_its_setting(decoder: CloudEventsDecoder | CloudEventsJson) -> None:
    with pytest.raises(DecodeError) as refused:
        decoder.fields(b"\0\0\0\1\2" + orjson.dumps(EVENT))
    assert "Confluent's wire format, with schema 258" in refused.value.reason
    assert "set backbone.registry.url" in refused.value.reason
    with pytest.raises(DecodeError, match="not valid JSON"):
        decoder.fields(b"\0\0\0\1")


# whose events


@pytest.mark.parametrize(
    ("prefix", "source", "outcome"),
    [
        ("", "//lab/device", None),
        ("//lab/", "//lab/device", None),
        ("//lab/device", "//lab/device", None),
        ("//lab/devices", "//lab/device", "from another source"),
        ("", "/eventmill/default", "from an Eventmill"),
        ("/", "/eventmill/default", "from an Eventmill"),
        ("/eventmill/default", "/eventmill/default", None),
        ("/eventmill/default", "/eventmill/other", "from another source"),
        (None, "/eventmill/default", None),
        (None, "//lab/device", None),
    ],
)
def test_sources(prefix: str | None, source: str, outcome: str | None) -> None:
    made = CloudEventsDecoder(prefix)
    fields = made.fields(orjson.dumps({**EVENT, "source": source}))
    assert (fields is None) == (outcome is not None)
    assert made.ignored.counts == ({} if outcome is None else {outcome: 1})


def test_events_of_others_are_not_checked() -> None:
    made = CloudEventsDecoder("//lab/")
    assert made.fields(b'{"source": "//elsewhere", "specversion": 7}') is None
    with pytest.raises(DecodeError):
        made.fields(b'{"specversion": "1.0"}')


def test_tombstones_are_counted() -> None:
    for made in (CloudEventsDecoder(), CloudEventsJson()):
        assert made.fields(b"") is None
        assert made.ignored.counts == {"tombstone (a record without a value)": 1}


# binary


def headers(content_type: bytes | None = None, **attributes: bytes | None) -> Headers:
    known = {"specversion": b"1.0", "id": b"1", "source": b"//lab/device", "type": b"org.lab.done", **attributes}
    return [
        *((f"ce_{name}", value) for name, value in known.items()),
        *([("content-type", content_type)] if content_type is not None else []),
    ]


@pytest.mark.parametrize(
    ("content_type", "value", "data"),
    [
        (b"application/json", b'{"n": 1}', {"data": {"n": 1}}),
        (b"application/vnd.lab+json; charset=utf-8", b"[1]", {"data": [1]}),
        (b"application/json", b"null", {"data": None}),
        (b"application/json", b"", {}),
        (b"application/json", None, {}),
        (b"text/plain", "ä".encode(), {"data": "ä"}),
        (b"application/xml", b"<x/>", {"data": "<x/>"}),
        (b"text/plain", b"\xff", {"data_base64": base64.b64encode(b"\xff").decode()}),
        (b"application/octet-stream", b"x", {"data_base64": "eA=="}),
        (None, b'{"n": 1}', {"data_base64": base64.b64encode(b'{"n": 1}').decode()}),
    ],
)
def test_data_of_the_binary_mode(content_type: bytes | None, value: bytes | None, data: dict[str, Any]) -> None:
    event = event_of(structured(headers(content_type), value))
    assert event is not None
    expected = {key: EVENT[key] for key in ("specversion", "id", "source", "type")} | data
    if content_type is not None:
        expected["datacontenttype"] = content_type.decode()
    assert event == expected


def test_attributes_are_utf8_and_not_percent_encoded() -> None:
    event = event_of(structured(headers(subject="/ä%20b".encode(), partitionkey=b"7", time=None), b""))
    assert event is not None
    assert (event.subject, event["partitionkey"]) == ("/ä%20b", "7")
    assert "time" not in event


@pytest.mark.parametrize(
    ("given", "value", "reason"),
    [
        (headers(subject=b"\xff"), b"", "attribute 'subject': must not contain control characters"),
        ([*headers(), ("ce_id", b"2")], b"", "attribute 'id': must be a string, not an array"),
        (headers(data=b"x"), b"", "attribute 'ce_data': is not a name"),
        (headers(datacontenttype=b"text/plain"), b"", "attribute 'ce_datacontenttype': is not a name"),
        ([("ce_id", b"1")], b"", "attribute 'specversion': is missing"),
        (headers(specversion=b"0.3"), b"", "attribute 'specversion'"),
        (headers(b"application/json"), b'{"n": 1', "not valid JSON"),
        (headers(b"application/json"), b'1, "id": "2"', "not valid JSON"),
        (headers(b"application/json"), b"\0\0\0\0\1{}", "Confluent's wire format"),
        (headers(b"nonsense"), b"x", "attribute 'datacontenttype': must be a media type"),
        (headers(b"\xff"), b"x", "attribute 'datacontenttype'"),
    ],
)
def test_what_is_wrong_in_binary_mode_shows_in_the_decoder(given: Headers, value: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as refused:
        event_of(structured(given, value))
    assert reason in refused.value.reason


def test_a_declared_structured_record_stays_as_it_is() -> None:
    raw = orjson.dumps(EVENT)
    for content_type in (b"application/cloudevents+json", b"Application/CloudEvents+json; charset=utf-8"):
        assert structured(headers(content_type, id=b"other"), raw) == raw
    assert structured([], raw) == structured([("trace", b"x"), ("content-type", b"application/json")], raw) == raw


def test_a_tombstone_is_one_in_either_mode() -> None:
    assert structured([], None) == structured([("content-type", b"application/cloudevents+json")], None) == b""

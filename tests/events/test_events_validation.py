"""The rules of CloudEvents 1.0.2: what is accepted, what is refused, and that the offending attribute is named."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventmill.errors import InvalidEvent
from eventmill.events import validate
from eventmill.sdk.event import Event

MINIMAL = {"specversion": "1.0", "id": "1", "source": "/lab", "type": "org.lab.done"}


def test_a_minimal_event_is_an_event() -> None:
    event = validate(MINIMAL)
    assert type(event) is Event
    assert event == MINIMAL
    assert event is not MINIMAL


def test_everything_is_kept() -> None:
    full = {
        **MINIMAL,
        "subject": "/run/1.h5",
        "time": "2024-05-06T07:08:09.123456789+02:00",
        "datacontenttype": "application/json; charset=utf-8",
        "dataschema": "https://lab.example/schema#run",
        "data": {"a": [1, None, {"b": 2.5}]},
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "sequence1": 2**31 - 1,
        "flag": False,
        "emptyextension": "",
    }
    assert validate(full) == full


def test_null_attributes_are_absent_and_null_data_is_data() -> None:
    event = validate({**MINIMAL, "subject": None, "time": None, "ext": None, "data": None, "data_base64": None})
    assert event == {**MINIMAL, "data": None}


@pytest.mark.parametrize(
    "source",
    [
        "https://github.com/cloudevents",
        "mailto:cncf-wg-serverless@lists.cncf.io",
        "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
        "/cloudevents/spec/pull/123",
        "1-555-123-4567",
        "//dcache/desy",
        "aws:s3.us-west-2.mybucket",
        "file:///data/exfel",
        "http://user:x@[2001:db8::1]:8080/a;b?c=/?d#e",
        "../a:b",
        "#only-a-fragment",
        "?q",
        "a/b%20c",
    ],
)
def test_sources_that_are_uri_references(source: str) -> None:
    assert validate({**MINIMAL, "source": source})["source"] == source


@pytest.mark.parametrize(
    "time",
    [
        "2018-04-05T17:31:00Z",
        "2018-04-05t17:31:00z",
        "2018-04-05T17:31:00.1-00:00",
        "2016-12-31T23:59:60Z",
        "2016-12-31T18:59:60.999-05:00",
        "2024-02-29T00:00:00.123456789012+23:59",
    ],
)
def test_times_of_rfc_3339(time: str) -> None:
    assert validate({**MINIMAL, "time": time})["time"] == time


MALFORMED: list[tuple[str, Any]] = [
    ("id", ""),
    ("id", 7),
    ("id", "a\x00b"),
    ("id", "a\ud800b"),
    ("source", ""),
    ("source", "with space"),
    ("source", "a%2"),
    ("source", "1:b"),
    ("source", "http://[::1"),
    ("source", "a\\b"),
    ("source", "x" * 600 + " "),
    ("type", ""),
    ("type", ["a"]),
    ("type", "a\ufffe"),
    ("specversion", "0.3"),
    ("specversion", 1.0),
    ("subject", ""),
    ("subject", "line\nbreak"),
    ("time", "2018-04-05"),
    ("time", "2018-04-05 17:31:00Z"),
    ("time", "2018-04-05T17:31:00"),
    ("time", "2018-13-05T17:31:00Z"),
    ("time", "2018-02-30T17:31:00Z"),
    ("time", "2018-02-20T24:00:00Z"),
    ("time", "2018-02-20T23:00:61Z"),
    ("time", "2018-04-05T17:31:00Z\n"),
    ("time", 1522949460),
    ("datacontenttype", ""),
    ("datacontenttype", "json"),
    ("datacontenttype", "text/plain; charset"),
    ("dataschema", "/relative"),
    ("dataschema", ""),
    ("data_base64", "###"),
    ("data_base64", "YWI"),
    ("data_base64", "YW Jj"),
    ("data_base64", "é"),
    ("data_base64", 1),
    ("Upper", "x"),
    ("with_underscore", "x"),
    ("", "x"),
    ("ext", 1.5),
    ("ext", {"a": 1}),
    ("ext", [1]),
    ("ext", 2**31),
    ("ext", "\x85"),
]


@pytest.mark.parametrize(("attribute", "value"), MALFORMED)
def test_malformed_attributes_are_named(attribute: str, value: Any) -> None:
    with pytest.raises(InvalidEvent) as caught:
        validate({**MINIMAL, attribute: value})
    assert caught.value.attribute == attribute
    assert caught.value.status == 400
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("missing", sorted(MINIMAL))
@pytest.mark.parametrize("null", [True, False])
def test_required_attributes(missing: str, null: bool) -> None:
    event: dict[str, Any] = {**MINIMAL}
    event[missing] = None
    if not null:
        del event[missing]
    with pytest.raises(InvalidEvent, match="is missing") as caught:
        validate(event)
    assert caught.value.attribute == missing


def test_data_and_data_base64_exclude_each_other() -> None:
    with pytest.raises(InvalidEvent) as caught:
        validate({**MINIMAL, "data": 1, "data_base64": "YWJj"})
    assert caught.value.attribute == "data_base64"


def test_data_that_is_not_json_is_a_string() -> None:
    for content_type in ("application/vnd.lab+json", "TEXT/JSON;x=y"):
        validate({**MINIMAL, "datacontenttype": content_type, "data": {"a": 1}})
    validate({**MINIMAL, "datacontenttype": "text/xml", "data": "<a/>"})
    with pytest.raises(InvalidEvent, match="an object") as caught:
        validate({**MINIMAL, "datacontenttype": "text/xml", "data": {"a": 1}})
    assert caught.value.attribute == "data"


def test_what_is_no_object_is_refused() -> None:
    for nothing in (None, 1, "x", [MINIMAL]):
        with pytest.raises(InvalidEvent):
            validate(nothing)  # type: ignore[arg-type]


def test_the_message_points_at_the_character() -> None:
    with pytest.raises(InvalidEvent, match=r"attribute 'source'.*character 5, ' ', must be percent-encoded"):
        validate({**MINIMAL, "source": "/lab device"})


@settings(deadline=None)
@given(st.text(max_size=30))
def test_a_source_is_never_a_crash(text: str) -> None:
    with contextlib.suppress(InvalidEvent):
        assert validate({**MINIMAL, "source": text})["source"] == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*MINIMAL, "time", "data", "data_base64", "subject"]) | st.text(), JSON))
def test_no_mapping_is_a_crash(fields: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidEvent):
        validate({**MINIMAL, **fields})

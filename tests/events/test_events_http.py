"""The three modes of the HTTP binding, its encoding of header values, and that bad requests are no crash."""

from __future__ import annotations

import base64
import contextlib

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from eventmill.config import Limits
from eventmill.errors import InvalidEvent
from eventmill.events import TooLarge, UnsupportedContentType, from_http
from eventmill.events.validation import is_clean

MINIMAL = {"specversion": "1.0", "id": "1", "source": "/lab", "type": "org.lab.done"}
BINARY = {f"ce-{name}": value for name, value in MINIMAL.items()}
LIMITS = Limits()


@pytest.mark.parametrize(
    "content_type", ["application/cloudevents+json", "Application/CloudEvents+JSON; charset=UTF-8"]
)
def test_structured(content_type: str) -> None:
    # the ce- headers that a structured request may carry in addition say nothing
    headers = {"CONTENT-TYPE": content_type, "ce-id": "other"}
    assert from_http(headers, orjson.dumps(MINIMAL), limits=LIMITS) == [MINIMAL]


def test_batch() -> None:
    headers = {"content-type": "application/cloudevents-batch+json"}
    assert from_http(headers, orjson.dumps([MINIMAL, MINIMAL]), limits=LIMITS) == [MINIMAL, MINIMAL]
    assert from_http(headers, b"[]", limits=LIMITS) == []
    with pytest.raises(TooLarge):
        from_http(headers, orjson.dumps([MINIMAL, MINIMAL]), limits=Limits(batch_events=1))


@pytest.mark.parametrize(
    ("content_type", "body", "data"),
    [
        ("application/json", b'{"a": [1]}', {"data": {"a": [1]}}),
        ("application/vnd.lab+json; charset=utf-8", b'"text"', {"data": "text"}),
        ("application/json", b"null", {"data": None}),
        ("text/plain", "grüß".encode(), {"data": "grüß"}),
        ("text/plain; charset=iso-8859-1", b"gr\xfc\xdf", {"data_base64": base64.b64encode(b"gr\xfc\xdf").decode()}),
        ("text/plain", b"\xff", {"data_base64": "/w=="}),
        ("application/xml", b"<a/>", {"data": "<a/>"}),
        ("application/octet-stream", b"abc", {"data_base64": "YWJj"}),
        ("application/json", b"", {}),
        (None, b"", {}),
        (None, b"abc", {"data_base64": "YWJj"}),
    ],
)
def test_binary(content_type: str | None, body: bytes, data: dict[str, object]) -> None:
    headers = BINARY if content_type is None else {**BINARY, "Content-Type": content_type}
    expected = {**MINIMAL, **({} if content_type is None else {"datacontenttype": content_type}), **data}
    assert from_http(headers, body, limits=LIMITS) == [expected]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("%41%62c", "Abc"),
        ("%e2%82%ac", "€"),
        ("100%2525", "100%25"),
        ('"quoted \\"x\\" and %25"', 'quoted "x" and %'),
        ("with space", "with space"),
        (" trimmed ", "trimmed"),
    ],
)
def test_header_values(header: str, value: str) -> None:
    assert from_http({**BINARY, "ce-subject": header}, b"", limits=LIMITS)[0]["subject"] == value


@pytest.mark.parametrize(
    ("attribute", "header"),
    [
        ("subject", "%C0%A0"),
        ("subject", "%ff"),
        ("subject", "50%"),
        ("subject", '"open'),
        ("subject", "ü"),
        ("subject", "%0A"),
        ("subject", ""),
        ("time", "today"),
        ("source", "a%20b"),
        ("datacontenttype", "text/plain"),
        ("data", "x"),
        ("data_base64", "YWJj"),
        ("my-extension", "x"),
    ],
)
def test_bad_headers_are_named(attribute: str, header: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        from_http({**BINARY, f"ce-{attribute}": header}, b"", limits=LIMITS)
    assert caught.value.attribute == attribute
    assert caught.value.status == 400


def test_a_header_that_comes_twice() -> None:
    headers = Headers(raw=[(k.encode(), v.encode()) for k, v in [*BINARY.items(), ("CE-ID", "2")]])
    with pytest.raises(InvalidEvent, match="twice") as caught:
        from_http(headers, b"", limits=LIMITS)
    assert caught.value.attribute == "id"


def test_bad_bodies_are_named() -> None:
    for body in (b"{", b"[" * 500 + b"]" * 500):
        with pytest.raises(InvalidEvent) as caught:
            from_http({**BINARY, "content-type": "application/json"}, body, limits=LIMITS)
        assert caught.value.attribute == "data"
    with pytest.raises(InvalidEvent) as caught:
        from_http({**BINARY, "content-type": "not a media type"}, b"x", limits=LIMITS)
    assert caught.value.attribute == "datacontenttype"


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "text/html",
        "",
        "application/cloudevents",
        "application/cloudevents+avro",
        "application/cloudevents-batch+xml",
        "application/cloudevents+json; charset=utf-16",
    ],
)
def test_other_content_types_are_415(content_type: str) -> None:
    with pytest.raises(UnsupportedContentType) as caught:
        from_http({"content-type": content_type}, orjson.dumps(MINIMAL), limits=LIMITS)
    assert caught.value.status == 415


def test_size() -> None:
    for headers in ({**BINARY, "content-type": "text/plain"}, {"content-type": "application/cloudevents+json"}):
        with pytest.raises(TooLarge):
            from_http(headers, b"x" * 2000, limits=Limits(event_bytes=1000))


HEADER_NAMES = st.sampled_from([*BINARY, "content-type", "ce-time", "ce-subject", "ce-data", "Ce-X"]) | st.text()
CONTENT_TYPES = st.sampled_from(
    ["application/json", "text/plain; charset=x", *(f"application/cloudevents{x}+json" for x in ("", "-batch"))]
)
BODIES = st.binary(max_size=60) | st.sampled_from([orjson.dumps(MINIMAL), orjson.dumps([MINIMAL]), b'{"id": {}}'])


@settings(deadline=None)
@given(st.dictionaries(HEADER_NAMES, CONTENT_TYPES | st.text(max_size=30)), st.booleans(), BODIES)
def test_no_request_is_a_crash(headers: dict[str, str], complete: bool, body: bytes) -> None:
    with contextlib.suppress(InvalidEvent):
        from_http({**BINARY, **headers} if complete else headers, body, limits=LIMITS)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_what_is_encoded_by_the_rules_is_decoded(subject: str) -> None:
    encoded = "".join(c if "!" <= c <= "~" and c not in '"%' else _percent(c) for c in subject)
    with contextlib.nullcontext() if is_clean(subject) else pytest.raises(InvalidEvent):
        assert from_http({**BINARY, "ce-subject": encoded}, b"", limits=LIMITS)[0]["subject"] == subject


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


def test_what_is_stored_of_an_event_is_within_the_limit() -> None:
    limits = Limits(event_bytes=1000)
    binary = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "//s", "ce-type": "t", "Content-Type": "image/png"}
    from_http(binary, b"x" * 600, limits=limits)
    structured = {"Content-Type": "application/cloudevents+json"}
    batch = {"Content-Type": "application/cloudevents-batch+json"}
    numbers = b'{"specversion": "1.0", "id": "1", "source": "//s", "type": "t", "data": [1%s]}' % (b",1e15" * 100)
    for headers, body in ((binary, b"x" * 800), (structured, numbers), (batch, b"[%s]" % numbers)):
        assert len(body) < 900
        with pytest.raises(InvalidEvent, match="at most 1000 are allowed") as refused:
            from_http(headers, body, limits=limits)
        assert refused.value.status == 413

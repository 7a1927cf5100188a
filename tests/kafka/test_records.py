"""From Kafka's messages to what decoders read: plain ones, the wire format through a registry, headers, limits."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import fastavro
import orjson
import pytest
from confluent_kafka import Message

from eventmill.backbone.kafka import records as records_module
from eventmill.backbone.kafka import schemas
from eventmill.backbone.kafka.records import Records
from eventmill.config import Registry as Settings
from eventmill.config import Topic
from eventmill.errors import InvalidConfig, Unavailable
from tests.kafka.registry import Registry, framed

LIMIT = 1000
JSON = Topic(name="t", decoder="json", source="//here")
DCACHE = Topic(name="t", decoder="dcache")
CLOUDEVENTS = Topic(name="t", decoder="cloudevents")


def message(value: bytes | None, offset: int = 0, headers: Any = None) -> Message:
    return Message(topic="t", partition=0, offset=offset, value=value, headers=headers)


@contextmanager
def records(topic: Topic = JSON, url: str = "", properties: Any = None) -> Iterator[Records]:
    made = Records(topic, Settings(url=url, properties=properties or {}), LIMIT)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as registry:
        yield registry


def avro(schema: Any, value: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return out.getvalue()


# without a registry


def test_most_records_stay_as_they_are() -> None:
    for topic in (JSON, DCACHE, CLOUDEVENTS):
        with records(topic) as made:
            assert made.values([]) == ([], {})
            values = [b'{"a": 1}', None, b"", framed(7, b"{}"), b"\0", b"x" * LIMIT]
            assert made.values([message(value) for value in values]) == ([value or b"" for value in values], {})


def test_a_record_beyond_the_limit_is_refused() -> None:
    for topic in (JSON, CLOUDEVENTS):
        with records(topic) as made:
            large = b"x" * (LIMIT + 1)
            values, refused = made.values([message(b"{}", 4), message(large, 5), message(b"[]", 6)])
            assert values == [b"{}", large, b"[]"]
            assert refused == {5: "1001 bytes; limits.event_bytes is 1000"}


HEADERS = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"//s"), ("ce_type", b"t")]


def test_binary_mode_becomes_structured_for_cloudevents_alone() -> None:
    headers = [*HEADERS, ("content-type", b"application/json")]
    batch = [message(b'{"n": 1}', headers=headers), message(b'{"id": "2"}'), message(None, headers=HEADERS)]
    with records(CLOUDEVENTS) as made:
        values, refused = made.values(batch)
        first, plain, empty = map(orjson.loads, values)
        assert not refused
        assert first == {"specversion": "1.0", "id": "1", "source": "//s", "type": "t",
                         "datacontenttype": "application/json", "data": {"n": 1}}  # fmt: skip
        assert plain == {"id": "2"}
        assert empty["id"] == "1"
        assert "data" not in empty
        long = [*HEADERS, ("ce_subject", b"s" * LIMIT)]
        assert made.values([message(b"", 9, headers=long)])[1].keys() == {9}
    with records(JSON) as made:
        assert made.values(batch) == ([b'{"n": 1}', b'{"id": "2"}', b""], {})


# with one

FILE = {
    "type": "record", "name": "File", "namespace": "org.lab",
    "fields": [
        {"name": "path", "type": "string"},
        {"name": "sum", "type": "bytes"},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "uuid", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "tags", "type": {"type": "map", "values": ["null", "long", "double"]}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["RAW", "CALIBRATED"]}},
        {"name": "other", "type": ["null", {"type": "array", "items": "Kind"}]},
    ],
}  # fmt: skip
VALUE = {
    "path": "/exfel/ä.h5", "sum": b"\xff\x00", "price": Decimal("12.30"),
    "at": datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC), "day": date(2026, 5, 6),
    "uuid": UUID(int=7), "tags": {"a": 1, "b": None, "c": 1.5}, "kind": "RAW",
    "other": ["CALIBRATED"],
}  # fmt: skip


def test_avro_becomes_json(registry: Registry) -> None:
    number = registry.add(FILE)
    with records(url=registry.url) as made:
        values, refused = made.values([message(framed(number, avro(FILE, VALUE)), n) for n in range(3)])
        assert not refused
        assert orjson.loads(values[2]) == {
            "path": "/exfel/ä.h5", "sum": "/wA=", "price": "12.30", "at": "2026-05-06T07:08:09+00:00",
            "day": "2026-05-06", "uuid": str(UUID(int=7)), "tags": {"a": 1, "b": None, "c": 1.5}, "kind": "RAW",
            "other": ["CALIBRATED"],
        }  # fmt: skip
        made.values([message(framed(number, avro(FILE, VALUE)))])
    assert registry.asked == [f"/schemas/ids/{number}"], "a schema is asked for once"


def test_json_behind_a_schema_is_json(registry: Registry) -> None:
    number = registry.add({"type": "object"}, "JSON")
    with records(DCACHE, url=registry.url) as made:
        values, refused = made.values([message(framed(number, b'{"msgType": "x"}'), 3), message(b'{"y": 1}', 4)])
        assert (values, refused) == ([b'{"msgType": "x"}', b'{"y": 1}'], {})


def test_a_schema_may_refer_to_others(registry: Registry) -> None:
    place = {"type": "record", "name": "Place", "namespace": "org.lab", "fields": [{"name": "x", "type": "long"}]}
    visit = {"type": "record", "name": "Visit", "namespace": "org.lab", "fields": [
        {"name": "from", "type": "Place"}, {"name": "to", "type": "org.lab.Place"}]}  # fmt: skip
    way = {"type": "array", "items": "org.lab.Visit"}
    registry.add(place, subject="org.lab.Place")
    registry.add(visit, subject="org.lab.Visit", references=("org.lab.Place",))
    number = registry.add(way, references=("org.lab.Visit", "org.lab.Place"))
    with records(url=registry.url) as made:
        values, refused = made.values([message(framed(number, b"\x02\x02\x04\x00"))])
        assert not refused
        assert orjson.loads(values[0]) == [{"from": {"x": 1}, "to": {"x": 2}}]
        broken = registry.add(way, references=("org.lab.Nobody",))
        _, refused = made.values([message(framed(broken, b""))])
        assert "unknown to the registry" in refused[0]


def test_what_is_refused_keeps_its_value_and_stops_nobody(registry: Registry) -> None:
    number, plain = registry.add(FILE), registry.add("{}", "JSON")
    protobuf, odd = registry.add('syntax = "proto3";', "PROTOBUF"), registry.add({"type": "nonsense"})
    good, wide = avro(FILE, VALUE), avro(FILE, {**VALUE, "sum": b"\xff" * 880})
    cases = {
        framed(99, b"{}"): "schema 99: unknown to the registry http://",
        framed(protobuf, b"{}"): "schema 3: of type PROTOBUF: only JSON and Avro are read",
        framed(odd, b"{}"): "schema 4: an Avro schema that can't be used: ",
        framed(number, good[:-3]): "schema 1: not what its Avro schema says: ",
        framed(number, b"\x03"): "schema 1: not what its Avro schema says: ",
        b"\0\0\0": "begins like Confluent's wire format, but has only 3 bytes",
        framed(number, wide): "bytes; limits.event_bytes is 1000",
    }
    assert len(wide) < LIMIT, "too large only as JSON"
    batch = [message(value, offset) for offset, value in enumerate(cases)]
    with records(url=registry.url) as made:
        values, refused = made.values([*batch, message(framed(number, good), 50), message(framed(plain, b"{}"), 51)])
    assert values[: len(cases)] == list(cases)
    assert orjson.loads(values[-2])["path"] == "/exfel/ä.h5"
    assert values[-1] == b"{}"
    assert list(refused) == list(range(len(cases)))
    for reason, expected in zip(refused.values(), cases.values(), strict=True):
        assert expected in reason
        assert len(reason) < 300


def test_an_unknown_schema_is_asked_for_once_a_minute_and_may_become_known(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with records(url=registry.url) as made:
        assert len(made.values([message(framed(1, b"{}"), n) for n in range(50)])[1]) == 50
        assert registry.asked == ["/schemas/ids/1"]
        monkeypatch.setattr(schemas, "REFUSED_S", 0.0)
        assert made.values([message(framed(2, b"{}"))])[1]
        registry.add({}, "JSON")
        registry.add({}, "JSON")
        assert made.values([message(framed(2, b"{}"))]) == ([b"{}"], {})


def test_numbers_that_no_schema_has_are_not_asked_for(registry: Registry) -> None:
    with records(url=registry.url) as made:
        _, refused = made.values([message(framed(2**31, b"{}"), 0), message(framed(2**32 - 1, b"{}"), 1)])
    assert refused.keys() == {0, 1}
    assert "no schema has such a number" in refused[0]
    assert registry.asked == []


@pytest.mark.parametrize("answer", [(400, b"{}"), (403, b"{}"), (404, b"no page"), (422, b'{"error_code": 42201}')])
def test_an_answer_about_one_schema_alone_is_one(answer: tuple[int, bytes], registry: Registry) -> None:
    bad, good = registry.add({}, "JSON"), registry.add({}, "JSON")
    registry.answers[bad] = answer
    with records(url=registry.url) as made:
        values, refused = made.values([message(framed(bad, b"1"), 0), message(framed(good, b"{}"), 1)])
    assert values[1] == b"{}"
    assert list(refused) == [0]
    assert "; it is well otherwise" in refused[0]


@pytest.mark.parametrize("answer", [(500, b"{}"), (200, b"<html>")])
def test_an_error_about_one_schema_alone_is_an_answer_when_it_lasts(
    answer: tuple[int, bytes], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = registry.add({}, "JSON"), registry.add({}, "JSON")
    registry.answers[bad] = answer
    batch = [message(framed(good, b"{}"), 0), message(framed(bad, b"1"), 1), message(framed(good, b"[]"), 2)]
    with records(url=registry.url) as made:
        assert made.values(batch) == ([b"{}"], {}), "what is before it does not wait"
        with pytest.raises(Unavailable):
            made.values(batch[1:])
        monkeypatch.setattr(schemas, "LASTING_S", 0.0)
        monkeypatch.setattr(made._schemas, "_away", ("", 0.0))
        values, refused = made.values(batch[1:])
    assert values[1] == b"[]"
    assert list(refused) == [1]


def test_who_waits_for_a_slow_registry_has_his_turn_again_soon(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "WORK_S", 0.05)
    registry.delay_s = 0.03
    batch = [message(framed(n + 1, b"{}"), n) for n in range(10)]
    steps = 0
    with records(url=registry.url) as made:
        while batch:
            values, refused = made.values(batch)
            assert 1 <= len(values) == len(refused) < 10
            batch, steps = batch[len(values) :], steps + 1
    assert steps >= 3
    assert len(registry.asked) == 10


HAZARDS: list[tuple[Any, str]] = [
    ({"type": "record", "name": "L", "fields": [{"name": "n", "type": ["null", "L"]}]}, "'L' is part of itself"),
    (
        {"type": "record", "name": "a.L", "fields": [{"name": "n", "type": {"type": "map", "values": "a.L"}}]},
        "'a.L' is part of itself",
    ),
    (
        {"type": "record", "name": "L", "namespace": "a", "fields": [
            {"name": "n", "type": {"type": "array", "items": {"type": "record", "name": "M", "fields": [
                {"name": "m", "type": ["null", "L"]}]}}}]},
        "'L' is part of itself",
    ),
    ({"type": "array", "items": "null"}, "takes no bytes"),
    ({"type": "array", "items": {"type": "null"}}, "takes no bytes"),
    ({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}, "takes no bytes"),
    (
        {"type": "array", "items": {"type": "record", "name": "E", "fields": [{"name": "n", "type": "null"}]}},
        "takes no bytes",
    ),
    (
        {"type": "record", "name": "R", "namespace": "b", "fields": [
            {"name": "e", "type": {"type": "record", "name": "E", "fields": []}},
            {"name": "n", "type": {"type": "array", "items": "E"}}]},
        "takes no bytes",
    ),
    (
        {"type": "record", "name": "R", "fields": [
            {"name": "x", "type": "int"},
            {"name": "y", "type": {"type": "record", "name": "A", "fields": [
                {"name": "b", "type": {"type": "record", "name": "B", "fields": [{"name": "n", "type": "null"}]}},
                {"name": "c", "type": "B"}]}}]},
        "'A' takes no bytes, but has parts",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "reason"), HAZARDS, ids=[reason for _, reason in HAZARDS])
def test_a_schema_by_which_a_small_record_could_kill_the_server(schema: Any, reason: str, registry: Registry) -> None:
    """A linked list of 5,000 elements in as many bytes takes the stack; four bytes can be 2³⁰ nothings."""
    number = registry.add(schema)
    with records(url=registry.url) as made:
        _, refused = made.values([message(framed(number, b"\x02" * 900 + b"\x00"))])
        assert reason in refused[0]


def test_names_alike_are_no_hazard(registry: Registry) -> None:
    inner = {"type": "record", "name": "L", "namespace": "b", "fields": [{"name": "x", "type": "int"}]}
    outer = {"type": "record", "name": "L", "namespace": "a", "fields": [
        {"name": "n", "type": inner}, {"name": "m", "type": {"type": "array", "items": "b.L"}}]}  # fmt: skip
    number = registry.add(outer)
    with records(url=registry.url) as made:
        values, refused = made.values([message(framed(number, b"\x02\x02\x04\x00"))])
        assert not refused
        assert orjson.loads(values[0]) == {"n": {"x": 1}, "m": [{"x": 2}]}


@pytest.mark.parametrize(
    ("answer", "message_part"),
    [
        ((500, b"{}"), "answers 500"),
        ((503, b"busy"), "answers 503"),
        ((429, b"{}"), "answers 429"),
        ((404, b"<html>no such page"), "is backbone.registry.url right?"),
        ((404, b'{"error_code": 404, "message": "HTTP 404 Not Found"}'), "is backbone.registry.url right?"),
        ((403, b"{}"), "see basic.auth.user.info in backbone.registry.properties"),
        ((200, b"<html>welcome"), "can't be asked"),
    ],
)
def test_a_registry_that_has_no_answer_makes_records_wait(
    answer: tuple[int, bytes], message_part: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = registry.add({}, "JSON")
    with records(url=registry.url) as made:
        registry.answer = answer
        with pytest.raises(Unavailable) as waiting:
            made.values([message(framed(number, b"{}"))])
        assert message_part in str(waiting.value)
        assert registry.url in str(waiting.value)
        asked = len(registry.asked)
        registry.answer = None
        with pytest.raises(Unavailable, match=re.escape(str(waiting.value))):
            made.values([message(framed(number, b"{}"))])
        assert len(registry.asked) == asked, "it is not asked again at once"
        monkeypatch.setattr(made._schemas, "_away", ("", 0.0))
        assert made.values([message(framed(number, b"{}"))]) == ([b"{}"], {})


def test_a_registry_that_is_not_there() -> None:
    with Registry() as gone:
        url = gone.url
    with records(url=url) as made, pytest.raises(Unavailable, match=r"is it up, and is backbone\.registry\.url right"):
        made.values([message(framed(1, b"{}"))])


def test_the_registry_may_ask_who_we_are(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    number = registry.add({}, "JSON")
    registry.user_info = "mill:s3cret"
    with records(url=registry.url) as made, pytest.raises(Unavailable, match="does not let us in"):
        made.values([message(framed(number, b"{}"))])
    monkeypatch.setenv("REGISTRY", "mill:s3cret")
    with records(url=registry.url, properties={"basic.auth.user.info": {"env": "REGISTRY"}}) as made:
        assert made.values([message(framed(number, b"{}"))]) == ([b"{}"], {})


@pytest.mark.parametrize(
    ("properties", "problem"),
    [
        ({"nonsense": 1}, "backbone.registry.properties: Unrecognized properties: nonsense"),
        ({"url": "x"}, "set backbone.registry.url instead"),
        ({"basic.auth.user.info": "u:p"}, "basic.auth.user.info must be given as"),
        ({"basic.auth.user.info": {"env": "NOT_SET"}}, "basic.auth.user.info: the environment variable NOT_SET"),
        ({"ssl.ca.location": "/nowhere"}, "backbone.registry.properties: "),
        ({"cache.capacity": "x"}, "cache.capacity must be a number"),
    ],
)
def test_wrong_properties(properties: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidConfig) as refused, records(url="http://127.0.0.1:1", properties=properties):
        pass
    assert problem in str(refused.value)
    assert "u:p" not in str(refused.value)


def test_mutated_avro_is_refused_or_read(registry: Registry) -> None:
    number, rng = registry.add(FILE), random.Random(6)
    good = avro(FILE, VALUE)
    refused = 0
    with records(url=registry.url) as made:
        for _ in range(10_000):
            raw = bytearray(good)
            for _ in range(rng.choice((1, 1, 3, 10))):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            values, reasons = made.values([message(framed(number, bytes(raw[: rng.randrange(len(raw) + 40)])))])
            refused += len(reasons)
            if not reasons:
                orjson.loads(values[0])
    assert 1000 < refused < 10_000

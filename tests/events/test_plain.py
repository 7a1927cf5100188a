"""Plain JSON as events: where attributes stand, ids, times, and what is refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from eventmill.config import JsonMap, PathMap
from eventmill.errors import InvalidConfig
from eventmill.events import DecodeError, JsonDecoder, PathTable, validate
from eventmill.events.digest import digest
from eventmill.rules import Index, parse
from eventmill.sdk.event import Event

SOURCE = "//store/bucket"
PATHS = PathTable([PathMap(subject="/exfel", source="/gpfs/exfel")])
MAP = {"id": "meta.id", "type": "kind", "subject": "file.path", "time": "at", "type_prefix": "org.lab."}
RECORD = {"meta": {"id": 7}, "kind": "made", "file": {"path": "/gpfs/exfel/a.h5", "size": 3}, "at": 1714979289.5}


def decoder(source: str = SOURCE, **map: Any) -> JsonDecoder:
    return JsonDecoder(source, JsonMap(**map), paths=PATHS)


def event_of(record: Any, **map: Any) -> Event:
    made = decoder(**map)
    fields = made.fields(record if isinstance(record, bytes) else orjson.dumps(record))
    assert fields is not None
    return made.event(fields)


def test_an_event() -> None:
    event = event_of(RECORD, **MAP)
    assert event == {
        "specversion": "1.0", "id": "7", "source": SOURCE, "type": "org.lab.made", "subject": "/exfel/a.h5",
        "time": "2024-05-06T07:08:09.500Z", "datacontenttype": "application/json", "data": RECORD,
    }  # fmt: skip
    assert validate(dict(event)) == event


def test_patterns_see_all_but_the_time() -> None:
    index: Index[int] = Index()
    index.add(
        1, parse({"type": ["org.lab.made"], "subject": [{"glob": "/exfel/*.h5"}], "data": {"file": {"size": [3]}}})
    )
    fields = decoder(**MAP).fields(orjson.dumps(RECORD))
    assert fields is not None
    assert index.match(fields) == [1]
    event = event_of(RECORD, **MAP)
    del event["time"]
    assert fields == event


def test_by_default_only_the_type_is_looked_for() -> None:
    event = event_of({"type": "x", "id": 1, "subject": "s", "time": 5})
    assert set(event) == {"specversion", "id", "source", "type", "datacontenttype", "data"}
    assert event.type == "x"


def test_without_an_id_equal_records_are_one_event() -> None:
    """The digest is a promise: another id would start everything again."""
    raw = b'{"type": "x", "n": 1}'
    assert event_of(raw).id == event_of(raw).id == digest(SOURCE, raw)
    assert event_of(b'{"type": "x", "n": 2}').id != event_of(raw).id
    elsewhere = decoder("//other").fields(raw)
    assert elsewhere is not None
    assert elsewhere["id"] != event_of(raw).id


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1714979289, "2024-05-06T07:08:09.000Z"),
        (1714979289123, "2024-05-06T07:08:09.123Z"),
        (99999999999, "5138-11-16T09:46:39.000Z"),
        (100000000000, "1973-03-03T09:46:40.000Z"),
        (-1714979289123, "1915-08-28T16:51:50.877Z"),
        ("2024-05-06T09:08:09.5+02:00", "2024-05-06T09:08:09.5+02:00"),
        (None, None),
    ],
)
def test_times(time: Any, expected: str | None) -> None:
    assert event_of({"type": "x", "at": time}, time="at").time == expected


@pytest.mark.parametrize(
    "time", ["", "today", "2024-05-06", "2024-05-06T07:08:09", True, [], {}, 10**18, -(10**18), 1e300, "1714979289"]
)
def test_impossible_times(time: Any) -> None:
    with pytest.raises(DecodeError, match="time"):
        event_of({"type": "x", "at": time}, time="at")


@pytest.mark.parametrize("subject", [None, True, 1.5, [], {}, ""])
def test_a_subject_that_is_neither_text_nor_a_number_is_none(subject: Any) -> None:
    assert event_of({"type": "x", "s": subject}, subject="s").subject is None
    assert event_of({"type": "x", "s": 17}, subject="s").subject == "17"
    assert event_of({"type": "x", "s": 17}, subject="s.t.u").subject is None


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"{", "not valid JSON: "),
        (b"[1]", "not a JSON object"),
        (b"\0\0\0\0\7{}", "set backbone.registry.url"),
        ({"meta": {"id": 1}}, "no type: there is no text at 'kind'"),
        ({"meta": {"id": 1}, "kind": ""}, "no type"),
        ({"meta": {"id": 1}, "kind": 3}, "no type"),
        ({"kind": "x"}, "no id: there is neither text nor a whole number at 'meta.id'"),
        ({"kind": "x", "meta": 1}, "no id"),
        ({"kind": "x", "meta": {"id": ""}}, "no id"),
        ({"kind": "x", "meta": {"id": True}}, "no id"),
        ({"kind": "x", "meta": {"id": "a\n"}}, "attribute 'id': must not contain control characters"),
        ({"kind": "x\0", "meta": {"id": 1}}, "attribute 'type'"),
        ({"kind": "x", "meta": {"id": 1}, "file": {"path": "\x1b"}}, "attribute 'subject'"),
        (b'{"kind": "x", "meta": {"id": 1}, "x": ' + b"[" * 300 + b"]" * 300 + b"}", "nested more than 200 levels"),
    ],
)
def test_what_is_refused(record: Any, reason: str) -> None:
    with pytest.raises(DecodeError) as refused:
        event_of(record, **MAP)
    assert reason in refused.value.reason


def test_tombstones_are_counted() -> None:
    made = decoder()
    assert made.fields(b"") is None
    assert made.ignored.counts == {"tombstone (a record without a value)": 1}


@pytest.mark.parametrize("source", ["", "no uri", "a\nb"])
def test_a_source_is_a_uri(source: str) -> None:
    with pytest.raises(InvalidConfig, match="decoder json: attribute 'source'"):
        decoder(source)

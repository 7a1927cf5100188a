"""A decoder for each row of [[topics]]; and whatever records come, nothing but DecodeError comes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventmill.config import JsonMap, Secret, Topic
from eventmill.errors import InvalidConfig
from eventmill.events import (
    CloudEventsDecoder,
    DcacheDecoder,
    DecodeError,
    Decoder,
    JsonDecoder,
    PathTable,
    encode,
    validate,
)
from eventmill.events.kafka import structured
from eventmill.events.topics import decoder
from eventmill.rules import Index, parse

T = TypeVar("T")
RECORDS_TRIED = 10_000
RECORDS_A_TIME = 20

TOPICS = [
    Topic(name="t", decoder="dcache"),
    Topic(name="t", decoder="dcache", personal="hash", srm="transfer"),
    Topic(name="t", decoder="dcache", personal="keep"),
    Topic(name="t", decoder="cloudevents"),
    Topic(name="t", decoder="cloudevents", source="//lab/"),
    Topic(name="t", decoder="json", source="//lab"),
    Topic(name="t", decoder="json", source="//lab", map=JsonMap(
        id="id", type="msgType", subject="status.msg", time="date", type_prefix="x.")),
]  # fmt: skip


def made(topic: Topic) -> Decoder:
    return decoder(topic, PathTable())


def test_a_row_makes_its_decoder(tmp_path: Path) -> None:
    assert isinstance(made(TOPICS[0]), DcacheDecoder)
    assert isinstance(made(TOPICS[3]), CloudEventsDecoder)
    assert isinstance(made(TOPICS[5]), JsonDecoder)
    record = {"msgType": "warning", "date": "2026-05-06T07:08:09Z", "owner": "paulina"}
    secret = tmp_path / "key"
    secret.write_text("first\n")
    row = Topic(name="t", decoder="dcache", instance="desy", personal="hash", personal_key=Secret(file=secret))
    first = made(row).fields(orjson.dumps(record))
    assert first is not None
    assert first["source"] == "//dcache/desy"
    secret.write_text("second")
    second = made(row).fields(orjson.dumps(record))
    assert second is not None
    assert first["data"]["owner"] != second["data"]["owner"]
    secret.unlink()
    with pytest.raises(InvalidConfig, match="can't read the secret"):
        made(row)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.decoder)
def test_confluents_wire_format_and_tombstones(topic: Topic) -> None:
    decoder = made(topic)
    with pytest.raises(DecodeError, match=r"in Confluent's wire format, with schema 7: set backbone\.registry\.url"):
        decoder.fields(b'\0\0\0\0\7{"type": "x"}')
    assert decoder.fields(b"") is None
    assert decoder.ignored.counts == {"tombstone (a record without a value)": 1}


# whatever comes

NAMES = st.sampled_from(
    ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data", "data_base64", "dataschema",
     "msgType", "date", "cellName", "status", "code", "msg", "billingPath", "transferPath", "pnfsid", "fileSize",
     "isWrite", "isP2p", "cellType", "storageInfo", "protocolInfo", "host", "moverInfo", "locations", "session"]
)  # fmt: skip
TEXTS = st.sampled_from(
    ["1.0", "//lab/device", "/eventmill/x", "org.lab.done", "2026-05-06T07:08:09Z", "Mon Oct 01 13:49:00 CEST 2018",
     "application/json", "text/plain", "eA==", "transfer", "request", "remove", "store", "restore", "hit", "warning",
     "write", "read", "pool", "door", "/pnfs/x", "a@b", "://", "\x00", "\ud7ff", "x" * 3000]
) | st.text(max_size=8)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXTS
LISTS = st.lists(SCALARS, max_size=3)
VALUES = SCALARS | LISTS | st.dictionaries(NAMES, SCALARS | LISTS, max_size=3)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4)
GOOD = st.sampled_from(
    [
        {"specversion": "1.0", "id": "1", "source": "//lab/device", "type": "t"},
        {"msgType": "transfer", "date": "2026-05-06T07:08:09Z", "isWrite": "write", "cellType": "pool",
         "status": {"code": 0, "msg": ""}, "billingPath": "/pnfs/x", "transferPath": "/pnfs/x", "fileSize": 7,
         "isP2p": False, "subject": ["UserNamePrincipal[paul]"], "storageInfo": "a:b@osm", "id": 7, "type": "t"},
    ]
)  # fmt: skip
LIKELY = st.builds(lambda good, more: {**good, **more}, GOOD, st.dictionaries(NAMES, VALUES, max_size=2))


def torn(raw: bytes, at: int, byte: int, cut: bool) -> bytes:
    at %= len(raw) + 1
    return raw[:at] if cut else raw[:at] + bytes([byte]) + raw[at + 1 :]


DUMPED = LIKELY.map(orjson.dumps)
RECORDS = st.one_of(
    DUMPED,
    DUMPED,
    st.builds(torn, DUMPED, st.integers(0, 500), st.integers(0, 255), st.booleans()),
    st.builds(lambda value: b"\0\0\0\0\1" + value, DUMPED),
    st.binary(max_size=40),
    OBJECTS.map(orjson.dumps),
    VALUES.map(orjson.dumps),
)
HEADERS = st.lists(
    st.tuples(
        NAMES.map("ce_{}".format) | st.sampled_from(["content-type", "ce_", "trace"]),
        st.none() | TEXTS.map(str.encode) | st.binary(max_size=8),
    ),
    max_size=8,
)

INDEX: Index[int] = Index()
INDEX.add(1, parse({"data": {"status": {"msg": [{"prefix": "x"}]}, "fileSize": [{"numeric": [">", 1]}]}}))
INDEX.add(2, parse({"subject": [{"glob": "/**/x"}]}))


def decoded(decoder: Decoder, raw: bytes) -> bool:
    """Whether the record makes an event; then it is a valid one that can be written."""
    try:
        fields: Any = decoder.fields(raw)
        if fields is None:
            assert decoder.ignored.last
            return False
        INDEX.match(fields)
        event = decoder.event(fields)
    except DecodeError:
        return False
    assert orjson.loads(encode(validate(dict(event))))["id"] == event.id
    return True


def records_tried(one: st.SearchStrategy[T], check: Callable[[T], Collection[bool]]) -> Counter[bool]:
    """What `check` has found for RECORDS_TRIED of them."""
    seen: Counter[bool] = Counter()

    @settings(
        max_examples=RECORDS_TRIED // RECORDS_A_TIME, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(one, min_size=RECORDS_A_TIME, max_size=RECORDS_A_TIME))
    def tried(some: list[T]) -> None:
        for each in some:
            seen.update(check(each))

    tried()
    return seen


@pytest.mark.slow
def test_whatever_comes_is_refused_or_decoded() -> None:
    decoders = [made(topic) for topic in TOPICS]
    seen = records_tried(RECORDS, lambda raw: [decoded(decoder, raw) for decoder in decoders])
    assert seen.total() >= RECORDS_TRIED * len(TOPICS)
    assert min(seen[True], seen[False]) > RECORDS_TRIED / 5


@pytest.mark.slow
def test_whatever_comes_in_binary_mode_is_refused_or_decoded() -> None:
    decoder = CloudEventsDecoder()
    valid = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"//s"), ("ce_type", b"t")]
    messages = st.tuples(
        HEADERS | HEADERS.map(lambda more: [*valid, *more]), st.none() | RECORDS | SCALARS.map(orjson.dumps)
    )
    seen = records_tried(messages, lambda message: [decoded(decoder, structured(*message))])
    assert seen.total() >= RECORDS_TRIED
    assert min(seen[True], seen[False]) > RECORDS_TRIED / 20

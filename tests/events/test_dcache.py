"""dCache's records: the table, ids, dates, personal data, and that nothing but DecodeError comes of any record."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventmill import dcache, files
from eventmill.config import PathMap
from eventmill.errors import InvalidConfig
from eventmill.events import DcacheDecoder, DecodeError, Decoder, Ignored, PathTable, encode, validate
from eventmill.events.dcache import dates
from eventmill.events.dcache.storage import storage
from eventmill.events.dcache.tokens import name_and_version, without_query, without_tokens
from eventmill.events.digest import digest
from eventmill.rules import Index, parse
from eventmill.sdk.event import Event

FOLDER = Path(__file__).with_name("dcache")
PATHS = PathTable([PathMap(subject="/exfel", source="/pnfs/desy.de/exfel")])
TYPES = {
    "org.dcache.file.written", "org.dcache.file.uploaded", "org.dcache.file.read", "org.dcache.transfer.failed",
    "org.dcache.file.removed", "org.dcache.replica.removed", "org.dcache.file.stored", "org.dcache.file.restored",
    "org.dcache.store.failed", "org.dcache.restore.failed", "org.dcache.file.hit", "org.dcache.warning",
    "org.dcache.request",
}  # fmt: skip


def rows(*names: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for name in names for line in (FOLDER / f"{name}.jsonl").read_bytes().splitlines()]


GOLDEN = rows("transfer", "request", "remove", "tape", "hit", "other")


def golden(case: str) -> dict[str, Any]:
    """The record of one case."""
    [record] = [row["record"] for row in GOLDEN if row["case"] == case]
    return dict(record)


def decoder(**settings: Any) -> DcacheDecoder:
    return DcacheDecoder("desy", paths=PATHS, **settings)


def event_of(record: dict[str, Any] | bytes, **settings: Any) -> Event | None:
    made = decoder(**settings)
    fields = made.fields(record if isinstance(record, bytes) else orjson.dumps(record))
    return None if fields is None else made.event(fields)


def written(record: dict[str, Any], **settings: Any) -> Event:
    event = event_of(record, **settings)
    assert event is not None
    return event


WRITE = golden("a file written through WebDAV")
REQUEST = golden("WebDAV, as the billing service sends it")


# the table


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row["record"]["msgType"] + ": " + row["case"])
def test_golden(row: dict[str, Any]) -> None:
    made = decoder(**row.get("settings", {}))
    raw = orjson.dumps(row["record"])
    fields = made.fields(raw)
    if "none" in row:
        assert fields is None
        assert made.ignored.last == row["none"]
        assert made.ignored.counts == {row["none"]: 1}
    else:
        assert fields is not None
        event = made.event(fields)
        assert event == row["event"]
        assert validate(dict(event)) == event
        assert made.ignored.counts == {}


def test_every_type_is_there() -> None:
    assert {row["event"]["type"] for row in GOLDEN if "event" in row} == TYPES


@pytest.mark.parametrize("row", rows("refused"), ids=lambda row: row["case"])
def test_refused(row: dict[str, Any]) -> None:
    with pytest.raises(DecodeError) as refusal:
        event_of(row["raw"].encode())
    assert str(refusal.value) == refusal.value.reason == row["reason"]


def test_a_tombstone_makes_no_event() -> None:
    made = decoder()
    assert made.fields(b"") is None
    assert made.ignored.counts == {"tombstone (a record without a value)": 1}


def test_a_key_makes_other_pseudonyms() -> None:
    """The same ones every time; without it anybody who can guess a value can make its pseudonym."""
    keys = (b"", b"key", b"another", b"x" * 64, b"x" * 65, b"x" * 200)
    seen = [written(WRITE, personal="hash", personal_key=key)["data"]["subject"] for key in keys]
    assert len({subject[0] for subject in seen}) == len(keys)
    assert seen[1] == written(WRITE, personal="hash", personal_key=b"key")["data"]["subject"]
    assert seen[0] == written(WRITE, personal="hash")["data"]["subject"]


def test_no_field_but_type_and_date_is_needed() -> None:
    """Whatever is missing, a record makes an event or none; where the table has no row for it, none."""
    for row in GOLDEN:
        for name in row["record"]:
            record = {key: value for key, value in row["record"].items() if key != name}
            if name in ("msgType", "date"):
                with pytest.raises(DecodeError, match=f"no {name}"):
                    event_of(record)
            else:
                event = event_of(record)
                assert event is None or event.type in TYPES
    assert written({"msgType": "warning", "date": "2024-05-06T07:08:09Z"}).type == "org.dcache.warning"
    assert event_of({"msgType": "transfer", "date": "2024-05-06T07:08:09Z"}) is None


def test_an_upload_is_told_by_its_paths_and_its_protocol() -> None:
    upload = golden("SRM: uploaded, not at its path yet")
    assert written(upload).type == "org.dcache.file.uploaded"
    for change in (
        {"transferPath": upload["billingPath"]},
        {"billingPath": "Unknown"},
        {"transferPath": "Unknown"},
        {"protocolInfo": {**upload["protocolInfo"], "protocol": "Xrootd"}},
    ):
        assert written({**upload, **change}).type == "org.dcache.file.written"


def test_only_an_ended_put_done_with_a_file_is_a_written_file() -> None:
    done = golden("SRM putDone: now the file is there, with the id of the upload's written")
    assert written(done).type == "org.dcache.file.written"
    other_session = done["session"].replace("prepareToPut", "prepareToGet")
    changes: tuple[dict[str, Any], ...] = (
        {"pnfsid": ""}, {"status": {"code": 666}}, {"status": {}}, {"session": other_session}
    )  # fmt: skip
    for change in changes:
        assert written({**done, **change}).type == "org.dcache.request"


def test_an_instance_needs_a_name_and_is_part_of_the_source() -> None:
    for name in ("", "a\nb"):
        with pytest.raises(InvalidConfig):
            DcacheDecoder(name, paths=PATHS)
    made = DcacheDecoder("Prod ü/1", paths=PATHS)
    fields = made.fields(orjson.dumps(WRITE))
    assert fields is not None
    assert fields["source"] == "//dcache/Prod%20%C3%BC/1"
    assert validate(dict(made.event(fields)))


def test_ignored_is_bounded() -> None:
    made = decoder()
    for number in range(200):
        assert made.fields(orjson.dumps({**REQUEST, "msgType": f"new{number}" + "x" * 500})) is None
    assert len(made.ignored.counts) == Ignored.REASONS_MAX + 1
    assert made.ignored.counts["other"] == 200 - Ignored.REASONS_MAX
    assert max(map(len, made.ignored.counts)) < 80


# ids


def test_ids() -> None:
    """The parts, and how they are digested, are a promise: another id would start everything again."""
    assert written(WRITE).id == digest("desy", "written", WRITE["pnfsid"], 1048576)
    ms = int(datetime(2024, 5, 6, 7, 8, 9, 200_000, UTC).timestamp() * 1_000_000)
    expected = digest("desy", "request", "WebDAV-door1", REQUEST["session"], ms, REQUEST["pnfsid"], 0)
    assert written(REQUEST).id == expected == "1e0eceeaa4fb2447c3aba2c08737c882"


def test_a_file_is_written_once_whoever_tells_of_it() -> None:
    done = golden("SRM putDone: now the file is there, with the id of the upload's written")
    upload = written(golden("SRM without a producer: the upload says it"), srm="transfer")
    assert written(done).id == written(done, srm="transfer").id == upload.id
    again = {**WRITE, "date": "2024-05-06T07:08:11Z", "cellName": "pool9", "session": "pool:pool9@d:1-1"}
    assert written(again).id == written(WRITE).id
    assert written({**WRITE, "pnfsid": "0" * 36}).id != written(WRITE).id, "overwriting makes a new file"
    assert written({**WRITE, "fileSize": 7}).id != written(WRITE).id
    other = DcacheDecoder("other", paths=PATHS)
    fields = other.fields(orjson.dumps(WRITE))
    assert fields is not None
    assert other.event(fields).id != written(WRITE).id


@pytest.mark.parametrize("row", [row for row in GOLDEN if "event" in row], ids=lambda row: row["case"])
def test_two_producers_make_one_event(row: dict[str, Any]) -> None:
    """The same message twice: keys in another order, the date in another zone."""
    settings = row.get("settings", {})
    one = row["record"]
    other = dict(reversed(one.items()))
    moment = dates.instant(one["date"])
    if moment is not None:
        other["date"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert written(other, **settings).id == written(one, **settings).id


def test_different_messages_make_different_events() -> None:
    read = golden("a read")
    ids = {written(read).id}
    for change in (
        {"cellName": "pool2"}, {"session": "pool:x"}, {"date": "2024-05-06T09:08:09.124+02:00"}, {"pnfsid": "0" * 36},
        {"status": {"code": 5}},
    ):  # fmt: skip
        ids.add(written({**read, **change}).id)
    assert len(ids) == 6
    store = golden("stored")
    without = {key: value for key, value in store.items() if key != "session"}
    assert written(without).id == written(store).id, "the transaction stands for the session"


def test_a_file_without_an_id_is_told_apart_by_its_message() -> None:
    nameless = {key: value for key, value in WRITE.items() if key != "pnfsid"}
    event = written(nameless)
    assert event.type == "org.dcache.file.written"
    assert "partitionkey" not in event
    assert written({**nameless, "date": "2024-05-06T09:08:10+02:00"}).id != event.id


# what patterns see


def test_sdk_patterns_match() -> None:
    index: Index[int] = Index()
    size = {"size": [{"numeric": [">", 1000]}], "storageClass": ["exfel:raw"], "isP2p": [False]}
    index.add(1, parse(dcache.written("/exfel/**/raw/*/*.h5", data=size)))
    index.add(2, parse(files.written("/exfel/**")))
    index.add(3, parse(files.written("/pnfs/**")))
    fields = decoder().fields(orjson.dumps(WRITE))
    assert fields is not None
    assert index.match(fields) == [1, 2]


@pytest.mark.parametrize("row", [row for row in GOLDEN if "event" in row], ids=lambda row: row["case"])
def test_a_pattern_sees_what_the_event_has(row: dict[str, Any]) -> None:
    """`fields` has all of the event but `id` and `time`, each with the same value."""
    made: Decoder = decoder(**row.get("settings", {}))
    fields = made.fields(orjson.dumps(row["record"]))
    assert fields is not None
    seen = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    event = {name: value for name, value in made.event(fields).items() if name not in ("id", "time")}
    assert seen == orjson.dumps(event, option=orjson.OPT_SORT_KEYS)


# dates


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2018-10-01T13:50:30.008+02:00", "2018-10-01T11:50:30.008Z"),
        ("2018-10-01T13:50:30.1+02:00", "2018-10-01T11:50:30.100Z"),
        ("2018-10-01T13:50:30.12Z", "2018-10-01T13:50:30.120Z"),
        ("2018-10-01T13:50:30Z", "2018-10-01T13:50:30.000Z"),
        ("2018-10-01T13:50:30.123456789-05:30", "2018-10-01T19:20:30.123456Z"),
        ("2018-12-31T23:59:59.999-00:01", "2019-01-01T00:00:59.999Z"),
        ("Mon Oct 01 13:49:00 CEST 2018", "2018-10-01T11:49:00.000Z"),
        ("Mon Oct 01 13:49:00 GMT-03:30 2018", "2018-10-01T17:19:00.000Z"),
        ("Mon Oct 01 13:49:00 UTC 2018", "2018-10-01T13:49:00.000Z"),
        ("Mon Oct 01 13:49:00 EDT 2018", "2018-10-01T17:49:00.000Z"),
        ("Sun Oct 28 02:30:00 CEST 2018", "2018-10-28T00:30:00.000Z"),
        ("Sun Oct 28 02:30:00 CET 2018", "2018-10-28T01:30:00.000Z"),
        *((f"Mon Oct 01 13:49:00 {zone} 2018", None) for zone in ("CST", "IST", "BST", "NOWHERE")),
    ],
)
def test_dates(text: str, utc: str | None) -> None:
    moment = dates.instant(text)
    assert (None if moment is None else dates.timestamp(moment)) == utc


@pytest.mark.parametrize(
    "text",
    [
        "", "2018-10-01", "2018-W40-1T13:50:30Z", "2018-10-01 13:50:30Z", "2018-10-01T13:50:30", "2018-13-01T00:00:00Z",
        "2018-10-01T13:50:30,5Z", "20181001T135030Z", "2018-10-01T13:50:60Z", "9999-12-31T23:59:59-01:00",
        "0000-01-01T00:00:00Z", "٢٠١٨-10-01T13:50:30Z", "2018-10-01T13:50:30Z\n", "Mon Oct 01 13:49:00 2018",
        "Mon Oct 32 13:49:00 CET 2018", "Mon Oct 01 13:49:00 GMT+99:00 2018",
    ],
)  # fmt: skip
def test_impossible_dates(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        dates.instant(text)


# texts that hold more than they seem to


def test_storage() -> None:
    assert storage("atlas:default@osm") == ("atlas:default@osm", "atlas:default", "osm")
    assert storage("a:b@c@enstore")[1:] == ("a:b@c", "enstore")
    assert storage("no tape") == ("no tape", None, None)
    assert storage("size=0;new=true;sClass=a:b;cClass=-;hsm=osm;uid=7;") == ("a:b@osm", "a:b", "osm")
    assert storage("size=0;new=true;" + "x=1;" * 100 + "sClass=a:b") == ("a:b@", "a:b", "")
    assert storage("size=0;uid=7;") == (None, None, None)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain text? yes", "plain text? yes"),
        ("no https://h.org/f?authz=abc, sorry", "no https://h.org/f sorry"),
        ('"https://u:p@h.org:8443/a/b#c"', '"https://h.org:8443/a/b"'),
        ("root://h.org//f?xrd.cgi=1\nhttps://h.org?x", "root://h.org//f\nhttps://h.org"),
        ("Authorization: Bearer eyJ.x.y refused", "Authorization: Bearer *** refused"),
        ("path /f?authz=eyJ&x=1", "path /f?authz=***&x=1"),
        ("/f?access_token=eyJ", "/f?access_token=***"),
    ],
)
def test_tokens(text: str, clean: str) -> None:
    assert without_tokens(text) == clean


def test_tokens_take_linear_time() -> None:
    for text in (
        "://" * 300_000,
        "bearer " * 200_000,
        "a" * 1_000_000 + "://",
        "https://h?" * 100_000,
        "token=" * 200_000,
    ):
        without_tokens(text)
        without_query(text)
        name_and_version(text)


# personal data

SECRETS = ("paulina", "Paulina Example", "192.0.2.77", "2001:db8:0:0:0:0:0:7", "host77.example.org", "424242", "s3cret",
           "paulina@example.org", "jti-4711")  # fmt: skip


def _personal(record: dict[str, Any]) -> dict[str, Any]:
    """The record with somebody in every place where one can be."""
    subject = [
        "/C=DE/O=GermanGrid/CN=Paulina Example", "UidPrincipal[424242]", "GidPrincipal[424242,primary]",
        "UserNamePrincipal[paulina]", "Origin[192.0.2.77,2001:db8:0:0:0:0:0:7]", "FullNamePrincipal[Paulina Example]",
        "EmailAddressPrincipal[paulina@example.org]", "JwtJtiPrincipal[jti-4711]",
    ]  # fmt: skip
    message = "".join(f"{secret} " for secret in SECRETS if secret not in ("424242", "s3cret"))
    status = {"code": record.get("status", {}).get("code", 0), "msg": message + "https://u:s3cret@h/f?authz=s3cret"}
    info = {**record.get("protocolInfo", {"protocol": "Http"}), "host": "192.0.2.77"}
    mover = {"status": status, "protocolInfo": {"protocol": "Http", "host": "host77.example.org"}, "subject": subject,
             "moverInfo": {"owner": "paulina"}}  # fmt: skip
    return {
        **record, "subject": subject, "owner": "paulina", "mappedUID": 424242, "mappedGID": 424242,
        "client": "192.0.2.77", "clientChain": "192.0.2.77,2001:db8:0:0:0:0:0:7",
        "status": status, "protocolInfo": info, "moverInfo": mover, "locations": ["osm://h/?token=s3cret"],
        "protocol": "Https-1.1:https://u:s3cret@192.0.2.77/f?authz=s3cret",
    }  # fmt: skip


PERSONAL = [_personal(row["record"]) for row in GOLDEN if "event" in row]


@pytest.mark.parametrize("personal", ["drop", "hash"])
def test_nobody_is_in_an_event(personal: str) -> None:
    for record in PERSONAL:
        text = encode(written(record, personal=personal)).decode()
        for secret in SECRETS:
            assert secret not in text


def test_nobody_is_found_by_a_pattern() -> None:
    index: Index[str] = Index()
    for field, value in (("subject", "UserNamePrincipal[paulina]"), ("owner", "paulina"), ("client", "192.0.2.77")):
        index.add(field, parse({"data": {field: [value]}}))
    index.add("host", parse({"data": {"protocolInfo": {"host": ["192.0.2.77"]}}}))
    index.add("message", parse({"data": {"status": {"msg": [{"wildcard": "*paulina*"}]}}}))
    for record in PERSONAL:
        fields = decoder().fields(orjson.dumps(record))
        assert fields is not None
        assert index.match(fields) == []
    kept = decoder(personal="keep").fields(orjson.dumps(PERSONAL[0]))
    assert kept is not None
    assert len(index.match(kept)) == 5


def test_a_message_that_may_quote_very_many_is_masked() -> None:
    crowd = {**WRITE, "subject": [f"UserNamePrincipal[user{number}]" for number in range(300)]}
    assert written({**crowd, "status": {"code": 0, "msg": "x" * 100_000}})["data"]["status"]["msg"] == "***"


def test_a_user_keeps_the_pseudonym() -> None:
    """Not the same in another instance, so that two sites' events can't be put together."""
    one, other = written(WRITE, personal="hash"), written(golden("a read"), personal="hash")
    assert one["data"]["subject"] == other["data"]["subject"]
    elsewhere = DcacheDecoder("other", paths=PATHS, personal="hash").fields(orjson.dumps(WRITE))
    assert elsewhere is not None
    assert not set(elsewhere["data"]["subject"]) & set(one["data"]["subject"])


def test_a_token_is_never_kept() -> None:
    for record in PERSONAL:
        data = written(record, personal="keep")["data"]
        assert data["owner"] == "paulina"
        assert "s3cret" not in orjson.dumps({**data, "locations": None}).decode()


# whatever comes

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, -(2**63), 1.5, 1e300, "", "Unknown", "\x00", "\uffff", "a\nb", "x" * 5000, "/",
    "parent:[", "write", "pool", "0001-01-01T00:00:00+18:00", "Mon Oct 01 13:49:00 CST 2018", "://?#@", "a@b@c",
    ";=;sClass=;", [], {}, [[]], [None, 1, "a", ["b"], {"c": 1}], {"code": "0", "msg": ["x"]},
    {"host": {}, "protocol": []}, ["Origin[", "[]", "A[]"],
)  # fmt: skip


def mutate(rng: random.Random, record: dict[str, Any], other: dict[str, Any]) -> bytes:
    """The record with something wrong somewhere, perhaps something of the other record's."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        part = record
        while (below := [value for value in part.values() if isinstance(value, dict)]) and rng.random() < 0.4:
            part = rng.choice(below)
        name = rng.choice([*part, "moverInfo", "protocol", "locations", "filesize"])
        match rng.randrange(4):
            case 0:
                part.pop(name, None)
            case 1:
                part[name] = deepcopy(rng.choice(ODD))
            case 2:
                part[rng.choice((name.upper(), name.lower(), name + ".x"))] = part.pop(name, None)
            case _:
                part[name] = deepcopy(other.get(rng.choice(("status", "date", "subject", "moverInfo", name))))
    raw = orjson.dumps(record)
    match rng.randrange(20):
        case 0:
            return raw[: rng.randrange(len(raw))]
        case 1:
            at = rng.randrange(len(raw))
            return raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
        case 2:
            depth = rng.choice((150, 250, 900, 3000))
            name = rng.choice([*record, "x"])
            return raw[:-1] + b',"%s":' % name.encode() + b"[" * depth + b"]" * depth + b"}"
    return raw


def mutants(count: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    raws = [orjson.dumps(row["record"]) for row in GOLDEN] + [orjson.dumps(record) for record in PERSONAL]
    for _ in range(count):
        yield mutate(rng, orjson.loads(rng.choice(raws)), orjson.loads(rng.choice(raws)))


def test_mutated_records_are_refused_or_decoded() -> None:
    index: Index[int] = Index()
    index.add(1, parse({"data": {"status": {"msg": [{"prefix": "x"}]}, "size": [{"numeric": [">", 1]}]}}))
    decoders = [
        decoder(personal=personal, srm=srm) for personal in ("drop", "hash", "keep") for srm in ("request", "transfer")
    ]
    refused = decoded = longest = 0
    for number, raw in enumerate(mutants(10_000, seed=4)):
        made = decoders[number % len(decoders)]
        try:
            fields = made.fields(raw)
            if fields is None:
                assert made.ignored.last
                continue
            index.match(fields)
            event = made.event(fields)
        except DecodeError as e:
            refused += 1
            longest = max(longest, len(e.reason))
        else:
            assert event.type in TYPES, raw
            assert orjson.loads(encode(validate(dict(event))))["id"] == event.id, raw
            decoded += 1
    assert refused > 500
    assert decoded > 5000
    assert longest < 300


def test_a_dropped_person_stays_away_whatever_else_is_wrong() -> None:
    """Values are mutated, but not those that say who it is: what is quoted must be known."""
    rng = random.Random(5)
    said = {"subject", "owner", "client", "clientChain", "protocolInfo", "moverInfo", "status", "msgType", "date"}
    for _ in range(2000):
        record = dict(rng.choice(PERSONAL))
        name = rng.choice([name for name in record if name not in said])
        record[name] = rng.choice(ODD)
        made = decoder()
        try:
            fields = made.fields(orjson.dumps(record))
            text = b"" if fields is None else encode(made.event(fields))
        except DecodeError:
            continue
        assert not any(secret.encode() in text for secret in SECRETS), record


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_personal_fields_of_any_kind_are_dropped(odd: Any) -> None:
    def data(personal: str) -> Any:
        return written({**WRITE, **dict.fromkeys(PLACES, odd)}, personal=personal)["data"]

    assert not set(data("drop")) & set(PLACES)
    assert set(data("hash")) - set(WRITE) <= {"size", "storageClass", "hsmType", *PLACES}


PLACES = ("subject", "owner", "client", "clientChain", "mappedUID", "mappedGID")


# the page


def test_the_page_has_every_type_and_its_flow_is_one() -> None:
    page = Path(__file__).parents[2].joinpath("docs/dcache.md").read_text()
    assert {name for name in TYPES if f"`{name}`" not in page} == set()
    [flow] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(flow, scope)
    fields = decoder().fields(orjson.dumps(WRITE))
    assert fields is not None
    index: Index[str] = Index()
    for name, rule in scope["mill"].rules.items():
        index.add(name, parse(rule.pattern))
    assert len(index) == 2
    assert len(index.match(fields)) == 1


def test_a_record_of_a_type_that_nobody_waits_for_is_left_alone() -> None:
    raw = orjson.dumps({"msgType": "hit", "date": "2026-01-01T00:00:00Z", "cellType": "pool", "pnfsid": "0000AB"})
    decoder = DcacheDecoder("d", paths=PathTable())
    assert decoder.fields(raw, {"org.dcache.file.written"}) is None
    assert decoder.ignored.counts == {}
    assert decoder.fields(raw, {"org.dcache.file.hit"}) == decoder.fields(raw)

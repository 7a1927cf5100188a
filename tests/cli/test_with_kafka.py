"""Commands that read and write topics of a real broker: `generate --topic`, `record`, and what follows them."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import COMMAND, Cli
from tests.cli.server import started, wait_for
from tests.kafka.broker import Broker

pytestmark = pytest.mark.slow

FLOW = """\
from eventmill import Mill, dcache
mill = Mill("m")
@mill.function
def look(event):
    import os
    return {"subject": event.subject, "bytes": os.stat(event.path).st_size, "size": event.data["size"]}
mill.on(dcache.written("/exfel/**"), look)
"""


def config(cli: Cli, broker: Broker, topic: str, more: str = "") -> str:
    """A configuration whose topic has dCache's records, of files below `files`."""
    return cli.write(
        "mill.toml",
        f'[backbone]\nkind = "kafka"\nbrokers = "{broker.bootstrap}"\n'
        f'[[topics]]\nname = "{topic}"\ndecoder = "dcache"\n{more}\n'
        f'[[paths]]\nsubject = "/exfel"\nsource = "/pnfs/desy.de/exfel"\nlocal = "{cli.folder}/files"\n',
    )


def values(broker: Broker, topic: str) -> list[bytes]:
    return [message.value() or b"" for message in broker.records(topic)]


def test_generate_writes_what_it_prints(cli: Cli, broker: Broker) -> None:
    topic = broker.create_topic(partitions=3)
    printed = cli("generate", "dcache", "--files", "60", "--seed", "4").out.splitlines()
    ran = cli(
        "generate", "dcache", "--files", "60", "--seed", "4", "--topic", topic, "--brokers", broker.bootstrap, "--keyed"
    )
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.endswith(f"{len(printed)} of {len(printed)} records are in {topic}\n")
    messages = broker.records(topic)
    assert sorted(m.value() or b"" for m in messages) == sorted(line.encode() for line in printed)
    for message in messages:
        pnfsid = json.loads(message.value() or b"").get("pnfsid")
        assert message.key() == (pnfsid.encode() if pnfsid else None)


def test_the_whole_way_round(cli: Cli, broker: Broker) -> None:
    """generate → topic → record → decode → emit; and record --events → emit: the same events, and each counts once."""
    topic = broker.create_topic(partitions=2)
    settings = config(cli, broker, topic)
    directory = ("--directory", "/pnfs/desy.de/exfel")
    assert (
        cli("generate", "dcache", "--files", "40", *directory, "--topic", topic, "--config", settings, "--create").code
        == 0
    )

    recorded = cli("record", topic, "--config", settings)
    assert (recorded.code, recorded.err) == (0, "")
    assert len(recorded.out.splitlines()) == sum(broker.end_offsets(topic).values())
    decoded = cli("decode", "--topic", topic, "--config", settings, stdin=recorded.out)
    events = cli("record", topic, "--config", settings, "--events")
    assert (events.code, events.err) == (0, "")
    assert sorted(decoded.out.splitlines()) == sorted(events.out.splitlines())
    written = {event["id"] for event in decoded.objects if event["type"] == "org.dcache.file.written"}
    assert len(written) >= 40

    cli.write("flow.py", FLOW)
    paths = cli.write("server.toml", Path(settings).read_text().partition("\n[[paths]]")[2].join(("[[paths]]", "")))
    here = ("--data-dir", "data")
    with started(cli.folder, "serve", "--config", paths):
        assert cli("deploy", "flow.py", *here).code == 0
        for lines in (decoded.out, events.out):
            ran = cli("emit", "--lines", "-", *here, stdin=lines)
            assert (ran.code, ran.out) == (0, f"accepted: {len(decoded.objects)} events\n")

        def done() -> list[dict[str, Any]]:
            rows = cli("activations", "list", "--state", "succeeded", "--json", "--limit", "200", *here).objects
            return rows if len(rows) >= len(written) else []

        rows = wait_for(done)
        assert len(rows) == len(written)
        for row in rows[:5]:
            result = cli("activations", "show", row["activationId"], "--json", *here).objects[0]["result"]
            assert result["bytes"] == result["size"]


def test_record_from_and_to(cli: Cli, broker: Broker) -> None:
    topic = broker.create_topic(partitions=2)
    moments = [1_770_000_000_000 + 1000 * n for n in range(10)]
    for partition in (0, 1):
        broker.produce(topic, [b"%d" % n for n in range(10)], timestamps_ms=moments, partition=partition)
    record = ("record", topic, "--brokers", broker.bootstrap)
    assert Counter(cli(*record).objects) == Counter([*range(10)] * 2)
    assert cli(*record, "--from", "latest").out == ""
    assert Counter(cli(*record, "--from", "2026-02-02T02:40:07Z").objects) == Counter([7, 8, 9] * 2)
    assert len(cli(*record, "--count", "3").objects) == 3
    assert cli(*record, "--from", "2036-02-02T02:40:07Z").out == ""
    assert cli("record", broker.create_topic(), "--brokers", broker.bootstrap).out == ""


def test_record_joins_no_group(cli: Cli, broker: Broker) -> None:
    topic = broker.create_topic()
    broker.produce(topic, [b"{}"])
    group = f"group-{topic}"
    settings = cli.write(
        "mill.toml", f'[backbone]\nkind = "kafka"\nbrokers = "{broker.bootstrap}"\ngroup = "{group}"\n'
    )
    assert cli("record", topic, "--config", settings).objects == [{}]
    assert group not in {found.group_id for found in broker.admin().list_consumer_groups().result().valid}


def test_records_that_are_no_json_lines(cli: Cli, broker: Broker) -> None:
    topic = broker.create_topic()
    broker.produce(topic, [b'{\r\n "a": "\\n"\n}', b"no", None, b"\x00\x00\x00\x00\x01{}", b"[1]"])
    ran = cli("record", topic, "--brokers", broker.bootstrap)
    assert (ran.code, ran.objects) == (1, [{"a": "\n"}, [1]])
    first, second = ran.err.splitlines()
    assert first.startswith(f"eventmill record: {topic}/0/1: not valid JSON: ")
    assert second.startswith(f"eventmill record: {topic}/0/3: ")


def test_binary_cloudevents_are_json(cli: Cli, broker: Broker) -> None:
    topic = broker.create_topic()
    headers = {"ce_specversion": b"1.0", "ce_id": b"1", "ce_source": b"//x", "ce_type": b"t"}
    broker.produce(topic, [b'{"a": 1}'], headers=[{**headers, "content-type": b"application/json"}])
    [event] = cli("record", topic, "--brokers", broker.bootstrap).objects
    assert (event["id"], event["data"]) == ("1", {"a": 1})


def test_follow_and_ctrl_c(cli: Cli, broker: Broker) -> None:
    topic = broker.create_topic()
    broker.produce(topic, [b"1"])
    command = [COMMAND, "record", topic, "--brokers", broker.bootstrap, "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        broker.produce(topic, [b"2"])
        assert process.stdout.readline() == b"2\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, b"")


def test_ctrl_c_says_what_is_there(cli: Cli, broker: Broker) -> None:
    topic = broker.create_topic()
    command = [COMMAND, "generate", "dcache", "--files", "0", "--rate", "200", "--topic", topic]
    with subprocess.Popen([*command, "--brokers", broker.bootstrap], stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: sum(broker.end_offsets(topic).values()) > 20)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert int(errors.split()[0]) <= sum(broker.end_offsets(topic).values())
    assert errors.endswith(f"records are in {topic}\n")


def test_created_files_have_their_size_before_the_record(cli: Cli, broker: Broker) -> None:
    settings = config(cli, broker, "billing")
    command = ("generate", "dcache", "--files", "30", "--config", settings, "--create")
    ran = cli(*command, "--directory", "/pnfs/desy.de/exfel/p7")
    events = cli("decode", "--topic", "billing", "--config", settings, stdin=ran.out).objects
    sizes = {e["subject"]: e["data"]["size"] for e in events if e["type"] == "org.dcache.file.written"}
    found = {f"/exfel/{p.relative_to(cli.folder / 'files')}": p.stat() for p in (cli.folder / "files").rglob("*.*")}
    assert len(sizes) >= 30
    assert {name: stat.st_size for name, stat in found.items()} == sizes
    assert sum(stat.st_blocks for stat in found.values()) == 0
    refused = cli(*command, "--directory", "/pnfs/desy.de/exfel2")
    assert (refused.code, refused.out) == (2, "")
    assert "no row of [[paths]]" in refused.err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("record", "t"), "which Kafka?"),
        (("record", "t", "--brokers", "BROKERS"), "there is no such topic"),
        (("record", "t", "--brokers", "BROKERS", "--from", "noon"), "it must be earliest, latest, or a time"),
        (("record", "t", "--brokers", "BROKERS", "--events"), "no [[topics]] for t"),
        (("record", "t", "--brokers", "no broker"), "not a host and a port"),
        (("generate", "dcache", "--topic", "t", "--brokers", "BROKERS"), "there is no such topic"),
        (("generate", "dcache", "--topic", "t"), "which Kafka?"),
        (("generate", "dcache", "--brokers", "BROKERS"), "go with --topic"),
    ],
)
def test_what_is_wrong_is_said(cli: Cli, broker: Broker, wrong: tuple[str, ...], said: str) -> None:
    ran = cli(*(part.replace("BROKERS", broker.bootstrap) for part in wrong))
    assert (ran.code, ran.out) == (1 if "no such topic" in said else 2, "")
    assert said in " ".join(ran.err.replace("│", " ").split())


def test_a_record_that_is_too_large_is_said(cli: Cli, broker: Broker) -> None:
    topic = broker.create_topic(config={"max.message.bytes": "200"})
    ran = cli("generate", "dcache", "--files", "3", "--topic", topic, "--brokers", broker.bootstrap)
    assert ran.code == 1
    assert "MSG_SIZE_TOO_LARGE" in ran.err
    assert f" records are in {topic}" in ran.err


def test_lines_that_are_no_events(cli: Cli) -> None:
    good = json.dumps({"specversion": "1.0", "id": "1", "source": "/x", "type": "t"})
    cli.write("events.jsonl", f"{good}\n\n{good}\nno\n{good}\n")
    with started(cli.folder, "serve"):
        ran = cli("emit", "--lines", "events.jsonl", "--data-dir", "data")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith("eventmill: events.jsonl:4 is no event: ")
        assert ran.err.endswith("(2 events before it were accepted)\n")
    assert cli("emit", "--lines").code == 2
    assert cli("emit", "--lines", "-", "--type", "t").code == 2


def test_check_looks_at_kafka(cli: Cli, broker: Broker) -> None:
    topic = broker.create_topic()
    more = (
        f'[[topics]]\nname = "no-{topic}"\ndecoder = "dcache"\n[[topics]]\nregex = ".*{topic[-8:]}"\ndecoder = "dcache"'
    )
    (cli.folder / "files").mkdir()
    ran = cli("check", "--json", "--config", config(cli, broker, topic, more))
    found = ran.objects[0]["components"]
    assert ran.code == 0, "what is waited for is no failure"
    assert found["backbone"]["ok"]
    assert "answers; eventmill.events " in found["backbone"]["detail"]
    assert found[f"topics {topic}"] == {"ok": True, "detail": "is there"}
    assert found[f"topics .*{topic[-8:]}"] == {"ok": True, "detail": "1 there now"}
    assert (found[f"topics no-{topic}"]["ok"], found[f"topics no-{topic}"]["warning"]) == (True, True)
    shown = cli("check", "--config", config(cli, broker, topic, more)).out
    assert [line.split()[2] for line in shown.splitlines() if f"no-{topic}" in line and "waited" in line] == ["WARNING"]
    wrong = (
        '[backbone]\nkind = "kafka"\n[backbone.properties]\nsecurity.protocol = "ssl"\nssl.ca.location = "/no/file"\n'
    )
    wrong = cli.write("wrong.toml", wrong)
    found = cli("check", "--json", "--config", wrong).objects[0]["components"]["backbone"]
    assert (found["ok"], "ssl.ca.location" in found["detail"]) == (False, True)

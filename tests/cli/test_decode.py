"""`eventmill decode`: recorded records in, events out, and why not."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import COMMAND, Cli

GOLDEN = Path(__file__).parents[1] / "events/dcache"
ROWS = [json.loads(line) for line in (GOLDEN / "transfer.jsonl").read_text().splitlines()]
WRITE, COPY = (
    next(row["record"] for row in ROWS if row["case"] == case)
    for case in ("a file written through WebDAV", "a copy between pools")
)
DECODE = ("decode", "--decoder", "dcache")


def lines(*records: Any) -> str:
    return "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)


def test_golden_records(cli: Cli) -> None:
    plain = [row for row in ROWS if "settings" not in row]
    config = cli.write("mill.toml", '[[paths]]\nsubject = "/exfel"\nsource = "/pnfs/desy.de/exfel"\n')
    file = cli.write("records.jsonl", lines(*(row["record"] for row in plain)))
    ran = cli(*DECODE, "--instance", "desy", "--config", config, file)
    assert (ran.code, ran.err) == (0, "")
    assert ran.objects == [row["event"] for row in plain if "event" in row]


def test_files_stdin_and_what_is_between_the_lines(cli: Cli) -> None:
    one = cli.write("one.jsonl", lines(WRITE, "", COPY).rstrip())
    ran = cli(*DECODE, one, "-", stdin=lines(WRITE, "  \r"))
    assert (ran.code, ran.err) == (0, "")
    assert [event["type"] for event in ran.objects] == ["org.dcache.file.written"] * 2
    assert ran.objects[0]["source"] == "//dcache/dcache"
    assert cli(*DECODE, stdin=b"").out == ""


def test_bad_lines_are_named(cli: Cli) -> None:
    negative = {**WRITE, "fileSize": -1}
    ran = cli(*DECODE, stdin=lines(WRITE, "{", COPY, negative, {**WRITE, "date": "\x1b[31m"}, WRITE))
    assert ran.code == 1
    assert len(ran.objects) == 2
    assert ran.err.splitlines()[1] == "eventmill decode: stdin:4: a negative fileSize: -1"
    assert [line.split(": ")[1] for line in ran.err.splitlines()] == ["stdin:2", "stdin:4", "stdin:5"]
    assert "\x1b" not in ran.err


def test_explain(cli: Cli) -> None:
    check = {**WRITE, "msgType": "check"}
    ran = cli(*DECODE, "--explain", stdin=lines(COPY, WRITE, "[]", check, WRITE))
    assert ran.code == 1
    assert [answer.get("type", answer.get("why")) for answer in ran.objects] == [
        "transfer (between pools)", "org.dcache.file.written", "not a JSON object", "check", "org.dcache.file.written"
    ]  # fmt: skip
    assert ran.objects[2] == {"file": "stdin", "line": 3, "outcome": "dead letter", "why": "not a JSON object"}
    assert [line.split(maxsplit=1) for line in ran.err.splitlines()] == [
        ["2", "org.dcache.file.written"],
        ["1", "make no event: transfer (between pools)"],
        ["1", "make no event: check"],
        ["1", "would be dead letters"],
    ]


def test_options_reach_the_decoder(cli: Cli) -> None:
    raw = lines({**WRITE, "transferPath": "/upload/1/x/f"})
    [event] = cli(*DECODE, "--personal", "keep", stdin=raw).objects
    assert event["type"] == "org.dcache.file.uploaded"
    assert "UserNamePrincipal[paul]" in event["data"]["subject"]
    [event] = cli(*DECODE, "--srm", "transfer", "--personal", "hash", stdin=raw).objects
    assert event["type"] == "org.dcache.file.written"
    assert "paul" not in json.dumps(event)


EVENT = {"specversion": "1.0", "id": "1", "source": "//lab/device", "type": "org.lab.done"}


def test_cloudevents(cli: Cli) -> None:
    other, null = {**EVENT, "source": "//elsewhere"}, {**EVENT, "subject": None}
    ran = cli("decode", "--decoder", "cloudevents", "--explain", stdin=lines(null, {**EVENT, "id": ""}, other))
    assert ran.code == 1
    assert ran.objects[0] == EVENT
    assert ran.objects[1]["why"] == "attribute 'id': must not be empty"
    ran = cli("decode", "--decoder", "cloudevents", "--source", "//lab/", "--explain", stdin=lines(EVENT, other))
    assert ran.code == 0
    assert ran.objects == [EVENT, {"file": "stdin", "line": 2, "outcome": "none", "why": "from another source"}]
    assert "1 make no event: from another source" in ran.err


def test_plain_json(cli: Cli) -> None:
    ran = cli("decode", "--decoder", "json", "--source", "//lab", stdin=lines({"type": "x", "n": 1}, {"n": 1}))
    assert ran.code == 1
    [event] = ran.objects
    assert (event["source"], event["type"], event["data"]) == ("//lab", "x", {"type": "x", "n": 1})
    assert ran.err == "eventmill decode: stdin:2: no type: there is no text at 'type'\n"


TOPICS = """
[backbone]
kind = "kafka"

[[topics]]
name = "lab.billing"
decoder = "dcache"
instance = "desy"
personal = "keep"

[[topics]]
regex = 'lab\\..*'
decoder = "json"
source = "//lab"
map = { id = "meta.id", type = "kind" }
"""


def test_as_the_configuration_says_for_a_topic(cli: Cli) -> None:
    config = cli.write("mill.toml", TOPICS)
    [event] = cli("decode", "--topic", "lab.billing", "--config", config, stdin=lines(WRITE)).objects
    assert event["source"] == "//dcache/desy"
    assert "UserNamePrincipal[paul]" in event["data"]["subject"]
    record = {"kind": "made", "meta": {"id": 7}}
    [event] = cli("decode", "--topic", "lab.files", "--config", config, stdin=lines(record)).objects
    assert (event["id"], event["type"]) == ("7", "made")
    ran = cli("decode", "--topic", "labyrinth", "--config", config)
    assert ran.code == 2
    assert "has no [[topics]] for it (known: lab.billing, lab\\..*)" in " ".join(ran.err.split())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("decode",), "either --decoder, or --topic"),
        (("decode", "--decoder", "eos"), "eos"),
        ((*DECODE, "--personal", "sell"), "sell"),
        ((*DECODE, "--instance", ""), "needs a name"),
        ((*DECODE, "--source", "//x"), "'source' is a setting of decoder cloudevents and json alone"),
        (("decode", "--decoder", "json"), "decoder json needs a source"),
        (("decode", "--decoder", "json", "--source", "no uri"), "attribute 'source'"),
        (("decode", "--decoder", "cloudevents", "--srm", "transfer"), "'srm' is a setting of decoder dcache alone"),
        (("decode", "--topic", "t"), "has no [[topics]] for it (known: none)"),
        ((*DECODE, "--topic", "t"), "the configuration says how to decode"),
        (("decode", "--topic", "t", "--srm", "request"), "the configuration says how to decode"),
    ],
)
def test_wrong_usage(cli: Cli, wrong: tuple[str, ...], message: str) -> None:
    ran = cli(*wrong, stdin=lines(WRITE))
    assert (ran.code, ran.out) == (2, "")
    assert message in " ".join(ran.err.replace("│", " ").split())


def test_a_file_that_is_missing_does_not_stop_the_others(cli: Cli) -> None:
    ran = cli(*DECODE, "missing", cli.write("one", lines("{", WRITE)))
    assert ran.code == 2
    assert ran.err.splitlines()[0] == "eventmill decode: missing: No such file or directory"
    assert len(ran.objects) == 1


def test_what_the_generator_makes_is_understood(cli: Cli) -> None:
    traffic = cli("generate", "dcache", "--files", "300", "--directory", "/pnfs/x", "--seed", "3").out
    ran = cli(*DECODE, stdin=traffic)
    assert (ran.code, ran.err) == (0, "")
    types = Counter(event["type"] for event in ran.objects)
    assert types["org.dcache.file.written"] >= 300
    assert len(types) == 13


@pytest.mark.slow
def test_quiet_when_the_reader_has_had_enough(tmp_path: Path) -> None:
    (tmp_path / "many").write_text(lines(WRITE) * 20_000)
    command = f"{COMMAND} {' '.join(DECODE)} many | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=tmp_path, timeout=60)
    assert done.stdout.endswith(b"\n141\n")
    assert done.stderr == b""


@pytest.mark.slow
def test_progress_is_for_a_terminal_without_events_on_it(tmp_path: Path) -> None:
    (tmp_path / "many").write_text(lines(WRITE) * 20_000)
    terminal, end = pty.openpty()
    with (tmp_path / "events").open("wb") as out:
        done = subprocess.run([COMMAND, *DECODE, "many"], stdout=out, stderr=end, cwd=tmp_path, timeout=60)
    os.close(end)
    assert done.returncode == 0
    assert b"records" in os.read(terminal, 1 << 16)
    os.close(terminal)
    assert len((tmp_path / "events").read_text().splitlines()) == 20_000

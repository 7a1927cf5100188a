"""`eventmill generate dcache`: reproducible, at the wanted rate, and as coherent as what dCache writes."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from eventmill.cli.dcache_records import date
from eventmill.cli.generate import DEFAULT_MIX, paced
from eventmill.cli.generating import NEW_FILES, SCENES, Traffic, parse_mix
from eventmill.errors import InvalidInput
from eventmill.events.dcache import dates
from tests.cli.conftest import COMMAND, Cli

MIX = parse_mix(DEFAULT_MIX)


def traffic(
    files: int = 400, *, seed: int = 1, mix: dict[str, float] = MIX, twice: float = 0.0, directory: str = "/pnfs/x"
) -> list[dict[str, Any]]:
    return list(Traffic(seed, directory, mix, twice).records(files))


def moments(records: list[dict[str, Any]]) -> list[int]:
    found = [dates.instant(record["date"]) for record in records]
    return [dates.microseconds(moment) for moment in found if moment is not None]


def test_the_seed_makes_the_records() -> None:
    assert traffic(seed=7, twice=0.5) == traffic(seed=7, twice=0.5) != traffic(seed=8, twice=0.5)


def test_the_default_mix_has_everything() -> None:
    assert list(MIX) == list(SCENES)
    kinds = Counter(record["msgType"] for record in traffic())
    assert set(kinds) == {"transfer", "request", "remove", "store", "restore", "hit", "warning", "check"}


def test_records_come_in_the_order_of_their_times() -> None:
    found = moments(traffic())
    assert found == sorted(found)


def test_door_and_pool_tell_of_the_same_transfer() -> None:
    records = traffic(mix={"written": 1, "read": 1})
    requests = {record["session"]: record for record in records if record["msgType"] == "request"}
    transfers = [record for record in records if record["msgType"] == "transfer"]
    assert len(transfers) == len(requests)
    for transfer in transfers:
        request = requests[transfer["initiator"]]
        for name in ("pnfsid", "billingPath", "transferPath", "fileSize", "subject"):
            assert request[name] == transfer[name]
        assert request.get("moverInfo", {}).get("session", transfer["session"]) == transfer["session"]
    assert len({record["session"] for record in records}) == len(records)


def test_a_file_is_read_and_removed_after_it_was_written() -> None:
    seen: dict[str, str] = {}
    order = 0
    for record in traffic(2000, mix={"written": 3, "read": 3, "removed": 1}):
        if record["msgType"] == "transfer" and record["isWrite"] == "write":
            assert record["pnfsid"] not in seen
            seen[record["pnfsid"]] = "written"
        elif record["msgType"] == "remove" and record["cellType"] == "door":
            assert seen.get(record["pnfsid"]) != "removed"
            order += seen.get(record["pnfsid"]) == "written"
            seen[record["pnfsid"]] = "removed"
    assert order > 500


def test_an_srm_upload_is_followed_by_its_put_done() -> None:
    records = traffic(50, mix={"srm": 1})
    uploads = {record["pnfsid"]: record for record in records if record["msgType"] == "transfer"}
    done = [record for record in records if ":srm2:prepareToPut:" in record["session"]]
    assert len(done) == len(uploads) == 50
    for record in done:
        upload = uploads[record["pnfsid"]]
        assert record["transferPath"] == upload["transferPath"] != upload["billingPath"] == record["billingPath"]
        assert record["fileSize"] == upload["fileSize"]


def test_both_shapes_of_remove() -> None:
    removed = [record for record in traffic() if record["msgType"] == "remove"]
    assert Counter(record["cellType"] for record in removed) == {"door": len(removed) // 2, "pool": len(removed) // 2}
    assert any(record["billingPath"].startswith("parent:[") for record in removed)


def test_files_come_in_bursts() -> None:
    paths = [record["billingPath"] for record in traffic(1000, mix={"written": 1}) if record["msgType"] == "transfer"]
    assert len(paths) == len(set(paths)) == 1000
    assert 5 < len({path.rpartition("/")[0] for path in paths}) < 100
    assert all(path.startswith("/pnfs/x/") for path in paths)


def test_everything_twice_is_the_same_events(cli: Cli) -> None:
    def ids(twice: str) -> list[str]:
        made = cli("generate", "dcache", "--files", "200", "--twice", twice).out
        return [event["id"] for event in cli("decode", "--decoder", "dcache", stdin=made).objects]

    once, doubled = ids("0"), ids("1")
    assert len(doubled) > 1.8 * len(once)
    assert len(set(doubled)) < 0.55 * len(doubled)


def test_copies_differ_in_the_text_of_their_dates() -> None:
    copies: dict[tuple[str, str, str], list[str]] = {}
    for record in traffic(twice=1):
        if record["msgType"] not in ("hit", "warning"):
            key = (record["msgType"], record["session"], record["cellName"])
            copies.setdefault(key, []).append(record["date"])
    assert all(len(texts) == 2 for texts in copies.values())
    assert all(dates.instant(one) == dates.instant(other) for one, other in copies.values())
    assert sum(one != other for one, other in copies.values()) > len(copies) / 2


@pytest.mark.parametrize(
    ("ms", "zone", "text"),
    [
        (0, 0, "1970-01-01T00:00:00Z"),
        (1_714_979_289_123, 120, "2024-05-06T09:08:09.123+02:00"),
        (1_714_979_289_120, -330, "2024-05-06T01:38:09.12-05:30"),
        (1_714_979_289_500, 60, "2024-05-06T08:08:09.5+01:00"),
    ],
)
def test_dates_as_java_writes_them(ms: int, zone: int, text: str) -> None:
    assert date(ms, zone) == text


def test_mix() -> None:
    assert parse_mix("written=1, read=2.5") == {"written": 1, "read": 2.5}
    for text, message in (
        ("writen=1", "did you mean 'written'"),
        ("x", "there are written, srm"),
        ("written", "write NAME=WEIGHT"),
        ("written=-1", "write NAME=WEIGHT"),
        ("written=nan", "write NAME=WEIGHT"),
        ("written=1e9", "write NAME=WEIGHT"),
        ("read=1", "there would be no files"),
        ("written=0", "there would be no files"),
    ):
        with pytest.raises(InvalidInput, match=message):
            parse_mix(text)
    assert set(NEW_FILES) < set(SCENES)


def test_without_end() -> None:
    endless = Traffic(1, "/pnfs/x", MIX, 0.1).records(0)
    assert len(list(islice(endless, 5000))) == 5000


@pytest.mark.parametrize(
    "wrong", [("--rate", "-1"), ("--rate", "nan"), ("--twice", "2"), ("--mix", "read=1"), ("--directory", "data")]
)
def test_wrong_usage(cli: Cli, wrong: tuple[str, ...]) -> None:
    ran = cli("generate", "dcache", *wrong)
    assert (ran.code, ran.out) == (2, "")


def test_rate() -> None:
    """On time, at the least: 60 records at 200 a second take 0.28 s, and nothing is early."""
    start = time.monotonic()
    ends = [(time.monotonic() - start, len(batch)) for batch in paced(range(60), 200)]
    assert sum(count for _, count in ends) == 60
    assert ends[-1][0] >= (60 - ends[-1][1]) / 200
    assert len(ends) >= 10
    assert [len(batch) for batch in paced(range(2500), 0)] == [1000, 1000, 500]


@pytest.mark.slow
def test_quiet_when_nobody_reads_and_at_ctrl_c(tmp_path: Path) -> None:
    command = f"{COMMAND} generate dcache --files 0 | head -n 1 | wc -l; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == ([b"1", b"141"], b"")
    arguments = [COMMAND, "generate", "dcache", "--files", "0", "--rate", "100"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, b"")

"""The way to a schedd, on a real pool: nothing in part, nothing in another's name, and data stays data."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from eventmill.errors import InvalidDescription, InvalidInput, Unavailable
from eventmill.executors.htcondor.client import Acted, Condor, TooMany
from tests.htcondor.pool import CondorPool

pytestmark = pytest.mark.slow

BASE = {
    "universe": "vanilla",
    "transfer_executable": "false",
    "should_transfer_files": "no",
    "request_memory": "16",
    "request_disk": "1",
    "keep_claim_idle": "5",
    "hold": "true",
    "My.EventmillActivation": '"$(activation)"',
}
HELD, HELD_AS_SUBMITTED = 5, 15


@pytest.fixture(scope="module")
def frail(pytestconfig: pytest.Config) -> Iterator[CondorPool]:
    """A pool whose schedd is killed. Slots that wait for their next job go on waiting for the dead one."""
    with CondorPool(suite=pytestconfig.getoption("condor")) as pool:
        yield pool


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory that the jobs' account may use, too."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.name.startswith("pytest-"):
            directory.chmod(0o755)
    return tmp_path


@pytest.fixture
def true_job() -> dict[str, str]:
    return {**BASE, "executable": "/bin/true"}


def asked(pool: CondorPool, directory: Path, work: Callable[[Condor], Awaitable[None]], **settings: Any) -> Condor:
    """Run `work` with a Condor for this pool."""
    condor = Condor(directory=directory / "identity", condor_config=pool.config, **settings)

    async def main() -> None:
        try:
            await work(condor)
        finally:
            await condor.stop()

    asyncio.run(main())
    return condor


def items(name: str, count: int) -> list[dict[str, str]]:
    return [{"activation": f"{name}-{n}"} for n in range(count)]


def of(name: str) -> str:
    """The jobs of `items(name, …)`."""
    return f'regexp("^{name}-[0-9]+$", EventmillActivation)'


async def ended(schedd: Condor, name: str, timeout_s: float = 60) -> None:
    """Return when the jobs of `items(name, …)` have left the queue."""
    end = time.monotonic() + timeout_s
    wanted = ["ProcId", "JobStatus", "HoldReason", "LastRejMatchReason", "NumJobStarts"]
    while left := await schedd.query(of(name), wanted):
        assert time.monotonic() < end, left
        await asyncio.sleep(0.1)


# what a job goes through


def test_jobs_wait_held_and_run_with_what_is_theirs(condor: CondorPool, shared: Path) -> None:
    async def work(schedd: Condor) -> None:
        base = {
            **BASE,
            "executable": "/bin/sh",
            "arguments": "\"-c 'echo $(DOLLAR)WHO >$(file); exit $(code)'\"",
            "My.Environment": '"WHO=$(who)"',
        }
        jobs = [
            {"activation": f"life-{n}", "who": f"w{n}", "file": str(shared / f"out{n}"), "code": str(n)}
            for n in range(3)
        ]
        shared.chmod(0o777)
        ids = await schedd.submit(base, jobs)
        cluster = ids[0].split(".")[0]
        assert ids == [f"{cluster}.{n}" for n in range(3)]
        wanted = ["ProcId", "JobStatus", "HoldReasonCode", "EventmillActivation"]
        held = sorted(await schedd.query(of("life"), wanted), key=lambda ad: int(ad["ProcId"]))
        assert [[ad[name] for name in wanted] for ad in held] == [
            [n, HELD, HELD_AS_SUBMITTED, f"life-{n}"] for n in range(3)
        ]
        assert len(await schedd.query(of("life"), ["ProcId"], limit=1)) == 1
        await schedd.release(ids)
        await schedd.release(ids)
        await ended(schedd, "life")
        ads = {ad["ProcId"]: ad for ad in await schedd.history(ids, ["ProcId", "ExitCode", "NumJobStarts"])}
        assert [ads[n]["ExitCode"] for n in range(3)] == [0, 1, 2]
        assert [(shared / f"out{n}").read_text() for n in range(3)] == ["w0\n", "w1\n", "w2\n"]

    schedd = asked(condor, shared, work)
    assert schedd.calls["submit"] == 1
    assert schedd.calls["release"] == 2
    assert schedd.calls["history"] == 1
    assert schedd.condition() == (True, "ready")


def test_a_removal_says_why(condor: CondorPool, tmp_path: Path, true_job: dict[str, str]) -> None:
    async def work(schedd: Condor) -> None:
        ids = await schedd.submit({**true_job, "hold": "false", "requirements": "false"}, items("why", 2))
        await schedd.remove(ids, 'zoë: the "chain"\nis over\\')
        await schedd.remove(ids, "cancelled twice")
        ads = await schedd.history(ids, ["RemoveReason"])
        assert [ad["RemoveReason"].partition(" (")[0] for ad in ads] == ["zoë: the 'chain' is over/"] * 2
        assert await schedd.history(["99999.0"], ["RemoveReason"]) == []
        await schedd.release(["99999.0"])
        await schedd.release([])

    asked(condor, tmp_path, work)


def test_what_a_job_lacks_is_the_first_job_s(condor: CondorPool, tmp_path: Path, true_job: dict[str, str]) -> None:
    """HTCondor's way, which whoever gathers jobs into a cluster has to know; attributes are a job's own."""

    async def work(schedd: Condor) -> None:
        base = {**true_job, "environment": '"$(words)"', "arguments": "$(args)", "My.Own": '"$(words)"'}
        jobs = [{"words": "A=1 B=1", "args": '"first"'}, {"words": "A=2", "args": '""'}, {"words": "A=3", "args": ""}]
        ids = await schedd.submit(base, [{"activation": f"lacks-{n}", **job} for n, job in enumerate(jobs)])
        ads = sorted(
            await schedd.query(of("lacks"), ["ProcId", "Environment", "Arguments", "Own"]),
            key=lambda ad: int(ad["ProcId"]),
        )
        assert [ad["Environment"] for ad in ads] == ["A=1 B=1", "A=2 B=1", "A=3 B=1"]
        assert [ad["Arguments"] for ad in ads] == ["first", "", "first"]
        assert [ad["Own"] for ad in ads] == ["A=1 B=1", "A=2", "A=3"]
        await schedd.remove(ids, "done")

    asked(condor, tmp_path, work)


def test_values_are_what_json_has(condor: CondorPool, tmp_path: Path, true_job: dict[str, str]) -> None:
    async def work(schedd: Condor) -> None:
        base = {
            **true_job,
            "My.U": "undefined",
            "My.L": '{1, "é"}',
            "My.A": "[x = 1.5]",
            "My.E": "X + 1",
            "My.B": "true",
        }
        ids = await schedd.submit(base, items("json", 1))
        [ad] = await schedd.query(of("json"), ["U", "L", "A", "E", "B"])
        ad.pop("ServerTime", None)
        assert ad == {"U": None, "L": [1, "é"], "A": {"x": 1.5}, "E": "X + 1", "B": True}
        await schedd.remove(ids, "done")

    asked(condor, tmp_path, work)


# deaths


@pytest.mark.parametrize("after_ms", [0, 20, 60, 120, 200, 300])
def test_a_helper_killed_while_it_submits_leaves_all_or_none(
    condor: CondorPool, tmp_path: Path, true_job: dict[str, str], after_ms: int
) -> None:
    async def work(schedd: Condor) -> None:
        await schedd.ping()
        name = f"kill{after_ms}"
        submit = asyncio.ensure_future(schedd.submit(true_job, items(name, 500)))
        await asyncio.sleep(after_ms / 1000)
        assert schedd.pid is not None
        os.kill(schedd.pid, signal.SIGKILL)
        [done] = await asyncio.gather(submit, return_exceptions=True)
        assert isinstance(done, Unavailable | list), done
        if isinstance(done, Unavailable):
            assert schedd.condition() == (False, "HTCondor: the helper process has ended")
        with suppress(Unavailable):  # the helper may have been killed when it had done its work
            await schedd.ping()
        # the schedd has seen the end of the connection when it answers a later one
        there = await schedd.query(of(name), ["ProcId"])
        assert len(there) in (0, 500)
        ids = [ad["ProcId"] for ad in there]
        assert sorted(ids) == list(range(len(ids)))
        condor.run("condor_rm", "-constraint", of(name)) if there else None
        assert schedd.condition()[0]

    asked(condor, tmp_path, work)


SERVER = """
import asyncio, sys
from pathlib import Path
from eventmill.executors.htcondor.client import Acted, Condor, TooMany

async def main():
    condor = Condor(directory=Path(sys.argv[1]), condor_config=Path(sys.argv[2]))
    await condor.ping()
    print(condor.pid, flush=True)
    if len(sys.argv) > 3:
        await condor.submit(
            {"universe": "vanilla", "executable": "/bin/true", "transfer_executable": "false", "hold": "true",
             "My.EventmillActivation": '"$(activation)"'},
            [{"activation": f"{sys.argv[3]}-{n}"} for n in range(500)])
    print("submitted", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def server(condor: CondorPool, tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Start a server with a helper: its process, and the helper's number."""
    servers: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-c", SERVER, str(tmp_path / "identity"), str(condor.config), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        servers.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield start
    for process in servers:
        process.kill()
        process.communicate()


def gone(pid: int, timeout_s: float = 5) -> bool:
    end = time.monotonic() + timeout_s
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_a_helper_dies_with_its_server(server: Callable[..., tuple[subprocess.Popen[str], int]]) -> None:
    process, helper = server()
    process.kill()
    assert gone(helper)


@pytest.mark.parametrize("after_ms", [5, 50, 120, 200])
def test_a_server_killed_while_it_submits_leaves_all_or_none(
    condor: CondorPool, tmp_path: Path, server: Callable[..., tuple[subprocess.Popen[str], int]], after_ms: int
) -> None:
    name = f"server{after_ms}"
    process, helper = server(name)
    time.sleep(after_ms / 1000)
    process.kill()

    async def work(schedd: Condor) -> None:
        # the lock is free when the dead server's helper is gone: it can't submit any more
        there = await schedd.query(of(name), ["ProcId"])
        assert gone(helper, timeout_s=0)
        assert len(there) in (0, 500)
        condor.run("condor_rm", "-constraint", of(name)) if there else None

    asked(condor, tmp_path, work)


def test_nobody_else_asks_in_the_same_name(
    condor: CondorPool, tmp_path: Path, server: Callable[..., tuple[subprocess.Popen[str], int]]
) -> None:
    _, helper = server()

    async def work(schedd: Condor) -> None:
        with pytest.raises(Unavailable, match=rf"another server asks this schedd.*process {helper} has locked"):
            await schedd.ping()
        os.kill(helper, signal.SIGKILL)
        await schedd.ping()

    asked(condor, tmp_path, work)


def test_helpers_that_die_at_once_are_not_started_over_and_over(
    condor: CondorPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = tmp_path / "dies.py"
    dies.write_text(f"import os; open({str(tmp_path / 'starts')!r}, 'a').write('x')")
    monkeypatch.setattr("eventmill.executors.htcondor.helper.__file__", str(dies))

    async def work(schedd: Condor) -> None:
        for _ in range(20):
            with pytest.raises(Unavailable, match="has ended while it was starting"):
                await schedd.ping()

    condor_ = asked(condor, tmp_path, work)
    assert (tmp_path / "starts").read_text() == "xx"
    assert condor_.calls == {"helper_restarts": 1}


def test_who_no_longer_waits_disturbs_nobody(condor: CondorPool, tmp_path: Path) -> None:
    async def work(schedd: Condor) -> None:
        await schedd.ping()
        helper = schedd.pid
        calls = [asyncio.ensure_future(schedd.query("true", ["ProcId"])) for _ in range(3)]
        await asyncio.sleep(0)
        calls[0].cancel()
        calls[1].cancel()
        assert isinstance(await calls[2], list)
        assert (await schedd.ping())["identity"]
        assert schedd.pid == helper

    asked(condor, tmp_path, work)


def test_a_schedd_that_stands_still_is_not_waited_for(frail: CondorPool, tmp_path: Path) -> None:
    async def work(schedd: Condor) -> None:
        await schedd.ping()
        [pid] = frail.pids("condor_schedd")
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable, match="no answer within 2 s"):
                await schedd.query("true", ["ProcId"])
        finally:
            os.kill(pid, signal.SIGCONT)
        await schedd.ping()

    asked(frail, tmp_path, work, call_timeout_s=2.0)


def test_a_schedd_that_is_away_comes_back(frail: CondorPool, tmp_path: Path, true_job: dict[str, str]) -> None:
    async def work(schedd: Condor) -> None:
        await schedd.ping()
        helper = schedd.pid
        frail.stop_schedd()
        for call in (schedd.ping(), schedd.query("true", ["ProcId"]), schedd.submit(true_job, items("away", 1))):
            with pytest.raises(Unavailable, match="HTCondor: "):
                await call
        ready, why = schedd.condition()
        assert not ready, why
        frail.start_schedd()
        ids = await schedd.submit(true_job, items("away", 1))
        assert schedd.condition() == (True, "ready")
        frail.kill_schedd()
        frail.until_schedd()
        await schedd.remove(ids, "done")
        assert schedd.pid == helper

    asked(frail, tmp_path, work)


# who asks


def test_a_token_s_jobs_are_its_owner_s(condor: CondorPool, tmp_path: Path, true_job: dict[str, str]) -> None:
    async def others(schedd: Condor) -> None:
        [other] = await schedd.submit(true_job, items("others", 1))
        others_ids.append(other)

    others_ids: list[str] = []
    asked(condor, tmp_path / "other", others)

    async def work(schedd: Condor) -> None:
        facts = await schedd.ping()
        assert facts["identity"] == "alice@local"
        assert facts["schedd"].endswith("localhost.local")
        ids = await schedd.submit(true_job, items("alice", 2))
        assert [ad["Owner"] for ad in await schedd.query(of("alice"), ["Owner"])] == ["alice"] * 2
        acted = await schedd.remove([ids[0], *others_ids], "mine")
        assert acted == Acted(denied=others_ids, failed=[])
        await schedd.remove(ids, "done")

    asked(condor, tmp_path, work, token_file=condor.token("alice"))
    condor.run("condor_rm", *others_ids)


def test_a_token_that_was_renewed_is_taken(condor: CondorPool, tmp_path: Path, true_job: dict[str, str]) -> None:
    file = tmp_path / "token"
    file.write_text("no.token.yet\n")

    async def work(schedd: Condor) -> None:
        with pytest.raises(Unavailable, match="Failed to authenticate using IDTOKENS"):
            await schedd.submit(true_job, items("renewed", 1))
        file.write_text(condor.token("bob").read_text())
        await schedd.remove(await schedd.submit(true_job, items("renewed", 1)), "done")

    asked(condor, tmp_path, work, token_file=file)


def test_a_token_that_only_reads_is_told_apart(condor: CondorPool, tmp_path: Path, true_job: dict[str, str]) -> None:
    file = tmp_path / "token"
    file.write_text(condor.run("condor_token_create", "-identity", "eve@local", "-key", "POOL", "-authz", "READ"))

    async def work(schedd: Condor) -> None:
        assert isinstance(await schedd.query("true", ["ProcId"]), list)
        with pytest.raises(Unavailable, match="DENIED"):
            await schedd.submit(true_job, items("eve", 1))
        with pytest.raises(Unavailable, match="may read the queue, but not change it"):
            await schedd.release(["1.0"])

    asked(condor, tmp_path, work, token_file=file)


def test_the_handshake_of_2026_is_recognised(
    condor: CondorPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_CONDOR_SEC_FS_ENFORCE_CHANNEL_BINDING", "True")

    async def work(schedd: Condor) -> None:
        if "25." in (condor.run("condor_version")):
            assert (await schedd.ping())["identity"] == f"{condor.owner}@local"
            return
        with pytest.raises(Unavailable, match="set SEC_FS_ENFORCE_CHANNEL_BINDING = False"):
            await schedd.ping()

    asked(condor, tmp_path, work)


def test_a_schedd_is_found_by_its_name(frail: CondorPool, tmp_path: Path) -> None:
    address = (frail.directory / "log" / ".collector_address").read_text().split()[0].strip("<>").split("?")[0]

    async def right(schedd: Condor) -> None:
        name = (await schedd.ping())["schedd"]
        assert name == f"{frail.owner}@localhost.local"
        frail.kill_schedd()
        frail.until_schedd()
        assert isinstance(await schedd.query("true", ["ProcId"]), list)

    asked(frail, tmp_path / "1", right, collector=address)
    asked(frail, tmp_path / "2", right, collector=address, schedd=f"{frail.owner}@LOCALHOST.local")

    async def wrong(schedd: Condor) -> None:
        with pytest.raises(Unavailable, match=f"does not know schedd nobody; it knows {frail.owner}@localhost"):
            await schedd.ping()

    asked(frail, tmp_path / "3", wrong, schedd="nobody")


# data


SAYS = """
import json, os, sys
open(sys.argv[1], "w").write(json.dumps([sys.argv[2:], os.environ.get("DATA")]))
"""
HOSTILE = [
    "plain", "$(X)", "$(activation)", "$ENV(HOME)", "$F(x)", "$RANDOM_INTEGER(1,9)", "${HOME}", "$x", "`id`",
    'say "hi"', "it's", "'; rm -rf /tmp/nothing; '", "a\\b", "end\\", '\\"', "\\n", "#comment",
    "zoë 漢字 😀 \u2028", "  blanks  ", "tab\there", "\x01\x7f", "queue 5", "include : /etc/passwd |", "-c", "../../x",
    ")", "(", ",", ";", "&|<>*?", "",
]  # fmt: skip


def literal(text: str) -> str:
    """As an item's value, inside a string literal: in the old ClassAds' syntax a backslash is itself but before `"`."""
    return text.replace('"', '\\"').replace("$", "$(DOLLAR)")


def word(text: str) -> str:
    """As one word of Arguments or Environment."""
    return "'" + text.replace("'", "''") + "'"


def test_hostile_values_reach_the_job_as_they_are(condor: CondorPool, shared: Path) -> None:
    shared.chmod(0o777)
    (shared / "says.py").write_text(SAYS)

    async def work(schedd: Condor) -> None:
        base = {
            **BASE,
            "executable": "/usr/bin/python3",
            "My.Arguments": f'"{shared}/says.py $(file) $(word)"',
            "My.Environment": '"DATA=$(word)"',
            "My.Data": '"$(value)"',
        }
        jobs = [
            {
                "activation": f"hostile-{n}",
                "file": str(shared / f"{n}.json"),
                "word": literal(word(text)),
                "value": "x" + literal(text) + "x",
            }
            for n, text in enumerate(HOSTILE)
        ]
        ids = await schedd.submit(base, jobs)
        ads = {ad["ProcId"]: ad["Data"] for ad in await schedd.query(of("hostile"), ["ProcId", "Data"])}
        assert [ads[n] for n in range(len(HOSTILE))] == [f"x{text}x" for text in HOSTILE]
        await schedd.release(ids)
        await ended(schedd, "hostile")
        said = [json.loads((shared / f"{n}.json").read_text()) for n in range(len(HOSTILE))]
        assert said == [[[text], text] for text in HOSTILE]

    asked(condor, shared, work)


def test_a_megabyte_comes_through(condor: CondorPool, tmp_path: Path, true_job: dict[str, str]) -> None:
    async def work(schedd: Condor) -> None:
        data = "é" * 500_000
        ids = await schedd.submit({**true_job, "My.Data": '"$(data)"'}, [{"activation": "mega-0", "data": data}])
        [ad] = await schedd.query(of("mega"), ["Data"])
        assert ad["Data"] == data
        await schedd.remove(ids, "done")

    asked(condor, tmp_path, work)


BAD_ITEMS: list[dict[str, str]] = [
    {"a": "one\ntwo"}, {"a": "one\rtwo"}, {"a": "nul\0"}, {"a": "field\x1fa"}, {"a": " x"}, {"a": "x\t"}, {"a": "$(X)"},
    {"a": "$ENV(HOME)"}, {"a": "$$([1+1])"}, {"a": "$(DOLLAR)$(DOLLAR)([1+1])"}, {"a": "$(DOLLAR)$(X)"},
    {"a": "$(DOLLAR)(dollar)"}, {"a": "$(dollar)"}, {"a b": "x"},
]  # fmt: skip
BAD_COMMANDS: list[dict[str, str]] = [
    {"My.A": '"x"\ninclude command : touch {touched}'}, {"My.A": '"x"\\'}, {"My.A": '"x"\\  '}, {"My.A": "\0"},
    {"include command : touch {touched} |": "x"}, {"if": "true"}, {"queue": "5"}, {"a b": "c"}, {"a\nb": "c"},
    {"universe": "quatsch"}, {"executable": ""}, {"requirements": "foo("}, {"initialdir": "/nowhere"},
]  # fmt: skip


def test_what_would_not_be_data_is_refused(condor: CondorPool, tmp_path: Path, true_job: dict[str, str]) -> None:
    touched = tmp_path / "touched"

    def filled(commands: Mapping[str, str]) -> dict[str, str]:
        return {k.replace("{touched}", str(touched)): v.replace("{touched}", str(touched)) for k, v in commands.items()}

    async def refused(schedd: Condor, base: Mapping[str, str], jobs: Sequence[Mapping[str, str]]) -> None:
        with pytest.raises(InvalidDescription):
            await schedd.submit(base, jobs)

    async def work(schedd: Condor) -> None:
        good = {"activation": "bad-0"}
        for item in BAD_ITEMS:
            await refused(schedd, true_job, [good | item, good | dict.fromkeys(item, "x")])
            await refused(schedd, true_job, [good | dict.fromkeys(item, "x"), good | item])
        for commands in BAD_COMMANDS:
            await refused(schedd, true_job | filled(commands), [good])
        await refused(schedd, true_job, [good, good | {"more": "x"}])
        await refused(schedd, true_job, [])
        await refused(schedd, true_job, [good] * 501)
        with pytest.raises(InvalidInput):
            await schedd.query("foo(", ["ProcId"])
        assert await schedd.query(of("bad"), ["ProcId"]) == []
        assert schedd.condition() == (True, "ready")

    asked(condor, tmp_path, work)
    assert not touched.exists()


def test_what_the_access_point_refuses_and_what_is_full(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    extra = (
        "SUBMIT_REQUIREMENT_NAMES = Nice",
        "SUBMIT_REQUIREMENT_Nice = Rude =!= true",
        'SUBMIT_REQUIREMENT_Nice_REASON = "no rude jobs here"',
        "MAX_JOBS_PER_OWNER = 3",
    )

    async def work(schedd: Condor) -> None:
        with pytest.raises(InvalidDescription, match="no rude jobs here"):
            await schedd.submit({**BASE, "executable": "/bin/true", "My.Rude": "true"}, items("rude", 1))
        for count in (4, 1):
            with pytest.raises(TooMany, match="MAX_JOBS_PER_OWNER") if count == 4 else pytest.raises(Unavailable):
                await schedd.submit({**BASE, "executable": "/bin/true"}, items("full", count))
            if count == 4:
                await schedd.submit({**BASE, "executable": "/bin/true"}, items("full", 3))

    with CondorPool(suite=request.config.getoption("condor"), extra=extra) as pool:
        asked(pool, tmp_path, work)

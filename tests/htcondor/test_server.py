"""Chains on a real pool, seen from outside: what a job's user, an operator at the access point, or somebody else does
to them."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventmill.store import SqliteStore
from tests.htcondor.mill import AUDIT_S, CondorMill, condor_mill
from tests.htcondor.pool import CondorPool
from tests.server.mill import EVENTMILL

pytestmark = pytest.mark.slow

FLOW = """
import os
import time

from eventmill import Mill, happened

mill = Mill("lab")


@mill.function
def look(event):
    return dict(event.data)


@mill.job(memory="16MB", submit={"request_disk": "1MB"}, timeout="5m", retries=0)
def work(params):
    time.sleep(params.get("seconds", 0))
    return {"n": params.get("n"), "activation": os.environ["EVENTMILL_ACTIVATION"]}


@mill.job(memory="16MB", submit={"request_disk": "1MB"})
def echo(params):
    return {"echo": params["text"]}


@mill.function
def register(result):
    return result


show = mill.job("show.sub")
many = mill.map(work)
mill.on(happened("witness.chain"), look >> work >> register)
mill.on(happened("witness.hasty"), mill.sequence("hasty", look, work, timeout="4s"))
mill.on(happened("witness.many"), look >> many)
mill.on(happened("witness.echo"), look >> mill.map(echo))
mill.on(happened("witness.large"), look >> echo)
mill.on(happened("witness.show"), look >> mill.map(show, partial=True))
"""
SHOW = """\
executable = show.py
arguments = "$(text) end"
request_memory = 16
request_disk = 1000
queue
"""
SHOW_PROGRAM = """\
#!/usr/bin/env python3
import json, os, sys
params = json.load(open(os.environ["EVENTMILL_PARAMS"]))
json.dump({"argv": sys.argv[1:], "text": params["text"]}, open(os.environ["EVENTMILL_RESULT"], "w"))
"""
RUNNING, SUCCEEDED, FAILED, CANCELLED = 4, 5, 6, 7


def deploy(m: CondorMill, directory: Path, *options: str) -> None:
    (directory / "lab_flow.py").write_text(FLOW)
    (directory / "show.sub").write_text(SHOW)
    (directory / "show.py").write_text(SHOW_PROGRAM)
    (directory / "show.py").chmod(0o755)
    command = [EVENTMILL, "deploy", str(directory / "lab_flow.py"), "--data-dir", str(m.data), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def m(condor: CondorPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CondorMill]:
    directory = tmp_path_factory.mktemp("lab")
    with condor_mill(directory, condor) as m:
        m.start()
        deploy(m, directory)
        yield m
        assert m.stop() == 0


def command(m: CondorMill, *arguments: str) -> str:
    done = subprocess.run(
        [EVENTMILL, *arguments, "--data-dir", str(m.data)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def row(m: CondorMill, action: str, id: str) -> tuple[str, int, str | None, Any]:
    """(activation, state, cluster.proc, result) of the step of what the event `id` has caused; wait until there is
    one."""
    sql = (
        "SELECT lower(hex(s.id)), s.state, s.handle, s.result FROM activations s JOIN activations c ON s.parent = c.id"
        f" WHERE c.cause_id = '{id}' AND s.action = 'default/lab/{action}'"
    )
    m.until(lambda: m.query(sql), 30, f"{action} of {id}")
    [(activation, state, handle, result)] = m.query(sql)
    return activation, state, handle and handle.rpartition("#")[2], result and json.loads(result)


def until(m: CondorMill, action: str, id: str, state: int, seconds: float = 60) -> tuple[str, str, Any]:
    """The step when it is in this state: its activation, job, and result."""
    m.until(lambda: row(m, action, id)[1] == state, seconds, f"{action} of {id}: state {state}")
    activation, _, job, result = row(m, action, id)
    return activation, job or "", result


def until_in_history(m: CondorMill, job: str) -> dict[str, Any]:
    cluster, proc = job.split(".")
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = m.condor.history(f"ClusterId == {cluster} && ProcId == {proc}")
        return bool(found)

    m.until(look, 30, f"{job} to leave the queue")
    assert not m.condor.queue(f"ClusterId == {cluster} && ProcId == {proc}")
    return found[0]


def on_hold(m: CondorMill, policy: Any) -> None:
    """Set the annotation of `work`."""
    path = "/api/v1/namespaces/_/actions/lab/work"
    known = m.client.get(path).json()["annotations"]
    annotations = [each for each in known if each["key"] != "on_hold"] + [{"key": "on_hold", "value": policy}]
    answer = m.client.put(path, params={"overwrite": "true"}, json={"annotations": annotations})
    assert answer.is_success, answer.text


# what a user sees and does


def test_a_chain_goes_through_the_pool_and_shows_its_job(m: CondorMill) -> None:
    m.send("chain", {"n": 7}, "shown")
    activation, job, result = until(m, "work", "shown", SUCCEEDED)
    assert (result["n"], result["activation"], result["exit_code"]) == (7, activation, 0)
    assert until(m, "register", "shown", SUCCEEDED)[2]["n"] == 7
    shown = json.loads(command(m, "activations", "show", "--json", activation))
    assert (shown["handle"], shown["state"]) == (f"condor:local#{job}", "succeeded")
    assert 0 < shown["start"] <= shown["end"]
    usage = shown["usage"]
    assert (usage["job"], usage["exit_code"], usage["starts"]) == (job, 0, 1)
    assert usage["host"]
    assert usage["wall_s"] >= 0
    assert f"condor:local#{job}" in command(m, "activations", "show", activation)
    ad = until_in_history(m, job)
    chain = json.loads(command(m, "activations", "show", "--json", shown["parent"]))["action"]
    assert chain != "default/lab/work"
    assert (ad["EventmillActivation"], ad["JobBatchName"], ad["Owner"]) == (activation, chain, m.condor.owner)


def test_cancelling_removes_the_job(m: CondorMill) -> None:
    m.send("chain", {"seconds": 100}, "cancelled")
    activation, job, _ = until(m, "work", "cancelled", RUNNING)
    command(m, "activations", "cancel", activation)
    assert until(m, "work", "cancelled", CANCELLED)[2] == {"error": "cancelled"}
    assert until_in_history(m, job)["JobStatus"] == 3


def test_a_chains_time_limit_removes_the_job(m: CondorMill) -> None:
    m.send("hasty", {"seconds": 100}, "late")
    _, job, _ = until(m, "work", "late", CANCELLED)
    assert until_in_history(m, job)["JobStatus"] == 3


# what an operator does


def test_removed_by_hand(m: CondorMill) -> None:
    m.send("chain", {"seconds": 100}, "removed")
    _, job, _ = until(m, "work", "removed", RUNNING)
    m.condor.run("condor_rm", job, "-reason", "the disk is full")
    error = until(m, "work", "removed", FAILED)[2]["error"]
    assert "removed from the queue" in error
    assert "the disk is full" in error


def test_held_by_hand_fails_unless_the_action_says_otherwise(m: CondorMill) -> None:
    m.send("chain", {"seconds": 100}, "held")
    _, job, _ = until(m, "work", "held", RUNNING)
    m.condor.run("condor_hold", job, "-reason", "not now", "-subcode", "7")
    error = until(m, "work", "held", FAILED)[2]["error"]
    assert re.search(r"put on hold: .*not now.* \(code 1, subcode 7\)", error), error
    assert until_in_history(m, job)["JobStatus"] == 3


def test_held_by_hand_waits_for_somebody_also_when_the_server_is_started_anew(m: CondorMill) -> None:
    on_hold(m, "wait")
    m.send("chain", {"seconds": 3}, "waits")
    _, job, _ = until(m, "work", "waits", RUNNING)
    m.condor.run("condor_hold", job)
    m.until(lambda: m.condor.queue("JobStatus == 5"), 20, "the hold")
    assert m.stop() == 0
    m.start()
    time.sleep(3)
    [ad] = m.condor.queue(f"ClusterId == {job.split('.')[0]}")
    assert (ad["JobStatus"], ad["HoldReasonCode"]) == (5, 1)
    m.condor.run("condor_release", job)
    assert until(m, "work", "waits", SUCCEEDED)[1] == job


def test_held_by_hand_is_released_again_so_many_times(m: CondorMill) -> None:
    on_hold(m, {"after": 6, "times": 1})  # it is looked for meanwhile, and found to be held
    m.send("chain", {"seconds": 5}, "again")
    _, job, _ = until(m, "work", "again", RUNNING)
    m.condor.run("condor_hold", job)
    assert until(m, "work", "again", SUCCEEDED)[1] == job
    on_hold(m, {"after": 0.5, "times": 1})
    m.send("chain", {"seconds": 20}, "twice")
    _, job, _ = until(m, "work", "twice", RUNNING)
    for starts in (1, 2):
        m.until(lambda: _runs(m, job, starts), 60, f"start {starts}")  # noqa: B023
        m.condor.run("condor_hold", job)
    assert "put on hold" in until(m, "work", "twice", FAILED)[2]["error"]
    on_hold(m, "fail")


def _runs(m: CondorMill, job: str, starts: int) -> bool:
    ads = m.condor.queue(f"ClusterId == {job.split('.')[0]}")
    return any(ad["JobStatus"] == 2 and ad.get("NumShadowStarts", 0) >= starts for ad in ads)


# what happens to the server and the schedd


def test_jobs_run_on_without_their_server(m: CondorMill) -> None:
    m.send("chain", {"seconds": 2, "n": 1}, "short")
    m.send("chain", {"seconds": 8, "n": 2}, "long")
    jobs = [until(m, "work", id, RUNNING)[1] for id in ("short", "long")]
    assert m.stop() == 0
    until_in_history(m, jobs[0])
    assert [f"{ad['ClusterId']}.{ad['ProcId']}" for ad in m.queued()] == [jobs[1]]
    m.start()
    for id, job, n in zip(("short", "long"), jobs, (1, 2), strict=True):
        assert until(m, "work", id, SUCCEEDED)[1] == job
        assert until(m, "register", id, SUCCEEDED)[2]["n"] == n


def test_jobs_wait_for_a_schedd_that_is_away(m: CondorMill) -> None:
    m.condor.stop_schedd()
    try:
        m.send("chain", {"n": 3}, "away")
        time.sleep(3)
        assert row(m, "work", "away")[2] is None
    finally:
        m.condor.start_schedd()
    assert until(m, "register", "away", SUCCEEDED)[2]["n"] == 3


def test_a_pool_with_jobs_can_be_neither_renamed_nor_left_out(condor: CondorPool, tmp_path: Path) -> None:
    with condor_mill(tmp_path, condor) as m:
        m.start()
        deploy(m, tmp_path)
        m.send("chain", {"seconds": 6, "n": 4}, "1")
        _, job, _ = until(m, "work", "1", RUNNING)
        assert m.stop() == 0
        config = m.config.read_text()
        schedd = f'[pools.condor]\nschedd = "{condor.owner}@localhost.local"'
        for wrong, says in (
            (config.replace("[pools.condor]", "[pools.renamed]"), "keep [pools.condor] as it was"),
            (config.replace("[pools.condor]", schedd), f"waits for job condor:local#{job}"),
            (re.sub(r"(?s)\[pools.condor\].*", "[pools.condor]\n", config), "put pools.condor.kind back"),
        ):
            m.config.write_text(wrong)
            m.start(wait=False)
            m.until(m.died, 30, "the server's end")
            assert m.process is not None
            assert m.process.returncode == 2
            assert says in m.log.read_text().splitlines()[-1], m.log.read_text()
        m.config.write_text(config)
        m.start()
        assert until(m, "work", "1", SUCCEEDED)[1] == job
        assert m.stop() == 0


def calls(m: CondorMill) -> dict[str, float]:
    """How often the schedd was asked, by what."""
    found = re.findall(r'^eventmill_executor_total\{executor="pool:condor",what="(\w+)"\} (\S+)$', metrics(m), re.M)
    return {what: float(count) for what, count in found}


def metrics(m: CondorMill) -> str:
    return m.client.get("/metrics").text


def test_the_schedd_is_not_asked_while_jobs_run_and_end(condor: CondorPool, tmp_path: Path) -> None:
    with condor_mill(tmp_path, condor, look_s=600) as m:
        m.start()
        deploy(m, tmp_path)
        m.send("chain", {}, "before")
        until(m, "register", "before", SUCCEEDED)
        m.until(lambda: calls(m).get("query", 0) > 0, 20, "the look for orphans after a start")
        before = calls(m)
        m.send("many", {"items": [{"n": n} for n in range(200)]}, "many")
        m.until(lambda: row(m, "map-work", "many")[1] == SUCCEEDED, 120, "200 jobs")
        time.sleep(2 * AUDIT_S)
        after = calls(m)
        grown = {what for what, count in after.items() if count != before.get(what, 0)}
        assert grown == {"submit", "release"}
        assert after["submit"] - before["submit"] < 20
        assert len(row(m, "map-work", "many")[3]["items"]) == 200
        assert m.stop() == 0


# what others do


def test_a_forged_attribute_changes_nothing(m: CondorMill, tmp_path: Path) -> None:
    m.send("chain", {"seconds": 8, "n": 5}, "real")
    activation, job, _ = until(m, "work", "real", RUNNING)
    description = tmp_path / "forged.sub"
    description.write_text(
        "executable = /bin/false\ntransfer_executable = false\nshould_transfer_files = no\nrequest_memory = 16\n"
        f'request_disk = 1\ninitialdir = /tmp\nMy.EventmillActivation = "{activation}"\nMy.EventmillAttempt = 1\n'
        f'My.EventmillServer = "{m.number}"\nlog = {m.data}/jobs/condor/log/jobs.log\nMy.UserLogUseXML = 2\n'
        f"job_ad_information_attrs = EventmillActivation, EventmillServer, ExitCode\nqueue\n"
    )
    found = re.search(r"submitted to cluster (\d+)", m.condor.run("condor_submit", str(description)))
    assert found is not None
    # it fails, or is removed, since it says to be a job of ours, and is in no record
    assert until_in_history(m, f"{found[1]}.0").get("ExitCode", 1) == 1
    assert row(m, "work", "real")[1] == RUNNING
    assert until(m, "work", "real", SUCCEEDED)[1] == job


HOSTILE = [
    "", " ", "a b", "line\nend", "line\r\nend", 'say "no"', "it's", "'; touch /tmp/x; '", "`id`", "$(id)",
    "$(ClusterId)", "$(DOLLAR)", "$$(Memory)", "$$([1+1])", "$ENV(HOME)", "${HOME}", "$F(executable)",
    "$RANDOM_INTEGER(1,2)", "\x00", "a\x00b", "\x1f", "\\", "a\\", "\\\\", "#", "# x", "../../etc/passwd", "..",
    "/etc/passwd", "--help", "-", "queue", "\nqueue 10\n", "\narguments = x\n", "arguments = x", "%d%s",
    "\xe4\u20ac\U0001d11e", "\ufeff", "\u202e", "日本", "*", "~root", "a,b", "a;b", "{}", "[]", "null", "x" * 5_000,
    "<&>|",
]  # fmt: skip


def test_hostile_parameters_arrive_as_data(m: CondorMill) -> None:
    texts = [*HOSTILE, "y" * 300_000]
    m.send("echo", {"items": [{"text": text} for text in texts]}, "echo")
    m.send("show", {"items": [{"text": text} for text in texts]}, "show")
    m.until(lambda: row(m, "map-echo", "echo")[1] >= SUCCEEDED, 120, "the echoes")
    echoes = row(m, "map-echo", "echo")[3]["items"]
    assert [each["echo"] for each in echoes] == texts
    m.until(lambda: row(m, "partial-map-show", "show")[1] >= SUCCEEDED, 120, "the arguments")
    shown = row(m, "partial-map-show", "show")[3]
    for each in shown["items"]:
        assert each["argv"] == [each["text"], "end"]
    refused = {texts[each["index"]][:20]: each["error"] for each in shown["failed"]}
    assert len(shown["items"]) + len(refused) == len(texts)
    assert set(refused) <= {
        "line\nend", "line\r\nend", "$$(Memory)", "$$([1+1])", "\x00", "a\x00b", "\x1f", "\nqueue 10\n",
        "\narguments = x\n", "y" * 20, "$(DOLLAR)",
    }, refused  # fmt: skip


def test_a_large_parameter_arrives(m: CondorMill) -> None:
    text = "z" * 1_000_000 + "é\n"
    m.send("large", {"text": text}, "large")
    assert until(m, "echo", "large", SUCCEEDED)[2]["echo"] == text


# tenants


def key(m: CondorMill, namespace: str) -> str:
    """A key of another namespace; the server is not running."""
    import asyncio

    store = SqliteStore.open(m.data / "store.db")
    made: str = asyncio.run(store.transact(lambda tx: tx.keys.create(namespace, [""], 1), durable=True))
    store.close()
    return made


def invoke(m: CondorMill, key: str) -> dict[str, Any]:
    """Call the job in the name of this key; its activation when it has ended."""
    uuid, secret = key.split(":")
    path = "/api/v1/namespaces/_"
    answer = m.client.post(f"{path}/actions/lab/work", json={"n": 1}, auth=(uuid, secret))
    assert answer.status_code == 202, answer.text
    activation = answer.json()["activationId"]
    shown: dict[str, Any] = {}

    def ended() -> bool:
        shown.update(m.client.get(f"/eventmill/v1/activations/{activation}", auth=(uuid, secret)).json())
        return shown["state"] in ("succeeded", "failed")

    m.until(ended, 40, "the job to end")
    return shown


def test_without_tokens_only_one_namespace_has_jobs(condor: CondorPool, tmp_path: Path) -> None:
    with condor_mill(tmp_path, condor) as m:
        m.start()
        deploy(m, tmp_path)
        m.send("chain", {"seconds": 6}, "1")
        until(m, "work", "1", RUNNING)
        assert m.stop() == 0
        other = key(m, "other")
        m.start()
        deploy(m, tmp_path, "--key", other)
        refused = invoke(m, other)
        assert refused["state"] == "failed"
        assert "pools.condor.tokens" in refused["result"]["error"]
        until(m, "register", "1", SUCCEEDED)
        assert m.stop() == 0


def test_with_tokens_jobs_belong_to_their_namespaces_owners(condor: CondorPool, tmp_path: Path) -> None:
    tokens = ", ".join(f'{ns} = "{condor.token(owner)}"' for ns, owner in (("default", "alice"), ("other", "bob")))
    with condor_mill(tmp_path, condor, more=f"tokens = {{ {tokens} }}") as m:
        m.start()
        deploy(m, tmp_path)
        assert m.stop() == 0
        other, third = key(m, "other"), key(m, "third")
        m.start(kill_at="submitted")
        m.send("chain", {}, "1")
        m.until(m.died, 30, "its death")
        m.start()
        deploy(m, tmp_path, "--key", other)
        deploy(m, tmp_path, "--key", third)
        _, job, _ = until(m, "work", "1", SUCCEEDED)
        assert until_in_history(m, job)["Owner"] == "alice"
        shown = invoke(m, other)
        assert shown["state"] == "succeeded"
        assert until_in_history(m, shown["handle"].rpartition("#")[2])["Owner"] == "bob"
        assert "pools.condor.tokens" in invoke(m, third)["result"]["error"]
        m.until_none_is_queued()
        [orphan] = condor.history(f'EventmillServer == "{m.number}" && JobStatus == 3')
        assert orphan["Owner"] == "alice"
        assert m.stop() == 0

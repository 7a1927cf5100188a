"""A server with an HTCondor pool: a chain through it, and rules on what happens to anybody's jobs there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.htcondor.pool import CondorPool
from tests.server.mill import CONFIG, EVENTMILL, Mill, mill

pytestmark = pytest.mark.slow

FLOW = """
from eventmill import Mill, happened

mill = Mill("site")


def note(word):
    print(word, file=open("WITNESS", "a"), flush=True)


@mill.function
def ended(event):
    note(f"ended {event.subject} {event.data['Owner']} {event.data['ReturnValue']}")


@mill.job(cpus=1, memory="64MB", timeout="60s")
def work(params):
    return {"n": params["data"]["n"] + 1}


@mill.function
def register(params):
    note(f"registered {params['n']} {params['exit_code']}")


# a job of ours has an activation
mill.on(happened("org.htcondor.job.terminated", data={"EventmillActivation": [{"exists": False}]}), ended)
mill.on(happened("test.chain"), work >> register)
"""


def lines(m: Mill) -> list[str]:
    return m.witness.read_text().splitlines() if m.witness.exists() else []


def submit(pool: CondorPool, directory: Path) -> str:
    """Somebody else's job, by HTCondor's own tool; what the witness will say of it."""
    description = directory / "job.sub"
    description.write_text(
        "executable = /bin/true\ntransfer_executable = false\nshould_transfer_files = no\nrequest_memory = 16\n"
        "request_disk = 1\ninitialdir = /tmp\nqueue\n"
    )
    found = re.search(r"submitted to cluster (\d+)", pool.run("condor_submit", str(description)))
    assert found is not None
    return f"ended local#{found[1]}.0 {pool.owner} 0"


def emit(m: Mill, n: int) -> None:
    event = {"specversion": "1.0", "id": str(n), "source": "//test", "type": "test.chain", "data": {"n": n}}
    headers = {"content-type": "application/cloudevents+json"}
    assert m.client.post("/events", content=json.dumps(event), headers=headers).is_success


def metric(m: Mill, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", m.client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def deploy(m: Mill, directory: Path) -> None:
    (directory / "site_flow.py").write_text(FLOW.replace("WITNESS", str(m.witness)))
    m.deploy(directory / "site_flow.py")


def config(pool: CondorPool) -> str:
    return CONFIG.replace("[pools.local]\ncpus = 2\nmemory_mb = 1000\n", pool.settings("site"))


def test_a_rule_matches_what_happens_to_somebody_elses_job(condor: CondorPool, tmp_path: Path) -> None:
    """Also while the server is away: its position in the pool's log is in the store."""
    with mill(tmp_path, config(condor)) as m:
        m.start()
        deploy(m, tmp_path)
        first = submit(condor, tmp_path)
        m.until(lambda: first in lines(m), 30, "the end of the job")
        assert m.stop() == 0
        second = submit(condor, tmp_path)
        until_gone(condor, second)
        m.start()
        third = submit(condor, tmp_path)
        m.until(lambda: third in lines(m), 30, "the end of the last job")
        m.until_done()
        assert [line for line in lines(m) if line in (first, second, third)] == [first, second, third]


def until_gone(pool: CondorPool, job: str) -> None:
    cluster = job.split("#")[1].split(".")[0]
    end = time.monotonic() + 30
    while not pool.history(f"ClusterId == {cluster}"):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_chain_goes_through_the_pool_and_its_calls_are_counted(condor: CondorPool, tmp_path: Path) -> None:
    with mill(tmp_path, config(condor)) as m:
        m.start()
        deploy(m, tmp_path)
        emit(m, 1)
        m.until(lambda: "registered 2 0" in lines(m), 60, "the chain")
        submits = 'eventmill_executor_total{executor="pool:site",what="submit"}'
        assert metric(m, submits) == 1
        assert "ended " not in "".join(lines(m))
        checked = subprocess.run(
            [EVENTMILL, "check", "--data-dir", str(m.data)], capture_output=True, text=True, check=False
        )
        assert (checked.returncode, "pool:site" in checked.stdout) == (0, True), checked.stdout + checked.stderr


def test_a_log_that_is_not_there_ends_nothing(condor: CondorPool, tmp_path: Path) -> None:
    nowhere = condor.settings("site").replace(str(condor.event_log), f"{tmp_path}/eventmill.toml/EventLog")
    with mill(tmp_path, CONFIG + nowhere) as m:
        m.start()
        assert m.post("note", [1])
        assert m.stop() == 0


def test_a_namespace_may_have_a_name_of_its_own_in_the_pool(condor: CondorPool, tmp_path: Path) -> None:
    """Where the daemons are one account's, jobs have their owner's name and that account's rights."""
    tokens = f'[pools.site.tokens]\ndefault = "{condor.token("alice")}"\n'
    with mill(tmp_path, config(condor) + tokens) as m:
        m.start()
        deploy(m, tmp_path)
        emit(m, 1)
        m.until(lambda: "registered 2 0" in lines(m), 60, "the chain")
        [server] = m.data.glob("jobs/site/server")
        [ad] = condor.history(f'EventmillServer == "{server.read_text()}"')
        assert ad["Owner"] == "alice"
        assert {path.stat().st_uid for path in (m.data / "jobs/site").rglob("*")} == {os.getuid()}


def test_jobs_of_another_account_have_no_room_in_the_data_directory(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Where HTCondor acts as the job's owner, who can't get there: it says so, and nothing runs."""
    with (
        CondorPool(suite=pytestconfig.getoption("condor"), accounts=True) as pool,
        mill(tmp_path, config(pool) + f'[pools.site.tokens]\ndefault = "{pool.token("nobody")}"\n') as m,
    ):
        m.start()
        deploy(m, tmp_path)
        emit(m, 1)
        m.until(lambda: m.query("SELECT 1 FROM activations WHERE state=6"), 60, "the job to be held")
        [letter] = m.client.get("/eventmill/v1/dead-letters").json()
        assert "the job was put on hold: Cannot access initial working directory " in letter["reason"]
        ads = pool.queue() + pool.history()
        assert {(ad["Owner"], ad["NumJobStarts"]) for ad in ads} == {("nobody", 0)}


def test_jobs_of_another_account_have_rooms_of_their_own(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    with tempfile.TemporaryDirectory() as spool, CondorPool(
        suite=pytestconfig.getoption("condor"), accounts=True
    ) as pool:  # fmt: skip
        Path(spool).chmod(0o711)
        settings = config(pool).replace("[pools.site]\n", f'[pools.site]\nspool_dir = "{spool}"\n')
        tokens = f'[pools.site.tokens]\ndefault = "{pool.token("nobody")}"\n'
        with mill(tmp_path, settings + tokens) as m:
            m.start()
            deploy(m, tmp_path)
            emit(m, 1)
            m.until(lambda: "registered 2 0" in lines(m), 60, "the chain")
            ads = pool.queue() + pool.history()
            assert {(ad["Owner"], ad["NumJobStarts"]) for ad in ads} == {("nobody", 1)}
            owners = {path.stat().st_uid for path in (m.data / "results").rglob("*")}
            assert owners <= {os.getuid()}
            m.until(lambda: not list(Path(spool, "rooms").iterdir()), 10, "the room to go")

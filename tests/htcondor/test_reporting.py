"""Jobs that report their own ends: what is made of them, when they are looked for, and on a real pool whose log the
server does not read."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventmill.entities.submit import parse
from eventmill.errors import InvalidDescription
from eventmill.executors.htcondor.description import Sources
from eventmill.executors.htcondor.reporting import FIRST_LOOK_S, LAST_WAIT_S, ORDER_FILE, Expected, Reporting, wrapped
from eventmill.executors.jobs import END_PATH, JOB_END
from eventmill.signing import Signer, new_key
from tests.htcondor.mill import SERVER, CondorMill, condor_mill
from tests.htcondor.pool import CondorPool
from tests.server.mill import EVENTMILL

PROGRAM, ROOM = Path("/place/code/d/eventmill-job"), Path("/place/rooms/a.1")


def bound(text: str) -> Any:
    return parse(f"{text}\nqueue\n").bind({}, roots=["/data"])


def test_a_job_s_own_executable_becomes_an_input_and_the_first_argument() -> None:
    job = bound("executable = bin/run.sh\narguments = a 'b c'\ntransfer_input_files = table")
    files = Sources(executable="/place/code/c/bin/run.sh", input="/in", inputs=("/place/code/c/table",))
    described, sources = wrapped(job, files, program=PROGRAM, room=ROOM)
    assert described.arguments == ("./run.sh", *job.arguments)
    assert described.transfer_executable
    assert sources == Sources(
        executable=str(PROGRAM), input="/in",
        inputs=("/place/code/c/table", str(ROOM / ORDER_FILE), "/place/code/c/bin/run.sh"),
    )  # fmt: skip


def test_a_program_of_the_execute_node_is_run_where_it_is() -> None:
    job = bound("executable = /usr/bin/sort\ntransfer_executable = false")
    files = Sources(executable="/usr/bin/sort", input=None, inputs=())
    described, sources = wrapped(job, files, program=PROGRAM, room=ROOM)
    assert described.arguments == ("/usr/bin/sort",)
    assert described.transfer_executable
    assert sources.inputs == (str(ROOM / ORDER_FILE),)


@pytest.mark.parametrize("name", ["run.sh", ORDER_FILE])
def test_two_files_can_not_have_one_place(name: str) -> None:
    job = bound("executable = bin/run.sh\ntransfer_input_files = x")
    files = Sources(executable=f"/place/code/c/bin/{name}", input=None, inputs=("/data/run.sh",))
    with pytest.raises(InvalidDescription, match="is the name of the job's executable, too"):
        wrapped(job, files, program=PROGRAM, room=ROOM)


def test_an_order_is_for_one_attempt() -> None:
    signer = Signer(new_key())
    order = json.loads(Reporting("https://mill.example.org/below/", signer).order("a1", 2))
    assert order["url"] == "https://mill.example.org/below/eventmill/v1/job-ends/a1/2"
    assert signer.check(order["token"], JOB_END, "a1", "2")
    assert not signer.check(order["token"], JOB_END, "a1", "1")


def looks(expected: Expected, now: float) -> Iterator[float]:
    """When it is looked for, from a moment on, if it stays where it is."""
    while (wait_s := expected.next_s(now)) is not None:
        now += wait_s
        assert expected.due(now) == ["1.0"]
        yield now


def test_waits_double_and_end() -> None:
    expected = Expected()
    expected.add("1.0", 0.0)
    assert expected.due(0.0) == []
    times = list(looks(expected, 0.0))
    assert times[:3] == pytest.approx([FIRST_LOOK_S, 3 * FIRST_LOOK_S, 7 * FIRST_LOOK_S])
    assert len(times) == 13
    assert times[-1] <= LAST_WAIT_S * 2


def test_who_says_it_again_and_again_does_not_make_us_ask_again_and_again() -> None:
    expected = Expected()
    asked, now = 0, 0.0
    while now < 100.0:
        expected.add("1.0", now)
        asked += len(expected.due(now))
        now += 0.01
    assert asked < 200
    expected.discard("1.0")
    assert expected.next_s(now) is None


# on a real pool

FLOW = """
import os
import time

from eventmill import Mill, happened

mill = Mill("far")


@mill.function
def look(event):
    return dict(event.data)


@mill.job(memory="16MB", submit={"request_disk": "1MB"}, timeout="5m", retries=0)
def work(params):
    time.sleep(params.get("seconds", 0))
    with open("left.txt", "w") as file:
        file.write("left")
    return {"at": time.time(), "files": os.listdir("."), "environment": dict(os.environ)}


@mill.function
def register(result):
    return {"after_s": time.time() - result["at"], **result}


show = mill.job("show.sub", retries=0)
mill.on(happened("witness.chain"), look >> work >> register)
mill.on(happened("witness.show"), look >> mill.map(show, partial=True))
"""
SHOW = """\
executable = show.sh
arguments = "'$(text)' end"
input = typed
transfer_input_files = typed
transfer_output_files = out/one
output = printed
request_memory = 16
request_disk = 1000
queue
"""
SHOW_PROGRAM = """\
#!/bin/sh
mkdir out && cat > out/one && printf '<%s>' "$@" && echo '{"error": "on purpose"}' > "$EVENTMILL_RESULT" && exit 3
"""
IMPATIENT = """
from eventmill.executors.htcondor import preparing
text = preparing.wrapper_text()
preparing.wrapper_text = lambda: text.replace(b"PATIENCE_S = 30.0", b"PATIENCE_S = 1.0")
"""


def deploy(m: CondorMill, directory: Path) -> None:
    files = {"far_flow.py": FLOW, "show.sub": SHOW, "show.sh": SHOW_PROGRAM, "typed": "typed"}
    for name, text in files.items():
        (directory / name).write_text(text)
    command = [EVENTMILL, "deploy", str(directory / "far_flow.py"), "--data-dir", str(m.data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def m(condor: CondorPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CondorMill]:
    """A server that hears of ends by reports alone."""
    directory, port = tmp_path_factory.mktemp("far"), free_port()
    (directory / "shared").mkdir()
    (directory / "data").mkdir()
    (directory / "data/jobs").symlink_to(directory / "shared")  # of which the access point knows nothing
    with condor_mill(directory, condor, more=f'report_url = "http://127.0.0.1:{port}"', look_s=1000) as m:
        m.config.write_text(m.config.read_text().replace("port = 0", f"port = {port}"))
        m.start()
        deploy(m, directory)
        yield m
        assert m.stop() == 0


def one(m: CondorMill, action: str, id: str) -> tuple[str, dict[str, Any]]:
    """The activation of this action in what the event has caused, when it has ended; its result."""
    sql = (
        "SELECT DISTINCT lower(hex(s.id)), s.result FROM activations s JOIN activations c ON c.cause_id = :id AND"
        f" (s.parent = c.id OR s.parent IN (SELECT id FROM activations WHERE parent = c.id))"
        f" WHERE s.action = 'default/far/{action}' AND s.state >= 5"
    ).replace(":id", f"'{id}'")
    m.until(lambda: m.query(sql), 60, f"{action} of {id}")
    [(activation, result)] = m.query(sql)
    return activation, json.loads(result)


def token(m: CondorMill, activation: str) -> str:
    return Signer(bytes.fromhex((m.data / "signing-key").read_text())).sign(JOB_END, activation, "1")


def metric(m: CondorMill, what: str) -> float:
    name = f'eventmill_executor_total{{executor="pool:condor",what="{what}"}}'
    found = re.search(rf"^{re.escape(name)} (\S+)$", m.client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.slow
def test_an_end_is_noticed_by_its_report(m: CondorMill) -> None:
    """Long before the audit; and the job has seen nothing of it."""
    m.send("chain", {}, id="quick")
    _, result = one(m, "register", "quick")
    assert result["after_s"] < 5
    assert ORDER_FILE not in result["files"]
    activation, _ = one(m, "work", "quick")
    secret = token(m, activation)
    assert secret not in json.dumps(result["environment"])
    ads = m.condor.history(f'EventmillActivation == "{activation}"')
    assert [ad["NumJobStarts"] for ad in ads] == [1]
    assert secret not in json.dumps(ads)
    assert secret not in m.log.read_text()
    assert [path.name for path in (m.data / "results/default" / activation).iterdir()] == ["left.txt"]
    assert not (m.data / "jobs/condor/log/jobs.log").exists()
    assert metric(m, "missed_ends") == 0


@pytest.mark.slow
def test_a_job_that_runs_is_not_ended_by_who_says_so(m: CondorMill) -> None:
    """Also by its own token, which counts as long as it runs."""
    m.send("chain", {"seconds": 3}, id="slow")
    sql = "SELECT lower(hex(id)) FROM activations WHERE action='default/far/work' AND state < 5 AND handle IS NOT NULL"
    m.until(lambda: m.query(sql), 30, "the job to be recorded")
    [(activation,)] = m.query(sql)
    url = str(m.client.base_url).rstrip("/") + END_PATH.format(activation=activation, attempt=1)

    def said(secret: str) -> int:
        return httpx.post(url, headers={"authorization": f"Bearer {secret}"}).status_code

    assert said("0" * 64) == 401
    assert [said(token(m, activation)) for _ in range(3)] == [202] * 3
    [ad] = m.condor.queue(f'EventmillActivation == "{activation}"')
    assert token(m, activation) not in json.dumps(ad)
    one(m, "register", "slow")
    ads = m.condor.history(f'EventmillActivation == "{activation}"')
    assert ads[0]["RemoteWallClockTime"] >= 3
    assert said(token(m, activation)) == 401
    finishes = m.query(f"SELECT finishes FROM activations WHERE lower(hex(id)) = '{activation}'")
    assert finishes == [(1,)]


@pytest.mark.slow
def test_any_executable_is_wrapped_and_fails_as_it_did(m: CondorMill) -> None:
    """Arguments, stdin, stdout, output files in directories, and the exit code."""
    m.send("show", {"items": [{"text": "a  b"}]}, id="show")
    activation, result = one(m, "show", "show")
    assert result["error"] == "on purpose (the job ended with exit code 3)"
    [ad] = m.condor.history(f'EventmillActivation == "{activation}"')
    assert (ad["ExitCode"], ad["ExitBySignal"]) == (3, False)
    assert ad["Cmd"].endswith("/eventmill-job")
    assert ad["Cmd"].startswith(str(m.data.parent / "shared"))
    results = m.data / "results/default" / activation
    assert (results / "printed").read_text() == "<a  b><end>"
    assert (results / "one").read_text() == "typed"


@pytest.mark.slow
def test_a_job_that_is_cancelled_is_seen_to_go(m: CondorMill) -> None:
    """Its wrapper is ended before it can say anything."""
    m.send("chain", {"seconds": 300}, id="long")
    sql = "SELECT lower(hex(id)), handle FROM activations WHERE action='default/far/work' AND state < 5"
    m.until(lambda: any(handle for _, handle in m.query(sql)), 30, "the job to be recorded")
    [(activation, _)] = m.query(sql)
    m.until(lambda: [ad for ad in m.queued() if ad["JobStatus"] == 2], 30, "it to run")
    assert m.client.post(f"/eventmill/v1/activations/{activation}/cancel").is_success
    assert one(m, "work", "long")[1] == {"error": "cancelled"}
    assert metric(m, "missed_ends") == 0


@pytest.mark.slow
def test_a_job_of_another_account_reports_its_end(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Its room, with the token in it, is that account's; the wrapper is everybody's to run."""
    suite, port = pytestconfig.getoption("condor"), free_port()
    with tempfile.TemporaryDirectory() as spool, CondorPool(suite=suite, accounts=True) as pool:
        Path(spool).chmod(0o711)
        more = f'report_url = "http://127.0.0.1:{port}"\nspool_dir = "{spool}"\n'
        more += f'tokens = {{ default = "{pool.token("nobody")}" }}\n'
        with condor_mill(tmp_path, pool, more=more, look_s=1000) as m:
            m.config.write_text(m.config.read_text().replace("port = 0", f"port = {port}"))
            m.start()
            deploy(m, tmp_path)
            m.send("chain", {}, id="theirs")
            _, result = one(m, "register", "theirs")
            assert result["after_s"] < 5
            assert [ad["Owner"] for ad in pool.history()] == ["nobody"]
            assert metric(m, "missed_ends") == 0


@pytest.mark.slow
def test_an_end_whose_report_does_not_get_through_is_found_by_the_audit(condor: CondorPool, tmp_path: Path) -> None:
    with condor_mill(tmp_path, condor, more=f'report_url = "http://127.0.0.1:{free_port()}"', look_s=2) as m:
        m.program = (*m.program[:-1], SERVER.partition("\n")[0] + IMPATIENT + m.program[-1])
        m.start()
        deploy(m, tmp_path)
        m.send("chain", {}, id="unheard")
        one(m, "register", "unheard")
        activation, _ = one(m, "work", "unheard")
        logs = m.client.get(f"/api/v1/namespaces/_/activations/{activation}/logs").json()["logs"]
        assert "the end of this job could not be reported" in "".join(logs)
        assert token(m, activation) not in "".join(logs)
        assert metric(m, "missed_ends") == 1
        assert m.stop() == 0

"""docs/htcondor.md: its examples are configurations, of ours and of HTCondor's, and what it shows works."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from eventmill.config import load
from eventmill.entities.submit import NEVER
from eventmill.executors.htcondor.description import INFORMATION, allowed_commands, read_defaults
from tests.htcondor.pool import CondorPool
from tests.server.mill import CONFIG, EVENTMILL, Mill, mill

PAGE = (Path(__file__).parents[2] / "docs/htcondor.md").read_text()
OURS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
THEIRS = re.findall(r"```condor\n(.*?)```", PAGE, re.DOTALL)
[FLOW] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

SLEEP = """
executable = /bin/sleep
arguments = 300
transfer_executable = false
should_transfer_files = no
initialdir = /tmp
request_memory = 16
request_disk = 1
"""


@pytest.mark.parametrize("number", range(len(OURS)))
def test_an_example_is_a_configuration(tmp_path: Path, number: int) -> None:
    (tmp_path / "mill.toml").write_text(OURS[number])
    pool = load(tmp_path / "mill.toml").pools["site"]
    read_defaults(pool.defaults)
    for namespace in ("*", "beamline", "other"):
        assert not allowed_commands(pool.commands, namespace) & NEVER - {"executable"} - allowed_commands({}, "")


def test_there_are_some() -> None:
    assert (len(OURS), len(THEIRS)) == (3, 3)


def test_the_attributes_are_those_that_are_used() -> None:
    [line] = re.findall(r"^EVENT_LOG_JOB_AD_INFORMATION_ATTRS = (.*)$", THEIRS[0], re.MULTILINE)
    assert tuple(line.split(", ")) == INFORMATION


@pytest.mark.slow
def test_commands_and_their_options_exist() -> None:
    commands = re.findall(r"^    eventmill ([a-z]+)((?: [^#\n]*)?)", PAGE, re.MULTILINE)
    assert {command for command, _ in commands} == {"check", "serve"}
    for command, rest in set(commands):
        known = subprocess.run([EVENTMILL, command, "--help"], capture_output=True, text=True, check=True).stdout
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in known, f"{command} {option}"


def submit(pool: CondorPool, directory: Path, *more: str) -> str:
    """Somebody else's job; its number."""
    (directory / "sleep.sub").write_text("\n".join([SLEEP, *more, "queue", ""]))
    found = re.search(r"submitted to cluster (\d+)", pool.run("condor_submit", str(directory / "sleep.sub")))
    assert found is not None
    return f"{found[1]}.0"


@pytest.mark.slow
def test_a_pool_as_the_page_configures_it(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """The smallest configuration of ours goes through, the rule is for jobs that are held, and for none else."""
    theirs = "".join(THEIRS).replace("/var/log/condor", str(tmp_path))
    with CondorPool(suite=pytestconfig.getoption("condor"), extra=theirs.splitlines()) as pool:
        known = pool.run("condor_config_val", "-dump")
        for name, value in re.findall(r"^([A-Z_]+) = (.*)$", theirs, re.MULTILINE):
            assert re.search(rf"^{name} = {re.escape(value)}$", known, re.MULTILINE), name
        ours = CONFIG.replace("[pools.local]\ncpus = 2\nmemory_mb = 1000\n", OURS[0])
        ours = ours.replace(
            'htcondor"\n', f'htcondor"\ncondor_config = "{pool.config}"\nevent_log = "{tmp_path}/EventLog"\n'
        )
        with mill(tmp_path, ours) as m:
            checked = subprocess.run([EVENTMILL, "check", "--config", m.config], capture_output=True, text=True)
            assert checked.returncode == 0, checked.stdout
            assert "bindings found" in checked.stdout
            m.start()
            (tmp_path / "watch_flow.py").write_text(FLOW)
            m.deploy(tmp_path / "watch_flow.py")
            submit(pool, tmp_path, "hold = true")
            job = submit(pool, tmp_path)
            end = time.monotonic() + 30
            while not pool.queue(f"ClusterId == {job.split('.')[0]} && JobStatus == 2"):
                assert time.monotonic() < end
                time.sleep(0.2)
            pool.run("condor_hold", "-reason", "by hand", job)
            m.until(lambda: seen(m), 30, "the rule")
            m.until_done()
            [subject] = seen(m)
            assert subject == f"local#{job}"
            pool.run("condor_rm", "-all")


def seen(m: Mill) -> list[str]:
    """Subjects of the events that the rule has matched."""
    answer = m.client.get("/api/v1/namespaces/_/activations", params={"docs": "true"}).json()
    return [
        line.split("stdout: ")[1].split()[0] for each in answer for line in each.get("logs", []) if "by hand" in line
    ]

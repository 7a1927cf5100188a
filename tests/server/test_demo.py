"""The demo is the first thing that a newcomer runs."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.htcondor.pool import CondorPool
from tests.kafka.broker import Broker

DEMO = Path(__file__).parents[2] / "examples" / "detector" / "demo.py"


@pytest.mark.slow
def test_the_demo_ends_by_itself_and_leaves_its_results(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO), "--runs", "8", "--rate", "20", "--directory", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 files" in done.stdout
    assert "0 dead letters" in done.stdout
    assert max(map(len, done.stdout.replace(str(tmp_path), "").splitlines())) <= 80
    results = tmp_path / "demo" / "results"
    with closing(sqlite3.connect(results / "catalogue.sqlite")) as catalogue:
        runs = catalogue.execute("SELECT run, image FROM runs").fetchall()
    assert runs
    assert all((results / image).read_bytes().startswith(b"\x89PNG") for _, image in runs)


@pytest.mark.slow
def test_the_same_demo_on_kafka(tmp_path: Path, broker: Broker) -> None:
    """The flow file is the same; what tells of the files is dCache's records, and nobody watches the directory."""
    topic = broker.create_topic(partitions=2)
    base = DEMO.with_name("kafka.toml").read_text()
    base = base.replace("127.0.0.1:9092", broker.bootstrap).replace('"billing"', f'"{topic}"')
    (tmp_path / "kafka.toml").write_text(base)
    command = [sys.executable, str(DEMO), "--runs", "8", "--rate", "20", "--directory", str(tmp_path / "demo")]
    command += ["--config", str(tmp_path / "kafka.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "demo/server.log").read_text()
    assert "8 files, 8 events, " in done.stdout
    assert "0 dead letters" in done.stdout
    assert "record → first line: p50 " in done.stdout
    assert max(map(len, done.stdout.replace(str(tmp_path), "").splitlines())) <= 80
    assert sum(broker.end_offsets(topic).values()) == 1 + 2 * 8
    with closing(sqlite3.connect(tmp_path / "demo/results/catalogue.sqlite")) as catalogue:
        assert catalogue.execute("SELECT count(*) FROM runs").fetchone()[0] > 0


@pytest.mark.slow
def test_the_same_demo_on_kafka_with_htcondor(tmp_path: Path, broker: Broker, condor: CondorPool) -> None:
    """dCache's records → function → HTCondor job → function, and HTCondor's own history has the jobs."""
    topic = broker.create_topic(partitions=2)
    base = DEMO.with_name("kafka.toml").read_text()
    base = base.replace("127.0.0.1:9092", broker.bootstrap).replace('"billing"', f'"{topic}"')
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    base += f'\n{condor.settings("pool")}defaults.environment = "PATH={path}"\n'
    (tmp_path / "site.toml").write_text(base)
    command = [sys.executable, str(DEMO), "--runs", "6", "--rate", "20", "--directory", str(tmp_path / "demo")]
    command += ["--config", str(tmp_path / "site.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "demo/server.log").read_text()
    assert "6 files, 6 events, " in done.stdout
    found = re.search(r"condor_history has (\d+) of (\d+) jobs, run on localhost", done.stdout)
    assert found is not None, done.stdout
    assert found[1] == found[2] != "0"
    ads = condor.history('EventmillAction == "default/detector/reduce"')
    assert {(ad["JobUniverse"], ad["ShouldTransferFiles"], ad["ExitCode"]) for ad in ads} == {(5, "YES", 0)}
    assert len(ads) >= int(found[1])
    assert max(map(len, done.stdout.replace(str(tmp_path), "").splitlines())) <= 80
    with closing(sqlite3.connect(tmp_path / "demo/results/catalogue.sqlite")) as catalogue:
        assert catalogue.execute("SELECT count(*) FROM runs").fetchone()[0] == int(found[1])


@pytest.mark.slow
def test_an_interrupt_ends_the_demo_quietly(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO), "--rate", "20", "--runs", "1000", "--directory", str(tmp_path / "demo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not any((tmp_path / "demo" / "raw").glob("run_*")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


@pytest.mark.slow
def test_sigterm_ends_the_server_of_a_demo_that_serves(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO), "--runs", "2", "--serve", "--directory", str(tmp_path / "demo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("still serving" in line for line in process.stdout)
        url = (tmp_path / "demo/.eventmill/address").read_text().strip()
        assert httpx.get(f"{url}/healthz").status_code == 200
        process.terminate()
        assert process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def test_a_demo_without_an_openwhisk_says_what_it_wants(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO), "--openwhisk", "--directory", str(tmp_path / "demo")]
    environment = {**os.environ, "EVENTMILL_OPENWHISK": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "EVENTMILL_OPENWHISK has to name a directory with setup.sh and run.sh" in done.stderr

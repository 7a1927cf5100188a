"""A server's beginning and end: what stops it from starting is said, and what it leaves is found again."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.server.mill import CONFIG, EVENTMILL, mill

pytestmark = pytest.mark.slow


def refused(tmp_path: Path, config: str, data: Path) -> str:
    """What a server says that can't start; it ends with 1 (not possible here) or 2 (wrong input)."""
    file = tmp_path / "other.toml"
    file.write_text(config)
    command = [EVENTMILL, "serve", "--config", str(file), "--data-dir", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_two_servers_do_not_share_a_data_directory(tmp_path: Path) -> None:
    with mill(tmp_path) as m:
        m.start()
        assert f"another server uses the data directory {m.data}" in refused(tmp_path, CONFIG, m.data)
        assert m.client.get("/healthz").status_code == 200


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(tmp_path, f"[server]\nport = {port}\n", tmp_path / "data")
    assert f"can't listen on 127.0.0.1:{port}: Address already in use; choose another with --port" in said


def test_a_module_that_can_not_be_preloaded(tmp_path: Path) -> None:
    assert "no_such_module" in refused(
        tmp_path, "[server]\nport = 0\n[functions]\npreload = ['no_such_module']\n", tmp_path / "d"
    )


def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "can't use the data directory" in refused(tmp_path, "[server]\nport = 0\n", tmp_path / "file")


def test_the_data_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    with mill(tmp_path) as m:
        m.start()
        assert stat.S_IMODE(m.data.stat().st_mode) == 0o700
        assert stat.S_IMODE((m.data / "key").stat().st_mode) == 0o600
        secret = (m.data / "key").read_text().strip().split(":")[1]
        m.deploy()
        m.post("note", range(3))
        m.until_done()
        m.stop()
        assert secret not in m.log.read_text()
        assert secret.encode() not in (m.data / "store.db").read_bytes()


def test_sigterm_under_load_loses_nothing(tmp_path: Path) -> None:
    with mill(tmp_path) as m:
        m.start()
        m.deploy()
        for first in range(0, 400, 20):
            m.post("note", range(first, first + 20))
        m.post("chain", range(6))
        assert m.stop() == 0
        m.start()
        m.post("note", range(400, 410))
        m.until_done()
        assert m.stop() == 0
        m.judge()
        assert max(m.testimony()["note"].values()) == 1, "a clean end interrupts nothing that could be waited for"


def test_logs_in_json_have_ids(tmp_path: Path) -> None:
    with mill(tmp_path, CONFIG.replace("[server]", "[server]\nlog_format = 'json'")) as m:
        m.start()
        m.deploy()
        m.stop()
        lines = [json.loads(line) for line in m.log.read_text().splitlines()]
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    assert all(line["transaction"] for line in lines if line["logger"] == "eventmill.access")


def test_ready_and_metrics(tmp_path: Path) -> None:
    with mill(tmp_path) as m:
        m.start()
        assert m.client.get("/readyz").json()["ready"] is True
        m.deploy()
        m.post("note", range(5))
        m.until_done()
        text = m.client.get("/metrics").text
        assert "eventmill" in text
        assert m.client.get("/metrics", auth=("x", "y")).status_code == 401

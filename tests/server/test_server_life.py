"""A server's beginning and end: what stops it from starting is said, and what it leaves is found again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from eventmill.errors import InvalidConfig
from eventmill.server import _Schedules, _started
from eventmill.store import SqliteStore
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


def test_what_has_started_is_stopped_when_another_part_can_not_start() -> None:
    happened: list[str] = []

    class Part:
        """Of an executor, a log or an engine what is used here."""

        def __init__(self, name: str, *, fails: bool = False) -> None:
            self.name, self.fails = name, fails

        async def start(self) -> None:
            happened.append(f"+{self.name}")
            if self.fails:
                raise InvalidConfig("can't")

        async def drain(self) -> None:
            happened.append("drained")

        async def stop(self) -> None:
            happened.append(f"-{self.name}")

    async def starting(*failing: str) -> list[str]:
        happened.clear()
        log, a, b, engine = (Part(name, fails=name in failing) for name in ("log", "a", "b", "engine"))
        with contextlib.suppress(InvalidConfig):
            async with _started(cast("Any", log), cast("Any", {"a": a, "b": b}), cast("Any", engine), 1.0):
                happened.append("served")
        return happened

    async def main() -> None:
        assert await starting("b") == ["+log", "+a", "+b", "-a", "-log"]
        assert await starting("engine") == ["+log", "+a", "+b", "+engine", "-b", "-a", "-log"]
        whole = ["+log", "+a", "+b", "+engine", "served", "drained", "-b", "-a", "-engine", "-log"]
        assert await starting() == whole

    asyncio.run(main())


def test_a_stored_schedule_that_can_not_be_used_stops_nothing(tmp_path: Path) -> None:
    """As an earlier version let them in."""
    never = {"cron": "0 0 29 2 *", "start": "9998-12-31T00:00:00Z"}
    schedules = {"never": never, "odd": 5, "good": {"every_s": 1}}
    with mill(tmp_path) as m:
        m.start()
        answer = m.client.put("/api/v1/namespaces/_/triggers/never", json=_trigger(never))
        assert (answer.status_code, "never due" in answer.text) == (400, True)
        for name in schedules:
            m.client.put(f"/api/v1/namespaces/_/triggers/{name}", json=_trigger({"every_s": 3600})).raise_for_status()
        m.stop()
        with closing(sqlite3.connect(m.data / "store.db")) as database, database:
            for name, schedule in schedules.items():
                [(document,)] = database.execute("SELECT document FROM entities WHERE name=?", (name,))
                changed = {**json.loads(document), **_trigger(schedule)}
                database.execute("UPDATE entities SET document=? WHERE name=?", (json.dumps(changed).encode(), name))
        m.start()
        tick = "SELECT count(*) FROM log WHERE CAST(value AS TEXT) LIKE '%schedule.tick%default/good%'"
        m.until(lambda: m.query(tick) != [(0,)], 30, "a tick")
        # put as it is known, in place of the ones that can't be used
        m.client.put(
            "/api/v1/namespaces/_/triggers/odd?overwrite=true", json=_trigger({"every_s": 1})
        ).raise_for_status()
        m.until(lambda: m.query(tick.replace("good", "odd")) != [(0,)], 30, "a tick of the other")
        assert "default/never" in m.log.read_text()
        assert m.stop() == 0


def _trigger(schedule: object) -> dict[str, object]:
    return {"annotations": [{"key": "schedule", "value": schedule}]}


def test_node_is_asked_beside_the_loop(tmp_path: Path) -> None:
    """It takes up to half a minute on a busy machine; what is known then is not asked for again."""
    done = subprocess.run(
        [sys.executable, "-c", _ASKED, str(tmp_path / "data")], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["beside"]


_ASKED = """
import asyncio, functools, os, signal, sys, threading
from eventmill.config import load
from eventmill.executors.pool import node
from eventmill.server import serve

def find():
    print("loop" if threading.current_thread() is threading.main_thread() else "beside")

node.find = functools.cache(find)

async def ready(running):
    os.kill(os.getpid(), signal.SIGTERM)

asyncio.run(serve(load(server={"data_dir": sys.argv[1], "port": 0}), ready=ready))
"""


def test_schedules_follow_their_triggers(tmp_path: Path) -> None:
    async def main() -> None:
        store, known = SqliteStore.open(tmp_path / "store.db"), _Schedules()

        async def put(name: str, collection: str = "triggers", **schedule: float) -> bool:
            """Whether that changes what is known."""
            document = {"annotations": [{"key": "schedule", "value": schedule}] if schedule else [], "parameters": []}
            await store.transact(lambda tx: tx.entities.put(collection, "ns", name, f"uid-{name}", document, 0))
            return await store.read(known.catch_up)

        assert await put("a", every_s=1)
        assert await put("b", every_s=2)
        assert not await put("p", "packages")
        assert not await put("plain")
        assert not await put("b", every_s=2)
        assert await put("b", every_s=3)
        assert {name: schedule.every_s for name, schedule in known.found.items()} == {"ns/a": 1, "ns/b": 3}
        await store.transact(lambda tx: tx.entities.delete("ns", "a"))
        assert await put("a", "packages")
        assert await put("b")
        assert known.found == {}
        store.close()

    asyncio.run(main())

"""Jobs, and a server that can be killed, for the tests of the local queue.

Run as a program (`python -m tests.executors.local_jobs STATE PLAN`) it is a server: it starts a queue in STATE, does
what PLAN (JSON) says, prints every report as a line, and can kill itself with SIGKILL at a named point.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from eventmill.entities import Action, Limits
from eventmill.executors import Accepted, Attempt, Finished, Recorded, Report
from eventmill.executors.local import LocalQueue
from eventmill.executors.local.spool import Spool
from eventmill.executors.local.starting import Starter

R = TypeVar("R", bound=Report)


def job_code(description: str, files: Mapping[str, str | bytes] | None = None) -> bytes:
    """A job's code as it is uploaded."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("job.sub", description)
        for name, content in (files or {}).items():
            archive.writestr(name, content)
    return base64.b64encode(buffer.getvalue())


def script(text: str, description: str = "", **files: str) -> bytes:
    """A job that is a shell script."""
    named = {name.replace("__", "."): content for name, content in files.items()}
    return job_code(f"executable = run.sh\n{description}\nqueue\n", {"run.sh": "#!/bin/sh\n" + text, **named})


WITNESS = """
import json, os, sys
with open(json.load(open("params.json"))["witness"], "a") as file:
    file.write(os.environ["EVENTMILL_ACTIVATION"] + "\\n")
    file.flush()
    os.fsync(file.fileno())
"""
"""What each job that must run exactly once does first."""

CODES: dict[str, bytes] = {
    "witness": job_code(
        "executable = run.py\nqueue\n",
        {"run.py": "#!/usr/bin/env python3\n" + WITNESS + 'open("result.json", "w").write("{}")\n'},
    ),
    "gate": job_code(
        "executable = run.py\nqueue\n",
        {
            "run.py": "#!/usr/bin/env python3\n" + WITNESS
            + "open(json.load(open('params.json'))['gate'], 'rb', 0).read(1)\n"
            + "open('result.json', 'w').write('{\"opened\": true}')\n"
        },
    ),
}  # fmt: skip
"""By name: `witness` signs and ends; `gate` signs and waits until there is a byte in its FIFO."""


def attempt(
    activation: int | str, code: str, params: Mapping[str, Any] | None = None, *, number: int = 1, **limits: int
) -> Attempt:
    """An attempt of an action whose code has this name."""
    id = activation if isinstance(activation, str) else f"{activation:032x}"
    action = Action(
        namespace="lab", name=code, version="0.0.1", revision=1, kind="job", code=code,
        limits=Limits(**{"timeout_ms": 60_000, "memory_mb": 100, **limits}),
    )  # fmt: skip
    return Attempt(activation=id, number=number, action=action, params=json.dumps(params or {}).encode())


def make_queue(state: Path, codes: Mapping[str, bytes] = CODES, **options: Any) -> LocalQueue:
    defaults: dict[str, Any] = {
        "name": "local", "cpus": 2, "memory_mb": 1000, "environment": {}, "result_bytes_max": 1 << 20,
        "archive_files_max": 100, "archive_bytes_max": 10 << 20,
    }  # fmt: skip
    return LocalQueue(codes.__getitem__, state_dir=state, **{**defaults, **options})


class Reader:
    """Collects a queue's reports, releases what is accepted, and waits for what is wanted."""

    def __init__(self, queue: LocalQueue, release: bool = True) -> None:
        self.queue = queue
        self.release = release
        self.seen: list[Report] = []
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        async for batch in self.queue.reports():
            if self.release:
                self.queue.release([report.handle for report in batch if isinstance(report, Accepted)])
            async with self._changed:
                self.seen += batch
                self._changed.notify_all()

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(wanted)

    async def finished(self, count: int = 1) -> list[Finished]:
        await self.until(lambda: len(self.of(Finished)) >= count)
        return self.of(Finished)

    def of(self, kind: type[R]) -> list[R]:
        return [report for report in self.seen if isinstance(report, kind)]


@asynccontextmanager
async def serving(
    state: Path, codes: Mapping[str, bytes] = CODES, *, release: bool = True, **options: Any
) -> AsyncIterator[Reader]:
    """A started queue with its reader."""
    queue = make_queue(state, codes, **options)
    await queue.start()
    reader = Reader(queue, release)
    running = asyncio.create_task(reader.run())
    try:
        yield reader
    finally:
        await queue.stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# ---- the server that is killed


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at(owner: Any, name: str, *, before: bool) -> None:
    """Replace a method by one that does not survive its call."""
    method = getattr(owner, name)

    def deadly(*arguments: Any, **named: Any) -> Any:
        if before:
            _die()
        result = method(*arguments, **named)
        _die()
        return result

    setattr(owner, name, deadly)


POINTS: dict[str, tuple[Any, str, bool]] = {
    "numbered": (Spool, "number", False),
    "before accepting": (Spool, "accept", True),
    "accepted": (Spool, "accept", False),
    "before release": (Spool, "release", True),
    "released": (Spool, "release", False),
    "before start": (Starter, "start", True),
    "furnished": (Starter, "_furnish", False),
    "before spawning": (Starter, "_run", False),
    "started": (Starter, "start", False),
    "before clearing": (Spool, "clear", True),
    "cleared": (Spool, "clear", False),
}


async def _serve(state: Path, plan: dict[str, Any]) -> None:
    """Behave as the engine does: record a handle before its release, an end before it is forgotten; after a restart
    release what is recorded, submit again what is not, cancel orphans. The record is what is printed.

    `plan`: `work` (id → [code, params]), `recorded` (id → handle), `ended` (ids), `die` (a point), `die_on` (a report).
    """
    if point := plan.get("die"):
        owner, name, before = POINTS[point]
        _kill_at(owner, name, before=before)
    recorded, ended = dict(plan.get("recorded", {})), set(plan.get("ended", ()))
    async with serving(state, release=False) as reader:
        queue = reader.queue
        found = await queue.find([Recorded(activation=id) for id in plan["work"] if id not in ended])
        for id, (code, params) in plan["work"].items():
            if id in ended:
                continue
            if id in found and found[id].handle == recorded.get(id):
                queue.release([recorded[id]])
            else:
                assert id not in recorded, f"{id} was recorded as {recorded[id]} and is lost"
                queue.submit([attempt(id, code, params)])
        queue.cancel({id: handle for id, handle in (await queue.held()).items() if handle not in recorded.values()})
        while ended != set(plan["work"]):
            await reader.until(lambda: bool(reader.seen))
            reports, reader.seen = reader.seen, []
            for report in reports:
                sys.stdout.write(f"{type(report).__name__} {report.activation} {report.handle}\n")
                sys.stdout.flush()
                if plan.get("die_on") == type(report).__name__:
                    _die()
                if isinstance(report, Accepted):
                    recorded[report.activation] = report.handle
                    queue.release([report.handle])
                elif isinstance(report, Finished):
                    assert report.handle is not None
                    assert report.handle == recorded[report.activation], report
                    ended.add(report.activation)
                    queue.forget([report.handle])
    if not plan.get("ended"):  # else ends are told again, and this server may be gone before it has forgotten them
        assert not os.listdir(state / "jobs"), "forgotten jobs leave nothing behind"


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), json.loads(sys.argv[2])))

"""The queue's small parts, without a pool: what is due when, and final ads that nobody waits for."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eventmill.executors.htcondor import agenda, following
from eventmill.executors.htcondor.agenda import Agenda
from eventmill.executors.htcondor.following import FinalAds
from eventmill.executors.htcondor.history import FinalAd


def test_what_was_in_vain_is_due_later_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agenda, "AGAIN_S", 0.02)

    async def work() -> None:
        todo = Agenda()
        todo.add(["1.0", "2.0"])
        assert await todo.next() == ["1.0", "2.0"]
        todo.discard("2.0")
        assert [todo.postpone(["1.0", "2.0"], 0.05) for _ in range(4)] == [0.02, 0.04, 0.05, 0.05]
        began = time.monotonic()
        assert await todo.next() == ["1.0"]
        assert time.monotonic() - began >= 0.04
        todo.postpone(["1.0"], 100)
        todo.add(["1.0"])  # a new reason: at once, and from the beginning
        assert await todo.next() == ["1.0"]
        assert todo.postpone(["1.0"], 100) == 0.02
        assert "1.0" in todo
        assert len(todo) == 1

    asyncio.run(work())


def test_what_is_not_ready_waits_until_somebody_says_so() -> None:
    async def work() -> None:
        todo, ready = Agenda(), set[str]()
        todo.add(["1.0"])
        waiting = asyncio.ensure_future(todo.next(ready.__contains__))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        ready.add("1.0")
        todo.wake()
        assert await waiting == ["1.0"]

    asyncio.run(work())


def ad(directory: Path, id: str, *, ended_s: float = 0, server: str = "us") -> Path:
    cluster, proc = id.split(".")
    file = directory / f"history.{id}"
    part = directory / ".part"
    part.write_text(
        f'ClusterId = {cluster}\nProcId = {proc}\nEventmillActivation = "a"\nEventmillServer = "{server}"\n'
        f"JobStatus = 4\nExitCode = 0\nCompletionDate = {int(ended_s)}\n"
    )
    os.rename(part, file)
    return file


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_final_ads_that_nobody_waits_for_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "FORGOTTEN_MAX", 2)
    now = time.time()

    async def work() -> None:
        seen: list[str] = []

        def left(id: str, ad: FinalAd) -> bool:
            seen.append(id)
            return id == "1.0"

        ads = FinalAds(tmp_path, left)
        files = {id: ad(tmp_path, id, ended_s=now - 100 * int(id[0])) for id in ("1.0", "2.0", "3.0", "4.0")}
        foreign = ad(tmp_path, "9.0", server="others")
        reader = asyncio.ensure_future(ads.run("us"))
        await until(lambda: len(seen) == 4 and not foreign.exists())
        assert ads.claim("1.0") is not None
        assert ads.claim("2.0") is None  # the oldest of more than two; its file is there for the next start
        claimed = ads.claim("3.0")
        assert claimed is not None
        await ads.clear_left(3600)
        assert all(file.exists() for file in files.values())
        await ads.clear_left(50)
        assert [id for id, file in files.items() if file.exists()] == ["1.0", "2.0", "3.0"]
        await ads.forget(["1.0", "3.0"])
        assert [id for id, file in files.items() if file.exists()] == ["2.0"]
        late = ad(tmp_path, "1.0", ended_s=now)  # the schedd was killed, and writes it again
        await until(lambda: not late.exists())
        reader.cancel()

    asyncio.run(work())

"""The queue and its parts when the schedd hangs, is made anew, or the disk refuses: without a pool."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventmill.config import Pool
from eventmill.entities import Action, Limits, Status
from eventmill.errors import InvalidConfig, Unavailable
from eventmill.executors.background import Threads
from eventmill.executors.base import Attempt, Finished, Recorded
from eventmill.executors.htcondor import CondorQueue, accounts, following
from eventmill.executors.htcondor.accounts import Accounts
from eventmill.executors.htcondor.client import Condor, TooMany
from eventmill.executors.htcondor.following import FinalAds
from eventmill.executors.htcondor.history import FinalAd
from eventmill.executors.htcondor.preparing import Prepared
from eventmill.executors.htcondor.records import JobEvent, job_event
from eventmill.executors.htcondor.rooms import Rooms, spool_problem
from eventmill.executors.htcondor.submitting import Submitter
from eventmill.executors.htcondor.tracked import Stage, Tracked
from tests.executors.driving import attempt
from tests.htcondor.test_hostile import job
from tests.htcondor.test_parts import ad, until

LIMITS = Limits(timeout_ms=60_000, memory_mb=100)
ACTION = Action(namespace="guest", name="c", version="0.0.1", revision=1, kind="job", code="c", limits=LIMITS)


def made(directory: Path, **settings: Any) -> CondorQueue:
    """One that is not started: no schedd is asked."""
    pool = Pool.model_validate({"kind": "htcondor", "event_log": directory / "EventLog"} | settings)
    queue = CondorQueue(
        lambda _: b"", name="condor", pool=pool, state_dir=directory / "condor", results_dir=directory / "results",
        environment={}, result_bytes_max=1000, archive_files_max=10, archive_bytes_max=1000,
    )  # fmt: skip
    queue._rooms.open()
    queue._server = "us"
    return queue


def with_queue(directory: Path, work: Callable[[CondorQueue], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        queue = made(directory, **settings)
        try:
            await work(queue)
        finally:
            await queue.stop()

    asyncio.run(main())


def recorded(activation: str, id: str = "5.0") -> Recorded:
    return Recorded(activation=activation, namespace="guest", handle=f"condor:local#{id}")


async def ends(queue: CondorQueue, count: int) -> dict[str, Status]:
    found: dict[str, Status] = {}
    async with asyncio.timeout(10):
        async for reports in queue.reports():
            found |= {each.activation: each.status for each in reports if isinstance(each, Finished)}
            if len(found) >= count:
                break
    return found


def event(activation: str | None, number: int = 1, *, informed: bool = True, server: str = "us") -> JobEvent:
    record: dict[str, Any] = {"Cluster": 5, "Proc": 0, "EventTime": "2026-01-01T00:00:00"}
    record |= {"EventTypeNumber": 28, "TriggerEventTypeNumber": number} if informed else {"EventTypeNumber": number}
    if activation is not None:
        record |= {"EventmillActivation": activation, "EventmillServer": server}
    found = job_event(record)
    assert found is not None
    return found


# one number, several jobs


def test_a_number_that_is_given_again_ends_the_job_that_had_it(tmp_path: Path) -> None:
    async def work(queue: CondorQueue) -> None:
        queue._track(Tracked(job("old"), "5.0", "", stage=Stage.RELEASED))
        queue._orders_of("").remove("5.0", "cancelled")
        queue._track(Tracked(job("new"), "5.0", ""))
        assert await ends(queue, 1) == {"old": Status.INTERNAL_ERROR}
        assert "5.0" not in queue._orders_of("")._to_remove
        assert queue._register.jobs["5.0"].job.activation == "new"
        assert queue._register.attempts.keys() == {("new", 1)}

    with_queue(tmp_path, work)


@pytest.mark.parametrize("truth", ["first", "second", None])
def test_of_several_records_with_one_number_one_has_the_job(tmp_path: Path, truth: str | None) -> None:
    async def work(queue: CondorQueue) -> None:
        names = ["first", "second", "third"]
        assert (await queue.find(list(map(recorded, names)))).keys() == set(names)
        await queue.find([recorded("second")])  # is said twice, once known
        for name in names:
            (queue._rooms.place / f"{name}.1" / "scratch").mkdir(parents=True)
            (queue._rooms.place / f"{name}.1" / "stdout").touch()
        seen: dict[str, Status] = {}
        while len(seen) < 3:
            tracked = queue._register.jobs["5.0"]
            found = {"JobStatus": 4, "ExitCode": 0} if tracked.job.activation == truth else {}
            queue._left(tracked, found)
            seen |= await ends(queue, 1)
        assert seen == {name: Status.SUCCESS if name == truth else Status.INTERNAL_ERROR for name in names}

    with_queue(tmp_path, work)


def test_nothing_is_ordered_by_a_number_of_which_another_job_was_heard(tmp_path: Path) -> None:
    async def work(queue: CondorQueue) -> None:
        queue._track(Tracked(job("a"), "5.0", ""))
        for heard, doubtful in ((event("a"), False), (event(None, informed=False), False), (event("b"), True)):
            queue._happened(heard)
            assert queue._looker.is_doubtful("5.0") is doubtful
        queue._looker.settle("5.0")
        queue._happened(event(None))
        assert queue._looker.is_doubtful("5.0")

    with_queue(tmp_path, work)


def test_a_job_of_ours_that_nobody_submits_is_suspicious(tmp_path: Path) -> None:
    async def work(queue: CondorQueue) -> None:
        for heard, suspicious in ((event("a", 0, server="others"), False), (event("a", 0), True)):
            queue._looker.suspects = False
            queue._happened(heard)
            assert queue._looker.suspects is suspicious

    with_queue(tmp_path, work)


# what is beside the work


def test_what_can_t_be_cleared_up_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(queue: CondorQueue) -> None:
        def refuses(self: Path, missing_ok: bool = False) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(self))

        monkeypatch.setattr(Path, "unlink", refuses)
        queue._track(Tracked(job("a"), "5.0", "", stage=Stage.ENDED))
        queue.forget(["condor:local#5.0"])
        await until(lambda: queue.counts()["upkeep_failed"] == 1)
        assert queue._background.failure is None
        monkeypatch.undo()

    with_queue(tmp_path, work)


def test_a_full_disk_keeps_a_job_at_its_end_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(queue: CondorQueue) -> None:
        refused = [True]

        def report(*_: Any, **__: Any) -> Finished:
            if refused:
                raise OSError(errno.ENOSPC, "No space left on device")
            return Finished(
                activation="a", attempt=1, status=Status.SUCCESS, result=b"{}", final=True, started_ms=1, ended_ms=2
            )  # fmt: skip

        monkeypatch.setattr("eventmill.executors.delivery.AGAIN_S", 0.05)
        monkeypatch.setattr(queue._delivery, "report", report)
        tracked = Tracked(job("a"), "5.0", "", stage=Stage.RELEASED)
        queue._track(tracked)
        (queue._rooms.room(tracked.job) / "scratch").mkdir(parents=True)
        (queue._rooms.room(tracked.job) / "stdout").touch()
        queue._left(tracked, {"JobStatus": 4, "ExitCode": 0})
        await until(lambda: "No space left" in queue.condition()[1])
        assert tracked.stage is Stage.ENDING
        refused.clear()
        assert await ends(queue, 1) == {"a": Status.SUCCESS}
        assert "No space left" not in queue.condition()[1]

    with_queue(tmp_path, work)


def test_final_ads_are_read_though_they_can_t_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "AGAIN_S", 0.01)
    unlink = os.unlink

    def refuses(path: str, **_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    async def work() -> None:
        seen: list[str] = []

        def left(id: str, _: FinalAd) -> bool:
            seen.append(id)
            return True

        ads = FinalAds(tmp_path, left)
        foreign = ad(tmp_path, "9.0", server="others")
        monkeypatch.setattr(os, "unlink", refuses)
        reader = asyncio.ensure_future(ads.run("us"))
        await until(lambda: "Permission denied" in ads.trouble)
        ours = ad(tmp_path, "1.0", ended_s=time.time())
        await until(lambda: seen == ["1.0"])
        await ads.forget(["1.0"])
        assert ads.counts()["log_troubles"] == 3
        monkeypatch.setattr(os, "unlink", unlink)
        await ads.clear_left(3600)
        assert not foreign.exists()
        assert not ours.exists()
        reader.cancel()

    asyncio.run(work())


def test_codes_that_no_room_names_go_at_the_start(tmp_path: Path) -> None:
    def opened() -> Rooms:
        opened = Rooms(tmp_path / "state", files_max=10, bytes_max=1000)
        opened.open()
        return opened

    def codes() -> set[str]:
        return {path.name.partition("-")[0] for path in (tmp_path / "state" / "code").iterdir()}

    rooms = opened()
    for name in ("c", "unused"):
        rooms.code(name).mkdir()
    rooms.program("wrapper", b"x")
    rooms.furnish(job("a"), b"{}")
    rooms.close()
    rooms = opened()
    assert codes() == {"c", "program"}
    rooms.code("unused").mkdir()
    (rooms.place / "b.1").mkdir()  # by an earlier version
    rooms.close()
    rooms = opened()
    assert codes() == {"c", "program", "unused"}
    rooms.clear([("a", 1), ("b", 1)])
    assert list((tmp_path / "state" / "facts").iterdir()) == []
    rooms.close()
    opened().close()
    assert codes() == set()


# where rooms can't be


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server may have a spool at all")
def test_a_spool_is_roots_alone_and_somewhere_else(tmp_path: Path) -> None:
    spool, data = tmp_path / "spool", tmp_path / "data"
    data.mkdir()
    assert "No such file" in (spool_problem(spool, outside=data) or "")
    spool.mkdir(mode=0o711)
    assert spool_problem(spool, outside=data) is None
    assert "must be outside" in (spool_problem(spool, outside=tmp_path) or "")
    spool.chmod(0o775)
    assert "nobody else may write" in (spool_problem(spool, outside=data) or "")
    with pytest.raises(InvalidConfig, match="nobody else may write"):
        made(tmp_path, spool_dir=spool)
    os.chown(spool, 65534, 65534)
    spool.chmod(0o711)
    assert "must be root's" in (spool_problem(spool, outside=data) or "")
    (tmp_path / "link").symlink_to(data)
    assert "is no directory" in (spool_problem(tmp_path / "link", outside=spool) or "")


def test_a_server_that_is_not_roots_has_no_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "only a server of root's" in (spool_problem(tmp_path, outside=tmp_path) or "")


# schedds that hang, are away, or are full


class _Schedd:
    """Answers as it is told; what it was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[int], list[str]] = lambda count: [f"1.{n}" for n in range(count)]
        self.asked: list[int] = []

    async def submit(self, base: Mapping[str, str], items: Sequence[Mapping[str, str]]) -> list[str]:
        self.asked.append(len(items))
        return self.answer(len(items))


class _Accounts:
    def __init__(self, schedd: _Schedd) -> None:
        self._schedd = schedd
        self.away = False

    def condor(self, identity: str) -> _Schedd:
        return self._schedd

    async def settle(self, identity: str, namespaces: Sequence[str]) -> None:
        if self.away:
            raise Unavailable("the schedd is away")


class _Preparer:
    """Each job is a cluster of its own."""

    def prepare(self, attempts: Sequence[Attempt]) -> list[Prepared | Exception]:
        name = "My.EventmillActivation"
        return [Prepared(e, job(e.activation), {name: e.activation, "executable": e.activation}) for e in attempts]


def submitting(work: Callable[[Submitter, _Schedd, _Accounts, list[str], list[Finished]], Awaitable[None]]) -> None:
    async def main() -> None:
        schedd, threads = _Schedd(), Threads(1, "test")
        asked, accepted, refused = _Accounts(schedd), list[str](), list[Finished]()
        submitter = Submitter(
            "condor", "", asked, _Preparer(), threads,  # type: ignore[arg-type]
            accepted=lambda tracked, _: accepted.append(tracked.job.activation), refused=refused.append,
            unsure=lambda: None,
        )  # fmt: skip
        running = asyncio.ensure_future(submitter.run())
        try:
            await work(submitter, schedd, asked, accepted, refused)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await threads.close()

    asyncio.run(main())


@pytest.mark.parametrize("why", [Unavailable("no answer"), TooMany("full", at_once=False)])
def test_a_schedd_that_takes_nothing_is_not_asked_for_every_cluster(why: Exception) -> None:
    async def work(
        submitter: Submitter, schedd: _Schedd, _: _Accounts, accepted: list[str], refused: list[Finished]
    ) -> None:
        def nothing(count: int) -> list[str]:
            raise why

        taking, schedd.answer = schedd.answer, nothing
        jobs = [attempt(ACTION) for _ in range(5)]
        for each in jobs:
            submitter.take(each)
        await until(lambda: bool(schedd.asked))
        await asyncio.sleep(0.1)
        assert schedd.asked in ([1], [1, 1])  # once more, if it may be the number that it does not take
        schedd.answer = taking
        submitter._hurry.set()
        await until(lambda: len(accepted) == 5)
        assert not submitter.pending

    submitting(work)


def test_what_is_cancelled_while_the_schedd_is_away_ends_at_once() -> None:
    async def work(
        submitter: Submitter, schedd: _Schedd, asked: _Accounts, accepted: list[str], refused: list[Finished]
    ) -> None:
        asked.away = True
        gone, stays = attempt(ACTION), attempt(ACTION)
        submitter.take(gone)
        submitter.take(stays)
        await until(lambda: submitter._pause_s > 0)
        submitter.cancel(gone.activation)
        await until(lambda: [end.activation for end in refused] == [gone.activation])
        asked.away = False
        submitter._hurry.set()
        await until(lambda: accepted == [stays.activation])

    submitting(work)


def test_whatever_goes_wrong_with_a_submit_is_one_attempts_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    # half characters in a log would be in what tests that run beside each other tell
    monkeypatch.setattr(logging.getLogger("eventmill.executors.htcondor.submitting"), "disabled", True)

    async def work(
        submitter: Submitter, schedd: _Schedd, _: _Accounts, accepted: list[str], refused: list[Finished]
    ) -> None:
        first = [True]

        def odd(count: int) -> list[str]:
            if first:
                first.clear()
                raise TypeError("str is not valid UTF-8: \udce9")
            return [f"1.{n}" for n in range(count)]

        schedd.answer = odd
        jobs = [attempt(ACTION) for _ in range(2)]
        for each in jobs:
            submitter.take(each)
        await until(lambda: len(accepted) == len(refused) == 1)
        assert b"not valid UTF-8: ?" in refused[0].result
        assert not refused[0].final

    submitting(work)


def test_a_schedd_that_hangs_does_not_delay_a_start_and_others_look_for_jobs_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "START_TIMEOUT_S", 0.05)

    async def hangs(self: Condor) -> dict[str, str]:
        return await asyncio.Event().wait() and {}

    monkeypatch.setattr(Condor, "ping", hangs)
    rooms = Rooms(tmp_path / "state", files_max=10, bytes_max=1000)
    rooms.open()
    pool = Pool.model_validate({"kind": "htcondor", "tokens": {"guest": tmp_path / "token"}})

    async def work() -> None:
        threads = Threads(1, "test")
        each = Accounts("condor", pool, tmp_path / "identities", rooms, threads)
        async with asyncio.timeout(5):
            await each.open()
        assert each.asker("guest") is each.condor("guest")
        assert each.asker(each.identity("no-token-any-more")) is each.condor("guest")
        await threads.close()

    asyncio.run(work())

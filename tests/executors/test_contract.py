"""The contract of `executors.base`, held against every executor (see `subjects`)."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from eventmill.entities import Status
from eventmill.executors import Accepted, Attempt, Finished, Recorded, Started
from tests.executors.driving import TIMEOUT_S, Driver, attempt, driving
from tests.executors.subjects import SUBJECTS, CondorSubject, OpenWhiskSubject, Subject

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("condor", "openwhisk", "eventmill")]


@pytest.fixture(params=[*SUBJECTS, *SLOW])
def subject(request: pytest.FixtureRequest) -> Subject:
    match request.param:
        case "condor":
            return CondorSubject(request.getfixturevalue("condor"))
        case "openwhisk":  # a real one
            server = request.getfixturevalue("openwhisk")
            return OpenWhiskSubject(server.url, server.keys["guest"])
        case "eventmill":  # our own server, over HTTP
            return OpenWhiskSubject(*request.getfixturevalue("eventmill"))
    return SUBJECTS[request.param]


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    return tmp_path / "witness"


def run(work: Coroutine[Any, Any, None]) -> None:
    uvloop.run(work)  # the server's loop; other tests use asyncio's own


async def appears(witness: Path, word: str) -> None:
    """Wait until the action has written its word."""
    async with asyncio.timeout(TIMEOUT_S):
        while not witness.exists() or word not in witness.read_text().split():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_every_attempt_ends_in_exactly_one_finished(subject: Subject, tmp_path: Path, witness: Path) -> None:
    async def work() -> None:
        async with driving(subject.make(tmp_path)) as driver:
            before_ms = time.time() * 1000 - 1
            attempts = [attempt(subject.quick(), {"witness": str(witness), "word": f"w{i}"}) for i in range(5)]
            failing = attempt(subject.failing(), {"witness": str(witness), "word": "f"})
            ends = await driver.run(*attempts, failing)
            for end in ends[:-1]:
                assert (end.status, end.final, end.timed_out) == (Status.SUCCESS, True, False)
                assert isinstance(json.loads(end.result), dict)
                assert before_ms <= end.started_ms <= end.ended_ms <= time.time() * 1000 + 1
            assert ends[-1].status is not Status.SUCCESS
            assert isinstance(json.loads(ends[-1].result)["error"], str)
            assert set(Counter(driver.ends()).values()) == {1}
        assert sorted(witness.read_text().split()) == [f"w{i}" for i in range(5)]

    run(work())


def test_submitting_what_is_under_way_is_harmless(subject: Subject, tmp_path: Path, witness: Path) -> None:
    async def work() -> None:
        async with driving(subject.make(tmp_path, width=1)) as driver:
            first, second = [attempt(subject.quick(), {"witness": str(witness), "word": w}) for w in ("a", "b")]
            driver.executor.submit([first, first])
            driver.executor.submit([first, second])
            driver.executor.submit([second, first])
            await driver.finished(first)
            await driver.finished(second)
            assert Counter(driver.ends()) == {first.activation: 1, second.activation: 1}
        assert sorted(witness.read_text().split()) == ["a", "b"]

    run(work())


def test_another_attempt_of_the_activation_is_something_else(subject: Subject, tmp_path: Path, witness: Path) -> None:
    async def work() -> None:
        async with driving(subject.make(tmp_path)) as driver:
            params = {"witness": str(witness), "word": "again"}
            first = attempt(subject.quick(), params)
            await driver.run(first)
            second = attempt(subject.quick(), params, activation=first.activation, number=2)
            (end,) = await driver.run(second)
            assert (end.attempt, end.status) == (2, Status.SUCCESS)
        assert witness.read_text().split() == ["again", "again"]

    run(work())


def test_attempts_are_taken_in_order(subject: Subject, tmp_path: Path, witness: Path) -> None:
    async def work() -> None:
        async with driving(subject.make(tmp_path, width=1)) as driver:
            attempts = [attempt(subject.quick(), {"witness": str(witness), "word": f"w{i}"}) for i in range(6)]
            driver.executor.submit(attempts[:3])
            driver.executor.submit(attempts[3:])
            for each in attempts:
                await driver.finished(each)
            ends, lines = driver.ends(), witness.read_text().split()
        ends = ends if subject.ends_in_order and subject.in_order else sorted(ends)
        lines = lines if subject.in_order else sorted(lines)
        assert ends == [each.activation for each in attempts]
        assert lines == [f"w{i}" for i in range(6)]

    run(work())


def test_nothing_starts_before_its_release(subject: Subject, tmp_path: Path, witness: Path) -> None:
    async def work() -> None:
        executor = subject.make(tmp_path)
        async with driving(executor, releases=False) as driver:
            each = attempt(subject.quick(), {"witness": str(witness), "word": "w"})
            driver.executor.submit([each])
            if executor.two_phase:
                accepted = await driver.until(Accepted, of=each)
                assert isinstance(accepted, Accepted)
                await asyncio.sleep(0.3)
                assert not witness.exists()
                executor.release([accepted.handle])
                executor.release([accepted.handle])
            end = await driver.finished(each)
            assert end.status is Status.SUCCESS
            executor.release([end.handle] if end.handle else [])
            executor.release(["nobody's handle"])
        assert witness.read_text().split() == ["w"]

    run(work())


def cancelled(end: Finished) -> bool:
    return end.final and end.status is not Status.SUCCESS and json.loads(end.result) == {"error": "cancelled"}


def test_cancelling_what_waits_and_what_runs(subject: Subject, tmp_path: Path, witness: Path) -> None:
    async def work() -> None:
        async with driving(subject.make(tmp_path, width=1)) as driver:
            running = attempt(subject.slow(), {"witness": str(witness), "word": "runs"})
            waiting, next_one = [attempt(subject.quick(), {"witness": str(witness), "word": w}) for w in ("w", "n")]
            driver.executor.submit([running, waiting, next_one])
            await appears(witness, "runs")
            await _cancel(driver, waiting)
            await _cancel(driver, running)
            end = await driver.finished(next_one)
            assert end.status is Status.SUCCESS
            driver.executor.cancel({next_one.activation: end.handle, "f" * 32: None})
            (end,) = await driver.run(attempt(subject.quick(), {"witness": str(witness), "word": "last"}))
            assert end.status is Status.SUCCESS
            assert set(Counter(driver.ends()).values()) == {1}
        assert witness.read_text().split() == ["runs", "n", "last"]

    run(work())


async def _cancel(driver: Driver, each: Attempt) -> None:
    handle = next(
        (r.handle for r in driver.reports if isinstance(r, Accepted | Started) and r.activation == each.activation),
        None,
    )
    driver.executor.cancel({each.activation: handle})
    assert cancelled(await driver.finished(each))


def test_nothing_is_found_of_what_was_never_there(subject: Subject, tmp_path: Path) -> None:
    async def work() -> None:
        async with driving(subject.make(tmp_path)) as driver:
            assert await driver.executor.find([Recorded(activation="0" * 32), Recorded(activation="1" * 32)]) == {}

    run(work())


def test_a_restart_finds_what_survives_and_nothing_is_reported_twice(
    subject: Subject, tmp_path: Path, witness: Path
) -> None:
    async def work() -> None:
        done, runs = [attempt(a, {"witness": str(witness), "word": "w"}) for a in (subject.quick(), subject.slow())]
        async with driving(subject.make(tmp_path)) as driver:
            await driver.run(done)
            driver.executor.submit([runs])
            witness.unlink()
            await appears(witness, "w")
        ends = driver.ends()
        handle = driver.handle_of(runs)
        assert ends == [done.activation]
        executor = subject.make(tmp_path)
        await executor.start()
        try:
            recorded = Recorded(activation=runs.activation, namespace=runs.action.namespace, handle=handle)
            found = await executor.find([recorded, Recorded(activation="e" * 32)])
        finally:
            second = Driver(executor)
        if subject.survives:
            assert list(found) == [runs.activation]
            assert found[runs.activation].running
            executor.submit([runs])
            executor.cancel({runs.activation: found[runs.activation].handle})
            assert cancelled(await second.finished(runs))
        else:  # it was stopped in good order: to submit it again is all there is to do
            assert found == {}
        await second.stop()

    run(work())


def test_a_stopped_executor_is_silent(subject: Subject, tmp_path: Path, witness: Path) -> None:
    async def work() -> None:
        async with driving(subject.make(tmp_path)) as driver:
            driver.executor.submit([attempt(subject.slow(), {"witness": str(witness), "word": "w"})])
            await appears(witness, "w")
            await driver.executor.stop()
            before = len(driver.reports)
            await asyncio.sleep(0.1)
            assert len(driver.reports) == before

    run(work())

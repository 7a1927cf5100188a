"""The queue on real pools that refuse, are full, or are others than they were: nobody waits for another one's trouble,
and nothing is lost in silence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventmill.config import Pool
from eventmill.entities import Action, Limits, Status
from eventmill.errors import InvalidConfig
from eventmill.executors import Attempt
from eventmill.executors.base import Accepted, Finished, Recorded
from eventmill.executors.htcondor import CondorQueue, queue
from tests.executors.driving import Driver, attempt, driving, value
from tests.executors.local_jobs import script
from tests.htcondor.pool import CondorPool

pytestmark = pytest.mark.slow

CODES = {
    "quick": script("exit 0", "request_memory = 16\nrequest_disk = 100"),
    "reads": script(
        'echo "{\\"read\\": \\"$(cat frames)\\"}" > result.json',
        "transfer_input_files = $(path)\nrequest_memory = 16\nrequest_disk = 100",
    ),
    "rude": script("exit 0", "request_memory = 16\nrequest_disk = 100\n+Rude = $(rude)"),
}
MOST, OWNERS = 3, 7


@pytest.fixture(scope="module")
def strict(pytestconfig: pytest.Config) -> Iterator[CondorPool]:
    """Few jobs at once, few of an owner, and no rude ones."""
    extra = (
        f"MAX_JOBS_PER_SUBMISSION = {MOST}",
        f"MAX_JOBS_PER_OWNER = {OWNERS}",
        "SUBMIT_REQUIREMENT_NAMES = Nice",
        "SUBMIT_REQUIREMENT_Nice = Rude =!= 1",
    )
    with CondorPool(suite=pytestconfig.getoption("condor"), extra=extra) as pool:
        yield pool


def made(pool: CondorPool, directory: Path, **settings: Any) -> CondorQueue:
    own = {"kind": "htcondor", "condor_config": pool.config, "event_log": pool.event_log, "keep_claim_idle_s": 0}
    return CondorQueue(
        CODES.__getitem__, name="condor", pool=Pool.model_validate(own | settings), state_dir=directory / "condor",
        results_dir=directory / "results", environment={}, result_bytes_max=1 << 20, archive_files_max=100,
        archive_bytes_max=1 << 20,
    )  # fmt: skip


def job(code: str = "quick", namespace: str = "guest", params: Any = None) -> Attempt:
    limits = Limits(timeout_ms=60_000, memory_mb=100)
    action = Action(
        namespace=namespace, name=code, version="0.0.1", revision=1, kind="job", code=code, limits=limits
    )  # fmt: skip
    return attempt(action, params)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


async def until(true: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def accepted(driver: Driver) -> dict[str, str]:
    return {report.activation: report.handle for report in driver.reports if isinstance(report, Accepted)}


async def held_of(driver: Driver, jobs: list[Attempt]) -> None:
    driver.executor.submit(jobs)
    await until(lambda: accepted(driver).keys() >= {each.activation for each in jobs})


def tokens(pool: CondorPool) -> dict[str, Path]:
    return {"guest": pool.token("alice"), "other": pool.token("bob")}


# refusals


def test_a_group_that_is_too_large_is_submitted_in_parts(strict: CondorPool, tmp_path: Path) -> None:
    async def work() -> None:
        async with driving(made(strict, tmp_path)) as driver:
            ends = await driver.run(*[job() for _ in range(6)])
            assert [end.status for end in ends] == [Status.SUCCESS] * 6
            assert driver.executor.counts()["submit"] <= 6

    run(work)


def test_a_refused_description_delays_nobody(strict: CondorPool, tmp_path: Path) -> None:
    async def work() -> None:
        async with driving(made(strict, tmp_path), releases=False) as driver:
            jobs = [job("rude", params={"rude": int(n == 1)}) for n in range(3)]
            began = time.monotonic()
            await held_of(driver, [jobs[0], jobs[2]])
            driver.executor.submit(jobs)
            end = await driver.finished(jobs[1])
            assert end.status is Status.DEVELOPER_ERROR
            assert time.monotonic() - began < 30
            driver.executor.cancel({each.activation: None for each in jobs})
            await driver.finished(jobs[0])

    run(work)


def test_an_owner_whose_jobs_are_too_many_delays_no_other(strict: CondorPool, tmp_path: Path) -> None:
    async def work() -> None:
        async with driving(made(strict, tmp_path, tokens=tokens(strict)), releases=False) as driver:
            many = [job() for _ in range(OWNERS + 2)]
            driver.executor.submit(many)
            await until(lambda: len(accepted(driver)) == OWNERS)
            await held_of(driver, [job(namespace="other")])
            assert len(accepted(driver)) == OWNERS + 1
            driver.executor.cancel({each.activation: accepted(driver).get(each.activation) for each in many})
            for each in many:
                assert value(await driver.finished(each)) == {"error": "cancelled"}

    run(work)


def test_a_token_that_is_of_no_use_delays_no_other(strict: CondorPool, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("no.token.at.all")

    async def work() -> None:
        pool = made(strict, tmp_path, tokens={"guest": broken, "other": strict.token("bob")})
        async with driving(pool, releases=False) as driver:
            waits = job()
            driver.executor.submit([waits])
            await asyncio.sleep(0.5)
            await held_of(driver, [job(namespace="other")])
            assert waits.activation not in accepted(driver)
            assert not driver.executor.condition()[0]
            driver.executor.cancel({waits.activation: None})
            assert value(await driver.finished(waits)) == {"error": "cancelled"}

    run(work)


# orders


def test_an_order_that_is_denied_is_given_up_and_others_go_on(strict: CondorPool, tmp_path: Path) -> None:
    async def work() -> None:
        jobs = [job(), job()]
        async with driving(made(strict, tmp_path, tokens=tokens(strict)), releases=False) as driver:
            await held_of(driver, jobs[:1])
            handles = accepted(driver)
        # the namespace has another one's token now
        async with driving(made(strict, tmp_path, tokens={"guest": strict.token("carol")}), releases=False) as driver:
            await driver.executor.find(
                [Recorded(activation=jobs[0].activation, namespace="guest", handle=handles[jobs[0].activation])]
            )
            await held_of(driver, jobs[1:])
            driver.executor.release([handles[jobs[0].activation], accepted(driver)[jobs[1].activation]])
            refused = await driver.finished(jobs[0])
            assert "can't be released" in value(refused)["error"]
            assert (await driver.finished(jobs[1])).status is Status.SUCCESS
            assert driver.executor.counts()["orders_denied"] == 1
        strict.run("condor_rm", "-all")

    run(work)


def test_jobs_of_a_namespace_without_its_token_are_not_touched(strict: CondorPool, tmp_path: Path) -> None:
    async def work() -> None:
        waits = job()
        async with driving(made(strict, tmp_path, tokens=tokens(strict)), releases=False) as driver:
            await held_of(driver, [waits])
            handle = accepted(driver)[waits.activation]
        async with driving(made(strict, tmp_path, tokens={"other": strict.token("bob")})) as driver:
            recorded = Recorded(activation=waits.activation, namespace="guest", handle=handle)
            assert (await driver.executor.find([recorded]))[waits.activation].running
            driver.executor.release([handle])
            assert "no token any more" in value(await driver.finished(waits))["error"]
            assert len(strict.queue(f'EventmillActivation == "{waits.activation}"')) == 1
        strict.run("condor_rm", "-all")

    run(work)


# files


def test_what_was_checked_is_what_a_job_reads(condor: CondorPool, tmp_path: Path) -> None:
    frames = tmp_path / "results" / "guest" / "frames"
    frames.parent.mkdir(parents=True)
    frames.write_text("frames")
    (tmp_path / "secret").write_text("secret")

    async def work() -> None:
        async with driving(made(condor, tmp_path), releases=False) as driver:
            reads = job("reads", params={"path": str(frames)})
            await held_of(driver, [reads])
            frames.unlink()
            frames.symlink_to(tmp_path / "secret")
            driver.executor.release(list(accepted(driver).values()))
            assert value(await driver.finished(reads))["read"] == "frames"
            (end,) = await driver.run(job("reads", params={"path": str(frames)}))
            assert "leads out of the directories" in value(end)["error"]

    run(work)


# the audit


def test_orphans_that_fill_the_queue_are_removed_while_others_wait(strict: CondorPool, tmp_path: Path) -> None:
    async def work() -> None:
        async with driving(made(strict, tmp_path), releases=False) as driver:
            await held_of(driver, [job() for _ in range(OWNERS)])
        async with driving(made(strict, tmp_path), releases=False) as driver:  # which has no record of them
            waits = job()
            driver.executor.submit([waits])
            await until(lambda: not driver.executor.condition()[0])
            while orphans := await driver.executor.held():
                driver.executor.cancel(orphans)
                await asyncio.sleep(0.2)
            await driver.until(Accepted, of=waits)
            assert await driver.executor.held() == {}
            driver.executor.cancel({waits.activation: None})
            await driver.finished(waits)

    run(work)


def test_the_audit_says_what_it_has_found(strict: CondorPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "AUDIT_S", 0.1)

    async def work() -> None:
        async with driving(made(strict, tmp_path, event_log=tmp_path / "silent")) as driver:
            each = job()
            driver.executor.submit([each])
            while not any(isinstance(report, Finished) for report in driver.reports):
                await driver.executor.held()
                await asyncio.sleep(0.2)
            counts = driver.executor.counts()
            assert counts["missed_ends"] == 1
            assert counts["helper_restarts"] == 0

    run(work)


# which schedd, whose jobs


def test_another_schedd_is_asked_nothing(strict: CondorPool, condor: CondorPool, tmp_path: Path) -> None:
    name = tmp_path / "condor" / "schedd"

    async def work() -> None:
        waits = job()
        async with driving(made(condor, tmp_path), releases=False) as driver:
            await held_of(driver, [waits])
            assert name.read_text() == f"{condor.owner}@localhost.local"
        name.write_text("somebody@elsewhere")
        with pytest.raises(InvalidConfig, match=r"is '.*@localhost.local', and not 'somebody@elsewhere'.*pools.condor"):
            await made(condor, tmp_path).start()
        name.write_text(f"{condor.owner}@LOCALHOST.local")
        async with driving(made(condor, tmp_path)) as driver:
            orphans = await driver.executor.held()
            assert orphans.keys() == {waits.activation}
            driver.executor.cancel(orphans)
            await until(lambda: not condor.queue(f'EventmillActivation == "{waits.activation}"'))
        for room in (tmp_path / "condor" / "rooms").iterdir():  # without jobs any schedd will do
            for file in room.iterdir():
                file.rmdir() if file.is_dir() else file.unlink()
            room.rmdir()
        name.write_text("somebody@elsewhere")
        async with driving(made(condor, tmp_path)):
            assert name.read_text() == f"{condor.owner}@localhost.local"

    run(work)


def test_a_job_whose_schedd_has_another_name_is_refused(condor: CondorPool, tmp_path: Path) -> None:
    async def work() -> None:
        waits = job()
        async with driving(made(condor, tmp_path), releases=False) as driver:
            await held_of(driver, [waits])
            handle = accepted(driver)[waits.activation]
        recorded = Recorded(activation=waits.activation, namespace="guest", handle=handle)
        renamed = made(condor, tmp_path, schedd=f"{condor.owner}@localhost.local")
        async with driving(renamed) as driver:
            with pytest.raises(InvalidConfig, match=rf"job {handle}, and jobs are called condor:.*pools.condor.schedd"):
                await driver.executor.find([recorded])
            gone = Recorded(activation="0" * 32, namespace="guest", handle=handle)  # it has no room any more
            assert await driver.executor.find([gone]) == {}
        async with driving(made(condor, tmp_path)) as driver:
            assert (await driver.executor.find([recorded]))[waits.activation].running
            driver.executor.cancel({waits.activation: handle})
            assert value(await driver.finished(waits)) == {"error": "cancelled"}

    run(work)


def test_the_one_namespace_is_remembered(condor: CondorPool, tmp_path: Path) -> None:
    async def work() -> None:
        async with driving(made(condor, tmp_path), releases=False) as driver:
            first = job(namespace="first")
            await held_of(driver, [first])
            driver.executor.cancel({first.activation: None})
            await driver.finished(first)
        async with driving(made(condor, tmp_path)) as driver:
            (end,) = await driver.run(job(namespace="second"))
            assert "those of namespace 'first'" in value(end)["error"]
            (end,) = await driver.run(job(namespace="first"))
            assert end.status is Status.SUCCESS

    run(work)

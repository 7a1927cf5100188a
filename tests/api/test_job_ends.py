"""Where jobs report their own ends: who is let in, and that nothing is told to anybody else. (That a real job is looked
for: tests/htcondor/test_reporting.py.)"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventmill.config import Settings
from eventmill.executors import Attempt, Executor, Found, Recorded, Report
from eventmill.executors.jobs import END_PATH, JOB_END
from eventmill.store import SqliteStore
from tests.api.conftest import Running, running

ACTIVATION = "0123456789abcdef0123456789abcdef"


class OneJob(Executor):
    """A batch system with one job under way, the second attempt of ACTIVATION."""

    def __init__(self) -> None:
        self.looked = 0
        self.ended = False

    def noticed(self, activation: str, attempt: int) -> bool:
        is_known = not self.ended and (activation, attempt) == (ACTIVATION, 2)
        self.looked += is_known
        return is_known

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def submit(self, attempts: Sequence[Attempt]) -> None: ...
    def release(self, handles: Sequence[str]) -> None: ...
    def cancel(self, activations: Mapping[str, str | None]) -> None: ...
    async def find(self, recorded: Sequence[Recorded]) -> dict[str, Found]:
        return {}

    async def reports(self) -> AsyncIterator[list[Report]]:
        return
        yield


@pytest.fixture
def job() -> OneJob:
    return OneJob()


@pytest.fixture
def mill(tmp_path: Path, job: OneJob) -> Iterator[Running]:
    def executors(settings: Settings, store: SqliteStore, directory: Path) -> Mapping[str, Executor]:
        return {"pool:site": job}

    with running(tmp_path, executors) as mill:
        yield mill


def post(mill: Running, token: str, attempt: Any = 2, activation: str = ACTIVATION, **more: Any) -> httpx.Response:
    url = mill.url + END_PATH.format(activation=activation, attempt=attempt)
    return httpx.post(url, headers={"authorization": f"Bearer {token}", **more.pop("headers", {})}, **more)


def test_a_token_opens_for_its_attempt_as_long_as_that_is_under_way(mill: Running, job: OneJob) -> None:
    sign = mill.services.signer.sign
    token = sign(JOB_END, ACTIVATION, "2")
    assert [post(mill, token).status_code for _ in range(2)] == [202, 202]
    assert post(mill, token, content=b"x" * 100_000).status_code == 202, "whatever is sent is not read"
    assert job.looked == 3

    def refusal(answer: httpx.Response) -> tuple[int, str, str]:
        return answer.status_code, answer.json()["error"], answer.headers["www-authenticate"]

    wrong = [
        post(mill, "f" * 64),
        post(mill, token, attempt=1),
        post(mill, token, attempt="02"),
        post(mill, token, activation=ACTIVATION[::-1]),
        post(mill, sign("another purpose", ACTIVATION, "2")),
        post(mill, sign(JOB_END, ACTIVATION, "1"), attempt=1),  # of an attempt that is over
        post(mill, sign(JOB_END, ACTIVATION[::-1], "1"), attempt=1, activation=ACTIVATION[::-1]),
        post(mill, token, headers={"authorization": f"Basic {token}"}),
    ]
    job.ended = True
    wrong.append(post(mill, token))
    assert {refusal(answer) for answer in wrong} == {(401, "The supplied authentication is invalid", "Bearer")}
    assert job.looked == 3
    assert token not in "".join(answer.text for answer in wrong)


def test_it_opens_nothing_else_and_nothing_else_opens_it(mill: Running, job: OneJob) -> None:
    token = mill.services.signer.sign(JOB_END, ACTIVATION, "2")
    path = END_PATH.format(activation=ACTIVATION, attempt=2)
    bearer = {"authorization": f"Bearer {token}"}
    assert httpx.get(mill.url + f"/eventmill/v1/activations/{ACTIVATION}", headers=bearer).status_code == 401
    assert httpx.post(mill.url + "/eventmill/v1/job-ends/../activations", headers=bearer).status_code == 401
    assert httpx.get(mill.url + path, headers=bearer).status_code == 405
    assert httpx.post(mill.url + path + "/more", headers=bearer).status_code == 404
    assert post(mill, token, headers={"host": "rebound.example"}).status_code == 403
    with mill.caller() as caller:
        assert caller.post(path).status_code == 401
    assert job.looked == 0

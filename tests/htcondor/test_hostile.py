"""What jobs, their owners and the pool's users can leave for the server to stumble over. No pool: its parts alone."""

from __future__ import annotations

import asyncio
import errno
import os
import pwd
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventmill.engine.audit import remove_orphans
from eventmill.entities import Status
from eventmill.entities.submit import BoundDescription, parse
from eventmill.errors import InvalidDescription, InvalidInput
from eventmill.executors import Attempt, Executor, Found, Report, delivery, jobs
from eventmill.executors.base import Recorded
from eventmill.executors.delivery import LOG_TAIL_BYTES, Delivery, repeated
from eventmill.executors.htcondor import description, endings, helper, rooms
from eventmill.executors.htcondor.looking import Looker
from eventmill.executors.htcondor.rooms import Job, Rooms
from eventmill.executors.htcondor.tracked import Register, Tracked
from eventmill.store import SqliteStore

NOBODY = pwd.getpwnam("nobody")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="rooms that change their owner need root")


def job(activation: str = "a", **values: Any) -> Job:
    bound = BoundDescription(executable="run.sh", **values)
    return Job(
        activation=activation, attempt=1, namespace="guest", code="c", description=bound, logs_bytes=LOG_TAIL_BYTES
    )


# what ads say


def test_an_attribute_that_is_not_utf8_is_none_and_the_others_are_there() -> None:
    bindings = helper.Bindings("", "")
    ad = bindings._c.ClassAd('[a = 1; b = "\\351"; c = "ok"; l = {"\\351"}; n = [e = "\\351"; f = 2]]')
    assert bindings._plain_ad(ad) == {"a": 1, "b": None, "c": "ok", "l": None, "n": {"e": None, "f": 2}}


@pytest.mark.parametrize("odd", [None, "ifThenElse(x, 1, 2)", True])
def test_an_odd_exit_code_is_no_exit_code(odd: Any) -> None:
    assert endings.of_ad({"JobStatus": 4, "ExitCode": odd}).lost
    assert endings.of_ad({"JobStatus": 4, "ExitBySignal": True, "ExitSignal": odd, "ExitCode": 3}).exit_code == 3


class _Asked:
    """A schedd that refuses some questions, and answers others. `odd`: jobs that were made by hand."""

    def __init__(self, odd: Sequence[Mapping[str, Any]] = (), *, refuses: bool = False) -> None:
        self._odd = odd
        self._refuses = refuses

    async def ping(self) -> dict[str, str]:
        return {"identity": "us@here"}

    async def query(self, constraint: str, attributes: Sequence[str]) -> list[Mapping[str, Any]]:
        if self._refuses:
            raise InvalidInput("HTCondor does not take it")
        return list(self._odd)


class _Accounts:
    def __init__(self, condor: _Asked) -> None:
        self._condor = condor

    def identities(self) -> list[str]:
        return [""]

    def condor(self, identity: str) -> _Asked:
        return self._condor

    asker = condor


def looker(condor: _Asked, register: Register) -> Looker:
    def nothing(*_: Any) -> None:
        pass

    return Looker(_Accounts(condor), register, seen=nothing, left=nothing, looked=nothing)  # type: ignore[arg-type]


def test_a_question_that_is_refused_is_asked_again() -> None:
    register = Register("condor", "")
    register.add(Tracked(job(), "1.0", ""))
    looks = looker(_Asked(refuses=True), register)
    assert asyncio.run(looks._look_at(["1.0"])) == ["1.0"]
    assert asyncio.run(looks.orphans("us", set)) == {}
    assert looks.suspects
    assert looks.counts["looks_failed"] == 2


def test_jobs_made_by_hand_are_no_orphans() -> None:
    ads: list[dict[str, Any]] = [
        {"ClusterId": 1, "ProcId": 0},
        {"ClusterId": 2, "ProcId": 0, "EventmillActivation": None},
        {"ClusterId": 3, "ProcId": 0, "EventmillActivation": "mine"},
    ]
    assert asyncio.run(looker(_Asked(ads), Register("condor", "")).orphans("us", set)) == {"mine": "3.0"}


class _Broken(Executor):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def release(self, handles: Sequence[str]) -> None: ...

    async def find(self, recorded: Sequence[Recorded]) -> dict[str, Found]:
        return {}

    def submit(self, attempts: Sequence[Attempt]) -> None: ...

    def cancel(self, activations: Mapping[str, str | None]) -> None: ...

    async def held(self) -> dict[str, str]:
        raise KeyError("EventmillActivation")

    async def reports(self) -> AsyncIterator[list[Report]]:
        yield []


class _Holding(_Broken):
    def __init__(self) -> None:
        self.cancelled: dict[str, str | None] = {}

    def cancel(self, activations: Mapping[str, str | None]) -> None:
        self.cancelled |= activations

    async def held(self) -> dict[str, str]:
        return {"a": "h#1"}


def test_an_executor_that_fails_does_not_end_the_audit_of_others(tmp_path: Path) -> None:
    async def work() -> None:
        store, holding = SqliteStore.open(tmp_path / "mill.db"), _Holding()
        try:
            await remove_orphans(store, {"broken": _Broken(), "holding": holding}, Counter())
        finally:
            store.close()
        assert holding.cancelled == {"a": "h#1"}

    asyncio.run(work())


# names


def test_a_link_to_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).write_text("x")
    (tmp_path / "plain").symlink_to(os.fsdecode(b"caf\xe9"))
    bound = BoundDescription(executable="/bin/true", transfer_executable=False, inputs=("plain",))
    with pytest.raises(InvalidDescription, match="can't transfer a file of this name"):
        description.sources(bound, tmp_path, [])


@pytest.mark.parametrize(
    "attribute",
    [
        "AllowedJobDuration", "AllowedExecuteDuration", "CronMinute", "CronWindow", "DeferralTime", "TimerRemove",
        "JobMaxRetries", "JobSuccessExitCode", "UserLogUseXML", "RemoteIwd", "NotifyUser", "FetchFiles", "Iwd", "In",
        "TransferInput", "CompletionDate", "EnteredCurrentStatus", "JobCurrentStartDate", "ReturnValue",
        *(name for name in description.INFORMATION if not name.startswith("Eventmill")),
    ],
)  # fmt: skip
def test_no_attribute_goes_round_the_list_of_commands(attribute: str) -> None:
    with pytest.raises(InvalidDescription, match="an attribute of HTCondor's or Eventmill's own"):
        parse(f"executable = x\n+{attribute} = 1")


def test_attributes_of_sites_are_free() -> None:
    for attribute in ("Project", "JobFlavour", "MaxRuntime", "WantGPU", "DESIRED_Sites", "Queue"):
        parse(f"executable = x\n+{attribute} = 1")


# rooms that were somebody else's


@pytest.fixture
def shared(tmp_path: Path) -> Rooms:
    for directory in (tmp_path, *tmp_path.parents):
        if directory.name.startswith("pytest-"):
            directory.chmod(0o755)
    (tmp_path / "spool").mkdir(mode=0o711)
    made = Rooms(tmp_path / "state", files_max=100, bytes_max=1 << 20, spool=tmp_path / "spool")
    made.open()
    return made


def handed_over(place: Rooms, each: Job) -> Path:
    room = place.furnish(each, b"{}")
    place.hand_over(each, "nobody")
    return room


def as_nobody(program: str, room: Path) -> None:
    subprocess.run(program, shell=True, cwd=room, user=NOBODY.pw_uid, group=NOBODY.pw_gid, check=True)


@as_root
def test_a_room_is_its_owners_and_then_the_servers(shared: Rooms) -> None:
    room = handed_over(shared, job())
    assert {(path.stat().st_uid, path.name) for path in (room, *room.iterdir())} == {
        (NOBODY.pw_uid, name) for name in ("a.1", "params.json", "scratch")
    }
    assert room.stat().st_mode & 0o777 == 0o700
    as_nobody("mkdir -p scratch/d/e; chmod 777 scratch/d; touch scratch/d/f", room)
    shared.take_back(job())
    assert {path.stat().st_uid for path in (room, *room.rglob("*"))} == {0}
    assert (room / "scratch" / "d").stat().st_mode & 0o777 == 0o700


@as_root
def test_who_is_in_a_room_already_can_plant_nothing_after_it_was_taken_back(shared: Rooms) -> None:
    room = handed_over(shared, job())
    with subprocess.Popen(
        "cd scratch; echo here; read go; ln -s /etc/shadow out 2>&1 || exit 7", shell=True, cwd=room,
        user=NOBODY.pw_uid, group=NOBODY.pw_gid, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as stays:  # fmt: skip
        assert stays.stdout is not None
        stays.stdout.readline()
        shared.take_back(job())
        stays.communicate(b"\n")
    assert stays.returncode == 7
    assert list((room / "scratch").iterdir()) == []


@as_root
def test_links_and_pipes_are_gone_when_a_room_is_taken_back(shared: Rooms) -> None:
    room = handed_over(shared, job())
    as_nobody(
        "mkfifo stdout; ln -s /etc/shadow stderr; mkdir scratch/d; cd scratch/d; mkfifo p; ln -s /etc l; echo x >file",
        room,
    )
    shared.take_back(job())
    assert sorted(path.name for path in room.rglob("*")) == ["d", "file", "params.json", "scratch"]


@as_root
def test_too_many_directories_in_each_other_are_an_error_and_can_be_cleared(
    shared: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "DEPTH_MAX", 20)
    room = handed_over(shared, job())
    as_nobody(f"mkdir -p {'d/' * 30}", room / "scratch")
    with pytest.raises(OSError, match="more than 20 directories"):
        shared.take_back(job())
    shared.clear([("a", 1)])
    assert not room.exists()


@as_root
def test_an_old_room_is_put_away_whatever_is_in_it(shared: Rooms, tmp_path: Path) -> None:
    room = handed_over(shared, job())
    (tmp_path / "victim").write_text("kept")
    as_nobody(f"rm params.json; ln -s {tmp_path}/victim params.json", room)
    shared.furnish(job(), b'{"new": 1}')
    assert (tmp_path / "victim").read_text() == "kept"
    assert room.stat().st_uid == 0
    assert (room / "params.json").read_bytes() == b'{"new": 1}'
    assert not (room / "params.json").is_symlink()
    with pytest.raises(FileExistsError):
        rooms.furnish(room, job().description, b"{}", is_new=True)


# deliveries


def delivered(tmp_path: Path, each: Job, room: Path) -> dict[str, Any]:
    usage: dict[str, Any] = {}
    report = Delivery(tmp_path / "results", [], result_bytes_max=1000).report(
        each, jobs.Ending(exit_code=0), room, "h", usage=usage, started_ms=1, ended_ms=2
    )
    return {"status": report.status, "result": report.result.decode(), "logs": report.logs}


@pytest.fixture
def room(tmp_path: Path) -> Path:
    rooms.furnish(tmp_path / "room", job().description, b"{}")
    return tmp_path / "room"


def test_a_link_is_not_delivered_wherever_it_stands_in_the_path(tmp_path: Path, room: Path) -> None:
    (room / "scratch" / "out").symlink_to("/etc/passwd")
    (room / "scratch" / "etc").symlink_to("/etc")
    for name in ("out", "etc/passwd"):
        end = delivered(tmp_path, job(outputs=(name,)), room)
        assert end["status"] is Status.INTERNAL_ERROR
        assert "it is a link: " in end["result"]


def test_pipes_stop_nobody(tmp_path: Path, room: Path) -> None:
    for name in ("stdout", "stderr", "inputs.json", "scratch/result.json", "scratch/pipe"):
        os.mkfifo(room / name)
    assert delivered(tmp_path, job(), room)["status"] is Status.SUCCESS
    assert "neither a file nor a directory" in delivered(tmp_path, job(outputs=("pipe",)), room)["result"]


def test_a_directory_is_delivered_without_what_is_no_file_and_as_often_as_wanted(tmp_path: Path, room: Path) -> None:
    inner = room / "scratch" / "d" / "e"
    inner.mkdir(parents=True)
    (inner / "file").write_text("x")
    (inner / "link").symlink_to("/etc/passwd")
    os.mkfifo(inner / "pipe")
    for _ in range(2):
        assert delivered(tmp_path, job(outputs=("d",)), room)["status"] is Status.SUCCESS
    there = tmp_path / "results" / "guest" / "a" / "d"
    assert [str(path.relative_to(there)) for path in sorted(there.rglob("*"))] == ["e", "e/file"]


def test_what_can_t_be_linked_is_copied_with_its_mode_and_time(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_file_system(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_file_system)
    source = room / "scratch" / "out"
    source.write_text("data")
    source.chmod(0o750)
    os.utime(source, ns=(10**18, 10**18))
    assert delivered(tmp_path, job(outputs=("out",)), room)["status"] is Status.SUCCESS
    there = tmp_path / "results" / "guest" / "a" / "out"
    assert (there.read_text(), there.stat().st_mode & 0o777, there.stat().st_mtime_ns) == ("data", 0o750, 10**18)


def test_a_full_disk_is_waited_for(tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "AGAIN_S", 0.01)
    (room / "scratch" / "out").write_text("data")
    said: list[str] = []
    full = iter([True, True, False])

    def replace(source: Path, target: Path) -> None:
        if next(full):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        source.rename(target)

    monkeypatch.setattr(os, "replace", replace)
    deliverer = Delivery(tmp_path / "results", [], result_bytes_max=1000)

    async def deliver() -> Any:
        return deliverer.report(
            job(outputs=("out",)), jobs.Ending(exit_code=0), room, "h", usage={}, started_ms=1, ended_ms=2
        )

    assert asyncio.run(repeated(deliver, said.append)).status is Status.SUCCESS
    assert said == ["what it has left can't be delivered: No space left on device"]


def test_what_does_not_pass_is_not_waited_for() -> None:
    async def deliver() -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        asyncio.run(repeated(deliver, print))

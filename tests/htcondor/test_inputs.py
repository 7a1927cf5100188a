"""What was checked is what is read, whatever a namespace does to its results meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eventmill.errors import InvalidDescription
from eventmill.executors.htcondor.description import Sources
from eventmill.executors.htcondor.inputs import take_in


@pytest.fixture
def results(tmp_path: Path) -> Path:
    results = (tmp_path / "results" / "guest").resolve()
    (results / "run" / "more").mkdir(parents=True)
    (results / "frames.h5").write_text("frames")
    (results / "fit").write_text("#!/bin/sh\n")
    (results / "fit").chmod(0o755)
    (results / "run" / "a").write_text("a")
    (results / "run" / "more" / "b").write_text("b")
    return results


def taken(results: Path, room: Path, *paths: str, copies: bool = False) -> list[str]:
    files = Sources(executable=str(results / "fit"), input=None, inputs=paths)
    found = take_in(files, room, results, copies=copies)
    assert Path(found.executable).name == "fit"
    assert os.access(found.executable, os.X_OK)
    return list(found.inputs)


@pytest.mark.parametrize("copies", [False, True])
def test_files_of_the_results_get_a_name_in_the_room(results: Path, tmp_path: Path, copies: bool) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    frames, run, run_contents, other = taken(
        results, tmp_path / "room", str(results / "frames.h5"), str(results / "run"), f"{results / 'run'}/",
        str(secret), copies=copies,
    )  # fmt: skip
    assert other == str(secret)  # the configuration allows it, or it would not have come here
    assert run_contents.endswith("/run/")
    (results / "frames.h5").unlink()
    (results / "frames.h5").symlink_to(secret)  # what somebody might do now
    assert Path(frames).read_text() == "frames"
    assert Path(frames).name == "frames.h5"
    assert (Path(run) / "more" / "b").read_text() == "b"
    assert os.path.samefile(f"{run}/a", results / "run" / "a") is not copies
    os.chmod(f"{run}/a", 0o600)
    assert ((results / "run" / "a").stat().st_mode & 0o777 == 0o600) is not copies


def test_it_can_be_done_again(results: Path, tmp_path: Path) -> None:
    for _ in range(2):
        (found,) = taken(results, tmp_path / "room", str(results / "frames.h5"))
        assert Path(found).read_text() == "frames"


@pytest.mark.parametrize("name", ["frames.h5", "run", "run/more/b"])
def test_what_leads_elsewhere_by_now_is_refused(results: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = results / name
    path.rename(tmp_path / "away")
    path.symlink_to(secret)
    with pytest.raises(InvalidDescription, match="transfer_input_files: can't take"):
        taken(results, tmp_path / "room", str(path if "/" not in name else results / "run"))


def test_a_directory_on_the_way_that_leads_elsewhere_is_noticed(results: Path, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("secret")
    (results / "run" / "more").rename(tmp_path / "away")
    (results / "run" / "more").symlink_to(tmp_path)
    with pytest.raises(InvalidDescription, match="leads elsewhere"):
        taken(results, tmp_path / "room", str(results / "run" / "more" / "b"))


def test_neither_pipes_nor_what_is_gone(results: Path, tmp_path: Path) -> None:
    os.mkfifo(results / "pipe")
    for name, why in (("pipe", "neither a file nor a directory"), ("gone", "No such file")):
        with pytest.raises(InvalidDescription, match=why):
            taken(results, tmp_path / "room", str(results / name))


def test_nothing_is_made_where_nothing_is_taken(tmp_path: Path) -> None:
    files = Sources(executable="/code/fit", input=None, inputs=("/data/x",))
    assert take_in(files, tmp_path / "room", tmp_path / "results", copies=False) is files
    assert not (tmp_path / "room").exists()

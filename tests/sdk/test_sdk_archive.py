"""Archives of functions and jobs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from eventmill import FlowError
from eventmill.entities import submit
from eventmill.executors.archive import unpack as worker_unpack
from eventmill.sdk import archive as archives
from eventmill.sdk.pack import load

from .sdk_flows import archive, documents, flow, unpack, write, write_ten_lines

JOB = """
from eventmill import Mill
mill = Mill("m")
@mill.job(cpus=8, memory="16GB", include=["geometry.json", "masks"], submit={"request_gpus": "1", "+Beamline": '"P10"'})
def reduce(event): ...
"""


def test_a_function_archive_is_the_flow_the_sdk_and_a_main(tmp_path: Path) -> None:
    write_ten_lines(tmp_path)
    write(tmp_path, "constants.json", "{}")
    text = (
        (tmp_path / "flow.py").read_text().replace('Mill("beamtime")', 'Mill("beamtime", include=["constants.json"])')
    )
    docs = documents(flow(tmp_path, text))
    names = archive(docs["actions", "beamtime/inspect"]).namelist()
    own = [name for name in names if not name.startswith("eventmill/")]
    assert own == ["__main__.py", "constants.json", "flow.py"]
    assert {"eventmill/__init__.py", "eventmill/sdk/runtime.py", "eventmill/sdk/mill.py"} < set(names)
    assert not [name for name in names if "cli" in name or "api" in name or "pycache" in name]


def test_members_are_sorted_and_carry_no_time(tmp_path: Path) -> None:
    zip_file = archive(documents(load(write_ten_lines(tmp_path)))["actions", "beamtime/reconstruct"])
    assert zip_file.namelist() == sorted(zip_file.namelist())
    assert {info.date_time for info in zip_file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    modes = {info.filename: info.external_attr >> 16 & 0o777 for info in zip_file.infolist()}
    assert modes == {"flow.zip": 0o644, "job.sub": 0o644, "run.py": 0o755}


def test_a_submit_description_comes_with_its_files(tmp_path: Path) -> None:
    write_ten_lines(tmp_path)
    folder = unpack(documents(load(tmp_path / "flow.py"))["actions", "beamtime/calibrate"], tmp_path / "job")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "agipd.json",
        "bin/calibrate.sh",
        "job.sub",
    ]
    assert (folder / "job.sub").read_text() == (tmp_path / "calibrate.sub").read_text()
    assert (folder / "bin/calibrate.sh").stat().st_mode & 0o100


def test_files_that_a_parameter_chooses_are_included(tmp_path: Path) -> None:
    write(
        tmp_path,
        "jobs/run.sub",
        "Executable = ./run.sh\ntransfer_input_files = $(detector).json, https://x.org/gain.h5, \\\n  lib/\nqueue\n",
    )
    write(tmp_path, "jobs/run.sh", "#!/bin/sh\n")
    write(tmp_path, "jobs/lib/a.py", "")
    write(tmp_path, "jobs/lpd.json", "{}")
    text = "from eventmill import Mill\nmill = Mill('m')\nmill.job('jobs/run.sub', include=['lpd.json'])\n"
    names = archive(documents(flow(tmp_path, text))["actions", "m/run"]).namelist()
    assert names == ["job.sub", "lib/a.py", "lpd.json", "run.sh"]


def test_a_program_of_the_worker_is_not_packed(tmp_path: Path) -> None:
    write(tmp_path, "run.sub", "executable = /usr/bin/true\ntransfer_executable = False\nqueue\n")
    text = "from eventmill import Mill\nmill = Mill('m')\nmill.job('run.sub')\n"
    assert archive(documents(flow(tmp_path, text))["actions", "m/run"]).namelist() == ["job.sub"]


def test_a_python_jobs_description_is_accepted_by_the_servers_reader(tmp_path: Path) -> None:
    write(tmp_path, "geometry.json", "{}")
    write(tmp_path, "masks/a.txt", "1")
    folder = unpack(documents(flow(tmp_path, JOB))["actions", "m/reduce"], tmp_path / "job")
    bound = submit.parse((folder / "job.sub").read_text()).bind({"path": "/raw/1.h5"})
    assert bound.executable == "run.py"
    assert bound.inputs == ("flow.zip", "geometry.json", "masks")
    assert (bound.request_cpus, bound.request_memory_mb, bound.request_gpus) == (8, 16_384, 1)
    assert bound.arguments == ()
    assert bound.outputs is None
    assert (folder / "masks/a.txt").exists()


def test_the_ten_lines_descriptions_are_accepted_by_the_servers_reader(tmp_path: Path) -> None:
    docs = documents(load(write_ten_lines(tmp_path)))
    text = archive(docs["actions", "beamtime/calibrate"]).read("job.sub").decode()
    bound = submit.parse(text).bind({"path": "/raw/1 2.h5", "frames": 7}, roots=["/data"])
    assert bound.arguments == ("/raw/1 2.h5", "7")
    assert bound.inputs[0] == "agipd.json"


def test_archives_pass_the_workers_bounds(tmp_path: Path) -> None:
    docs = documents(load(write_ten_lines(tmp_path)))
    for name in ("inspect", "calibrate", "reconstruct"):
        zip_file = archive(docs["actions", f"beamtime/{name}"])
        data = zip_file.fp.getvalue() if isinstance(zip_file.fp, io.BytesIO) else b""
        worker_unpack(data, tmp_path / "unpacked" / name, files_max=100, bytes_max=1 << 20)
    assert (tmp_path / "unpacked/reconstruct/run.py").stat().st_mode & 0o100


def test_too_much_is_refused_with_the_largest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "CODE_BYTES_MAX", 3 << 20)
    for name, size in [("a.bin", 2 << 20), ("b.bin", 1 << 20), ("c.bin", 1)]:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"\0" * size)
    text = "from eventmill import Mill\nmill = Mill('m', include=['data'])\n@mill.function\ndef f(): ...\n"
    message = r"make 4 MB as base64, at most 3 are allowed; the largest: data/a.bin \(2.0 MB\), data/b.bin \(1.0 MB\)"
    with pytest.raises(FlowError, match=message):
        documents(flow(tmp_path, text))


@pytest.mark.parametrize("name", ["__main__.py", "eventmill/sdk/runtime.py"])
def test_no_file_of_ours_can_be_replaced(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, "print('mine')\n")
    text = f"from eventmill import Mill\nmill = Mill('m', include=[{name!r}])\n@mill.function\ndef f(): ...\n"
    with pytest.raises(FlowError, match=f"two files want to be '{name}'"):
        documents(flow(tmp_path, text))


def test_the_zip_inside_a_job_is_the_functions_archive(tmp_path: Path) -> None:
    docs = documents(load(write_ten_lines(tmp_path)))
    inner = zipfile.ZipFile(io.BytesIO(archive(docs["actions", "beamtime/reconstruct"]).read("flow.zip")))
    assert inner.namelist() == archive(docs["actions", "beamtime/inspect"]).namelist()

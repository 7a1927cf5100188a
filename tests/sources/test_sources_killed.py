"""A source that is killed at any moment, and one without rights. The judge is the tree itself."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .source_harness import TIMEOUT_S

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


@contextlib.contextmanager
def watcher(root: Path, out: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.sources.watcher", str(root), str(out.with_suffix(".state")), str(out)]
    process = subprocess.Popen([*command, *arguments], cwd=REPOSITORY, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def announced(out: Path) -> dict[str, set[str]]:
    """Ids by subject; what was half written is no event."""
    found: dict[str, set[str]] = {}
    for line in out.read_bytes().split(b"\n") if out.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            found.setdefault(event["subject"], set()).add(event["id"])
    return found


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def burst(root: Path, seed: int, stop: threading.Event) -> None:
    """Write, move and rename as fast as it goes."""
    rng = random.Random(seed)
    number = 0
    while not stop.is_set():
        number += 1
        directory = root / f"{seed}-{rng.randrange(20)}" / "sub"
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"{number}.h5"
        if rng.random() < 0.3:
            (root.parent / "outside").write_text("x" * number)
            (root.parent / "outside").rename(file)
        else:
            with file.open("w") as writing:
                writing.write("x")
                writing.flush()
                time.sleep(0.002 * rng.random())
                writing.write("x" * number)
        if rng.random() < 0.02:
            directory.parent.rename(root / f"renamed-{seed}-{number}")


def test_no_file_is_missed_whenever_the_source_is_killed(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    root.mkdir()
    rng = random.Random(7)
    with watcher(root, out):  # the very first start: from here on nothing is old
        wait_for(out.with_suffix(".ready").exists, "never got ready")
    stop = threading.Event()
    writing = threading.Thread(target=burst, args=(root, 1, stop))
    writing.start()
    try:
        for _ in range(8):
            with watcher(root, out) as process:
                time.sleep(0.3 + rng.random())
                process.send_signal(signal.SIGKILL)
            time.sleep(0.3 * rng.random())
    finally:
        stop.set()
        writing.join()
    files = {str(path) for path in root.rglob("*") if path.is_file()}
    with watcher(root, out):
        wait_for(lambda: files <= set(announced(out)), "files were missed")
    assert len(files) > 200
    twice = [subject for subject, ids in announced(out).items() if subject in files and len(ids) > 1]
    assert not twice, "a file that did not change has one id, however often it is announced"


def test_a_source_that_is_stopped_has_saved_how_far_it_was(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    root.mkdir()
    with watcher(root, out) as process:
        wait_for(out.with_suffix(".ready").exists, "never got ready")
        (root / "file").write_text("x")
        wait_for(lambda: str(root / "file") in announced(out), "not announced")
        process.send_signal(signal.SIGINT)
        process.wait(TIMEOUT_S)
    with contextlib.closing(sqlite3.connect(out.with_suffix(".state"))) as state:
        (value,) = state.execute("SELECT value FROM state WHERE name = ?", (f"files:{root}",)).fetchone()
    tick_ns = 20_000_000
    assert json.loads(value)["watermark_ns"] > (root / "file").stat().st_ctime_ns - tick_ns


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that everybody may use (pytest's own are private)."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


def test_a_source_without_rights(open_place: Path) -> None:
    """It can't take leases on what isn't its own, nor read everything: it goes on with the rest."""
    root, out = open_place / "data", open_place / "out"
    (root / "closed").mkdir(parents=True)
    (root / "closed").chmod(0)
    somebody_else = ["65534"] if os.geteuid() == 0 else []
    with watcher(root, out, *somebody_else):
        wait_for(lambda: out.with_suffix(".ready").exists() and out.with_suffix(".ready").read_text(), "not ready")
        assert out.with_suffix(".ready").read_text() == "1"
        (root / "moved.tmp").write_text("x")
        (root / "moved.tmp").rename(root / "moved")
        (root / "made" / "sub").mkdir(parents=True)
        (root / "made" / "sub" / "file").write_text("x")
        wanted = {str(root / "moved"), str(root / "made" / "sub" / "file")}
        wait_for(lambda: wanted <= set(announced(out)), "not announced")
    root.chmod(0)
    with watcher(root, out, *somebody_else) as process:
        assert process.stderr is not None
        assert b"can't be watched: Permission denied" in process.stderr.read()
    root.chmod(0o700)
    (root / "closed").chmod(0o700)

"""The jars of a Kafka broker: fetched once by Maven, kept in a cache directory of the working tree.

A directory in the cache is complete or not there: it gets its name, a digest of pom.xml, when all jars are in it. Only
one process fetches at a time (a lock on a file beside it, which the kernel frees with its holder).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "kafka"
POM = Path(__file__).with_name("pom.xml")
FETCH_TIMEOUT_S = 600


class KafkaTrouble(RuntimeError):
    """A broker can't be had; the message says what to do."""


def jars(cache: Path = CACHE) -> Path:
    """The directory of the jars, fetched if it isn't there. Raises KafkaTrouble if that fails."""
    directory = cache / hashlib.sha256(POM.read_bytes()).hexdigest()[:16]
    if directory.exists():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():  # somebody else may have fetched while we waited
            _fetch(directory)
    return directory


def program(name: str, package: str) -> str:
    """Path of a program. Raises KafkaTrouble with the package that brings it if it isn't installed."""
    found = shutil.which(name)
    if found is None:
        raise KafkaTrouble(f"`{name}` is missing, which a Kafka broker for tests needs: apt-get install {package}")
    return found


def _fetch(directory: Path) -> None:
    mvn = program("mvn", "maven")
    for left in directory.parent.glob("fetching-*"):  # by a process that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=directory.parent) as temporary:
        fetched = Path(temporary) / "jars"
        _maven(mvn, fetched)
        os.rename(fetched, directory)


def _maven(mvn: str, into: Path) -> None:
    """Let Maven copy the jars; with -C one whose checksum is wrong is an error."""
    command = [mvn, "-q", "-B", "-C", "-f", str(POM), "dependency:copy-dependencies"]
    options = [f"-DoutputDirectory={into}", "-DincludeScope=runtime"]
    try:
        ran = subprocess.run([*command, *options], capture_output=True, text=True, timeout=FETCH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise KafkaTrouble(f"Maven has not brought Kafka's jars within {FETCH_TIMEOUT_S} s") from None
    if ran.returncode != 0 or not into.is_dir():
        raise KafkaTrouble(f"Maven could not bring Kafka's jars:\n{(ran.stdout + ran.stderr)[-3000:]}")

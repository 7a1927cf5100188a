"""A real server as a process of its own, started by the real command."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cli.conftest import COMMAND

PATIENCE_S = 30.0


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`eventmill ARGUMENTS --data-dir data --port 0` in this folder, once it answers; killed at the end."""
    address = folder / "data/address"
    address.unlink(missing_ok=True)
    command = [COMMAND, *arguments, "--data-dir", "data", "--port", "0"]
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        wait_for(lambda: address.exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "stderr").read_text()
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def ended(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    """Its exit code after this signal."""
    process.send_signal(number)
    return process.wait(PATIENCE_S)


def wait_for(condition: Callable[[], Any]) -> Any:
    """What the condition returns as soon as that is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found

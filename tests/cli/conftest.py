"""The command line as it is called: in this process where that is enough, as the real command where it matters."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eventmill.cli import main

COMMAND = str(Path(sys.executable).with_name("eventmill"))


@dataclass(frozen=True)
class Ran:
    """What a command has left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Any]:
        """stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Cli:
    """Calls commands in an empty directory, without a server's address in the environment."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str, stdin: str | bytes = b"") -> Ran:
        """In this process."""
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        captured = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, captured.out, captured.err)

    def real(self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Ran:
        """As a process of its own."""
        surroundings = {**os.environ, **(env or {})}
        done = subprocess.run(
            [COMMAND, *arguments], input=stdin, capture_output=True, cwd=self.folder, env=surroundings, timeout=60
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    def write(self, name: str, content: str | dict[str, Any]) -> str:
        """A file in the directory; its name."""
        text = content if isinstance(content, str) else json.dumps(content)
        (self.folder / name).write_text(text)
        return str(self.folder / name)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    for name in ("EVENTMILL_URL", "EVENTMILL_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return Cli(tmp_path, monkeypatch, capsys)


def event(**attributes: Any) -> dict[str, Any]:
    """A complete event about a file, with these attributes in it."""
    standard = {
        "specversion": "1.0", "id": "1", "source": "/test", "type": "org.eventmill.file.written",
        "subject": "/exfel/run1/raw/a.h5",
    }  # fmt: skip
    return {**standard, **attributes}

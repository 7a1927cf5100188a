"""Which kinds of functions a server takes, and what their short names stand for. Values; what a machine has to run them
with is found out elsewhere (`executors.kinds`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

PYTHON = f"python:{sys.version_info.major}.{sys.version_info.minor}"
"""The one Python that functions run on at home."""
PYTHONS = tuple(f"python:3.{minor}" for minor in range(9, sys.version_info.minor + 1))
"""Code for an older Python runs on ours."""

NODEJS = ("nodejs:18", "nodejs:22", "nodejs:20")
"""What an OpenWhisk may have of Node.js, its own default last."""

BLACKBOX, NATIVE = "blackbox", "native"
"""An executable that speaks the ActionLoop protocol: as OpenWhisk's clients put it, with an image, and without."""
SKELETON = "openwhisk/dockerskeleton"
"""The one image: it has nothing but the executable. There are no containers."""


@dataclass(frozen=True, slots=True)
class Kinds:
    """`families`: kinds by their family (`python`, `nodejs`), the default last. `native`: executables are taken."""

    families: Mapping[str, tuple[str, ...]]
    native: bool = True

    def resolve(self, given: str) -> str | None:
        """The kind that is meant: itself, or a family's default for `family`, `family:default` and, of Python,
        `python:3`. None if there is no such kind."""
        if self.native and given in (BLACKBOX, NATIVE):
            return given
        family, _, version = given.partition(":")
        kinds = self.families.get(family, ())
        if given in kinds:
            return given
        return kinds[-1] if kinds and (version in ("", "default") or given == "python:3") else None

    def names(self) -> Iterator[str]:
        """All that `resolve` knows, for people."""
        for family, kinds in self.families.items():
            yield from (*kinds, family, f"{family}:default")
        if "python" in self.families:
            yield "python:3"
        if self.native:
            yield from (BLACKBOX, NATIVE)


PYTHON_ONLY = Kinds({"python": PYTHONS}, native=False)
"""What every server takes."""

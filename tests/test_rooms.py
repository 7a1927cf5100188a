"""The house stands: a room imports only from rooms below it (README), and the SDK from nothing but Python."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import eventmill

ROOT = Path(eventmill.__file__).parent

FLOORS = {
    "cli": 7, "server": 7, "logs": 7,
    "api": 6, "sources": 6,
    "engine": 5,
    "executors": 4,
    "backbone": 3, "store": 3,
    "rules": 2, "entities": 2,
    "events": 1, "errors": 1, "config": 1, "points": 1, "signing": 1,
    "sdk": 0,
}  # fmt: skip

SAME_FLOOR = {("cli", "server"), ("server", "logs"), ("backbone", "store"), ("store", "backbone"), ("events", "errors"),
              ("events", "config"), ("config", "errors"), ("rules", "errors")}  # fmt: skip
"""Neighbours that know each other: the embedded log is a table of the store, and events may be wrong."""

_CONDOR = ("executors", "htcondor")
EDGES = {
    "confluent_kafka": [("backbone", "kafka")], "htcondor2": [_CONDOR], "classad2": [_CONDOR],
    "httpx": [("executors", "openwhisk"), ("executors", "http")],
}  # fmt: skip
"""Who may know an outside, behind a contract: the folder of its adapter."""


def modules() -> Iterator[tuple[str, Path]]:
    for file in ROOT.rglob("*.py"):
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if room != "__init__":
            yield room, file


def imported(file: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_every_room_has_a_floor() -> None:
    assert {room for room, _ in modules()} == set(FLOORS)


@pytest.mark.parametrize(("room", "file"), sorted(modules()), ids=lambda x: str(x).rpartition("src/")[2])
def test_a_room_imports_only_from_below(room: str, file: Path) -> None:
    for name in imported(file):
        parts = name.split(".")
        if parts[0] != "eventmill" or len(parts) == 1:
            continue
        other = parts[1]
        if other != room and other in FLOORS:
            below = FLOORS[other] < FLOORS[room]
            assert below or (room, other) in SAME_FLOOR, f"{file.relative_to(ROOT)} imports {name}"


def test_the_sdk_imports_the_standard_library_alone() -> None:
    for room, file in modules():
        if room == "sdk":
            for name in imported(file):
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or name.startswith("eventmill.sdk") or name == "eventmill", name


@pytest.mark.parametrize("forbidden", ["confluent_kafka", "htcondor2", "starlette", "uvicorn", "httpx"])
def test_the_engine_knows_no_outside(forbidden: str) -> None:
    for room, file in modules():
        if FLOORS[room] <= 5 and file.relative_to(ROOT).parts[:2] not in EDGES.get(forbidden, ()):
            assert all(name.split(".")[0] != forbidden for name in imported(file)), file

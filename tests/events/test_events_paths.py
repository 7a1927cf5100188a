"""The mapping of names: whole components, the longest row wins, and the SDK's `Event.path` agrees."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventmill.config import PathMap
from eventmill.errors import InvalidConfig
from eventmill.events import PathTable
from eventmill.sdk.event import PATHS_ENV, Event, local_path

TABLE = PathTable(
    [
        PathMap(subject="/exfel", source="/pnfs/desy.de/exfel", local="/data/exfel"),
        PathMap(subject="/exfel/scratch", source="/pnfs/desy.de/scratch/", local="/scratch"),
        PathMap(subject="/exfel/here"),
        PathMap(subject="/flash", source="/pnfs/desy.de/flash"),
    ]
)


def test_three_names() -> None:
    assert TABLE.from_source("/pnfs/desy.de/exfel/raw/1.h5") == "/exfel/raw/1.h5"
    assert TABLE.to_local("/exfel/raw/1.h5") == "/data/exfel/raw/1.h5"
    assert TABLE.to_subject("/data/exfel/raw/1.h5") == "/exfel/raw/1.h5"
    assert TABLE.from_source("/pnfs/desy.de/flash/1") == TABLE.to_local("/flash/1") == "/flash/1"


def test_the_longest_row_wins() -> None:
    assert TABLE.to_local("/exfel/scratch/x") == "/scratch/x"
    assert TABLE.to_local("/exfel/here/x") == "/exfel/here/x"
    assert TABLE.from_source("/pnfs/desy.de/scratch/x") == "/exfel/scratch/x"


def test_prefixes_are_whole_components() -> None:
    assert TABLE.to_local("/exfel2/raw") == "/exfel2/raw"
    assert TABLE.to_local("/exfel") == "/data/exfel"
    assert TABLE.to_local("/exfel/") == "/data/exfel/"
    assert TABLE.to_local("exfel/raw") == "exfel/raw"


def test_root_can_be_mapped() -> None:
    table = PathTable([PathMap(subject="/", source="/pnfs", local="/mnt/all"), PathMap(subject="/top", source="/")])
    assert table.to_local("/a/b") == "/mnt/all/a/b"
    assert table.to_subject("/mnt/all") == "/"
    assert table.from_source("/x") == "/top/x"
    assert table.from_source("/pnfs/x") == "/x"


def test_without_rows_all_names_are_the_same() -> None:
    for mapped in (PathTable().to_local, PathTable().to_subject, PathTable().from_source):
        assert mapped("/a/b") == "/a/b"
    assert PathTable().environment() == "[]"


def test_two_sources_of_one_subject() -> None:
    table = PathTable([PathMap(subject="/x", source=f"/pnfs/{i}", local="/data") for i in range(2)])
    assert {table.from_source(f"/pnfs/{i}/f") for i in range(2)} == {"/x/f"}


@pytest.mark.parametrize(
    "rows",
    [
        [PathMap(subject="/a", local="/x"), PathMap(subject="/b", local="/x/")],
        [PathMap(subject="/a", local="/x"), PathMap(subject="/a/", local="/y")],
        [PathMap(subject="/a", source="/x"), PathMap(subject="/b", source="/x")],
        [PathMap(subject="/a", local="relative")],
    ],
)
def test_ambiguous_rows_are_refused(rows: list[PathMap]) -> None:
    with pytest.raises(InvalidConfig, match="paths:"):
        PathTable(rows)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["exfel", "exfel2", "scratch", "here", "raw", "1.h5"]), min_size=1, max_size=4))
def test_the_sdk_maps_alike_and_back(parts: list[str]) -> None:
    subject = "/" + "/".join(parts)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(PATHS_ENV, TABLE.environment())
        assert local_path(subject) == TABLE.to_local(subject)
        assert Event(subject=subject).path == TABLE.to_local(subject)
    if TABLE.to_local(subject) != subject:
        assert TABLE.to_subject(TABLE.to_local(subject)) == subject

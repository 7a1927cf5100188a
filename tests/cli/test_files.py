"""Which directories a flow's globs name, and the events of files that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eventmill.cli.backfill import Backfill
from eventmill.cli.watching import sources, watches
from eventmill.config import FileSource, PathMap, Settings
from eventmill.entities.ids import file_event_id
from eventmill.errors import InvalidInput
from eventmill.events import PathTable, validate
from eventmill.rules import parse
from eventmill.sdk.event import Event
from eventmill.sdk.patterns import dcache, files, happened

WRITTEN = files.written("/exfel/**/*.h5")


def triggers(*patterns: dict[str, Any]) -> list[Any]:
    return [
        ("triggers", f"t{i}", {"annotations": [{"key": "pattern", "value": pattern}]})
        for i, pattern in enumerate(patterns)
    ]


def test_the_roots_of_globs_are_watched(tmp_path: Path) -> None:
    for name in ("a/b", "c"):
        (tmp_path / name).mkdir(parents=True)
    patterns = [files.written(f"{tmp_path}/a/b/*.h5", f"{tmp_path}/c/**"), files.written(f"{tmp_path}/a/**/*.txt")]
    found = watches(triggers(*patterns), Settings())
    assert [(watch.path, watch.problem) for watch in found] == [(tmp_path / "a", ""), (tmp_path / "c", "")]
    assert [source.path for source in sources(found, Settings())] == [tmp_path / "a", tmp_path / "c"]


def test_what_the_configuration_watches_is_not_watched_twice(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    settings = Settings(files=[FileSource(path=tmp_path, start="all")])
    assert watches(triggers(files.written(f"{tmp_path}/a/*.h5")), settings) == []
    assert sources([], settings) == settings.files


def test_paths_map_roots(tmp_path: Path) -> None:
    settings = Settings(paths=[PathMap(subject="/exfel", local=str(tmp_path))])
    [watch] = watches(triggers(WRITTEN), settings)
    assert (watch.path, watch.problem) == (tmp_path, "")


@pytest.mark.parametrize(
    ("glob", "problem"),
    [
        ("**/*.h5", "names of files begin with '/'"),
        ("/**/*.h5", "would watch the whole machine"),
        ("/*/*.h5", "would watch the whole machine"),
    ],
)
def test_what_can_not_be_watched(glob: str, problem: str) -> None:
    [watch] = watches(triggers(files.written(glob)), Settings())
    assert problem in watch.problem
    assert sources([watch], Settings()) == []


def test_other_patterns_need_no_directory() -> None:
    assert watches(triggers(dcache.written("/pnfs/**/*.h5"), happened("x", subject="/a/*")), Settings()) == []


# files that are there


def batches(backfill: Backfill, folder: Path) -> list[list[Event]]:
    return list(backfill.batches(folder, lambda count=1: None))


def test_events_of_files(tmp_path: Path) -> None:
    for name in ("run/b.h5", "run/a.h5", "run/a.txt", "top.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link.h5").symlink_to(tmp_path / "top.h5")
    backfill = Backfill(parse(WRITTEN), PathTable([PathMap(subject="/exfel", local=str(tmp_path))]), [str(tmp_path)])
    [events] = batches(backfill, tmp_path)
    assert [event.subject for event in events] == ["/exfel/top.h5", "/exfel/run/a.h5", "/exfel/run/b.h5"]
    assert backfill.seen == 4
    status = (tmp_path / "top.h5").stat()
    assert events[0].id == file_event_id(str(tmp_path / "top.h5"), status.st_ino, status.st_size, status.st_mtime_ns)
    assert {event.source for event in events} == {f"file://{tmp_path}"}
    assert [validate(event) for event in events] == events


def test_the_source_is_the_innermost_watched_directory(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/f").write_text("")
    (tmp_path / "f").write_text("")
    pattern = parse(files.written(f"{tmp_path}/**"))
    backfill = Backfill(pattern, PathTable(), [str(tmp_path / "a"), str(tmp_path / "a/b")])
    [events] = batches(backfill, tmp_path)
    assert [event.source for event in events] == [f"file://{tmp_path}", f"file://{tmp_path}/a/b"]


def test_what_is_being_written_or_has_no_name_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "done").write_text("")
    (tmp_path / "bad\nname").write_text("")
    with (tmp_path / "open").open("w"):
        backfill = Backfill(parse(files.written(f"{tmp_path}/*")), PathTable(), [])
        [events] = batches(backfill, tmp_path)
    assert [event.subject for event in events] == [f"{tmp_path}/done"]
    assert (backfill.seen, backfill.being_written, backfill.unreadable) == (3, 1, 1)


def test_many_files_come_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventmill.cli.backfill.BATCH", 2)
    for i in range(5):
        (tmp_path / str(i)).write_text("")
    found = batches(Backfill(parse(files.written(f"{tmp_path}/*")), PathTable(), []), tmp_path)
    assert [len(events) for events in found] == [2, 2, 1]


def test_there_must_be_a_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no such directory"):
        batches(Backfill(parse(WRITTEN), PathTable(), []), tmp_path / "nosuch")

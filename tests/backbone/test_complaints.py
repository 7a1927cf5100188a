"""What goes on for long is said once, and then now and then."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from eventmill.backbone import complaints, room
from eventmill.backbone.complaints import Complaints
from eventmill.backbone.room import Room


def test_each_kind_is_said_once_in_a_while(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Complaints(logging.getLogger("test"))
    for text in ("1", "2"):
        said.say("a", text)
        said.say("b", text)
    said.over("a")
    said.say("a", "3")
    said.over()
    said.say("b", "3")
    monkeypatch.setattr(complaints, "AGAIN_S", 0.0)
    said.say("b", "4")
    assert caplog.messages == ["1", "1", "3", "3", "4"]


def test_a_full_disk_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_NO_ROOM_S", 0.01)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(Room(tmp_path, 1 << 40).wait(), 0.1))
    (line,) = caplog.messages
    assert line.startswith("reading is paused: less than ")

"""The server is killed at each named point of the engine; nothing is lost, nothing counts twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventmill.points import POINTS
from tests.server.mill import mill
from tests.soak import soak

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(point: str, tmp_path: Path) -> None:
    with mill(tmp_path) as m:
        m.start()
        m.deploy()
        m.stop()
        m.start(kill_at=point)
        numbers = 0
        while not m.died() and numbers < 40:
            m.post("note", [numbers, numbers + 1])
            m.post("chain", [numbers])
            numbers += 2
            if numbers == 4:
                m.until(lambda: m.died() or m.done(), 20, f"death at {point}")
        assert m.died(), f"the point {point} was never reached"
        m.start()
        m.post("note", range(100, 103))
        m.until_done()
        m.stop()
        m.judge()


def test_killed_ten_times_at_random_under_load(tmp_path: Path) -> None:
    with mill(tmp_path) as m:
        outcome = soak(m, seed=20261124, kills=10)
        assert outcome["kills"] == 10
        assert outcome["notes acknowledged"] > 100

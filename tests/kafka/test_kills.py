"""The server is killed at each named point, and at random together with the broker; nothing is lost, nothing counts
twice."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from eventmill.points import KAFKA_POINTS, POINTS
from tests.kafka.broker import Broker
from tests.kafka.mill import feeding, kafka_mill
from tests.soak import soak_kafka

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("point", [*POINTS, *KAFKA_POINTS])
def test_killed_at(point: str, broker: Broker, tmp_path: Path) -> None:
    with kafka_mill(tmp_path, broker, session_timeout_s=1) as m:
        m.start()
        m.deploy()
        m.kill()
        m.start(kill_at=point)
        with feeding(m, seed=1, rate=50) as feeder:
            end = time.monotonic() + 30
            for n in itertools.count():
                if m.died():
                    break
                assert time.monotonic() < end, f"the point {point} was never reached; {m.state()}"
                m.post("chain", [n])
                time.sleep(0.3)
            m.start()
            m.post("note", range(3))
            time.sleep(0.5)
        m.until_done()
        assert m.stop() == 0
        outcome = m.judge_effects(feeder.acknowledged, feeder.sent)
        assert outcome["effects"] > 3
        assert point != "relayed" or outcome["events relayed again"] > 0


def test_killed_and_frozen_at_random_under_load(tmp_path: Path) -> None:
    with Broker(tmp_path / "kafka") as broker, kafka_mill(tmp_path, broker) as m:
        outcome = soak_kafka(m, seed=20261124, seconds=45)
        assert outcome["server killed"] > 0
        assert outcome["broker killed"] > 0
        assert outcome["server frozen"] > 0
        assert outcome["records acknowledged"] > 500

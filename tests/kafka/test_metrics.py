"""What /metrics says of the log: what was ignored, how far behind we are, what waits for Kafka."""

from __future__ import annotations

import re
from pathlib import Path

import orjson
import pytest

from tests.kafka.broker import Broker
from tests.server.mill import CONFIG, Mill, mill

CHECK = {"version": "1.0", "msgType": "check", "date": "2026-05-04T08:00:00Z"}


def numbers(m: Mill) -> dict[str, float]:
    """The server's metrics, by name and labels."""
    return {
        name: float(value)
        for name, value in re.findall(
            r"^(eventmill_\S+(?:\{.*\})?) (\S+)$", m.client.get("/metrics").text, re.MULTILINE
        )
    }


@pytest.mark.slow
def test_the_log_in_numbers(tmp_path: Path) -> None:
    """With a broker of its own, which it stops."""
    with Broker() as broker:
        broker.create_topic("billing", 2)
        kafka = f'[backbone]\nkind = "kafka"\nbrokers = "{broker.bootstrap}"\n'
        kafka += '[[topics]]\nname = "billing"\ndecoder = "dcache"\nstart = "earliest"\n'
        broker.produce("billing", [orjson.dumps(CHECK)] * 7)
        with mill(tmp_path, CONFIG + kafka) as m:
            m.start()
            m.deploy()
            ignored = 'eventmill_records_ignored_total{reason="check",topic="billing"}'
            m.until(lambda: numbers(m).get(ignored) == 7, 30, "the records to be read")
            m.until(lambda: numbers(m).get('eventmill_kafka_lag{topic="billing"}') == 0, 30, "the lag to be known")
            assert numbers(m)["eventmill_backbone_ok"] == 1
            m.post("note", range(5))
            m.until(lambda: numbers(m)["eventmill_relayed_total"] >= 10, 30, "events and completions to be relayed")
            m.until(lambda: numbers(m)["eventmill_outbox_records"] == 0, 10, "the outbox to be empty")

            broker.stop()
            m.until(lambda: numbers(m)["eventmill_backbone_ok"] == 0, 30, "the server to notice")
            m.post("note", range(5, 9))
            assert numbers(m)["eventmill_outbox_records"] == 4
            broker.start()
            m.until(lambda: numbers(m)["eventmill_outbox_records"] == 0, 60, "the outbox to be empty again")
            m.until(lambda: numbers(m)["eventmill_backbone_ok"] == 1, 60, "the server to notice")
            assert m.stop() == 0


@pytest.mark.slow
def test_embedded_there_is_nobody_to_be_behind(tmp_path: Path) -> None:
    with mill(tmp_path) as m:
        m.start()
        found = numbers(m)
        assert found["eventmill_backbone_ok"] == 1
        assert found["eventmill_outbox_records"] == found["eventmill_relayed_total"] == 0
        assert not any(name.startswith(("eventmill_kafka_lag", "eventmill_records_ignored")) for name in found)

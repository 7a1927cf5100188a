"""A server that stood still for longer than its session wakes up, when another one has all that was its own: it writes
nothing, and ends."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from tests.kafka.broker import Broker
from tests.kafka.feeder import Effect
from tests.kafka.mill import KafkaMill, kafka_mill

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("protocol", "workers"), [("classic", True), ("consumer", False)])
def test_who_stood_still_writes_nothing(protocol: str, workers: bool, broker: Broker, tmp_path: Path) -> None:
    """`workers`: the function under way stands still, too, and ends just before the server goes on; else it has ended
    long ago, and its result lies there when the server wakes up."""
    with (
        kafka_mill(tmp_path / "first", broker, protocol=protocol, session_timeout_s=2) as first,
        kafka_mill(tmp_path / "second", broker, protocol=protocol, session_timeout_s=2, beside=first) as second,
    ):
        first.start()
        first.deploy()
        sent = _produce(first, "note", range(20)) | _produce(first, "slow", range(1), seconds=2)
        first.until(lambda: _under_way(first) == ["slow"] and first.behind() == 0, 30, "the slow one to be left")
        frozen = _freeze_between_transactions(first, workers)
        sent |= _produce(first, "note", range(20, 50))

        second.start()
        second.until_done()
        rows, positions = _rows(first), _positions(first)
        if workers:
            first.thaw(frozen[1:])
            first.until(lambda: _ended(first) == 2, 10, "the function that stood still to end")
        first.thaw(frozen)
        first.until(first.died, 30, "the first server to end")
        assert first.process is not None
        assert first.process.returncode == 1
        assert "another server has taken over" in first.log.read_text().splitlines()[-1]

        assert _rows(first) == rows
        sent |= _produce(first, "note", range(50, 60))
        second.until_done()
        assert all(_positions(first)[place] >= position for place, position in positions.items())
        assert [row for row in _rows(first) if row in rows] == rows
        second.judge_effects(sent, sent)
        assert _slow_run(first) == _begun(first)[1]
        assert second.stop() == 0


def _produce(m: KafkaMill, kind: str, numbers: range, **data: object) -> set[Effect]:
    ids = [f"kafka-{kind}-{n}" for n in numbers]
    event = {"specversion": "1.0", "source": "//lab", "type": f"witness.{kind}", "data": data}
    m.broker.produce(m.topics["runs"], [orjson.dumps({**event, "id": id}) for id in ids])
    return {(kind, id) for id in ids}


def _under_way(m: KafkaMill) -> list[str]:
    return [action.rpartition("/")[2] for (action,) in m.query("SELECT action FROM activations WHERE state<5")]


def _freeze_between_transactions(m: KafkaMill, workers: bool) -> list[int]:
    """SQLite's lock on its file is this machine's: who is stopped in a transaction keeps all others out."""
    while True:
        frozen = m.freeze(workers=workers)
        try:
            with closing(sqlite3.connect(m.data / "store.db", timeout=0.1, isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
            return frozen
        except sqlite3.OperationalError:
            m.thaw(frozen)
            time.sleep(0.05)


def _rows(m: KafkaMill) -> list[tuple[object, ...]]:
    return m.query("SELECT * FROM activations ORDER BY seq")


def _positions(m: KafkaMill) -> dict[tuple[str, int], int]:
    return {(topic, n): at for topic, n, at in m.query("SELECT topic, number, position FROM partitions")}


def _begun(m: KafkaMill) -> list[str]:
    """The runs of the slow function, in order."""
    prefix = "slow-begun-"
    return [line.split()[0].removeprefix(prefix) for line in m.witness.read_text().splitlines() if prefix in line]


def _ended(m: KafkaMill) -> int:
    return m.witness.read_text().count("slow-ended-")


def _slow_run(m: KafkaMill) -> str:
    """The run of the slow function that is recorded."""
    ((result,),) = m.query("SELECT result FROM activations WHERE action LIKE '%slow'")
    return str(orjson.loads(result)["run"])

"""What happens to a whole server when Kafka is away, when something can't be dealt with, and when it stands still."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from eventmill import Event
from eventmill.backbone.embedded import EmbeddedBackbone
from eventmill.backbone.room import Room
from eventmill.store import SqliteStore
from tests.kafka.broker import PASSWORD, USER, Broker
from tests.kafka.reading import reading, settings
from tests.server.mill import CONFIG, Mill, mill

pytestmark = pytest.mark.slow

KAFKA = """
[backbone]
kind = "kafka"
brokers = "{brokers}"
topic = "own-{name}"
group = "{name}"
session_timeout_s = 1
[backbone.properties]
"topic.metadata.refresh.interval.ms" = 300
"reconnect.backoff.max.ms" = 200
{properties}
[[topics]]
name = "{name}"
decoder = "json"
source = "//lab"
map = {{ id = "id", type = "kind", type_prefix = "lab." }}
start = "earliest"
"""

FLOW = """
import os, time
from eventmill import Mill, happened

mill = Mill("lab")

def testify(event):
    with open(event.data["witness"], "a") as f:
        f.write(f"note {event.data['n']} -\\n")

@mill.function
def fast(event):
    testify(event)

@mill.function(timeout="60s", retries=0)
def slow(event):
    time.sleep(event.data["seconds"])
    testify(event)

@mill.function(retries=0)
def broken(event):
    raise ValueError("it never works")

mill.on(happened("lab.fast"), fast)
mill.on(happened("lab.slow"), slow)
mill.on(happened("lab.broken"), broken)
"""


@contextmanager
def served(directory: Path, brokers: str, name: str, *, properties: str = "") -> Iterator[Mill]:
    with mill(directory, CONFIG + KAFKA.format(brokers=brokers, name=name, properties=properties)) as m:
        yield m


@pytest.fixture
def name() -> str:
    """Of a topic, and of a group, that nobody else has."""
    return f"behaviour-{uuid4().hex[:8]}"


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    file = tmp_path / "lab.py"
    file.write_text(FLOW)
    return file


def backbone(m: Mill) -> dict[str, Any]:
    found: dict[str, Any] = m.client.get("/eventmill/v1/check").json()["components"]["backbone"]
    return found


def record(m: Mill, kind: str, n: int, **more: Any) -> bytes:
    return json.dumps({"id": f"{kind}-{n}", "kind": kind, "n": n, "witness": str(m.witness), **more}).encode()


def noted(m: Mill) -> set[int]:
    return set(m.testimony()["note"])


def lines(m: Mill, text: str) -> int:
    return sum(text in line for line in m.log.read_text().splitlines())


def judge(m: Mill, numbers: set[int]) -> None:
    """Each of these has its effect, and one success."""
    m.until(lambda: noted(m) >= numbers, 30, f"{numbers} to be noted")
    m.until(lambda: m.query("SELECT count(*) FROM activations WHERE state<5") == [(0,)], 30, "everything to end")
    rows = m.query("SELECT cause_id, state, finishes FROM activations WHERE cause_source IN ('//generator', '//lab')")
    assert sorted(rows) == sorted((f"note-{n}", 5, 1) for n in numbers)


def test_without_a_broker_a_server_starts_and_takes_events_which_go_on_when_it_comes(name: str, tmp_path: Path) -> None:
    broker = Broker(tmp_path / "kafka")
    try:
        with served(tmp_path, broker.bootstrap, name) as m:
            m.start()
            m.deploy()
            m.post("note", range(5))
            m.until(lambda: lines(m, "no broker can be reached") == 1, 10, "a line about it")
            assert m.client.get("/readyz").status_code == 200
            assert backbone(m)["ok"] is False
            assert "is backbone.brokers right?" in backbone(m)["detail"]
            m.kill()

            m.start()  # what was acknowledged is there
            m.post("note", range(5, 10))
            called = m.client.post("/api/v1/namespaces/_/actions/witness/note?blocking=true", json=_event(m, 99))
            assert called.status_code == 200, called.text
            began = time.monotonic()
            assert m.stop() == 0
            assert time.monotonic() - began < 20
            m.start()
            assert noted(m) == {99}

            broker.start()
            judge(m, {*range(10)})
            m.until(lambda: backbone(m)["ok"], 10, "the condition to be told")
            assert lines(m, "Kafka answers") >= 1

            broker.kill()
            m.post("note", range(10, 15))
            m.until(lambda: not backbone(m)["ok"], 10, "the condition to be told")
            broker.start()
            m.post("note", range(15, 20))
            judge(m, {*range(20)})
            m.until(lambda: backbone(m)["ok"], 10, "the condition to be told")
            assert lines(m, "Connect to") < 10, "what goes on for long is said now and then"
    finally:
        broker.close()


def _event(m: Mill, n: int) -> dict[str, Any]:
    return {
        "specversion": "1.0", "id": f"call-{n}", "source": "//call", "type": "call",
        "data": {"n": n, "witness": str(m.witness)},
    }  # fmt: skip


def test_neither_a_poisonous_record_nor_a_slow_action_stops_a_partition(
    broker: Broker, name: str, tmp_path: Path, flow: Path
) -> None:
    broker.create_topic(name)
    with served(tmp_path, broker.bootstrap, name) as m:
        m.start()
        m.deploy(flow)
        poison = [b"\x00\xff no JSON", b"", b"[1]", record(m, "broken", 1), b'{"kind": 7}', None]
        slow = [record(m, "slow", 1000 + n, seconds=3) for n in range(20)]
        fast = [record(m, "fast", n) for n in range(50)]
        broker.produce(name, [*slow, *poison, *fast, *poison[:1], record(m, "fast", 50)])
        m.until(lambda: noted(m) >= {*range(51)}, 20, "the fast ones")
        assert len(noted(m)) < 71, "the slow ones are still under way"
        letters = m.query('SELECT kind, topic, "offset" FROM dead_letters ORDER BY seq')
        assert [letter for letter in letters if letter[0] == "activation"]
        refused = [offset for kind, topic, offset in letters if kind == "record" and topic == name]
        assert {20, 22, 24, 76} <= set(refused) <= {20, 21, 22, 24, 76}


def test_a_server_that_stood_still_takes_its_partitions_up_again(
    broker: Broker, name: str, tmp_path: Path, flow: Path
) -> None:
    broker.create_topic(name, 3)
    with served(tmp_path, broker.bootstrap, name) as m:
        m.start()
        m.deploy(flow)
        broker.produce(name, [record(m, "fast", n) for n in range(20)])
        broker.produce(name, [record(m, "slow", 100, seconds=3)])
        m.until(lambda: noted(m) == {*range(20)}, 20, "the fast ones")
        assert m.process is not None
        m.process.send_signal(signal.SIGSTOP)
        broker.produce(name, [record(m, "fast", n) for n in range(20, 40)])
        time.sleep(2)
        m.process.send_signal(signal.SIGCONT)
        m.until(lambda: noted(m) == {*range(40), 100}, 20, "all, also what was under way")
        m.until(lambda: m.query("SELECT count(*) FROM activations WHERE state<5") == [(0,)], 10, "everything to end")
        rows = m.query("SELECT state, finishes, interruptions, attempt FROM activations WHERE cause_source='//lab'")
        assert rows == [(5, 1, 0, 1)] * 41
        assert set(m.testimony()["note"].values()) == {1}
        assert lines(m, "taken 4 partitions away: this server was not heard of in time") == 1


def test_a_group_of_another_store_ends_the_server_with_advice(broker: Broker, name: str, tmp_path: Path) -> None:
    async def other() -> None:
        (tmp_path / "other").mkdir()
        async with reading(tmp_path / "other", settings(broker, {"name": name, "start": "earliest"}, group=name)) as r:
            await r.until_assigned(2)
            await asyncio.sleep(1.5)  # offsets are committed once a second

    broker.create_topic(name)
    asyncio.run(other())
    with served(tmp_path, broker.bootstrap, name) as m:
        m.start(wait=False)
        m.until(m.died, 20, "its end")
        assert m.process is not None
        assert m.process.returncode in (1, 2)
        last = m.log.read_text().splitlines()[-1]
        assert "the consumer group is used by another Eventmill server with a store of its own" in last
        assert "give this one a backbone.group of its own" in last


# TLS and SASL


def test_tls_and_scram_with_the_secret_from_environment_and_file(
    broker: Broker, name: str, tmp_path: Path, flow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.create_topic(name)
    monkeypatch.setenv("BROKER_PASSWORD", PASSWORD)
    (tmp_path / "secret").write_text(PASSWORD + "\n")
    for number, place in enumerate(('env = "BROKER_PASSWORD"', f'file = "{tmp_path}/secret"')):
        given = _sasl(broker, place)
        with served(tmp_path, broker.sasl["bootstrap.servers"], name, properties=given) as m:
            m.start()
            m.deploy(flow)
            broker.produce(name, [record(m, "fast", number)])
            m.until(lambda m=m, n=number: n in noted(m), 20, "the record's effect")
            assert m.stop() == 0
            assert PASSWORD not in m.log.read_text()


def test_a_wrong_password_is_said_without_the_password(
    broker: Broker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "not-the-password-of-anybody"
    monkeypatch.setenv("BROKER_PASSWORD", wrong)
    given = _sasl(broker, 'env = "BROKER_PASSWORD"')
    with served(tmp_path, broker.sasl["bootstrap.servers"], name, properties=given) as m:
        m.start()
        m.until(lambda: lines(m, "the broker does not accept our name or password"), 20, "a line about it")
        assert not backbone(m)["ok"]
        assert "the broker does not accept our name or password" in backbone(m)["detail"]
        check = m.client.get("/eventmill/v1/check").text
        assert m.stop() == 0
        assert wrong not in m.log.read_text() + check


def _sasl(broker: Broker, place: str) -> str:
    return f"""
"security.protocol" = "SASL_SSL"
"ssl.ca.location" = "{broker.tls["ssl.ca.location"]}"
"sasl.mechanism" = "SCRAM-SHA-512"
"sasl.username" = "{USER}"
"sasl.password" = {{ {place} }}
"""


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "SCRAM-SHA-256", "TLS"])
def test_other_ways_in(mechanism: str, broker: Broker, name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", PASSWORD)
    properties: dict[str, Any] = {
        **broker.sasl,
        "sasl.mechanism": mechanism,
        "sasl.password": {"env": "BROKER_PASSWORD"},
    }
    if mechanism == "TLS":
        properties = dict(broker.tls)
    elif mechanism == "OAUTHBEARER":
        properties |= {"enable.sasl.oauthbearer.unsecure.jwt": True, "sasl.oauthbearer.config": "principal=mill"}
        del properties["sasl.password"], properties["sasl.username"]
    brokers = properties.pop("bootstrap.servers")

    async def body() -> None:
        async with reading(tmp_path, settings(brokers, group=name, properties=properties)) as r:
            await r.backbone.append([Event.new("test", "//test")])
            await r.until(lambda: r.batches, "our own event")

    asyncio.run(asyncio.wait_for(body(), 40))


# from one backbone to the other


def test_what_waits_is_not_lost_when_the_backbone_is_another_one(broker: Broker, name: str, tmp_path: Path) -> None:
    events = [Event.new("test", "//test", id=str(n), time="2026-01-01T00:00:00Z") for n in range(3)]

    @asynccontextmanager
    async def embedded() -> AsyncIterator[EmbeddedBackbone]:
        store = SqliteStore.open(tmp_path / "store.db")
        log = EmbeddedBackbone(store, Room(tmp_path, 0), batch_max=10, batch_bytes=1 << 20)
        await log.start()
        yield log
        await log.stop()
        store.close()

    async def body() -> None:
        async with embedded() as log:
            await log.append(events[:1])
        async with reading(tmp_path, settings(broker, group=name)) as r:
            await r.until(lambda: r.batches, "what the embedded log had not read")
            assert [json.loads(v)["id"] for b in r.batches for v in b.values] == ["0"]
        async with reading(tmp_path, settings("127.0.0.1:1", group=name)) as r:
            await r.backbone.append(events[1:])  # and the broker never comes
        async with embedded() as log:
            batch = await anext(log.batches())
            assert [json.loads(value)["id"] for value in batch.values] == ["1", "2"]

    asyncio.run(asyncio.wait_for(body(), 40))

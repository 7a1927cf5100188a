"""The tool itself: what tests rely on when they start, stop, kill and freeze brokers."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from tests.kafka.broker import Broker, Cluster
from tests.kafka.jars import KafkaTrouble, jars
from tests.kafka.topics import QUIET, until

pytestmark = pytest.mark.slow

OAUTH = {
    "sasl.mechanism": "OAUTHBEARER",
    "enable.sasl.oauthbearer.unsecure.jwt": "true",
    "sasl.oauthbearer.config": "principal=mill",
}
"""The client's half of tokens that nobody has signed."""


@pytest.fixture(scope="module")
def own() -> Iterator[Broker]:
    """A broker that a test may kill; the next one starts it again."""
    with Broker() as own:
        yield own


def values(broker: Broker | Cluster, topic: str, settings: Mapping[str, Any] | None = None) -> list[bytes | None]:
    return [record.value() for record in broker.records(topic, settings)]


# Topics and records.


def test_records_come_back_as_they_were_written(broker: Broker) -> None:
    topic = broker.create_topic(partitions=2)
    headers = [{"ce_id": b"1"}, {"ce_id": b"2"}]
    places = broker.produce(
        topic, [b"a", None], keys=[b"k", b"l"], headers=headers, timestamps_ms=[1000, 2000], partition=1
    )
    assert places == [(1, 0), (1, 1)]
    first, second = broker.records(topic)
    assert (first.key(), first.value(), first.headers()) == (b"k", b"a", [("ce_id", b"1")])
    assert (second.value(), second.timestamp()[1]) == (None, 2000)
    assert broker.end_offsets(topic) == {0: 0, 1: 2}


def test_a_log_can_lose_its_beginning(broker: Broker) -> None:
    topic = broker.create_topic()
    broker.produce(topic, [b"a", b"b", b"c"])
    broker.delete_records(topic, 0, before=2)
    assert (broker.start_offsets(topic), broker.end_offsets(topic)) == ({0: 2}, {0: 3})
    assert values(broker, topic) == [b"c"]


def test_a_topic_can_grow_and_go_and_come_back(broker: Broker) -> None:
    topic = broker.create_topic(config={"max.message.bytes": "2000"})
    broker.add_partitions(topic, 3)
    assert broker.partitions(topic) == [0, 1, 2]
    with pytest.raises(KafkaException) as refused:
        broker.produce(topic, [b"x" * 3000])
    assert refused.value.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
    broker.delete_topic(topic)
    assert broker.partitions(topic) == []
    broker.create_topic(topic)
    assert broker.end_offsets(topic) == {0: 0}


# The broker's life.


def test_records_outlive_a_stop_and_a_kill_at_the_same_address(own: Broker) -> None:
    address, topic = own.bootstrap, own.create_topic()
    own.produce(topic, [b"a"])
    own.restart()
    own.produce(topic, [b"b"])
    own.kill()
    assert not own.running
    own.start()
    assert own.bootstrap == address
    assert values(own, topic) == [b"a", b"b"]


def test_a_frozen_broker_answers_nothing_until_it_goes_on(own: Broker) -> None:
    topic = own.create_topic()
    own.pause()
    with pytest.raises(KafkaException):
        own.admin().list_topics(timeout=1)
    own.resume()
    assert own.produce(topic, [b"a"]) == [(0, 0)]


def test_a_frozen_broker_can_be_stopped(own: Broker) -> None:
    own.pause()
    own.stop()
    assert not own.running
    own.start()


def test_nobody_gets_the_port_of_a_broker_that_is_down(own: Broker) -> None:
    own.kill()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", int(own.bootstrap.rpartition(":")[2])))
    own.start()


def test_a_broker_outlives_the_thread_that_started_it(own: Broker) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(own.restart).result()
    assert own.process is not None
    with pytest.raises(subprocess.TimeoutExpired):
        own.process.wait(0.5)


def test_a_broker_dies_with_its_process(tmp_path: Path) -> None:
    code = """if True:
        import sys, time, pathlib
        from tests.kafka.broker import Broker
        broker = Broker(pathlib.Path(sys.argv[1]))
        broker.launch()
        print(broker.process.pid, flush=True)
        time.sleep(600)"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            broker = os.pidfd_open(int(parent.stdout.readline()))
            assert not select.select([broker], [], [], 0.5)[0], "gone before its parent"
        finally:
            parent.kill()
    try:
        assert select.select([broker], [], [], 30)[0], "still there"
    finally:
        os.close(broker)


def test_a_broker_that_cannot_start_says_why() -> None:
    with pytest.raises(KafkaTrouble, match=r"num\.io\.threads"), Broker(properties={"num.io.threads": "none"}):
        pass


# TLS and SASL.


@pytest.mark.parametrize(
    "settings", [{}, {"sasl.mechanism": "SCRAM-SHA-256"}, {"sasl.mechanism": "PLAIN"}, OAUTH], ids=str
)
def test_the_user_is_let_in(broker: Broker, settings: dict[str, str]) -> None:
    sasl, topic = broker.sasl | settings, broker.create_topic()
    if settings is OAUTH:
        del sasl["sasl.username"], sasl["sasl.password"]
    broker.produce(topic, [b"a"], settings=sasl)
    assert values(broker, topic, sasl) == [b"a"]


def test_a_client_with_the_authority_is_let_in_by_tls(broker: Broker) -> None:
    topic = broker.create_topic()
    broker.produce(topic, [b"a"], settings=broker.tls)
    assert values(broker, topic, broker.tls) == [b"a"]


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
def test_a_wrong_password_is_refused(broker: Broker, mechanism: str) -> None:
    wrong = broker.sasl | {"sasl.mechanism": mechanism, "sasl.password": "guessed"}
    assert refusal(wrong) == KafkaError._AUTHENTICATION


def test_a_broker_that_no_authority_speaks_for_is_refused(broker: Broker) -> None:
    unknown = {name: value for name, value in broker.tls.items() if name != "ssl.ca.location"}
    assert refusal(unknown) == KafkaError._SSL


def refusal(settings: dict[str, str]) -> int:
    """The code of the first error that a client with these settings hears of."""
    heard: list[KafkaError] = []
    callback: Any = heard.append
    client = AdminClient({**settings, **QUIET, "error_cb": callback})
    until(lambda: client.poll(0.1) > 0 or bool(heard), "an error")
    return heard[0].code()


# Three brokers.


def test_what_a_cluster_has_acknowledged_outlives_its_leader() -> None:
    count = 5000
    acknowledged: list[bytes | None] = []

    def report(error: KafkaError | None, message: Message) -> None:
        assert error is None, error
        acknowledged.append(message.value())

    with Cluster() as cluster:
        topic = cluster.create_topic()
        leader = cluster.leader(topic)
        producer = Producer({"bootstrap.servers": cluster.bootstrap, "enable.idempotence": True, **QUIET})
        for number in range(count):
            producer.produce(topic, b"%d" % number, on_delivery=report)
            producer.poll(0.0005)
            if number == count // 2:
                leader.kill()
        assert producer.flush(60) == 0
        assert cluster.leader(topic) is not leader
        assert len(acknowledged) == count
        assert values(cluster, topic) == acknowledged
        cluster.start()
        assert leader.running


# The command, and how the jars come.


def test_the_command_runs_a_broker_until_it_is_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.kafka", "--port", "0", "--dir", str(tmp_path), "--topic", "a:3", "b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"ready on (\S+)", process.stdout.readline())
            assert address is not None
            topics = AdminClient({"bootstrap.servers": address[1]}).list_topics(timeout=10).topics
            assert [len(topics[name].partitions) for name in ("a", "b")] == [3, 1]
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaTrouble, match="apt-get install maven"):
        jars(tmp_path / "cache")


MAVEN = """#!/bin/sh
echo call >> "$0.calls"
sleep 0.3
for option; do case $option in -DoutputDirectory=*) into=${option#*=} ;; esac; done
mkdir "$into" && touch "$into/kafka.jar"
"""


def test_the_jars_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maven = tmp_path / "mvn"
    maven.write_text(MAVEN)
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    cache = tmp_path / "cache"
    (cache / "fetching-long-ago").mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(jars, [cache, cache])
    assert first == second
    assert [jar.name for jar in first.iterdir()] == ["kafka.jar"]
    assert {path.name for path in cache.iterdir()} == {first.name, "lock"}
    assert (tmp_path / "mvn.calls").read_text() == "call\n"

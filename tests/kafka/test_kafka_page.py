"""docs/kafka.md: its examples are configurations, the rights that it names are enough, and what it shows works."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, admin

from eventmill.backbone.kafka import client
from eventmill.backbone.kafka.subscription import Subscription
from eventmill.config import load
from eventmill.events import PathTable
from tests.kafka.broker import PASSWORD, USER, Broker
from tests.kafka.certificates import certificates
from tests.server.mill import CONFIG, EVENTMILL, Mill, mill

PAGE = (Path(__file__).parents[2] / "docs/kafka.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
RIGHTS = re.findall(r"^\| (topic|group) \| (.+?) \| ([A-Z, ]+) \|$", PAGE, re.MULTILINE)
TOPIC, GROUP = "billing", "eventmill"
WRITTEN = {
    "version": "1.0", "msgType": "transfer", "date": "2026-05-04T08:00:00Z", "cellName": "p", "cellType": "pool",
    "cellDomain": "d", "status": {"code": 0, "msg": ""}, "session": "s", "pnfsid": "0" * 36, "fileSize": 1,
    "billingPath": "/pnfs/x/f.h5", "transferPath": "/pnfs/x/f.h5", "isWrite": "write", "isP2p": False,
    "protocolInfo": {"protocol": "Http"},
}  # fmt: skip


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples say is in /etc/eventmill."""
    folder = tmp_path_factory.mktemp("etc")
    made = certificates(folder / "tls")
    (folder / "ca.pem").write_bytes(made.authority.read_bytes())
    (folder / "client.pem").write_bytes(made.server.read_bytes())
    (folder / "client.key").write_bytes(made.server.read_bytes())
    for name in ("kafka.password", "client.password", "pseudonyms.key"):
        (folder / name).write_text("secret\n")
    return folder


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_is_a_configuration(
    tmp_path: Path, secrets: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_LOGIN", "name:secret")
    monkeypatch.setenv("KAFKA_CLIENT_SECRET", "secret")
    (tmp_path / "mill.toml").write_text(EXAMPLES[number].replace("/etc/eventmill", str(secrets)))
    settings = load(tmp_path / "mill.toml")
    client.check_properties(settings.backbone)
    Subscription(settings, PathTable(settings.paths))


def test_there_are_some() -> None:
    assert len(EXAMPLES) == 4
    assert len(RIGHTS) == 3


@pytest.mark.slow
def test_commands_and_their_options_exist() -> None:
    commands = re.findall(
        r"eventmill ([a-z]+)((?: [^|#\n]*)?)", "\n".join(re.findall(r"^    (.*)$", PAGE, re.MULTILINE))
    )
    assert {command for command, _ in commands} == {"check", "record", "decode", "serve", "emit"}
    for command, rest in set(commands):
        known = subprocess.run([EVENTMILL, command, "--help"], capture_output=True, text=True, check=True).stdout
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in known, f"{command} {option}"


def rights(own: str) -> Iterator[Any]:
    """The page's table as ACLs."""
    names = {"each one of `[[topics]]`": TOPIC, "`backbone.topic`": own, "`backbone.group`": GROUP}
    for kind, name, operations in RIGHTS:
        for operation in operations.split(", "):
            yield right(kind, names[name], operation)


def right(kind: str, name: str, operation: str) -> Any:
    acl: Any = admin  # has no types for these
    return acl.AclBinding(
        acl.ResourceType[kind.upper()], name, acl.ResourcePatternType.LITERAL, f"User:{USER}", "*",
        acl.AclOperation[operation], acl.AclPermissionType.ALLOW,
    )  # fmt: skip


@pytest.mark.slow
def test_the_rights_are_enough(tmp_path: Path) -> None:
    """With SCRAM as the page shows it, on a broker that allows nothing else."""
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    with Broker(secure=True, properties=properties) as broker:
        broker.create_topic(TOPIC)
        broker.produce(broker.create_topic("another"), [b"{}"])
        asking = broker.admin()
        acls = [*rights("eventmill.events"), right("topic", "another", "DESCRIBE")]
        for made in asking.create_acls(acls).values():
            made.result(30)
        broker.produce(TOPIC, [orjson.dumps(WRITTEN)])
        assert broker.certificates is not None
        (tmp_path / "kafka.password").write_text(f"{PASSWORD}\n")
        example = re.search(r"(\[backbone.properties\].*?)\n\n", EXAMPLES[1], re.DOTALL)
        assert example is not None
        text = example[1].replace('"eventmill"', f'"{USER}"').replace("/etc/eventmill", str(tmp_path))
        text = text.replace(f"{tmp_path}/ca.pem", str(broker.certificates.authority))
        kafka = f'[backbone]\nkind = "kafka"\nbrokers = "{broker.address("SASL_SSL")}"\n{text}\n'
        kafka += f'[[topics]]\nname = "{TOPIC}"\ndecoder = "dcache"\nstart = "earliest"\n'
        kafka += '[[topics]]\nname = "another"\ndecoder = "dcache"\n'
        with mill(tmp_path, CONFIG + kafka) as m:
            m.start()
            m.deploy()
            m.until(lambda: "another: our account may not use this topic" in condition(m), 30, "the right that lacks")
            m.post("note", range(3))
            m.until(lambda: m.testimony()["note"].keys() == {0, 1, 2}, 60, "events to come through Kafka")
            m.until(lambda: "eventmill_outbox_records 0.0" in m.client.get("/metrics").text, 30, "the relay")
            m.until(lambda: offsets(broker) == {TOPIC, "eventmill.events"}, 30, "offsets for lag tools")
            assert m.stop() == 0
            recorded = subprocess.run([EVENTMILL, "record", TOPIC, "--config", m.config], capture_output=True)
            assert orjson.loads(recorded.stdout) == WRITTEN
            refused = subprocess.run([EVENTMILL, "record", "another", "--config", m.config], capture_output=True)
            assert (refused.returncode, refused.stdout) == (1, b"")
            assert b"TOPIC_AUTHORIZATION_FAILED" in refused.stderr
            assert PASSWORD.encode() not in refused.stderr + m.log.read_bytes()


def condition(m: Mill) -> str:
    found = m.client.get("/eventmill/v1/check").json()["components"]["backbone"]
    return "" if found["ok"] else str(found["detail"])


def offsets(broker: Broker) -> set[str]:
    """Topics of which the group's offsets are known."""
    asking = broker.admin()
    asked: Any = asking.list_consumer_group_offsets([ConsumerGroupTopicPartitions(GROUP)])
    return {partition.topic for partition in asked[GROUP].result(30).topic_partitions}

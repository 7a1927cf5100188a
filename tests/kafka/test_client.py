"""What all Kafka clients are made from: whose properties, which are secrets, and errors in words. No broker needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError

from eventmill.backbone.kafka import client
from eventmill.config import Backbone, Secret
from eventmill.errors import InvalidConfig


def backbone(**properties: Any) -> Backbone:
    return Backbone(properties=properties)


def refusal(properties: dict[str, Any]) -> str:
    with pytest.raises(InvalidConfig) as refused:
        client.check_properties(backbone(**properties))
    return str(refused.value)


def test_properties_with_their_secrets(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    given = {"ssl.ca.location": "/ca.pem", "sasl.password": Secret(file=tmp_path / "secret"), "linger.ms": 5}
    assert client.properties(backbone(**given)) == {
        "bootstrap.servers": "127.0.0.1:9092",
        "client.id": "eventmill",
        "ssl.ca.location": "/ca.pem",
        "sasl.password": "s3cret",
        "linger.ms": 5,
    }
    assert client.properties(backbone(**{"client.id": "mine"}))["client.id"] == "mine"


@pytest.mark.parametrize("key", sorted(client.SECRETS))
def test_a_secret_is_not_written_into_the_configuration(key: str) -> None:
    message = refusal({key: "s3cret"})
    assert message.startswith(f"backbone.properties.{key} must be given as {{ env =")
    assert "s3cret" not in message


@pytest.mark.parametrize("key", sorted(client.OURS))
def test_what_is_ours_is_refused_and_says_what_to_do(key: str) -> None:
    assert refusal({key: "x"}) == f"backbone.properties.{key} can't be set: {client.OURS[key]}"


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"foo.bar": 1}, 'backbone.properties.foo.bar: No such configuration property: "foo.bar"'),
        ({"security.protocol": "tls"}, 'backbone.properties.security.protocol: Invalid value "tls"'),
        ({"fetch.wait.max.ms": 10**9}, "backbone.properties.fetch.wait.max.ms: "),
        ({"socket.keepalive.enable": "perhaps"}, "backbone.properties.socket.keepalive.enable: Expected bool value"),
        (
            {"security.protocol": "ssl", "ssl.ca.location": "/nowhere/ca.pem"},
            "backbone.properties.ssl.ca.location: there is no file /nowhere/ca.pem",
        ),
        (
            {"security.protocol": "ssl", "ssl.ca.location": __file__},
            "backbone.properties.ssl.ca.location: Failed to create consumer: ssl.ca.location failed",
        ),
        (
            {"security.protocol": "sasl_ssl", "sasl.mechanisms": "PLAIN"},
            "backbone.properties: Failed to create consumer: sasl.username and sasl.password must be set",
        ),
        ({"error_cb": "x"}, "backbone.properties.error_cb: expected error_cb property as a callable function"),
    ],
)
def test_what_librdkafka_does_not_take_is_named(properties: dict[str, Any], message: str) -> None:
    assert refusal(properties).startswith(message)


def test_good_properties_need_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    client.check_properties(Backbone(brokers="127.0.0.1:1"))
    monkeypatch.setenv("KAFKA_PASSWORD", "s3cret")
    client.check_properties(
        backbone(
            **{
                "security.protocol": "SASL_SSL",
                "sasl.mechanisms": "SCRAM-SHA-512",
                "sasl.username": "mill",
                "sasl.password": Secret(env="KAFKA_PASSWORD"),
                "socket.keepalive.enable": True,
                "fetch.wait.max.ms": 50,
            }
        )
    )


def test_a_secret_is_never_part_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRONG", "s3cret")
    for key in ("security.protocol", "ssl.key.pem", "fetch.wait.max.ms"):
        message = refusal({"ssl.endpoint.identification.algorithm": "none", key: Secret(env="WRONG"),
                           **({"security.protocol": "ssl"} if key == "ssl.key.pem" else {})})  # fmt: skip
        assert message.startswith(f"backbone.properties.{key}: ")
        assert "s3cret" not in message
    assert refusal({"sasl.password": Secret(env="NOT_SET")}) == (
        "backbone.properties.sasl.password: the environment variable NOT_SET, where a secret should be, is not set"
    )


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(InvalidConfig, match=r"pip install 'eventmill\[kafka\]'"):
        client.check_properties(Backbone())


def test_errors_in_words() -> None:
    for name in client._ADVICE:
        code = getattr(KafkaError, name)
        said = client.explain(KafkaError(code, "kafka1:9092:\n refused"))
        assert said.endswith(f"({name}: kafka1:9092: refused)"), name
        assert "\n" not in said
    assert client.explain(KafkaError(KafkaError._BAD_MSG)).startswith("Kafka: _BAD_MSG")
    assert "backbone.brokers" in client.explain(KafkaError(KafkaError._ALL_BROKERS_DOWN))

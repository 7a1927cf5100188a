"""What all of our Kafka clients have in common: the library, its properties, and its errors in words.

Owns which of librdkafka's properties are the operator's, which are ours, and which are secrets. Must never print a
secret. Functions of values, safe to call from any thread; the library is imported when the first of them needs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from eventmill.config import Backbone, Property, Secret
from eventmill.errors import InvalidConfig

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

Properties = dict[str, str | int | float | bool]
"""What a client of confluent-kafka is made from."""

CLIENT_ID: Final = "eventmill"
AROUND_BYTES: Final = 64 << 10
"""Room in a record of ours above `limits.event_bytes`: what a completion adds to a result, and Kafka to a record."""

SECRETS: Final = frozenset(
    (
        "sasl.password",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.client.credentials.client.secret",
        "sasl.oauthbearer.assertion.private.key.passphrase",
        "sasl.oauthbearer.assertion.private.key.pem",
        "ssl.key.password",
        "ssl.key.pem",
        "ssl.keystore.password",
    )
)
"""Properties that are never written into the configuration itself."""

_POSITIONS = "positions are kept in the store, and committed to the group after they have been"
_DURABLE = "what is produced is always acknowledged by all replicas in sync, once and in order"
OURS: Final = {
    "bootstrap.servers": "set backbone.brokers instead",
    "metadata.broker.list": "set backbone.brokers instead",
    "group.id": "set backbone.group instead",
    "group.protocol": "set backbone.group_protocol instead",
    "group.remote.assignor": "set backbone.group_protocol instead",
    "group.instance.id": "the servers of a group share one configuration, and are told apart by Kafka",
    "partition.assignment.strategy": "set backbone.group_protocol instead",
    "session.timeout.ms": "set backbone.session_timeout_s instead",
    "heartbeat.interval.ms": "set backbone.session_timeout_s instead: a third of it",
    "auto.offset.reset": "set start in the topic's row of [[topics]] instead",
    "topic.blacklist": "name the topics that are wanted in [[topics]] instead",
    "enable.auto.commit": _POSITIONS,
    "auto.commit.enable": _POSITIONS,
    "auto.commit.interval.ms": _POSITIONS,
    "enable.auto.offset.store": _POSITIONS,
    "offset.store.method": _POSITIONS,
    "enable.partition.eof": "who needs the ends of partitions asks for them",
    "enable.idempotence": _DURABLE,
    "enable.gapless.guarantee": _DURABLE,
    "acks": _DURABLE,
    "request.required.acks": _DURABLE,
    "transactional.id": "effects and positions are committed by the store, not by Kafka",
}
"""Properties that the backbone sets itself, and what the operator can do instead."""

_PROPERTY = re.compile(r'propert(?:y|ies):? "([^"]+)"|value for "([^"]+)"')


def library() -> Any:
    """The module `confluent_kafka`. Raises InvalidConfig if it isn't installed."""
    try:
        import confluent_kafka
    except ImportError as e:
        raise InvalidConfig(
            f"backbone.kind = \"kafka\" needs the Kafka client: pip install 'eventmill[kafka]' ({e})"
        ) from None
    return confluent_kafka


def properties(backbone: Backbone) -> Properties:
    """The properties of every client, secrets included: for confluent-kafka alone.

    Raises InvalidConfig for a property that is ours, a secret that stands in the configuration, and one that is missing
    where it should be.
    """
    for key, value in backbone.properties.items():
        if key in OURS:
            raise InvalidConfig(f"backbone.properties.{key} can't be set: {OURS[key]}")
        if key in SECRETS:
            check_secret(f"backbone.properties.{key}", value)
    own: Properties = {"client.id": CLIENT_ID, **revealed("backbone.properties", backbone.properties)}
    return {**own, "bootstrap.servers": backbone.brokers}


def check_secret(name: str, value: Property) -> None:
    """Raise InvalidConfig if this secret was written where everybody reads it."""
    if not isinstance(value, Secret):
        raise InvalidConfig(f'{name} must be given as {{ env = "NAME" }} or {{ file = "PATH" }}: it is a secret')


def revealed(section: str, given: Mapping[str, Property]) -> Properties:
    """The properties with their secrets read. Raises InvalidConfig, which names the one that can't be."""
    known: Properties = {}
    for key, value in given.items():
        try:
            known[key] = value.read() if isinstance(value, Secret) else value
        except InvalidConfig as e:
            raise InvalidConfig(f"{section}.{key}: {e}") from None
    return known


def check_properties(backbone: Backbone) -> None:
    """Raise InvalidConfig if librdkafka would not take these properties, or if it isn't there. Connects to nobody."""
    kafka = library()
    given = {"session.timeout.ms": int(backbone.session_timeout_s * 1000), **properties(backbone)}
    try:
        kafka.Consumer({**given, "bootstrap.servers": "", "group.id": backbone.group, "log_level": 0}).close()
    except kafka.KafkaException as e:
        raise InvalidConfig(_refused(backbone, e.args[0].str())) from None
    except (TypeError, ValueError) as e:  # what is not librdkafka's but the binding's own: callbacks
        raise InvalidConfig(_refused(backbone, str(e))) from None


def _refused(backbone: Backbone, problem: str) -> str:
    """Which property it is that librdkafka doesn't take, and why."""
    found = _PROPERTY.search(problem)
    key = found[1] or found[2] if found else None
    if key is None:  # "ssl.ca.location failed: …": the property stands somewhere in the text
        key = max((k for k in backbone.properties if k in problem), key=len, default=None)
    if key is None or key not in backbone.properties:
        return f"backbone.properties: {_without_secrets(backbone, problem)}"
    value = backbone.properties[key]
    if key.endswith(".location") and isinstance(value, str) and not Path(value).is_file():
        return f"backbone.properties.{key}: there is no file {value}"
    return f"backbone.properties.{key}: {_without_secrets(backbone, problem)}"


def _without_secrets(backbone: Backbone, text: str) -> str:
    for value in backbone.properties.values():
        if isinstance(value, Secret) and (secret := value.read()):
            text = text.replace(secret, "***")
    return " ".join(text.split())


_NO_TOPIC = (
    "there is no such topic: see [[topics]] and backbone.topic, or have it made; it is read as soon as it is there"
)
_NOT_ACCEPTED = (
    "the broker does not accept our name or password: see sasl.mechanisms, sasl.username and sasl.password in "
    "backbone.properties"
)
_NOT_IN_SYNC = (
    "too few replicas of the topic are in sync (min.insync.replicas): a broker is away; the event stays with us and is "
    "sent again"
)
_TOO_OLD = 'the broker is too old for this: backbone.group_protocol = "consumer" needs Kafka 4.0, try "classic"'
NOT_ALLOWED: Final = (
    "our account may not use this topic: have READ and DESCRIBE granted for the topics of [[topics]], for "
    "backbone.topic WRITE and CREATE too"
)
_ADVICE: Final = {
    "_TRANSPORT": "can't reach a broker: is it up, and is backbone.brokers right? It is tried again until it answers",
    "_ALL_BROKERS_DOWN": "no broker can be reached: are they up, and is backbone.brokers right? They are tried again "
    "until one answers",
    "_RESOLVE": "the name of a broker is not known: is backbone.brokers right, and do the names that the brokers "
    "announce (advertised.listeners) resolve on this machine?",
    "_AUTHENTICATION": _NOT_ACCEPTED,
    "_SSL": "no TLS with the broker: see security.protocol and ssl.ca.location in backbone.properties, and whether the "
    "port in backbone.brokers speaks TLS",
    "_TIMED_OUT": "the broker does not answer in time: is it overloaded, or a firewall in between? It is tried again",
    "_MSG_TIMED_OUT": "a record was not acknowledged in time: the brokers are away, or too few replicas are in sync; "
    "the event stays with us and is sent again",
    "_MAX_POLL_EXCEEDED": "Kafka has taken our partitions away, since the server stood still for too long "
    "(max.poll.interval.ms): was it suspended, or the machine overloaded? They are taken up again",
    "_FATAL": "the client can't go on; if the version of something is not supported, the broker is too old for "
    'backbone.group_protocol = "consumer" (it needs Kafka 4.0): try "classic"',
    "_FENCED": "another client has taken our place in the group",
    "_AUTO_OFFSET_RESET": "the records at our position are not in the topic: it was cut by its retention or made again",
    "_UNKNOWN_TOPIC": _NO_TOPIC,
    "_UNKNOWN_PARTITION": "there is no such partition: was the topic made again with fewer?",
    "_UNSUPPORTED_FEATURE": _TOO_OLD,
    "UNKNOWN_TOPIC_OR_PART": _NO_TOPIC,
    "UNKNOWN_TOPIC_ID": _NO_TOPIC,
    "TOPIC_AUTHORIZATION_FAILED": NOT_ALLOWED,
    "GROUP_AUTHORIZATION_FAILED": "our account may not use the consumer group: have READ granted for backbone.group",
    "CLUSTER_AUTHORIZATION_FAILED": "our account may not do this on the cluster: have CREATE granted, or "
    "backbone.topic made by somebody who may",
    "SASL_AUTHENTICATION_FAILED": _NOT_ACCEPTED,
    "UNSUPPORTED_SASL_MECHANISM": "the broker does not have this mechanism: see sasl.mechanisms in backbone.properties",
    "MSG_SIZE_TOO_LARGE": "an event is larger than the topic takes: raise max.message.bytes of backbone.topic, and "
    "message.max.bytes in backbone.properties, above limits.event_bytes",
    "NOT_ENOUGH_REPLICAS": _NOT_IN_SYNC,
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND": _NOT_IN_SYNC,
    "INVALID_SESSION_TIMEOUT": "the broker does not allow this backbone.session_timeout_s: it has to lie between its "
    "group.min.session.timeout.ms and group.max.session.timeout.ms",
    "INCONSISTENT_GROUP_PROTOCOL": "others in the group use another way to share partitions: is backbone.group used by "
    "nobody else, and backbone.group_protocol the same everywhere?",
    "UNSUPPORTED_VERSION": _TOO_OLD,
    "INVALID_REPLICATION_FACTOR": "there are too few brokers for the topic's replicas: have backbone.topic made by "
    "hand",
}
"""What an error means for the person on call, and what helps: by librdkafka's name of it."""


_TRIED_AGAIN = re.compile(r"(?<=\?) (It is|They are) (tried|taken up) again.*|; (the event stays|it is read as soon).*")


def is_no_topic(error: KafkaError) -> bool:
    """Whether it says that there is no such topic, or no such partition of it."""
    return error.name() in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION")


def explain(error: KafkaError, *, is_tried_again: bool = True) -> str:
    """One of librdkafka's errors in a line: what is wrong, what helps, and in brackets what librdkafka said.

    `is_tried_again`: by a server, which goes on; a command does not.
    """
    name, text = error.name(), " ".join(error.str().split())
    said = f"{name}: {text}" if text else name
    advice = _ADVICE.get(name)
    if advice and not is_tried_again:
        advice = _TRIED_AGAIN.sub("", advice)
    return f"{advice} ({said})" if advice else f"Kafka: {said}"

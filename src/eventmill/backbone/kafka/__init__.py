"""Kafka: topics of others are read where they are, our own events are relayed to ours. Its client is an extra."""

from eventmill.backbone.kafka.client import library

library()  # says how to install it

from eventmill.backbone.kafka.backbone import KafkaBackbone  # noqa: E402

__all__ = ["KafkaBackbone"]

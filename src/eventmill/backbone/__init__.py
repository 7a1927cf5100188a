"""The log that events flow on: embedded (a table of the store) or Kafka."""

from eventmill.backbone.base import Backbone, Batch, Partition

__all__ = ["Backbone", "Batch", "Partition"]

"""The log that events flow on: embedded (a table of the store) or Kafka."""

from eventmill.backbone.base import Assigned, Backbone, Batch, Numbers, Partition

__all__ = ["Assigned", "Backbone", "Batch", "Numbers", "Partition"]

"""Functions that an Apache OpenWhisk runs."""

from eventmill.executors.openwhisk.client import Client
from eventmill.executors.openwhisk.executor import OpenWhisk

__all__ = ["Client", "OpenWhisk"]

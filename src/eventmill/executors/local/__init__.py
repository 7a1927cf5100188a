"""The embedded batch system: jobs on this machine, behind the contract of all executors."""

from eventmill.executors.local.queue import LocalQueue

__all__ = ["LocalQueue"]

"""HTCondor: jobs in a pool of machines. The bindings are an extra, and live in a process of their own."""

from eventmill.executors.htcondor.queue import CondorQueue
from eventmill.executors.htcondor.reporting import Reporting
from eventmill.executors.htcondor.tracked import LOCAL_SCHEDD

__all__ = ["LOCAL_SCHEDD", "CondorQueue", "Reporting"]

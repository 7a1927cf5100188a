"""Reading, matching, recording, handing over, retrying, continuing chains."""

from eventmill.engine.engine import RESULTS, Engine
from eventmill.engine.queues import FUNCTIONS, pool_queue

__all__ = ["FUNCTIONS", "RESULTS", "Engine", "pool_queue"]

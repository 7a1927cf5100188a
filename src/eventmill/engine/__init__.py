"""Reading, matching, recording, handing over, retrying, continuing chains."""

from eventmill.engine.engine import FUNCTIONS, RESULTS, Engine, pool_queue

__all__ = ["FUNCTIONS", "RESULTS", "Engine", "pool_queue"]

"""Reading, matching, recording, handing over, retrying, continuing chains."""

from eventmill.engine.engine import RESULTS, Engine, pool_queue

__all__ = ["RESULTS", "Engine", "pool_queue"]

"""Reading, matching, recording, handing over, retrying, continuing chains."""

from eventmill.engine.engine import Engine, pool_queue

__all__ = ["Engine", "pool_queue"]

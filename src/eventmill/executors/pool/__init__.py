"""Functions at home: a zygote forks warm workers, each in namespaces of its own."""

from eventmill.executors.pool.pool import Pool

__all__ = ["Pool"]

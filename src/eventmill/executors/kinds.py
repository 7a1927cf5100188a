"""Which kinds of functions this server can run: a property of its settings and of what is installed here."""

from __future__ import annotations

from eventmill.config import Functions
from eventmill.entities.kinds import NODEJS, PYTHONS, Kinds
from eventmill.executors.pool import node


def kinds_of(functions: Functions) -> Kinds:
    """The kinds that may be put. The pool has Node.js only where it is installed; an OpenWhisk says itself what it has
    (its executor's `refusal`)."""
    if functions.engine == "openwhisk":
        return Kinds({"python": PYTHONS, "nodejs": NODEJS})
    found = node.find()
    return Kinds({"python": PYTHONS, **({"nodejs": found.kinds} if found else {})})

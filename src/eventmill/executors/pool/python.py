"""A function in Python: called in the worker's own process. Standard library only, no threads.

What stands above the call must survive what a function may do to its process.
"""

from __future__ import annotations

import json
import os
import resource
import time
from typing import Any

from eventmill.executors.pool import protocol
from eventmill.executors.pool.loader import NO_MEMORY, Function, load, print_traceback
from eventmill.executors.pool.outcome import EXITED_TEXT, NO_OBJECT_TEXT, NULL_TEXT, Outcome, failure, finished
from eventmill.executors.pool.protocol import Call

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class Python:
    """Loads the code. Raises LoadError."""

    def __init__(self, document: dict[str, Any], source: bytes) -> None:
        self._function = load(document["name"], source, document["directory"], document["main"])

    def call(self, call: Call) -> Outcome:
        _set_environment(call)
        return call_function(self._function, call.params)

    def rest(self, connection: int) -> None:
        """Threads that a call has left behind go on."""

    def cpu_s(self) -> float:
        return time.process_time()

    def largest_kib(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def left_processes(self) -> bool:
        """Whether processes that the function started, or their orphans, are still there."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return False
        return True


def call_function(function: Function, params: bytes) -> Outcome:
    """Call the function with the decoded parameters; what came of it."""
    try:
        result = function(json.loads(params))
    except SystemExit:
        return failure(protocol.EXITED, EXITED_TEXT)
    except MemoryError:
        return failure(protocol.MEMORY, NO_MEMORY)
    except BaseException as e:  # KeyboardInterrupt and the like are the function's own doing, too
        print_traceback(e, skip=1)
        return _raised(e)
    return _returned(function, result)


def _raised(error: BaseException) -> Outcome:
    """An exception is the activation's error; two attributes, which the SDK's exceptions have, say more."""
    try:
        # the SDK knows a better text for those that say little
        text = getattr(error, "eventmill_error", None) or str(error) or type(error).__name__
    except Exception:
        text = type(error).__name__
    if getattr(error, "eventmill_fatal", False):
        return failure(protocol.FATAL, text)
    if hasattr(error, "eventmill_retry_after"):
        after_s = error.eventmill_retry_after
        said = isinstance(after_s, int | float) and after_s >= 0
        return failure(protocol.RETRY, text, float(after_s) if said else protocol.UNSAID)
    return failure(protocol.RAISED, text)


def _returned(function: Function, result: Any) -> Outcome:
    if result is None:
        return failure(protocol.BAD_RESULT, NULL_TEXT)
    if not isinstance(result, dict | list | tuple):
        return failure(protocol.BAD_RESULT, NO_OBJECT_TEXT)
    try:
        text = _encode(result)
    except MemoryError:
        return failure(protocol.MEMORY, NO_MEMORY)
    except ValueError as e:  # NaN, or a structure that contains itself
        print_traceback(e, skip=1)
        return failure(protocol.BAD_RESULT, _explained(function, result) or NO_OBJECT_TEXT)
    except Exception as e:  # something in it has no JSON form
        print_traceback(e, skip=1)
        return failure(protocol.BAD_RESULT, _explained(function, result) or EXITED_TEXT)
    failed = isinstance(result, dict) and "error" in result
    return finished(text.encode(), failed=failed)


def _explained(function: Function, result: Any) -> str:
    """What the SDK's functions can say about a result that has no JSON form; "" if nothing."""
    explain = getattr(function, "eventmill_explain", None)
    try:
        return str(explain(result)) if explain is not None else ""
    except Exception:  # a value that resists being looked at
        return ""


def _set_environment(call: Call) -> None:
    """What belongs to this call alone."""
    environment = os.environ
    environment["__OW_NAMESPACE"] = call.namespace
    environment["__OW_ACTIVATION_ID"] = call.activation
    environment["__OW_TRANSACTION_ID"] = call.transaction.replace("\0", "")
    environment["__OW_DEADLINE"] = str(call.deadline_ms)
    for name, value in (("__OW_API_KEY", call.api_key), ("TRACEPARENT", call.traceparent)):
        if value:
            environment[name] = value.replace("\0", "")
        else:
            environment.pop(name, None)

"""The `__main__.py` of an action's zip at OpenWhisk: calls the author's function, and says in the result what
OpenWhisk has no word for. Runs there, in Python 3.9 or later; standard library only.

It is called with `params`, the author's parameters (an object or a list), and `__eventmill`, which is ours:
`environment` (variables of this call), `activation` and `attempt` (they come back, so that a result can be recognised).
In the result, `__eventmill` is ours, too: `outcome` (how it ended), `after` (seconds), `quiet` (nothing was written:
there are no logs to fetch), `list` (the result, if it is one). Of a failure OpenWhisk keeps nothing but the value of
`error`: there it is `{"__eventmill": …, "result": …}`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

from eventmill_action import MAIN as function  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OWN = "__eventmill"
ENVIRONMENT = (
    "__OW_ACTIVATION_ID", "__OW_TRANSACTION_ID", "__OW_NAMESPACE", "__OW_ACTION_NAME", "__OW_ACTION_VERSION",
    "TRACEPARENT",
)  # fmt: skip
"""Variables of a call; whoever calls can set no others."""
NO_OBJECT = "The action did not return a dictionary or array."
NULL = "The action did not produce a valid JSON or JSON Array response: null\n"
NO_MEMORY = "The action exhausted its memory and was aborted."

_SDK_FILE = os.path.join("eventmill", "sdk", "runtime.py")


def main(args: dict[str, Any]) -> dict[str, Any]:
    own = args[OWN]
    os.environ.update((name, own["environment"][name]) for name in ENVIRONMENT)
    written = _written()
    mark, result = _call(args["params"])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    quiet = written is not None and written == _written()
    mark.update(activation=own["activation"], attempt=own["attempt"], quiet=quiet)
    if "outcome" in mark:
        return {"error": {OWN: mark, "result": result}}
    return dict(result, **{OWN: mark}) if isinstance(result, dict) else {OWN: dict(mark, list=result)}


def _call(params: Any) -> tuple[dict[str, Any], Any]:
    """What there is to say of the call (of a failure its `outcome`), and the result."""
    try:
        return _returned(function(params))
    except MemoryError:
        return _failed("memory", NO_MEMORY)
    except Exception as error:
        traceback.print_exception(type(error), error, _authors_part(error))
        return _raised(error)


def _raised(error: Exception) -> tuple[dict[str, Any], Any]:
    try:
        text = getattr(error, "eventmill_error", None) or str(error) or type(error).__name__
    except Exception:
        text = type(error).__name__
    if getattr(error, "eventmill_fatal", False):
        return _failed("fatal", text)
    mark, result = _failed("raised", text)
    after = getattr(error, "eventmill_retry_after", None)
    if isinstance(after, (int, float)) and 0 <= after < float("inf"):
        mark["after"] = after
    return mark, result


def _returned(value: Any) -> tuple[dict[str, Any], Any]:
    if value is None:
        return _failed("bad", NULL)
    if not isinstance(value, (dict, list, tuple)):
        return _failed("bad", NO_OBJECT)
    try:
        json.dumps(value, allow_nan=False)
    except Exception as error:  # not JSON, or something that resists being looked at
        traceback.print_exception(type(error), error, None)
        return _failed("bad", _explained(value) or NO_OBJECT)
    return ({"outcome": "returned"} if isinstance(value, dict) and "error" in value else {}), value


def _explained(value: Any) -> str:
    """What the SDK's functions can say about a result that has no JSON form; "" if nothing."""
    explain = getattr(function, "eventmill_explain", None)
    try:
        return str(explain(value)) if explain is not None else ""
    except Exception:
        return ""


def _failed(outcome: str, text: str) -> tuple[dict[str, Any], Any]:
    return {"outcome": outcome}, {"error": text}


def _authors_part(error: Exception) -> Any:
    """Its traceback without the frames of this file and of the SDK below it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.endswith((__file__, _SDK_FILE)):
        trace = trace.tb_next
    return trace


def _written() -> str | None:
    """How many bytes this process, and the children that it has waited for, have written; None: not known."""
    try:
        with open("/proc/self/io") as file:
            return next(line for line in file if line.startswith("wchar"))
    except (OSError, StopIteration):
        return None

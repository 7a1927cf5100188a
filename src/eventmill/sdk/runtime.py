"""What runs inside workers and jobs: from parameters to the author's function, and from its result back.

`entry` makes OpenWhisk's `main(args) -> dict` of a flow's function; `run_job` is the whole life of a plain-Python job.
What a function raises goes to the worker as it is; an exception whose own text says little gets the attribute
`eventmill_error`, by which the worker knows a better one.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module

from eventmill.sdk.actions import takes_argument
from eventmill.sdk.errors import Fatal
from eventmill.sdk.event import Event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Callable, Dict, Optional

PARAMS_ENV, PARAMS_FILE = "EVENTMILL_PARAMS", "params.json"
RESULT_ENV, RESULT_FILE = "EVENTMILL_RESULT", "result.json"
"""Environment variables by which the batch system's executor names a job's files, and the names without them."""


def entry(module: str, attribute: str) -> Callable[[Any], Any]:
    """The callable that an archive's `__main__.py` exposes for one of the flow's functions."""
    function = getattr(import_module(module), attribute).function

    def main(args: Any) -> Any:
        try:
            return call(function, args)
        except Exception as error:
            _tell(error)
            raise

    # asked by the worker when it can't encode a result
    main.eventmill_explain = lambda result: _not_json(function, result)  # type: ignore[attr-defined]
    return main


def call(function: Callable[..., Any], params: Any) -> Any:
    """Call an author's function with the event or its predecessor's result; returning nothing means `{}`."""
    given = Event(params) if isinstance(params, dict) and "specversion" in params else params
    result = function(given) if takes_argument(function) else function()
    if result is None:
        return {}
    if not isinstance(result, (dict, list)):
        raise Fatal(f"{function.__name__} returned a {type(result).__name__}: return a dict, the next one's parameters")
    return result


def run_job(module: str, attribute: str) -> int:
    """Run one of the flow's functions as a job: read the parameter file, write the result file, return the exit code.

    A failure leaves `{"error": …}` and the traceback on stderr, and is exit code 1; `Retry` and `Fatal` add their
    attributes to the result.
    """
    try:
        function = getattr(import_module(module), attribute).function
        with open(os.environ.get(PARAMS_ENV) or PARAMS_FILE, encoding="utf-8") as file:
            params = json.load(file)
        result = encoded(call(function, params), function)
    except Exception as error:
        import traceback

        traceback.print_exception(type(error), error, authors_part(error))
        _write_result(json.dumps(_failure(error)))
        return 1
    _write_result(result)
    return 0


def authors_part(error: BaseException, skip: int = 0) -> Optional[TracebackType]:
    """The error's traceback without the `skip` outermost frames (the caller's) and those of this module below them."""
    trace = error.__traceback__
    for _ in range(skip):
        trace = None if trace is None else trace.tb_next
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def text_of(error: BaseException) -> str:
    """An exception as an activation's error: its message, with its type in front if that says little alone."""
    kind, text = type(error).__name__, str(error)
    if not text:
        return kind
    return f"{kind}: {text}" if isinstance(error, KeyError) else text


def _tell(error: Exception) -> None:
    try:
        if text_of(error) != str(error):
            error.eventmill_error = text_of(error)  # type: ignore[attr-defined]
    except Exception:  # an exception without room for attributes, or without a text: the worker helps itself
        return


def _failure(error: Exception) -> Dict[str, Any]:
    wishes = ("eventmill_retry_after", "eventmill_fatal")
    return {
        "error": text_of(error),
        **{name: getattr(error, name) for name in wishes if getattr(error, name, None) is not None},
    }


def encoded(result: Any, function: Callable[..., Any]) -> str:
    """What a function returned, as JSON. Raises Fatal, which says where it is none."""
    try:
        return json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Fatal(_not_json(function, result) or f"what {function.__name__} returned is not JSON: {error}") from None


def _not_json(function: Callable[..., Any], result: Any) -> str:
    """Why this result has no JSON form, and where in it; "" if nothing is found."""
    found = _culprit(result, "", 0)
    return f"what {function.__name__} returned is not JSON: {found}" if found else ""


_DEPTH_MAX = 100


def _culprit(value: Any, path: str, depth: int) -> str:
    """The first part that is not JSON: `a set at 'frames[0].mask'`."""
    where = f" at '{path}'" if path else ""
    if depth > _DEPTH_MAX:
        return f"it contains itself, or is nested too deeply{where[:100]}"
    if isinstance(value, dict):
        for key, item in value.items():
            if not (key is None or isinstance(key, (str, int, float, bool))):
                return f"a key of type {type(key).__name__}{where}"
            found = _culprit(item, f"{path}.{key}" if path else str(key), depth + 1)
            if found:
                return found
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            found = _culprit(item, f"{path}[{index}]", depth + 1)
            if found:
                return found
    elif isinstance(value, float):
        return "" if value - value == 0 else f"{value}{where}"  # inf and nan differ from themselves
    elif not (value is None or isinstance(value, (str, int))):
        return f"a {type(value).__name__}{where}"
    return ""


def _write_result(text: str) -> None:
    """All or nothing: a job that is killed while it writes leaves no half result."""
    sys.stdout.flush()
    path = os.environ.get(RESULT_ENV) or RESULT_FILE
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)

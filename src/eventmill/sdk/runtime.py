"""What runs inside workers and jobs: from parameters to the author's function, and from its result back.

`entry` makes OpenWhisk's `main(args) -> dict` of a flow's function; `run_job` is the whole life of a plain-Python job.
Neither catches what a function raises for its own sake: `Retry` and `Fatal` go to the worker as they are.
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
    from typing import Any, Callable, Dict

PARAMS_ENV, PARAMS_FILE = "EVENTMILL_PARAMS", "params.json"
RESULT_ENV, RESULT_FILE = "EVENTMILL_RESULT", "result.json"
"""Environment variables by which the batch system's executor names a job's files, and the names without them."""


def entry(module: str, attribute: str) -> Callable[[Any], Any]:
    """The callable that an archive's `__main__.py` exposes for one of the flow's functions."""
    function = getattr(import_module(module), attribute).function

    def main(args: Any) -> Any:
        return call(function, args)

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
        result = _encoded(call(function, params), function.__name__)
    except Exception as error:
        import traceback

        traceback.print_exc()
        _write_result(json.dumps(_failure(error)))
        return 1
    _write_result(result)
    return 0


def _failure(error: Exception) -> Dict[str, Any]:
    wishes = ("eventmill_retry_after", "eventmill_fatal")
    return {
        "error": str(error) or type(error).__name__,
        **{name: getattr(error, name) for name in wishes if getattr(error, name, None) is not None},
    }


def _encoded(result: Any, name: str) -> str:
    try:
        return json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Fatal(f"what {name} returned is not JSON: {error}") from error


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

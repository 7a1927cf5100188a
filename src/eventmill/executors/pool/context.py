"""What a worker is told before its first attempt: the action's code, and the environment that the code sees. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eventmill.entities import Action
from eventmill.executors.pool.code import Code

BASE_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    # many workers share the cores, and the zygote must not have threads when a preloaded numpy would start some
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}


def init_document(
    action: Action, code: Code, *, room: str, environment: Mapping[str, str], result_bytes_max: int
) -> dict[str, Any]:
    """What `worker` reads before it loads the code."""
    return {
        "name": f"/{action.qualified}",
        "main": action.main or "main",
        "directory": str(code.directory) if code.directory else None,
        "environment": _environment(action, room, environment),
        "result_bytes_max": result_bytes_max,
    }


def _environment(action: Action, room: str, base: Mapping[str, str]) -> dict[str, str]:
    """OpenWhisk's order: init parameters may hide the server's variables, but not `__OW_…`."""
    init = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in action.init_parameters.items()
    }
    return {
        **BASE_ENVIRONMENT,
        "HOME": room,
        "TMPDIR": room,
        **base,
        **init,
        "__OW_NAMESPACE": action.namespace,
        "__OW_ACTION_NAME": f"/{action.qualified}",
        "__OW_ACTION_VERSION": action.version,
    }

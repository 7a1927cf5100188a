"""What a worker is told before its first attempt: the action's code, and the environment that the code sees. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eventmill.entities import Action
from eventmill.entities.kinds import BLACKBOX, NATIVE
from eventmill.executors.pool.code import Code
from eventmill.executors.pool.endings import NO_RESPONSE
from eventmill.executors.pool.node import Node
from eventmill.executors.pool.outcome import EXITED_TEXT

PAUSE_AFTER_MS = 10_000
"""A process without a call for so long is stopped until the next one: what it has left pending waits, too."""
LAUNCHER = Path(__file__).with_name("launch.js")

BASE_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    # many workers share the cores, and the zygote must not have threads when a preloaded numpy would start some
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}


def init_document(
    action: Action,
    code: Code,
    *,
    room: str,
    environment: Mapping[str, str],
    api_host: str,
    node: Node | None,
    result_bytes_max: int,
) -> dict[str, Any]:
    """What `worker` reads before it loads the code."""
    return {
        "name": f"/{action.qualified}",
        "main": action.main or "main",
        "directory": str(code.directory) if code.directory else None,
        "environment": _environment(action, room, environment, api_host),
        "child": _child(action, code, node),
        "result_bytes_max": result_bytes_max,
    }


def _child(action: Action, code: Code, node: Node | None) -> dict[str, Any] | None:
    """The process that runs the code (see `child`); None if the worker itself does."""
    memory_mb = action.limits.memory_mb
    if action.kind in (BLACKBOX, NATIVE):
        command, exited = [str(code.executable)], EXITED_TEXT
    elif action.kind.startswith("nodejs:"):
        assert node is not None, "the pool asks for no worker that it can't have"
        command = [node.path, f"--max-old-space-size={memory_mb * 3 // 4}", str(LAUNCHER)]
        exited = NO_RESPONSE
    else:
        return None
    return {
        "command": command,
        "launcher": action.kind not in (BLACKBOX, NATIVE),
        "acknowledges": action.kind != BLACKBOX,  # OpenWhisk does not ask an executable for it
        "exited": exited,
        "memory_mb": memory_mb,
        "pause_after_ms": PAUSE_AFTER_MS,
    }


def _environment(action: Action, room: str, base: Mapping[str, str], api_host: str) -> dict[str, str]:
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
        "__OW_API_HOST": api_host,
    }

"""How an attempt has ended, as executors of functions tell it: OpenWhisk's statuses, its texts, the report. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from eventmill.entities import Status
from eventmill.errors import InvalidEvent
from eventmill.executors.base import Finished

NO_CODE = "Missing main/no code to execute."
NO_JSON = "The action did not produce a valid JSON or JSON Array response."
RETRY_AFTER_S_MAX = 366 * 86400.0


class Ending(NamedTuple):
    """What `Finished` says of an attempt's end, but for times and logs."""

    status: Status
    final: bool
    result: bytes
    retry_after_s: float | None = None
    timed_out: bool = False


CANCELLED = Ending(Status.APPLICATION_ERROR, True, b'{"error":"cancelled"}')


def developer_error(text: str, *, final: bool = False, timed_out: bool = False) -> Ending:
    return Ending(Status.DEVELOPER_ERROR, final, _error(text), timed_out=timed_out)


def internal_error(text: str, *, final: bool = False) -> Ending:
    return Ending(Status.INTERNAL_ERROR, final, _error(text))


def of_archive(why: object) -> Ending:
    """The action's archive can't be had as it is."""
    return developer_error(f"The action failed during initialization: {why}", final=True)


def of_unusable(why: InvalidEvent) -> Ending:
    """There is a result, which `parse_json` refuses: it could never be written again."""
    return developer_error(NO_JSON if "valid JSON" in str(why) else f"The action's result {why}.", final=True)


def of_timeout(timeout_ms: int, *, during_init: bool = False) -> Ending:
    where = " during initialization" if during_init else ""
    return developer_error(f"The action exceeded its time limits of {timeout_ms} milliseconds{where}.", timed_out=True)


def finished(
    key: tuple[str, int],
    ending: Ending,
    started_ms: int,
    ended_ms: int,
    *,
    handle: str | None = None,
    logs: tuple[str, ...] = (),
    usage: Mapping[str, Any] | None = None,
) -> Finished:
    """The report of an end. `key`: the activation and the attempt's number."""
    return Finished(
        activation=key[0], attempt=key[1], status=ending.status, result=ending.result, final=ending.final,
        started_ms=started_ms, ended_ms=max(started_ms, ended_ms), handle=handle,
        retry_after_s=ending.retry_after_s, timed_out=ending.timed_out, logs=logs, usage=usage,
    )  # fmt: skip


def _error(text: str) -> bytes:
    return json.dumps({"error": text}).encode()

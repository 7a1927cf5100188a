"""What executors of jobs share: the archive that a job travels in, and what its end means for the chain.

A job's code is a base64 zip with the submit description `job.sub` at its top, its executable and its relative input
files. The parameters travel as the file `params.json`; the job leaves its result in `result.json`. Pure functions of
values, but CPU-heavy ones (base64, zip): call `read_archive` in a thread.
"""

from __future__ import annotations

import binascii
import io
import signal
import struct
import zipfile
import zlib
from base64 import b64decode
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from eventmill.entities import Status
from eventmill.entities.submit import ALLOWED, DESCRIPTION_BYTES_MAX, BoundDescription, Description, parse
from eventmill.errors import InvalidArchive, InvalidDescription, InvalidEvent
from eventmill.events.codec import parse_json
from eventmill.executors.archive import check_directory

DESCRIPTION_FILE = "job.sub"
PARAMS_FILE, PARAMS_ENV = "params.json", "EVENTMILL_PARAMS"
RESULT_FILE, RESULT_ENV = "result.json", "EVENTMILL_RESULT"
JOB_END = "job-end"
"""What the token of a job that reports its own end is for; its parts are the activation and the attempt."""
END_PATH = "/eventmill/v1/job-ends/{activation}/{attempt}"
"""Where such a job reports it."""
ERROR_TAIL_CHARS = 2000
"""How much of a failed job's stderr goes into its result; more of it is in the logs."""


@dataclass(frozen=True, slots=True)
class JobArchive:
    """A job's code, read: the zip's bytes, its description, the names of its files."""

    data: bytes
    description: Description
    members: frozenset[str]

    def check_files(self, bound: BoundDescription) -> None:
        """Raise InvalidDescription if the job names a relative file that the archive does not have."""
        named = [("executable", bound.executable)] if bound.transfer_executable else []
        named += [("transfer_input_files", path) for path in bound.inputs]
        named += [("input", bound.input)] if bound.input else []
        for command, path in named:
            if not path.startswith("/") and not self._has(path):
                raise InvalidDescription(f"{command}: there is no '{path}' in the job's archive")

    def _has(self, path: str) -> bool:
        folder = path.rstrip("/") + "/"
        return path in self.members or any(member.startswith(folder) for member in self.members) or folder == "./"


def read_archive(code: bytes, *, files_max: int = 10_000, allowed: Container[str] = ALLOWED) -> JobArchive:
    """Decode a job's code and read its description, which may have the `allowed` commands. Raises InvalidArchive,
    InvalidDescription."""
    try:
        data = b64decode(code, validate=True)
        check_directory(data, files_max)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = frozenset(archive.namelist())
            if DESCRIPTION_FILE not in members:
                raise InvalidArchive(f"the job's archive has no '{DESCRIPTION_FILE}' at its top")
            with archive.open(DESCRIPTION_FILE) as file:
                text = file.read(DESCRIPTION_BYTES_MAX + 1).decode()
    except (
        binascii.Error,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        zlib.error,
        struct.error,
    ) as e:
        raise InvalidArchive(f"a job's code is a zip in base64: {e}") from e
    except UnicodeDecodeError as e:
        raise InvalidArchive(f"{DESCRIPTION_FILE} is not UTF-8") from e
    return JobArchive(data, parse(text, allowed=allowed), members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a job's process ended. Exactly one of the first six says why, unless it is an exit with code 0."""

    exit_code: int | None = None
    signal: int | None = None
    cancelled: bool = False
    timed_out: bool = False
    refused: str | None = None
    """It never ran, and never will: what is wrong with it."""
    failed: str | None = None
    """Something of ours failed (a full disk); another attempt may help."""
    lost: bool = False
    """It ran, or may have run, and nobody saw its end."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job's end means: the fields of the same names of `Finished`."""

    status: Status
    result: bytes
    final: bool
    retry_after_s: float | None = None


def conclude(
    ending: Ending, left: bytes | None, usage: Mapping[str, Any], *, stderr: str, result_bytes_max: int
) -> Outcome:
    """The outcome of a job.

    `left`: contents of its result file (None: there is none); an object becomes the chain's next parameters, with
    `exit_code` and `usage` added. `stderr`: the end of its standard error.
    """
    if ending.lost:
        return _failure(
            Status.INTERNAL_ERROR, True, "outcome unknown: the job was started, its end was not seen", usage
        )
    if ending.cancelled:
        return Outcome(Status.APPLICATION_ERROR, orjson.dumps({"error": "cancelled"}), True)
    if ending.refused is not None:
        return _failure(Status.DEVELOPER_ERROR, True, ending.refused, usage)
    if ending.failed is not None:
        return _failure(Status.INTERNAL_ERROR, False, ending.failed, usage)
    facts = {"stderr": stderr[-ERROR_TAIL_CHARS:]} if stderr else {}
    if ending.timed_out:
        return _failure(Status.DEVELOPER_ERROR, False, "the job exceeded its time limit and was ended", usage, facts)
    try:
        result = _result(left, result_bytes_max)
    except ValueError as e:
        if ending.exit_code == 0:
            return _failure(Status.DEVELOPER_ERROR, True, str(e), usage, facts)
        result = {}
    if ending.exit_code != 0:
        return _unsuccessful(ending, result, usage, facts)
    if isinstance(result, list):
        return Outcome(Status.SUCCESS, orjson.dumps(result), True)
    status = Status.APPLICATION_ERROR if "error" in result else Status.SUCCESS
    return Outcome(status, orjson.dumps({**result, "exit_code": 0, "usage": dict(usage)}), True)


def _unsuccessful(ending: Ending, result: Any, usage: Mapping[str, Any], facts: dict[str, Any]) -> Outcome:
    """A non-zero exit, or a signal; what the job says of it itself (`error`, the SDK's `Retry` and `Fatal`) counts."""
    if ending.signal is not None:
        error = f"the job was ended by signal {ending.signal} ({_signal_name(ending.signal)})"
        facts = {**facts, "signal": ending.signal}
    else:
        error = f"the job ended with exit code {ending.exit_code}"
        facts = {**facts, "exit_code": ending.exit_code}
    own = result if isinstance(result, dict) else {}
    fatal, wish = own.pop("eventmill_fatal", False), own.pop("eventmill_retry_after", None)
    if "error" in own:
        error = f"{own.pop('error')} ({error})"
    outcome = _failure(Status.APPLICATION_ERROR, bool(fatal), error, usage, {**own, **facts})
    after = float(wish) if isinstance(wish, int | float) and not isinstance(wish, bool) and wish >= 0 else None
    return Outcome(outcome.status, outcome.result, outcome.final, after)


def _failure(
    status: Status, final: bool, error: str, usage: Mapping[str, Any], facts: Mapping[str, Any] | None = None
) -> Outcome:
    return Outcome(status, orjson.dumps({"error": error, **(facts or {}), "usage": dict(usage)}), final)


def _result(left: bytes | None, bytes_max: int) -> Any:
    """The result file's value, an object or an array. Raises ValueError with what is wrong."""
    if left is None:
        return {}
    if len(left) > bytes_max:
        raise ValueError(f"{RESULT_FILE} is larger than the {bytes_max} bytes allowed; leave large results in files")
    try:
        value = parse_json(left)
    except InvalidEvent as e:
        raise ValueError(f"{RESULT_FILE}: {e}") from None
    if not isinstance(value, dict | list):
        raise ValueError(f"{RESULT_FILE} holds a {type(value).__name__}; a JSON object is needed")
    return value


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"

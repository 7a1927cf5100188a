"""What the local queue writes down of a job: plain values and their JSON forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import orjson

from eventmill.entities.submit import BoundDescription
from eventmill.executors.local.slots import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An accepted attempt: all that is needed to run it, whoever the server is by then."""

    cluster: int
    activation: str
    attempt: int
    namespace: str
    action: str
    code: str
    """Digest of the archive."""
    description: BoundDescription
    memory_mb: int
    limit_s: float | None
    logs_bytes: int
    traceparent: str | None

    @property
    def request(self) -> Request:
        return Request(self.description.request_cpus, self.memory_mb)

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        values = orjson.loads(raw)
        description: dict[str, Any] = values.pop("description")
        for name in ("arguments", "inputs", "outputs"):
            description[name] = None if description[name] is None else tuple(description[name])
        return cls(description=BoundDescription(**description), **values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who has started a job: a shim (pid, start time and boot tell it from all others) and the job's own process.

    `launch`: the directory of the job's directory in which it runs. `end`: nobody has started it, nor ever will; the
    queue itself has taken the claim, and this is how the job ended.
    """

    pid: int = 0
    start: int | None = None
    boot: str = ""
    host: str = ""
    job_pid: int = 0
    started_ms: int = 0
    launch: str = "none"
    end: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        return cls(**orjson.loads(raw))


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a job ended, as its shim wrote it down, or the queue for a job without one."""

    exit_code: int | None = None
    signal: int | None = None
    cancelled: bool = False
    timed_out: bool = False
    refused: str | None = None
    failed: str | None = None
    lost: bool = False
    started_ms: int = 0
    ended_ms: int = 0
    wall_s: float | None = None
    cpu_s: float | None = None
    max_rss_mb: float | None = None
    host: str | None = None
    pid: int | None = None

    @property
    def usage(self) -> dict[str, Any]:
        """What it used, for people and for the chain."""
        values: Mapping[str, Any] = asdict(self)
        names = ("host", "pid", "exit_code", "signal", "cpu_s", "max_rss_mb", "wall_s")
        return {name: values[name] for name in names if values[name] is not None}

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        return cls(**orjson.loads(raw))

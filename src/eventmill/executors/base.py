"""The contract of everything that runs activations. One test suite holds every implementation to it.

An executor owns what is under way in memory and outside; it never touches the store and knows nothing of chains,
retries or rules. Every attempt that it was given ends in exactly one `Finished`, whatever happens, unless the server
dies first. All methods are called on the event loop; none of them blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eventmill.entities import Action, Status

CodeSource = Callable[[str], bytes]
"""The bytes of a piece of code by its digest, as it was uploaded (source text, or base64 of a zip)."""


class Attempt(NamedTuple):
    """One try of an activation, as it is handed to an executor. Like its end a named tuple, of which there is one for
    every call: a frozen dataclass takes thrice the time to make."""

    activation: str
    number: int
    action: Action
    params: bytes
    """JSON object (or array), bound parameters already merged."""
    caller: str = ""
    """Whose activation it is, where the action is another namespace's."""
    chain: str = ""
    """Of a job: qualified name of the action that it is a step of, the outermost one."""
    transaction: str = ""
    """Id of the request or event batch that caused it, for the logs."""
    traceparent: str | None = None

    @property
    def namespace(self) -> str:
        """Whose it is: whose files it sees, whose account it runs as, whom it is counted for."""
        return self.caller or self.action.namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The executor has taken the attempt, as `handle`. A two-phase executor does not start it before `release`.

    `instead_of`: the handle that it had, where that came to nothing and it was begun anew (never a job: one handle, one
    job).
    """

    activation: str
    attempt: int
    handle: str
    instead_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The attempt runs. Functions do not report it (their `Finished` carries the time); jobs do."""

    activation: str
    attempt: int
    handle: str
    time_ms: int
    detail: Mapping[str, Any] = field(default_factory=dict)


class Finished(NamedTuple):
    """The attempt has ended.

    `result`: JSON object or array; for a failure `{"error": …}`.
    `final`: no further attempt may help (success, a returned error, `Fatal`); else the engine may retry.
    `retry_after_s`: the action's own wish (`Retry(after=…)`).
    `timed_out`: the action's time limit ended it. `logs`: lines as `<ISO time> stdout: text`.
    `usage`: facts for people: host, initTime (ms, cold starts only), exit_code, max_rss_mb, cpu_s, …
    """

    activation: str
    attempt: int
    status: Status
    result: bytes
    final: bool
    started_ms: int
    ended_ms: int
    handle: str | None = None
    retry_after_s: float | None = None
    timed_out: bool = False
    logs: tuple[str, ...] = ()
    usage: Mapping[str, Any] | None = None


Report = Accepted | Started | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An activation that was handed over, as it is recorded: with a handle, if it was accepted."""

    activation: str
    attempt: int = 1
    namespace: str = ""
    handle: str | None = None
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What an executor still knows of an activation after the server was restarted.

    `running`: it is under way (or held) under `handle`, and its reports will come.
    `interrupted`: it had been started by the dead server and has not ended: the death counts for it.
    Neither: it has ended; its `Finished` is among the next reports.
    """

    activation: str
    handle: str | None = None
    running: bool = False
    interrupted: bool = False


class Executor(ABC):
    """Runs attempts."""

    two_phase: bool = False
    """True: an accepted attempt waits for `release` (jobs, whose start can't be undone)."""

    @abstractmethod
    async def start(self) -> None:
        """Get ready. Raises a clear error if that is impossible."""

    @abstractmethod
    async def stop(self) -> None:
        """Let go: functions under way are killed, jobs stay. No reports after it returns."""

    @abstractmethod
    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Take these attempts, in order. Submitting one that is under way already is harmless. What there is to say of
        them comes by `reports`, never from inside of this."""

    @abstractmethod
    def release(self, handles: Sequence[str]) -> None:
        """Let accepted attempts run (two-phase executors). Repeating it is harmless."""

    def forget(self, handles: Sequence[str]) -> None:  # noqa: B027 (only what outlives the server has to be forgotten)
        """The end of these is durably recorded: their `Finished` need not be reported again after a restart."""

    async def held(self) -> dict[str, str]:
        """Activation → handle of what was accepted and not yet released, for the audit."""
        return {}

    @abstractmethod
    def cancel(self, activations: Mapping[str, str | None]) -> None:
        """End these (activation → handle, None where there is none yet); each ends in a `Finished` (final, error
        `cancelled`) unless it had finished already."""

    @abstractmethod
    async def find(self, recorded: Sequence[Recorded]) -> dict[str, Found]:
        """What is known of these, when their partition has become ours: after a restart, or after its other owner's
        end. What is not in the answer was never accepted here, or is forgotten."""

    def noticed(self, activation: str, attempt: int) -> bool:
        """Somebody who should know says that this attempt has ended: a reason to look, and no more than that. False if
        it is not under way here, or its end is known."""
        return False

    def refusal(self, action: Action) -> str | None:
        """Why it will never run this action, as far as is known now; None if nothing speaks against it."""
        return None

    def condition(self) -> tuple[bool, str]:
        """Whether it can run what it is given now, and a line about it for people."""
        return True, "ready"

    def counts(self) -> Mapping[str, int]:
        """What it has done since its start, by a word for each, for the metrics."""
        return {}

    @abstractmethod
    def reports(self) -> AsyncIterator[list[Report]]:
        """Push lists of reports as they come, forever. One reader."""

"""How a job of HTCondor's ended, or why it stands still, from its events and its ads. Functions of values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventmill.errors import InvalidDescription
from eventmill.executors import jobs
from eventmill.executors.htcondor.description import INFORMATION
from eventmill.executors.htcondor.records import JobEvent, Kind

RUNNING, REMOVED, COMPLETED, HELD = 2, 3, 4, 5
"""JobStatus."""
BY_US: Final = "Eventmill: "
"""How the reasons begin that we give for removing a job."""
TIME_LIMITS: Final = (46, 47)
"""HoldReasonCode of allowed_job_duration and allowed_execute_duration."""
ATTRIBUTES: Final = [
    "ClusterId", "ProcId", "CompletionDate", "EnteredCurrentStatus", "JobCurrentStartDate", *INFORMATION,
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Release:
    """Let a job go again that the pool has held: after a while, so many times; then it has failed."""

    after_s: float
    times: int


Policy = str | Release
"""What happens with a job that the pool holds: `fail`, `wait` for somebody, or a Release."""


def read_policy(annotation: Any) -> Policy:
    """An action's annotation `on_hold`: "fail" (the default), "wait", or {"after": seconds, "times": n}.
    Raises InvalidDescription."""
    match annotation:
        case None | "fail":
            return "fail"
        case "wait":
            return "wait"
        case {"after": int() | float() as after, "times": int() as times} if after >= 0 and times >= 0:
            return Release(float(after), times)
    raise InvalidDescription(f'on_hold is "fail", "wait" or {{"after": seconds, "times": n}}, not {annotation!r}')


def of_event(event: JobEvent) -> jobs.Ending:
    """A job that has terminated, or was removed."""
    facts = event.attributes
    if event.kind is Kind.ABORTED:
        return _removed(facts)
    if facts.get("TerminatedNormally", "ReturnValue" in facts):
        return jobs.Ending(exit_code=_integer(facts.get("ReturnValue")) or 0)
    return jobs.Ending(signal=_integer(facts.get("TerminatedBySignal")) or 0)


def of_ad(ad: Mapping[str, Any]) -> jobs.Ending:
    """A job's last ad; an empty one if neither queue nor history know it any more."""
    if ad.get("JobStatus") == REMOVED:
        return _removed(ad)
    code, signal = _integer(ad.get("ExitCode")), _integer(ad.get("ExitSignal"))
    if ad.get("ExitBySignal") is True and signal is not None:
        return jobs.Ending(signal=signal)
    if code is not None:
        return jobs.Ending(exit_code=code)
    return jobs.Ending(lost=True)


def _removed(facts: Mapping[str, Any]) -> jobs.Ending:
    reason = str(facts.get("RemoveReason") or facts.get("Reason") or "no reason was given")
    if f"{BY_US}cancelled" in reason:
        return jobs.Ending(cancelled=True)
    if f"{BY_US}held" in reason and "HoldReasonCode" in facts:  # by a server that did not live to see it
        return of_hold(facts)
    return jobs.Ending(refused=f"the job was removed from the queue: {reason}")


def of_hold(facts: Mapping[str, Any]) -> jobs.Ending:
    """A job that the pool has put on hold."""
    code, subcode = facts.get("HoldReasonCode"), facts.get("HoldReasonSubCode")
    if code in TIME_LIMITS:
        return jobs.Ending(timed_out=True)
    return jobs.Ending(failed=f"the job was put on hold: {facts.get('HoldReason')} (code {code}, subcode {subcode})")


def usage(facts: Mapping[str, Any], ending: jobs.Ending) -> dict[str, Any]:
    """What a job used, for people and for the chain. `starts`: how often it was started."""
    cpu = [facts[name] for name in ("RemoteUserCpu", "RemoteSysCpu") if _is_number(facts.get(name))]
    values = {
        "host": host(facts),
        "exit_code": ending.exit_code,
        "signal": ending.signal,
        "starts": facts.get("NumJobStarts"),
        "cpu_s": sum(cpu) if cpu else None,
        "wall_s": facts.get("RemoteWallClockTime"),
        "max_rss_mb": facts.get("MemoryUsage"),
        "hold_reason": facts.get("HoldReason"),
    }
    return {name: value for name, value in values.items() if _is_number(value) or isinstance(value, str)}


def host(facts: Mapping[str, Any]) -> str | None:
    """The machine that a job runs on, or ran on."""
    slot = facts.get("RemoteHost") or facts.get("LastRemoteHost") or facts.get("SlotName")
    return slot.rpartition("@")[2] if isinstance(slot, str) else None


def started_ms(ad: Mapping[str, Any]) -> int:
    return _ms(ad.get("JobCurrentStartDate"))


def ended_ms(ad: Mapping[str, Any]) -> int:
    return _ms(ad.get("CompletionDate")) or _ms(ad.get("EnteredCurrentStatus"))


def _ms(seconds: Any) -> int:
    return int(seconds * 1000) if _is_number(seconds) else 0


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

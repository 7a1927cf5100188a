"""What executors say: attempts that were accepted, have started, have ended. Functions that work on a turn.

What was recorded before, or speaks of another attempt, changes nothing: executors may say everything twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from eventmill.engine import decide
from eventmill.entities import Activation, State, Status
from eventmill.executors import Accepted, Finished, Report, Started

if TYPE_CHECKING:
    from eventmill.engine.turn import Turn


def take(turn: Turn, executor: str, reports: Iterable[Report]) -> None:
    """Record what an executor says."""
    accepted: list[Accepted] = []
    started: list[Started] = []
    finished: list[Finished] = []
    for report in reports:
        match report:
            case Accepted():
                accepted.append(report)
            case Started():
                started.append(report)
            case Finished():
                finished.append(report)
    if accepted:
        _take_accepted(turn, executor, accepted)
    if started:
        turn.forget(s.activation for s in started)
        turn.tx.activations.start([(s.activation, s.attempt, s.handle, s.time_ms, s.detail) for s in started])
    if finished:
        turn.fetch(f.activation for f in finished)
        for report in finished:
            _take_finished(turn, executor, report)
    turn.settle()


def _take_accepted(turn: Turn, executor: str, accepted: Sequence[Accepted]) -> None:
    """Handles that are recorded may be released; a job that is not wanted any more must never run."""
    turn.forget(a.activation for a in accepted)
    handles = [(a.activation, a.attempt, a.handle, a.instead_of) for a in accepted]
    good = set(turn.tx.activations.set_handle(handles))
    turn.fetch(a.activation for a in accepted)
    for a in accepted:
        row = turn.known(a.activation)
        if row is not None and row.partition not in turn.owned:
            turn.early.append((executor, a))
            continue
        if a.handle in good and row is not None and not row.cancelled:
            turn.accepted.append((executor, a.handle))
        else:
            turn.cancels.append((executor, a.activation, a.handle))


def _take_finished(turn: Turn, executor: str, report: Finished) -> None:
    row = turn.known(report.activation)
    if row is not None and not row.state.final and row.partition not in turn.owned:
        _land(turn, report.activation)
        turn.early.append((executor, report))
        return
    if report.handle is not None:
        turn.ended.append((executor, report.handle))
    if row is None or row.attempt == report.attempt:
        _land(turn, report.activation)
    if row is None or row.state.final or row.attempt != report.attempt or not _same_handle(row, report):
        return
    row.started, row.ended, row.logs = report.started_ms, report.ended_ms, report.logs
    row.usage = {**(report.usage or {}), "timed_out": True} if report.timed_out else report.usage
    if report.status is Status.SUCCESS:
        turn.finish(row, State.SUCCEEDED, report.status, report.result)
    elif row.cancelled:
        turn.finish(row, State.CANCELLED, report.status, report.result)
    elif report.final or row.attempts_left <= 0:
        turn.finish(row, State.FAILED, report.status, report.result)
    else:
        row.status, row.result = report.status, report.result
        _retry(turn, row, report.retry_after_s)


def _same_handle(row: Activation, report: Finished) -> bool:
    """A job's end counts for the recorded handle only, since anybody can claim to be our job."""
    return report.handle is None or row.handle == report.handle


def _land(turn: Turn, id: str) -> None:
    if id in turn.flight and id not in turn.changes.landed:
        queue = turn.changes.landed[id] = turn.flight.queue(id)
        turn.changes.room[queue] += 1


def _retry(turn: Turn, row: Activation, after_s: float | None) -> None:
    """The next attempt waits for its due time."""
    turn.tx.activations.keep_attempts([row])
    turn.changed(row)
    row.state, row.due = State.PENDING, decide.retry_at(turn.now_ms, row.attempt - 1, after_s, turn.limits)
    row.attempt, row.attempts_left, row.handle = row.attempt + 1, row.attempts_left - 1, None
    row.status = row.result = row.started = row.ended = row.usage = None
    row.logs = ()
    turn.changes.due.append((row.due, row.queue))


def lose(turn: Turn, lost: Mapping[str, str]) -> None:
    """Recorded jobs (id → handle) that nobody knows any more: how they ended is not known."""
    turn.fetch(lost)
    for id, handle in lost.items():
        error = decide.error(f"outcome unknown: job {handle} is in no queue, history or log any more")
        row = turn.known(id)
        if row is not None and row.partition in turn.owned and row.handle == handle and not row.state.final:
            turn.finish(row, State.FAILED, Status.INTERNAL_ERROR, error, kind="unknown")
    turn.settle()


def put_aside(turn: Turn, executor: str, reports: Iterable[Report], reason: str) -> None:
    """Ends that can't be recorded as they are: these activations have failed, with this reason."""
    for report in reports:
        if isinstance(report, Finished):
            _land(turn, report.activation)
            row = turn.get(report.activation)
            if row is not None and row.partition not in turn.owned:
                turn.early.append((executor, report))
                continue
            if report.handle is not None:
                turn.ended.append((executor, report.handle))
            if row is not None and row.attempt == report.attempt and _same_handle(row, report):
                row.started, row.ended = report.started_ms, report.ended_ms
                turn.finish(row, State.FAILED, Status.INTERNAL_ERROR, decide.error(reason), on_error=False)
    turn.settle()

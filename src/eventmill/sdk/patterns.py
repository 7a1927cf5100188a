"""What a flow waits for, as event patterns (plain dicts) and schedules.

A helper returns what one could have written by hand; `mill.on` takes either. Whether a pattern is correct is decided
by the server's reader of patterns, which answers a deploy with the path to the offending part.
"""

from __future__ import annotations

from eventmill.sdk.actions import Action
from eventmill.sdk.errors import FlowError
from eventmill.sdk.mill import Schedule
from eventmill.sdk.units import seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Mapping, Optional, Tuple, Union

    Pattern = Dict[str, Any]
    Conditions = Mapping[str, Any]

WRITTEN_TYPES = (
    "org.eventmill.file.written",
    "org.dcache.file.written",
    "com.amazonaws.s3.ObjectCreated:Put",
    "com.amazonaws.s3.ObjectCreated:Copy",
    "com.amazonaws.s3.ObjectCreated:CompleteMultipartUpload",
)
"""The events of all decoders that say "this file is complete". Not S3's `Post`: Ceph sends it when an upload begins."""

SUCCEEDED_TYPE = "org.eventmill.activation.succeeded"
FAILED_TYPE = "org.eventmill.activation.failed"
TICK_TYPE = "org.eventmill.schedule.tick"
TICK_SOURCE = "/eventmill/schedules"


class Own(str):
    """A subject in the namespace that the flow is deployed to: `package/name`, completed by `pack`."""


_BEGINNINGS = ("/", "*", "?", "[")
"""What a glob over names of files can begin with."""


class _Storage:
    """The pattern helpers of one or all storage systems."""

    def __init__(self, *written: str) -> None:
        self._written = written

    def written(self, *globs: str, data: Optional[Conditions] = None) -> Pattern:
        """A complete file whose name matches one of these globs: `*` stays within a directory, `**` crosses them.

        `data` adds conditions on the event's data; what is in there depends on the storage system.
        """
        if not globs:
            raise FlowError('written() needs at least one glob, such as "/exfel/**/raw/*.h5"')
        for glob in globs:
            if isinstance(glob, str) and glob[:1] not in _BEGINNINGS:
                raise FlowError(f"names of files begin with '/', and {glob!r} doesn't: it would never match")
        return _pattern(self._written, [_glob(glob) for glob in globs], data)


files = _Storage(*WRITTEN_TYPES)
"""Files, whatever stores them: a watched directory, dCache, S3."""

dcache = _Storage("org.dcache.file.written")
"""Files in dCache alone."""


def happened(*types: str, subject: Union[str, Conditions, None] = None, data: Optional[Conditions] = None) -> Pattern:
    """Events of these types: `happened("org.lab.run.ended", data={"good": [True]})`.

    `subject` is a glob, or a condition such as `{"suffix": ".h5"}`.
    """
    if not types or not all(isinstance(name, str) for name in types):
        raise FlowError('happened() needs the type of the event, such as "org.lab.run.ended"')
    condition = _glob(subject) if isinstance(subject, str) else subject
    return _pattern(types, None if condition is None else [condition], data)


def completed(action: Action, result: Optional[Conditions] = None) -> Pattern:
    """The completion of a successful activation of this action; `result` adds conditions on what it returned.

    The event's `data["result"]` is the action's result.
    """
    return _completion(SUCCEEDED_TYPE, action, result)


def failed(action: Action, result: Optional[Conditions] = None) -> Pattern:
    """The completion of an activation of this action that failed for good; `data["result"]["error"]` says why."""
    return _completion(FAILED_TYPE, action, result)


def every(interval: Union[float, str]) -> Schedule:
    """A schedule with a fixed interval: seconds, or a text such as "10m"; at least one second."""
    interval_s = seconds(interval, "every")
    if interval_s < 1:
        raise FlowError(f"every({interval!r}): the shortest interval is 1s")
    return Schedule(every_s=interval_s)


def cron(expression: str, *, timezone: str = "UTC") -> Schedule:
    """A schedule by a cron expression of five fields (minute, hour, day, month, weekday) in the given time zone."""
    if not isinstance(expression, str) or len(expression.split()) != 5:
        raise FlowError(f'cron({expression!r}): five fields are needed, such as "0 3 * * *"')
    return Schedule(cron=" ".join(expression.split()), timezone=timezone)


def ticks_of(trigger: str) -> Pattern:
    """The ticks of the schedule of this trigger (qualified name): nobody else can make an event of that source."""
    return {"source": [TICK_SOURCE], "type": [TICK_TYPE], "subject": [trigger]}


def _pattern(types: Tuple[str, ...], subject: Any, data: Optional[Conditions]) -> Pattern:
    pattern: Pattern = {"type": list(types)}
    if subject is not None:
        pattern["subject"] = subject
    if data is not None:
        if not isinstance(data, dict) or not data:
            raise FlowError(f'data={data!r}: write conditions as a dict of lists, such as data={{"frames": [100]}}')
        pattern["data"] = data
    return pattern


def _completion(kind: str, action: Action, result: Optional[Conditions]) -> Pattern:
    if not isinstance(action, Action):
        raise FlowError(f"{action!r} is not an action: name a function, job, sequence or map of a Mill")
    return _pattern((kind,), [Own(action.path)], None if result is None else {"result": result})


def _glob(glob: str) -> Dict[str, str]:
    if not isinstance(glob, str) or not glob:
        raise FlowError(f"{glob!r} is not a glob: write a text such as '/exfel/**/raw/*.h5'")
    return {"glob": glob}

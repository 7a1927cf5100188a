"""What can go wrong, for the person on call.

    EventmillError
    ├── InvalidInput (ValueError)      what somebody gave us is wrong; says where
    │   ├── InvalidEvent               .attribute
    │   ├── InvalidPattern             .path
    │   ├── InvalidFlow
    │   ├── InvalidDescription         .line (a submit description)
    │   ├── InvalidEntity              .status is the HTTP status that OpenWhisk answers
    │   ├── InvalidSchedule            .field, .reason
    │   ├── InvalidArchive
    │   └── InvalidConfig
    ├── NotFound (LookupError)
    ├── Conflict
    ├── Throttled                      a namespace is at one of its limits: wait
    ├── Unavailable                    full disk, shutting down: try again
    ├── IllegalTransition              a bug, or two owners of one activation
    └── LostPartition                  somebody else owns the partition now; nothing was written

An error says what is wrong, where, and what to do. Secrets and whole payloads never go into a message.
"""

from __future__ import annotations

from typing import Any


class EventmillError(Exception):
    """Base of all of Eventmill's errors."""


class InvalidInput(EventmillError, ValueError):
    """What was given is wrong; the message says what and where."""


class InvalidEvent(InvalidInput):
    """Not a CloudEvent 1.0: `attribute` names the offending attribute (or "" for the whole document)."""

    status = 400
    """The HTTP status of the answer."""

    def __init__(self, message: str, attribute: str = "") -> None:
        super().__init__(f"attribute '{attribute}': {message}" if attribute else message)
        self.attribute = attribute


class InvalidPattern(InvalidInput):
    """Not an event pattern: `path` leads to the offending part, e.g. `data.fileSize[0].numeric`."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"pattern at {path or 'its top level'}: {message}")
        self.path = path


class InvalidFlow(InvalidInput):
    """A flow file that can't be deployed."""


class InvalidDescription(InvalidInput):
    """A submit description that is not accepted: `line` is the line's number, counted from 1 (0: the whole);
    `command` the one that is not taken, if that is what is wrong."""

    def __init__(self, message: str, line: int = 0, command: str = "") -> None:
        super().__init__(f"line {line}: {message}" if line else message)
        self.line = line
        self.command = command


class InvalidEntity(InvalidInput):
    """An action, trigger, rule or package that is refused; `status` is the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class InvalidSchedule(InvalidInput):
    """A schedule that can't be used: `field` is the key that is wrong ("": the whole), `reason` says what is."""

    def __init__(self, name: str, field: str, reason: str) -> None:
        super().__init__(f"schedule '{name}': {reason}" if name else f"schedule: {reason}")
        self.field = field
        self.reason = reason


class InvalidArchive(InvalidInput):
    """An archive that is too large, has too many members, or tries to leave its directory."""


class InvalidConfig(InvalidInput):
    """A configuration that can't be used."""


class NotFound(EventmillError, LookupError):
    """There is no such entity, activation or dead letter."""


class Conflict(EventmillError):
    """It exists already, or was changed by somebody else meanwhile."""


class Throttled(EventmillError):
    """A namespace calls or fires more than it may: refused, and nothing was recorded. It may again in the next minute,
    or when something has finished."""


class Unavailable(EventmillError):
    """The server can't take work now (no disk space, shutting down); the same request may succeed later."""


class IllegalTransition(EventmillError):
    """An activation can't go from one state to the other."""

    def __init__(self, activation: str, old: object, new: object) -> None:
        super().__init__(f"activation {activation}: no transition from {old} to {new}")


class LostPartition(EventmillError):
    """Another server owns this `partition` now (its epoch has moved on); the transaction was rolled back."""

    def __init__(self, partition: Any) -> None:
        super().__init__(
            f"another server has taken over {partition.topic}/{partition.number}: this one stood still for so long that"
            " it was taken for dead (was it suspended, or its machine overloaded?)"
        )
        self.partition = partition

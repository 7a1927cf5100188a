"""Ids are digests of what they stand for, so that the same cause twice is the same row.

Every id is a 128-bit BLAKE2b digest of length-prefixed parts, as 32 hex digits (design: guarantee 2); but for those of
calls, which are each a cause of their own.
"""

from __future__ import annotations

from eventmill.events.digest import digest as digest


def activation_id(event_source: str, event_id: str, rule_uid: str) -> str:
    """The one activation of this rule for this event, however often the event arrives."""
    return digest("activation", event_source, event_id, rule_uid)


def step_id(parent: str, index: int) -> str:
    """A chain's step, a map's element, a conductor's call or component."""
    return digest("step", parent, index)


def on_error_id(failed: str, finish: int) -> str:
    """The activation of the `on_error` action for the given finish of a failed activation."""
    return digest("on_error", failed, finish)


def call_id(now_ms: int, random: bytes) -> str:
    """A call's activation: the time, and ten bytes that nobody can guess. In the order of time, so that an index of
    them grows at its end, and not in a page anywhere for each."""
    return f"{now_ms:012x}{random.hex()}"


def completion_event_id(activation: str, finish: int) -> str:
    """Id of the event that says that an activation has finished for the `finish`th time (replays finish again)."""
    return f"{activation}-{finish}"


def file_event_id(path: str, inode: int, size: int, mtime_ns: int) -> str:
    """A file as it is now: a scan and a notification of the same file make the same event."""
    return digest("file", path, inode, size, mtime_ns)


def tick_event_id(schedule: str, due_ms: int) -> str:
    """One due time of one schedule."""
    return digest("tick", schedule, due_ms)

"""The frames between the server and its workers, and the messages between the server and the zygote.

A frame is a head (bytes that follow, kind) and a payload. Parameters and results pass through as JSON bytes that only
the worker reads and writes. A worker is not trusted: `Frames` bounds what it may send, the server checks every field.
Standard library only: it is loaded by every worker.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, NamedTuple

INIT, RUN = 1, 2
"""To the worker: the code (once), an attempt."""
READY, FAILED, DONE = 3, 4, 5
"""From the worker: the code is loaded, it can't be loaded, the attempt has ended."""

# how an attempt ended, as the worker sees it
SUCCESS, RETURNED_ERROR, RAISED, RETRY, FATAL, TOO_LARGE, BAD_RESULT, EXITED, MEMORY = range(9)

UNSAID = -1.0
"""Instead of the seconds after which to retry."""

LEFT_OUTPUT, LEFT_PROCESSES = 1, 2
"""Flags of DONE: there may be output in the pipes; processes that the attempt started are still there."""

CHUNK_BYTES = 1 << 16
NAME_BYTES_MAX = 4096
MESSAGE_BYTES = 1 << 16

_HEAD = struct.Struct("<IB")
_INIT_HEAD = struct.Struct("<I")
_RUN_HEAD = struct.Struct("<IQHHHHH")
_DONE_HEAD = struct.Struct("<IBdBdI")


class BrokenFrame(ValueError):
    """Not what this protocol says: the other side is broken, or hostile."""


class Frames:
    """Puts frames together from the bytes that arrive, none longer than `payload_bytes_max`."""

    def __init__(self, payload_bytes_max: int) -> None:
        self._payload_bytes_max = payload_bytes_max
        self._pieces: list[bytes] = []
        self._size = 0
        self._wanted = _HEAD.size
        """How many bytes there must be before looking at them pays."""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames (kind, payload) that `data` completes. Raises BrokenFrame."""
        self._size += len(data)
        if self._pieces or self._size < self._wanted:
            self._pieces.append(data)
            if self._size < self._wanted:
                return []
            data = b"".join(self._pieces)
        frames = []
        start = 0
        self._wanted = _HEAD.size
        while len(data) - start >= _HEAD.size:
            size, kind = _HEAD.unpack_from(data, start)
            if size > self._payload_bytes_max:
                raise BrokenFrame(f"a frame of {size} bytes; at most {self._payload_bytes_max} are allowed")
            end = start + _HEAD.size + size
            if end > len(data):
                self._wanted = end - start
                break
            frames.append((kind, data[start + _HEAD.size : end]))
            start = end
        self._size = len(data) - start
        self._pieces = [data[start:]] if self._size else []
        return frames


def frame(kind: int, payload: bytes = b"") -> bytes:
    return _HEAD.pack(len(payload), kind) + payload


def init_frame(document: dict[str, Any], source: bytes) -> bytes:
    head = json.dumps(document).encode()
    return frame(INIT, _INIT_HEAD.pack(len(head)) + head + source)


def parse_init(payload: bytes) -> tuple[dict[str, Any], bytes]:
    end = _INIT_HEAD.size + _INIT_HEAD.unpack_from(payload)[0]
    return json.loads(payload[_INIT_HEAD.size : end]), payload[end:]


class Call(NamedTuple):
    """One attempt, as the worker is given it. `deadline_ms`: epoch. `namespace`: of the caller."""

    sequence: int
    deadline_ms: int
    activation: str
    transaction: str
    traceparent: str
    namespace: str
    api_key: str
    params: bytes


def run_frame(call: Call) -> bytes:
    """What is absurdly long of the names is cut."""
    names = [name.encode(errors="replace")[:NAME_BYTES_MAX] for name in call[2:7]]
    head = _RUN_HEAD.pack(call.sequence, call.deadline_ms, *map(len, names))
    size = len(head) + sum(map(len, names)) + len(call.params)
    return b"".join((_HEAD.pack(size, RUN), head, *names, call.params))


def parse_run(payload: bytes) -> Call:
    sequence, deadline_ms, *sizes = _RUN_HEAD.unpack_from(payload)
    names, start = [], _RUN_HEAD.size
    for size in sizes:
        names.append(payload[start : start + size].decode(errors="replace"))
        start += size
    activation, transaction, traceparent, namespace, api_key = names
    params = payload[start:]
    return Call(sequence, deadline_ms, activation, transaction, traceparent, namespace, api_key, params)


Done = tuple[int, int, float, int, float, int]
"""Sequence, outcome, seconds after which to retry (negative: not said), flags, CPU seconds, largest resident size in
KiB."""


def done_frame(done: Done, result: bytes) -> bytes:
    return _HEAD.pack(_DONE_HEAD.size + len(result), DONE) + _DONE_HEAD.pack(*done) + result


def parse_done(payload: bytes) -> tuple[Done, bytes]:
    """Raises BrokenFrame."""
    try:
        return _DONE_HEAD.unpack_from(payload), payload[_DONE_HEAD.size :]
    except struct.error as e:
        raise BrokenFrame("a DONE that is too short") from e


DONE_BYTES = _DONE_HEAD.size
"""What a DONE has besides the result."""


def send_message(connection: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """One message of the control connection (SOCK_SEQPACKET), with descriptors for the other process."""
    socket.send_fds(connection, [json.dumps(message).encode()], descriptors)


def receive_message(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors; None when the other side is gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 4, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None
    return (json.loads(data), descriptors) if data else None

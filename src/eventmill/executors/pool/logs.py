"""What the function under way in one worker prints: from two pipes to stamped lines, up to a limit.

Owns the reading ends. It must never let a function that prints without end keep the server busy: beyond the limit what
arrives is thrown away a pipe's fill at a time, with pauses. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime

CHUNK_BYTES = 1 << 16
PAUSE_S = 0.02
"""Between two looks at pipes that are only being emptied; the function waits in its `write` meanwhile."""
STREAMS = ("stdout", "stderr")
TRUNCATED = "Logs were truncated because the total bytes size exceeds the limit of {} bytes."


class Log:
    """The lines of one attempt after the other: `begin`, then `take`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pipes: tuple[int, int], bytes_max: int) -> None:
        self._loop = loop
        self._pipes = pipes
        self._bytes_max = bytes_max
        self._begin()
        for stream, pipe in enumerate(pipes):
            os.set_blocking(pipe, False)
            loop.add_reader(pipe, self._read, stream)

    def _begin(self) -> None:
        self._lines: list[str] = []
        self._bytes = 0
        self._truncated = False
        self._partial = [b"", b""]

    @property
    def empty(self) -> bool:
        return not self._lines and self._partial == [b"", b""]

    def note(self, text: str) -> None:
        """Add a line of our own."""
        self._add(1, text.encode())

    def take(self) -> tuple[str, ...]:
        """The lines since the last time, after reading what is still in the pipes; a last line needs no newline."""
        for stream in (0, 1):
            while self._read(stream):
                continue
            if self._partial[stream]:
                self._add(stream, self._partial[stream])
        if self.empty:
            return ()
        lines = tuple(self._lines)
        self._begin()
        return lines

    def close(self) -> None:
        for pipe in self._pipes:
            self._loop.remove_reader(pipe)
            os.close(pipe)
        self._pipes = (-1, -1)

    def _read(self, stream: int) -> bool:
        """Read once; False if there was nothing, or a function that keeps on writing has to wait."""
        try:
            data = os.read(self._pipes[stream], CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:  # all writers are gone
            self._loop.remove_reader(self._pipes[stream])
            return False
        if self._truncated:
            self._pause(stream)
            return False
        *lines, rest = (self._partial[stream] + data).split(b"\n")
        for line in lines:
            self._add(stream, line)
        self._partial[stream] = rest
        if self._bytes + len(rest) > self._bytes_max:
            self._add(stream, rest)
            self._partial[stream] = b""
        return True

    def _add(self, stream: int, text: bytes) -> None:
        if self._truncated:
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = f"{time} {STREAMS[stream]}: {text.decode(errors='replace')}"
        self._bytes += len(line)
        if self._bytes > self._bytes_max:
            self._truncated = True
            line = f"{time} stderr: {TRUNCATED.format(self._bytes_max)}"
        self._lines.append(line)

    def _pause(self, stream: int) -> None:
        self._loop.remove_reader(self._pipes[stream])
        self._loop.call_later(PAUSE_S, self._resume, self._pipes[stream], stream)

    def _resume(self, pipe: int, stream: int) -> None:
        if self._pipes[stream] == pipe:  # not closed meanwhile
            self._loop.add_reader(pipe, self._read, stream)

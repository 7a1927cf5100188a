"""Which activations run right now, in a small file that outlives the server.

A slot per place (a worker of the pool, a call that is out), mapped into memory: writing one costs no system call, and
what was written survives a SIGKILL (a power cut may lose it: then an interruption is not counted, nothing else). One
writer, on the event loop.
"""

from __future__ import annotations

import mmap
from pathlib import Path

SLOT_BYTES = 64
"""A length and an activation id."""


class Slots:
    """`interrupted`, once it is open: what ran when the last server died."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._map: mmap.mmap | bytearray = bytearray(SLOT_BYTES * count)
        self.interrupted: frozenset[str] = frozenset()

    def open(self) -> None:
        self.interrupted = _read(self._path)
        self._path.write_bytes(self._map)
        with self._path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), len(self._map))

    def set(self, slot: int, activation: str) -> None:
        text = activation.encode()[: SLOT_BYTES - 1]
        start = slot * SLOT_BYTES
        self._map[start : start + 1 + len(text)] = bytes((len(text),)) + text

    def clear(self, slot: int) -> None:
        self._map[slot * SLOT_BYTES] = 0

    def close(self) -> None:
        """After an orderly stop nothing counts as interrupted."""
        if isinstance(self._map, mmap.mmap):
            mapped, self._map = self._map, bytearray(len(self._map))
            mapped[:] = self._map
            mapped.close()


def _read(path: Path) -> frozenset[str]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return frozenset()
    slots = [data[start : start + SLOT_BYTES] for start in range(0, len(data), SLOT_BYTES)]
    return frozenset(slot[1 : 1 + slot[0]].decode(errors="replace") for slot in slots if slot[0])

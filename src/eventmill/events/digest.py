"""What all ids are made with: one digest of several parts. A function of values."""

from __future__ import annotations

from hashlib import blake2b


def digest(*parts: str | bytes | int, key: bytes = b"") -> str:
    """32 hex digits for these parts; no two different lists of parts run together, because each carries its length.

    With a secret `key` (64 bytes at most) nobody else can make it.
    """
    h = blake2b(digest_size=16, key=key)
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        h.update(len(raw).to_bytes(8, "big"))
        h.update(raw)
    return h.hexdigest()

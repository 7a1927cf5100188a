"""What all ids are made with: one digest of several parts. A function of values."""

from __future__ import annotations

from hashlib import blake2b


def digest(*parts: str | bytes | int) -> str:
    """32 hex digits for these parts; no two different lists of parts run together, because each carries its length."""
    h = blake2b(digest_size=16)
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        h.update(len(raw).to_bytes(8, "big"))
        h.update(raw)
    return h.hexdigest()

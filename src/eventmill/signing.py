"""Tokens that the server hands out and recognises later without keeping them: digests under a key of its own.

A token says nothing by itself; whoever presents it also says what it is for, and is believed if the two belong
together. How long it counts is for its user to decide: it names something that ends (an activation), and is refused
from then on. Functions of values; the key is read once, from a file that only the server's account reads.
"""

from __future__ import annotations

import secrets
import uuid
from hashlib import blake2b
from hmac import compare_digest

KEY_BYTES = 32


def new_key() -> bytes:
    """A key for a server that has none yet."""
    return secrets.token_bytes(KEY_BYTES)


class Signer:
    """Signs under one key."""

    def __init__(self, key: bytes) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"a key has at least {KEY_BYTES} bytes")
        self._key = key[:64]  # what BLAKE2b takes

    def sign(self, purpose: str, *parts: str) -> str:
        """The token for this purpose and these parts (an activation's id, an attempt's number): 64 hex digits."""
        digest = blake2b(key=self._key, digest_size=32)
        for part in (purpose, *parts):
            text = part.encode()
            digest.update(len(text).to_bytes(8, "big") + text)
        return digest.hexdigest()

    def check(self, token: str, purpose: str, *parts: str) -> bool:
        """Whether this is the token for just that; takes the same time whatever is wrong."""
        return compare_digest(token.encode(), self.sign(purpose, *parts).encode())


_FUNCTION = "function-key"


def function_key(signer: Signer, activation: str) -> str:
    """The key, as a namespace's `uuid:secret`, by which the function of this activation may call the API."""
    return f"{uuid.UUID(activation)}:{signer.sign(_FUNCTION, activation)}"


def activation_of(signer: Signer, name: str, secret: str) -> str | None:
    """The activation whose function was given this key; None if it is no such key. Whether it is still under way is for
    the caller to find out."""
    try:
        activation = uuid.UUID(name).hex
    except ValueError:
        return None
    return activation if secret.isascii() and signer.check(secret, _FUNCTION, activation) else None

"""Keys of namespaces, `uuid:secret` as OpenWhisk's. Only a digest of the secret is kept: it is long and random, so that
a plain BLAKE2b can't be searched."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from hmac import compare_digest
from typing import Any

import orjson
from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.engine import Row

from eventmill.store import schema

_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a key speaks for. `sources`: prefixes of the event sources that it may post."""

    namespace: str
    uuid: str
    sources: tuple[str, ...]

    def may_post(self, source: str) -> bool:
        return any(source.startswith(prefix) for prefix in self.sources)


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret, which nobody knows but its owner. `created`: epoch ms."""

    uuid: str
    namespace: str
    sources: tuple[str, ...]
    created: int


class Keys:
    """Keys, in one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, namespace: str, sources: Sequence[str], now_ms: int) -> str:
        """Make a key; the answer `uuid:secret` is seen this once."""
        name, secret = str(uuid.uuid4()), "".join(secrets.choice(_ALPHABET) for _ in range(64))
        values = {"uuid": name, "namespace": namespace, "hash": _hash(secret), "created": now_ms}
        self._connection.execute(insert(schema.keys).values(sources=orjson.dumps(list(sources)), **values))
        return f"{name}:{secret}"

    def identify(self, name: str, secret: str) -> Identity | None:
        """The key's namespace; None if there is no such key."""
        t = schema.keys
        row = self._connection.execute(select(t).where(t.c.uuid == name)).first()
        if row is None or not compare_digest(row.hash, _hash(secret)):
            return None
        return Identity(row.namespace, row.uuid, tuple(orjson.loads(row.sources)))

    def all(self) -> list[Key]:
        """All keys of all namespaces, oldest first."""
        t = schema.keys
        return [_key(row) for row in self._connection.execute(select(t).order_by(t.c.created, t.c.uuid))]

    def of(self, namespace: str) -> list[Key]:
        """The keys of a namespace, oldest first."""
        t = schema.keys
        rows = self._connection.execute(select(t).where(t.c.namespace == namespace).order_by(t.c.created, t.c.uuid))
        return [_key(row) for row in rows]

    def exists(self, namespace: str, made_by_ms: int | None = None) -> bool:
        """Whether there is such a namespace: it has a key; `made_by_ms`: one that was made by then (epoch ms)."""
        t = schema.keys
        query = select(t.c.uuid).where(t.c.namespace == namespace)
        if made_by_ms is not None:
            query = query.where(t.c.created <= made_by_ms)
        return self._connection.execute(query.limit(1)).first() is not None

    def delete(self, namespace: str) -> int:
        """Withdraw all keys of a namespace."""
        t = schema.keys
        return self._connection.execute(delete(t).where(t.c.namespace == namespace)).rowcount


def _key(row: Row[Any]) -> Key:
    return Key(row.uuid, row.namespace, tuple(orjson.loads(row.sources)), row.created)


def _hash(secret: str) -> bytes:
    return blake2b(secret.encode(), digest_size=32, person=b"eventmill key").digest()

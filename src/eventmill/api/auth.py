"""Who calls, and whether they may: HTTP Basic, a namespace's key as `uuid:secret`.

A key is looked up once and remembered for a few seconds under a digest of the header, so that the hot path asks no
database and the memory holds no secret. A key that was refused is not remembered. On the event loop only.
"""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import cast

from starlette.requests import Request

from eventmill.api import names
from eventmill.api.errors import INVALID_KEY, Refusal, forbidden
from eventmill.entities import State
from eventmill.signing import Signer, activation_of
from eventmill.store import Identity, Store, Tx

KEEP_S = 10.0
"""A key that was withdrawn by another process still opens for this long."""
_IDENTITIES_MAX = 4096

_NEEDED = "The resource requires authentication, which was not supplied with the request"
_CHALLENGE = {"www-authenticate": 'Basic realm="OpenWhisk secure realm",charset=UTF-8'}
CALL = "eventmill.call"
"""Where the ASGI scope has the `Call`."""


@dataclass(slots=True)
class Call:
    """One request: its id (the `code` of error documents, in every log line), its `head` (the headers by their names in
    lower case), who has made it, and headers that its answer will have, whatever that is, unless the answer has its
    own."""

    transaction: str
    head: Mapping[bytes, bytes]
    identity: Identity | None = None
    headers: dict[str, str] = field(default_factory=dict)


def call_of(request: Request) -> Call:
    return cast(Call, request.scope[CALL])


def identity_of(request: Request) -> Identity:
    """Who calls: known on every path but those of health."""
    identity = call_of(request).identity
    assert identity is not None
    return identity


def is_root(identity: Identity) -> bool:
    """The key of the server's owner may post events of any source, and sees what belongs to no namespace."""
    return "" in identity.sources


def own_namespace(request: Request, resource: str = "") -> str:
    """The namespace of the path, `_` being the caller's. Raises Refusal (403) for all but the caller's own."""
    given = names.check_namespace(request.path_params["namespace"])
    own = identity_of(request).namespace
    if given not in ("_", own):
        raise forbidden(f"{given}/{resource}" if resource else given)
    return own


def own_entity(request: Request) -> tuple[str, str]:
    """(namespace, name) of the entity that the path names, `package/name` for an action in one. Raises Refusal."""
    name = _entity_name(request)
    return own_namespace(request, name), name


def named_namespace(request: Request) -> str:
    """The namespace of the path, which may be another's: what is published there is for everybody."""
    given, own = names.check_namespace(request.path_params["namespace"]), identity_of(request).namespace
    return own if given == "_" else given


def named_entity(request: Request) -> tuple[str, str]:
    """Like `own_entity`, for what may be another namespace's: whoever looks it up has to say who asks."""
    name = _entity_name(request)
    return named_namespace(request), name


def _entity_name(request: Request) -> str:
    parts = request.path_params
    package = f"{names.check_name(parts['package'])}/" if "package" in parts else ""
    return package + names.check_name(parts["name"])


SOURCES = "/namespaces/{}/"
"""Events of sources below this, its name in it, are a namespace's to post: by its functions, and by its keys unless
they were made for others."""


class Authenticator:
    """Knows the keys of the store, and those that functions are given for as long as they run."""

    def __init__(self, store: Store, signer: Signer) -> None:
        self._store = store
        self._signer = signer
        self._known: dict[bytes, tuple[Identity, float]] = {}
        self.changes = 0
        """How often keys have been withdrawn."""

    async def identify(self, header: bytes | None) -> Identity:
        """Who an Authorization header speaks for. Raises Refusal (401)."""
        if header is None or header[:6].lower() != b"basic ":
            raise Refusal(_NEEDED, 401, _CHALLENGE)
        digest = blake2b(header, digest_size=16).digest()
        identity, until = self._known.get(digest, (None, 0.0))
        if identity is None or until < time.monotonic():
            changes = self.changes
            identity, lasting = await self._look_up(header[6:])
            if lasting and changes == self.changes:  # else it may have been withdrawn while it was looked up
                self._remember(digest, identity)
        return identity

    def forget(self) -> None:
        """Keys have changed."""
        self.changes += 1
        self._known.clear()

    async def _look_up(self, credentials: bytes) -> tuple[Identity, bool]:
        """Who it is, and whether that may be remembered."""
        try:
            name, _, secret = base64.b64decode(credentials.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            raise Refusal(_NEEDED, 401, _CHALLENGE) from None
        # on the loop, since a thread costs more than the look-up
        if activation := activation_of(self._signer, name, secret):
            identity = await self._store.transact(lambda tx: _function(tx, activation))
        else:
            identity = await self._store.transact(lambda tx: tx.keys.identify(name, secret)) if name else None
        if identity is None:
            raise Refusal(INVALID_KEY, 401, _CHALLENGE)
        return identity, activation is None

    def _remember(self, digest: bytes, identity: Identity) -> None:
        if len(self._known) >= _IDENTITIES_MAX:
            self._known.clear()
        self._known[digest] = identity, time.monotonic() + KEEP_S


def _function(tx: Tx, activation: str) -> Identity | None:
    """Whom the function of an activation speaks for: its namespace, until it has ended, or all keys that the namespace
    had when it was made are withdrawn."""
    row = tx.activations.get_many([activation]).get(activation)
    if row is None or row.state not in (State.HANDED, State.RUNNING) or not tx.keys.exists(row.namespace, row.created):
        return None
    return Identity(row.namespace, str(uuid.UUID(activation)), (SOURCES.format(row.namespace),))

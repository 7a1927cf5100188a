"""In whose name a schedd is asked: an identity for each namespace that has a token, else the server's own account.

Owns a `Condor` for each identity, started when it is first needed, and knows which namespaces may have jobs. Belongs to
the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from eventmill.config import Pool
from eventmill.errors import Unavailable
from eventmill.executors.htcondor.client import Condor

_log = logging.getLogger(__name__)

AGAIN_S = 2.0
"""What the schedd could not do is asked for again after this."""
SELF = ""
"""The identity of namespaces without a token: the server's own account."""


class Accounts:
    """The identities of one pool, `name`. `directory`: each has one of its own below it."""

    def __init__(self, name: str, pool: Pool, directory: Path) -> None:
        self._name = name
        self._pool = pool
        self._directory = directory
        self._condors: dict[str, Condor] = {}
        self._only_namespace: str | None = None
        self.owners: dict[str, str] = {}
        """Whose jobs those of an identity are, where that was asked."""

    def identity(self, namespace: str) -> str:
        return namespace if namespace in self._pool.tokens else SELF

    def identities(self) -> Iterable[str]:
        return self._pool.tokens or [SELF]

    def condor(self, identity: str) -> Condor:
        if identity not in self._condors:
            self._condors[identity] = Condor(
                directory=self._directory / (identity or "self"),
                condor_config=self._pool.condor_config,
                schedd=self._pool.schedd,
                collector=self._pool.collector,
                token_file=self._pool.tokens.get(identity),
            )
        return self._condors[identity]

    async def know_owners(self, identities: Iterable[str]) -> None:
        """Ask whose jobs they will be, until the schedd says it."""
        for identity in identities:
            while identity not in self.owners:
                try:
                    ping = await self.condor(identity).ping()
                    self.owners[identity] = str(ping["identity"]).partition("@")[0]
                except Unavailable as e:
                    _log.error("pool %s: jobs wait: %s", self._name, e)
                    await asyncio.sleep(AGAIN_S)

    def has_jobs(self, namespace: str) -> None:
        """A namespace has jobs already: without tokens it is the only one."""
        if not self._pool.tokens:
            self._only_namespace = self._only_namespace or namespace

    def refusal(self, namespace: str) -> str | None:
        """Why a namespace may have no jobs here; None if it may."""
        if namespace in self._pool.tokens:
            return None
        if self._only_namespace is None:
            self._only_namespace = namespace
        if namespace == self._only_namespace and not self._pool.tokens:
            return None
        return (
            f"jobs of namespace '{namespace}' are refused by pool '{self._name}': they would be the same account's as"
            f" others': give each namespace an IDTOKEN (pools.{self._name}.tokens)"
        )

    def troubles(self) -> set[str]:
        """Why schedds could not be asked the last time."""
        return {condor.trouble for condor in self._condors.values() if condor.trouble}

    def calls(self) -> Counter[str]:
        """How often schedds were asked, by what."""
        total: Counter[str] = Counter()
        for condor in self._condors.values():
            total.update(condor.calls)
        return total

    async def stop(self) -> None:
        for condor in self._condors.values():
            await condor.stop()

"""In whose name a schedd is asked: an identity for each namespace that has a token, else the server's own account.

Owns a `Condor` for each identity, started when it is first needed, and knows which namespaces may have jobs, and which
schedd has them. Both are remembered on disk before they matter. Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from eventmill.config import Pool
from eventmill.errors import InvalidConfig, Unavailable
from eventmill.executors.background import Threads
from eventmill.executors.htcondor.client import Condor, OtherSchedd, Pin
from eventmill.executors.htcondor.rooms import Rooms

SELF = ""
"""The identity of namespaces without a token: the server's own account."""
SCHEDD, NAMESPACE = "schedd", "namespace"
"""What is remembered."""
START_TIMEOUT_S = 5.0
"""A server's start does not wait longer for a schedd."""


class Accounts:
    """The identities of one pool, `name`. `directory`: each has one of its own below it."""

    def __init__(self, name: str, pool: Pool, directory: Path, rooms: Rooms, threads: Threads) -> None:
        self._name = name
        self._pool = pool
        self._directory = directory
        self._rooms = rooms
        self._threads = threads
        self._condors: dict[str, Condor] = {}
        self._pin = _Remembered(rooms, threads)
        self._only_namespace = ""
        self.owners: dict[str, str] = {}
        """Whose jobs those of an identity are, where that was asked."""
        self._asked: dict[str, int] = {}
        """Which of an identity's helpers was asked it: the next one has read its token anew."""

    async def open(self) -> None:
        """Recall what was remembered. If another schedd answers than the one that has the jobs, InvalidConfig is
        raised; it is taken if there is no job."""
        self._pin.name = await self._threads.run(self._rooms.recall, SCHEDD)
        self._only_namespace = await self._threads.run(self._rooms.recall, NAMESPACE)
        condor = self.asker(SELF)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await condor.ping()
        except OtherSchedd as e:
            if not await self._threads.run(self._rooms.is_empty):
                raise InvalidConfig(self._elsewhere(str(e))) from e
            self._pin.name = ""
            with suppress(Unavailable):
                await condor.ping()
        except (Unavailable, TimeoutError):
            pass  # it is said in `condition`; jobs wait. Whoever answers later has to be the one that has the jobs, too

    def _elsewhere(self, what: str) -> str:
        return (
            f"pool '{self._name}': {what}. Put pools.{self._name}.schedd, .collector and .condor_config back to what"
            f" they were until those jobs have ended, or, if the schedd was only renamed, write its name into"
            f" {self._directory.parent / SCHEDD}; {self.given_up()}"
        )

    def given_up(self) -> str:
        """What to do about jobs that are gone for good."""
        return f"if they are gone for good, empty {self._rooms.place}: each has an unknown outcome then"

    def identity(self, namespace: str) -> str:
        return namespace if namespace in self._pool.tokens else SELF

    def identities(self) -> Iterable[str]:
        return self._pool.tokens or [SELF]

    def may_ask(self, identity: str) -> bool:
        """Whether something may be done in this name: the server's own account has no part in jobs of tokens."""
        return identity in self.identities()

    def condor(self, identity: str) -> Condor:
        if identity not in self._condors:
            self._condors[identity] = Condor(
                directory=self._directory / (identity or "self"),
                condor_config=self._pool.condor_config,
                schedd=self._pool.schedd,
                collector=self._pool.collector,
                token_file=self._pool.tokens.get(identity),
                pin=self._pin,
            )
        return self._condors[identity]

    def asker(self, identity: str) -> Condor:
        """Who can look for jobs of an identity: itself, or any other one if its token is gone."""
        return self.condor(identity if self.may_ask(identity) else next(iter(self.identities())))

    async def settle(self, identity: str, namespaces: Sequence[str]) -> None:
        """Jobs of these are about to be prepared. Without tokens the first namespace ever is the only one. Where the
        pool acts as the jobs' owners, it is asked who they will be. Raises Unavailable."""
        if not self._pool.tokens and not self._only_namespace:
            await self._threads.run(self._rooms.remember, NAMESPACE, namespaces[0])
            self._only_namespace = namespaces[0]
        if self._pool.spool_dir is None or not self.may_ask(identity):
            return
        condor = self.condor(identity)
        # a helper that is there has read its token; if there is none, the next one may be somebody else
        if condor.pid is None or condor.starts != self._asked.get(identity):
            ping = await condor.ping()
            self._asked[identity] = condor.starts
            self.owners[identity] = str(ping["identity"]).partition("@")[0]

    def refusal(self, namespace: str) -> str | None:
        """Why a namespace may have no jobs here; None if it may."""
        if namespace in self._pool.tokens or (not self._pool.tokens and namespace == self._only_namespace):
            return None
        whose = (
            "others'" if self._pool.tokens else f"those of namespace '{self._only_namespace}', which was the first one"
        )
        return (
            f"jobs of namespace '{namespace}' are refused by pool '{self._name}': they would be the same account's as"
            f" {whose}: give each namespace an IDTOKEN (pools.{self._name}.tokens)"
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


class _Remembered(Pin):
    """The schedd's name, on disk before anything else is asked."""

    def __init__(self, rooms: Rooms, threads: Threads) -> None:
        super().__init__()
        self._rooms = rooms
        self._threads = threads

    async def meet(self, name: str) -> None:
        if name and not self.name:
            await self._threads.run(self._rooms.remember, SCHEDD, name)
            self.name = name

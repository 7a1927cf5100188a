"""Functions run by an OpenWhisk. Owns what is under way there; attempts, time limits and dead letters stay ours.

A call waits for its end (`blocking`): the answer is the push. Asking is for what outlasts OpenWhisk's wait of a minute,
for an answer that was lost on the way, and for logs, where the function has written any; of what has an id there it is
reported first as `Accepted`, so that the next server finds it. What OpenWhisk can't take now (away, throttled) waits
here and uses up no attempt. A call whose answer was lost may have been done: it is looked for by the mark in its result
until it can't run any more, and only then called again; where there are no marks (functions that are not Python), the
attempt ends. On the event loop alone; a large zip is packed in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eventmill.config import Functions
from eventmill.entities import Action, Document
from eventmill.errors import InvalidArchive, InvalidConfig
from eventmill.executors.base import Attempt, CodeSource, Found, Recorded
from eventmill.executors.endings import NO_CODE, developer_error, internal_error, of_archive, of_unusable
from eventmill.executors.openwhisk import packing
from eventmill.executors.openwhisk.client import (
    Away,
    Client,
    Lost,
    Missing,
    NoRecord,
    Refused,
    Throttled,
    Trouble,
    Unusable,
)
from eventmill.executors.openwhisk.endings import Ended, is_of, of_call, of_document
from eventmill.executors.openwhisk.limits import TheirLimits
from eventmill.executors.remote import RemoteExecutor, UnderWay, now_ms, trusted

_log = logging.getLogger(__name__)

_KEY = re.compile(r"[!-9;-~]+:[!-~]+")
_FIRST_S, _AWAY_MAX_S = 0.1, 5.0
"""Pauses before OpenWhisk, which is away, is tried again."""
_ASK_MAX_S = 5.0
"""Pauses between questions for an end grow up to this."""
_GRACE_S = 20.0
"""A record that is not there so long after the action's time limit (its start included) will never be."""
_LOST_MAX = 5
"""An attempt whose answer was lost so often has failed: the reason may lie in it."""
_DEPLOYED_MAX = 3
"""So often an action is put that is missing right afterwards, or whose putting failed."""
_LOGS_FIRST_S, _LOGS_S = 0.005, 3.0
"""Logs are stored a moment after the answer; they are waited for so long."""
_PAGE, _PAGES_MAX = 50, 20
"""Activations that are looked through for one whose answer was lost."""
_BEGAN_BEFORE_MS = 2_000
"""The clocks may differ so much."""
_TIDY_S, _KEPT_MS = 3600.0, 7 * 86_400_000
"""How often, and for how long unused, actions of ours are deleted there: one that is needed again is put again."""


class OpenWhisk(RemoteExecutor):
    """`code` gives an action's code by its digest; `environment` is in every function's environment. `state_dir`: the
    executor's own. Of an archive, so many files with so many bytes are taken. `key_setting`: where the
    key came from, for people."""

    ignored = "OpenWhisk ends nothing: it may still run, its result is ignored"

    def __init__(
        self,
        code: CodeSource,
        client: Client,
        *,
        state_dir: Path,
        connections_max: int,
        environment: Mapping[str, str] | None = None,
        archive_files_max: int = 10_000,
        archive_bytes_max: int = 512 << 20,
        key_setting: str = "functions.key",
    ) -> None:
        super().__init__(connections_max, state_dir)
        self._key_setting = key_setting
        self._document = partial(packing.document, files_max=archive_files_max, bytes_max=archive_bytes_max)
        self._code = code
        self._client = client
        self._environment = dict(environment or {})
        self._connections_max = connections_max
        self._limits = TheirLimits()
        self._putting: dict[str, asyncio.Lock] = {}
        self._puts: Counter[str] = Counter()
        """How often each action has been put: what was called before the last time is gone with its store."""
        self._used_ms: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._trouble: str | None = None
        """What is wrong with the other side; "": nothing; None: it has not been asked yet."""

    @classmethod
    def of(cls, settings: Functions, code: CodeSource, *, state_dir: Path, **more: Any) -> OpenWhisk:
        """As it is configured. Raises InvalidConfig if the key or the certificates can't be read."""
        assert settings.key is not None
        host, count = settings.api_host.rstrip("/"), settings.connections_max
        key_setting = f"functions.key ({settings.key})"
        try:
            key = settings.key.read()
        except InvalidConfig as e:
            raise InvalidConfig(f"functions.key: {e}") from e
        if not _KEY.fullmatch(key):
            raise InvalidConfig(f"{key_setting}: what stands there is no key: uuid:key, in one line")
        verify = trusted(settings.ca_file, "functions.ca_file")
        client = Client(host, key, verify=verify, connections_max=count)
        return cls(code, client, state_dir=state_dir, connections_max=count, key_setting=key_setting, **more)

    # life

    async def start(self) -> None:
        """Raises InvalidConfig if what answers is no OpenWhisk, or does not know the key. One that is away is waited
        for beside all else."""
        try:
            await self._learn()
        except (Missing, Refused, Unusable) as e:
            raise InvalidConfig(f"functions.api_host: what answers at {self._client.host} is no OpenWhisk: {e}") from e
        except Trouble as e:
            if isinstance(e, Away) and str(e).startswith(("401", "403")):
                raise InvalidConfig(f"{self._key_setting}: OpenWhisk at {self._client.host}: {e}") from e
            self._note(e)
            self._background.go(self._learn_later())
        await super().start()
        self._background.go(self._tidy())

    async def _learn(self) -> None:
        self._limits = await self._client.limits()
        self._note(None)
        self._lanes.width = max(1, min(self._connections_max, self._limits.concurrent))

    async def _learn_later(self) -> None:
        pauses = _Pauses(_AWAY_MAX_S)
        while True:
            await pauses.next()
            try:
                return await self._learn()
            except Trouble as e:
                self._note(e)

    async def stop(self) -> None:
        await super().stop()
        await self._client.close()

    def condition(self) -> tuple[bool, str]:
        if self._trouble != "":
            return False, f"OpenWhisk: {self._trouble or 'not asked yet'}"
        return True, f"OpenWhisk: {self._lanes.out} of {self._lanes.width} places taken, {len(self._lanes)} wait"

    def counts(self) -> Mapping[str, int]:
        return {**self._counts, "throttled": self._client.throttled}

    def offer(self) -> str:
        """What it has, as far as it says so."""
        return str(self._limits)

    def refusal(self, action: Action) -> str | None:
        return self._limits.refusal(action)

    def _note(self, trouble: Trouble | None) -> None:
        """How the other side is doing; what is new is logged once."""
        text = "" if trouble is None else str(trouble)
        if text and not self._trouble:
            _log.warning("OpenWhisk runs nothing now: %s; functions wait", text)
        elif self._trouble and not text:
            _log.info("OpenWhisk answers")
        self._trouble = text

    async def find(self, recorded: Sequence[Recorded]) -> dict[str, Found]:
        """Those with an id there are asked for until their end. Of the others nothing is known: whether their calls
        arrived, or still run, can't be told (a function may run twice then, which is what is promised)."""
        found = await super().find(recorded)
        for each in recorded:
            key = (each.activation, each.attempt)
            if each.handle is not None:
                found[each.activation] = Found(activation=each.activation, handle=each.handle, running=True)
                if key not in self._under_way:
                    self._under_way[key] = UnderWay(each.handle)
                    self._under_way[key].task = self._go(key, partial(self._follow, key, each.handle))
        return found

    # an attempt's way

    async def _carry(self, attempt: Attempt) -> None:
        key, sent_ms = (attempt.activation, attempt.number), now_ms()
        under_way, ended = self._under_way[key], await self._through(attempt)
        under_way.ended = True
        logs: tuple[str, ...] = ()
        if ended.logged and attempt.action.limits.logs_mb > 0:
            self._accept(key, ended.usage["openwhisk"])
            self._give_place(attempt, under_way)
            logs = await self._logs(ended.usage["openwhisk"])
        self._end(key, ended, sent_ms, logs)

    async def _through(self, attempt: Attempt) -> Ended:
        """Call until there is an answer."""
        action = attempt.action
        body = packing.body(attempt.params, action, _own(attempt))
        if body is None:
            return Ended(developer_error(f"OpenWhisk hands no arrays to actions of kind {action.kind}", final=True))
        if action.code is None:
            return Ended(developer_error(NO_CODE, final=True))
        name = packing.name(action, attempt.namespace, self._environment, self._limits)
        pauses, lost, deployed = _Pauses(_AWAY_MAX_S), 0, 0
        while True:
            self._used_ms[name] = sent_ms = now_ms()
            puts = self._puts[name]
            self._calls(attempt)
            try:
                return await self._call(attempt, name, body, puts)
            except Unusable as e:
                return Ended(of_unusable(e.why))
            except Refused as e:
                return Ended(developer_error(f"OpenWhisk refuses the call: {e}", final=True))
            except Lost as e:
                lost += 1
                self._counts["lost"] += 1
                if (ended := await self._of_lost(attempt, name, sent_ms, puts, e, lost)) is not None:
                    return ended
                await pauses.next()
            except Missing as e:
                deployed += 1
                if deployed > _DEPLOYED_MAX:
                    return Ended(internal_error(f"OpenWhisk does not keep the action: {e}"))
                self._calls(attempt, out=False)
                if (ended := await self._deploy(action, name, puts)) is not None:
                    return ended
            except Away as e:
                self._calls(attempt, out=False)
                if not isinstance(e, Throttled):  # its pause is the client's
                    self._note(e)
                    await pauses.next()

    async def _of_lost(
        self, attempt: Attempt, name: str, sent_ms: int, puts: int, why: Lost, times: int
    ) -> Ended | None:
        """How an attempt has ended whose answer was lost; None if it is to be called again."""
        if not packing.is_wrapped(attempt.action):
            return Ended(
                internal_error(f"OpenWhisk's answer was lost; whether the function has run is not known: {why}")
            )
        found = None if isinstance(why, NoRecord) else await self._look_for(attempt, name, sent_ms, puts)
        if found is None and times >= _LOST_MAX:
            return Ended(internal_error(f"OpenWhisk's answer was lost {times} times: {why}"))
        return found

    async def _call(self, attempt: Attempt, name: str, body: bytes, puts: int) -> Ended:
        """Call once, and wait for the end. Raises Trouble."""
        called = await self._client.call(name, body, attempt.activation)
        self._note(None)
        self._counts["called"] += 1
        if called.document is not None or called.array is not None:
            return of_call(called)
        self._accept((attempt.activation, attempt.number), called.activation)
        ended = await self._until_ended(called.activation, attempt.action.limits.timeout_ms, name, puts)
        if ended is None:
            raise NoRecord(f"there is no record of activation {called.activation}")
        return ended

    async def _deploy(self, action: Action, name: str, puts: int) -> Ended | None:
        """Put the action, unless somebody has since `puts`; how the attempt has ended if that can't be done."""
        async with self._putting.setdefault(name, asyncio.Lock()):
            if self._puts[name] != puts:
                return None
            code = self._code(action.code or "")
            try:
                document = await asyncio.to_thread(self._document, action, self._environment, self._limits, code)
            except InvalidArchive as e:
                return Ended(of_archive(e))
            pauses, failed = _Pauses(_AWAY_MAX_S), 0
            while True:
                try:
                    await self._client.put_action(name, document)
                    self._puts[name] += 1
                    self._counts["deployed"] += 1
                    return None
                except Refused as e:
                    return Ended(developer_error(f"OpenWhisk refuses the action: {e}", final=True))
                except Trouble as e:
                    self._note(e)
                    failed += not isinstance(e, Away)
                    if failed >= _DEPLOYED_MAX:
                        return Ended(internal_error(f"OpenWhisk does not take the action: {e}"))
                await pauses.next()

    async def _follow(self, key: tuple[str, int], id: str) -> None:
        """What an earlier server called: its action, and so its time limit, are not known here."""
        began_ms = now_ms()
        ended = await self._until_ended(id, self._limits.timeout_ms_max)
        ended = ended or Ended(internal_error(f"OpenWhisk has no record of its activation {id}"))
        self._under_way[key].ended = True
        self._end(key, ended, began_ms, await self._logs(id) if ended.logged else ())

    async def _until_ended(
        self, id: str, timeout_ms: int, name: str | None = None, puts: int | None = None
    ) -> Ended | None:
        """Ask for an activation's end; None if it will have none: its time is over, or its store is gone."""
        pauses, until = _Pauses(_ASK_MAX_S), time.monotonic() + 2 * timeout_ms / 1000 + _GRACE_S
        while time.monotonic() < until:
            self._counts["asked"] += 1
            try:
                return of_document(await self._client.activation(id))
            except Unusable as e:
                return Ended(of_unusable(e.why))
            except Missing:
                if name is not None and await self._is_gone(name, puts):
                    return None
            except Trouble as e:
                self._note(e)
            await pauses.next()
        return None

    async def _look_for(self, attempt: Attempt, name: str, sent_ms: int, puts: int) -> Ended | None:
        """An activation whose answer was lost, if it began at all; None if it is to be called again."""
        pauses, until = _Pauses(_ASK_MAX_S), time.monotonic() + attempt.action.limits.timeout_ms / 1000 + _GRACE_S
        while time.monotonic() < until:
            self._counts["asked"] += 1
            try:
                if (document := await self._marked(attempt, name, sent_ms)) is not None:
                    self._counts["found"] += 1
                    return of_document(document)
                if await self._is_gone(name, puts):
                    return None
            except Trouble as e:
                self._note(e)
            await pauses.next()
        return None

    async def _marked(self, attempt: Attempt, name: str, sent_ms: int) -> Document | None:
        for page in range(_PAGES_MAX):
            found = await self._client.activations(name, sent_ms - _BEGAN_BEFORE_MS, skip=page * _PAGE, limit=_PAGE)
            for document in found:
                if is_of(document, attempt.activation, attempt.number):
                    return document
            if len(found) < _PAGE:
                break
        return None

    async def _is_gone(self, name: str, puts: int | None) -> bool:
        """Whether the action that was called has vanished since, and with it its store and all that was recorded."""
        if puts != self._puts[name]:
            return True
        try:
            return not await self._client.has_action(name)
        except Trouble as e:
            self._note(e)
            return False

    async def _logs(self, id: str) -> tuple[str, ...]:
        """An activation's logs. They are stored a moment after the answer."""
        pauses, until = _Pauses(_LOGS_S / 4, _LOGS_FIRST_S), time.monotonic() + _LOGS_S
        while time.monotonic() < until:
            try:
                return tuple(_line(line) for line in await self._client.logs(id))
            except Trouble:
                await pauses.next()
        self._counts["logs_missing"] += 1
        return ()

    def _end(self, key: tuple[str, int], ended: Ended, sent_ms: int, logs: tuple[str, ...]) -> None:
        """Report how it has ended. Times are by our clock, since theirs may differ; how long it took is theirs."""
        ended_ms = now_ms()
        started_ms = sent_ms if ended.took_ms is None else min(ended_ms, max(sent_ms, ended_ms - ended.took_ms))
        self._finish(key, ended.ending, started_ms, logs=logs, usage=ended.usage)

    # what is old there

    async def _tidy(self) -> None:
        """The slow audit: actions of revisions that nobody has called for long are deleted."""
        while True:
            await asyncio.sleep(_TIDY_S)
            with contextlib.suppress(Trouble):
                for name in await self._unused():
                    await self._client.delete_action(name)
                    self._counts["deleted"] += 1

    async def _unused(self) -> list[str]:
        """Actions of ours that are old there, and have not been called from here for as long."""
        old_ms, found, page = now_ms() - _KEPT_MS, [], None
        self._used_ms = {name: used_ms for name, used_ms in self._used_ms.items() if used_ms > old_ms}
        for known in (self._putting, self._puts):
            for name in known.keys() - self._used_ms.keys():
                del known[name]
        skip = 0
        while page is None or len(page) == _PAGE:
            page = await self._client.actions(packing.PACKAGE, skip=skip, limit=_PAGE)
            skip += _PAGE
            names = [f"{packing.PACKAGE}/{action.get('name')}" for action in page if _is_older(action, old_ms)]
            found += [name for name in names if name not in self._used_ms]
        return found


class _Pauses:
    """Pauses that grow from one to the next, not the same for everybody."""

    def __init__(self, most_s: float, first_s: float = _FIRST_S) -> None:
        self._most_s = most_s
        self._next_s = first_s

    async def next(self) -> None:
        await asyncio.sleep(self._next_s * random.uniform(0.75, 1.25))
        self._next_s = min(2 * self._next_s, self._most_s)


def _own(attempt: Attempt) -> dict[str, Any]:
    """What `entry` is told: the names that a function is called by here, the same for all attempts of an activation."""
    action = attempt.action
    environment = {
        "__OW_ACTIVATION_ID": attempt.activation,
        "__OW_TRANSACTION_ID": attempt.transaction,
        "__OW_NAMESPACE": attempt.namespace,
        "__OW_ACTION_NAME": f"/{action.qualified}",
        "__OW_ACTION_VERSION": action.version,
        "TRACEPARENT": attempt.traceparent or "",
    }
    return {"activation": attempt.activation, "attempt": attempt.number, "environment": environment}


def _is_older(action: Document, time_ms: int) -> bool:
    updated = action.get("updated")
    return isinstance(updated, int) and updated < time_ms


def _line(line: str) -> str:
    """A log line in our form: theirs has its time padded."""
    stamp, _, rest = line.partition(" ")
    return f"{stamp} {rest.lstrip()}"

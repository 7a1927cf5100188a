"""Functions that are somebody else's HTTP service: Knative, OpenFaaS, a lab's own.

Owns the connections. Goes nowhere but to the configuration's hosts, follows no redirects, uses no proxy, keeps no
cookies. The secrets that a host gets are the configuration's, never in an action, and sent in plain text only where the
configuration says so. An answer is taken as far as the limit of results. A
service may be called more than once for an attempt's activation (lost answers are tried again): `Idempotency-Key` is
the same each time. On the event loop alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from eventmill.config import HttpFunctions, Secret
from eventmill.entities import Action, Status
from eventmill.errors import InvalidConfig, InvalidEntity, InvalidEvent
from eventmill.executors.base import Attempt
from eventmill.executors.endings import Ending, of_timeout
from eventmill.executors.http import address, exchange
from eventmill.executors.remote import RemoteExecutor, no_cookies, now_ms, trusted

_CONNECT_S = 5.0
_KEPT_S = 20.0
"""An idle connection is closed by us before the other side does it under our next request."""
_SHOWN_MAX = 10
"""Hosts that a refusal names."""


class HttpFunctionsExecutor(RemoteExecutor):
    """`settings`: the configuration's `functions.http`."""

    ignored = "the service was not told: it may go on, its result is ignored"

    def __init__(self, settings: HttpFunctions, *, state_dir: Path, result_bytes_max: int) -> None:
        super().__init__(settings.connections_max, state_dir)
        self._hosts = address.allowed(settings.hosts)
        self._secrets = settings.headers
        self._namespaces = settings.namespaces
        self._ca_file = settings.ca_file
        self._result_bytes_max = result_bytes_max
        self._counts: Counter[str] = Counter()

    async def start(self) -> None:
        """Raises InvalidConfig if a secret, or the certificates, can't be read."""
        self._headers = {
            host: {name: _read(f"{host}.{name}", secret) for name, secret in headers.items()}
            for host, headers in self._secrets.items()
        }
        count = self._lanes.width
        self._http = httpx.AsyncClient(
            verify=trusted(self._ca_file, "functions.http.ca_file"),
            trust_env=False,
            follow_redirects=False,
            cookies=no_cookies(),
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=count, max_keepalive_connections=count, keepalive_expiry=_KEPT_S),
        )
        await super().start()

    async def stop(self) -> None:
        await super().stop()
        await self._http.aclose()

    def refusal(self, action: Action) -> str | None:
        try:
            where = address.place(action.url)
        except InvalidEntity as e:
            return str(e)
        entry = self._hosts.get(where)
        if entry is None:
            return self._unknown(where, action.namespace)
        if entry in self._secrets and where.startswith("http:") and not address.is_plain(entry):
            return (
                f"{entry} has functions.http.headers, which do not go out in plain text: call it by https, or, where "
                "nobody can listen, write it with http:// in functions.http.hosts"
            )
        if action.namespace not in self._namespaces.get(entry, [action.namespace]):
            return f"actions of '{action.namespace}' may not call {entry}: functions.http.namespaces says who may"
        return None

    def _unknown(self, where: str, namespace: str) -> str:
        """What to do about a place that nobody may call. The hosts of others are not told."""
        hosts = dict.fromkeys(self._hosts.values())
        own = [host for host in hosts if namespace in self._namespaces.get(host, [namespace])]
        now = ", ".join(own[:_SHOWN_MAX]) + (" …" if len(own) > _SHOWN_MAX else "")
        return (
            f'no action may call {where}: add "{address.entry(where)}" to hosts below [functions.http] in the '
            f"server's configuration (now: {now or 'none'})"
        )

    def condition(self) -> tuple[bool, str]:
        hosts = len(set(self._hosts.values()))
        return True, f"{hosts} hosts allowed, {self._lanes.out} calls under way, {len(self._lanes)} wait"

    def counts(self) -> Mapping[str, int]:
        return self._counts

    async def _carry(self, attempt: Attempt) -> None:
        started_ms = now_ms()
        usage: dict[str, Any] = {}
        self._calls(attempt)
        try:
            async with asyncio.timeout(attempt.action.limits.timeout_ms / 1000):
                ending = await self._call(attempt, usage)
        except TimeoutError:
            ending = of_timeout(attempt.action.limits.timeout_ms)
        self._counts["succeeded" if ending.status is Status.SUCCESS else "failed"] += 1
        self._finish((attempt.activation, attempt.number), ending, started_ms, usage=usage or None)

    async def _call(self, attempt: Attempt, usage: dict[str, Any]) -> Ending:
        """Call, and read the answer as far as it may go. `usage` gets its status."""
        action = attempt.action
        where = address.place(action.url)
        try:
            headers, body = exchange.request(attempt)
        except InvalidEvent as e:
            return exchange.unusable(f"the parameters are no event: {e}")
        headers |= {"accept-encoding": "identity", **self._headers.get(self._hosts[where], {})}
        try:
            async with self._http.stream(action.method, action.url, content=body, headers=headers) as answer:
                usage["status"] = answer.status_code
                return await self._read(answer, where)
        except httpx.RequestError as e:
            return exchange.unreachable(f"{where} gave no answer: {e or type(e).__name__}")

    async def _read(self, answer: httpx.Response, where: str) -> Ending:
        encoding = answer.headers.get("content-encoding", "identity")
        if encoding != "identity":
            return exchange.unusable(f"{where} answered with encoding '{encoding}', which was not asked for")
        body, most = bytearray(), self._result_bytes_max
        async for chunk in answer.aiter_raw():
            body += chunk
            if len(body) > most:
                return exchange.unusable(f"{where} answered more than {most} bytes")
        return exchange.ending(answer.status_code, answer.headers, bytes(body), where)


def _read(name: str, secret: Secret) -> str:
    try:
        return secret.read()
    except InvalidConfig as e:
        raise InvalidConfig(f"functions.http.headers.{name}: {e}") from e

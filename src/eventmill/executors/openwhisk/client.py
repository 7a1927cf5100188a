"""OpenWhisk's REST API, as far as running functions needs it: calls, activations, logs, actions, limits.

Owns the connections and the pauses after a 429, which hold up everybody. Every answer is either what was asked for or
one of the errors here, which say what may have happened at the other side. On the event loop alone.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import orjson

from eventmill.entities import Document
from eventmill.errors import EventmillError, InvalidEvent
from eventmill.events.codec import parse_json
from eventmill.events.validation import is_json
from eventmill.executors.openwhisk.limits import TheirLimits
from eventmill.executors.remote import no_cookies

T = TypeVar("T", dict[str, Any], list[Any])

WAIT_MS_MAX = 60_000
"""How long OpenWhisk lets a caller wait; afterwards its answer is 202."""
_CONNECT_S, _WRITE_S, _READ_S = 5.0, 30.0, WAIT_MS_MAX / 1000 + 15
_SPARE = 4
"""Connections for questions, which must not wait until one of the calls has ended."""
_KEPT_S = 20.0
"""An idle connection is closed by us before the other side does it under our next request."""
_CROWDED_FIRST_S, _CROWDED_MAX_S = 0.2, 5.0
"""After `Too many concurrent requests`."""
_NEXT_MINUTE_S = (0.1, 1.0)
"""After `Too many requests in the last minute` the next one begins; not all servers at its very start."""


class Trouble(EventmillError):
    """Base of what a request may end with."""


class Away(Trouble):
    """It does not answer, or not yet, or not us: nothing was done. The same request may succeed later."""


class Throttled(Away):
    """Too many requests; a pause has begun for all."""


class Lost(Trouble):
    """The request was sent, and no answer came: it may have been done."""


class NoRecord(Lost):
    """It was accepted, and nothing is known of it any more."""


class Missing(Trouble):
    """There is no such action or activation (yet)."""


class Refused(Trouble):
    """It will never be done like this."""


class Unusable(Trouble):
    """It has ended, and what it says of that can't be taken."""

    def __init__(self, why: InvalidEvent) -> None:
        super().__init__(str(why))
        self.why = why


@dataclass(frozen=True, slots=True)
class Called:
    """The answer to a call: an activation's document; a bare array, which it sends of results that are one; or neither
    where it has not ended yet."""

    activation: str
    document: Document | None = None
    array: list[Any] | None = None


class Client:
    """`host`: with scheme. `key`: `uuid:key`. `verify`: what certificates are checked with."""

    def __init__(self, host: str, key: str, *, verify: ssl.SSLContext | bool, connections_max: int) -> None:
        user, _, secret = key.partition(":")
        count = connections_max + _SPARE
        self.host = host
        self.throttled = 0
        self._free_at = 0.0
        self._crowded_s = 0.0
        self._http = httpx.AsyncClient(
            base_url=f"{host}/api/v1/namespaces/_/",
            auth=(user, secret),
            verify=verify,
            trust_env=False,
            follow_redirects=False,
            cookies=no_cookies(),
            timeout=httpx.Timeout(_READ_S, connect=_CONNECT_S, write=_WRITE_S, pool=None),
            limits=httpx.Limits(max_connections=count, max_keepalive_connections=count, keepalive_expiry=_KEPT_S),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def call(self, name: str, body: bytes, transaction: str) -> Called:
        """Call an action and wait for its end, as long as OpenWhisk lets us."""
        answer = await self._request(
            "POST", f"actions/{name}?blocking=true&result=false&timeout={WAIT_MS_MAX}", body, transaction
        )
        id = answer.headers.get("x-openwhisk-activation-id", "")
        try:
            said = _json(answer)
        except InvalidEvent as e:
            raise (Unusable(e) if id and _is_json(answer) else _trouble(answer)) from e
        if isinstance(said, dict) and answer.status_code in (200, 202, 500, 502):
            id = said.get("activationId") if "response" in said or answer.status_code == 202 else ""
        if not isinstance(id, str) or not id:
            raise _trouble(answer)
        if answer.status_code == 200 and isinstance(said, list):
            return Called(id, array=said)
        if answer.status_code == 202:
            return Called(id)
        if answer.status_code in (200, 500, 502) and isinstance(said, dict):
            return Called(id, document=said)
        raise _trouble(answer)

    async def activation(self, id: str) -> Document:
        """An activation that has ended. Raises Missing if it has not (or never was), Unusable if it can't be taken."""
        found = await self._get(f"activations/{id}", dict)
        if "end" not in found:
            raise Missing(f"activation {id} has not ended")
        return found

    async def logs(self, id: str) -> list[str]:
        lines = (await self._get(f"activations/{id}/logs", dict)).get("logs")
        return list(map(str, lines)) if isinstance(lines, list) else []

    async def activations(self, name: str, since_ms: int, *, skip: int, limit: int) -> list[Document]:
        """Whole documents of an action's activations that have begun since then, the last ones first."""
        query = f"name={name}&since={since_ms}&docs=true&skip={skip}&limit={limit}"
        return _documents(await self._get(f"activations?{query}", list))

    async def limits(self) -> TheirLimits:
        """Its limits, with the kinds that it has where its front page is to be seen."""
        said = await self._get("limits", dict)
        return TheirLimits.read(said, _kinds(await self._request("GET", f"{self.host}/")))

    async def has_action(self, name: str) -> bool:
        try:
            await self._get(f"actions/{name}?code=false", dict)
        except Missing:
            return False
        return True

    async def put_action(self, name: str, document: Mapping[str, Any]) -> None:
        """Put an action, and before it its package, if that is missing."""
        try:
            await self._put(f"actions/{name}", document)
        except Missing:
            await self._put(f"packages/{name.partition('/')[0]}", {})
            await self._put(f"actions/{name}", document)

    async def actions(self, package: str, *, skip: int, limit: int) -> list[Document]:
        """Brief documents of a package's actions. Raises Missing without the package."""
        return _documents(await self._get(f"actions/{package}/?skip={skip}&limit={limit}", list))

    async def delete_action(self, name: str) -> None:
        answer = await self._request("DELETE", f"actions/{name}")
        if answer.status_code not in (200, 404):
            raise _trouble(answer)

    async def _get(self, path: str, expected: type[T]) -> T:
        """What it answers, which is a JSON object, or a list. Raises Away if that is not it, but for the proxy in
        between."""
        answer = await self._request("GET", path)
        if answer.status_code != 200:
            raise _trouble(answer)
        try:
            said = _json(answer)
        except InvalidEvent as e:
            raise (Unusable(e) if _is_json(answer) else Away("what answers is no OpenWhisk")) from e
        if not isinstance(said, expected):
            raise Away(f"what it answers to {path.partition('?')[0]} is no {expected.__name__}")
        return said

    async def _put(self, path: str, document: Mapping[str, Any]) -> None:
        answer = await self._request("PUT", f"{path}?overwrite=true", orjson.dumps(document))
        if answer.status_code == 409:  # somebody else has just put the same
            raise Away(_text(answer))
        if answer.status_code != 200:
            raise _trouble(answer)

    async def _request(self, method: str, path: str, body: bytes = b"", transaction: str = "") -> httpx.Response:
        await self._pause()
        headers = {"content-type": "application/json"} if body else {}
        if transaction:
            headers["x-request-id"] = transaction
        try:
            answer = await self._http.request(method, path, content=body or None, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout) as e:
            hint = " (does it speak http:// alone?)" if _is_plain(e) else ""
            raise Away(f"it can't be reached: {e or type(e).__name__}{hint}") from e
        except httpx.RequestError as e:  # what can't be unpacked is one, too
            raise Lost(f"no answer came: {e or type(e).__name__}") from e
        if answer.status_code == 429:
            self._hold(_text(answer))
            raise Throttled(_text(answer))
        self._crowded_s = 0.0
        return answer

    async def _pause(self) -> None:
        while (left_s := self._free_at - time.monotonic()) > 0:  # noqa: ASYNC110  (it may have been made longer)
            await asyncio.sleep(left_s)

    def _hold(self, why: str) -> None:
        """Begin a pause: until the next minute, or, where too many run at once, an ever longer while."""
        self.throttled += 1
        now = time.monotonic()
        if "last minute" in why:
            pause_s = 60 - time.time() % 60 + random.uniform(*_NEXT_MINUTE_S)
        elif now < self._free_at:
            return  # sent before the pause that another one began
        else:
            self._crowded_s = min(max(2 * self._crowded_s, _CROWDED_FIRST_S), _CROWDED_MAX_S)
            pause_s = self._crowded_s * random.uniform(0.75, 1.25)
        self._free_at = max(self._free_at, now + pause_s)


def _is_plain(error: httpx.TransportError) -> bool:
    """Whether what answered our TLS was no TLS."""
    return any(sign in str(error) for sign in ("WRONG_VERSION_NUMBER", "record layer failure"))


def _trouble(answer: httpx.Response) -> Trouble:
    """What an answer that is none means. Only OpenWhisk's own words are final: proxies have pages of theirs."""
    status, text = answer.status_code, _text(answer)
    if (status >= 500 and status != 503) or status < 300:
        return Lost(text)
    if status in (413, 414, 431):  # whoever says it: this request is too large
        return Refused(text)
    if status in (401, 403, 503) or not _is_own(answer):
        return Away(text)
    return Missing(text) if status == 404 else Refused(text)


def _is_own(answer: httpx.Response) -> bool:
    """Whether OpenWhisk itself says that something is wrong."""
    said = _json_or_none(answer)
    return isinstance(said, dict) and "error" in said and "code" in said


def _text(answer: httpx.Response) -> str:
    """What it says of an error, bounded."""
    said = _json_or_none(answer)
    text = said.get("error") if isinstance(said, dict) else None
    return f"{answer.status_code} {text if isinstance(text, str) else answer.reason_phrase}"[:1000]


def _is_json(answer: httpx.Response) -> bool:
    return is_json(answer.headers.get("content-type", ""))


def _json(answer: httpx.Response) -> Any:
    """Raises InvalidEvent for what we could never write again, too."""
    return parse_json(answer.content)


def _json_or_none(answer: httpx.Response) -> Any:
    try:
        return _json(answer)
    except InvalidEvent:
        return None


def _documents(found: list[Any]) -> list[Document]:
    return [each for each in found if isinstance(each, dict)]


def _kinds(front: httpx.Response) -> list[str] | None:
    """Those of its front page that are not deprecated; None if it does not say."""
    said = _json_or_none(front) if front.status_code == 200 else None
    runtimes = said.get("runtimes") if isinstance(said, dict) else None
    if not isinstance(runtimes, dict):
        return None
    all_of_them = [each for family in runtimes.values() if isinstance(family, list) for each in _documents(family)]
    return [str(each.get("kind")) for each in all_of_them if not each.get("deprecated")]

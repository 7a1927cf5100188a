"""The HTTP client of the commands: where the server is, which key opens it, and what its refusals mean.

Keys never appear in messages, and a key from a data directory is only sent to the server of that directory. One
client serves one command; it is not for several threads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx
import orjson

from eventmill.cli.options import DATA_DIR
from eventmill.errors import EventmillError, InvalidConfig, NotFound, Unavailable

TIMEOUT_S = 70.0
"""A blocking call is answered within 60 s, and an upload of 48 MB takes a while."""

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

_ENTITY = re.compile(r"/(?:namespaces/[^/]+|eventmill/v1)/(rule|trigger|action|package|activation)s/(.+)\Z")

PAGE = 200
"""Entities in one answer, at most."""


class Refused(EventmillError):
    """The server has understood the request and said no, in its own words: `status` is its HTTP status."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Target:
    """A server and how we know of it. `key` is `uuid:secret`; where it came from may be said."""

    url: str
    url_from: str
    key: str
    key_from: str = ""

    def __repr__(self) -> str:
        return f"Target({self.url})"


def target(url: str | None, key: str | None, data_dir: Path | None) -> Target:
    """The server that a command is meant for, by its options, else the environment, else the data directory's files.

    A data directory that is named wins over an address and a key of the environment. Raises Unavailable if no server is
    known, InvalidConfig if its address can't be one, or there is no key for it.
    """
    files = data_dir or DATA_DIR
    key_from = "EVENTMILL_KEY" if key == os.environ.get("EVENTMILL_KEY") else "--key"
    local_url = _first_line(files / "address")
    if data_dir is not None:
        url = None if url == os.environ.get("EVENTMILL_URL") else url
        if url is None and key == os.environ.get("EVENTMILL_KEY") and (own := _first_line(files / "key")):
            key, key_from = own, str(files / "key")
    if url is not None:
        found, origin = url.rstrip("/"), "EVENTMILL_URL" if os.environ.get("EVENTMILL_URL") == url else "--url"
    elif local_url is not None:
        found, origin = local_url.rstrip("/"), str(files / "address")
    else:
        raise Unavailable(
            f"no server is known: there is no {files / 'address'}. Start one with `eventmill serve` or "
            "`eventmill run FLOW.py`, or say where it is with --url (EVENTMILL_URL) or --data-dir"
        )
    _check_url(found, origin)
    if key is None and _may_use_file(found, local_url, data_dir):
        key, key_from = _first_line(files / "key"), str(files / "key")
    if key is None:
        raise InvalidConfig(
            f"no key for {found}: give it by EVENTMILL_KEY (or --key), or name the server's data directory by "
            f"--data-dir (looked for {files / 'key'})"
        )
    if ":" not in key:
        raise InvalidConfig(f"the key (from {key_from}) is not of the form uuid:secret")
    return Target(found, origin, key, key_from)


def _check_url(url: str, origin: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidConfig(f"{origin}: '{url}' is no address of a server: write it like http://127.0.0.1:3233")


def _may_use_file(url: str, local_url: str | None, data_dir: Path | None) -> bool:
    """A key that lies about here must not be sent to whatever server --url names."""
    return data_dir is not None or url == (local_url or "").rstrip("/")


def _first_line(file: Path) -> str | None:
    try:
        return file.read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not text"
        raise InvalidConfig(f"can't read {file}: {reason}") from e


class Client:
    """A connection to one server. Use it as a context manager."""

    def __init__(self, target: Target) -> None:
        self.target = target
        user, secret = target.key.split(":", 1)
        # proxies and certificates of the environment are for servers elsewhere
        elsewhere = urlsplit(target.url).hostname not in _LOOPBACK
        self._http = httpx.Client(base_url=target.url, auth=(user, secret), timeout=TIMEOUT_S, trust_env=elsewhere)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, query=query)

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        return self.call("POST", path, {} if body is None else body, query=query)

    def put(self, path: str, body: Any, **query: Any) -> Any:
        return self.call("PUT", path, body, query=query)

    def delete(self, path: str, **query: Any) -> Any:
        return self.call("DELETE", path, query=query)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """Send a request and return the answer's JSON (None if it is empty, its text if it is not JSON).

        Query values that are None are left out. Raises NotFound, Refused, Unavailable.
        """
        content = None if body is None else orjson.dumps(body)
        headers = {} if body is None else {"content-type": content_type}
        params = {name: _query_text(value) for name, value in (query or {}).items() if value is not None}
        try:
            answer = self._http.request(method, path, content=content, headers=headers, params=params)
        except httpx.HTTPError as e:
            raise self._unreachable(e) from e
        if answer.is_success:
            return _decoded(answer)
        raise self._refusal(answer, f"{method} {path}")

    def pages(self, path: str, limit: int | None = None, **query: Any) -> Iterator[Any]:
        """All items of a list, or the first `limit`, fetched page by page."""
        fetched = 0
        while limit is None or fetched < limit:
            size = PAGE if limit is None else min(PAGE, limit - fetched)
            page = self.get(path, limit=size, skip=fetched, **query)
            yield from page
            fetched += len(page)
            if len(page) < size:
                return

    def _unreachable(self, error: httpx.HTTPError) -> Unavailable:
        where = f"{self.target.url} (from {self.target.url_from})"
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return Unavailable(f"the server at {where} has not answered within {TIMEOUT_S:.0f} s")
        return Unavailable(
            f"no server answers at {where}: {_cause(error)}. Start one with `eventmill serve` or "
            "`eventmill run FLOW.py`, or name another with --url"
        )

    def _refusal(self, answer: httpx.Response, what: str) -> EventmillError:
        reason = _reason(answer)
        if answer.status_code == 401:
            return Refused(
                f"the server at {self.target.url} does not accept the key (from {self.target.key_from})", 401
            )
        if answer.status_code == 404:
            return NotFound(_missing(what, reason))
        if answer.status_code == 503:
            return Unavailable(f"{reason}; the same request may succeed later")
        # what is not for people to mend should name what we have asked for
        return Refused(reason if answer.status_code < 500 else f"{what}: {reason}", answer.status_code)


def segment(name: str) -> str:
    """A name as part of a path: `/` between package and name stays."""
    return quote(name, safe="/")


def _query_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _decoded(answer: httpx.Response) -> Any:
    if not answer.content:
        return None
    if "json" in answer.headers.get("content-type", ""):
        return orjson.loads(answer.content)
    return answer.text


def _reason(answer: httpx.Response) -> str:
    """The server's own words: an error document's, else the beginning of the text."""
    try:
        document = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        document = None
    if isinstance(document, dict) and isinstance(document.get("error"), str):
        return " ".join(document["error"].split())
    return " ".join(answer.text.split())[:200] or f"HTTP status {answer.status_code}"


def _missing(what: str, reason: str) -> str:
    """What there is not, by its name, if the path or the server tells."""
    entity = _ENTITY.search(what)
    if entity is not None:
        return f"there is no {entity[1]} '{unquote(entity[2])}'"
    return reason if reason.startswith("there is no ") else f"{what}: {reason}"


def _cause(error: BaseException) -> str:
    """The innermost reason: `Connection refused` rather than what wraps it."""
    while error.__cause__ or error.__context__:
        inner = error.__cause__ or error.__context__
        assert inner is not None
        error = inner
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__

"""Where an action of kind `http` may go. Functions of values.

One reader takes URLs apart, for the check and for the call, so that nothing can be smuggled between two. Hosts are
compared as texts with the configuration's, with their schemes and ports: another spelling of an allowed address is not
allowed. Whoever puts a name there trusts what the name resolves to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import httpx

from eventmill.errors import InvalidEntity

METHODS = ("POST", "PUT", "PATCH")
"""An event is the body of a request."""

_URL = re.compile(r"https?://[!-\[\]-~]{1,2000}")  # ASCII without blanks, control characters and the backslash
_PORT_MAX = 65535
_PORTS = {"https": 443, "http": 80}


def check_url(url: str) -> None:
    """Raises InvalidEntity if that is no plain URL of HTTP."""
    _parsed(url)


def place(url: str) -> str:
    """`scheme://host:port` that it leads to. Raises InvalidEntity."""
    parsed = _parsed(url)
    return f"{parsed.scheme}://{_bracketed(parsed.host.lower())}:{parsed.port or _PORTS[parsed.scheme]}"


def allowed(hosts: Sequence[str]) -> dict[str, str]:
    """`scheme://host:port` → the entry of the configuration, `[scheme://]host[:port]`, that allows it. An entry without
    a port means the scheme's; without a scheme, HTTPS, and where it has a port, also HTTP. One with a scheme goes
    before one without."""
    return {found: host for host in sorted(hosts, key=lambda host: "://" in host) for found in _places(host.lower())}


def entry(place: str) -> str:
    """The shortest entry of the configuration that allows this `scheme://host:port`."""
    scheme, _, authority = place.partition("://")
    return authority.removesuffix(":443") if scheme == "https" else authority


def is_plain(entry: str) -> bool:
    """Whether an entry says that nobody can listen there: what it is sent besides may go in plain text."""
    return entry.lower().startswith("http://")


def _places(entry: str) -> list[str]:
    scheme, mark, rest = entry.rpartition("://")
    name, colon, port = rest.rpartition(":")
    has_port = bool(colon) and port.isdigit() and not (name.startswith("[") and not name.endswith("]"))
    schemes = [scheme] if mark else ["https", "http"] if has_port else ["https"]
    return [f"{each}://{rest}" if has_port else f"{each}://{rest}:{_PORTS[each]}" for each in schemes]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _parsed(url: str) -> httpx.URL:
    if not _URL.fullmatch(url):
        raise InvalidEntity("the url must begin with http:// or https://, and have ASCII characters without blanks")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as e:
        raise InvalidEntity(f"the url is none: {e}") from e
    if parsed.userinfo or "@" in url.split("/")[2]:
        raise InvalidEntity("no user or password belongs in a url: the server's functions.http.headers are for that")
    if not parsed.host or parsed.fragment or (parsed.port or 1) > _PORT_MAX:
        raise InvalidEntity("the url must have a host, a port that there is, and no fragment (#)")
    return parsed

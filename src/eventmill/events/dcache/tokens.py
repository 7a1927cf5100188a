"""Texts that may hold a token: URLs in error messages, the protocol of a hit. Functions of values, in linear time."""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"
"""What stands in a message for what was there."""

_BETWEEN_WORDS = re.compile(r"([\s\"'<>]+)")
_TOKEN = re.compile(r"(bearer(?:\s|%20)+|(?:authz|token)=)[^\s\"'<>&]+", re.IGNORECASE)
_NAME_AND_VERSION = re.compile(r"([A-Za-z][A-Za-z0-9]*-[0-9]+\.[0-9]+)(?:[:, ]|\Z)")


def without_tokens(message: str) -> str:
    """A message whose URLs end before their query, and without whatever else looks like a token."""
    if "://" in message:
        message = "".join(without_query(word) for word in _BETWEEN_WORDS.split(message))
    lowered = message.lower()
    if "bearer" in lowered or "authz=" in lowered or "token=" in lowered:
        message = _TOKEN.sub(rf"\1{MASK}", message)
    return message


def without_query(word: str) -> str:
    """A URL, or a word that has one in it, without query, user and password."""
    before, separator, url = word.partition("://")
    if not separator:
        return word
    url = url.partition("?")[0].partition("#")[0]
    host, slash, path = url.partition("/")
    return before + separator + host.rpartition("@")[2] + slash + path


def name_and_version(protocol: str) -> str | None:
    """`Http-1.1` of a hit's protocol; what follows it are the client's address, or a URL with all that is in it."""
    match = _NAME_AND_VERSION.match(protocol)
    return match[1] if match else None

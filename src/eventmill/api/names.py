"""Names as OpenWhisk allows them, and the ways in which a document may refer to an entity. Values only."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from eventmill.api.errors import Refusal, malformed

NAME_LENGTH_MAX = 256
_NAME = re.compile(r"([\w]|[\w][\w@ .&-]{0,254}[\w@.&-])\Z", re.ASCII)
_KEPT_MAX = 1024
_ACTIVATION = re.compile(r"[0-9a-f]{32}\Z")
_TOO_SHORT = (
    "requirement failed: The fully qualified name of the entity must contain at least the namespace and the name of "
    "the entity."
)


@functools.lru_cache(maxsize=_KEPT_MAX)
def check_name(name: str) -> str:
    """The name of an entity, if it is one."""
    if len(name) > NAME_LENGTH_MAX:
        raise Refusal(f"Name segement longer than allowed: {len(name)} > {NAME_LENGTH_MAX}.")  # OpenWhisk's spelling
    if not _NAME.match(name):
        raise Refusal("The name of the entity contains illegal characters.")
    return name


def is_name(text: str) -> bool:
    return _NAME.match(text) is not None


@functools.lru_cache(maxsize=_KEPT_MAX)
def check_namespace(name: str) -> str:
    if len(name) > NAME_LENGTH_MAX:
        raise Refusal(f"Namespace longer than allowed: {len(name)} > {NAME_LENGTH_MAX}.")
    if not _NAME.match(name):
        raise Refusal("The namespace contains illegal characters.")
    return name


def check_activation(id: str) -> str:
    if len(id) != 32:
        raise Refusal(f"Activation id length is {len(id)} but must be 32.")
    if not _ACTIVATION.match(id):
        raise Refusal("The activation id is not valid.")
    return id


def is_path(text: object) -> bool:
    """Whether this may name an entity: names with slashes between them, as OpenWhisk takes them."""
    return isinstance(text, str) and all(_NAME.match(part) for part in text.removeprefix("/").split("/"))


def qualified(reference: Any, namespace: str) -> str:
    """The qualified name `namespace/[package/]name` that a document refers to, as text or as `{path, name}`.

    `_` is the caller's namespace. Raises Refusal if it names nothing.
    """
    if isinstance(reference, Mapping):
        path, name = reference.get("path"), reference.get("name")
        if not isinstance(path, str) or not isinstance(name, str):
            raise malformed("Object is missing required member 'path' or 'name'")
        reference = f"{path}/{name}"
    if not isinstance(reference, str):
        raise malformed("a fully qualified name is needed")
    parts = reference.removeprefix("/").split("/")
    if len(parts) < 2:
        raise malformed(_TOO_SHORT)
    if len(parts) > 3 or not all(_NAME.match(part) for part in parts):
        raise malformed("The name of the entity contains illegal characters.")
    return "/".join([namespace if parts[0] == "_" else parts[0], *parts[1:]])


def split(name: str) -> tuple[str, str]:
    """(path, name) of a qualified name: the path has the package, if there is one."""
    path, _, last = name.rpartition("/")
    return path, last


def reference(name: str) -> dict[str, str]:
    """A qualified name as answers have it: `{path, name}`."""
    path, last = split(name)
    return {"path": path, "name": last}

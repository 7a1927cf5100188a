"""The servers that sessions are replayed against: ours, which makes new namespaces; or any other, whose namespaces are
found by their keys and emptied before each session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from tests.api.conftest import Caller, Running

COLLECTIONS = ("rules", "triggers", "actions", "packages")
"""In an order in which they can be deleted."""


@dataclass(frozen=True)
class Callers:
    """Two namespaces that are empty. `is_ours`: the server is an Eventmill. `other` None: there is no second one."""

    owner: Caller
    other: Caller | None
    is_ours: bool = True


@contextmanager
def ours(server: Running) -> Iterator[Callers]:
    with server.caller() as owner, server.caller() as other:
        yield Callers(owner, other)


@dataclass
class Foreign:
    """A server that is there already. `keys`: one or two (`uuid:key`)."""

    url: str
    keys: tuple[str, ...]
    namespaces: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.namespaces = {key: self._namespace(key) for key in self.keys}
        for key in self.keys:
            with self._caller(key) as caller:
                if _names(caller):
                    pytest.exit(
                        f"namespace {caller.namespace} of {self.url} is not empty, and the suite would empty it: "
                        "give the key of another one, or delete what is in it",
                        returncode=4,
                    )
        self.is_ours = httpx.get(f"{self.url}/healthz", trust_env=False).status_code == 200

    @contextmanager
    def callers(self) -> Iterator[Callers]:
        with ExitStack() as stack:
            known = [stack.enter_context(self._caller(key)) for key in self.keys]
            try:
                yield Callers(known[0], known[1] if len(known) > 1 else None, self.is_ours)
            finally:
                for caller in known:
                    empty(caller)

    def _caller(self, key: str) -> Caller:
        return Caller(self.url, self.namespaces[key], key)

    def _namespace(self, key: str) -> str:
        answer = httpx.get(f"{self.url}/api/v1/namespaces", auth=tuple(key.split(":", 1)), trust_env=False)  # type: ignore[arg-type]
        answer.raise_for_status()
        [namespace] = answer.json()
        return str(namespace)


def empty(caller: Caller) -> None:
    """Delete all entities of a caller's namespace."""
    while names := _names(caller):
        for path in names:
            caller.api("DELETE", path, force="true")


def _names(caller: Caller) -> list[str]:
    """The paths of up to 200 entities of each collection."""
    found = []
    for collection in COLLECTIONS:
        for item in caller.api("GET", collection, limit=200).json():
            package = item["namespace"].partition("/")[2]
            found.append("/".join(filter(None, (collection, package, item["name"]))))
    return found

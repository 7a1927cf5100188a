"""Confluent's wire format: a value behind the number of its schema, which a schema registry has.

Owns the client of the registry. Must never make a dead letter of a record because the registry can't be asked: that
raises Unavailable, and the record waits. Nor may one schema that can't be had hold up all that comes behind it: if the
registry is well otherwise, its answer counts. Calls are blocking HTTP, one for every schema that is new, none for those
that are known (a number stands for one schema for ever), one a minute for those that are not. For one thread that may
wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from eventmill.backbone.kafka.client import check_secret, revealed
from eventmill.config import Registry
from eventmill.errors import InvalidConfig, Unavailable
from eventmill.events import DecodeError

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema

HEADER_BYTES: Final = 5
"""A zero, and the number of the schema in four bytes."""
TIMEOUT_S: Final = 5
"""For one answer; whoever asks waits, and asks again."""
AWAY_S: Final = 15.0
"""A registry without an answer is not asked again for so long: who asks has other records to read."""
SCHEMAS_MAX: Final = 1000
"""That are remembered."""
NUMBER_MAX: Final = 2**31 - 1
"""The registry counts schemas in 32 bits with a sign."""
REFUSED_S: Final = 60.0
"""A schema that the registry hasn't got is asked for again after this: it may have been registered meanwhile."""
LASTING_S: Final = 60.0
"""An error of the registry that concerns one schema alone may pass; after this it is taken for an answer."""
REFERENCES_MAX: Final = 100
"""Schemas that one may be put together from."""

SECRETS: Final = frozenset(
    ("basic.auth.user.info", "bearer.auth.token", "bearer.auth.client.secret", "ssl.key.password")
)
"""Properties that are never written into the configuration itself."""

_SECTION: Final = "backbone.registry.properties"
_NO_SCHEMA: Final = frozenset((40401, 40402, 40403))
"""The registry's own codes for a subject, a version, a schema that it hasn't got: any other 404 has another cause."""

_Reader = Callable[[bytes], bytes]


class _NoAnswer(Unavailable):
    """The registry didn't say what was asked. `status`: of HTTP, 0 if it didn't come to that."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Schemas:
    """The schemas of a registry. Raises InvalidConfig if its client can't be made."""

    def __init__(self, registry: Registry) -> None:
        self._url = registry.url
        self._client = _client(registry)
        self._reader = lru_cache(SCHEMAS_MAX)(self._made)
        self._refusals: dict[int, tuple[str, float]] = {}
        """Why a schema can't be had, and until when that is believed."""
        self._failing: dict[int, float] = {}
        """Since when there has been no answer about a schema."""
        self._away = ("", 0.0)
        """What was the matter with the registry, and until when it isn't asked."""

    def close(self) -> None:
        self._client.close()

    def json(self, raw: bytes) -> bytes:
        """A record in the wire format as JSON. Raises DecodeError, or Unavailable if the registry has no answer."""
        if len(raw) < HEADER_BYTES:
            raise DecodeError(f"begins like Confluent's wire format, but has only {len(raw)} bytes")
        number = int.from_bytes(raw[1:HEADER_BYTES], "big")
        try:
            return self._known(number)(raw[HEADER_BYTES:])
        except DecodeError as e:
            raise DecodeError(f"schema {number}: {e.reason}") from None

    def _known(self, number: int) -> _Reader:
        """What reads values of this schema. Raises DecodeError, which is remembered for a while, and Unavailable."""
        reason, until = self._refusals.get(number, ("", 0.0))
        if time.monotonic() < until:
            raise DecodeError(reason)
        try:
            reader = self._reader(number)
        except DecodeError as e:
            self._refuse(number, e.reason)
            raise
        except _NoAnswer as e:
            if not self._is_its_own(number, e):
                self._away = str(e), time.monotonic() + AWAY_S
                raise
            self._refuse(number, f"{e}; it is well otherwise")
            raise DecodeError(self._refusals[number][0]) from None
        self._failing.pop(number, None)
        return reader

    def _refuse(self, number: int, reason: str) -> None:
        self._failing.pop(number, None)
        self._refusals.pop(number, None)
        self._refusals[number] = reason, time.monotonic() + REFUSED_S
        if len(self._refusals) > SCHEMAS_MAX:
            del self._refusals[next(iter(self._refusals))]

    def _is_its_own(self, number: int, error: _NoAnswer) -> bool:
        """Whether that there is no answer is a matter of this schema: others can be had, and it is no passing error."""
        if error.status in (401, 429):
            return False
        since = self._failing.setdefault(number, time.monotonic())
        if len(self._failing) > SCHEMAS_MAX:
            self._failing.clear()
        if error.status < 400 or error.status >= 500:
            if time.monotonic() < since + LASTING_S:
                return False
            self._failing[number] = time.monotonic()  # if nothing can be had, the time begins again
        return self._is_well()

    def _is_well(self) -> bool:
        """Whether the registry answers what it can always answer."""
        try:
            return isinstance(self._client.get_schema_types(), list)
        except Exception:  # of whichever library: it doesn't
            return False

    def _made(self, number: int) -> _Reader:
        """What turns values of this schema into JSON. Raises DecodeError, Unavailable."""
        if number > NUMBER_MAX:
            raise DecodeError("no schema has such a number: is it in Confluent's wire format at all?")
        text, until = self._away
        if time.monotonic() < until:
            raise Unavailable(text)
        schema = self._asked(partial(self._client.get_schema, number))
        match schema.schema_type or "AVRO":
            case "JSON":
                return bytes
            case "AVRO":
                from eventmill.backbone.kafka.avro import Avro

                return Avro([*self._referred(schema, {}), schema.schema_str]).json
            case other:
                raise DecodeError(f"of type {other}: only JSON and Avro are read")

    def _referred(self, schema: Schema, seen: dict[tuple[str, int], None]) -> Iterator[str]:
        """The documents that a schema refers to, each behind those that it refers to itself."""
        for reference in schema.references or ():
            key = (str(reference.subject), int(reference.version or 0))
            if key in seen:
                continue
            if len(seen) >= REFERENCES_MAX:
                raise DecodeError(f"it is put together from more than {REFERENCES_MAX} schemas")
            seen[key] = None
            referred = self._asked(partial(self._client.get_version, *key)).schema
            yield from self._referred(referred, seen)
            yield referred.schema_str

    def _asked(self, question: Callable[[], Any]) -> Any:
        """The registry's answer. Raises DecodeError if it hasn't got what was asked for, Unavailable if it has none."""
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            return question()
        except SchemaRegistryError as e:
            if e.http_status_code == 404 and e.error_code in _NO_SCHEMA:
                raise DecodeError(f"unknown to the registry {self._url}") from None
            status = e.http_status_code
            raise _NoAnswer(f"the schema registry {self._url} {_trouble(status)}", status) from None
        except Exception as e:  # of the client's HTTP and OAuth libraries, whichever they are
            raise _NoAnswer(
                f"the schema registry {self._url} can't be asked: is it up, and is backbone.registry.url right? "
                f"({type(e).__name__}: {str(e)[:200]})"
            ) from None


def _trouble(status: int) -> str:
    if status in (401, 403):
        return f"does not let us in ({status}): see basic.auth.user.info in {_SECTION}"
    if status == 404:
        return "has no schemas where they should be (404): is backbone.registry.url right?"
    return f"answers {status}"


def _client(registry: Registry) -> Any:
    """Raises InvalidConfig."""
    for key, value in registry.properties.items():
        if key == "url":
            raise InvalidConfig(f"{_SECTION}.url can't be set: set backbone.registry.url instead")
        if key in SECRETS:
            check_secret(f"{_SECTION}.{key}", value)
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient
    except ImportError as e:
        raise InvalidConfig(f"backbone.registry needs its client: pip install 'eventmill[kafka]' ({e})") from None
    given = {"timeout": TIMEOUT_S, "max.retries": 0, **revealed(_SECTION, registry.properties)}
    try:
        return SchemaRegistryClient({**given, "url": registry.url})
    except (ValueError, TypeError, OSError) as e:  # unknown keys, wrong values, certificates that aren't there
        raise InvalidConfig(f"{_SECTION}: {e}") from None

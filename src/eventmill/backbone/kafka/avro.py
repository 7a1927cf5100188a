"""Avro values as JSON: what a decoder reads.

fastavro reads them, with the schema that they were written with (confluent-kafka's AvroDeserializer calls it as well,
but with whatever schema comes, and takes half as long again). A schema that lets one small record take the process's
stack or memory is refused, since the record would be read again after every restart. For one thread.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from decimal import Decimal
from io import BytesIO
from typing import Any, Final

import fastavro
import orjson
from fastavro.repository.base import AbstractSchemaRepository, SchemaRepositoryError
from fastavro.schema import load_schema

from eventmill.events import DecodeError

_REASON_CHARACTERS_MAX: Final = 200
_ROOT: Final = "$root"
_PRIMITIVES: Final = frozenset(("null", "boolean", "int", "long", "float", "double", "bytes", "string"))


class Avro:
    """The values of one schema. `documents`: its JSON, behind that of all schemas that it refers to.

    Raises DecodeError if nothing can be read with it.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        try:
            *others, schema = [orjson.loads(document) for document in documents]
            _Hazards().check([*others, schema])
            self._schema = load_schema(_ROOT, repo=_Documents(schema, others))
        except DecodeError:
            raise
        except Exception as e:  # whatever a schema may have that fastavro doesn't expect
            raise DecodeError(f"an Avro schema that can't be used: {_said(e)}") from None

    def json(self, value: bytes) -> bytes:
        """The value as JSON: bytes in base64, decimals as text, times as RFC 3339. Raises DecodeError."""
        try:
            return orjson.dumps(fastavro.schemaless_reader(BytesIO(value), self._schema, None), _plain)
        except Exception as e:  # EOFError, IndexError, UnicodeDecodeError, …: whatever the bytes lead to
            raise DecodeError(f"not what its Avro schema says: {_said(e)}") from None


def _plain(value: Any) -> str:
    """What orjson has no form for."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS_MAX]


class _Documents(AbstractSchemaRepository):
    """Where fastavro finds a schema, and the types that it names without having them, to put them in there."""

    def __init__(self, schema: Any, others: Sequence[Any]) -> None:
        self._known = {_full(str(other.get("name")), str(other.get("namespace", ""))): other for other in others}
        self._known[_ROOT] = schema

    def load(self, name: str) -> Any:
        if name not in self._known:
            raise SchemaRepositoryError(f"there is no type {name}")
        return self._known[name]


class _Hazards:
    """Finds what makes the reader's effort unbounded by the record's size: a type within itself (a level of the stack
    for each byte), arrays of what takes no bytes (any number of elements in none), and nothings made of nothings."""

    def __init__(self) -> None:
        self._takes_none: dict[str, bool] = {}
        """By full name, whether a value of the type takes no bytes."""

    def check(self, schemas: Sequence[Any]) -> None:
        """Raise DecodeError if there is any."""
        for schema in schemas:
            self._takes_no_bytes(schema, "", frozenset())

    def _takes_no_bytes(self, schema: Any, namespace: str, within: frozenset[str]) -> bool:
        """Whether a value takes none; all that is part of the schema is looked at on the way."""
        if isinstance(schema, list):
            for branch in schema:
                self._takes_no_bytes(branch, namespace, within)
            return False
        if isinstance(schema, dict):
            return self._complex(schema, namespace, within)
        name = _full(str(schema), namespace)
        if name in within:
            raise DecodeError(f"an Avro schema whose type '{schema}' is part of itself: such records are not read")
        return bool(schema == "null" or self._takes_none.get(name))

    def _complex(self, schema: dict[str, Any], namespace: str, within: frozenset[str]) -> bool:
        kind = schema.get("type")
        if kind in ("record", "error", "enum", "fixed"):
            name = _full(str(schema.get("name")), str(schema.get("namespace", namespace)))
            none = schema.get("size") == 0 if kind == "fixed" else kind != "enum" and self._record(schema, name, within)
            self._takes_none[name] = none
            return none
        if kind in ("array", "map"):
            none = self._takes_no_bytes(schema.get("items" if kind == "array" else "values"), namespace, within)
            if none and kind == "array":
                raise DecodeError("an Avro schema with arrays of what takes no bytes: such records are not read")
            return False
        return self._takes_no_bytes(kind, namespace, within)

    def _record(self, schema: dict[str, Any], name: str, within: frozenset[str]) -> bool:
        types = [field.get("type") for field in schema.get("fields", ())]
        below = name.rpartition(".")[0]
        parts = [self._takes_no_bytes(type, below, within | {name}) for type in types]
        if all(parts) and any(type != "null" for type in types):
            raise DecodeError(f"an Avro schema whose type '{name}' takes no bytes, but has parts: it is not read")
        return all(parts)


def _full(name: str, namespace: str) -> str:
    return name if "." in name or not namespace or name in _PRIMITIVES else f"{namespace}.{name}"

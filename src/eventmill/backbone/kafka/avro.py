"""Avro values as JSON: what a decoder reads.

fastavro reads them, with the schema that they were written with. confluent-kafka's AvroDeserializer, which calls it as
well, copies the schema for each record on the way: ten times the price. A schema that lets one small record take the
process's stack or memory is refused, since the record would be read again after every restart. For one thread.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from decimal import Decimal
from io import BytesIO
from typing import Any, Final

import fastavro
import orjson

from eventmill.events import DecodeError

_REASON_CHARACTERS_MAX: Final = 200
_PRIMITIVES: Final = frozenset(("null", "boolean", "int", "long", "float", "double", "bytes", "string"))


class Avro:
    """The values of one schema. `documents`: its JSON, behind that of all schemas that it refers to.

    Raises DecodeError if nothing can be read with it.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        try:
            schemas = [orjson.loads(document) for document in documents]
            _Hazards().check(schemas)
            named: dict[str, Any] = {}
            for schema in schemas:
                self._schema = fastavro.parse_schema(schema, named_schemas=named)
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


class _Hazards:
    """Finds what makes the reader's effort unbounded by the record's size: a type within itself (a level of the stack
    for each byte), and arrays of what takes no bytes (any number of elements in none)."""

    def __init__(self) -> None:
        self._named: dict[str, Any] = {}

    def check(self, schemas: Sequence[Any]) -> None:
        """Raise DecodeError if there is any."""
        for schema in schemas:
            self._walk(schema, "", frozenset())

    def _walk(self, schema: Any, namespace: str, within: frozenset[str]) -> None:
        if isinstance(schema, list):
            for branch in schema:
                self._walk(branch, namespace, within)
        elif isinstance(schema, str):
            if _full(schema, namespace) in within:
                raise DecodeError(f"an Avro schema whose type '{schema}' is part of itself: such records are not read")
        elif isinstance(schema, dict):
            self._walk_complex(schema, namespace, within)

    def _walk_complex(self, schema: dict[str, Any], namespace: str, within: frozenset[str]) -> None:
        kind = schema.get("type")
        if kind in ("record", "error", "enum", "fixed"):
            name = _full(str(schema.get("name")), str(schema.get("namespace", namespace)))
            self._named[name] = (schema, name.rpartition(".")[0])
            for field in schema.get("fields", ()):
                self._walk(field.get("type"), name.rpartition(".")[0], within | {name})
        elif kind == "array":
            self._walk(schema.get("items"), namespace, within)
            if self._is_empty(schema.get("items"), namespace):
                raise DecodeError("an Avro schema with arrays of what takes no bytes: such records are not read")
        elif kind == "map":
            self._walk(schema.get("values"), namespace, within)
        else:
            self._walk(kind, namespace, within)

    def _is_empty(self, schema: Any, namespace: str) -> bool:
        """Whether a value of this type takes no bytes."""
        if isinstance(schema, str) and schema not in _PRIMITIVES:
            schema, namespace = self._named.get(_full(schema, namespace), (schema, namespace))
        if not isinstance(schema, dict):
            return bool(schema == "null")
        kind = schema.get("type")
        if kind in ("record", "error"):
            below = _full(str(schema.get("name")), str(schema.get("namespace", namespace))).rpartition(".")[0]
            return all(self._is_empty(field.get("type"), below) for field in schema.get("fields", ()))
        if kind == "fixed":
            return schema.get("size") == 0
        return kind not in ("array", "map", "enum") and self._is_empty(kind, namespace)


def _full(name: str, namespace: str) -> str:
    return name if "." in name or not namespace or name in _PRIMITIVES else f"{namespace}.{name}"

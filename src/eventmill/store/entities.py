"""Packages, actions, triggers and rules as documents; every change that matching depends on moves the generation."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import orjson
from sqlalchemy import Connection, and_, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from eventmill.entities import Action, Document, Limits
from eventmill.errors import NotFound
from eventmill.store import schema

COLLECTIONS = ("packages", "actions", "triggers", "rules")

_CHANGES_KEPT = 10_000
"""A server that is further behind than this reads all rules again."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A document as it stands. `name` carries the package (`package/name`). An action's code is in `exec.code`: its
    digest. `uid` is made when the entity is created and kept by updates."""

    collection: str
    namespace: str
    name: str
    uid: str
    updated: int
    document: Document
    revision: int | None


@dataclass(frozen=True, slots=True)
class Change:
    collection: str
    namespace: str
    name: str


class Entities:
    """Entities, in one transaction. All collections of a namespace share one name space, as OpenWhisk's do."""

    def __init__(self, connection: Connection, driver: sqlite3.Connection) -> None:
        self._connection = connection
        self._driver = driver
        self.changed = False
        """Whether this transaction has changed an entity."""

    def get(self, namespace: str, name: str) -> Stored | None:
        """Whatever has this name, of any collection."""
        t = schema.entities
        row = self._connection.execute(select(t).where(and_(t.c.namespace == namespace, t.c.name == name))).first()
        return None if row is None else _stored(row)

    def put(
        self, collection: str, namespace: str, name: str, uid: str, document: Mapping[str, Any], now_ms: int
    ) -> Stored:
        """Create or replace. A new revision is made of an action."""
        revision = self._new_revision(namespace, name, document, now_ms) if collection == "actions" else None
        values = {
            "collection": collection,
            "uid": uid,
            "updated": now_ms,
            "document": orjson.dumps(document),
            "revision": revision,
            "trigger": document["trigger"] if collection == "rules" else None,
        }
        dialect = sqlite if self._connection.dialect.name == "sqlite" else postgresql
        statement = dialect.insert(schema.entities).values(namespace=namespace, name=name, **values)
        self._connection.execute(statement.on_conflict_do_update(index_elements=["namespace", "name"], set_=values))
        self._changed(collection, namespace, name)
        return Stored(collection, namespace, name, uid, now_ms, dict(document), revision)

    def delete(self, namespace: str, name: str) -> None:
        """Raises NotFound."""
        entity = self.get(namespace, name)
        if entity is None:
            raise NotFound(f"there is no {namespace}/{name}")
        t = schema.entities
        self._connection.execute(delete(t).where(and_(t.c.namespace == namespace, t.c.name == name)))
        self._changed(entity.collection, namespace, name)

    def listing(
        self, collection: str, namespace: str, *, package: str | None = None, skip: int = 0, limit: int | None = None
    ) -> list[Stored]:
        """Newest first; `package`: only its actions ("": only those without a package)."""
        t = schema.entities
        query = select(t).where(self._where(collection, namespace, package))
        rows = self._connection.execute(query.order_by(t.c.updated.desc(), t.c.name).offset(skip).limit(limit))
        return [_stored(row) for row in rows]

    def count(self, collection: str, namespace: str, *, package: str | None = None) -> int:
        t = schema.entities
        query = select(func.count()).select_from(t).where(self._where(collection, namespace, package))
        return self._connection.execute(query).scalar_one()

    def _where(self, collection: str, namespace: str, package: str | None) -> Any:
        t = schema.entities
        condition = and_(t.c.collection == collection, t.c.namespace == namespace)
        if package is None:
            return condition
        if package == "":
            return and_(condition, ~t.c.name.contains("/"))
        return and_(condition, t.c.name.startswith(package + "/", autoescape=True))

    def rules_of(self, trigger: str) -> list[Stored]:
        """The rules of a trigger (qualified name), in any namespace."""
        t = schema.entities
        return [_stored(row) for row in self._connection.execute(select(t).where(t.c.trigger == trigger))]

    def rules(self) -> list[Stored]:
        """All rules of all namespaces."""
        t = schema.entities
        return [_stored(row) for row in self._connection.execute(select(t).where(t.c.collection == "rules"))]

    def triggers(self) -> list[Stored]:
        """All triggers of all namespaces (the schedules among them)."""
        t = schema.entities
        return [_stored(row) for row in self._connection.execute(select(t).where(t.c.collection == "triggers"))]

    # generation

    def generation(self) -> int:
        return int(self._driver.execute("SELECT value FROM meta WHERE key='generation'").fetchone()[0])

    def changes(self, since: int) -> list[Change] | None:
        """What has changed after generation `since`; None if that is too long ago: read everything."""
        t = schema.changes
        oldest = self._connection.execute(select(func.min(t.c.generation))).scalar_one()
        if since == 0 or (oldest or 0) > since + 1:
            return None
        query = select(t.c.collection, t.c.namespace, t.c.name).where(t.c.generation > since).distinct()
        return [Change(*row) for row in self._connection.execute(query)]

    def _changed(self, collection: str, namespace: str, name: str) -> None:
        self.changed = True
        m, t = schema.meta, schema.changes
        self._connection.execute(update(m).where(m.c.key == "generation").values(value=m.c.value + 1))
        generation = self.generation()
        row = {"generation": generation, "collection": collection, "namespace": namespace, "name": name}
        self._connection.execute(insert(t), row)
        self._connection.execute(delete(t).where(t.c.generation <= generation - _CHANGES_KEPT))

    # actions

    def put_code(self, code: bytes) -> str:
        """Keep a piece of code (source text, or base64 of a zip) under its digest, which is returned."""
        digest = blake2b(code, digest_size=16).hexdigest()
        t = schema.code
        if self._connection.execute(select(t.c.digest).where(t.c.digest == digest)).first() is None:
            self._connection.execute(insert(t).values(digest=digest, bytes=code))
        return digest

    def code(self, digest: str) -> bytes:
        """Raises NotFound."""
        t = schema.code
        value = self._connection.execute(select(t.c.bytes).where(t.c.digest == digest)).scalar_one_or_none()
        if value is None:
            raise NotFound(f"there is no code {digest}")
        return bytes(value)

    def action(self, qualified: str) -> Action | None:
        """The action as it is now, its package's parameters included; by its own name, or through a binding, whose
        parameters come above those of the package."""
        given = qualified.split("/", 1)
        namespace, name = self.unbound(*given)
        stored = self.get(namespace, name)
        if stored is None or stored.collection != "actions":
            return None
        assert stored.revision is not None
        action = to_action(namespace, name, stored.revision, stored.document, self._package_of(namespace, name))
        return action if [namespace, name] == given else self._bound(action, stored.document, *given)

    def _bound(self, action: Action, document: Document, namespace: str, name: str) -> Action:
        """The action as this name makes it, which is that of a binding (else it stays as it is)."""
        binding, package = self._package_of(namespace, name), self._package_of(action.namespace, action.name)
        if not binding.get("binding"):
            return action
        parameters = [*package.get("parameters", []), *binding["parameters"]]
        bound = to_action(
            action.namespace, action.name, action.revision, document, {**package, "parameters": parameters}
        )
        return replace(bound, binding=f"{namespace}/{name.split('/')[0]}")

    def unbound(self, namespace: str, name: str) -> tuple[str, str]:
        """(namespace, name) of what an action's name stands for where its package is a binding; else the same."""
        binding = self._package_of(namespace, name).get("binding") if "/" in name else None
        if not binding:
            return namespace, name
        return binding["namespace"], f"{binding['name']}/{name.split('/')[1]}"

    def _package_of(self, namespace: str, name: str) -> Document:
        """The document of an action's package; {} without one."""
        package = self.get(namespace, name.split("/")[0]) if "/" in name else None
        return {} if package is None else package.document

    def revision(self, revision: int, named: str | None = None) -> Action:
        """An action as it was when it was put: what an activation runs that was recorded with it. The package's
        parameters are those of now; so are a binding's, if it was `named` through one. Raises NotFound."""
        t = schema.revisions
        row = self._connection.execute(select(t).where(t.c.id == revision)).first()
        if row is None:
            raise NotFound(f"there is no revision {revision}")
        document = orjson.loads(row.document)
        action = to_action(row.namespace, row.name, revision, document, self._package_of(row.namespace, row.name))
        return action if named in (None, action.qualified) else self._bound(action, document, *named.split("/", 1))

    def _new_revision(self, namespace: str, name: str, document: Mapping[str, Any], now_ms: int) -> int:
        values = {"namespace": namespace, "name": name, "version": document["version"], "created": now_ms}
        values["code"] = document["exec"].get("code")
        result = self._connection.execute(
            insert(schema.revisions).values(document=orjson.dumps(document), **values).returning(schema.revisions.c.id)
        )
        return int(result.scalar_one())

    def unused_revisions(self) -> list[int]:
        """Revisions that are nobody's any more: not an action's, not an activation's, not pinned by a running chain.
        Since only what is an action's can be pinned, one that is unused stays so, but for a call that was begun before
        and has no row yet."""
        rows = self._driver.execute(
            "SELECT id FROM revisions WHERE id NOT IN (SELECT revision FROM entities WHERE revision IS NOT NULL)"
            " AND id NOT IN (SELECT revision FROM activations)"
            " AND id NOT IN (SELECT json_each.value FROM activations, json_each(CAST(chain AS TEXT))"
            " WHERE chain IS NOT NULL AND category='sequence')"
            " AND id NOT IN (SELECT component FROM maps)"
        )
        return [row[0] for row in rows]

    def forget_revisions(self, revisions: Sequence[int]) -> int:
        """Delete these, and code that no revision has any more; never the newest one, whose number would be given to
        the next. Returns how many revisions."""
        r, c = schema.revisions, schema.code
        newest = select(func.max(r.c.id)).scalar_subquery()
        digests = self._connection.execute(
            delete(r).where(r.c.id.in_(revisions), r.c.id < newest).returning(r.c.code)
        ).scalars().all()  # fmt: skip
        for digest in {d for d in digests if d is not None}:
            still = select(r.c.id).where(r.c.code == digest).exists()
            self._connection.execute(delete(c).where(and_(c.c.digest == digest, ~still)))
        return len(digests)


def _stored(row: Any) -> Stored:
    document = orjson.loads(row.document)
    return Stored(row.collection, row.namespace, row.name, row.uid, row.updated, document, row.revision)


def to_action(namespace: str, name: str, revision: int, document: Document, package: Document) -> Action:
    """An action's stored document (`exec.code` is a digest) as a value; `package` is its package's document, or {}."""
    exec_, limits = document["exec"], document.get("limits", {})
    own = document.get("parameters", [])
    bound = {p["key"]: p["value"] for p in [*package.get("parameters", []), *own] if not p.get("init")}
    return Action(
        namespace=namespace,
        name=name,
        version=document["version"],
        revision=revision,
        kind=exec_["kind"],
        code=exec_.get("code"),
        binary=bool(exec_.get("binary")),
        main=exec_.get("main"),
        components=tuple(c.lstrip("/") for c in exec_.get("components", ())),
        url=exec_.get("url", ""),
        method=exec_.get("method", "POST"),
        parameters=bound,
        init_parameters={p["key"]: p["value"] for p in own if p.get("init")},
        annotations={a["key"]: a["value"] for a in document.get("annotations", [])},
        limits=Limits(
            timeout_ms=limits.get("timeout", 60_000),
            memory_mb=limits.get("memory", 256),
            logs_mb=limits.get("logs", 10),
            instances=limits.get("instances"),
        ),
        published=bool(package.get("publish")),
    )

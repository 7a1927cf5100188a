"""The tables, and how a store made by an older version becomes one of this version.

Ids are 16-byte blobs (32 hex digits outside), times epoch milliseconds, JSON is bytes. Indexes over what is alive are
partial, so that a finished activation costs nothing there.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    insert,
    inspect,
    select,
    text,
    update,
)

from eventmill.errors import InvalidConfig

metadata = MetaData()
_seq = BigInteger().with_variant(Integer, "sqlite")

meta = Table("meta", metadata, Column("key", String, primary_key=True), Column("value", BigInteger, nullable=False))
"""`schema`: version of the tables; `id`: the store's own number; `generation`: grows with every change of an entity
that matching depends on."""

partitions = Table(
    "partitions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("topic", String, nullable=False),
    Column("number", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("topic_id", String, nullable=False, server_default=""),
    Index("partitions_by_name", "topic", "number", unique=True),
)

log = Table(
    "log",
    metadata,
    Column("offset", _seq, primary_key=True),
    Column("time", BigInteger, nullable=False),
    Column("value", LargeBinary, nullable=False),
)
"""The embedded backbone. Retention never takes the newest row, so that an offset is never given twice."""

entities = Table(
    "entities",
    metadata,
    Column("namespace", String, primary_key=True),
    Column("name", String, primary_key=True),  # with its package; all collections share one name space, as OpenWhisk's
    Column("collection", String, nullable=False),
    Column("uid", String, nullable=False),
    Column("updated", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("revision", Integer),  # actions
    Column("trigger", String),  # rules: qualified name
    Index("entities_by_update", "namespace", "collection", "updated"),
    Index("rules_by_trigger", "trigger", sqlite_where=text("trigger IS NOT NULL")),
)

changes = Table(
    "changes",
    metadata,
    Column("generation", BigInteger, primary_key=True),
    Column("collection", String, nullable=False),
    Column("namespace", String, nullable=False),
    Column("name", String, nullable=False),
)
"""What changed in which generation: a server catches up by reading on, instead of reading all rules again."""

revisions = Table(
    "revisions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("namespace", String, nullable=False),
    Column("name", String, nullable=False),
    Column("version", String, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),  # with exec.code replaced by its digest
    Column("code", String),
    Index("revisions_by_code", "code"),
)
"""An action as it was when it was put: an activation runs the revision that it was recorded with."""

code = Table(
    "code",
    metadata,
    Column("digest", String, primary_key=True),
    Column("bytes", LargeBinary, nullable=False),
)

activations = Table(
    "activations",
    metadata,
    Column("seq", _seq, primary_key=True),
    Column("id", LargeBinary, nullable=False),
    Column("namespace", String, nullable=False),
    Column("action", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("category", String, nullable=False),
    Column("queue", String, nullable=False),  # whose turn it waits for: the action's, or the batch system's
    Column("state", Integer, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("params", LargeBinary, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("attempts_left", Integer, nullable=False),
    Column("interruptions", Integer, nullable=False),
    Column("finishes", Integer, nullable=False),
    Column("cancelled", Integer, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("due", BigInteger, nullable=False),
    Column("started", BigInteger),
    Column("ended", BigInteger),
    Column("deadline", BigInteger),
    Column("handle", String),
    Column("status", Integer),
    Column("result", LargeBinary),
    Column("logs", LargeBinary),
    Column("usage", LargeBinary),
    Column("rule", String),
    Column("cause_source", String),
    Column("cause_id", String),
    Column("parent", LargeBinary),
    Column("idx", Integer, nullable=False),
    Column("depth", Integer, nullable=False),
    Column("traceparent", String),
    Column("chain", LargeBinary),
    Column("transaction", String, nullable=False, server_default=""),
    Column("binding", String),
    Index("activations_by_id", "id", unique=True),
    Index("activations_by_time", "namespace", "created"),
    Index("activations_alive", "state", "queue", "due", "seq", sqlite_where=text("state < 5")),
    Index("activations_by_parent", "parent", "idx", sqlite_where=text("parent IS NOT NULL")),
    Index("activations_by_handle", "handle", sqlite_where=text("handle IS NOT NULL AND state < 5")),
    Index("activations_by_deadline", "deadline", sqlite_where=text("deadline IS NOT NULL AND state < 5")),
)

maps = Table(
    "maps",
    metadata,
    Column("activation", LargeBinary, primary_key=True),
    Column("component", Integer, nullable=False),  # the revision that is run for each element
    Column("count", Integer, nullable=False),
    Column("spread", Integer, nullable=False),
    Column("left", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("source", BigInteger),
    Column("again", Integer),
)
"""How far a running map is: beside its row, which holds all elements and is not to be written with each that ends."""

attempts = Table(
    "attempts",
    metadata,
    Column("activation", LargeBinary, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("status", Integer, nullable=False),
    Column("started", BigInteger),
    Column("ended", BigInteger),
    Column("handle", String),
    Column("result", LargeBinary),
    Column("logs", LargeBinary),
)
"""Attempts that were followed by another one; the last attempt is the activation's row itself."""

ledger = Table(
    "ledger",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    Column("time", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("seq", _seq, primary_key=True),
    Column("time", BigInteger, nullable=False),
    Column("kind", String, nullable=False),
    Column("namespace", String),
    Column("reason", String, nullable=False),
    Column("activation", LargeBinary),
    Column("rule", String),
    Column("topic", String),
    Column("partition", Integer),
    Column("offset", BigInteger),
    Column("record", LargeBinary),
    Column("detail", LargeBinary),
    Index("dead_letters_by_activation", "activation", sqlite_where=text("activation IS NOT NULL")),
    sqlite_autoincrement=True,  # people name them by their number: one that was dropped is never another's
)

keys = Table(
    "keys",
    metadata,
    Column("uuid", String, primary_key=True),
    Column("namespace", String, nullable=False),
    Column("hash", LargeBinary, nullable=False),  # BLAKE2b of the secret half, which is random and 64 characters long
    Column("sources", LargeBinary, nullable=False),  # JSON list of prefixes of the event sources that it may post
    Column("created", BigInteger, nullable=False),
    Index("keys_by_namespace", "namespace"),
)

source_state = Table(
    "source_state",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

Migration = Callable[[Connection], None]


def _topic_ids(connection: Connection) -> None:
    """Kafka's id of the topic that a position belongs to: a topic that is deleted and made again has another one."""
    if not any(column["name"] == "topic_id" for column in inspect(connection).get_columns("partitions")):
        connection.execute(text("ALTER TABLE partitions ADD COLUMN topic_id VARCHAR DEFAULT '' NOT NULL"))


def _store_id(connection: Connection) -> None:
    """A number of the store's own."""
    connection.execute(insert(meta), [{"key": "id", "value": secrets.randbits(63)}])


def _map_slices(connection: Connection) -> None:
    """How far a map is in its elements' file, and in trying failed ones again."""
    if not any(column["name"] == "again" for column in inspect(connection).get_columns("maps")):
        connection.execute(text("ALTER TABLE maps ADD COLUMN source BIGINT"))
        connection.execute(text("ALTER TABLE maps ADD COLUMN again INTEGER"))


def _transactions(connection: Connection) -> None:
    """The request that an activation began with."""
    if not any(column["name"] == "transaction" for column in inspect(connection).get_columns("activations")):
        connection.execute(text("ALTER TABLE activations ADD COLUMN \"transaction\" VARCHAR DEFAULT '' NOT NULL"))


def _bindings(connection: Connection) -> None:
    """The binding that an activation was called through."""
    if not any(column["name"] == "binding" for column in inspect(connection).get_columns("activations")):
        connection.execute(text("ALTER TABLE activations ADD COLUMN binding VARCHAR"))


def _keys_by_namespace(connection: Connection) -> None:
    """Every PUT asks whether its namespace has a key."""
    connection.execute(text("CREATE INDEX IF NOT EXISTS keys_by_namespace ON keys (namespace)"))


MIGRATIONS: Sequence[Migration] = (
    metadata.create_all, _topic_ids, _store_id, _map_slices, _transactions, _bindings, _keys_by_namespace,
)  # fmt: skip
"""Migration n makes version n+1 of version n. Never change one that was released: append."""


def migrate(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Bring the tables to the newest version, in the caller's transaction; returns the version.

    Raises InvalidConfig if a newer Eventmill has written this store.
    """
    version = 0
    if inspect(connection).has_table("meta"):
        version = connection.execute(select(meta.c.value).where(meta.c.key == "schema")).scalar_one()
    if version > len(migrations):
        raise InvalidConfig(
            f"the store was written by a newer Eventmill (schema {version}; this one knows {len(migrations)}): upgrade"
        )
    for step in migrations[version:]:
        step(connection)
    if version == 0:
        connection.execute(insert(meta), [{"key": "schema", "value": 0}, {"key": "generation", "value": 0}])
    connection.execute(update(meta).where(meta.c.key == "schema").values(value=len(migrations)))
    return len(migrations)

"""Activations and the ledger: the hot statements, at driver level (measured: 4 µs a statement, 50 µs through Core).

Everything here runs inside the caller's transaction, so that reading a row and then writing it is a compare-and-set.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import orjson
from sqlalchemy import Connection, and_, delete, func, insert, select, update

from eventmill.entities import Activation, Category, State, Status, check_transition
from eventmill.errors import NotFound
from eventmill.store import schema

_CHUNK = 500
"""Ids in one IN (…): SQLite allows 32,766 variables, and long statements are not reused."""

_FIELDS = tuple(f.name for f in fields(Activation))
_COLUMNS = ("seq", "queue", *("idx" if name == "index" else name for name in _FIELDS))
_QUOTED = tuple(f'"{c}"' for c in _COLUMNS)
_SELECT = f"SELECT {', '.join(_QUOTED)} FROM activations"
_INSERT = f"INSERT INTO activations ({', '.join(_QUOTED[1:])}) VALUES ({', '.join('?' * (len(_COLUMNS) - 1))})"
_FINISH = (
    "UPDATE activations SET state=?, attempt=?, attempts_left=?, finishes=?, due=?, started=?, ended=?, handle=?,"
    ' status=?, result=?, logs=?, "usage"=? WHERE seq=?'
)
_LEDGER = "INSERT INTO ledger (id, time) VALUES (?, ?)"


class Row(Activation):
    """An activation as it stands in the store: with its place in the order, and the queue that it waits in."""

    __slots__ = ("queue", "seq")
    seq: int
    queue: str


class Activations:
    """Rows of activations, in one transaction."""

    def __init__(self, connection: Connection, driver: sqlite3.Connection) -> None:
        self._connection = connection
        self._driver = driver

    def known(self, ids: Iterable[str]) -> set[str]:
        """Those of these ids that were ever started: the ledger remembers them longer than their rows."""
        found: set[str] = set()
        for chunk in _chunks(list(ids)):
            marks = ",".join("?" * len(chunk))
            rows = self._driver.execute(
                f"SELECT id FROM ledger WHERE id IN ({marks})",
                tuple(bytes.fromhex(i) for i in chunk),
            )
            found.update(row[0].hex() for row in rows)
        return found

    def insert(self, activations: Sequence[tuple[str, Activation]]) -> None:
        """Record new activations, each with the queue that it waits in, and note them in the ledger."""
        self._many(_INSERT, [_values(queue, a) for queue, a in activations])
        self._many(_LEDGER, [(bytes.fromhex(a.id), a.created) for _, a in activations])

    def get(self, id: str) -> Row:
        """One activation. Raises NotFound."""
        for row in self.get_many([id]).values():
            return row
        raise NotFound(f"there is no activation {id}")

    def get_many(self, ids: Iterable[str]) -> dict[str, Row]:
        """Those of these that have a row."""
        found: dict[str, Row] = {}
        for chunk in _chunks(list(ids)):
            marks = ",".join("?" * len(chunk))
            for row in self._rows(f"WHERE id IN ({marks})", tuple(bytes.fromhex(i) for i in chunk)):
                found[row.id] = row
        return found

    def save(self, rows: Sequence[tuple[State, Row]]) -> None:
        """Write rows back that have changed (a transition from the given old state, or none).

        Raises IllegalTransition for a state that can't follow the old one: nothing is written then.
        """
        for old, row in rows:
            if old is not row.state:
                check_transition(row.id, old, row.state)
        self._many(
            _FINISH,
            [
                (
                    int(r.state), r.attempt, r.attempts_left, r.finishes, r.due, r.started, r.ended, r.handle,
                    None if r.status is None else int(r.status), r.result, _dump(r.logs), _dump(r.usage), r.seq,
                )
                for _, r in rows
            ],
        )  # fmt: skip

    def save_chain(self, row: Row) -> None:
        """Write a chain's own state."""
        self._driver.execute("UPDATE activations SET chain=? WHERE seq=?", (row.chain, row.seq))

    def hand(self, seqs: Sequence[int]) -> None:
        """Pending rows are handed over."""
        self._many(
            "UPDATE activations SET state=? WHERE seq=? AND state=?",
            [(int(State.HANDED), seq, int(State.PENDING)) for seq in seqs],
        )

    def pending(self, queue: str, now_ms: int, limit: int) -> list[Row]:
        """The next of a queue whose turn has come: first come, first served; retries from their due time on."""
        return list(
            self._rows(
                "WHERE state=? AND queue=? AND due<=? AND state<5 ORDER BY due, seq LIMIT ?",
                (int(State.PENDING), queue, now_ms, limit),
            )
        )

    def next_due(self, queue: str, now_ms: int) -> int | None:
        """When the next retry of this queue is due; None without one."""
        row = self._driver.execute(
            "SELECT min(due) FROM activations WHERE state=? AND queue=? AND due>? AND state<5",
            (int(State.PENDING), queue, now_ms),
        ).fetchone()
        return None if row[0] is None else int(row[0])

    def queues(self) -> list[str]:
        """All queues in which something waits."""
        rows = self._driver.execute(
            "SELECT DISTINCT queue FROM activations WHERE state=? AND state<5", (int(State.PENDING),)
        )
        return [row[0] for row in rows]

    def under_way(self, partition: int) -> list[tuple[str, str, str | None]]:
        """(id, queue, handle) of what executors had when the last owner of the partition ended."""
        rows = self._driver.execute(
            "SELECT id, queue, handle FROM activations"
            " WHERE state IN (2, 3, 4) AND state<5 AND partition=? AND category IN ('function', 'job') ORDER BY seq",
            (partition,),
        )
        return [(row[0].hex(), row[1], row[2]) for row in rows]

    def running_maps(self, partition: int) -> list[Row]:
        """Maps that have not finished: some of their elements may not have an activation yet."""
        where = "WHERE state=? AND state<5 AND partition=? AND category='map'"
        return list(self._rows(where, (int(State.RUNNING), partition)))

    def take_back(self, ids: Sequence[str], *, interrupted: bool) -> None:
        """What was handed over waits again; `interrupted` counts the death of the server that had started it."""
        self._many(
            "UPDATE activations SET state=?, due=0, interruptions=interruptions+? WHERE id=? AND state IN (2, 3, 4)",
            [(int(State.PENDING), int(interrupted), bytes.fromhex(i)) for i in ids],
        )

    def alive_by_namespace(self) -> dict[str, int]:
        rows = self._driver.execute("SELECT namespace, count(*) FROM activations WHERE state<5 GROUP BY 1")
        return {row[0]: int(row[1]) for row in rows}

    def overdue(self, now_ms: int, limit: int) -> list[Row]:
        """Chains whose time is up."""
        return list(
            self._rows(
                "WHERE deadline IS NOT NULL AND state<5 AND deadline<=? ORDER BY deadline LIMIT ?", (now_ms, limit)
            )
        )

    def next_deadline(self) -> int | None:
        row = self._driver.execute(
            "SELECT min(deadline) FROM activations WHERE deadline IS NOT NULL AND state<5"
        ).fetchone()
        return None if row[0] is None else int(row[0])

    def steps(self, parent: str, *, alive: bool | None = None) -> Iterator[Row]:
        """The steps of a chain or elements of a map, in order; only those alive, or only those that have ended."""
        which = {None: "", True: " AND state<5", False: " AND state>=5"}[alive]
        return self._rows(f"WHERE parent=? AND parent IS NOT NULL{which} ORDER BY idx, seq", (bytes.fromhex(parent),))

    def newest(
        self,
        namespace: str,
        *,
        limit: int,
        skip: int = 0,
        name: str | None = None,
        states: Sequence[State] = (),
        since_ms: int | None = None,
        upto_ms: int | None = None,
    ) -> list[Row]:
        """The newest first. `name`: an action's name, with its package."""
        where, values = self._filter(namespace, name, states, since_ms, upto_ms)
        return list(
            self._rows(f"WHERE {where} ORDER BY created DESC, seq DESC LIMIT ? OFFSET ?", (*values, limit, skip))
        )

    def count(
        self,
        namespace: str,
        *,
        name: str | None = None,
        states: Sequence[State] = (),
        since_ms: int | None = None,
        upto_ms: int | None = None,
    ) -> int:
        where, values = self._filter(namespace, name, states, since_ms, upto_ms)
        return int(self._driver.execute(f"SELECT count(*) FROM activations WHERE {where}", values).fetchone()[0])

    def _filter(
        self, namespace: str, name: str | None, states: Sequence[State], since_ms: int | None, upto_ms: int | None
    ) -> tuple[str, tuple[Any, ...]]:
        """The condition of a list, as SQL with question marks and their values."""
        parts: list[tuple[str, tuple[Any, ...]]] = [("namespace=?", (namespace,))]
        if name is not None:
            parts.append(("action=?", (f"{namespace}/{name}",)))
        if states:
            parts.append((f"state IN ({','.join('?' * len(states))})", tuple(int(s) for s in states)))
        if since_ms is not None:
            parts.append(("created>=?", (since_ms,)))
        if upto_ms is not None:
            parts.append(("created<=?", (upto_ms,)))
        return " AND ".join(p[0] for p in parts), tuple(v for p in parts for v in p[1])

    def forget(self, before_ms: int, limit: int) -> int:
        """Delete finished activations that ended before, unless they are steps of a chain that still runs; the ledger
        stays. Returns how many."""
        t = schema.activations
        parent = t.alias()
        running = select(parent.c.seq).where(and_(parent.c.id == t.c.parent, parent.c.state < State.SUCCEEDED)).exists()
        ended = func.coalesce(t.c.ended, t.c.created) < before_ms
        old = (
            select(t.c.seq)
            .where(and_(t.c.state >= State.SUCCEEDED, t.c.created < before_ms, ended, ~running))
            .order_by(t.c.seq)
            .limit(limit)
        )
        rows = self._connection.execute(delete(t).where(t.c.seq.in_(old.scalar_subquery())).returning(t.c.id)).all()
        tries = schema.attempts
        for chunk in _chunks([row.id.hex() for row in rows]):
            of_these = tries.c.activation.in_([bytes.fromhex(i) for i in chunk])
            self._connection.execute(delete(tries).where(of_these))
        return len(rows)

    def forget_ledger(self, before_ms: int) -> int:
        """Forget ids that were started before, unless their activation still has a row."""
        t, a = schema.ledger, schema.activations
        alive = select(a.c.id).where(a.c.id == t.c.id).exists()
        return self._connection.execute(delete(t).where(and_(t.c.time < before_ms, ~alive))).rowcount

    def set_handle(self, accepted: Sequence[tuple[str, int, str]]) -> list[str]:
        """Record handles (id, attempt, handle) of what was handed over; returns those that were recorded."""
        rows = self.get_many(i for i, _, _ in accepted)
        good = [(i, h) for i, n, h in accepted if i in rows and rows[i].attempt == n and _may_take(rows[i], h)]
        self._many(
            "UPDATE activations SET state=?, handle=? WHERE id=?",
            [(int(State.ACCEPTED), h, bytes.fromhex(i)) for i, h in good if rows[i].state is not State.RUNNING],
        )
        return [h for _, h in good]

    def handles(self, handles: Iterable[str]) -> set[str]:
        """Those of these handles that an unfinished activation has recorded."""
        found: set[str] = set()
        for chunk in _chunks(list(handles)):
            marks = ",".join("?" * len(chunk))
            rows = self._driver.execute(
                f"SELECT handle FROM activations WHERE handle IN ({marks}) AND handle IS NOT NULL AND state<5",
                tuple(chunk),
            )
            found.update(row[0] for row in rows)
        return found

    def start(self, started: Sequence[tuple[str, int, int, Mapping[str, Any]]]) -> None:
        """Jobs that run now: (id, attempt, time, facts)."""
        self._many(
            'UPDATE activations SET state=?, started=?, "usage"=? WHERE id=? AND attempt=? AND state IN (2, 3)',
            [(int(State.RUNNING), time, orjson.dumps(detail), bytes.fromhex(i), n) for i, n, time, detail in started],
        )

    def counts(self) -> dict[tuple[str, State], int]:
        """How many are alive, by category and state, for the metrics."""
        t = schema.activations
        rows = self._connection.execute(
            select(t.c.category, t.c.state, func.count())
            .where(t.c.state < State.SUCCEEDED)
            .group_by(t.c.category, t.c.state)
        )
        return {(row[0], State(row[1])): row[2] for row in rows}

    def keep_attempts(self, rows: Sequence[Row]) -> None:
        """Remember how the current attempts of these ended, before the next ones begin."""
        if rows:
            values = [
                {
                    "activation": bytes.fromhex(r.id), "number": r.attempt, "status": int(r.status or 0),
                    "started": r.started, "ended": r.ended, "handle": r.handle, "result": r.result,
                    "logs": _dump(r.logs),
                }
                for r in rows
            ]  # fmt: skip
            self._connection.execute(insert(schema.attempts), values)

    def attempts(self, id: str) -> list[Mapping[str, Any]]:
        """The attempts before the current one, in order: number, status, started, ended, handle, result, logs."""
        t = schema.attempts
        query = select(t).where(t.c.activation == bytes.fromhex(id)).order_by(t.c.number)
        return [
            {
                "number": row.number, "status": Status(row.status), "started": row.started, "ended": row.ended,
                "handle": row.handle, "result": row.result, "logs": orjson.loads(row.logs) if row.logs else [],
            }
            for row in self._connection.execute(query)
        ]  # fmt: skip

    def cancel(self, seq: int) -> None:
        """Note that somebody has asked to end it."""
        self._driver.execute("UPDATE activations SET cancelled=1 WHERE seq=?", (seq,))

    def reset(self, row: Row, state: State, *, attempts_left: int) -> None:
        """A replay: a finished activation waits for its next attempt; a chain goes on (RUNNING)."""
        check_transition(row.id, row.state, state)
        self.keep_attempts([row])
        t = schema.activations
        self._connection.execute(
            update(t)
            .where(t.c.seq == row.seq)
            .values(
                state=state, attempt=row.attempt + 1, attempts_left=attempts_left, interruptions=0, due=0, cancelled=0,
                started=None, ended=None, handle=None, status=None, result=None, logs=None, usage=None,
            )
        )  # fmt: skip

    def _many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """The same statement for each of these rows; none is fine."""
        if rows:
            self._driver.executemany(statement, rows)

    def _rows(self, where: str, values: tuple[Any, ...]) -> Iterator[Row]:
        for row in self._driver.execute(f"{_SELECT} {where}", values):
            yield _row(row)


def _may_take(row: Row, handle: str) -> bool:
    """A handle is recorded once; hearing of it again is harmless, hearing of another one is not."""
    return not row.state.final and row.handle in (None, handle)


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    for i in range(0, len(ids), _CHUNK):
        yield ids[i : i + _CHUNK]


def _dump(value: Any) -> bytes | None:
    return orjson.dumps(value) if value else None


def _values(queue: str, a: Activation) -> tuple[Any, ...]:
    return (
        queue, bytes.fromhex(a.id), a.namespace, a.action, a.revision, a.category.value, int(a.state), a.partition,
        a.params, a.attempt, a.attempts_left, a.interruptions, a.finishes, int(a.cancelled), a.created, a.due,
        a.started, a.ended, a.deadline, a.handle, None if a.status is None else int(a.status), a.result,
        _dump(a.logs), _dump(a.usage), a.rule, a.cause_source, a.cause_id,
        None if a.parent is None else bytes.fromhex(a.parent), a.index, a.depth, a.traceparent, a.chain,
    )  # fmt: skip


def _row(r: Sequence[Any]) -> Row:
    row = Row(
        id=r[2].hex(), namespace=r[3], action=r[4], revision=r[5], category=Category(r[6]), state=State(r[7]),
        partition=r[8], params=r[9], attempt=r[10], attempts_left=r[11], interruptions=r[12], finishes=r[13],
        cancelled=bool(r[14]), created=r[15], due=r[16], started=r[17], ended=r[18], deadline=r[19], handle=r[20],
        status=None if r[21] is None else Status(r[21]), result=r[22],
        logs=tuple(orjson.loads(r[23])) if r[23] else (), usage=orjson.loads(r[24]) if r[24] else None,
        rule=r[25], cause_source=r[26], cause_id=r[27], parent=None if r[28] is None else r[28].hex(), index=r[29],
        depth=r[30], traceparent=r[31], chain=r[32],
    )  # fmt: skip
    row.seq, row.queue = r[0], r[1]
    return row

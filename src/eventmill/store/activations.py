"""Activations and the ledger: the hot statements, at driver level (measured: 4 µs a statement, 50 µs through Core).

Everything here runs inside the caller's transaction, so that reading a row and then writing it is a compare-and-set.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import orjson
from sqlalchemy import Connection, select

from eventmill.entities import Activation, Category, MapState, State, Status, check_transition
from eventmill.errors import NotFound
from eventmill.store import schema

T = TypeVar("T")
_CHUNK = 500
"""Ids in one IN (…): SQLite allows 32,766 variables, and long statements are not reused."""

_RENAMED = {"index": "idx"}  # INDEX is a word of SQL's
_FIELDS = tuple(f.name for f in fields(Activation))
_COLUMNS = tuple(f'"{_RENAMED.get(name, name)}"' for name in _FIELDS)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM activations"
_INSERT = f"INSERT INTO activations ({', '.join(_COLUMNS[:-1])}) VALUES ({', '.join('?' * (len(_COLUMNS) - 1))})"
_FINISH = (
    "UPDATE activations SET state=?, attempt=?, attempts_left=?, finishes=?, due=?, started=?, ended=?, handle=?,"
    ' status=?, result=?, logs=?, "usage"=? WHERE seq=?'
)
_LARGE = ('"params"', '"result"', '"logs"')
_LEDGER = "INSERT INTO ledger (id, time) VALUES (?, ?)"


@dataclass(slots=True)
class Element:
    """How an element of a map has ended."""

    index: int
    id: str
    succeeded: bool
    result: bytes | None


class Activations:
    """Rows of activations, in one transaction."""

    def __init__(self, connection: Connection, driver: sqlite3.Connection) -> None:
        self._connection = connection
        self._driver = driver
        self._ours = ""
        self._partitions: Set[int] | None = None

    def only(self, partitions: Set[int]) -> None:
        """From now on, questions about what is to be done are about these partitions only: others have other owners."""
        self._partitions = partitions
        self._ours = f" AND {{}}partition IN ({','.join(map(str, partitions))})"

    def known(self, ids: Iterable[str]) -> set[str]:
        """Those of these ids that an event has started: the ledger remembers them longer than their rows."""
        found: set[str] = set()
        for chunk in _chunks(list(ids)):
            marks = ",".join("?" * len(chunk))
            rows = self._driver.execute(
                f"SELECT id FROM ledger WHERE id IN ({marks})",
                tuple(bytes.fromhex(i) for i in chunk),
            )
            found.update(row[0].hex() for row in rows)
        return found

    def insert(self, activations: Sequence[Activation]) -> None:
        """Record new activations. Each gets its `seq`. Those that an event has caused are noted in the ledger: events
        come again, while a call's id is random, and steps have their chain's row."""
        for activation in activations:
            activation.seq = self._driver.execute(_INSERT, _values(activation)).lastrowid or 0
        self._many(_LEDGER, [(bytes.fromhex(a.id), a.created) for a in activations if a.cause_id is not None])

    def get(self, id: str) -> Activation:
        """One activation. Raises NotFound."""
        for row in self.get_many([id]).values():
            return row
        raise NotFound(f"there is no activation {id}")

    def get_many(self, ids: Iterable[str]) -> dict[str, Activation]:
        """Those of these that have a row."""
        found: dict[str, Activation] = {}
        for chunk in _chunks(list(ids)):
            marks = ",".join("?" * len(chunk))
            for row in self._rows(f"WHERE id IN ({marks})", tuple(bytes.fromhex(i) for i in chunk)):
                found[row.id] = row
        return found

    def save(self, rows: Sequence[tuple[State, Activation]]) -> None:
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

    def hand(self, seqs: Sequence[int]) -> None:
        """Pending rows are handed over."""
        self._many(
            "UPDATE activations SET state=? WHERE seq=? AND state=?",
            [(int(State.HANDED), seq, int(State.PENDING)) for seq in seqs],
        )

    def pending(self, queue: str, now_ms: int, limit: int) -> list[Activation]:
        """The next of a queue whose turn has come: first come, first served; retries from their due time on."""
        return list(
            self._rows(
                f"WHERE state=? AND queue=? AND due<=? AND state<5{self._of_ours()} ORDER BY due, seq LIMIT ?",
                (int(State.PENDING), queue, now_ms, limit),
            )
        )

    def next_due(self, queue: str, now_ms: int) -> int | None:
        """When the next retry of this queue is due; None without one."""
        row = self._driver.execute(
            f"SELECT min(due) FROM activations WHERE state=? AND queue=? AND due>? AND state<5{self._of_ours()}",
            (int(State.PENDING), queue, now_ms),
        ).fetchone()
        return None if row[0] is None else int(row[0])

    def queues(self) -> list[str]:
        """All queues in which something waits."""
        rows = self._driver.execute(
            f"SELECT DISTINCT queue FROM activations WHERE state=? AND state<5{self._of_ours()}",
            (int(State.PENDING),),
        )
        return [row[0] for row in rows]

    def under_way(self) -> list[Activation]:
        """What executors had when the partitions' last owner ended (without parameters, result and logs)."""
        columns = ", ".join("x''" if c in _LARGE else c for c in _COLUMNS)
        rows = self._driver.execute(
            f"SELECT {columns} FROM activations"
            f" WHERE state IN (2, 3, 4) AND state<5 AND category IN ('function', 'job'){self._of_ours()} ORDER BY seq"
        )
        return [_row(row) for row in rows]

    def maps_to_go_on(self) -> list[str]:
        """Running maps that do not just wait for elements: some are to be begun, or tried again, or all have ended."""
        rows = self._driver.execute(
            "SELECT a.id FROM maps m JOIN activations a ON a.id=m.activation"
            ' WHERE (m.spread<m.count OR m."left"=0 OR m.source IS NOT NULL OR m.again IS NOT NULL)'
            f" AND a.state=?{self._of_ours('a.')}",
            (int(State.RUNNING),),
        )
        return [row[0].hex() for row in rows]

    def ended_with_steps(self) -> list[str]:
        """Chains and maps that have ended while some of their steps have not: somebody has cancelled them."""
        rows = self._driver.execute(
            "SELECT DISTINCT p.id FROM activations s JOIN activations p ON p.id=s.parent"
            f" WHERE s.state<5 AND s.cancelled=0 AND s.parent IS NOT NULL AND p.state>=5{self._of_ours('s.')}"
        )
        return [row[0].hex() for row in rows]

    def take_back(self, ids: Sequence[str], *, interrupted: bool) -> None:
        """What was handed over waits again; `interrupted` counts the death of the server that had started it."""
        self._many(
            "UPDATE activations SET state=?, handle=NULL, interruptions=interruptions+?"
            " WHERE id=? AND state IN (2, 3, 4)",
            [(int(State.PENDING), int(interrupted), bytes.fromhex(i)) for i in ids],
        )

    def alive_by_namespace(self) -> dict[str, int]:
        rows = self._driver.execute("SELECT namespace, count(*) FROM activations WHERE state<5 GROUP BY 1")
        return {row[0]: int(row[1]) for row in rows}

    def overdue(self, now_ms: int, limit: int) -> list[Activation]:
        """Chains whose time is up."""
        return list(
            self._rows(
                f"WHERE deadline IS NOT NULL AND state<5 AND deadline<=?{self._of_ours()} ORDER BY deadline LIMIT ?",
                (now_ms, limit),
            )
        )

    def next_deadline(self) -> int | None:
        row = self._driver.execute(
            f"SELECT min(deadline) FROM activations WHERE deadline IS NOT NULL AND state<5{self._of_ours()}"
        ).fetchone()
        return None if row[0] is None else int(row[0])

    def steps(self, parent: str) -> Iterator[Activation]:
        """The steps of a chain or elements of a map, in order."""
        return self._rows("WHERE parent=? AND parent IS NOT NULL ORDER BY idx, seq", (bytes.fromhex(parent),))

    def alive_steps(self, parent: str, first: int, limit: int) -> list[Activation]:
        """The steps of a chain or elements of a map from index `first` on, in order, that have not ended, and that
        nobody has asked to end."""
        where = "WHERE parent=? AND parent IS NOT NULL AND idx>=? AND state<5 AND cancelled=0 ORDER BY idx, seq LIMIT ?"
        return list(self._rows(where, (bytes.fromhex(parent), first, limit)))

    def failed_steps(self, parent: str, first: int, end: int, limit: int) -> list[Activation]:
        """Elements of a map that have failed or were cancelled, with an index from `first` on and below `end`."""
        where = (
            "WHERE parent=? AND parent IS NOT NULL AND idx>=? AND idx<? AND state IN (6, 7) ORDER BY idx, seq LIMIT ?"
        )
        return list(self._rows(where, (bytes.fromhex(parent), first, end, limit)))

    def last_step(self, parent: str) -> Activation | None:
        """The newest step of a chain."""
        where = "WHERE parent=? AND parent IS NOT NULL ORDER BY idx DESC, seq DESC LIMIT 1"
        return next(self._rows(where, (bytes.fromhex(parent),)), None)

    def pin(self, row: Activation) -> None:
        """Write down a chain's components."""
        self._driver.execute("UPDATE activations SET chain=? WHERE seq=?", (row.chain, row.seq))

    # maps

    def map_state(self, id: str) -> MapState:
        """How far a map is. Raises NotFound."""
        row = self._driver.execute(
            'SELECT component, count, spread, "left", failed, source, again FROM maps WHERE activation=?',
            (bytes.fromhex(id),),
        ).fetchone()
        if row is None:
            raise NotFound(f"activation {id} is no map")
        return MapState(*row)

    def save_map_states(self, states: Mapping[str, MapState]) -> None:
        self._many(
            'INSERT OR REPLACE INTO maps (activation, component, count, spread, "left", failed, source, again)'
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (bytes.fromhex(id), s.component, s.count, s.spread, s.left, s.failed, s.source, s.again)
                for id, s in states.items()
            ],
        )

    def elements(self, map: str, first: int, end: int) -> Iterator[Element]:
        """How the elements of a map with an index from `first` on and below `end` ended, in order."""
        rows = self._driver.execute(
            "SELECT idx, id, state, result FROM activations"
            " WHERE parent=? AND parent IS NOT NULL AND idx>=? AND idx<? ORDER BY idx, seq",
            (bytes.fromhex(map), first, end),
        )
        return (Element(index, id.hex(), state == State.SUCCEEDED, result) for index, id, state, result in rows)

    def finished_maps(self, seqs: Sequence[int]) -> list[tuple[str, str, int]]:
        """The maps among these that have finished: namespace, id, attempt."""
        found: list[tuple[str, str, int]] = []
        for chunk in _chunks(seqs):
            marks = ",".join("?" * len(chunk))
            rows = self._driver.execute(
                f"SELECT namespace, id, attempt FROM activations WHERE seq IN ({marks}) AND state>=5 AND category=?",
                (*chunk, Category.MAP.value),
            )
            found.extend((namespace, id.hex(), attempt) for namespace, id, attempt in rows)
        return found

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
    ) -> list[Activation]:
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

    def old(self, before_ms: int, limit: int) -> list[int]:
        """Finished activations that ended before: their `seq`. Not those that a dead letter may want back; and a chain
        goes before its steps, so that a chain that is there has them all."""
        rows = self._driver.execute(
            "SELECT seq FROM activations a WHERE state>=5 AND created<? AND coalesce(ended, created)<?"
            " AND NOT EXISTS (SELECT 1 FROM activations p WHERE p.id=a.parent)"
            " AND NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.activation=a.id AND d.activation IS NOT NULL)"
            " ORDER BY seq LIMIT ?",
            (before_ms, before_ms, limit),
        )
        return [row[0] for row in rows]

    def forget(self, seqs: Sequence[int]) -> int:
        """Delete these finished activations; the ledger stays. Returns how many."""
        gone = 0
        for chunk in _chunks(seqs):
            marks = ",".join("?" * len(chunk))
            condition = f"(SELECT id FROM activations WHERE seq IN ({marks}) AND state>=5)"
            self._driver.execute(f"DELETE FROM attempts WHERE activation IN {condition}", tuple(chunk))
            self._driver.execute(f"DELETE FROM maps WHERE activation IN {condition}", tuple(chunk))
            cursor = self._driver.execute(f"DELETE FROM activations WHERE seq IN ({marks}) AND state>=5", tuple(chunk))
            gone += cursor.rowcount
        return gone

    def old_ids(self, before_ms: int, limit: int) -> list[bytes]:
        """Entries of the ledger from before, whose activation has no row any more."""
        rows = self._driver.execute(
            "SELECT id FROM ledger l WHERE time<? AND NOT EXISTS (SELECT 1 FROM activations a WHERE a.id=l.id) LIMIT ?",
            (before_ms, limit),
        )
        return [row[0] for row in rows]

    def forget_ids(self, ids: Sequence[bytes]) -> int:
        """Forget that these were ever started. Returns how many."""
        self._many("DELETE FROM ledger WHERE id=?", [(id,) for id in ids])
        return len(ids)

    def set_handle(self, accepted: Sequence[tuple[str, int, str, str | None]]) -> list[str]:
        """Record handles (id, attempt, handle, the one that it replaces) of what was handed over; returns those that
        were recorded."""
        rows = self.get_many(i for i, *_ in accepted)
        good = [
            (i, h)
            for i, n, h, before in accepted
            if i in rows and rows[i].attempt == n and self._may_take(rows[i], h, before)
        ]
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

    def start(self, started: Sequence[tuple[str, int, str, int, Mapping[str, Any]]]) -> None:
        """Jobs that run now: (id, attempt, handle, time, facts). It counts for the recorded handle only."""
        self._many(
            'UPDATE activations SET state=?, started=?, "usage"=? WHERE id=? AND attempt=? AND handle=? AND state=3'
            f"{self._of_ours()}",
            [
                (int(State.RUNNING), time, orjson.dumps(detail), bytes.fromhex(i), n, handle)
                for i, n, handle, time, detail in started
            ],
        )

    def keep_attempts(self, rows: Sequence[Activation]) -> None:
        """Remember how the current attempts of these ended, before the next ones begin."""
        self._many(
            "INSERT INTO attempts (activation, number, status, started, ended, handle, result, logs)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    bytes.fromhex(r.id), r.attempt, int(r.status or 0), r.started, r.ended, r.handle, r.result,
                    _dump(r.logs),
                )
                for r in rows
            ],
        )  # fmt: skip

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

    def reset(
        self, row: Activation, state: State, *, attempts_left: int, started: int | None, deadline: int | None
    ) -> None:
        """A replay: a finished activation waits for its next attempt (PENDING); a chain goes on (RUNNING). The row is
        changed and written."""
        check_transition(row.id, row.state, state)
        self.keep_attempts([row])
        row.state, row.attempt, row.attempts_left, row.deadline = state, row.attempt + 1, attempts_left, deadline
        row.interruptions, row.cancelled, row.handle, row.status, row.result = 0, False, None, None, None
        row.started, row.ended, row.logs, row.usage = started, None, (), None
        self._driver.execute(
            "UPDATE activations SET state=?, attempt=?, attempts_left=?, started=?, deadline=?, queue=?,"
            " interruptions=0, cancelled=0, handle=NULL, status=NULL, result=NULL, ended=NULL, logs=NULL,"
            ' "usage"=NULL WHERE seq=?',
            (int(state), row.attempt, attempts_left, started, deadline, row.queue, row.seq),
        )

    def _may_take(self, row: Activation, handle: str, before: str | None) -> bool:
        """A handle is recorded once; hearing of it again is harmless, hearing of another one is not, unless it is said
        to replace the recorded one."""
        ours = self._partitions is None or row.partition in self._partitions
        return ours and not row.state.final and row.handle in (None, handle, before)

    def _of_ours(self, alias: str = "") -> str:
        return self._ours.format(alias)

    def _many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """The same statement for each of these rows; none is fine."""
        if rows:
            self._driver.executemany(statement, rows)

    def _rows(self, where: str, values: tuple[Any, ...]) -> Iterator[Activation]:
        for row in self._driver.execute(f"{_SELECT} {where}", values):
            yield _row(row)


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for i in range(0, len(values), _CHUNK):
        yield values[i : i + _CHUNK]


def _dump(value: Any) -> bytes | None:
    return orjson.dumps(value) if value else None


def _values(a: Activation) -> tuple[Any, ...]:
    """The columns of a new row, in the order of the fields; `seq` is the database's."""
    return (
        bytes.fromhex(a.id), a.namespace, a.action, a.revision, a.category.value, int(a.state), a.partition, a.params,
        a.attempt, a.attempts_left, a.interruptions, a.finishes, int(a.cancelled), a.created, a.due, a.started, a.ended,
        a.deadline, a.handle, None if a.status is None else int(a.status), a.result, _dump(a.logs), _dump(a.usage),
        a.rule, a.cause_source, a.cause_id, None if a.parent is None else bytes.fromhex(a.parent), a.index, a.depth,
        a.traceparent, a.chain, a.queue, a.transaction, a.binding,
    )  # fmt: skip


def _row(r: Sequence[Any]) -> Activation:
    return Activation(
        id=r[0].hex(), namespace=r[1], action=r[2], revision=r[3], category=Category(r[4]), state=State(r[5]),
        partition=r[6], params=r[7], attempt=r[8], attempts_left=r[9], interruptions=r[10], finishes=r[11],
        cancelled=bool(r[12]), created=r[13], due=r[14], started=r[15], ended=r[16], deadline=r[17], handle=r[18],
        status=None if r[19] is None else Status(r[19]), result=r[20],
        logs=tuple(orjson.loads(r[21])) if r[21] else (), usage=orjson.loads(r[22]) if r[22] else None,
        rule=r[23], cause_source=r[24], cause_id=r[25], parent=None if r[26] is None else r[26].hex(), index=r[27],
        depth=r[28], traceparent=r[29], chain=r[30], queue=r[31], transaction=r[32], binding=r[33],
        seq=r[34],
    )  # fmt: skip

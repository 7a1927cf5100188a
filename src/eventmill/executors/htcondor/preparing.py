"""From an attempt to what is submitted: the description bound and checked, the room made, the commands written.

Owns what is the same for all jobs of a pool (`Terms`), and what namespaces' descriptions may say; it changes neither
once it is used. Blocking; used in threads, for different jobs at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from eventmill.config import Pool
from eventmill.errors import InvalidInput
from eventmill.executors.base import Attempt, CodeSource
from eventmill.executors.htcondor import description, endings
from eventmill.executors.htcondor.accounts import Accounts
from eventmill.executors.htcondor.reporting import WRAPPER_FILE, Reporting, wrapped, wrapper_text
from eventmill.executors.htcondor.rooms import Job, Rooms


@dataclass(frozen=True, slots=True)
class Prepared:
    """An attempt that can be submitted: its room is made."""

    attempt: Attempt
    job: Job
    commands: dict[str, str]


class Preparer:
    """`roots`: where jobs' full paths may lie, besides their namespace's results. Raises InvalidConfig."""

    def __init__(
        self,
        code: CodeSource,
        rooms: Rooms,
        accounts: Accounts,
        pool: Pool,
        *,
        log: Path | None,
        roots: Sequence[str],
        results: Path,
        environment: Mapping[str, str],
        reporting: Reporting | None = None,
    ) -> None:
        self._code = code
        self._rooms = rooms
        self._accounts = accounts
        self._pool = pool
        self._roots = roots
        self._results = results
        self._reporting = reporting
        defaults, variables = description.read_defaults(pool.defaults)
        self._terms = description.Terms(
            log=log, keep_claim_idle_s=pool.keep_claim_idle_s, defaults=defaults,
            environment={**environment, **variables},
        )  # fmt: skip
        self._commands = {each: description.allowed_commands(pool.commands, each) for each in ("*", *pool.commands)}
        """What the descriptions of each namespace may say; `*`: of those that have no list of their own."""

    def is_of(self, server: str) -> None:
        """The number that the jobs of this server have."""
        self._terms = replace(self._terms, server=server)

    def prepare(self, attempts: Sequence[Attempt]) -> list[Prepared | Exception]:
        """Rooms and commands, or why there can be none."""
        outcomes: list[Prepared | Exception] = []
        found: dict[Any, description.Sources] = {}
        for attempt in attempts:
            try:
                outcomes.append(self._prepare(attempt, found))
            except Exception as e:  # whatever it is: the other attempts have no part in it
                outcomes.append(e)
        return outcomes

    def _prepare(self, attempt: Attempt, found: dict[Any, description.Sources]) -> Prepared:
        """`found`: where files lie that other jobs have named."""
        action = attempt.action
        if problem := self._accounts.refusal(attempt.namespace):
            raise InvalidInput(problem)
        digest = action.code or ""
        archive = self._rooms.archive(digest, self._code, self._allowed(attempt.namespace))
        parameters = orjson.loads(attempt.params)
        roots = [*self._roots, str(self._results / attempt.namespace)]  # results of its own may be named
        bound = archive.description.bind(parameters if isinstance(parameters, dict) else {}, roots=roots)
        archive.check_files(bound)
        job = Job(
            activation=attempt.activation, attempt=attempt.number, namespace=attempt.namespace, code=digest,
            description=bound, logs_bytes=action.limits.logs_mb << 20,
            on_hold=endings.read_policy(action.annotations.get("on_hold")),
        )  # fmt: skip
        files, code = (attempt.namespace, digest, bound.executable, bound.input, bound.inputs), self._rooms.code(digest)
        if files not in found:
            found[files] = description.sources(bound, code, roots)
        sources, order = found[files], None
        if self._reporting is not None:
            order = self._reporting.order(attempt.activation, attempt.number)
            program = self._rooms.program(WRAPPER_FILE, wrapper_text())
            bound, sources = wrapped(bound, sources, program=program, room=self._rooms.room(job))
        owner = self._accounts.owners.get(self._accounts.identity(job.namespace), "")
        room = self._rooms.furnish(job, attempt.params, order)
        sources = self._rooms.take_in(job, sources, self._results / attempt.namespace)
        self._rooms.hand_over(job, owner)
        facts = description.Facts(
            activation=attempt.activation, attempt=attempt.number, action=action.qualified,
            batch_name=attempt.chain or action.qualified, room=room, code=code, memory_mb=action.limits.memory_mb,
            limit_s=math.ceil(action.limits.timeout_ms / 1000) if action.limits.timeout_ms else None,
            traceparent=attempt.traceparent,
        )  # fmt: skip
        return Prepared(attempt, job, description.job_commands(bound, facts, self._terms, sources))

    def _allowed(self, namespace: str) -> frozenset[str]:
        return self._commands.get(namespace, self._commands["*"])

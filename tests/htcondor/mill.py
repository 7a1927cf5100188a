"""A real server on a real HTCondor pool, both of which tests may kill, and the judge.

The judge believes the witness outside, to which each job says which cluster.proc it is, and the schedd's queue and
history; what the store says is held against them.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from tests.htcondor.pool import CondorPool
from tests.htcondor.programs import CondorTrouble
from tests.server.mill import CONFIG, Mill

FLOW = Path(__file__).with_name("witness_flow.py")
AUDIT_S = 2

SERVER = """
import sys
from eventmill.engine import audit
from eventmill.executors.htcondor import queue
audit.EVERY_S, queue.AUDIT_S, queue.ROOMS_KEPT_S = {audit_s}, {look_s}, 5
from eventmill.cli import main
sys.argv[0] = "eventmill"
main()
"""
"""The server, with an audit that comes sooner than in life."""

POOL = """
[pools.condor]
kind = "htcondor"
condor_config = "{config}"
defaults = {{ environment = "PATH={path}" }}
keep_claim_idle_s = 2
{more}
"""
REMOVED, COMPLETED = 3, 4
ROOM_GONE = 13, 14
"""HoldReasonCode: no input files, no initial directory."""


class CondorMill(Mill):
    """`more`: lines of `[pools.condor]`; `limits`: of `[limits]`. `look_s`: so often events are taken for missed."""

    def __init__(
        self, directory: Path, condor: CondorPool, *, more: str = "", limits: str = "", look_s: float = 5
    ) -> None:
        self.condor = condor
        self.program = (sys.executable, "-c", SERVER.format(audit_s=AUDIT_S, look_s=look_s))
        # the jobs' Python is this one: any other would do, if it is 3.9 or newer
        path = f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"
        text = CONFIG.replace("[pools.local]\ncpus = 2\nmemory_mb = 1000\n", "")
        text += limits + POOL.format(config=condor.config, path=path, more=more)
        super().__init__(directory, text)

    def send(self, kind: str, data: Mapping[str, Any], id: str = "1") -> None:
        """Send an event `witness.<kind>`, until it is acknowledged."""
        event = {
            "specversion": "1.0", "id": id, "source": "//generator", "type": f"witness.{kind}",
            "data": {"witness": str(self.witness), **data},
        }  # fmt: skip
        headers = {"content-type": "application/cloudevents+json"}
        answer = self.client.post("/events", content=orjson.dumps(event), headers=headers)
        assert answer.status_code // 100 == 2, answer.text

    @property
    def number(self) -> str:
        """What the attribute EventmillServer of its jobs is."""
        return (self.data / "jobs/condor/server").read_text()

    def queued(self) -> list[dict[str, Any]]:
        """Ads of its jobs in the queue."""
        return self.condor.queue(f'EventmillServer == "{self.number}"')

    def job_of(self, action: str, seconds: float = 30) -> str:
        """cluster.proc of the one job of an action, when it is recorded."""
        found: list[tuple[str]] = []

        def look() -> bool:
            sql = f"SELECT handle FROM activations WHERE action LIKE '%/{action}' AND handle IS NOT NULL"
            found[:] = self.query(sql)
            return bool(found)

        self.until(look, seconds, f"a job of {action}")
        [(handle,)] = found
        return handle.rpartition("#")[2]

    def ended(self) -> int:
        """How many jobs of the map have ended, by the store."""
        [(count,)] = self.query("SELECT count(*) FROM activations WHERE action='default/offload/fit' AND state>=5")
        return int(count)

    def until_advanced(self, count: int) -> None:
        """So many jobs have ended, and more of them are recorded than have."""
        sql = "SELECT count(*) FROM activations WHERE action='default/offload/fit'"
        self.until(lambda: self.ended() >= count and self.query(sql) > [(count,)], 300, f"{count} jobs to end")

    def state(self) -> str:
        """Where it stands, for the message of a failure."""
        rows = self.query("SELECT action, state, count(*) FROM activations GROUP BY 1, 2")
        queue = Counter((ad["JobStatus"], ad.get("HoldReason")) for ad in self.queued())
        return f"(action, state, how many): {rows}; {self._letters()}; queue: {queue}\n{self.log.read_text()[-4000:]}"

    def until_done(self, seconds: float = 60) -> None:
        try:
            super().until_done(seconds)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.state()}") from None

    def until_none_is_queued(self, seconds: float = 60) -> None:
        """The audit has removed what was submitted in vain."""
        end = time.monotonic() + seconds
        while self.queued():
            assert time.monotonic() < end, f"jobs are left in the queue; {self.state()}"
            time.sleep(0.5)

    # the judge

    def judge_map(self, count: int) -> dict[str, int]:
        """Each element ran under one cluster.proc only, each result was taken once, nothing is missing, nothing is
        left. Returns what happened more often than once."""
        lines = [line.split() for line in self.witness.read_text().splitlines()]
        jobs: defaultdict[int, set[tuple[str, str]]] = defaultdict(set)
        for element, activation, id in lines:
            jobs[int(element)].add((activation, id))
        assert sorted(jobs) == list(range(count)), f"missing: {sorted(set(range(count)) - jobs.keys())[:10]}"
        twice = {element: ran for element, ran in jobs.items() if len(ran) > 1}
        assert not twice, f"elements that ran under several jobs: {twice}; {self.state()}"
        ran = {element: next(iter(jobs[element])) for element in range(count)}
        [(result,)] = self.query("SELECT result FROM activations WHERE action='default/offload/join'")
        assert orjson.loads(result) == {"joined": [[element, *ran[element]] for element in range(count)]}
        self._judge_records(dict(ran.values()))
        removed = self._judge_history({id for _, id in ran.values()})
        assert not self.queued()
        rooms = self.data / "jobs/condor/rooms"
        self.until(lambda: not list(rooms.iterdir()), 20, "rooms that are left over to be cleared")
        self._judge_completions()
        return {"elements": count, "jobs started again": len(lines) - count, "orphans removed": removed}

    def _judge_records(self, jobs: Mapping[str, str]) -> None:
        """One success of everything, each under the handle of the job that ran."""
        rows = self.query("SELECT id, action, state, finishes, handle FROM activations")
        wrong = [
            (id.hex(), action, state, finishes)
            for id, action, state, finishes, _ in rows
            if (state, finishes) != (5, 1)
        ]
        assert not wrong, f"not one success each: {wrong[:10]}; {self.state()}"
        handles = {id.hex(): handle for id, action, _, _, handle in rows if action == "default/offload/fit"}
        assert handles == {activation: f"condor:local#{id}" for activation, id in jobs.items()}
        assert len(rows) == len(jobs) + 4  # split, the map, join, and the chain
        assert not self.query("SELECT 1 FROM dead_letters"), self._letters()
        assert not self.query("SELECT 1 FROM attempts"), "something was tried more than once"

    def _judge_history(self, ran: set[str]) -> int:
        """Those that ran have ended by themselves; all others were removed without having been started. Returns how
        many. (A schedd that was killed may have forgotten an end: then it has held the job, which has no room any
        more.)"""
        orphans: set[str] = set()
        ended: set[str] = set()
        for ad in self.condor.history(f'EventmillServer == "{self.number}"'):
            # NumJobStarts of a job that has survived its schedd may be 0
            started = ad.get("NumShadowStarts", 0) > 0
            (ended if started else orphans).add(f"{ad['ClusterId']}.{ad['ProcId']}")
            assert ad["JobStatus"] == (COMPLETED if started else REMOVED) or ad.get("LastHoldReasonCode") in ROOM_GONE
        assert ended == ran
        assert not ended & orphans
        return len(orphans)


@contextmanager
def condor_mill(
    directory: Path, condor: CondorPool, *, more: str = "", limits: str = "", look_s: float = 5
) -> Iterator[CondorMill]:
    """A mill that is ended, however the test ends, and its jobs with it."""
    directory.mkdir(exist_ok=True)
    m = CondorMill(directory, condor, more=more, limits=limits, look_s=look_s)
    try:
        yield m
    finally:
        m.client.close()
        if m.process is not None and not m.died():
            m.kill()
        if (m.data / "jobs/condor/server").exists():
            with suppress(CondorTrouble):  # as a rule there are none
                condor.run("condor_rm", "-constraint", f'EventmillServer == "{m.number}"')

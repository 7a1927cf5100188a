"""A real server on a real broker, both of which tests may kill and freeze, and the judge.

The judge believes the witness outside, and what Kafka and the server have acknowledged; what the store and our own
topic say is held against them.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from tests.kafka.broker import Broker
from tests.kafka.feeder import Effect, Feeder
from tests.server.mill import CONFIG, Mill

FLOW = Path(__file__).with_name("witness_flow.py")

KAFKA = """
[backbone]
kind = "kafka"
brokers = "{brokers}"
topic = "{own}"
group = "{own}"
group_protocol = "{protocol}"
session_timeout_s = {session_timeout_s}
[[topics]]
name = "{billing}"
decoder = "dcache"
start = "earliest"
[[topics]]
name = "{runs}"
decoder = "cloudevents"
start = "earliest"
[[topics]]
name = "{lines}"
decoder = "json"
source = "//lab/lines"
map = {{ id = "nr", type = "kind", type_prefix = "org.lab." }}
start = "earliest"
"""

PARTITIONS = {"billing": 3, "runs": 2, "lines": 2, "own": 2}

TESTIFY = {
    "note": ("note",), "line": ("note",), "file": ("note",), "tally": ("tally",), "slow": (),
    "chain": ("look", "work", "register"),
}  # fmt: skip
"""Who testifies to a rule's effect."""
COMPLETED_BY = {"note": "echo", "line": "echo", "file": "echo", "chain": "closed"}
"""The rule that matches the completion of what a rule has started."""


class KafkaMill(Mill):
    """`topics`: names of the topics by their kind; `own` is the server's."""

    def __init__(
        self,
        directory: Path,
        broker: Broker,
        *,
        protocol: str = "classic",
        session_timeout_s: float = 3.0,
        beside: KafkaMill | None = None,
    ) -> None:
        """`beside`: another one, whose topics and store it shares: two servers on one database."""
        self.broker = broker
        self.session_timeout_s = session_timeout_s
        name = uuid.uuid4().hex[:8]
        self.topics: dict[str, str] = {kind: f"{kind}-{name}" for kind in PARTITIONS}
        if beside is not None:
            self.topics = beside.topics
        settings = {"brokers": broker.bootstrap, "protocol": protocol, "session_timeout_s": session_timeout_s}
        super().__init__(directory, CONFIG + KAFKA.format(**settings, **self.topics))
        if beside is not None:
            self.witness = beside.witness
            self.data.mkdir(mode=0o700)
            (self.data / "store.db").symlink_to(beside.data / "store.db")
            return
        for kind, partitions in PARTITIONS.items():
            broker.create_topic(self.topics[kind], partitions)

    def deploy(self, flow: Path = FLOW) -> None:
        os.environ["EVENTMILL_WITNESS"] = str(self.witness)
        super().deploy(flow)

    def freeze(self, *, workers: bool) -> list[int]:
        """Stop the server's process, with all that it has started or alone; what `thaw` wants."""
        assert self.process is not None
        pids = [self.process.pid, *(descendants(self.process.pid) if workers else [])]
        _signal(pids, signal.SIGSTOP)
        return pids

    def thaw(self, pids: list[int]) -> None:
        _signal(pids, signal.SIGCONT)

    def done(self) -> bool:
        """Everything that Kafka has is read, everything of ours is in Kafka, and all has ended."""
        assert not self.died(), f"the server has died\n{self.log.read_text()[-4000:]}"
        ((alive, left),) = self.query(
            "SELECT (SELECT count(*) FROM activations WHERE state<5),"
            ' (SELECT coalesce(max("offset"), 0) FROM log)'
            " - (SELECT position FROM partitions WHERE topic='events')"
        )
        return alive == 0 and left <= 0 and self.behind() == 0

    def behind(self) -> int:
        """Records that have not been dealt with, by the store's positions."""
        positions = {(topic, n): p for topic, n, p in self.query("SELECT topic, number, position FROM partitions")}
        ends = {(t, n): end for t in self.topics.values() for n, end in self.broker.end_offsets(t).items()}
        return sum(end - 1 - positions.get(place, -1) for place, end in ends.items())

    def until_done(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not (self.done() and self.done()):  # a completion may have been on its way between two looks
            assert time.monotonic() < end, f"not done after {seconds:g} s; {self.state()}"
            time.sleep(0.2)

    def state(self) -> str:
        """Where it stands, for the message of a failure."""
        alive = self.query("SELECT action, state, count(*) FROM activations WHERE state<5 GROUP BY 1, 2")
        log = self.log.read_text()[-4000:]
        return f"{self.behind()} records unread, alive (action, state, how many): {alive}; {self._letters()}\n{log}"

    # the judge

    def testimonies(self) -> Counter[tuple[str, str]]:
        """How often each action ran for each event, as the witness saw it."""
        lines = self.witness.read_text().splitlines() if self.witness.exists() else []
        return Counter((who, id) for who, id in (line.split() for line in lines))

    def judge_effects(self, acknowledged: set[Effect], sent: set[Effect]) -> dict[str, int]:
        """Every acknowledged record has its effect, exactly one success is recorded for each rule that matches it and
        for the completion of that, and no job ran twice. Returns what happened more often than once."""
        acknowledged = acknowledged | {(kind, f"{kind}-{n}") for kind, ns in self.acknowledged.items() for n in ns}
        seen, recorded = self.testimonies(), self._recorded_effects()
        missing = acknowledged - recorded
        assert not missing, f"{len(missing)} effects are not recorded: {_few(missing)}; {self._letters()}"
        strange = {effect for effect in recorded - sent if not effect[1].startswith(("note-", "chain-"))}
        assert not strange, f"effects of nothing: {_few(strange)}"
        for rule, id in recorded:
            completion = ["echo"] if rule in COMPLETED_BY else []
            for who in [*TESTIFY[rule], *completion]:
                assert seen[who, id], f"{who} never ran for {id}; {self._letters()}"
        jobs = {id: n for (who, id), n in seen.items() if who == "work" and n > 1}
        assert not jobs, f"jobs that ran twice: {jobs}"
        assert not self.query("SELECT 1 FROM dead_letters"), self._letters()
        again = sum(n - 1 for n in seen.values())
        return {
            "effects": len(recorded), "chains": sum(rule == "chain" for rule, _ in recorded),
            "functions run again": again, "jobs run again": 0, "events relayed again": self._judge_topic(),
        }  # fmt: skip

    def _recorded_effects(self) -> set[Effect]:
        """(rule, event) of what is recorded, each once and with success, and each completed by what it has to be."""
        rows = self.query("SELECT rule, cause_id, state, finishes, id FROM activations WHERE parent IS NULL")
        found: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for rule, cause, state, finishes, id in rows:
            name = rule.rpartition(".")[2]
            assert cause not in found[name], f"two activations of {name} for {cause}"
            assert (state, finishes) == (5, 1), f"{name} for {cause}: state {state}, finished {finishes} times"
            found[name][cause] = id.hex()
        for by in set(COMPLETED_BY.values()):
            starters = [rule for rule, other in COMPLETED_BY.items() if other == by]
            completions = {f"{id}-1" for rule in starters for id in found[rule].values()}
            assert completions == set(found[by]), f"{by}: {_few(completions ^ set(found[by]))}"
        return {(rule, id) for rule in TESTIFY for id in found[rule]}

    def _judge_topic(self) -> int:
        """Our own topic has one completion of each activation, perhaps repeated; returns how many are repetitions."""
        ids = Counter(orjson.loads(r.value() or b"")["id"] for r in self.broker.records(self.topics["own"]))
        completions = {f"{id.hex()}-1" for (id,) in self.query("SELECT id FROM activations")}
        assert completions <= set(ids), f"completions that are not in Kafka: {_few(completions - set(ids))}"
        return ids.total() - len(ids)


def descendants(pid: int) -> list[int]:
    """All processes that this one has started, and they."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children[int(stat.read_text().rpartition(")")[2].split()[1])].append(int(stat.parent.name))
    found = []
    left = [pid]
    while left:
        below = children[left.pop()]
        found += below
        left += below
    return found


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _few(values: set[object] | set[Effect] | set[str]) -> str:
    return str(sorted(values, key=str)[:10])


@contextmanager
def kafka_mill(
    directory: Path,
    broker: Broker,
    *,
    protocol: str = "classic",
    session_timeout_s: float = 3.0,
    beside: KafkaMill | None = None,
) -> Iterator[KafkaMill]:
    """A mill that is ended, however the test ends."""
    directory.mkdir(exist_ok=True)
    m = KafkaMill(directory, broker, protocol=protocol, session_timeout_s=session_timeout_s, beside=beside)
    try:
        yield m
    finally:
        m.client.close()
        if m.process is not None and not m.died():
            m.kill()


@contextmanager
def feeding(m: KafkaMill, seed: int, *, rate: float) -> Iterator[Feeder]:
    """A steady rate of records, until the block is left."""
    feeder = Feeder(m.broker.bootstrap, m.topics, seed, rate=rate)
    feeder.start()
    try:
        yield feeder
    finally:
        feeder.stop()

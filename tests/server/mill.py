"""A real server in a process of its own that tests may kill, a generator of events, and the judge.

The judge believes a witness outside (a file that functions and jobs sync) and the events that were acknowledged; what
the store says is held against them.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx

FLOW = Path(__file__).with_name("witness_flow.py")
EVENTMILL = str(Path(sys.executable).with_name("eventmill"))

CONFIG = """
[server]
port = 0
drain_timeout_s = 5
[functions]
workers_max = 4
[pools.local]
cpus = 2
memory_mb = 1000
[limits]
retry_first_s = 0.1
interruptions = 1000
"""


class Mill:
    """A server over `directory`; `start` and `kill` it as often as you like."""

    program: Sequence[str] = (EVENTMILL,)

    def __init__(self, directory: Path, config: str = CONFIG) -> None:
        self.data = directory / "data"
        self.witness = directory / "witness"
        self.log = directory / "server.log"
        self.config = directory / "eventmill.toml"
        self.config.write_text(config)
        self.acknowledged: dict[str, set[int]] = {"note": set(), "chain": set()}
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client()

    def start(self, kill_at: str = "", wait: bool = True) -> None:
        (self.data / "address").unlink(missing_ok=True)
        environment = {**os.environ, "EVENTMILL_KILL_AT": kill_at}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, "serve", "--config", str(self.config), "--data-dir", str(self.data)],
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip
        if wait:
            self.until(lambda: self.died() or (self.data / "address").exists(), 30, "the server to be ready")
            if not self.died():
                self.connect()

    def connect(self) -> None:
        uuid, secret = (self.data / "key").read_text().strip().split(":")
        address = (self.data / "address").read_text().strip()
        self.client.close()
        self.client = httpx.Client(base_url=address, auth=(uuid, secret), timeout=10)

    def died(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """End it as an operator would; returns its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def deploy(self, flow: Path = FLOW) -> None:
        command = [EVENTMILL, "deploy", str(flow), "--data-dir", str(self.data)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def post(self, kind: str, numbers: Sequence[int]) -> bool:
        """Send events `witness.<kind>`; True, and noted, when the server has acknowledged them."""
        events = [
            {
                "specversion": "1.0", "id": f"{kind}-{n}", "source": "//generator", "type": f"witness.{kind}",
                "data": {"n": n, "witness": str(self.witness)},
            }
            for n in numbers
        ]  # fmt: skip
        try:
            headers = {"content-type": "application/cloudevents-batch+json"}
            answer = self.client.post("/events", content=json.dumps(events), headers=headers)
        except httpx.TransportError:
            return False
        if answer.status_code // 100 == 2:
            self.acknowledged[kind].update(numbers)
            return True
        return False

    def until(self, condition: Any, seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds} s for {what}\n{self.log.read_text()[-4000:]}")
            time.sleep(0.01)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self.data}/store.db?mode=ro", uri=True)) as database:
            return database.execute(sql).fetchall()

    def done(self) -> bool:
        """Everything that was read from the log has ended."""
        if self.died():
            raise AssertionError(f"the server has died\n{self.log.read_text()[-4000:]}")
        ((alive, left),) = self.query(
            "SELECT (SELECT count(*) FROM activations WHERE state<5),"
            ' (SELECT coalesce(max("offset"), 0) FROM log) - (SELECT position FROM partitions)'
        )
        return bool(alive == 0 and left == 0)

    def until_done(self, seconds: float = 60) -> None:
        self.until(self.done, seconds, "everything to end")

    # the judge

    def testimony(self) -> dict[str, Counter[int]]:
        """How often each action ran for each number, as the witness saw it."""
        seen: dict[str, Counter[int]] = {who: Counter() for who in ("note", "look", "work", "register")}
        if self.witness.exists():
            for line in self.witness.read_text().splitlines():
                who, number, _ = line.split()
                seen[who][int(number)] += 1
        return seen

    def judge(self) -> None:
        """Every acknowledged event has its effect, exactly one success is recorded for it, and no job ran twice."""
        seen = self.testimony()
        for kind, actions in (("note", ["note"]), ("chain", ["look", "work", "register"])):
            for who in actions:
                missing = self.acknowledged[kind] - set(seen[who])
                assert not missing, f"{who} never ran for {len(missing)} events: {_few(missing)}; {self._letters()}"
        twice = {n: count for n, count in seen["work"].items() if count > 1}
        assert not twice, f"jobs that ran twice: {twice}"
        for kind, rows in self._recorded().items():
            wrong = dict.fromkeys(self._sent(kind), (5, 1)).items() ^ rows.items()
            assert not wrong, f"{kind}: not one success each: {_few(wrong)}; {self._letters()}"
        self._judge_completions()

    def _letters(self) -> str:
        return f"dead letters: {self.query('SELECT kind, reason, count(*) FROM dead_letters GROUP BY 1, 2 LIMIT 5')}"

    def _sent(self, kind: str) -> set[str]:
        """Ids of the events that are in the log, acknowledged or not (an answer can be lost in a kill)."""
        ids = {json.loads(value)["id"] for (value,) in self.query("SELECT value FROM log")}
        sent = {id for id in ids if id.startswith(f"{kind}-")}
        assert {f"{kind}-{n}" for n in self.acknowledged[kind]} <= sent
        return sent

    def _recorded(self) -> dict[str, dict[str, tuple[int, int]]]:
        """(state, finishes) of the activation of each event."""
        recorded: dict[str, dict[str, tuple[int, int]]] = {"note": {}, "chain": {}}
        for cause, state, finishes in self.query(
            "SELECT cause_id, state, finishes FROM activations WHERE cause_source='//generator' AND parent IS NULL"
        ):
            kind = cause.split("-")[0]
            assert cause not in recorded[kind], f"two activations for {cause}"
            recorded[kind][cause] = (state, finishes)
        return recorded

    def _judge_completions(self) -> None:
        """One completion event for each activation; none for a conductor's calls of itself."""
        events = Counter(
            event["data"]["activationId"]
            for (value,) in self.query("SELECT value FROM log")
            if (event := json.loads(value))["type"] == "org.eventmill.activation.succeeded"
        )
        ids = {
            row[0].hex()
            for row in self.query(
                "SELECT a.id FROM activations a LEFT JOIN activations p ON p.id = a.parent"
                " WHERE p.id IS NULL OR p.category <> 'conductor' OR p.action <> a.action"
            )
        }
        assert events == Counter(dict.fromkeys(ids, 1))


def _few(values: Iterable[Any]) -> str:
    return str(sorted(values, key=str)[:10])


@contextmanager
def mill(directory: Path, config: str = CONFIG) -> Iterator[Mill]:
    """A mill that is ended, however the test ends."""
    m = Mill(directory, config)
    try:
        yield m
    finally:
        m.client.close()
        if m.process is not None and m.process.poll() is None:
            m.kill()

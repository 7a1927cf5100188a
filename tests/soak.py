"""`./dev soak --seed N --minutes M`: a server under load is killed at random moments, over and over; the judge is the
witness outside (tests/server/mill.py). Prints what happened; exit 1 if anything was lost or doubled.

With `--kafka`: a server and a real broker, killed and frozen under a steady rate of records (tests/kafka/mill.py).
With `--condor`: a map of jobs on a real HTCondor pool, while server and schedd are killed (tests/htcondor/mill.py).
With `--model`: the randomised model of the engine (tests/engine/model.py), seed after seed from N."""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from eventmill.points import CONDOR_POINTS
from tests.engine import model
from tests.htcondor.mill import FLOW as CONDOR_FLOW
from tests.htcondor.mill import CondorMill, condor_mill
from tests.htcondor.pool import CondorPool
from tests.kafka.broker import Broker
from tests.kafka.mill import KafkaMill, feeding, kafka_mill
from tests.server.mill import Mill, mill


def soak(m: Mill, seed: int, *, kills: int, seconds: float = 1e9, talk: bool = False) -> dict[str, int]:
    """Load and kill until there were so many kills, or the time is up; then let everything end, and judge."""
    rng = random.Random(seed)
    m.start()
    m.deploy()
    sent = {"note": 0, "chain": 0}
    end = time.monotonic() + seconds
    killed = 0
    while killed < kills and time.monotonic() < end:
        strike = time.monotonic() + rng.uniform(0.05, 2.0)
        while time.monotonic() < strike:
            kind, count = ("chain", 1) if rng.random() < 0.15 else ("note", rng.randrange(1, 30))
            numbers = range(sent[kind], sent[kind] + count)
            if not m.post(kind, numbers) and rng.random() < 0.5:
                m.post(kind, numbers)  # the same ids again, as a producer that got no answer does
            sent[kind] += count
            time.sleep(rng.uniform(0, 0.05))
        m.kill()
        killed += 1
        m.start()
        if talk and killed % 10 == 0:
            print(f"{killed} kills, {sent['note']} notes, {sent['chain']} chains sent", flush=True)
    m.until_done(600)
    m.stop()
    m.judge()
    seen = m.testimony()
    return {
        "kills": killed,
        "notes acknowledged": len(m.acknowledged["note"]),
        "chains acknowledged": len(m.acknowledged["chain"]),
        "functions run again": sum(seen[w].total() - len(seen[w]) for w in ("note", "look", "register")),
        "jobs run again": seen["work"].total() - len(seen["work"]),
    }


def soak_kafka(m: KafkaMill, seed: int, *, seconds: float, rate: float = 80, talk: bool = False) -> dict[str, int]:
    """A steady rate of records while the server and the broker are killed and frozen, until the time is up; then let
    everything end, and judge."""
    rng = random.Random(seed)
    faults: Counter[str] = Counter(dict.fromkeys(FAULTS, 0))
    posts = itertools.count()
    m.start()
    m.deploy()
    end = time.monotonic() + seconds
    first = sorted(FAULTS, key=lambda fault: FAULTS[fault][0])  # each once, the commonest at once, then as it comes
    with feeding(m, seed, rate=rate) as feeder:
        while time.monotonic() < end:
            # mostly long enough for the group to have shared its partitions
            strike = time.monotonic() + (rng.uniform(0.1, 2) if rng.random() < 0.4 else rng.uniform(3, 8))
            while time.monotonic() < strike:
                m.post("note" if rng.random() < 0.9 else "chain", [next(posts)])
                time.sleep(rng.uniform(0, 0.5))
            assert not m.died(), f"the server has ended by itself; {m.state()}"
            fault = first.pop() if first else rng.choices(list(FAULTS), [weight for weight, _ in FAULTS.values()])[0]
            faults[fault] += 1
            if talk:
                print(f"{feeder.records} records, {fault}", flush=True)
            FAULTS[fault][1](m, rng)
    m.until_done(600)
    assert m.stop() == 0
    effects = m.judge_effects(feeder.acknowledged, feeder.sent)
    return {**faults, "records acknowledged": feeder.records, **effects}


def _kill_server(m: KafkaMill, rng: random.Random) -> None:
    m.kill()
    time.sleep(rng.uniform(0, 1))
    m.start()


def _kill_broker(m: KafkaMill, rng: random.Random) -> None:
    m.broker.kill()
    time.sleep(rng.uniform(0, 2))
    m.broker.start()


def _kill_both(m: KafkaMill, rng: random.Random) -> None:
    m.broker.kill()
    _kill_server(m, rng)
    time.sleep(rng.uniform(0, 2))
    m.broker.start()


def _freeze_server(m: KafkaMill, rng: random.Random) -> None:
    """For longer than its session, with or without what it has started."""
    frozen = m.freeze(workers=rng.random() < 0.5)
    time.sleep(m.session_timeout_s + rng.uniform(0.5, 2))
    m.thaw(frozen)


def _end_server(m: KafkaMill, rng: random.Random) -> None:
    assert m.stop() == 0, m.state()
    m.start()


FAULTS: dict[str, tuple[int, Callable[[KafkaMill, random.Random], None]]] = {
    "server killed": (5, _kill_server),
    "broker killed": (2, _kill_broker),
    "both killed": (1, _kill_both),
    "server frozen": (2, _freeze_server),
    "server ended": (1, _end_server),
}
"""What happens how often."""


def soak_condor(
    m: CondorMill, seed: int, *, elements: int, kills: int, schedd_kills: int, job_s: float = 0.5, talk: bool = False
) -> dict[str, int]:
    """Function → map of jobs → function, while the server is killed so often, at named points and some milliseconds
    after the jobs' submit has begun, and the schedd, too; then let it end, and judge."""
    rng = random.Random(seed)
    points = itertools.chain(["submitted"], iter(lambda: rng.choice(CONDOR_KILLED_AT), ""))
    lives = [None if n % 2 == 0 else next(points) for n in range(kills)]
    struck = set(rng.sample([n for n, point in enumerate(lives) if point is None], schedd_kills))
    m.start()
    m.deploy(CONDOR_FLOW)
    m.send("map", {"n": elements, "seconds": job_s})
    for number, point in enumerate(lives):
        if number in struck:
            time.sleep(rng.uniform(0, 0.3))
            m.condor.kill_schedd()
        if point is None:
            m.until_advanced(elements * number // (kills + 1))
            time.sleep(rng.uniform(0, 0.1))
            m.kill()
        else:
            m.until(m.died, 120, f"death at {point}")
        if talk:
            schedd = " (and the schedd before)" if number in struck else ""
            print(f"{m.ended()} of {elements} jobs have ended, killed at {point or 'random'}{schedd}", flush=True)
        m.start(kill_at=(lives[number + 1 :] or [None])[0] or "")
    m.until_done(60 + elements)
    m.until_none_is_queued()
    judged = m.judge_map(elements)
    assert m.stop() == 0, m.state()
    return {"server killed": kills, "schedd killed": schedd_kills, **judged}


CONDOR_KILLED_AT = (*CONDOR_POINTS, "accepted", "released", "reported", "ended")


def soak_model(seed: int, *, seconds: float) -> list[int]:
    """Play the model with seed after seed, without power cuts and with, until the time is up; those that failed."""
    logging.getLogger("eventmill").propagate = False  # the model listens
    begun, first, failed = time.monotonic(), seed, []
    while time.monotonic() < begun + seconds:
        for power in (False, True):
            with tempfile.TemporaryDirectory(prefix="eventmill-model-") as directory:
                played = model.run(seed, Path(directory), power=power)
            if played.failures:
                failed.append(seed)
                kind = "power" if power else "kills"
                trace = Path(tempfile.gettempdir()) / f"eventmill-model-{seed}-{kind}.txt"
                trace.write_text("\n".join([f"{played.limits}", *played.trace]))
                print(f"FAILED with seed {seed} ({trace}): {played.failures[0]}", flush=True)
        seed += 1
        if (seed - first) % 25 == 0:
            print(f"{seed - first} seeds, {len(failed)} failures", flush=True)
    print(f"seeds {first} to {seed - 1}: {len(failed)} failures")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--kills", type=int, default=1_000_000)
    parser.add_argument("--kafka", action="store_true", help="a server and a broker")
    parser.add_argument("--protocol", choices=["classic", "consumer"], default="classic", help="of the Kafka group")
    parser.add_argument("--condor", action="store_true", help="a map of jobs on an HTCondor pool")
    parser.add_argument("--elements", type=int, default=1000, help="of the map")
    parser.add_argument("--suite", default="trixie", help="whose HTCondor: Debian's trixie or sid")
    parser.add_argument("--model", action="store_true", help="the engine's randomised model, seed after seed")
    options = parser.parse_args()
    seconds = 60 * options.minutes
    if options.model:
        return 1 if soak_model(options.seed, seconds=seconds) else 0
    directory = Path(tempfile.mkdtemp(prefix="eventmill-soak-"))
    with ExitStack() as stack:
        try:
            if options.kafka:
                broker = stack.enter_context(Broker(directory / "kafka"))
                k = stack.enter_context(kafka_mill(directory, broker, protocol=options.protocol))
                outcome = soak_kafka(k, options.seed, seconds=seconds, talk=True)
            elif options.condor:
                pool = stack.enter_context(CondorPool(directory / "condor", suite=options.suite))
                c = stack.enter_context(
                    condor_mill(directory / "mill", pool, limits=f"jobs_in_queue = {options.elements // 8}\n")
                )
                outcome = soak_condor(
                    c, options.seed, elements=options.elements, kills=10, schedd_kills=3, talk=True
                )  # fmt: skip
            else:
                m = stack.enter_context(mill(directory))
                outcome = soak(m, options.seed, kills=options.kills, seconds=seconds, talk=True)
        except AssertionError as e:
            print(f"FAILED with seed {options.seed} (all is left in {directory}): {e}")
            return 1
    shutil.rmtree(directory)
    print(f"seed {options.seed}: " + ", ".join(f"{value} {name}" for name, value in outcome.items()))
    print("nothing lost, nothing doubled")
    return 0


if __name__ == "__main__":
    sys.exit(main())

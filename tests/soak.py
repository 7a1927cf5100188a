"""`./dev soak --seed N --minutes M`: a server under load is killed at random moments, over and over; the judge is the
witness outside (tests/server/mill.py). Prints what happened; exit 1 if anything was lost or doubled."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

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


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--kills", type=int, default=1_000_000)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="eventmill-soak-"))
    with mill(directory) as m:
        try:
            outcome = soak(m, options.seed, kills=options.kills, seconds=60 * options.minutes, talk=True)
        except AssertionError as e:
            print(f"FAILED with seed {options.seed} (all is left in {directory}): {e}")
            return 1
    shutil.rmtree(directory)
    print(f"seed {options.seed}: " + ", ".join(f"{value} {name}" for name, value in outcome.items()))
    print("nothing lost, nothing doubled")
    return 0


if __name__ == "__main__":
    sys.exit(main())

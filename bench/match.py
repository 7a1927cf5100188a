"""match: how many records a second one core decodes and matches against very many rules.

600-byte records shaped like dCache's billing messages, as JSON, each in a random directory; rules of the mix below,
five to a directory. Floor: `orjson.loads` alone, in the same rounds. `naive`: every rule's compiled test, one after
the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import Any

import orjson

from eventmill.rules import Index, parse
from eventmill.rules.compiled import compile_alternative

Result = dict[str, Any]

SEED = 7
ROUNDS = 7
RECORDS = 20_000
WARM_UP = 60_000
NAIVE_RECORDS = 30
SIZES = (10, 1_000, 10_000, 100_000)
ENDINGS = (".h5", ".nxs", ".tif", ".cbf", ".dat", ".log", ".root", ".edf")
POOLS = 200
GROUPS = 50


def run() -> Iterator[Result]:
    """All cases, one result each, then what follows from them."""
    rates: dict[int, float] = {}
    for size in SIZES:
        rng = random.Random(SEED)
        directories = [_directory(rng, i) for i in range(max(1, size // 5))]
        index: Index[int] = Index()
        patterns = [parse(_rule(rng, directories[i // 5])) for i in range(size)]
        for i, pattern in enumerate(patterns):
            index.add(i, pattern)
        for raw in _records(rng, directories, WARM_UP):
            index.match(orjson.loads(raw))
        records = _records(rng, directories, RECORDS)
        floor, rates[size] = _interleaved(records, lambda event, match=index.match: match(event))  # type: ignore[misc]
        yield _result(f"{size} rules", rates[size], "events/s", floor, rates[size] / floor)
        if size == 10_000:
            tests = [compile_alternative(alternative) for p in patterns for alternative in p.alternatives]
            _, naive = _interleaved(records[:NAIVE_RECORDS], lambda event: [t for t in tests if t(event)])  # noqa: B023
            yield _result("naive, 10000 rules", naive, "events/s", floor, naive / floor)
            yield _result("index over naive, 10000 rules", rates[size] / naive, "times", 500.0, None)
    yield _result("cost of 100000 rules over 10", rates[SIZES[0]] / rates[SIZES[-1]], "times", None, None)


def _result(case: str, value: float, unit: str, floor: float | None, ratio: float | None) -> Result:
    return {"bench": "match", "case": case, "value": value, "unit": unit, "floor": floor, "ratio": ratio}


def _interleaved(records: list[bytes], match: Callable[[Any], object]) -> tuple[float, float]:
    """Medians of the rates of decoding alone and of decoding and matching, in turn."""
    floors, rates = [], []
    for _ in range(ROUNDS):
        start = perf_counter()
        for raw in records:
            orjson.loads(raw)
        middle = perf_counter()
        for raw in records:
            match(orjson.loads(raw))
        end = perf_counter()
        floors.append(len(records) / (middle - start))
        rates.append(len(records) / (end - middle))
    return median(floors), median(rates)


def _directory(rng: random.Random, number: int) -> str:
    area, year = rng.choice(("exfel", "petra3", "flash", "belle2")), rng.randint(2019, 2026)
    return f"/pnfs/desy.de/{area}/p{rng.randint(1, 14):02}/{year}/data/{11_000_000 + number}/raw/r{number % 997:04}"


def _rule(rng: random.Random, directory: str) -> Any:
    """40 % glob in a directory, 25 % prefix, 10 % one path, 10 % glob with an early star, 10 % prefix, size and
    direction, 5 % four exact fields; all with the type of the message."""
    kind, ending = rng.random(), rng.choice(ENDINGS)
    pattern: dict[str, Any] = {"msgType": ["transfer"]}
    if kind < 0.40:
        pattern["billingPath"] = [{"glob": f"{directory}/*{ending}"}]
    elif kind < 0.65:
        pattern["billingPath"] = [{"prefix": f"{directory}/s{rng.randint(0, 9)}"}]
    elif kind < 0.75:
        pattern["billingPath"] = [_path(rng, directory)]
    elif kind < 0.85:
        _, _, _, area, *_, run, _, number = directory.split("/")
        pattern["billingPath"] = [{"glob": f"/pnfs/*/{area}/**/{run}/raw/{number}/*{ending}"}]
    elif kind < 0.95:
        pattern["billingPath"] = [{"prefix": f"{directory}/"}]
        pattern["fileSize"] = [{"numeric": [">=", rng.randint(1, 4) * 1_000_000_000]}]
        pattern["isWrite"] = ["write"]
    else:
        pattern["cellName"] = [f"dcache-pool-{rng.randrange(POOLS):03}"]
        pattern["storageInfo"] = [f"group{rng.randrange(GROUPS):02}:default@osm"]
        pattern["isWrite"] = [rng.choice(("write", "read"))]
        pattern["isP2p"] = [False]
    return pattern


def _path(rng: random.Random, directory: str) -> str:
    return f"{directory}/s{rng.randint(0, 9)}_{rng.randrange(100_000):05}{rng.choice(ENDINGS)}"


def _records(rng: random.Random, directories: list[str], count: int) -> list[bytes]:
    return [orjson.dumps(_record(rng, rng.choice(directories))) for _ in range(count)]


def _record(rng: random.Random, directory: str) -> dict[str, Any]:
    """A record of a mover that has ended, about 600 bytes."""
    pool, size = f"dcache-pool-{rng.randrange(POOLS):03}", rng.randrange(5_000_000_000)
    return {
        "version": "1.0",
        "msgType": "transfer",
        "date": "2026-09-20T10:08:11.063+02:00",
        "queuingTime": 0,
        "cellName": pool,
        "cellType": "pool",
        "cellDomain": f"{pool}-Domain",
        "status": {"code": 0, "msg": ""},
        "session": f"pool:{pool}:{rng.randrange(10**13)}-{rng.randrange(10_000)}",
        "pnfsid": f"0000{rng.getrandbits(128):032X}",
        "billingPath": _path(rng, directory),
        "fileSize": size,
        "storageInfo": f"group{rng.randrange(GROUPS):02}:default@osm",
        "transferSize": size,
        "transferTime": rng.randrange(10_000),
        "isWrite": rng.choice(("write", "read")),
        "protocolInfo": {"protocol": "Http", "versionMajor": 1, "versionMinor": 1, "host": "131.169.3.4", "port": 0},
        "initiator": f"door:webdav@dcache-door:{rng.randrange(10**9)}",
        "isP2p": False,
        "meanWriteBandwidth": rng.random() * 1e9,
    }


if __name__ == "__main__":
    for result in run():
        print(orjson.dumps(result).decode(), flush=True)

"""match: how many records a second one core decodes and matches against very many rules.

600-byte records shaped like dCache's billing messages, as JSON, each in a random directory; rules of the mix below,
five to a directory. Floor: `orjson.loads` alone, in the same rounds, interleaved; medians. Before measuring, most
directories have been met once, as in a server that has been up for a while: a rule is compiled when it is first looked
at, and the first event in a directory costs some 50 µs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from statistics import median
from time import process_time
from typing import Any

import orjson

from bench.result import Result, result
from eventmill.rules import Index, Pattern, parse
from eventmill.rules.compiled import compile_alternative
from eventmill.rules.matching import AlternativeMatcher

SEED = 7
ROUNDS = 3
RECORDS = 20_000
SLICE = 1_000
WARM_UP = 60_000
NAIVE_RECORDS = 10
CASES = {10: "10 rules", 1_000: "1k rules", 10_000: "10k rules", 100_000: "100k rules"}
SIZES = tuple(CASES)
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
        floor, rates[size] = _interleaved(records, index.match)
        yield result("match", CASES[size], rates[size], "events/s", floor)
        if size == 10_000:
            yield from _naive(patterns, records[:NAIVE_RECORDS], floor, rates[size])
    yield result("match", "100k rules cost, against 10", rates[SIZES[0]] / rates[SIZES[-1]], "times")


def _naive(patterns: list[Pattern], records: list[bytes], floor: float, indexed: float) -> Iterator[Result]:
    """The same without an index: each rule in turn, by the general matcher and by the index's own compiled checks."""
    alternatives = [alternative for pattern in patterns for alternative in pattern.alternatives]
    matchers = [AlternativeMatcher(alternative) for alternative in alternatives]
    checks = [compile_alternative(alternative, None) for alternative in alternatives]
    _, plain = _interleaved(records, lambda event: [matcher for matcher in matchers if matcher(event)])
    _, compiled = _interleaved(records, lambda event: [check for check in checks if check[0](event, check)])
    yield result("match", "naive 10k", plain, "events/s", floor)
    yield result("match", "naive 10k, compiled checks", compiled, "events/s", floor)
    yield result("match", "10k rules, against naive", indexed / plain, "times")
    yield result("match", "10k rules, against naive with compiled checks", indexed / compiled, "times")


def _interleaved(records: list[bytes], match: Callable[[Any], object]) -> tuple[float, float]:
    """Medians of the rates of decoding alone and of decoding and matching, in turn, slice by slice.

    Processor time: on a busy machine the others' work does not count.
    """
    floors, rates = [], []
    for _ in range(ROUNDS):
        for i in range(0, len(records), SLICE):
            part = records[i : i + SLICE]
            start = process_time()
            for raw in part:
                orjson.loads(raw)
            middle = process_time()
            for raw in part:
                match(orjson.loads(raw))
            end = process_time()
            floors.append(len(part) / (middle - start))
            rates.append(len(part) / (end - middle))
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
        "initiator": f"door:webdav@dcache-door:{rng.randrange(10**9)}",
        "isP2p": False,
        "meanWriteBandwidth": rng.randrange(10**9),
    }

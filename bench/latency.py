"""latency: from the moment at which ingress has answered 2xx to the first line of the function, 100 events a second,
open loop, against a server in a process of its own. The function returns the time at which its first line ran.

Floor: two durable commits of one such row and one warm round trip to a worker, one after the other, in the same rounds.
A negative latency (the function was quicker than the answer) counts as it is.
"""

from __future__ import annotations

import base64
import http.client
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import orjson

from bench.result import Result, percentile, record, result, scratch, server
from bench.worker import raw_round_trips, raw_workers

RATE = 100
SECONDS = 8
SOURCE = "import time\n\ndef main(args):\n    return {'ns': time.time_ns()}\n"


def run() -> Iterator[Result]:
    with scratch() as directory, server(directory) as (url, key, _):
        deploy(url, key)
        floors = _floors(directory)
        latencies = _measure(directory, url, key)
    for case, share in (("p50", 0.5), ("p99", 0.99)):
        yield result("latency", case, percentile(latencies, share), "ms", percentile(floors, share))


def deploy(url: str, key: str) -> None:
    uuid, secret = key.split(":")
    with httpx.Client(base_url=f"{url}/api/v1/namespaces/_", auth=(uuid, secret)) as client:
        pattern = {"key": "pattern", "value": {"type": ["org.dcache.file.written"]}}
        for path, body in (
            ("actions/first", {"exec": {"kind": "python:3.11", "code": SOURCE}}),
            ("triggers/t", {"annotations": [pattern]}),
            ("rules/r", {"trigger": "/_/t", "action": "/_/first"}),
        ):
            client.put(path, json=body).raise_for_status()


def _measure(directory: Path, url: str, key: str) -> list[float]:
    """Milliseconds for each event after the first second, which warms the workers up."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    headers = {
        "Content-Type": "application/cloudevents+json",
        "Authorization": "Basic " + base64.b64encode(key.encode()).decode(),
    }
    answered: dict[str, int] = {}
    begin = time.monotonic()
    for n in range(RATE * SECONDS):
        time.sleep(max(0.0, begin + n / RATE - time.monotonic()))
        event = record(n)
        connection.request("POST", "/events", orjson.dumps(event), headers)
        answer = connection.getresponse()
        answered[event["id"]] = time.time_ns()
        answer.read()
    connection.close()
    time.sleep(0.5)
    ran = first_lines(directory, "$.id")
    return [(ran[id] - at) / 1e6 for id, at in list(answered.items())[RATE:]]


def first_lines(directory: Path, key: str) -> dict[str, int]:
    """When each function's first line ran (ns), by the attribute of its event to which this JSON path leads."""
    db = sqlite3.connect(f"file:{directory}/store.db?mode=ro", uri=True)
    query = "SELECT json_extract(CAST(params AS TEXT), ?), result FROM activations WHERE category='function'"
    rows = db.execute(query, (key,)).fetchall()
    db.close()
    return {id: orjson.loads(raw)["ns"] for id, raw in rows}


def _floors(directory: Path) -> list[float]:
    db = sqlite3.connect(directory / "floor.db", isolation_level=None)
    for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE log (value BLOB)"):
        db.execute(statement)
    times: list[float] = []
    row = orjson.dumps(record(0))
    with raw_workers(1) as worker:
        for n in range(RATE * SECONDS // 2):
            begin = time.perf_counter()
            db.execute("INSERT INTO log VALUES (?)", (row,))
            db.execute("INSERT INTO log VALUES (?)", (row,))
            raw_round_trips(worker, 1, row)
            if n >= RATE // 2:
                times.append(1000 * (time.perf_counter() - begin))
            time.sleep(1 / RATE)
    db.close()
    return times

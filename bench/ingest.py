"""ingest: events a second that `POST /events` takes in, durably, in batches of 100, over 4 connections.

Floor: the same bytes into a raw SQLite table, 100 a commit, WAL and synchronous=FULL, in this process.
"""

from __future__ import annotations

import base64
import http.client
import json
import sqlite3
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from bench.result import Result, record, result, scratch, server

BATCH = 100
BATCHES = 100
CONNECTIONS = 4
ROUNDS = 5


def run() -> Iterator[Result]:
    rates: list[float] = []
    floors: list[float] = []
    with scratch() as directory, server(directory) as (url, key, _):
        for round in range(ROUNDS):
            bodies = [[record(((round * BATCHES + b) * BATCH) + i) for i in range(BATCH)] for b in range(BATCHES)]
            texts = [json.dumps(body, separators=(",", ":")).encode() for body in bodies]
            floors.append(_floor(directory / f"floor{round}.db", bodies))
            rates.append(_post(url, key, texts))
    yield result("ingest", "100 a batch", statistics.median(rates), "events/s", statistics.median(floors))


def _floor(path: Path, bodies: list[list[dict[str, object]]]) -> float:
    rows = [[(1, json.dumps(event).encode()) for event in body] for body in bodies]
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE log (offset INTEGER PRIMARY KEY, time INTEGER, value BLOB)")
    begin = time.perf_counter()
    for batch in rows:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO log (time, value) VALUES (?, ?)", batch)
        db.execute("COMMIT")
    took = time.perf_counter() - begin
    db.close()
    return len(rows) * BATCH / took


def _post(url: str, key: str, bodies: list[bytes]) -> float:
    headers = {
        "Content-Type": "application/cloudevents-batch+json",
        "Authorization": "Basic " + base64.b64encode(key.encode()).decode(),
    }

    def send(mine: list[bytes]) -> None:
        where = urlsplit(url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port)
        for body in mine:
            connection.request("POST", "/events", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status // 100 != 2:
                raise RuntimeError(f"the server answered {answer.status}")
        connection.close()

    threads = [threading.Thread(target=send, args=(bodies[i::CONNECTIONS],)) for i in range(CONNECTIONS)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(bodies) * BATCH / (time.perf_counter() - begin)

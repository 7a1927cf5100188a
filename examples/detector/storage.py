"""dCache's part in the demo on Kafka: every file that the detector closes is told of, as a pool and a door do.

The records are those that `eventmill generate dcache` makes, with the time and the size of the real file.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from confluent_kafka.admin import AdminClient, NewTopic

from eventmill.backbone.kafka import client
from eventmill.backbone.kafka.by_hand import Sender
from eventmill.cli import dcache_records as records
from eventmill.config import Settings

USER = records.User("detector", 20_000, "exfel", "192.0.2.7")
DOOR = records.Cell("NFS-door1", "nfsDomain", "door", protocol="NFS4", version=(4, 1))
POOL = records.Cell("dcache-pool-01", "dcache-pool-01Domain", "pool")


class Storage:
    """`directory`: what dCache calls the directory of the files. Topics that are missing are made."""

    def __init__(self, settings: Settings, directory: str) -> None:
        self.topic = next(row.name for row in settings.topics if row.decoder == "dcache" and row.name)
        self.brokers = settings.backbone.brokers
        self.partitions = _made(settings, (self.topic, settings.backbone.topic))
        self._sender = Sender(settings.backbone, self.topic)
        self._directory = directory
        self._number = 0
        self._send(records.warning(POOL, time.time_ns() // 1_000_000, "the first record takes longest: not a file's"))

    def tell(self, path: Path) -> float:
        """Returns when Kafka has acknowledged the records: the time at which they were sent, in seconds since 1970."""
        self._number += 1
        now = time.time()
        self._send(*self._records(path, int(now * 1000)))
        return now

    def _send(self, *told: records.Record) -> None:
        self._sender.send([(None, json.dumps(record).encode()) for record in told])
        self._sender.finish()

    def _records(self, path: Path, ms: int) -> Iterable[records.Record]:
        pnfsid = f"0000{uuid.uuid4().hex.upper()}"
        file = records.File(f"{self._directory}/{path.name}", pnfsid, path.stat().st_size, "exfel:raw@osm")
        visit = records.Visit(USER, DOOR, f"door:{DOOR.address}:{pnfsid}:{ms}", file, file.path)
        moved = records.transfer(visit, POOL, ms, write=True, number=self._number, duration_ms=20)
        return moved, records.request(visit, ms, duration_ms=25, mover=moved)


def _made(settings: Settings, names: Iterable[str]) -> int:
    """See that the topics are there; how many partitions they have together."""
    admin = AdminClient({**client.properties(settings.backbone), "log_level": 0})
    known = admin.list_topics(timeout=20).topics
    for future in admin.create_topics([NewTopic(name, 2) for name in names if name not in known]).values():
        future.result(20)
    while any(name not in (known := admin.list_topics(timeout=20).topics) for name in names):
        time.sleep(0.1)
    return sum(len(known[name].partitions) for name in names)

"""The whole engine in this process, without HTTP: store, log, pool, local queue. For benchmarks that measure it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventmill.backbone import Backbone
from eventmill.backbone.embedded import EmbeddedBackbone
from eventmill.backbone.kafka import KafkaBackbone
from eventmill.backbone.room import Room
from eventmill.config import Settings, load
from eventmill.engine import Engine, pool_queue
from eventmill.events import PathTable
from eventmill.executors import Executor
from eventmill.executors.htcondor import CondorQueue
from eventmill.executors.local import LocalQueue
from eventmill.executors.pool import Pool
from eventmill.store import SqliteStore, Tx

NAMESPACE = "bench"


@dataclass(frozen=True, slots=True)
class Mill:
    store: SqliteStore
    backbone: Backbone
    engine: Engine
    pool: Pool

    async def put_function(self, name: str, source: str) -> None:
        await self.store.transact(lambda tx: _put_action(tx, name, {"kind": "python:3.11", "code": source}))

    async def put_job(self, name: str, archive: str) -> None:
        await self.store.transact(lambda tx: _put_action(tx, name, {"kind": "job", "code": archive}))

    async def put_sequence(self, name: str, *components: str) -> None:
        qualified = [f"{NAMESPACE}/{c}" for c in components]
        await self.store.transact(lambda tx: _put_action(tx, name, {"kind": "sequence", "components": qualified}))

    async def put_rules(self, patterns: Mapping[str, Mapping[str, Any]], action: str) -> None:
        """A trigger and a rule for each pattern, all leading to this action."""

        def work(tx: Tx) -> None:
            for name, pattern in patterns.items():
                annotations = [{"key": "pattern", "value": pattern}]
                trigger = {"version": "0.0.1", "annotations": annotations, "parameters": []}
                tx.entities.put("triggers", NAMESPACE, f"{name}.trigger", f"t{name}", trigger, 1)
                rule = {
                    "version": "0.0.1", "status": "active", "trigger": f"{NAMESPACE}/{name}.trigger",
                    "action": f"{NAMESPACE}/{action}",
                }  # fmt: skip
                tx.entities.put("rules", NAMESPACE, name, f"r{name}", rule, 1)

        await self.store.transact(work)


def _put_action(tx: Tx, name: str, exec_: dict[str, Any]) -> None:
    if "code" in exec_:
        exec_ = {**exec_, "code": tx.entities.put_code(exec_["code"].encode()), "binary": False}
    document = {"exec": exec_, "version": "0.0.1", "limits": {}, "parameters": [], "annotations": []}
    tx.entities.put("actions", NAMESPACE, name, f"a{name}", document, 1)


@asynccontextmanager
async def mill(directory: Path, settings: Settings | None = None, *, workers: int = 8) -> AsyncIterator[Mill]:
    """Everything but the engine is started; start it when the measurement begins."""
    settings = settings or load(limits={"disk_free_mb": 0})
    store = SqliteStore.open(directory / "store.db")
    room = Room(directory, 0)
    log = EmbeddedBackbone(store, room, batch_max=settings.limits.batch_events, batch_bytes=settings.limits.batch_bytes)
    backbone: Backbone = log
    if settings.backbone.kind == "kafka":
        backbone = KafkaBackbone(store, log, room, settings, PathTable(settings.paths))
    await backbone.start()
    pool = Pool(store.code, state_dir=directory / "functions", workers_max=workers)
    executors: dict[str, Executor] = {"functions": pool}
    for name, row in settings.pools.items():
        common: dict[str, Any] = {
            "name": name, "state_dir": directory / "jobs" / name, "results_dir": directory / "results",
            "environment": {}, "result_bytes_max": 1 << 20, "archive_files_max": 1000, "archive_bytes_max": 1 << 30,
        }  # fmt: skip
        if row.kind == "htcondor":
            executors[pool_queue(name)] = CondorQueue(store.code, pool=row, **common)
        else:
            executors[pool_queue(name)] = LocalQueue(store.code, cpus=1, memory_mb=1024, **common)
    for executor in executors.values():
        await executor.start()
    engine = Engine(store, backbone, executors, settings)
    try:
        yield Mill(store, backbone, engine, pool)
    finally:
        for executor in executors.values():
            await executor.stop()
        await engine.stop()
        await backbone.stop()
        store.close()

"""The Kafka backbone: topics of others are read where they are, our own events go through the outbox to our own topic.

Its home is the embedded log, which here is the outbox: what is appended is durable at once, whether Kafka is there or
not. Positions are the store's; everything that is read was taken there first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from eventmill.backbone.base import Assigned, Backbone, Batch, Numbers, Partition
from eventmill.backbone.embedded import TOPIC, EmbeddedBackbone, claim_left
from eventmill.backbone.kafka import client
from eventmill.backbone.kafka.audit import Audit
from eventmill.backbone.kafka.consumer import Reader
from eventmill.backbone.kafka.relay import Relay
from eventmill.backbone.kafka.subscription import Subscription
from eventmill.backbone.room import Room
from eventmill.config import Settings
from eventmill.events import Decoder, PathTable
from eventmill.sdk.event import Event
from eventmill.store import Store, Tx

_log = logging.getLogger(__name__)


class KafkaBackbone(Backbone):
    """`log`: the embedded log, with room for the outbox. Raises InvalidConfig."""

    relays = True

    def __init__(self, store: Store, log: EmbeddedBackbone, room: Room, settings: Settings, paths: PathTable) -> None:
        client.check_properties(settings.backbone)
        self._settings = settings.backbone
        self._store = store
        self._log = log
        self._room = room
        self._limits = settings.limits
        self._clients = client.properties(settings.backbone)
        self._subscription = Subscription(settings, paths)
        self._relay = Relay(self._clients, self._settings.topic, log, store, event_bytes=settings.limits.event_bytes)
        self._reader: Reader | None = None
        self._audit: Audit | None = None
        self._beside: list[asyncio.Task[None]] = []

    @property
    def home(self) -> Partition:
        return self._log.home

    async def start(self) -> None:
        await self._log.start()
        store_id = await self._store.transact(lambda tx: tx.id(), durable=True)
        self._reader = Reader(
            self._settings, self._clients, self._subscription, self._store, store_id,
            batch_max=self._limits.batch_events, batch_bytes=self._limits.batch_bytes,
        )  # fmt: skip
        known = await self._store.transact(Tx.topics)  # of those that a regex matches we may know some
        self._reader.subscribe({t for t in known if self._subscription.is_by_regex(t)}.union(self._subscription.names))
        self._audit = Audit(self._clients, self._subscription, self._store, self._reader)
        self._beside = [asyncio.create_task(work) for work in (self._relay.run(), self._audit.run())]
        for task in self._beside:
            task.add_done_callback(self._ended)
        _log.info("Kafka at %s: reading %s", self._settings.brokers, self._subscription)

    async def stop(self) -> None:
        if self._reader is not None:
            await self._reader.stop()
        for task in self._beside:
            task.cancel()
        await self._relay.stop()
        await asyncio.gather(*self._beside, return_exceptions=True)
        await self._log.stop()

    async def append(self, events: Sequence[Event]) -> None:
        await self._log.append(events)

    def check_room(self) -> None:
        self._room.check()

    async def read(self) -> AsyncIterator[Batch | Assigned]:
        reader = self._reader
        assert reader is not None, "start() first"
        if left := await self._store.transact(self._claim_left, durable=True):
            yield Assigned(left)
        reader.start()
        async for item in reader.items():
            if isinstance(item, Assigned):
                yield item
                continue
            for batch in item:
                await self._room.wait()
                yield batch
                reader.dealt(batch)

    def _claim_left(self, tx: Tx) -> list[Partition]:
        return claim_left(tx, lambda topic: topic == TOPIC or self._subscription.get(topic) is not None)

    def decoder(self, topic: str) -> Decoder | None:
        if topic == TOPIC:
            return self._log.decoder(topic)
        reading = self._subscription.get(topic)
        return None if reading is None else reading.decoder

    def condition(self) -> tuple[bool, str]:
        trouble = self._trouble()
        return not trouble, trouble or f"Kafka at {self._settings.brokers}"

    def _trouble(self) -> str:
        """Why not all that should be read is; empty if it is."""
        if self._reader is None or self._audit is None:
            return "not started"
        refused = next((f"{topic}: {why}" for topic, why in self._audit.trouble.items()), "")
        return self._reader.trouble or self._reader.unread or refused

    async def numbers(self) -> Numbers:
        last, position = await self._store.read(lambda tx: (tx.last_record(), tx.position(self.home)))
        return Numbers(
            ignored={topic: dict(decoder.ignored.counts) for topic, decoder in self._subscription.decoders()},
            lag={} if self._reader is None else self._reader.lag,
            outbox=max(last - position, 0),
            relayed=self._relay.sent,
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        """What works beside the reader has failed: who reads is told."""
        if not task.cancelled() and (error := task.exception()) is not None and self._reader is not None:
            self._reader.fail(error)

"""Looks, every few seconds, at which topics there are: for what nothing else tells us.

It finds the topics that a `regex` matches (Python's, so that what is read is what `eventmill check` says), those that
are missing, those that our account may not read, and those that were deleted and made again. What each row of
`[[topics]]` found at its first look is noted in the store: `latest` is for these, and what comes later is read from its
beginning. All of it runs on the event loop, and waits for Kafka in threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from functools import partial

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from eventmill.backbone.kafka import client, places
from eventmill.backbone.kafka.client import Properties
from eventmill.backbone.kafka.consumer import Reader
from eventmill.backbone.kafka.subscription import FIRST_LOOK, Subscription
from eventmill.errors import Unavailable
from eventmill.store import Place, Store, Tx

_log = logging.getLogger(__name__)

_LOOK_S = 10.0
"""Kafka pushes no news of topics: so soon are they seen."""

Looks = Mapping[str, places.Topic | KafkaError]
"""What Kafka says of topics, by name."""


class Audit:
    """`run` until it is cancelled. `trouble`: the topics that our account may not read, and what helps."""

    def __init__(self, clients: Properties, subscription: Subscription, store: Store, reader: Reader) -> None:
        self._admin = AdminClient({**clients, "log_level": 0})
        self._subscription = subscription
        self._store = store
        self._reader = reader
        self._missing: set[str] = set()
        """Topics about which that has been said."""
        self._noted: set[str] = set()
        """Rows whose first look is in the store."""
        self.trouble: dict[str, str] = {}

    async def run(self) -> None:
        while True:
            try:
                await self._look()
            except KafkaException as e:  # the reader says what is the matter
                _log.debug("topics can't be looked at: %s", e)
            except Unavailable as e:  # a full disk
                _log.debug("what topics there are can't be noted: %s", e)
            await asyncio.sleep(_LOOK_S)

    async def _look(self) -> None:
        """Raises KafkaException, Unavailable."""
        matching = await asyncio.to_thread(self._matching)
        known = await self._store.read(partial(_known, subscription=self._subscription))
        names = {*matching, *known, *self._subscription.names}
        looks = await asyncio.to_thread(places.looked_at, self._admin, names)
        await self._note(matching, looks)
        self._reader.subscribe(matching.union(self._subscription.names))
        self._judge(looks, known)

    def _matching(self) -> set[str]:
        """Topics that there are now, and that a row with a regex matches."""
        if not self._subscription.has_regex:
            return set()
        listed = self._admin.list_topics(timeout=places.ANSWER_S).topics.values()
        there = {str(topic.topic) for topic in listed if topic.error is None or not client.is_no_topic(topic.error)}
        return {name for name in there if self._subscription.is_by_regex(name)}

    async def _note(self, matching: Collection[str], looks: Looks) -> None:
        """Write down what rows find at their first look. What can't be said of a topic now is said by a later one."""
        found: dict[str, list[str]] = {}
        for row, name in self._subscription.rows():
            if name is None:
                found[row] = sorted(n for n in matching if self._subscription[n].row == row)
            elif isinstance(look := looks[name], places.Topic):
                found[row] = [name]
            elif client.is_no_topic(look):
                found[row] = []
        if new := found.keys() - self._noted:
            await self._store.transact(partial(_note, found={row: found[row] for row in new}), durable=True)
            self._noted |= new

    def _judge(self, looks: Looks, known: Mapping[str, Mapping[int, Place]]) -> None:
        self.trouble = {}
        for name, look in looks.items():
            if isinstance(look, places.Topic):
                self._missing.discard(name)
                if not look.is_ours_to_read:
                    self.trouble[name] = client.NOT_ALLOWED
                places_of = known.get(name, {})
                ids = {places_of[number].topic_id for number in self._reader.numbers(name) if number in places_of}
                if ids - {"", look.id}:
                    self._reader.begin_again(name)
            elif client.is_no_topic(look):
                self._say_missing(name, look)
            elif look.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                self.trouble[name] = client.NOT_ALLOWED

    def _say_missing(self, name: str, error: KafkaError) -> None:
        if name in self._subscription.awaited and name not in self._missing:
            self._missing.add(name)
            _log.error("%s: %s", name, client.explain(error))


def _known(tx: Tx, subscription: Subscription) -> dict[str, dict[int, Place]]:
    """What the store knows of the topics that are read."""
    return {topic: tx.places(topic) for topic in tx.topics() if subscription.get(topic) is not None}


def _note(tx: Tx, found: Mapping[str, list[str]]) -> None:
    tx.set_source_state(FIRST_LOOK, {**found, **(tx.source_state(FIRST_LOOK) or {})})

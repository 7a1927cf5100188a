"""From a row of `[[topics]]` to its decoder."""

from __future__ import annotations

from eventmill.config import Topic
from eventmill.events.cloudevents import CloudEventsDecoder
from eventmill.events.dcache import DcacheDecoder
from eventmill.events.decoders import Decoder
from eventmill.events.paths import PathTable
from eventmill.events.plain import JsonDecoder


def decoder(topic: Topic, paths: PathTable) -> Decoder:
    """A new decoder for the topic's records: one for each thread. Raises InvalidConfig if it can't be had so."""
    match topic.decoder:
        case "dcache":
            key = b"" if topic.personal_key is None else topic.personal_key.read().encode()
            return DcacheDecoder(topic.instance, paths=paths, personal=topic.personal, personal_key=key, srm=topic.srm)
        case "cloudevents":
            return CloudEventsDecoder(topic.source)
        case "json":
            return JsonDecoder(topic.source, topic.map, paths=paths)

"""`eventmill record`: the records of a Kafka topic as JSON lines, or the events that a server would make of them.

Reads beside all servers: it is in no consumer group and moves nobody's position. Holds what comes in one piece.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import typer

from eventmill.cli import options
from eventmill.cli.options import FAILED, closing
from eventmill.errors import InvalidInput

if TYPE_CHECKING:
    from confluent_kafka import Message

    from eventmill.backbone.kafka.records import Records
    from eventmill.backbone.kafka.subscription import Reading
    from eventmill.config import Settings, Topic

_NO_NEWLINES: Final = bytes.maketrans(b"\r\n", b"  ")
"""In JSON a newline is never more than white space."""


@dataclass(slots=True)
class Recording:
    """One run: from messages to what is printed. `line`: what that is for a value; None: nothing."""

    records: Records
    line: Callable[[bytes], bytes | None]
    refused: int = 0

    def lines(self, messages: list[Message]) -> Iterator[bytes]:
        """What is printed for these. Raises Unavailable if a schema registry is needed and has no answer."""
        from eventmill.events import DecodeError

        for message in messages:
            [value], refused = self.records.values([message])
            try:
                for reason in refused.values():
                    raise DecodeError(reason)
                line = self.line(value) if value else None
            except DecodeError as e:
                self.refused += 1
                where = f"{message.topic()}/{message.partition()}/{message.offset()}"
                print(f"eventmill record: {where}: {e}", file=sys.stderr, flush=True)
            else:
                if line is not None:
                    yield line


def record(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="The topic's name.")],
    config: options.Config = None,
    brokers: options.Brokers = None,
    start: Annotated[
        str, typer.Option("--from", metavar="WHERE", help="earliest, latest, or a time (2026-05-06T07:08:09Z).")
    ] = "earliest",
    count: Annotated[int | None, typer.Option("--count", min=1, help="End after so many records.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Don't end at the end of the topic: wait for more.")] = False,
    events: Annotated[
        bool, typer.Option("--events", help="Print the events that the topic's row of [[topics]] makes of them.")
    ] = False,
) -> None:
    """Print a topic's records, one JSON object a line.

    It ends where the topic ended when it began. Records are what a server's decoder is given: those in the wire format
    of a schema registry (which the configuration has to name) and CloudEvents in binary mode are JSON, too. A record
    that is no JSON is named on stderr. Nobody else notices the reading: no consumer group is joined.
    """
    from eventmill.backbone.kafka.by_hand import Tail
    from eventmill.cli.output import note, progress_beside

    row = _row(topic, start)
    settings = options.kafka_settings(config, brokers)
    recording = _recording(settings, row, events)
    tail = Tail(settings.backbone, topic, start, follow=follow, complain=note)
    with progress_beside("records", None) as step:
        for messages in _first(tail.messages(), count):
            _print(recording.lines(messages), sys.stdout.buffer)
            step(len(messages))
    raise typer.Exit(FAILED if recording.refused else 0)


def _first(pieces: Iterator[list[Message]], count: int | None) -> Iterator[list[Message]]:
    """The first so many messages; None: all."""
    left = count
    for messages in pieces:
        yield messages[:left]
        if left is not None:
            left -= len(messages)
            if left <= 0:
                return


def _print(lines: Iterator[bytes], out: BinaryIO) -> None:
    for line in lines:
        out.write(line + b"\n")
    out.flush()


def _row(topic: str, start: str) -> Topic:
    """How a topic without a row of its own is read. Raises BadParameter for a wrong `start`."""
    from pydantic import ValidationError

    from eventmill.config import Topic

    try:
        return Topic(name=topic, decoder="cloudevents", start=start)  # of all decoders, the one that reads headers
    except ValidationError as e:
        raise typer.BadParameter(f"--from: {str(e.errors()[0]['msg']).removeprefix('Value error, ')}") from None


def _recording(settings: Settings, row: Topic, events: bool) -> Recording:
    """Raises InvalidInput if events are asked for, but nothing says what they are made of."""
    from eventmill.backbone.kafka.records import Records
    from eventmill.backbone.kafka.subscription import Subscription
    from eventmill.events import PathTable

    reading = Subscription(settings, PathTable(settings.paths)).get(str(row.name))
    if not events:
        known = Records(row, settings.backbone.registry, settings.limits.event_bytes)
        return Recording(known if reading is None else reading.records, _raw)
    if reading is None:
        known_topics = ", ".join(str(r.name or r.regex) for r in settings.topics) or "none"
        raise InvalidInput(f"--events: the configuration has no [[topics]] for {row.name} (known: {known_topics})")
    return Recording(reading.records, _made_by(reading))


def _raw(value: bytes) -> bytes:
    """The record in one line. Raises DecodeError if it is no JSON."""
    import orjson

    from eventmill.events import DecodeError

    try:
        orjson.loads(value)
    except orjson.JSONDecodeError as e:
        raise DecodeError(f"not valid JSON: {e}") from None
    return value.translate(_NO_NEWLINES)


def _made_by(reading: Reading) -> Callable[[bytes], bytes | None]:
    from eventmill.events import encode

    decoder = reading.decoder

    def made(value: bytes) -> bytes | None:
        fields = decoder.fields(value)
        return None if fields is None else encode(decoder.event(fields))

    return made


def register(app: typer.Typer) -> None:
    app.command(
        epilog=closing(
            "eventmill record billing --config /etc/eventmill.toml > messages.jsonl",
            "eventmill record billing --brokers kafka.example.org:9092 --from 2026-05-06T07:00:00Z --count 1000",
            "eventmill record billing --config mill.toml --events | eventmill emit --lines -",
            codes="0 done, 1 some records are no JSON (or would be dead letters), or Kafka is away, 2 wrong usage.",
        )
    )(record)

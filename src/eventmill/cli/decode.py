"""`eventmill decode`: recorded messages of a topic, one JSON record a line, to events, one a line.

The operator's tool for the first day: what would the server make of this topic? Nothing is sent anywhere. Like `match`
it answers before it reads on, and holds one piece and one unfinished line in memory.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from eventmill.cli import options
from eventmill.cli.match import pieces
from eventmill.cli.options import FAILED, WRONG, closing

if TYPE_CHECKING:
    from eventmill.cli.output import Step
    from eventmill.config import Settings, Topic
    from eventmill.events import Decoder


class DecoderName(StrEnum):
    dcache = "dcache"
    cloudevents = "cloudevents"
    json = "json"


class PersonalData(StrEnum):
    drop = "drop"
    hash = "hash"
    keep = "keep"


class SrmFiles(StrEnum):
    request = "request"
    transfer = "transfer"


@dataclass(slots=True)
class Decoding:
    """One run over all inputs: what is printed, and what has been seen."""

    decoder: Decoder
    explain: bool
    out: BinaryIO
    step: Step
    types: Counter[str] = field(default_factory=Counter)
    none: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    unreadable: bool = False

    def file(self, name: str) -> None:
        """Decode one input, `-` for stdin. Raises BrokenPipeError when nobody reads on."""
        try:
            opened = nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb")  # noqa: SIM115
            with opened as stream:
                self._stream("stdin" if name == "-" else name, stream)
        except BrokenPipeError:
            raise
        except OSError as e:
            self.unreadable = True
            print(f"eventmill decode: {name}: {e.strerror}", file=sys.stderr)

    def _stream(self, name: str, stream: BinaryIO) -> None:
        for first, lines in pieces(name, stream):
            printed = [
                text
                for number, line in enumerate(lines, first)
                if line and not line.isspace() and (text := self._line(name, number, line)) is not None
            ]
            if printed:
                self.out.write(b"\n".join(printed) + b"\n")
                self.out.flush()
            self.step(len(lines))

    def _line(self, name: str, number: int, line: bytes) -> bytes | None:
        """What is printed for one record."""
        from eventmill.events import DecodeError, encode

        try:
            fields = self.decoder.fields(line)
            if fields is not None:
                event = self.decoder.event(fields)
                self.types[event.type] += 1
                return encode(event)
        except DecodeError as e:
            self.refused += 1
            if not self.explain:
                print(f"eventmill decode: {name}:{number}: {e}", file=sys.stderr, flush=True)
                return None
            return _explanation(name, number, "dead letter", str(e))
        why = self.decoder.ignored.last
        self.none[why] += 1
        return _explanation(name, number, "none", why) if self.explain else None

    def summary(self) -> Iterator[str]:
        """What has been seen, by type, in lines."""
        yield from (f"{count:>9} {type}" for type, count in self.types.most_common())
        yield from (f"{count:>9} make no event: {why}" for why, count in self.none.most_common())
        if self.refused:
            yield f"{self.refused:>9} would be dead letters"


def _explanation(name: str, number: int, outcome: str, why: str) -> bytes:
    import orjson

    return orjson.dumps({"file": name, "line": number, "outcome": outcome, "why": why})


def decode(
    decoder: Annotated[
        DecoderName | None, typer.Option("--decoder", help="What the records are, with the options below.")
    ] = None,
    topic: Annotated[
        str | None,
        typer.Option("--topic", metavar="NAME", help="Decode as the configuration's [[topics]] says for this topic."),
    ] = None,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="JSON lines; without files, or for -, stdin.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also the records that make no event, and why; and how many of each.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="URI", help="json: the events' source; cloudevents: what theirs begins with."),
    ] = None,
    instance: Annotated[
        str | None,
        typer.Option(
            "--instance", metavar="NAME", help="dcache: its name, part of sources and ids.  [default: dcache]"
        ),
    ] = None,
    personal: Annotated[
        PersonalData | None,
        typer.Option("--personal", help="dcache: what becomes of user names and addresses.  [default: drop]"),
    ] = None,
    srm: Annotated[
        SrmFiles | None,
        typer.Option(
            "--srm", help="dcache: which record says that a file sent through SRM is there.  [default: request]"
        ),
    ] = None,
    config: options.Config = None,
) -> None:
    """Turn recorded messages into events.

    The input has one record a line: what `eventmill record` has saved of a topic, dCache's billing files in JSON,
    CloudEvents, or any JSON objects. The events are those that a server would make of them, with the names of files
    mapped by the configuration's [[paths]]. A record that would be a dead letter is named on stderr.
    """
    from eventmill.cli.output import note, progress_beside
    from eventmill.config import load
    from eventmill.events import PathTable
    from eventmill.events.topics import decoder as decoder_of

    settings = load(config)
    given = {"source": source, "instance": instance, "personal": personal, "srm": srm}
    chosen = _chosen(settings, decoder, topic, {key: str(value) for key, value in given.items() if value is not None})
    made = decoder_of(chosen, PathTable(settings.paths))
    with progress_beside("records", None) as step:
        run = Decoding(made, explain, sys.stdout.buffer, step)
        for name in files or ["-"]:
            run.file(name)
    if explain:
        for text in run.summary():
            note(text)
    raise typer.Exit(WRONG if run.unreadable else FAILED if run.refused else 0)


def _chosen(settings: Settings, decoder: DecoderName | None, topic: str | None, given: dict[str, Any]) -> Topic:
    """How records are to be decoded: by a row of [[topics]], or by what the options say. Raises BadParameter."""
    from pydantic import ValidationError

    from eventmill.config import Topic

    if topic is not None:
        if decoder is not None or given:
            raise typer.BadParameter("with --topic the configuration says how to decode: no other option of it here")
        return _row(settings, topic)
    if decoder is None:
        raise typer.BadParameter("either --decoder, or --topic with --config")
    try:
        return Topic(name="-", decoder=decoder.value, **given)
    except ValidationError as e:
        raise typer.BadParameter(str(e.errors()[0]["msg"]).removeprefix("Value error, ")) from None


def _row(settings: Settings, topic: str) -> Topic:
    """The row of [[topics]] that holds for this topic: its own, or the first whose regex matches."""
    own = [row for row in settings.topics if row.name == topic]
    matching = [row for row in settings.topics if row.regex is not None and re.fullmatch(row.regex, topic)]
    if not own and not matching:
        known = ", ".join(str(row.name or row.regex) for row in settings.topics) or "none"
        raise typer.BadParameter(f"--topic {topic}: the configuration has no [[topics]] for it (known: {known})")
    return (own + matching)[0]


def register(app: typer.Typer) -> None:
    app.command(
        epilog=closing(
            "eventmill decode --decoder dcache billing.jsonl",
            "eventmill decode --topic billing --explain --config mill.toml < messages.jsonl",
            """eventmill decode --decoder dcache f.jsonl | eventmill match '{"type": ["org.dcache.file.written"]}'""",
            codes="0 all records were understood, 1 some would be dead letters, 2 wrong usage or a file can't be read.",
        )
    )(decode)

"""`eventmill decode`: recorded messages of a storage system, one JSON record a line, to events, one a line.

The operator's tool for the first day: what would the server make of this topic? Nothing is sent anywhere. Like `match`
it answers before it reads on, and holds one piece and one unfinished line in memory.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Protocol

import typer

from eventmill.cli import options
from eventmill.cli.match import pieces
from eventmill.cli.options import FAILED, WRONG, closing

if TYPE_CHECKING:
    from eventmill.cli.output import Step
    from eventmill.events import Decoder

    class ExplainingDecoder(Decoder, Protocol):
        """A decoder that can say why a record makes no event."""

        def why_none(self, raw: bytes) -> str: ...


class DecoderName(StrEnum):
    dcache = "dcache"


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

    decoder: ExplainingDecoder
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
        why = self.decoder.why_none(line)
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
    decoder: Annotated[DecoderName, typer.Option("--decoder", help="What the records are.")],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="JSON lines; without files, or for -, stdin.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also the records that make no event, and why; and how many of each.")
    ] = False,
    instance: Annotated[
        str, typer.Option("--instance", metavar="NAME", help="Name of the storage system: part of sources and ids.")
    ] = "dcache",
    personal: Annotated[
        PersonalData, typer.Option("--personal", help="What becomes of user names and addresses.")
    ] = PersonalData.drop,
    srm: Annotated[
        SrmFiles, typer.Option("--srm", help="Which record says that a file sent through SRM is there.")
    ] = SrmFiles.request,
    config: options.Config = None,
) -> None:
    """Turn recorded messages of a storage system into events.

    The input has one record a line: messages of dCache's Kafka topic, or its billing files in JSON. The events are
    those that a server would make of them, with the names of files mapped by the configuration's [[paths]]. A record
    that would be a dead letter is named on stderr.
    """
    from eventmill.cli.output import note, progress_beside

    made = _decoder(decoder, instance, personal, srm, config)
    with progress_beside("records", None) as step:
        run = Decoding(made, explain, sys.stdout.buffer, step)
        for name in files or ["-"]:
            run.file(name)
    if explain:
        for text in run.summary():
            note(text)
    raise typer.Exit(WRONG if run.unreadable else FAILED if run.refused else 0)


def _decoder(
    name: DecoderName, instance: str, personal: PersonalData, srm: SrmFiles, config: Path | None
) -> ExplainingDecoder:
    """Raises InvalidConfig."""
    from eventmill.config import load
    from eventmill.events import DcacheDecoder, PathTable

    paths = PathTable(load(config).paths)
    match name:
        case DecoderName.dcache:
            return DcacheDecoder(instance, paths=paths, personal=personal.value, srm=srm.value)


def register(app: typer.Typer) -> None:
    app.command(
        epilog=closing(
            "eventmill decode --decoder dcache billing.jsonl",
            "eventmill decode --decoder dcache --explain --config mill.toml < messages.jsonl",
            """eventmill decode --decoder dcache f.jsonl | eventmill match '{"type": ["org.dcache.file.written"]}'""",
            codes="0 all records were understood, 1 some would be dead letters, 2 wrong usage or a file can't be read.",
        )
    )(decode)

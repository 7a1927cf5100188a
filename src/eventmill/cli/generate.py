"""`eventmill generate`: realistic traffic of a storage system, to try a flow, a configuration, a machine.

Prints records, or sends them to Kafka, at the wanted rate: each at its due time, so that the mean holds also if one
was late.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from eventmill.cli import options
from eventmill.cli.options import closing
from eventmill.errors import InvalidInput

if TYPE_CHECKING:
    from eventmill.config import Settings

Put = Callable[[Sequence[dict[str, Any]], Sequence[bytes]], None]
"""Takes records, and the same as JSON."""

app = typer.Typer(
    name="generate",
    help="Make realistic traffic: records of a storage system.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DEFAULT_MIX: Final = (
    "written=30,srm=4,read=40,removed=8,failed=3,p2p=4,store=4,restore=2,hit=2,request=2,warning=0.5,check=0.5"
)
_BATCHES_PER_S: Final = 50
"""How often records are printed: in pieces, but so small that nobody waits."""
_BATCH_MAX: Final = 1000


def paced(records: Iterable[Any], rate: float) -> Iterator[list[Any]]:
    """The records in lists, each list when it is due; all at once for rate 0 (records per second)."""
    size = max(1, min(_BATCH_MAX, int(rate / _BATCHES_PER_S))) if rate else _BATCH_MAX
    start, count, iterator = time.monotonic(), 0, iter(records)
    while batch := list(islice(iterator, size)):
        if rate:
            time.sleep(max(0.0, start + count / rate - time.monotonic()))
        count += len(batch)
        yield batch


@app.command(
    epilog=closing(
        "eventmill generate dcache --files 1000 --seed 7 > messages.jsonl",
        "eventmill generate dcache --rate 500 --files 0 | eventmill decode --decoder dcache",
        "eventmill generate dcache --mix written=10,removed=1 --twice 1 --directory /pnfs/desy.de/exfel",
        "eventmill generate dcache --topic billing --brokers 127.0.0.1:9092 --rate 500 --files 0",
        "eventmill generate dcache --topic billing --config mill.toml --create --directory /pnfs/desy.de/exfel",
        codes="0 done (with --topic: all acknowledged), 1 Kafka has not taken all, 2 wrong usage, 130 Ctrl-C.",
    )
)
def dcache(
    rate: Annotated[float, typer.Option("--rate", min=0, help="Records per second; 0: as fast as possible.")] = 0,
    files: Annotated[int, typer.Option("--files", min=0, help="Files that are written; 0: without end.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="The same seed makes the same records.")] = 1,
    directory: Annotated[
        str, typer.Option("--directory", metavar="DIR", help="What dCache calls the directory of all files.")
    ] = "/pnfs/example.org",
    mix: Annotated[str, typer.Option("--mix", metavar="NAME=WEIGHT,…", help="What happens how often.")] = DEFAULT_MIX,
    twice: Annotated[
        float, typer.Option("--twice", min=0, max=1, help="Share of records that a second producer sends too.")
    ] = 0.1,
    topic: Annotated[
        str | None, typer.Option("--topic", metavar="NAME", help="Send them to this topic of Kafka; it must be there.")
    ] = None,
    brokers: options.Brokers = None,
    config: options.Config = None,
    keyed: Annotated[
        bool, typer.Option("--keyed", help="With --topic: the pnfsid as key. dCache itself sends no keys.")
    ] = False,
    create: Annotated[
        bool, typer.Option("--create", help="Make the files that are written, where [[paths]] says, of zeros.")
    ] = False,
) -> None:
    """Print records of dCache's billing topic, one JSON object a line, or send them to Kafka.

    Doors and pools tell of the same transfers, with matching sessions; files are written in bursts into one directory,
    read, stored on tape and removed again; transfers fail. Times are simulated and begin in May 2026, so that the
    records depend on the options alone. What is not named in a --mix does not happen. With --create a file that a
    record says was written is there before the record is: with its size, but sparse, so that it takes no room.
    """
    import orjson

    from eventmill.cli.generating import Traffic, parse_mix
    from eventmill.config import load

    if not math.isfinite(rate):
        raise InvalidInput("--rate: not a number of records per second")
    if not directory.startswith("/"):
        raise InvalidInput(f"--directory {directory}: write an absolute name, such as /pnfs/example.org")
    records = Traffic(seed, directory, parse_mix(mix), twice).records(files)
    if topic is None and (brokers or keyed):
        raise InvalidInput("--brokers and --keyed go with --topic")
    settings = options.kafka_settings(config, brokers) if topic else load(config)
    see_to = _creator(settings, topic, directory) if create else None
    with _printed() if topic is None else _sent(settings, topic, keyed) as put:
        for batch in paced(records, rate):
            lines = list(map(orjson.dumps, batch))
            if see_to is not None:
                see_to(lines)
            put(batch, lines)


def _creator(settings: Settings, topic: str | None, directory: str) -> Callable[[Sequence[bytes]], None]:
    from eventmill.cli.appearing import Appearing

    return Appearing(settings, topic, directory).see_to


@contextmanager
def _printed() -> Iterator[Put]:
    from eventmill.cli.output import progress_beside

    out = sys.stdout.buffer
    with progress_beside("records", None) as step:

        def put(batch: Sequence[dict[str, Any]], lines: Sequence[bytes]) -> None:
            out.write(b"\n".join(lines) + b"\n")
            out.flush()
            step(len(lines))

        yield put


@contextmanager
def _sent(settings: Settings, topic: str, keyed: bool) -> Iterator[Put]:
    """Ends when all are acknowledged; says how many were, also if it ends before that."""
    from eventmill.backbone.kafka.by_hand import Sender
    from eventmill.cli.output import note, progress

    count = 0
    sender = Sender(settings.backbone, topic)
    try:
        with progress("records", None) as step, sender:

            def put(batch: Sequence[dict[str, Any]], lines: Sequence[bytes]) -> None:
                nonlocal count
                keys = [_key(record) if keyed else None for record in batch]
                count += len(lines)
                sender.send(list(zip(keys, lines, strict=True)))
                step(len(lines))

            yield put
    finally:
        note(f"{sender.acknowledged} of {count} records are in {topic}")


def _key(record: dict[str, Any]) -> bytes | None:
    pnfsid = record.get("pnfsid")
    return pnfsid.encode() if pnfsid else None

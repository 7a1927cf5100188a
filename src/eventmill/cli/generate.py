"""`eventmill generate`: realistic traffic of a storage system, to try a flow, a configuration, a machine.

Prints records at the wanted rate: each at its due time, so that the mean holds also if one was late.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Any, Final

import typer

from eventmill.cli.options import closing
from eventmill.errors import InvalidInput

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
        codes="0 done, 2 wrong usage, 130 Ctrl-C.",
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
) -> None:
    """Print records of dCache's billing topic, one JSON object a line.

    Doors and pools tell of the same transfers, with matching sessions; files are written in bursts into one directory,
    read, stored on tape and removed again; transfers fail. Times are simulated and begin in May 2026, so that the
    records depend on the options alone. What is not named in a --mix does not happen.
    """
    import orjson

    from eventmill.cli.generating import Traffic, parse_mix
    from eventmill.cli.output import progress_beside

    if not math.isfinite(rate):
        raise InvalidInput("--rate: not a number of records per second")
    if not directory.startswith("/"):
        raise InvalidInput(f"--directory {directory}: write an absolute name, such as /pnfs/example.org")
    records = Traffic(seed, directory, parse_mix(mix), twice).records(files)
    out = sys.stdout.buffer
    with progress_beside("records", None) as step:
        for batch in paced(records, rate):
            out.write(b"\n".join(map(orjson.dumps, batch)) + b"\n")
            out.flush()
            step(len(batch))

"""Commands about dead letters: what could not be dealt with, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmill.cli import options
from eventmill.cli.options import CommandFailed, closing
from eventmill.errors import InvalidInput

if TYPE_CHECKING:
    from eventmill.cli.client import Client

PATH = "/eventmill/v1/dead-letters"

app = typer.Typer(
    name="dead-letters",
    help="What could not be dealt with: list, show, replay, drop.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Kind = Annotated[
    str | None,
    typer.Option("--kind", help="Only of this kind: activation, record, throttled, loop, interrupted, unknown."),
]
Numbers = Annotated[list[int] | None, typer.Argument(metavar="[NUMBER]...", help="Numbers, as `list` shows them.")]
All = Annotated[bool, typer.Option("--all", help="All of them, or all of the --kind.")]


@app.command(
    "list",
    epilog=closing("eventmill dead-letters list", "eventmill dead-letters list --kind throttled --json"),
)
def list_(
    kind: Kind = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 50,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """List dead letters, newest first."""
    from eventmill.cli import output
    from eventmill.cli.client import Client, target

    with Client(target(url, key, data_dir)) as client:
        letters = list(client.pages(PATH, limit, kind=kind))
    if json:
        output.json_lines(letters)
        return
    rows = [
        (letter["seq"], output.moment(letter["time"]), letter["kind"], output.local(letter["rule"]), letter["reason"])
        for letter in letters
    ]
    output.table((">number", "time", "kind", "rule", "reason"), rows, "no dead letters")


@app.command(epilog=closing("eventmill dead-letters show 17"))
def show(
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="Its number, as `list` shows it.")],
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Show all of one dead letter: its reason, its activation, its record."""
    from eventmill.cli import output
    from eventmill.cli.client import Client, target

    with Client(target(url, key, data_dir)) as client:
        letter = client.get(f"{PATH}/{number}")
    if json:
        output.json_line(letter)
        return
    for name, value in letter.items():
        if value is not None:
            shown = output.moment(value) if name == "time" else value if isinstance(value, str) else None
            output.line(f"{name}: {shown if shown is not None else output.json_pretty(value)}")


@app.command(
    epilog=closing(
        "eventmill dead-letters replay 17 18",
        "eventmill dead-letters replay --all --kind throttled",
        codes="0 all replayed, 1 some were not, 2 wrong usage.",
    )
)
def replay(
    numbers: Numbers = None,
    everything: All = False,
    kind: Kind = None,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Deal with dead letters again.

    An activation gets a new attempt, a record goes through the log again. What a rule has dealt with already it
    does not start a second time.
    """
    from eventmill.cli.client import Client, target

    with Client(target(url, key, data_dir)) as client:
        chosen = _chosen(client, numbers, everything, kind)
        _each(chosen, "replaying", lambda number: client.post(f"{PATH}/{number}/replay"), json)


@app.command(
    epilog=closing(
        "eventmill dead-letters drop 17",
        "eventmill dead-letters drop --all --kind record",
        codes="0 all dropped, 1 some were not, 2 wrong usage.",
    )
)
def drop(
    numbers: Numbers = None,
    everything: All = False,
    kind: Kind = None,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Forget dead letters for good."""
    from eventmill.cli.client import Client, target

    with Client(target(url, key, data_dir)) as client:
        chosen = _chosen(client, numbers, everything, kind)
        _each(chosen, "dropping", lambda number: client.delete(f"{PATH}/{number}"), json)


def _chosen(client: Client, numbers: list[int] | None, everything: bool, kind: str | None) -> list[int]:
    """The letters that are meant, oldest first; all are looked up before the first is touched. Raises InvalidInput."""
    if bool(numbers) == everything or (numbers and kind):
        raise InvalidInput("name dead letters by their numbers, or all of them by --all (and --kind)")
    return numbers or sorted(letter["seq"] for letter in client.pages(PATH, kind=kind))


def _each(numbers: list[int], what: str, act: Callable[[int], Any], json: bool) -> None:
    """Do it to each; what is refused is said, and the rest goes on."""
    from eventmill.cli import output

    refused = 0
    with output.progress(what, len(numbers)) as step:
        for number, answer in _answers(numbers, act):
            step()
            refused += isinstance(answer, Exception)
            if json:
                failed = isinstance(answer, Exception)
                output.json_line({"seq": number, **({"error": str(answer)} if failed else {"result": answer})})
            elif isinstance(answer, Exception):
                output.note(f"eventmill: dead letter {number}: {answer}")
    if not json:
        output.note(f"{what}: {len(numbers) - refused} of {len(numbers)} done")
    if refused:
        raise CommandFailed


def _answers(numbers: list[int], act: Callable[[int], Any]) -> Iterator[tuple[int, Any]]:
    from eventmill.cli.client import Refused
    from eventmill.errors import NotFound

    for number in numbers:
        try:
            yield number, act(number)
        except (Refused, NotFound) as e:
            yield number, e

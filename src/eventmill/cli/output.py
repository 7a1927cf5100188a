"""What commands print: tables and short lines for people, JSON for programs.

Results go to stdout, remarks and progress to stderr. Whatever comes from events, logs or a server passes `printable`
on its way to a terminal. Not for use by several threads at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and newline, and those that turn the direction of writing."""

_CELL_CHARACTERS_MAX = 200
_WIDTH_MAX = 10_000
_STYLES = {
    "succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "matched": "green",
    "created": "green", "updated": "cyan", "deleted": "yellow", "refused": "red", "error": "red", "warning": "yellow",
}  # fmt: skip


class Step(Protocol):
    """What `progress` hands out: call it with how many more are done."""

    def __call__(self, count: int = 1) -> None: ...


def printable(text: str) -> str:
    """The text with control characters made visible: data from outside must not drive the terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def note(text: str) -> None:
    """A remark for people, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def line(text: str) -> None:
    """One line of the result."""
    print(printable(text), flush=True)


def json_line(value: Any) -> None:
    """One JSON object, on a line of its own."""
    print(json_text(value), flush=True)


def json_lines(values: Iterable[Any]) -> None:
    for value in values:
        json_line(value)


def json_text(value: Any) -> str:
    """JSON in one line."""
    return orjson.dumps(value, default=str).decode()


def json_pretty(value: Any) -> str:
    """JSON for people to read."""
    return orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2).decode()


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """A table, or the sentence `empty` if there are no rows. A column whose name begins with `>` is aligned right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        grid.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        texts = [_cell(value) for value in row]
        grid.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in texts))
    if not grid.row_count:
        note(empty)
        return
    show(grid)


def show(renderable: Any) -> None:
    """Print a table or tree of rich's: for a terminal, or into a file or pipe at its natural width, one row a line."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(renderable)
        return
    console = Console(width=_WIDTH_MAX)
    with console.capture() as captured:
        console.print(renderable)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)


def _cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json_text(value)
    text = printable(text)
    return text if len(text) <= _CELL_CHARACTERS_MAX else text[: _CELL_CHARACTERS_MAX - 1] + "…"


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Step]:
    """A bar on stderr while something takes longer (none if stderr is no terminal)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)

        def step(count: int = 1) -> None:
            bar.advance(task, count)

        yield step


@contextmanager
def progress_beside(what: str, total: int | None) -> Iterator[Step]:
    """The same for a command that prints all the while: no bar where the results go to a terminal, too."""
    if sys.stdout.isatty() or not sys.stderr.isatty():
        yield lambda count=1: None
    else:
        with progress(what, total) as step:
            yield step


def local(qualified: str | None) -> str:
    """`package/name` of `namespace/package/name`: people see one namespace at a time."""
    return (qualified or "").partition("/")[2] or (qualified or "")


def counted(count: int, thing: str) -> str:
    """`1 rule`, `2 rules`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def short(text: str, characters: int = 200) -> str:
    """In one line, and cut if it is long."""
    text = " ".join(text.split())
    return text if len(text) <= characters else text[: characters - 1] + "…"


def moment(epoch_ms: int | None) -> str:
    """A time of this machine's clock, to the second."""
    if not epoch_ms:
        return ""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def lasting(start_ms: int | None, end_ms: int | None) -> str:
    """How long something took: `12 ms`, `3.4 s`, `5 min 10 s`, `2 h 5 min`."""
    if not start_ms or not end_ms:
        return ""
    ms = max(0, end_ms - start_ms)
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(ms // 1000, 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

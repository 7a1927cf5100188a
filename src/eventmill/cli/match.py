"""`eventmill match`: grep on JSON lines, with an event pattern instead of a regular expression.

Reads what is there and answers before it reads on, so that an endless, trickling input is passed on at once and a fast
one in large pieces. Holds one piece and one unfinished line in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Final

import typer

from eventmill.cli.options import WRONG, closing
from eventmill.errors import InvalidInput

CHUNK_BYTES: Final = 1 << 18
LINE_BYTES_MAX: Final = 64 << 20
"""A line that is longer than this is not read to its end: the input is not JSON lines."""

Matches = Callable[[dict[str, Any]], bool]


@dataclass(slots=True)
class Search:
    """What is looked for, and what is printed."""

    matches: Matches
    invert: bool
    count_only: bool
    trouble: bool = False
    """A file could not be read."""

    def run(self, name: str, stream: BinaryIO, out: BinaryIO) -> int:
        """Search one input; returns how many lines were selected. Raises BrokenPipeError when nobody reads on."""
        selected = 0
        for first, lines in pieces(name, stream):
            found = self._select(name, first, lines)
            selected += len(found)
            if found and not self.count_only:
                out.write(b"\n".join(found) + b"\n")
                out.flush()
        return selected

    def _select(self, name: str, first: int, lines: list[bytes]) -> list[bytes]:
        from orjson import JSONDecodeError, loads

        matches, invert, found = self.matches, self.invert, []
        for number, line in enumerate(lines, first):
            try:
                document = loads(line)
            except JSONDecodeError as e:
                document = None
                _warn(name, number, f"not JSON: {e}")
            else:
                if type(document) is not dict:
                    _warn(name, number, "not a JSON object")
            if (type(document) is dict and matches(document)) is not invert:
                found.append(line)
        return found


def _warn(name: str, number: int, why: str) -> None:
    print(f"eventmill match: {name}:{number}: {why}", file=sys.stderr, flush=True)


def pieces(name: str, stream: BinaryIO) -> Iterator[tuple[int, list[bytes]]]:
    """Complete lines as they arrive, with the number of the first one; the last line may lack its newline."""
    number, rest_bytes = 1, 0
    rest: list[bytes] = []
    while chunk := stream.read1(CHUNK_BYTES):  # type: ignore[attr-defined]
        head, newline, tail = chunk.rpartition(b"\n")
        if newline:
            lines = b"".join((*rest, head)).split(b"\n")
            yield number, lines
            number, rest, rest_bytes = number + len(lines), [], 0
        rest.append(tail)
        rest_bytes += len(tail)
        if rest_bytes > LINE_BYTES_MAX:
            raise InvalidInput(f"{name}:{number}: a line of more than {LINE_BYTES_MAX >> 20} MiB is no event")
    if rest_bytes:
        yield number, [b"".join(rest)]


def _matcher(text: str) -> Matches:
    """Raises InvalidPattern."""
    from eventmill.rules import Index, parse

    index: Index[None] = Index()
    index.add(None, parse(text))
    return lambda document: bool(index.match(document))


def _search_all(search: Search, files: list[str], out: BinaryIO) -> int:
    total = 0
    for name in files:
        try:
            opened = nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb")  # noqa: SIM115
            with opened as stream:
                selected = search.run("stdin" if name == "-" else name, stream, out)
        except BrokenPipeError:
            raise
        except OSError as e:
            search.trouble = True
            print(f"eventmill match: {name}: {e.strerror}", file=sys.stderr)
            continue
        total += selected
        if search.count_only:
            prefix = f"{name}:" if len(files) > 1 else ""
            out.write(f"{prefix}{selected}\n".encode())
            out.flush()
    return total


def match(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Event pattern, a JSON object.")],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="JSON lines; without files, or for -, stdin.")
    ] = None,
    count: Annotated[bool, typer.Option("-c", "--count", help="Print only how many lines were selected.")] = False,
    invert: Annotated[bool, typer.Option("-v", "--invert-match", help="Select the lines that don't match.")] = False,
) -> None:
    """Print the JSON lines that match an event pattern.

    That is grep with a pattern instead of a regular expression. The lines are any JSON objects, events or not. A
    line that is none is named on stderr and counts as not matching.
    """
    search = Search(_matcher(pattern), invert, count)
    selected = _search_all(search, files or ["-"], sys.stdout.buffer)
    raise typer.Exit(WRONG if search.trouble else 0 if selected else 1)


def register(app: typer.Typer) -> None:
    app.command(
        epilog=closing(
            """eventmill match '{"type": ["org.dcache.file.written"]}' events.jsonl""",
            """eventmill match '{"subject": [{"glob": "/exfel/**/raw/*.h5"}]}' < events.jsonl""",
            """tail -f events.jsonl | eventmill match '{"data": {"size": [{"numeric": [">", 1000000]}]}}'""",
            """eventmill match -c -v '{"data": {"error": [{"exists": false}]}}' a.jsonl b.jsonl""",
            codes="0 lines were selected, 1 none were, 2 the pattern is wrong or a file can't be read.",
        )
    )(match)

"""The command line: a client of the HTTP API, a reader of flows, and what starts a server.

One module per group of commands. Nothing heavy is imported before a command runs: `eventmill --help` and
`eventmill match` must start at once. Commands raise errors; only `main` turns them into a line and an exit code.
One process, one command, one thread (`run` excepted, which is a server).
"""

from __future__ import annotations

# ruff: noqa: E402
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

_interrupt = signal.getsignal(signal.SIGINT)
if _interrupt is signal.default_int_handler:
    # Ctrl-C among the imports below would be a traceback of theirs
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import typer

from eventmill.cli import activations, dead_letters, decode, events, flows, generate, match, namespaces, record, server
from eventmill.cli.options import CANCELLED, FAILED, WRONG, CommandFailed
from eventmill.errors import EventmillError, InvalidInput

if _interrupt is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupt)

_BROKEN_PIPE = 141
"""What a shell sees of a program that SIGPIPE ended: the reader of our output has had enough."""

app = typer.Typer(
    name="eventmill",
    help="Event-driven workflows for research data: an event in, a function, a job, a function; nothing polls.\n\n"
    "The server's address and key are taken from --url and --key, else from EVENTMILL_URL and EVENTMILL_KEY, else "
    "from the files `address` and `key` in the data directory (--data-dir).",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 Ctrl-C.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (server, flows, events, match, decode, record):
    group.register(app)
app.add_typer(activations.app)
app.add_typer(dead_letters.app)
app.add_typer(namespaces.app)
app.add_typer(generate.app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"eventmill {version('eventmill')}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted."""
    try:
        app(arguments, prog_name="eventmill")
    except CommandFailed as e:
        sys.exit(e.code)
    except (InvalidInput, EventmillError) as e:
        _say(e)
        sys.exit(WRONG if isinstance(e, InvalidInput) else FAILED)
    except BaseExceptionGroup as group:
        failure = _first(group)
        if failure is None:
            raise
        _say(failure)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(CANCELLED)
    except SystemExit as e:
        # typer has made an ordinary failure of it
        if not isinstance(e.__context__, BrokenPipeError):
            raise
        # Python flushes stdout when it exits, and would complain about the pipe once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(_BROKEN_PIPE)
    sys.exit(0)


def _first(group: BaseExceptionGroup[BaseException]) -> EventmillError | None:
    """Of what went wrong at once (a server consists of several tasks) the first thing that has an explanation."""
    for error in group.exceptions:
        found = _first(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, EventmillError):
            return found
    return None


def _say(error: Exception) -> None:
    from eventmill.cli.output import printable

    print(f"eventmill: {printable(str(error))}", file=sys.stderr)

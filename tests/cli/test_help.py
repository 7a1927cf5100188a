"""The reference is `--help`: complete, and there at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from eventmill.cli import app
from tests.cli.conftest import COMMAND, Cli

COMMANDS = [(command.name or command.callback.__name__,) for command in app.registered_commands if command.callback] + [
    (group.typer_instance.info.name, command.name or command.callback.__name__)
    for group in app.registered_groups
    if group.typer_instance
    for command in group.typer_instance.registered_commands
    if command.callback
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_examples_and_exit_codes(cli: Cli, command: tuple[str, ...]) -> None:
    ran = cli(*command, "--help")
    assert ran.code == 0
    assert f"Examples:\n    eventmill {' '.join(command)} " in ran.out or "EVENTMILL" in ran.out
    assert "Exit codes: 0 " in ran.out


def test_the_commands_of_a_first_look(cli: Cli) -> None:
    names = cli("--help").out.split("Commands:\n")[1]
    commands = [
        "run",
        "serve",
        "check",
        "deploy",
        "undeploy",
        "test",
        "lint",
        "emit",
        "explain",
        "match",
        "decode",
        "record",
        "activations",
        "dead-letters",
        "namespaces",
        "generate",
    ]
    assert [line.split()[0] for line in names.splitlines() if line.startswith("  ")][: len(commands)] == commands
    assert not any(line.rstrip().endswith("...") for line in names.splitlines()[:9])


def test_version(cli: Cli) -> None:
    assert cli("--version").out.startswith("eventmill 0.")


@pytest.mark.parametrize(
    "wrong", [("nosuch",), ("match",), ("deploy",), ("match", "--nosuch", "{}"), ("run", "f", "--port", "x")]
)
def test_wrong_usage(cli: Cli, wrong: tuple[str, ...]) -> None:
    ran = cli(*wrong)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: eventmill" in ran.err


@pytest.mark.slow
def test_an_early_interrupt_leaves_no_traceback() -> None:
    """Python's own start, before our first line, takes some 15 ms."""
    for delay_s in (0.03, 0.06, 0.1, 0.2):
        with subprocess.Popen([COMMAND, "emit", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            time.sleep(delay_s)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        if b"site.py" not in err:
            assert b"Traceback" not in err
            assert process.returncode in (-signal.SIGINT, 130)


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    heavy = "{'httpx', 'rich', 'orjson', 'pydantic', 'sqlalchemy', 'starlette', 'asyncio', 'uvloop'}"
    code = f"import sys, eventmill.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

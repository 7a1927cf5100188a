"""docs/operating.md: every setting is there with its default, and what it shows works."""

from __future__ import annotations

import re
import sqlite3
import tomllib
from pathlib import Path
from typing import Any

import pytest

from eventmill.cli import app
from eventmill.config import FileSource, PathMap, Pool, Settings
from tests.cli import flows
from tests.cli.conftest import Cli
from tests.cli.server import started, wait_for

PAGE = (Path(__file__).parents[2] / "docs/operating.md").read_text()
ROW = re.compile(r"^\| `([a-z_]+\.(?:NAME\.)?[a-z_]+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)
DEPENDS_ON_THE_MACHINE = {"functions.workers_max", "pools.NAME.cpus"}


def settings() -> dict[str, Any]:
    """Default of every setting, by the name that the page uses; `...` without one."""
    found: dict[str, Any] = {}
    for section in ("server", "functions", "limits", "retention"):
        model = Settings.model_fields[section].annotation
        assert model is not None
        found |= {f"{section}.{name}": field.get_default() for name, field in model.model_fields.items()}
    for prefix, row in (("pools.NAME", Pool), ("paths", PathMap), ("files", FileSource)):
        for name, field in row.model_fields.items():
            found[f"{prefix}.{name}"] = ... if field.is_required() else field.get_default()
    return found


def test_every_setting_is_described() -> None:
    assert sorted(name for name, _, _ in ROW.findall(PAGE)) == sorted(settings())


def test_defaults_are_those_of_the_code() -> None:
    for name, shown, _ in ROW.findall(PAGE):
        default = settings()[name]
        if name in DEPENDS_ON_THE_MACHINE:
            continue
        expected = (
            "required" if default is ... else "the subject" if default is None else f"`{default}`".replace("'", '"')
        )
        assert shown == expected, name


def test_the_example_is_a_configuration(cli: Cli) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    tomllib.loads(example)
    ran = cli("check", "--json", "--config", cli.write("mill.toml", example))
    assert ran.objects[0]["settings"]["pools"]["local"]["cpus"] == 32


def test_commands_exist() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    groups = {
        group.typer_instance.info.name: group.typer_instance for group in app.registered_groups if group.typer_instance
    }
    for line in re.findall(r"^eventmill ([a-z-]+)(?: ([a-z-]+))?", PAGE, re.MULTILINE):
        command, subcommand = line
        if command in groups:
            names = {c.name or c.callback.__name__ for c in groups[command].registered_commands if c.callback}
            assert subcommand in names
        else:
            assert command in commands


@pytest.mark.slow
def test_backup_and_restore(tmp_path: Path, cli: Cli) -> None:
    """A copy that is made while the server runs is a store to start from."""
    cli.write("flow.py", flows.SMALL.replace("ROOT", str(tmp_path)))
    here = ("--data-dir", "data")
    with started(tmp_path, "serve"):
        assert cli("deploy", "flow.py", *here).code == 0
        assert cli("emit", "--type", "org.test.asked", "--subject", "x", *here).code == 0
        wait_for(lambda: cli("activations", "list", "--state", "succeeded", "--json", *here).out)
        source, copy = sqlite3.connect(tmp_path / "data/store.db"), sqlite3.connect(tmp_path / "copy.db")
        with source, copy:
            source.backup(copy)
        source.close()
        copy.close()
    (tmp_path / "copy.db").replace(tmp_path / "data/store.db")
    for name in ("store.db-wal", "store.db-shm"):
        (tmp_path / "data" / name).unlink(missing_ok=True)
    with started(tmp_path, "serve"):
        assert len(cli("activations", "list", "--json", *here).objects) == 1
        assert {change["outcome"] for change in cli("deploy", "flow.py", "--json", *here).objects} == {"unchanged"}

"""docs/operating.md: every setting is there with its default, and what it shows works."""

from __future__ import annotations

import re
import sqlite3
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from eventmill.cli import app
from eventmill.config import FileSource, PathMap, Pool, Secret, Settings, Topic, load
from tests.cli import flows
from tests.cli.conftest import Cli
from tests.cli.server import started, wait_for

PAGE = (Path(__file__).parents[2] / "docs/operating.md").read_text()
ROW = re.compile(r"^\| `([a-z_]+(?:\.NAME)?(?:\.[a-z_]+)+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)
DEPENDS_ON_THE_MACHINE = {"functions.workers_max", "pools.NAME.cpus"}


def settings() -> dict[str, Any]:
    """Default of every setting, by the name that the page uses; `...` without one."""
    found: dict[str, Any] = {}
    for section in ("server", "backbone", "functions", "limits", "retention"):
        model = Settings.model_fields[section].annotation
        assert isinstance(model, type)
        found |= defaults(section, model)
    for prefix, row in (("topics", Topic), ("pools.NAME", Pool), ("paths", PathMap), ("files", FileSource)):
        found |= defaults(prefix, row)
    return found


def defaults(prefix: str, model: type[BaseModel]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            found |= defaults(f"{prefix}.{name}", type(field.default))
        else:
            found[f"{prefix}.{name}"] = ... if field.is_required() else field.get_default()
    return found


def shown_default(name: str, default: Any) -> str:
    """A default as the page has it."""
    if default is ...:
        return "required"
    if default is None and name.startswith("paths."):
        return "the subject"
    return "none" if default is None or default == "" else f"`{default}`".replace("'", '"')


def test_every_setting_is_described() -> None:
    assert sorted(name for name, _, _ in ROW.findall(PAGE)) == sorted(settings())


def test_defaults_are_those_of_the_code() -> None:
    for name, shown, _ in ROW.findall(PAGE):
        if name not in DEPENDS_ON_THE_MACHINE:
            assert shown == shown_default(name, settings()[name]), name


def test_the_examples_are_configurations(cli: Cli) -> None:
    example, kafka = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    tomllib.loads(example)
    ran = cli("check", "--json", "--config", cli.write("mill.toml", example))
    assert ran.objects[0]["settings"]["pools"]["local"]["cpus"] == 32
    settings = load(Path(cli.write("kafka.toml", kafka)))
    assert settings.backbone.properties["sasl.password"] == Secret(file=Path("/etc/eventmill/kafka.password"))
    record = b'{"kind": "made", "meta": {"id": 7, "at": 0}, "file": {"path": "/x"}}\n'
    [event] = cli("decode", "--topic", "lab.a", "--config", "kafka.toml", stdin=record).objects
    assert (event["type"], event["subject"], event["time"]) == ("org.example.made", "/x", "1970-01-01T00:00:00.000Z")


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

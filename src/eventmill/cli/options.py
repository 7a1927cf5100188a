"""Options that several commands share, exit codes, and the form of the help's last part. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from eventmill.errors import EventmillError, InvalidConfig

if TYPE_CHECKING:
    from eventmill.config import Settings

FAILED: Final = 1
WRONG: Final = 2
CANCELLED: Final = 130

DATA_DIR: Final = Path(".eventmill")
"""Where a server keeps its files unless it is told otherwise."""

Url = Annotated[
    str | None, typer.Option("--url", envvar="EVENTMILL_URL", show_envvar=True, help="Address of the server.")
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="EVENTMILL_KEY",
        show_envvar=True,
        help="Key, as uuid:secret (others on this machine can see options: prefer the environment).",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help=f"Data directory of the server.  [default: {DATA_DIR}]"),
]
Namespace = Annotated[str, typer.Option("--namespace", metavar="NAME", help="_ is the key's own.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON (one object a line) instead of a table.")]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Configuration (TOML); without it, the defaults.")
]
Brokers = Annotated[
    str | None,
    typer.Option("--brokers", metavar="HOST:PORT,…", help="Kafka's brokers, instead of the configuration's."),
]


def kafka_settings(config: Path | None, brokers: str | None) -> Settings:
    """The configuration, with these brokers. Raises InvalidConfig if it names no Kafka."""
    from eventmill.config import load

    settings = load(config, backbone={"kind": "kafka", "brokers": brokers}) if brokers else load(config)
    if settings.backbone.kind != "kafka":
        where = f'{config} has no backbone.kind = "kafka"' if config else "without a configuration"
        raise InvalidConfig(
            f"which Kafka? {where}: give --brokers HOST:PORT, or the --config of a server that reads it"
        )
    return settings


class CommandFailed(EventmillError):
    """The command has said what is wrong; all that is left is the exit code."""

    def __init__(self, code: int = FAILED) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


def closing(*examples: str, codes: str = "0 done, 1 failed, 2 wrong usage or input.") -> str:
    """The end of a command's help: examples as they are typed, and the exit codes."""
    lines = "\n".join(f"  {example}" for example in examples)
    return f"\b\nExamples:\n{lines}\n\nExit codes: {codes}"

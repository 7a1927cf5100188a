"""Commands that are a server, or look at one: `run`, `serve`, `check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmill.cli import options
from eventmill.cli.options import CommandFailed, closing

if TYPE_CHECKING:
    from eventmill.config import Settings

Port = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes any that is free.  [default: 3233]"),
]
Host = Annotated[str | None, typer.Option("--host", help="Address to listen on.  [default: 127.0.0.1]")]
LogFormat = Annotated[str | None, typer.Option("--log-format", help="text or json.  [default: text]")]


def settings_of(
    config: Path | None,
    data_dir: Path | None = None,
    port: int | None = None,
    host: str | None = None,
    log_format: str | None = None,
) -> Settings:
    """The configuration with what the options say. Raises InvalidConfig."""
    from eventmill.config import load

    given = {"data_dir": data_dir, "port": port, "host": host, "log_format": log_format}
    server = {name: value for name, value in given.items() if value is not None}
    return load(config, server=server) if server else load(config)


def run(
    flow_file: Annotated[Path, typer.Argument(metavar="FLOW.py", help="The flow.")],
    config: options.Config = None,
    data_dir: options.DataDir = None,
    port: Port = None,
    log_format: LogFormat = None,
    json: options.Json = False,
) -> None:
    """Serve a flow on this machine and print what happens.

    Nothing else needs to be installed. Ctrl-C ends it: what runs is let finish; a second Ctrl-C ends it at once.

    Directories that its files.written(…) globs name are watched, unless the configuration reads topics of Kafka: there
    the storage system tells of its files. One line is printed for every activation that ends
    and for every dead letter. State is kept in the data directory: the next run goes on where this one ended.
    """
    from eventmill.cli.flows import flow_entities, read_flow
    from eventmill.cli.prechecks import Server
    from eventmill.cli.running import run_flow

    settings = settings_of(config, data_dir, port, None, log_format)
    flow = read_flow(flow_file)
    run_flow(flow, flow_entities(flow, "default", server=Server(settings.limits, settings.pools)), settings, json)


def serve(
    config: options.Config = None,
    data_dir: options.DataDir = None,
    host: Host = None,
    port: Port = None,
    log_format: LogFormat = None,
) -> None:
    """Run a server until SIGTERM or Ctrl-C.

    It drains then, and the next one goes on where it ended. It writes its address and a key of its own to the data
    directory, where the other commands find them.
    """
    import uvloop

    from eventmill.server import serve

    uvloop.run(serve(settings_of(config, data_dir, port, host, log_format)))


def check(
    config: options.Config = None,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Print the configuration and what can be reached.

    With --config it checks that file, as a server would be started with it, and asks no server. Otherwise it asks the
    running server what it runs with. No secrets are printed.
    """
    from eventmill.cli import output

    report = _check_here(settings_of(config, data_dir)) if config is not None else _check_there(url, key, data_dir)
    if json:
        output.json_line(report)
    else:
        _print_report(report)
    if not all(component["ok"] for component in report["components"].values()):
        raise CommandFailed


def _check_there(url: str | None, key: str | None, data_dir: Path | None) -> Any:
    from eventmill.cli.client import Client, target

    with Client(target(url, key, data_dir)) as client:
        return client.get("/eventmill/v1/check")


def _check_here(settings: Settings) -> dict[str, Any]:
    import logging

    from eventmill.cli.checking import components

    # what is looked at is said in the report, not in a server's logs
    logging.getLogger("eventmill").addHandler(logging.NullHandler())
    found = {
        component.name: {"ok": component.ok, "detail": component.detail}
        | ({"warning": True} if component.is_warning else {})
        for component in components(settings)
    }
    return {"settings": settings.model_dump(mode="json"), "components": found}


def _print_report(report: dict[str, Any]) -> None:
    from eventmill.cli import output

    output.table(("setting", "value"), list(_flat(report["settings"])), "no settings")
    output.line("")
    rows = [(name, _state(facts), _detail(facts)) for name, facts in report["components"].items()]
    output.table(("component", "state", "detail"), rows, "no components")


def _state(facts: dict[str, Any]) -> str:
    if not facts["ok"]:
        return "FAILED"
    return "WARNING" if facts.get("warning") else "ok"


def _detail(facts: dict[str, Any]) -> str:
    """What is known of a component beside whether it is well."""
    from eventmill.cli import output

    if "detail" in facts:
        return str(facts["detail"])
    rows = _flat({name: value for name, value in facts.items() if name != "ok"})
    return ", ".join(f"{name} {value if isinstance(value, str) else output.json_text(value)}" for name, value in rows)


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of all leaves, in the order in which they stand."""
    if isinstance(value, dict) and value:
        return [row for key, part in value.items() for row in _flat(part, f"{name}.{key}" if name else key)]
    return [(name, value)]


def register(app: typer.Typer) -> None:
    app.command(
        epilog=closing(
            "eventmill run flow.py",
            "eventmill run flow.py --data-dir /var/tmp/mill --config eventmill.toml --port 0",
            codes="0 ended by Ctrl-C or SIGTERM, 1 failed, 2 the flow or configuration is wrong, 130 second Ctrl-C.",
        )
    )(run)
    app.command(
        epilog=closing(
            "eventmill serve --config /etc/eventmill.toml",
            "eventmill serve --data-dir /var/lib/eventmill --port 3233 --log-format json",
            codes="0 ended by Ctrl-C or SIGTERM, 1 failed, 2 the configuration is wrong.",
        )
    )(serve)
    app.command(
        epilog=closing(
            "eventmill check",
            "eventmill check --config /etc/eventmill.toml --json",
            codes="0 all can be reached, 1 something can't or no server answers, 2 the configuration is wrong.",
        )
    )(check)

"""Commands about a flow file: `deploy`, `undeploy`, `test`, `lint`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmill.cli import options
from eventmill.cli.options import CommandFailed, closing
from eventmill.errors import InvalidFlow, InvalidInput

if TYPE_CHECKING:
    from eventmill.cli.client import Client
    from eventmill.cli.deployment import Change
    from eventmill.cli.prechecks import Server
    from eventmill.sdk.pack import Flow

FlowFile = Annotated[Path, typer.Argument(metavar="FLOW.py", help="The flow.")]


def read_flow(path: Path) -> Flow:
    """Raises InvalidFlow with file and line."""
    from eventmill.sdk.errors import FlowError
    from eventmill.sdk.pack import load

    try:
        return load(path)
    except FlowError as e:
        raise InvalidFlow(str(e)) from e


def flow_entities(
    flow: Flow, namespace: str, parameters: dict[str, Any] | None = None, server: Server | None = None
) -> list[Any]:
    """The flow's documents, checked here, so that a mistake is known before anything is sent: patterns and schedules,
    and with a `server` everything else that it would refuse.

    Raises InvalidFlow, which names all that was found.
    """
    from eventmill.cli import prechecks
    from eventmill.sdk.errors import FlowError

    try:
        entities = flow.documents(namespace=namespace, parameters=parameters)
    except FlowError as e:
        raise InvalidFlow(str(e)) from e
    problems = list(prechecks.in_patterns(flow, entities))
    if server is not None:
        left = [entity for entity in entities if entity[0] != "triggers"] if problems else entities
        problems += prechecks.in_documents(flow, left, namespace, server)
    if problems:
        raise InvalidFlow("\neventmill: ".join(problems))
    return entities


def parameter_values(pairs: list[str] | None, option: str) -> dict[str, Any]:
    """`NAME=JSON` pairs; what is not JSON is taken as text."""
    import json

    values: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise InvalidInput(f"{option} {pair}: write NAME=VALUE")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def result_values(pairs: list[str] | None) -> dict[str, Any]:
    """`ACTION=JSON` pairs. Raises InvalidInput with the place where it is no JSON."""
    import json

    values: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise InvalidInput(f"--result {pair}: write ACTION=JSON")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError as e:
            raise InvalidInput(f"--result {name}: not JSON at line {e.lineno}, column {e.colno}: {e.msg}") from e
    return values


def deploy(
    flow_file: FlowFile,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="Another value for a parameter of the flow (JSON or text)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    namespace: options.Namespace = "_",
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Put a flow on a running server.

    Sends only what has changed, and removes what an earlier version of the flow had and this one hasn't. If anything is
    refused, nothing is changed.
    """
    from eventmill.cli import output
    from eventmill.cli.client import Client, target
    from eventmill.cli.deployment import carry_out, plan, real_name

    flow = read_flow(flow_file)
    given = parameter_values(parameters, "--param")
    with Client(target(url, key, data_dir)) as client:
        entities = flow_entities(flow, real_name(client, namespace), given, server_of(client))
        changes = plan(client, namespace, flow, entities)
        if not dry_run:
            with output.progress("deploying", len(changes)) as step:
                changes = carry_out(client, namespace, changes, lambda change: step())
    _print_changes(changes, json, "the flow is empty")
    for refusal in refusals(flow, changes):
        output.note(f"eventmill: {refusal}")
    if dry_run:
        output.note("dry run: nothing was changed")
    if any(change.outcome == "refused" for change in changes):
        raise CommandFailed


def server_of(client: Client) -> Server:
    """What this server bounds, and what its pools take. One of another version may know more settings than we do."""
    from eventmill.cli.prechecks import Server
    from eventmill.config import Limits, Pool

    given = client.get("/eventmill/v1/check")["settings"]
    limits = Limits(**{name: value for name, value in given["limits"].items() if name in Limits.model_fields})
    pools = {
        name: Pool(kind="htcondor", commands=row["commands"]) if row["kind"] == "htcondor" else Pool()
        for name, row in given["pools"].items()
    }
    return Server(limits, pools)


def refusals(flow: Flow, changes: list[Change]) -> Iterator[str]:
    """What the server has refused, with the line of its definition; and that nothing else was done, if so it is."""
    from eventmill.cli import prechecks

    refused = [change for change in changes if change.outcome == "refused"]
    for change in refused:
        where = prechecks.where(flow, change.collection, change.name)
        yield f"{where}: {change.collection.removesuffix('s')} '{change.name}' was refused: {change.reason}"
    if refused and refused == changes:
        yield "the flow was refused: nothing was changed"


def _print_changes(changes: list[Change], json: bool, empty: str) -> None:
    from eventmill.cli import output

    if json:
        output.json_lines(change.as_json() for change in changes)
        return
    output.table(
        ("outcome", "entity", "name"), [(c.outcome, c.collection.removesuffix("s"), c.name) for c in changes], empty
    )


def undeploy(
    what: Annotated[str, typer.Argument(metavar="FLOW.py|NAME", help="The flow's file, or the name of its Mill.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    namespace: options.Namespace = "_",
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Remove a flow from a running server.

    Its rules, triggers, actions and packages; with a NAME all that is in this package, whichever file it came from.
    Activations that wait or run still get what they need, and their records stay.
    """
    from eventmill.cli import output
    from eventmill.cli.client import Client, target
    from eventmill.cli.deployment import removal, remove
    from eventmill.errors import NotFound

    flow = read_flow(Path(what)) if what.endswith(".py") else None
    packages = {mill.name for mill in flow.mills} if flow else {what}
    with Client(target(url, key, data_dir)) as client:
        changes = removal(client, namespace, packages, flow.path.name if flow else None)
        if not changes:
            raise NotFound(f"there is nothing of '{what}' on the server")
        if not dry_run:
            changes = remove(client, namespace, changes)
    _print_changes(changes, json, "")
    refused = [change for change in changes if change.outcome == "refused"]
    for change in refused:
        output.note(f"eventmill: {change.collection.removesuffix('s')} '{change.name}' stays: {change.reason}")
    if dry_run:
        output.note("dry run: nothing was changed")
    if refused:
        raise CommandFailed


def rehearse(
    flow_file: FlowFile,
    event_file: Annotated[str, typer.Argument(metavar="EVENT.json", help="A CloudEvent as JSON; - for stdin.")],
    assumed: Annotated[
        list[str] | None,
        typer.Option(
            "--result",
            metavar="ACTION=JSON",
            help="Take this as the action's result instead of running it (what a submit description does, say).",
        ),
    ] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="As for deploy.")
    ] = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Try a flow on one event, without a server.

    Says which rules match, and why the others don't; then runs what they start, in the foreground. Functions and
    plain-Python jobs run in this process, one after the other, without time limits and retries. The completion of
    each action is an event again, for the flow's other rules. --config: its [[paths]] map event.path.
    """
    from eventmill.cli import output
    from eventmill.cli.events import read_event
    from eventmill.cli.prechecks import Server
    from eventmill.cli.rehearsal import Rehearsal
    from eventmill.config import load

    settings = load(config)
    flow = read_flow(flow_file)
    event = read_event(event_file)
    results = result_values(assumed)
    entities = flow_entities(
        flow, "default", parameter_values(parameters, "--param"), Server(settings.limits, settings.pools)
    )
    rehearsal = Rehearsal(flow, entities, results, settings.paths)
    steps = []
    for step in rehearsal.run(event):
        steps.append(step)
        if json:
            output.json_line(step.as_json())
        else:
            output.line(step.as_text())
    if not any(step.kind == "action" for step in steps) and not json:
        output.note("no rule matches: nothing was run")
    if any(step.failed for step in steps) or not any(step.kind == "action" for step in steps):
        raise CommandFailed


def lint(
    flow_file: Annotated[
        Path | None, typer.Argument(metavar="[FLOW.py]", help="A flow; without one, what is on the server.")
    ] = None,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Look for rules that are dear, dead or circular.

    That is: keyless rules (every event is compared with them), patterns that nothing can match, and loops, where an
    action writes what its own rule waits for.
    """
    from eventmill.cli import output
    from eventmill.cli.client import Client, target
    from eventmill.engine import lint as linting

    if flow_file is None:
        with Client(target(url, key, data_dir)) as client:
            findings = client.get("/eventmill/v1/lint")
    else:
        flow = read_flow(flow_file)
        findings = [finding.as_json() for finding in linting.lint(flow_entities(flow, "default"), "default")]
    if json:
        output.json_lines(findings)
    else:
        rows = [(f["severity"], f["rule"], f["message"]) for f in findings]
        output.table(("severity", "rule", "finding"), rows, "nothing to complain about")
    if findings:
        raise CommandFailed


def register(app: typer.Typer) -> None:
    app.command(
        epilog=closing(
            "eventmill deploy flow.py",
            "eventmill deploy flow.py --dry-run --json",
            "EVENTMILL_URL=https://mill.example.org EVENTMILL_KEY=… eventmill deploy flow.py --param threshold=0.5",
            codes="0 done, 1 something was refused or no server answered, 2 the flow is wrong.",
        )
    )(deploy)
    app.command(
        epilog=closing(
            "eventmill undeploy flow.py --dry-run",
            "eventmill undeploy beamtime",
            codes="0 removed, 1 nothing of it is there or no server answered, 2 the flow is wrong.",
        )
    )(undeploy)
    app.command(
        "test",
        epilog=closing(
            "eventmill test flow.py event.json",
            """eventmill test flow.py event.json --result calibrate='{"path": "/data/exfel/run1.h5"}'""",
            codes="0 all that ran has succeeded, 1 something failed or no rule matches, 2 the flow or event is wrong.",
        ),
    )(rehearse)
    app.command(
        epilog=closing(
            "eventmill lint flow.py",
            "eventmill lint --json",
            codes="0 nothing found, 1 something found, 2 the flow is wrong.",
        )
    )(lint)

"""Commands about events: `emit`, `explain`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmill.cli import options
from eventmill.cli.options import CommandFailed, closing
from eventmill.errors import InvalidInput

if TYPE_CHECKING:
    from eventmill.cli.client import Client
    from eventmill.sdk.event import Event


def read_event(file: str) -> Event:
    """A checked event from a file of JSON, or from stdin for `-`. Raises InvalidEvent or InvalidInput."""
    from eventmill.errors import InvalidEvent
    from eventmill.events import decode

    try:
        return decode(read_bytes(file))
    except InvalidEvent as e:
        raise InvalidInput(f"{'stdin' if file == '-' else file} is no event: {e}") from e


def read_bytes(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as e:
        raise InvalidInput(f"can't read {file}: {e.strerror}") from e


def emit(
    event_file: Annotated[
        str | None, typer.Argument(metavar="[EVENT.json]", help="An event as JSON; - for stdin.")
    ] = None,
    type: Annotated[str | None, typer.Option("--type", help="Attribute type.")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Attribute source.  [default: //HOST/emit]")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="Attribute subject.")] = None,
    id: Annotated[str | None, typer.Option("--id", help="Attribute id; the same id again is the same event.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="JSON", help="The data.")] = None,
    extension: Annotated[
        list[str] | None, typer.Option("--extension", metavar="NAME=VALUE", help="An extension attribute.")
    ] = None,
    files_from: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Events for the files that lie here already.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option("--rule", metavar="RULE", help="With --from: only files that this rule matches.")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="The file has many events, one a line.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the events instead of sending them.")] = False,
    namespace: options.Namespace = "_",
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Send events: one, many, or those of files.

    The event is made of a JSON file (or stdin) and the options, which win. With --from and --rule every file below DIR
    that the rule's pattern matches is announced as if it had just been written. The server knows an unchanged file by
    its digest: what a rule has dealt with, it does not start again; but other rules that match see the files, too.
    With --lines the events are sent as they are; of an event that the server has had before, only the first one counts.
    """
    from eventmill.cli import output
    from eventmill.cli.client import Client, target

    given = {"type": type, "source": source, "subject": subject, "id": id}
    attributes = {name: value for name, value in given.items() if value is not None}
    if files_from is not None or rule is not None:
        if files_from is None or rule is None or event_file or attributes or data or extension:
            raise InvalidInput("emit --from DIR and --rule RULE belong together, and go with nothing else of an event")
        with Client(target(url, key, data_dir)) as client:
            _emit_files(client, namespace, files_from, rule, dry_run, json)
        return
    if lines:
        if event_file is None or attributes or data or extension or dry_run:
            raise InvalidInput("emit --lines EVENTS.jsonl (or -) goes with nothing else of an event")
        with Client(target(url, key, data_dir)) as client:
            _emit_lines(client, event_file, json)
        return
    event = _composed(event_file, attributes, data, extension)
    if dry_run:
        output.json_line(event)
        return
    with Client(target(url, key, data_dir)) as client:
        _send(client, event)
    if json:
        output.json_line({"id": event["id"], "source": event["source"]})
    else:
        output.line(f"accepted: {event['id']}")


def _send(client: Client, event: dict[str, Any]) -> None:
    """Raises Unavailable with what makes a second try harmless: the server may have taken the event all the same."""
    from eventmill.errors import Unavailable

    try:
        client.call("POST", "/events", event, content_type="application/cloudevents+json")
    except Unavailable as e:
        raise Unavailable(f"{e}. If you send it again, add --id {event['id']}: then it counts once") from e


def _composed(
    event_file: str | None, attributes: dict[str, str], data: str | None, extension: list[str] | None
) -> dict[str, Any]:
    """The event of a file and the options. Raises InvalidInput."""
    from eventmill.cli.flows import parameter_values
    from eventmill.errors import InvalidEvent
    from eventmill.events import validate
    from eventmill.sdk.event import Event

    changes: dict[str, Any] = {**attributes, **parameter_values(extension, "--extension")}
    if data is not None:
        changes |= {"data": _json_of(data, "--data"), "datacontenttype": "application/json"}
    if event_file is not None:
        base = _json_of(read_bytes(event_file), "stdin" if event_file == "-" else event_file)
        if not isinstance(base, dict):
            raise InvalidInput(f"{event_file} is no event: not a JSON object")
        if "data" in changes:
            base.pop("data_base64", None)
    elif "type" not in changes:
        raise InvalidInput("emit needs an event: EVENT.json, - for stdin, or at least --type")
    else:
        base = {}
    defaults = Event.new("", _own_source())
    try:
        return dict(validate({**{name: defaults[name] for name in defaults if name != "type"}, **base, **changes}))
    except InvalidEvent as e:
        raise InvalidInput(f"no event: {e}") from e


def _own_source() -> str:
    import socket

    return f"//{socket.gethostname()}/emit"


def _json_of(text: str | bytes, where: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError as e:
        raise InvalidInput(f"{where} is not JSON: {e}") from e


def _emit_files(client: Any, namespace: str, folder: Path, rule: str, dry_run: bool, json: bool) -> None:
    from eventmill.cli import output
    from eventmill.cli.backfill import Backfill

    backfill = Backfill.for_rule(client, namespace, rule)
    sent = 0
    with output.progress(f"files below {folder}", None) as step:
        for events in backfill.batches(folder, step):
            if dry_run:
                output.json_lines(events)
            else:
                client.call("POST", "/events", events, content_type="application/cloudevents-batch+json")
            sent += len(events)
    if json and not dry_run:
        output.json_line({"files": backfill.seen, "events": sent})
    else:
        found = f"{output.counted(backfill.seen, 'file')} below {folder}, {sent} match{'es' if sent == 1 else ''}"
        output.note(found + ("" if dry_run else ": accepted"))
    if backfill.being_written:
        output.note(f"{output.counted(backfill.being_written, 'file')} being written: left out")
    if backfill.unreadable:
        output.note(f"eventmill: {backfill.unreadable} files or directories could not be read")
        raise CommandFailed


def _emit_lines(client: Client, file: str, json: bool) -> None:
    """Send what comes, as it comes. Raises InvalidInput for a line that is no event: those before it have been sent."""
    from contextlib import nullcontext

    from eventmill.cli import output
    from eventmill.cli.backfill import BATCH
    from eventmill.cli.match import pieces

    sent, name = 0, "stdin" if file == "-" else file
    try:
        opened = nullcontext(sys.stdin.buffer) if file == "-" else open(file, "rb")  # noqa: SIM115
    except OSError as e:
        raise InvalidInput(f"can't read {file}: {e.strerror}") from e
    with opened as stream, output.progress("events", None) as step:
        for first, raw in pieces(name, stream):
            for at in range(0, len(raw), BATCH):
                events, problem = _events_of(name, first + at, raw[at : at + BATCH])
                if events:
                    client.call("POST", "/events", events, content_type="application/cloudevents-batch+json")
                    sent += len(events)
                    step(len(events))
                if problem is not None:
                    raise InvalidInput(f"{problem} ({sent} events before it were accepted)")
    if json:
        output.json_line({"events": sent})
    else:
        output.line(f"accepted: {output.counted(sent, 'event')}")


def _events_of(name: str, first: int, lines: list[bytes]) -> tuple[list[Event], str | None]:
    """The events of these lines; up to the first one that is none, with what is the matter with it."""
    from eventmill.errors import InvalidEvent
    from eventmill.events import decode

    events: list[Event] = []
    for number, line in enumerate(lines, first):
        if line and not line.isspace():
            try:
                events.append(decode(line))
            except InvalidEvent as e:
                return events, f"{name}:{number} is no event: {e}"
    return events, None


def explain(
    event_file: Annotated[str, typer.Argument(metavar="EVENT.json", help="An event as JSON; - for stdin.")],
    rule: Annotated[str | None, typer.Option("--rule", metavar="RULE", help="Only this rule.")] = None,
    namespace: options.Namespace = "_",
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Say which rules an event matches, and why not.

    For every active rule with a pattern: each of its conditions, and the value that it met.
    """
    from eventmill.cli import output
    from eventmill.cli.client import Client, target
    from eventmill.errors import NotFound

    event = read_event(event_file)
    with Client(target(url, key, data_dir)) as client:
        answers = client.post("/eventmill/v1/explain", event)
    if rule is not None:
        answers = [answer for answer in answers if answer["rule"] == rule or answer["rule"].partition("/")[2] == rule]
        if not answers:
            raise NotFound(f"there is no active rule '{rule}' with a pattern")
    if json:
        output.json_lines(answers)
        return
    if not answers:
        output.note("there is no active rule with a pattern")
    for answer in answers:
        output.line(f"{answer['rule']}: {answer['text']}")


def register(app: typer.Typer) -> None:
    app.command(
        epilog=closing(
            """eventmill emit --type org.lab.run.ended --subject /run/7 --data '{"good": true}'""",
            "eventmill emit event.json --id again-1",
            "eventmill emit --from /data/exfel --rule beamtime.inspect --dry-run",
            "eventmill record billing --config mill.toml --events | eventmill emit --lines -",
            codes="0 accepted (durable), 1 refused or no server answered, 2 no event.",
        )
    )(emit)
    app.command(
        epilog=closing(
            "eventmill explain event.json",
            "eventmill explain event.json --rule beamtime.inspect --json",
            codes="0 explained (whether or not a rule matches), 1 no server or no such rule, 2 no event.",
        )
    )(explain)

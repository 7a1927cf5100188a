"""Commands about activations: what has run, what runs, and how it went."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmill.cli import options
from eventmill.cli.options import CommandFailed, closing
from eventmill.errors import InvalidInput

if TYPE_CHECKING:
    from eventmill.cli.client import Client

PATH = "/eventmill/v1/activations"
UNDER_WAY = ("pending", "handed", "accepted", "running")
STATES = (*UNDER_WAY, "succeeded", "failed", "cancelled")
FINAL = frozenset({"succeeded", "failed", "cancelled"})
WITH_STEPS = frozenset({"sequence", "map", "conductor"})
UNFINISHED = "unfinished"
"""A word for all states of what is under way."""

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)\Z")
_AGO_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_ERRORS_MAX = 50
"""Failed activations of one list whose errors are shown."""
_PREFIX_MIN = 12
_PREFIX_AMONG = 200
"""A part of an id is looked for among so many activations, the newest."""
_NAMED_MAX = 5
"""Activations that are named where a part of an id may mean several."""
_FOLLOW_S = 60
"""How long one request waits for the end of an activation."""

app = typer.Typer(
    name="activations",
    help="What has run and what runs: list, show, logs, replay, cancel.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Id = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Id of the activation: 32 hex digits, or of a recent one enough of its digits to tell it apart "
        "(12 or more).",
    ),
]


def milliseconds(text: str, now_ms: int) -> int:
    """A moment as epoch ms: `30m` ago (s, m, h, d), epoch ms, or an ISO time (of this machine's zone unless it says
    otherwise). Raises InvalidInput."""
    from datetime import datetime

    if ago := _AGO.match(text.strip()):
        return now_ms - round(1000 * float(ago[1]) * _AGO_S[ago[2]])
    if text.isdecimal() and len(text) >= 12:
        return int(text)
    try:
        return round(1000 * datetime.fromisoformat(text).timestamp())
    except ValueError:
        raise InvalidInput(f"'{text}' is no time: write 30m, 2h, 7d, or 2026-05-01T12:00") from None


@app.command(
    "list",
    epilog=closing(
        "eventmill activations list --state failed --since 2h",
        "eventmill activations list --state unfinished",
        "eventmill activations list --action beamtime/inspect --limit 200 --json",
    ),
)
def list_(
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            help=f"Only in this state, or these (a,b): {', '.join(STATES)}; {UNFINISHED} is all that is under way.",
        ),
    ] = None,
    action: Annotated[str | None, typer.Option("--action", help="Only of this action: name or package/name.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Only from then on: 30m, 2h, 7d (ago), or a time.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 30,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """List activations, newest first, those under way among them."""
    from eventmill.cli import output
    from eventmill.cli.client import Client, target

    states = None if state is None else _states(state)
    since_ms = None if since is None else milliseconds(since, int(1000 * time.time()))
    with Client(target(url, key, data_dir)) as client:
        found = list(client.pages(PATH, limit, state=states, name=action, since=since_ms))
        if json:
            output.json_lines(found)
            return
        errors = _errors(client, found)
    rows = [
        (
            a["activationId"],
            a["state"],
            output.local(a["action"]),
            output.moment(_begin(a)),
            _took(a),
            f"{a['attempt']}",
            output.local(a["rule"]),
            errors.get(a["activationId"], ""),
        )
        for a in found
    ]
    columns = ["activation", "state", "action", "begin", ">took", ">attempt", "rule"]
    if errors:
        output.table([*columns, "error"], rows, "")
    else:
        output.table(columns, [row[:-1] for row in rows], "no activations")


def _states(text: str) -> str:
    """What `--state` says, in the API's words. Raises InvalidInput."""
    named = text.split(",")
    if not set(named) <= {*STATES, UNFINISHED}:
        raise InvalidInput(f"--state {text}: write one or several (a,b) of {', '.join((*STATES, UNFINISHED))}")
    return ",".join(",".join(UNDER_WAY) if name == UNFINISHED else name for name in named)


def _errors(client: Client, found: list[Any]) -> dict[str, str]:
    """Why the first of those that have failed did so. A list has no results: each is a request."""
    from eventmill.cli import output

    failed = [a["activationId"] for a in found if a["state"] == "failed"]
    results = {id: client.get(f"{PATH}/{id}")["result"] for id in failed[:_ERRORS_MAX]}
    return {id: output.short(str(r["error"]), 80) for id, r in results.items() if isinstance(r, dict) and "error" in r}


@app.command(
    epilog=closing(
        "eventmill activations show 0123456789abcdef0123456789abcdef",
        "eventmill activations show --follow 0123456789abcdef0123456789abcdef",
        codes="0 shown (with --follow: it has succeeded), 1 not found, no server, or (with --follow) it has failed.",
    )
)
def show(
    id: Id,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until it has ended.")] = False,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Show one activation.

    Its state, attempts, cause, result and usage, and the steps of a chain as a tree.
    """
    from eventmill.cli import output
    from eventmill.cli.client import Client, target

    with Client(target(url, key, data_dir)) as client:
        id = _whole(client, id)
        shown = client.get(f"{PATH}/{id}")
        if follow and shown["state"] not in FINAL:
            output.note(f"{shown['state']}, attempt {shown['attempt']}: waiting for its end (Ctrl-C leaves it running)")
            shown = _followed(client, id)
        if json:
            output.json_line(shown)
        else:
            _print(client, shown)
    if shown["state"] == "failed" and not json:
        output.note(f"what it has written: eventmill activations logs {id}")
    if follow and shown["state"] != "succeeded":
        raise CommandFailed


@app.command(epilog=closing("eventmill activations logs 0123456789abcdef0123456789abcdef"))
def logs(
    id: Id,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Print what it has written to stdout and stderr.

    Of a sequence, map or conductor: what its steps have written, each line with the step's name in front (with --json
    its own logs, which are the ids of its steps).
    """
    from eventmill.cli import output
    from eventmill.cli.client import Client, target

    with Client(target(url, key, data_dir)) as client:
        shown = client.get(f"{PATH}/{_whole(client, id)}")
        if json:
            output.json_line({"logs": shown["logs"]})
            return
        for line in _logs(client, shown):
            output.line(line)
    if shown["state"] not in FINAL:
        output.note("still under way: logs come with its end")


def _logs(client: Client, shown: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """What it has written; of what has steps what they have, with their names. Each step is one request."""
    from eventmill.cli import output

    steps = shown.get("steps")
    if not steps:
        yield from (f"{name}: {line}" if name else line for line in shown["logs"])
        return
    for step in steps:
        whole = client.get(f"{PATH}/{step['activationId']}")
        yield from _logs(client, whole, output.local(step["action"]))


@app.command(epilog=closing("eventmill activations replay 0123456789abcdef0123456789abcdef"))
def replay(
    id: Id,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Try a failed or cancelled activation again.

    It gets a new attempt; a chain goes on where it failed.
    """
    _act(id, "replay", url, key, data_dir, json)


@app.command(epilog=closing("eventmill activations cancel 0123456789abcdef0123456789abcdef"))
def cancel(
    id: Id,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """End an activation, with its steps and its job."""
    _act(id, "cancel", url, key, data_dir, json)


def _act(id: str, verb: str, url: str | None, key: str | None, data_dir: Any, json: bool) -> None:
    from eventmill.cli import output
    from eventmill.cli.client import Client, target

    with Client(target(url, key, data_dir)) as client:
        answer = client.post(f"{PATH}/{_whole(client, id)}/{verb}")
    if json:
        output.json_line(answer)
    else:
        output.line(f"{answer['activationId']}: {answer['state']}, attempt {answer['attempt']}")


def _whole(client: Client, text: str) -> str:
    """The id that begins so, if one of the newest activations has it.

    Raises InvalidInput for what can't be (or is not) the beginning of an id, and would be another path."""
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return text
    if not re.fullmatch(rf"[0-9a-f]{{{_PREFIX_MIN},31}}", text):
        raise InvalidInput(
            f"'{text}' is no id of an activation: 32 hex digits, as `activations list` shows them, or of a recent one "
            f"enough of its digits to tell it apart ({_PREFIX_MIN} or more)"
        )
    found = [a for a in client.pages(PATH, _PREFIX_AMONG) if a["activationId"].startswith(text)]
    if not found:
        raise InvalidInput(f"'{text}': none of the last {_PREFIX_AMONG} activations begins so: write the whole id")
    if len(found) > 1:
        raise InvalidInput(_ambiguous(text, found))
    return str(found[0]["activationId"])


def _ambiguous(text: str, found: list[Any]) -> str:
    from eventmill.cli import output

    named = [f"{a['activationId']}  {output.local(a['action'])}  {a['state']}" for a in found[:_NAMED_MAX]]
    more = len(found) - len(named)
    lines = [f"'{text}': {len(found)} of the last {_PREFIX_AMONG} activations begin so: write more digits", *named]
    return "\n  ".join([*lines, f"and {more} more"] if more else lines)


def _followed(client: Client, id: str) -> Any:
    """The activation when it has ended. A server that answers at once is asked again after a second."""
    while True:
        asked = time.monotonic()
        shown = client.get(f"{PATH}/{id}", wait_s=_FOLLOW_S)
        if shown["state"] in FINAL:
            return shown
        time.sleep(max(0.0, 1.0 - (time.monotonic() - asked)))


# showing one


def _begin(activation: Mapping[str, Any]) -> int | None:
    """When it was started, or recorded if it has not been."""
    return activation.get("start") or activation.get("created")


def _took(activation: Mapping[str, Any]) -> str:
    from eventmill.cli import output

    return output.lasting(activation.get("start"), activation.get("end"))


def _print(client: Client, shown: Mapping[str, Any]) -> None:
    from eventmill.cli import output

    for name, value in _facts(shown):
        if value not in (None, "", {}, []):
            output.line(f"{name + ':':<11} {value if isinstance(value, str) else output.json_pretty(value)}")
    for attempt in shown.get("attempts", ()):
        output.line(f"attempt {attempt['attempt']}: {_attempt(attempt)}")
    if shown.get("steps"):
        output.show(_tree(client, shown))


def _facts(shown: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    from eventmill.cli import output

    ended = shown["state"] in FINAL
    left = None if ended else shown.get("attempts_left")
    yield "activation", shown["activationId"]
    yield "action", output.local(shown["action"])
    yield "state", shown["state"]
    yield "attempt", f"{shown['attempt']}" + (f" ({left} more if it fails)" if left else "")
    yield "created", output.moment(shown.get("created"))
    yield "started", output.moment(shown.get("start"))
    yield "ended", " ".join(filter(None, (output.moment(shown.get("end")), _took(shown) and f"({_took(shown)})")))
    yield "due", "" if ended else output.moment(shown.get("due"))
    cause = shown.get("cause")
    yield "cause", cause and f"event {cause['id']} from {cause['source']}"
    yield "rule", output.local(shown.get("rule"))
    for name in ("parent", "handle", "usage"):
        yield name, shown.get(name)
    yield "parameters", shown.get("params")
    yield "result", shown.get("result")


def _attempt(attempt: Mapping[str, Any]) -> str:
    from eventmill.cli import output

    return f"{attempt['state']}, {output.moment(attempt.get('start'))} {_took(attempt)}".rstrip()


def _tree(client: Client, shown: Mapping[str, Any]) -> Any:
    """The steps of a chain or map, and theirs. Each level is one request."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(_label(shown)))

    def grow(branch: Tree, steps: list[Mapping[str, Any]]) -> None:
        for step in steps:
            below = branch.add(Text(_label(step)))
            if step.get("category") in WITH_STEPS:
                grow(below, client.get(f"{PATH}/{step['activationId']}").get("steps", []))

    grow(tree, shown["steps"])
    return tree


def _label(activation: Mapping[str, Any]) -> str:
    from eventmill.cli import output

    took, handle = _took(activation), activation.get("handle")
    parts = [
        output.local(activation["action"]),
        activation["state"],
        took,
        f"job {handle}" if handle else "",
        activation["activationId"],
    ]
    return output.printable("  ".join(filter(None, parts)))

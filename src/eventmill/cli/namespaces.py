"""Commands about namespaces: who shares a server, and their keys. They need the root key, which the server makes.

A key is printed once, or written into a file that only its owner reads; nothing else here ever has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmill.cli import options
from eventmill.cli.options import closing
from eventmill.errors import EventmillError, InvalidInput

if TYPE_CHECKING:
    from eventmill.cli.client import Target

PATH = "/eventmill/v1/namespaces"

app = typer.Typer(
    name="namespaces",
    help="Who shares the server: create, list, rotate keys, delete.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the namespace.")]
Source = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="PREFIX",
        help="Its keys may post events whose source begins so (several times: any of these).",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", help="Write the key into this new file (mode 0600), don't print it."),
]


@app.command(
    epilog=closing(
        "eventmill namespaces create beamline7",
        "eventmill namespaces create beamline7 --source //dcache.example.org/ --key-file beamline7.key",
    )
)
def create(
    name: Name,
    source: Source = None,
    key_file: KeyFile = None,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Make a namespace, and its key.

    The key is shown this once: the server keeps a digest of it. Without --source it may post events whose source
    begins with /namespaces/NAME/.
    """
    from eventmill.cli.client import Client, target

    body = {"name": name, **({"sources": source} if source else {})}
    _check(body)
    with _Place(key_file) as place, Client(target(url, key, data_dir)) as client:
        place.take(client.post(PATH, body), json)


@app.command("list", epilog=closing("eventmill namespaces list", "eventmill namespaces list --json"))
def list_(
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """List namespaces, with the public halves of their keys."""
    from eventmill.cli import output
    from eventmill.cli.client import Client, target

    with Client(target(url, key, data_dir)) as client:
        found = client.get(PATH)
    if json:
        output.json_lines(found)
        return
    rows = [
        (
            namespace["namespace"],
            " ".join(source or "(any)" for source in namespace["sources"]),
            output.moment(known["created"]),
            known["uuid"],
        )
        for namespace in found
        for known in namespace["keys"]
    ]
    output.table(("namespace", "sources", "created", "key"), rows, "no namespaces")


@app.command(
    epilog=closing(
        "eventmill namespaces rotate beamline7",
        "eventmill namespaces rotate beamline7 --source /namespaces/beamline7/ --source //dcache.example.org/",
        "eventmill namespaces rotate default",
    )
)
def rotate(
    name: Name,
    source: Source = None,
    key_file: KeyFile = None,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Make a new key for a namespace, and withdraw all that it had.

    The sources stay, unless --source says which they are from now on. The root key, if it is the one in the data
    directory, is replaced there.
    """
    from eventmill.cli.client import Client, target

    body = {"sources": source} if source else {}
    _check(body)
    server = target(url, key, data_dir)
    with _Place(key_file) as place, Client(server) as client:
        [own] = client.get("/api/v1/namespaces")
        answer = client.post(f"{PATH}/{_segment(name)}/rotate", body)
        file = (data_dir or options.DATA_DIR) / "key"
        if name == own and _is_in(file, server):
            from eventmill.server import replace_file

            replace_file(file, answer["key"] + "\n", 0o600)
        place.take(answer, json)


@app.command(
    epilog=closing("eventmill namespaces delete beamline7", "eventmill namespaces delete beamline7 --force"),
)
def delete(
    name: Name,
    force: Annotated[
        bool, typer.Option("--force", help="Also if it has entities or activations: they are deleted and cancelled.")
    ] = False,
    url: options.Url = None,
    key: options.Key = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
) -> None:
    """Delete a namespace and withdraw its keys.

    What has run in it stays to be seen, for a namespace of the same name, until it is too old (retention).
    """
    from eventmill.cli import output
    from eventmill.cli.client import Client, Refused, target

    with Client(target(url, key, data_dir)) as client:
        try:
            gone = client.delete(f"{PATH}/{_segment(name)}", force=force)
        except Refused as e:
            raise EventmillError(str(e).replace("with force=true", "with --force")) from e
    if json:
        output.json_line(gone)
    else:
        output.note(f"namespace {name} is deleted")


def _check(body: dict[str, Any]) -> None:
    """What the server would refuse whatever it has. Raises InvalidInput."""
    from eventmill.api.errors import Refusal
    from eventmill.api.namespaces import new_name, new_sources

    try:
        if "name" in body:
            new_name(body["name"])
        new_sources(body.get("sources"), ())
    except Refusal as e:
        raise InvalidInput(str(e)) from e


def _segment(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


class _Place:
    """Where a new key goes. A file is opened before the key is made, since it can't be shown a second time; it goes
    away again if no key comes."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._open = False

    def __enter__(self) -> _Place:
        from eventmill.errors import InvalidConfig

        if self._file is not None:
            try:
                self._file.touch(0o600, exist_ok=False)
            except OSError as e:
                raise InvalidConfig(f"can't make the key file {self._file}: {e.strerror}") from e
            self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._open and self._file is not None:
            self._file.unlink()

    def take(self, answer: dict[str, Any], json: bool) -> None:
        """Show what has been made, with the key if it has no file."""
        from eventmill.cli import output

        if self._file is not None:
            self._file.write_text(answer.pop("key") + "\n")
            self._open = False
            output.note(f"the key of {answer['namespace']} is in {self._file}")
        if json:
            output.json_line(answer)
        elif "key" in answer:
            output.line(answer["key"])
            output.note(f"this is the key of {answer['namespace']}: it is not shown again")


def _is_in(file: Path, server: Target) -> bool:
    try:
        return file.read_text().strip() == server.key
    except OSError:
        return False

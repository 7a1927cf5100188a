"""Namespaces from the command line, against a real server."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Ran
from tests.cli.server import ended, started

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("server")
    with started(folder, "serve"):
        yield folder / "data"


def run(cli: Cli, data: Path, *arguments: str, key: str | None = None) -> Ran:
    where: tuple[str, ...] = ("--data-dir", str(data))
    if key is not None:
        where = ("--url", (data / "address").read_text().strip(), "--key", key)
    return cli("namespaces", *arguments, *where)


def test_the_life_of_a_namespace(cli: Cli, data: Path) -> None:
    made = run(cli, data, "create", "lab")
    assert made.code == 0
    key = made.out.strip()
    assert made.err == "this is the key of lab: it is not shown again\n"
    assert run(cli, data, "create", "lab").code == 1
    listed = run(cli, data, "list")
    assert key.split(":")[0] in listed.out
    assert key.split(":")[1] not in listed.out
    assert "/namespaces/lab/" in listed.out
    [lab] = [one for one in run(cli, data, "list", "--json").objects if one["namespace"] == "lab"]
    assert lab["keys"][0]["uuid"] == key.split(":")[0]
    refused = run(cli, data, "list", key=key)
    assert (refused.code, refused.out) == (1, "")
    assert "the business of the server's owner" in refused.err
    [turned] = run(cli, data, "rotate", "lab", "--source", "//lab/", "--json").objects
    assert turned["sources"] == ["//lab/"]
    assert "does not accept the key" in run(cli, data, "list", key=key).err
    gone = run(cli, data, "delete", "lab")
    assert (gone.code, gone.err) == (0, "namespace lab is deleted\n")
    gone = run(cli, data, "delete", "lab")
    assert (gone.code, gone.err) == (1, "eventmill: there is no namespace lab\n")


def test_what_is_no_name_and_no_source(cli: Cli, data: Path) -> None:
    for name in ("", "a b", "é", ".a"):
        refused = run(cli, data, "create", name)
        assert (refused.code, refused.out) == (2, "")
        assert "has ASCII letters, digits, _@.-, at least one" in refused.err
    for command in ("create", "rotate"):
        refused = run(cli, data, command, "default", "--source", "/a b")
        assert (refused.code, refused.out) == (2, "")
        assert "no source begins with '/a b'" in refused.err


def test_what_is_in_it_goes_by_force(cli: Cli, data: Path) -> None:
    key = run(cli, data, "create", "full").out.strip()
    flow = cli.write("f.py", "from eventmill import Mill\nmill = Mill('m')\n@mill.function\ndef f(event): ...\n")
    where = ("--url", (data / "address").read_text().strip(), "--key", key)
    assert cli("deploy", flow, *where).code == 0
    refused = run(cli, data, "delete", "full")
    assert refused.code == 1
    assert refused.err == "eventmill: namespace full is not empty (1 package, 1 action): with --force they go, too\n"
    assert run(cli, data, "delete", "full", "--force").code == 0


def test_a_key_in_a_file(cli: Cli, data: Path) -> None:
    file = cli.folder / "lab.key"
    made = run(cli, data, "create", "filed", "--key-file", str(file))
    assert made.code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert made.out == ""
    assert len(file.read_text().strip().split(":")[1]) == 64
    # a file that is there is not overwritten, and then no key is made
    assert run(cli, data, "create", "second", "--key-file", str(file)).code == 2
    assert "second" not in run(cli, data, "list").out
    # and none is left behind for a key that was not made
    other = cli.folder / "other.key"
    assert run(cli, data, "create", "filed", "--key-file", str(other)).code == 1
    assert not other.exists()


def test_the_root_key_is_rotated_where_it_lies(tmp_path: Path, cli: Cli) -> None:
    data = tmp_path / "data"
    with started(tmp_path, "serve") as process:
        old = (data / "key").read_text().strip()
        assert run(cli, data, "rotate", "default", "--json").code == 0
        assert (data / "key").read_text().strip() != old
        assert stat.S_IMODE((data / "key").stat().st_mode) == 0o600
        assert run(cli, data, "list").code == 0
        assert run(cli, data, "list", key=old).code == 1
        (data / "key").write_text(old + "\n")
        assert ended(process) == 0
    with started(tmp_path, "serve"):  # the file has a key that was withdrawn: its owner gets another one
        assert run(cli, data, "list").code == 0

"""`eventmill check --config FILE`: the effective configuration, what can be had of it, and what is wrong in it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli


def checked(cli: Cli, config: str) -> tuple[int, dict[str, Any]]:
    ran = cli("check", "--config", cli.write("mill.toml", config), "--json")
    [report] = ran.objects
    return ran.code, report


def test_everything_can_be_had(cli: Cli, tmp_path: Path) -> None:
    code, report = checked(cli, f'[server]\nport = 0\n[[files]]\npath = "{tmp_path}"\nstart = "all"\n')
    assert code == 0
    assert report["settings"]["files"] == [{"path": str(tmp_path), "start": "all"}]
    assert report["components"]["server.data_dir"] == {"ok": True, "detail": ".eventmill will be made"}
    assert report["components"][f"files {tmp_path}"]["ok"] is True
    assert all(component["ok"] for component in report["components"].values())
    assert not (tmp_path / ".eventmill").exists()  # it only looks


def test_what_can_not_be_had(cli: Cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = f"""
[server]
port = {taken.getsockname()[1]}
data_dir = "mill.toml/data"
[limits]
disk_free_mb = 1000000000
[[files]]
path = "mill.toml"
[[files]]
path = "/nosuch"
[[paths]]
subject = "/exfel"
local = "/nosuch/either"
"""
        code, report = checked(cli, config)
    assert code == 1
    details = {name: facts["detail"] for name, facts in report["components"].items() if not facts["ok"]}
    assert set(details) == {"server.data_dir", "disk", "server.port", "files mill.toml", "paths /exfel"}
    assert "mill.toml is no directory" in details["server.data_dir"]
    assert report["components"]["files /nosuch"]["detail"] == "/nosuch is not there yet: it will be waited for"
    assert "Address already in use" in details["server.port"]
    assert "below limits.disk_free_mb" in details["disk"]


def test_what_functions_want(cli: Cli, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret")
    secret.chmod(0o644)
    config = f"""
server.port = 0
[functions]
node_modules = "/nosuch"
[functions.http]
hosts = ["fn.example.org"]
headers."fn.example.org".Authorization = {{ file = "{secret}" }}
"""
    code, report = checked(cli, config)
    assert code == 1
    found = report["components"]
    assert [name for name, facts in found.items() if not facts["ok"]] == ["functions.node_modules"]
    assert found["functions.node_modules"]["detail"] == "/nosuch is no directory here"
    assert "Node.js" in found["functions nodejs"]["detail"] or "nodejs:18" in found["functions nodejs"]["detail"]
    [warned] = [facts["detail"] for facts in found.values() if facts.get("warning")]
    assert warned == f"everybody can read {secret} (mode 0644): chmod o-r"
    secret.chmod(0o640)
    assert not any(facts.get("warning") for facts in checked(cli, config)[1]["components"].values())


def test_an_openwhisk_that_can_t_be_had(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = '[functions]\nengine = "openwhisk"\napi_host = "http://127.0.0.1:9"\n'
    ran = cli("check", "--config", cli.write("mill.toml", functions + 'key = { file = "nokeyfile" }'), "--json")
    detail = ran.objects[0]["components"]["functions"]["detail"]
    assert (ran.code, ran.err) == (1, "")
    assert detail == "functions.key: can't read the secret in nokeyfile: No such file or directory"
    monkeypatch.setenv("OW_KEY", "uuid:key")
    ran = cli("check", "--config", cli.write("mill.toml", functions + 'key = { env = "OW_KEY" }'), "--json")
    facts = ran.objects[0]["components"]["functions"]
    assert (ran.err, facts["warning"]) == ("", True)
    assert facts["detail"].startswith("OpenWhisk at http://127.0.0.1:9: it can't be reached: ")


def test_for_people(cli: Cli) -> None:
    ran = cli("check", "--config", cli.write("mill.toml", "[server]\nport = 0\n[retention]\nlog_days = 3\n"))
    assert ran.code == 0
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["retention.log_days", "3.0"] in lines
    assert ["server.port", "ok", "any", "free", "port"] in lines


def test_options_and_environment_win(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTMILL_LIMITS__DEPTH", "3")
    code, report = checked(cli, "[server]\nport = 0\n")
    assert (code, report["settings"]["limits"]["depth"]) == (0, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("server = ", "is not valid TOML"),
        ("[sever]\nport = 1", "sever: unknown key (did you mean 'server'?)"),
        ("[server]\nprot = 1", "server.prot: unknown key (did you mean 'port'?)"),
        ("[server]\nport = 70000", "server.port: Input should be less than or equal to 65535"),
        ('[server]\nport = "http"', "server.port: Input should be a valid integer"),
        ('[server]\nlog_format = "xml"', "server.log_format: Input should be 'text' or 'json'"),
        ("[functions]\nworkers_max = 0", "functions.workers_max: Input should be greater than or equal to 1"),
        ('[[paths]]\nsubject = "exfel"', "paths: subject 'exfel' must start with '/'"),
        ("[[paths]]\n", "paths.0.subject: Field required"),
        ('[[files]]\npath = "/a"\nstart = "some"', "files.0.start: Input should be 'new' or 'all'"),
        ("[pools]\n", "pools: at least one pool is needed"),
        ('[pools.local]\nkind = "slurm"', "pools.local.kind: Input should be 'local'"),
    ],
)
@pytest.mark.parametrize("command", [("check",), ("serve",)])
def test_wrong_configurations(cli: Cli, command: tuple[str, ...], config: str, message: str) -> None:
    file = cli.write("mill.toml", config)
    ran = cli(*command, "--config", file)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"eventmill: {file}")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_a_configuration_that_is_missing(cli: Cli) -> None:
    ran = cli("check", "--config", "missing.toml")
    assert (ran.code, ran.err) == (
        2,
        "eventmill: can't read configuration missing.toml: No such file or directory\n",
    )


def test_where_a_pool_s_ads_and_rooms_are(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(0o777)
    config = f"""[server]
port = 0
[pools.site]
kind = "htcondor"
event_log = "{tmp_path}/EventLog"
history_dir = "{tmp_path}/no-such"
spool_dir = "{tmp_path}/spool"
"""
    code, report = checked(cli, config)
    assert code == 1
    details = {name: facts["detail"] for name, facts in report["components"].items() if not facts["ok"]}
    assert details["pools.site.history_dir"] == f"{tmp_path}/no-such is no directory that this user can write"
    assert details["pools.site.spool_dir"].startswith(f"spool_dir: {tmp_path}/spool")
    (tmp_path / "no-such").mkdir()
    _, report = checked(cli, config)
    assert report["components"]["pools.site.history_dir"]["ok"]

"""The configuration: its defaults, its precedence, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventmill.config import load
from eventmill.errors import InvalidConfig


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "eventmill.toml"
    file.write_text(text)
    return file


def test_a_file_an_option_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "[server]\nport = 4000\nlog_format = 'json'\n[limits]\ndepth = 3\n")
    monkeypatch.setenv("EVENTMILL_LIMITS__RULES", "7")
    monkeypatch.setenv("EVENTMILL_LIMITS__DEPTH", "4")
    monkeypatch.setenv("EVENTMILL_SERVER__PORT", "4001")
    settings = load(file, server={"port": 5000})
    assert (settings.server.port, settings.server.log_format, settings.limits.depth) == (5000, "json", 4)
    assert settings.limits.rules == 7
    assert settings.limits.attempts_event == 3


WRONG = [
    ("[server]\nprot = 1", "server.prot: unknown key (did you mean 'port'?)"),
    ("[sever]\nport = 1", "sever: unknown key (did you mean 'server'?)"),
    ("[server]\nport = 'x'", "server.port: Input should be a valid integer"),
    ("[server]\nport = 70000", "server.port: Input should be less than or equal to 65535"),
    ("[server]\nlog_format = 'xml'", "server.log_format: Input should be 'text' or 'json'"),
    ("[server\nport = 1", "is not valid TOML"),
    ("[pools.big]\nkind = 'slurm'", "pools.big.kind: Input should be 'local'"),
    ("[pools.big]\ncpu = 3", "pools.big.cpu: unknown key (did you mean 'cpus'?)"),
    ("[[paths]]\nsubject = 'relative'", "paths: subject 'relative' must start with '/'"),
    ("[[paths]]\nlocal = '/x'", "paths.0.subject: Field required"),
    ("[[files]]\npath = '/x'\nstart = 'old'", "files.0.start: Input should be 'new' or 'all'"),
    ("[functions]\nworkers_max = 0", "functions.workers_max: Input should be greater than or equal to 1"),
    ("[functions]\nisolation = 'maybe'", "functions.isolation: Input should be 'auto' or 'none'"),
    ("[limits]\ndepth = 'deep'", "limits.depth: Input should be a valid integer"),
    ("pools = {}", "pools: at least one pool is needed"),
    ("[limits]\nwindow_per_action = 0", "limits.window_per_action: Input should be greater than 0"),
    ("[limits]\ndepth = -1", "limits.depth: Input should be greater than or equal to 0"),
    ("[retention]\nlog_days = -1", "retention.log_days: Input should be greater than 0"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_said_with_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(InvalidConfig) as refused:
        load(file)
    assert message in str(refused.value)
    assert str(refused.value).startswith(str(file)) or "eventmill.toml" in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"can't read configuration .*none\.toml: No such file"):
        load(tmp_path / "none.toml")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "eventmill.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidConfig, match="is not valid TOML"):
        load(file)


def test_a_slip_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTMILL_SERVR__PORT", "3")
    with pytest.raises(InvalidConfig, match=r"EVENTMILL_SERVR__PORT: .*did you mean EVENTMILL_SERVER__"):
        load()
    monkeypatch.delenv("EVENTMILL_SERVR__PORT")
    monkeypatch.setenv("EVENTMILL_SERVER__PROT", "3")
    with pytest.raises(InvalidConfig, match=r"server.prot: unknown key \(did you mean 'port'"):
        load()

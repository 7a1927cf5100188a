"""The configuration: its defaults, its precedence, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventmill.config import Secret, load
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


CONDOR = "[pools.site]\nkind = 'htcondor'\n"
KAFKA = "[backbone]\nkind = 'kafka'\n"
TOPICS = KAFKA + "[[topics]]\n"
OPENWHISK = "[functions]\nengine = 'openwhisk'\n"
HTTP = "[functions.http]\nhosts = ['a']\n"
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
    ("[files]\npath = '/x'", "files: write [[files]], once for each"),
    ("[[files]]\npaths = '/x'", "files.0.paths: unknown key (did you mean 'path'?)"),
    (OPENWHISK, "functions: engine openwhisk needs api_host"),
    (OPENWHISK + "api_host = '127.0.0.1:10101'", "functions: api_host '127.0.0.1:10101': write https://host[:port]"),
    (OPENWHISK + "api_host = 'http://a/api/v1'", "functions: api_host 'http://a/api/v1': write https://host[:port]"),
    (OPENWHISK + "api_host = 'https://u:p@a'", "functions: api_host 'https://…@a': write https://host[:port]"),
    (OPENWHISK + "api_host = 'https://a'", 'functions: engine openwhisk needs key = { file = "PATH" }'),
    (OPENWHISK + "key = 'u:k'", 'functions.key: write key = { file = "PATH" } or { env = "NAME" }: secrets don\'t'),
    (HTTP + "headers.'a'.X-Key = 'k'", 'functions.http.headers.a.X-Key: write X-Key = { file = "PATH" }'),
    ("[backbone]\nkind = 'nats'", "backbone.kind: Input should be 'embedded' or 'kafka'"),
    ("[backbone]\nbroker = 'a:1'", "backbone.broker: unknown key (did you mean 'brokers'?)"),
    ("[backbone]\nbrokers = 'http://a:1'", "backbone.brokers: 'http://a:1' is not a host and a port"),
    ("[backbone]\nbrokers = 'a:1,'", "backbone.brokers: '' is not a host and a port"),
    ("[backbone]\nsession_timeout_s = 0", "backbone.session_timeout_s: Input should be greater than 0"),
    ("[backbone.registry]\nurls = 'x'", "backbone.registry.urls: unknown key (did you mean 'url'?)"),
    ("[backbone.registry]\nurl = 'registry:8081'", "backbone.registry.url: it must begin with http://"),
    ("[backbone.registry]\nurl = 'http://u:p@r'", 'set properties."basic.auth.user.info"'),
    ("[backbone]\nproperties = { 'a.b' = [1] }", "backbone.properties: a.b must be a text, a number"),
    ("[backbone]\nproperties = { p = { env = 'A', file = 'b' } }", "p must be a text, a number, true or false, { env"),
    (TOPICS + "decodr = 'json'", "topics.0.decodr: unknown key (did you mean 'decoder'?)"),
    (TOPICS + "decoder = 'xml'", "topics.0.decoder: Input should be 'dcache', 'cloudevents' or 'json'"),
    (TOPICS + "name = 'x'", "topics.0.decoder: Field required"),
    (TOPICS + "decoder = 'dcache'", "topics.0: a topic has either a name or a regex"),
    (TOPICS + "name = 'x'\nregex = 'y'\ndecoder = 'dcache'", "a topic has either a name or a regex"),
    (TOPICS + "regex = '('\ndecoder = 'dcache'", "topics.0.regex: not a regular expression: missing )"),
    (TOPICS + "name = 'x'\ndecoder = 'json'", "decoder json needs a source, the URI that its events come from"),
    (
        TOPICS + "name = 'x'\ndecoder = 'dcache'\nsource = '//x'",
        "'source' is a setting of decoder cloudevents and json",
    ),
    (TOPICS + "name = 'x'\ndecoder = 'cloudevents'\nmap.id = 'a'", "'map' is a setting of decoder json alone"),
    (TOPICS + "name = 'x'\ndecoder = 'json'\nsource = '//x'\nsrm = 'request'", "'srm' is a setting of decoder dcache"),
    (TOPICS + "name = 'x'\ndecoder = 'dcache'\nstart = 'first'", "topics.0.start: it must be earliest"),
    (
        TOPICS + "name = 'x'\ndecoder = 'dcache'\nstart = '2026-05-06T07:08:09'",
        "topics.0.start: it must be",
    ),
    (TOPICS + "name = 'x'\ndecoder = 'dcache'\npersonal_key.env = 'K'", 'set personal = "hash"'),
    (
        TOPICS + "name = 'x'\ndecoder = 'dcache'\npersonal = 'hash'\npersonal_key = { env = 'K', file = 'f' }",
        "topics.0.personal_key: a secret is either { env = … } or { file = … }",
    ),
    (
        TOPICS + "name = 'x'\ndecoder = 'dcache'\npersonal = 'hash'\npersonal_key = { evn = 'K' }",
        "topics.0.personal_key.evn: unknown key (did you mean 'env'?)",
    ),
    (
        TOPICS + "name = 'x'\ndecoder = 'json'\nsource = '//x'\nmap.typ = 'a'",
        "map.typ: unknown key (did you mean 'type'?)",
    ),
    (
        TOPICS + "name = 'x'\ndecoder = 'json'\nsource = '//x'\nmap.id = 'a..b'",
        "topics.0.map.id: 'a..b' is not names joined by dots",
    ),
    (2 * "[[topics]]\nname = 'x'\ndecoder = 'dcache'\n" + KAFKA, "topics: 'x' has two rows"),
    (CONDOR + "report_url = 'http://mill.example.org'", "'http://mill.example.org' must be an https URL"),
    (CONDOR + "report_url = 'https://user@mill.example.org'", "without user and query"),
    (CONDOR + "report_url = 'https://mill.example.org'\nevent_log = '/log'", "leave out event_log, or report_url"),
    (CONDOR + "spool_dir = '/spool'", "spool_dir needs event_log or report_url"),
    (TOPICS + "name = 'eventmill.events'\ndecoder = 'cloudevents'", "topics: 'eventmill.events' is backbone.topic"),
    ("[[topics]]\nname = 'x'\ndecoder = 'dcache'", 'topics: they are read from Kafka: set backbone.kind = "kafka"'),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_said_with_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(InvalidConfig) as refused:
        load(file)
    assert message in str(refused.value)
    assert str(refused.value).startswith(str(file)) or "eventmill.toml" in str(refused.value)


PROPERTIES = """
[backbone]
kind = "kafka"
brokers = "kafka1.example.org:9093, [2001:db8::7]:9093,kafka3"

[backbone.properties]
security.protocol = "sasl_ssl"
ssl.ca.location = "/etc/ca.pem"
"socket.keepalive.enable" = true
"fetch.wait.max.ms" = 50
sasl.password = { env = "KAFKA_PASSWORD" }
"ssl.key.password" = { file = "/etc/secret" }
"""


def test_properties_are_written_with_or_without_quotes(tmp_path: Path) -> None:
    assert load(write(tmp_path, PROPERTIES)).backbone.properties == {
        "security.protocol": "sasl_ssl",
        "ssl.ca.location": "/etc/ca.pem",
        "socket.keepalive.enable": True,
        "fetch.wait.max.ms": 50,
        "sasl.password": Secret(env="KAFKA_PASSWORD"),
        "ssl.key.password": Secret(file=Path("/etc/secret")),
    }


def test_a_secret_is_read_when_it_is_used_and_shown_as_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, file = Secret(env="THE_SECRET"), Secret(file=tmp_path / "secret")
    for missing in (secret, file):
        with pytest.raises(InvalidConfig, match="secret"):
            missing.read()
    monkeypatch.setenv("THE_SECRET", "s3cret")
    (tmp_path / "secret").write_text("s3cret\n")
    for there in (secret, file):
        assert there.read() == "s3cret"
        assert "s3cret" not in repr(there) + there.model_dump_json()
    (tmp_path / "secret").write_bytes(b"\xff")
    with pytest.raises(InvalidConfig, match=r"can't read the secret in .*: not text"):
        file.read()


def test_a_topic_starts_at_a_time(tmp_path: Path) -> None:
    row = "name = 'billing'\ndecoder = 'dcache'\nstart = '2026-05-06T07:08:09Z'\n"
    [topic] = load(write(tmp_path, TOPICS + row)).topics
    assert topic.start == "2026-05-06T07:08:09Z"


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

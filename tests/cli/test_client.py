"""Where the server is and which key opens it, and what is said when that fails."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventmill.cli.client import Client, Refused, Target, segment, target
from eventmill.errors import InvalidConfig, NotFound, Unavailable
from tests.cli.conftest import Cli

KEY = "0f0e:secret"


def data_dir(folder: Path, address: str | None, key: str | None) -> Path:
    """A server's data directory with these files."""
    folder.mkdir()
    for name, value in (("address", address), ("key", key)):
        if value is not None:
            (folder / name).write_text(value + "\n")
    return folder


def test_from_the_data_directory(tmp_path: Path) -> None:
    found = target(None, None, data_dir(tmp_path / "d", "http://127.0.0.1:1234", KEY))
    assert (found.url, found.url_from, found.key) == ("http://127.0.0.1:1234", str(tmp_path / "d/address"), KEY)


def test_options_win(tmp_path: Path) -> None:
    found = target("https://mill.example.org/", "a:b", data_dir(tmp_path / "d", "http://127.0.0.1:1234", KEY))
    assert (found.url, found.url_from, found.key) == ("https://mill.example.org", "--url", "a:b")


def test_the_default_directory_is_beside_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data_dir(tmp_path / ".eventmill", "http://127.0.0.1:1234", KEY)
    assert target(None, None, None).key == KEY


def test_a_named_data_directory_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTMILL_URL", "https://mill.example.org")
    monkeypatch.setenv("EVENTMILL_KEY", "a:b")
    named = data_dir(tmp_path / "d", "http://127.0.0.1:1234", KEY)
    found = target("https://mill.example.org", "a:b", named)
    assert (found.url, found.key, found.key_from) == ("http://127.0.0.1:1234", KEY, str(named / "key"))
    assert target("https://other.example.org", "c:d", named) == Target(
        "https://other.example.org", "--url", "c:d", "--key"
    )
    assert target("https://mill.example.org", "a:b", None).key_from == "EVENTMILL_KEY"


def test_a_key_is_not_sent_to_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data_dir(tmp_path / ".eventmill", "http://127.0.0.1:1234", KEY)
    assert target("http://127.0.0.1:1234", None, None).key == KEY
    for elsewhere in ("https://evil.example.org", "http://127.0.0.1:1235"):
        with pytest.raises(InvalidConfig, match="no key for"):
            target(elsewhere, None, None)
    assert target("https://mill.example.org", None, tmp_path / ".eventmill").key == KEY  # whoever names both means it


def test_nothing_is_known(cli: Cli) -> None:
    ran = cli("activations", "list")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        "eventmill: no server is known: there is no .eventmill/address. Start one with `eventmill serve` or "
        "`eventmill run FLOW.py`, or say where it is with --url (EVENTMILL_URL) or --data-dir\n"
    )


def test_a_server_that_is_down(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = cli("activations", "list", "--url", "http://127.0.0.1:9", "--key", KEY)
    start = "eventmill: no server answers at http://127.0.0.1:9"
    start_one = "Start one with `eventmill serve` or `eventmill run FLOW.py`, or name another with --url"
    end = f": Connection refused. {start_one}\n"
    assert (ran.code, ran.err) == (1, f"{start} (from --url){end}")
    monkeypatch.setenv("EVENTMILL_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("EVENTMILL_KEY", KEY)
    assert cli("activations", "list").err == f"{start} (from EVENTMILL_URL){end}"


def test_an_event_of_which_nothing_is_known_can_be_sent_again(cli: Cli) -> None:
    ran = cli("emit", "--type", "x", "--id", "7", "--url", "http://127.0.0.1:9", "--key", KEY)
    assert ran.code == 1
    assert ran.err.endswith("If you send it again, add --id 7: then it counts once\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--url", "mill.example.org", "--key", KEY), "--url: 'mill.example.org' is no address of a server"),
        (("--url", "ftp://mill.example.org", "--key", KEY), "--url: 'ftp://mill.example.org' is no address"),
        (("--url", "http://", "--key", KEY), "--url: 'http:' is no address"),
        (("--url", "http://127.0.0.1:99999", "--key", KEY), "--url: 'http://127.0.0.1:99999' is no address"),
        (("--url", "http://127.0.0.1:9"), "no key for http://127.0.0.1:9: give it by EVENTMILL_KEY"),
        (("--url", "http://127.0.0.1:9", "--key", "secret"), "the key (from --key) is not of the form uuid:secret\n"),
    ],
)
def test_wrong_addresses_and_keys(cli: Cli, options: tuple[str, ...], message: str) -> None:
    ran = cli("activations", "list", *options)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"eventmill: {message}")
    assert "secret" not in ran.err.replace("uuid:secret", "")


def test_a_target_does_not_show_its_key() -> None:
    assert "secret" not in repr(Target("http://127.0.0.1:9", "--url", KEY))


# against a server that answers what it is told to


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers with (status, content type, body) of the path."""

    answers: dict[str, tuple[int, str, bytes]]
    requests: list[tuple[str, str, bytes]]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.requests.append((self.command, self.path, body))
        status, content_type, body = self.answers[self.path.partition("?")[0]]
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = _answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def answers() -> Iterator[tuple[Client, type[_Answers]]]:
    handler = type("Handler", (_Answers,), {"answers": {}, "requests": []})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with Client(Target(f"http://127.0.0.1:{server.server_port}", "--url", KEY)) as client:
        yield client, handler
    server.shutdown()
    server.server_close()
    thread.join()


def error(status: int, text: str) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps({"error": text, "code": "x" * 32}).encode()


def test_answers(answers: tuple[Client, type[_Answers]]) -> None:
    client, handler = answers
    handler.answers |= {
        "/json": (200, "application/json", b'{"a": 1}'),
        "/text": (200, "text/plain", b"OK"),
        "/empty": (204, "text/plain", b""),
    }
    assert client.get("/json") == {"a": 1}
    assert client.post("/text", {"status": "active"}, overwrite=True, limit=None) == "OK"
    assert client.delete("/empty") is None
    assert handler.requests[1] == ("POST", "/text?overwrite=true", b'{"status":"active"}')


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (
            error(400, "The request content was malformed:\nnope"),
            Refused,
            "The request content was malformed: nope",
        ),
        (
            error(404, "The requested resource does not exist."),
            NotFound,
            "GET /x: The requested resource does not exist.",
        ),
        (error(409, "resource already exists"), Refused, "resource already exists"),
        (error(503, "no room"), Unavailable, "no room; the same request may succeed later"),
        ((502, "text/html", b"<h1>Bad\n gateway</h1>"), Refused, "GET /x: <h1>Bad gateway</h1>"),
        ((500, "text/plain", b""), Refused, "GET /x: HTTP status 500"),
    ],
)
def test_refusals(
    answers: tuple[Client, type[_Answers]], answer: tuple[int, str, bytes], kind: type[Exception], message: str
) -> None:
    client, handler = answers
    handler.answers["/x"] = answer
    with pytest.raises(kind) as caught:
        client.get("/x")
    assert str(caught.value) == message


def test_a_key_that_is_not_accepted(answers: tuple[Client, type[_Answers]]) -> None:
    client, handler = answers
    handler.answers["/x"] = error(401, "The supplied authentication is invalid")
    with pytest.raises(Refused, match="does not accept the key") as caught:
        client.get("/x")
    assert "secret" not in str(caught.value)


def test_pages(answers: tuple[Client, type[_Answers]]) -> None:
    client, handler = answers
    handler.answers["/list"] = (200, "application/json", json.dumps(list(range(200))).encode())
    assert len(list(client.pages("/list", 400))) == 400
    handler.answers["/list"] = (200, "application/json", json.dumps(list(range(50))).encode())
    assert list(client.pages("/list", 60, state="failed")) == list(range(50))
    paths = [path for _, path, _ in handler.requests]
    assert paths == ["/list?limit=200&skip=0", "/list?limit=200&skip=200", "/list?limit=60&skip=0&state=failed"]


def test_names_in_paths() -> None:
    assert segment("a b/c?d#e%") == "a%20b/c%3Fd%23e%25"

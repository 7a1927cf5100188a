"""The wrapper of jobs that report their own ends, as the program that it is on an execute node."""

from __future__ import annotations

import json
import os
import signal
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from eventmill.executors.htcondor import wrapper
from eventmill.executors.htcondor.reporting import wrapper_text
from tests.kafka.certificates import certificates

pytestmark = pytest.mark.slow

TOKEN = "0123456789abcdef" * 4
ENVIRONMENT = {"PATH": os.environ["PATH"]}


class Job:
    """The scratch directory of a job on an execute node. `port`: where its end is to be reported."""

    def __init__(self, directory: Path, port: int | None) -> None:
        self.directory = directory
        (directory / "wrapper").write_bytes(wrapper_text())
        (directory / "wrapper").chmod(0o755)
        self.order = directory / wrapper.ORDER_FILE
        if port is not None:
            self.order.write_text(json.dumps({"url": f"http://127.0.0.1:{port}/ends/a/1", "token": TOKEN}))

    def be_impatient(self) -> None:
        """Have it try once."""
        file = self.directory / "wrapper"
        file.write_text(file.read_text().replace("PATIENCE_S = 30.0", "PATIENCE_S = 0.0"))

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(self.directory / "wrapper"), *command], cwd=self.directory, env={**ENVIRONMENT, **environment},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *command: str, stdin: bytes = b"", **environment: str) -> tuple[int, bytes, bytes]:
        """Its exit code (a signal's number below 0), stdout, stderr."""
        with self.start(*command, **environment) as process:
            out, err = process.communicate(stdin, timeout=60)
        return process.returncode, out, err


class Server(HTTPServer):
    """What the jobs report to; it answers with these statuses one after the other, then with 202."""

    def secure(self, certificate: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """A handshake that a client breaks off."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.heard: list[tuple[str, str | None]] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.heard.append((self.path, self.headers["Authorization"]))
        status = self.server.statuses.pop(0) if self.server.statuses else 202
        self.send_response(status)
        if status == 307:
            self.send_header("location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serving(*statuses: int, certificate: Path | None = None) -> Iterator[Server]:
    with Server(*statuses) as server:
        if certificate is not None:
            server.secure(certificate)
        runner = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        runner.start()
        yield server
        server.shutdown()
        runner.join()


REPORT = ("/ends/a/1", f"Bearer {TOKEN}")


def test_it_is_invisible_but_for_its_report(tmp_path: Path) -> None:
    """Arguments, stdin, stdout, stderr, environment and exit code are the job's; the token is nowhere."""
    script = tmp_path / "job.sh"
    script.write_text('#!/bin/sh\nprintf "<%s>" "$@" "$OWN" "$(cat)"; ls -A; env; echo err >&2; exit 3\n')
    with serving() as server:
        job = Job(tmp_path, server.server_port)
        code, out, err = job.run("./job.sh", "a b", "", "'$(x)\"", stdin=b"typed", OWN="my own")
    assert (code, err) == (3, b"err\n")
    assert out.startswith(b"<a b><><'$(x)\"><my own><typed>")
    assert wrapper.ORDER_FILE.encode() not in out
    assert TOKEN.encode() not in out
    assert not job.order.exists()
    assert script.stat().st_mode & stat.S_IXUSR, "HTCondor makes an executable one of what it transfers as such"
    assert server.heard == [REPORT]


def test_the_token_is_in_no_argument_and_no_variable_of_a_process(tmp_path: Path) -> None:
    with serving() as server, Job(tmp_path, server.server_port).start("/bin/sh", "-c", "echo; exec cat") as process:
        assert process.stdout is not None
        process.stdout.readline()
        for name in ("cmdline", "environ"):
            assert TOKEN.encode() not in Path(f"/proc/{process.pid}/{name}").read_bytes()
        process.communicate(b"", timeout=60)
    assert server.heard == [REPORT]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_it_ends_by_the_signal_that_ended_the_job(tmp_path: Path, number: signal.Signals) -> None:
    with serving() as server:
        code, _, err = Job(tmp_path, server.server_port).run("/bin/sh", "-c", f"kill -{int(number)} $$")
    assert (code, err) == (-number, b"")
    assert server.heard == [REPORT]


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, 7), (signal.SIGUSR1, 8)])
def test_signals_are_passed_on(tmp_path: Path, number: signal.Signals, ends: int) -> None:
    script = "trap 'exit 7' TERM; trap 'exit 8' USR1; echo; while :; do sleep 0.02; done"
    with serving() as server, Job(tmp_path, server.server_port).start("/bin/sh", "-c", script) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(20) == ends
    assert server.heard == [REPORT]


def test_it_asks_again_until_it_is_heard_and_follows_nobody_elsewhere(tmp_path: Path) -> None:
    with serving(503, 307, 401) as server:
        code, _, err = Job(tmp_path, server.server_port).run("/bin/true")
    assert (code, err) == (0, b"")
    assert server.heard == [REPORT] * 4


def test_nobody_but_the_server_is_given_the_token(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Who has no certificate that the node trusts is told nothing; other authorities can be named."""
    made = certificates(tmp_path_factory.mktemp("tls"))
    with serving(certificate=made.server) as server:
        for trusted, heard in ((Path("/dev/null"), []), (made.authority, [REPORT])):
            job = Job(tmp_path, server.server_port)
            job.order.write_text(job.order.read_text().replace("http:", "https:"))
            job.be_impatient()
            code, _, err = job.run("/bin/true", SSL_CERT_FILE=str(trusted))
            assert (code, server.heard) == (0, heard)
            assert (b"CERTIFICATE_VERIFY_FAILED" in err) == (not heard)


def test_one_that_is_told_to_end_does_not_wait_for_an_answer(tmp_path: Path) -> None:
    """Where nobody listens: told before its command's end, or after it."""
    with Job(tmp_path, _closed_port()).start("/bin/sh", "-c", "echo; exec sleep 60") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
    with Job(tmp_path, _closed_port()).start("/bin/echo") as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert b"could not be reported" in said
    assert b"ConnectionRefusedError" in said
    assert TOKEN.encode() not in said


def test_without_an_order_or_without_python_the_job_runs_all_the_same(tmp_path: Path) -> None:
    assert Job(tmp_path, None).run("/bin/sh", "-c", "exit 4")[0] == 4
    job = Job(tmp_path, _closed_port())
    wrapper_file = tmp_path / "wrapper"
    wrapper_file.write_text(wrapper_file.read_text().replace("python3", "no-such-python"))
    assert job.run("/bin/sh", "-c", "echo $1; exit 5", "sh", "said") == (5, b"said\n", b"")
    assert not job.order.exists()


def test_what_lies_in_the_scratch_directory_is_not_imported(tmp_path: Path) -> None:
    for name in ("json", "http", "os", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    with serving() as server:
        job = Job(tmp_path, server.server_port)
        assert job.run("/bin/echo", "fine", PYTHONPATH=str(tmp_path), PYTHONHOME="/nowhere") == (0, b"fine\n", b"")
    assert server.heard == [REPORT]


def test_a_program_that_can_not_be_run_is_a_failure_that_says_so(tmp_path: Path) -> None:
    code, _, err = Job(tmp_path, None).run("./missing")
    assert code == 126
    assert b"can't run ./missing: No such file or directory" in err


def _closed_port() -> int:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return server.server_port

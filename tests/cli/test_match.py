"""`eventmill match`: what is printed, counted, warned about, and how it behaves at the ends of pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, Cli

WRITTEN = '{"type": ["written"]}'
LINES = b'{"type": "written", "n": 1}\n{"type":"other","n":2}\n{"n":3,  "type":"written"}\n'


def test_prints_the_lines_that_match_as_they_are(cli: Cli) -> None:
    ran = cli("match", WRITTEN, stdin=LINES)
    assert (ran.code, ran.out, ran.err) == (0, '{"type": "written", "n": 1}\n{"n":3,  "type":"written"}\n', "")


def test_exit_code_1_if_nothing_matches(cli: Cli) -> None:
    assert cli("match", '{"type": ["never"]}', stdin=LINES) == type(cli("match", WRITTEN))(1, "", "")


@pytest.mark.parametrize(
    ("options", "code", "out"),
    [
        (("-c",), 0, "2\n"),
        (("-v",), 0, '{"type":"other","n":2}\n'),
        (("-c", "-v"), 0, "1\n"),
        (("-cv",), 0, "1\n"),
    ],
)
def test_count_and_invert(cli: Cli, options: tuple[str, ...], code: int, out: str) -> None:
    ran = cli("match", *options, WRITTEN, stdin=LINES)
    assert (ran.code, ran.out) == (code, out)


def test_any_json_objects_will_do(cli: Cli) -> None:
    lines = b'{"a": {"b": [1, 2]}}\n{"a": {"b": [3]}}\n'
    assert cli("match", '{"a": {"b": [{"numeric": [">", 2]}]}}', stdin=lines).out == '{"a": {"b": [3]}}\n'


def test_what_is_no_object_is_named_and_does_not_match(cli: Cli) -> None:
    lines = b'{"type":"written"}\nnonsense\n[1]\n\n{"type":"written"}\n\xff\n'
    ran = cli("match", "-c", WRITTEN, stdin=lines)
    assert (ran.code, ran.out) == (0, "2\n")
    starts = [line.split(": ")[1:3] for line in ran.err.splitlines()]
    no_json = [["stdin:4", "not JSON"], ["stdin:6", "not JSON"]]
    assert starts == [["stdin:2", "not JSON"], ["stdin:3", "not a JSON object"], *no_json]
    assert cli("match", "-c", "-v", WRITTEN, stdin=lines).out == "4\n"


def test_the_last_line_needs_no_newline(cli: Cli) -> None:
    assert cli("match", WRITTEN, stdin=b'{"type":"written"}').out == '{"type":"written"}\n'


def test_files_and_stdin(cli: Cli) -> None:
    one, two = cli.write("one", {"type": "written", "n": 1}), cli.write("two", {"type": "other"})
    ran = cli("match", "-c", WRITTEN, one, two, "-", stdin=b'{"type":"written"}\n')
    assert (ran.code, ran.out) == (0, f"{one}:1\n{two}:0\n-:1\n")
    assert cli("match", WRITTEN, one, two).objects == [{"type": "written", "n": 1}]


def test_a_file_that_is_missing_does_not_stop_the_others(cli: Cli) -> None:
    ran = cli("match", WRITTEN, "missing", cli.write("one", {"type": "written"}))
    assert (ran.code, ran.err) == (2, "eventmill match: missing: No such file or directory\n")
    assert ran.objects == [{"type": "written"}]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{bad", "pattern at its top level: not JSON: "),
        ("[]", "pattern at its top level: a pattern is a JSON object"),
        ('"text"', "pattern at its top level: a pattern is a JSON object"),
        ("{}", "pattern at its top level: "),
        ('{"type": "written"}', "pattern at type: values stand in an array: [value, …]"),
        ('{"type": []}', "pattern at type: an empty array matches nothing"),
        ('{"data": {"size": [{"numeric": ["<", "x"]}]}}', "pattern at data.size[0].numeric"),
        ('{"data": {"size": [{"near": 3}]}}', "pattern at data.size[0]"),
        ('{"subject": [{"glob": "/a/[b"}]}', "pattern at subject[0].glob"),
        ('{"subject": [{"prefix": 1}]}', "pattern at subject[0].prefix: needs a string"),
        ('{"type": ["a"], "time": [NaN]}', "pattern at its top level: not JSON"),
    ],
)
def test_wrong_patterns(cli: Cli, pattern: str, message: str) -> None:
    ran = cli("match", pattern, stdin=LINES)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"eventmill: {message}")
    assert ran.err.count("\n") == 1


def test_lines_across_pieces(cli: Cli) -> None:
    """Pieces end in the middle of lines, and one line is longer than a piece."""
    lines = [{"type": "written", "n": n, "text": "x" * (n % 700)} for n in range(3000)]
    lines.insert(1000, {"type": "written", "n": -1, "text": "y" * 1_000_000})
    raw = "\n".join(json.dumps(line) for line in lines)
    assert cli("match", WRITTEN, stdin=raw).out == raw + "\n"


def test_a_line_without_end_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventmill.cli.match.LINE_BYTES_MAX", 1 << 20)
    ran = cli("match", WRITTEN, stdin=b"x" * (2 << 20))
    assert ran.code == 2
    assert "stdin:1: a line of more than" in ran.err


@pytest.mark.slow
def test_a_trickling_input_is_passed_on_at_once(cli: Cli) -> None:
    with subprocess.Popen([COMMAND, "match", WRITTEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for n in range(3):
            line = b'{"type":"written","n":%d}\n' % n
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.mark.slow
def test_quiet_when_the_reader_has_had_enough(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "many").write_bytes(b'{"type":"written"}\n' * 500_000)
    command = f"{COMMAND} match '{WRITTEN}' many | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=tmp_path, timeout=60)
    assert done.stdout == b'{"type":"written"}\n141\n'
    assert done.stderr == b""


@pytest.mark.slow
def test_ctrl_c_is_130_and_quiet(cli: Cli) -> None:
    with subprocess.Popen(
        [COMMAND, "match", WRITTEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"type":"written"}\n')
        process.stdin.flush()
        process.stdout.readline()  # it is reading by now
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""

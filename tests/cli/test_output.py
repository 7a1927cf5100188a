"""What people see: times, durations, and nothing that drives their terminal."""

from __future__ import annotations

import pytest

from eventmill.cli import output
from eventmill.cli.activations import milliseconds
from eventmill.errors import InvalidInput

NOW_MS = 1_800_000_000_000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä\tb", "plain ä\tb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\rb\x00\x9b", "a\\x0db\\x00\\x9b"),
        ("\u202etxt.exe", "\\x202etxt.exe"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert output.printable(text) == shown


@pytest.mark.parametrize(
    ("ms", "shown"),
    [(0, "0 ms"), (999, "999 ms"), (1500, "1.5 s"), (61_000, "1 min 1 s"), (7_500_000, "2 h 5 min"), (-5, "0 ms")],
)
def test_lasting(ms: int, shown: str) -> None:
    assert output.lasting(NOW_MS, NOW_MS + ms) == shown


def test_what_is_not_known_is_empty() -> None:
    assert output.lasting(None, NOW_MS) == output.lasting(NOW_MS, None) == output.moment(None) == ""


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    output.table((">n", "text"), [(1, "[red]\x1b[0m"), (20, {"a": 1}), (None, "x" * 300)], "nothing")
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines[:1] + lines[2:4]] == ["n   text", "1   [red]\\x1b[0m", '20   {"a":1}']
    assert lines[4].strip() == "x" * 199 + "…"
    output.table(("n",), [], "nothing to see")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "nothing to see\n")


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("30m", NOW_MS - 1_800_000),
        ("1.5h", NOW_MS - 5_400_000),
        ("7d", NOW_MS - 604_800_000),
        ("10 s", NOW_MS - 10_000),
        ("1799999999999", 1_799_999_999_999),
        ("2026-05-01T12:00:00+00:00", 1_777_636_800_000),
    ],
)
def test_moments(text: str, ms: int) -> None:
    assert milliseconds(text, NOW_MS) == ms


@pytest.mark.parametrize("text", ["", "yesterday", "30", "30x", "-5m", "2026-13-01"])
def test_wrong_moments(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no time: write 30m"):
        milliseconds(text, NOW_MS)

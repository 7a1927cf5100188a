"""`eventmill lint FLOW.py`: what is found, and what is left in peace."""

from __future__ import annotations

import pytest

from eventmill.engine.lint import never
from eventmill.rules import parse
from tests.cli import flows
from tests.cli.conftest import Cli

HEAD = """
from eventmill import Mill, completed, failed, files, happened
mill = Mill("m", parameters={"output": "/exfel/out"})
@mill.function
def one(event):
    return {}
@mill.function(parameters={"out_dir": "/exfel/raw/sub", "calibration": "/exfel/raw/constants"})
def two(event):
    return {}
"""


def findings(cli: Cli, code: str) -> list[tuple[str, str, str]]:
    ran = cli("lint", cli.write("flow.py", HEAD + code), "--json")
    assert ran.code == (1 if ran.out else 0)
    return [(f["severity"], f["rule"], f["message"]) for f in ran.objects]


def test_nothing_to_complain_about(cli: Cli) -> None:
    cli.write("helper.py", flows.HELPER)
    cli.write("calibrate.sub", flows.SUBMIT)
    cli.write("work.sh", "")
    ran = cli("lint", cli.write("flow.py", flows.BEAMTIME))
    assert (ran.code, ran.out, ran.err) == (0, "", "nothing to complain about\n")


def test_a_keyless_rule(cli: Cli) -> None:
    code = 'mill.on({"data": {"size": [{"numeric": [">", 1]}]}}, one)'
    [(severity, rule, message)] = findings(cli, code)
    assert (severity, rule) == ("warning", "m.one")
    assert message.startswith("keyless: every event is compared with it")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ({"fileSize": [1]}, "no event has an attribute 'fileSize'"),
        ({"type": ["a"], "subject": [{"numeric": [">", 1]}]}, "attribute 'subject' is a text"),
        ({"type": [1, None]}, "attribute 'type' is a text and always there"),
        ({"id": [{"exists": False}]}, "attribute 'id' is a text and always there"),
        ({"subject": {"path": ["a"]}}, "attribute 'subject' has no parts"),
        ({"specversion": ["0.3"]}, "specversion is always '1.0'"),
        ({"flag": [None]}, "attribute 'flag' is a text"),
        ({"$or": [{"type": [1]}, {"id": [2]}]}, "attribute 'type' is a text and always there"),
        (
            {"type": ["org.eventmill.file.written"], "subject": [{"glob": "raw/*.h5"}]},
            "names of files begin with '/', and 'raw/*.h5' doesn't",
        ),
    ],
)
def test_patterns_that_never_match(pattern: dict[str, object], reason: str) -> None:
    assert (never(parse(pattern)) or "").startswith(reason)


@pytest.mark.parametrize(
    "pattern",
    [
        {"type": ["a"], "data": {"fileSize": [1, None, {"exists": False}]}},
        {"subject": [{"exists": False}]},
        {"flag": [True], "count": [3], "partitionkey": [{"prefix": "x"}]},
        {"$or": [{"type": [1]}, {"id": ["2"]}]},
        {"type": ["org.eventmill.file.written"], "subject": [{"glob": "**/*.h5"}]},
        {"type": ["org.lab.run"], "subject": [{"glob": "run-*"}]},
    ],
)
def test_patterns_that_may_match(pattern: dict[str, object]) -> None:
    assert never(parse(pattern)) is None


def test_an_output_parameter_below_the_watched_directory(cli: Cli) -> None:
    found = findings(cli, 'mill.on(files.written("/exfel/raw/**/*.h5"), one >> two)')
    assert found == [
        (
            "warning",
            "m.one-two",
            "a loop: 'm/two' writes to /exfel/raw/sub (parameter 'out_dir'), and the rule waits for files there",
        )
    ]


def test_an_output_parameter_of_the_mill(cli: Cli) -> None:
    assert [rule for _, rule, _ in findings(cli, 'mill.on(files.written("/exfel/out/*.h5"), one)')] == ["m.one"]
    assert findings(cli, 'mill.on(files.written("/exfel/outer/*.h5"), one)') == []


def test_an_output_parameter_matters_to_rules_about_files_only(cli: Cli) -> None:
    assert findings(cli, 'mill.on(happened("x", subject="/exfel/raw/**/*.h5"), two)') == []


def test_a_jobs_output_in_the_watched_directory(cli: Cli) -> None:
    cli.write("work.sh", "")
    cli.write("work.sub", 'executable = work.sh\ntransfer_output_remaps = "a = /exfel/cal/$(run).h5"\nqueue\n')
    code = 'mill.on(files.written("/exfel/cal/**/*.h5"), mill.map(mill.job("work.sub")))'
    [(_, rule, message)] = findings(cli, code)
    assert rule == "m.map-work"
    assert message == (
        "a loop: 'm/work' writes to /exfel/cal/$(run).h5 (transfer_output_remaps), and the rule waits for files there"
    )


def test_a_description_that_is_refused(cli: Cli) -> None:
    cli.write("work.sub", "executable = work.sh\ngetenv = true\nqueue\n")
    cli.write("work.sh", "")
    [(severity, name, message)] = findings(cli, 'mill.on(happened("x"), mill.job("work.sub"))')
    assert (severity, name) == ("error", "m/work")
    assert message.startswith("its submit description is refused: line 2: ")


@pytest.mark.parametrize(("kind", "word"), [("completed", "succeeds"), ("failed", "fails")])
def test_a_rule_that_waits_for_what_it_starts(cli: Cli, kind: str, word: str) -> None:
    [(_, rule, message)] = findings(cli, f"mill.on({kind}(one), two >> one)")
    assert rule == "m.two-one"
    assert message == f"a loop: it starts 'm/one', and waits for 'm/one' itself ({word})"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = (", "flow.py:1: syntax error"),
        ("import nosuchmodule", "flow.py:1: can't import 'nosuchmodule' here"),
        ("x = 1", "flow.py: defines no Mill"),
        ("from eventmill import Mill\nm = Mill('no name')", "flow.py:2: Mill name 'no name'"),
        ("from eventmill import Mill\nm = Mill('m')", "flow.py:2: Mill 'm' has no actions"),
        ("1 / 0", "flow.py:1: ZeroDivisionError"),
        ("raise SystemExit(3)", "flow.py:1: the flow ends the program while it is loaded"),
        (HEAD + "mill.job('missing.sub')", "flow.py:10: job 'missing': there is no 'missing.sub' beside the flow"),
        (
            HEAD + "mill.on({'type': 'a'}, one)",
            "flow.py:10: pattern at type: 'a' must be in a list of alternatives: ['a']",
        ),
        (HEAD + "mill.on(files.written('/a/[b'), one)", "flow.py:10: rule 'one': pattern at subject[0].glob"),
        (HEAD + "mill.on({'type': [{'near': 'a'}]}, one)", "flow.py:10: rule 'one': pattern at type[0]"),
    ],
)
def test_wrong_flows(cli: Cli, code: str, message: str) -> None:
    ran = cli("lint", cli.write("flow.py", code))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"eventmill: {message}")
    assert ran.err.count("\n") == 1

"""The commands against a real server: what a workflow's author does in an afternoon."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventmill.cli.client import Client, target
from tests.cli import flows
from tests.cli.conftest import Cli, Ran, event
from tests.cli.server import ended, started, wait_for

pytestmark = pytest.mark.slow

FLOW = """
from eventmill import Fatal, Mill, files, happened

mill = Mill("lab", parameters={"factor": 2})

@mill.function
def double(event):
    print("doubling", event["data"]["n"])
    return {"n": event["factor"] * event["data"]["n"]}

@mill.function(retries=0)
def refuse(event):
    raise Fatal("never")

@mill.function
def wait(event):
    import time
    time.sleep(30)

@mill.job(cpus=1, memory="64MB")
def heavy(doubled):
    return {"n": doubled["n"] + 1}

mill.on(happened("lab.double"), double >> heavy, name="double")
mill.on(happened("lab.refuse"), refuse, name="refuse")
mill.on(happened("lab.wait"), wait, name="wait")
mill.on(files.written("/lab/**/*.h5"), refuse, name="files")
"""


class Lab(Cli):
    """Commands that find the server in the data directory beside them."""

    data: Path

    def __call__(self, *arguments: str, stdin: str | bytes = b"") -> Ran:
        return super().__call__(*arguments, "--data-dir", str(self.data), stdin=stdin)

    def json(self, *arguments: str) -> Any:
        ran = self(*arguments, "--json")
        assert ran.code == 0, ran.err
        return ran.objects

    def send(self, type: str, n: int = 1) -> str:
        """Emit an event; its id."""
        [answer] = self.json("emit", "--type", type, "--data", json.dumps({"n": n}))
        return str(answer["id"])

    def ended(self, rule: str, count: int = 1) -> list[dict[str, Any]]:
        """The activations of this rule, when so many have ended."""

        def found() -> list[dict[str, Any]] | None:
            listed = self.json("activations", "list", "--limit", "500")
            mine = [a for a in listed if a["rule"] == f"default/{rule}" and a["end"]]
            return mine if len(mine) >= count else None

        activations: list[dict[str, Any]] = wait_for(found)
        return activations


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("server")
    with started(folder, "serve"):
        yield folder / "data"


@pytest.fixture
def lab(server: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lab:
    """The flow is deployed."""
    lab = Lab(cli.folder, monkeypatch, capsys)
    lab.data = server
    assert lab("deploy", lab.write("flow.py", FLOW)).code == 0
    return lab


def outcomes(ran: Ran) -> dict[str, list[str]]:
    """Names by outcome."""
    found: dict[str, list[str]] = {}
    for change in ran.objects:
        found.setdefault(change["outcome"], []).append(f"{change['collection']} {change['name']}")
    return found


def test_the_key_is_the_owners(server: Path) -> None:
    assert os.stat(server / "key").st_mode & 0o777 == 0o600


def test_deploy_sends_what_has_changed_and_removes_what_is_gone(lab: Lab) -> None:
    assert set(outcomes(lab("deploy", lab.write("flow.py", FLOW), "--json"))) == {"unchanged"}
    lab.write("flow.py", FLOW.replace('name="wait"', 'name="waiting"'))
    planned = outcomes(lab("deploy", "flow.py", "--json", "--dry-run"))
    assert planned == outcomes(lab("deploy", "flow.py", "--json"))
    assert planned["created"] == ["triggers lab.waiting.trigger", "rules lab.waiting"]
    assert planned["deleted"] == ["rules lab.wait", "triggers lab.wait.trigger"]
    assert set(outcomes(lab("deploy", "flow.py", "--json"))) == {"unchanged"}
    lab.write("flow.py", FLOW)
    assert outcomes(lab("deploy", "flow.py", "--json"))["deleted"] == [
        "rules lab.waiting",
        "triggers lab.waiting.trigger",
    ]


def test_deploy_leaves_others_alone(lab: Lab) -> None:
    other = """
from eventmill import Mill, happened
mill = Mill("{}")
@mill.function
def f(event):
    return {{}}
mill.on(happened("x"), f)
"""
    assert lab("deploy", lab.write("other.py", other.format("other"))).code == 0
    # another file of the same mill, and another mill of the same file
    assert "deleted" not in outcomes(lab("deploy", lab.write("more.py", other.format("other")), "--json"))
    assert "deleted" not in outcomes(lab("deploy", lab.write("other.py", other.format("lab2")), "--json"))


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_deploy_finds_all_that_would_be_refused_before_it_sends_anything(lab: Lab, options: tuple[str, ...]) -> None:
    wrong = """
from eventmill import Mill, cron
mill = Mill("wrong")
@mill.function(timeout="2h")
def slow(event): ...
@mill.job(submit={"getenv": "true"})
def heavy(event): ...
mill.on(cron("99 * * * *"), slow)
"""
    ran = lab("deploy", lab.write("wrong.py", wrong), *options)
    assert (ran.code, ran.out) == (2, "")
    lines = ran.err.splitlines()
    assert lines[0] == "eventmill: wrong.py:8: rule 'slow': cron '99 * * * *': Bad minute (from 0 to 59)"
    assert lines[1].startswith("eventmill: wrong.py:4: action 'wrong/slow': requirement failed: duration 7200000 mill")
    assert lines[2].startswith("eventmill: wrong.py:6: action 'wrong/heavy': job.sub, line 9: 'getenv' is refused")
    assert len(lines) == 3


def test_a_flow_that_is_refused_changes_nothing(lab: Lab) -> None:
    flow = """
from eventmill import Mill, happened
mill = Mill("whole", parameters={"bound": 1})
@mill.function(parameters={"own": 2}, retries=1)
def old(event): ...
mill.on(happened("whole.old"), old)
"""
    assert lab("deploy", lab.write("whole.py", flow)).code == 0
    new = flow.replace('"bound": 1', '"bound": 3').replace('"own": 2}, retries=1', '"other": 4}, timeout="5s"')
    new = new.replace('"whole.old"', '"whole.new"') + 'mill.on(happened("whole.more"), old, name="more")\n'
    with Client(target(None, None, lab.data)) as client:
        base = "/api/v1/namespaces/_"
        # a rule has the name that a trigger of the new flow needs: only the server can know that
        body = {"trigger": "/_/whole.old.trigger", "action": "/_/whole/old"}
        client.put(f"{base}/rules/whole.more.trigger", body)
        paths = ["packages/whole", "actions/whole/old", "triggers/whole.old.trigger", "rules/whole.old"]

        def entities() -> list[Any]:
            found = [client.get(f"{base}/{path}") for path in paths]
            return [{key: e[key] for key in e if key not in ("version", "updated", "actions")} for e in found]

        before = entities()
        ran = lab("deploy", lab.write("whole.py", new))
        assert ran.code == 1
        assert "eventmill: whole.py:7: trigger 'whole.more.trigger' was refused: Resource by this name" in ran.err
        assert ran.err.endswith("eventmill: the flow was refused: nothing was changed\n")
        after = entities()
        for one, other in zip(before, after, strict=True):
            one["annotations"].sort(key=str)
            other["annotations"].sort(key=str)
        assert after == before
        client.delete(f"{base}/rules/whole.more.trigger")
    assert outcomes(lab("deploy", "whole.py", "--json"))["created"] == [
        "triggers whole.more.trigger",
        "rules whole.more",
    ]


def test_undeploy_removes_a_flow(lab: Lab) -> None:
    flow = """
from eventmill import Mill, happened
mill = Mill("gone")
@mill.function
def {0}(event): ...
mill.on(happened("x"), {0})
"""
    assert lab("deploy", lab.write("one.py", flow.format("f"))).code == 0
    assert lab("deploy", lab.write("two.py", flow.format("g"))).code == 0
    planned = outcomes(lab("undeploy", "one.py", "--dry-run", "--json"))
    # the other file's part of the package stays
    assert planned == {"deleted": ["rules gone.f", "triggers gone.f.trigger", "actions gone/f"]}
    assert outcomes(lab("undeploy", "one.py", "--json")) == planned
    assert outcomes(lab("undeploy", "gone", "--json"))["deleted"][-1] == "packages gone"
    ran = lab("undeploy", "gone")
    assert (ran.code, ran.err) == (1, "eventmill: there is nothing of 'gone' on the server\n")


def test_an_event_becomes_a_chain(lab: Lab) -> None:
    id = lab.send("lab.double", 20)
    [chain] = [a for a in lab.ended("lab.double") if a["cause"]["id"] == id]
    [shown] = lab.json("activations", "show", chain["activationId"])
    assert shown["result"]["n"] == 41
    assert [step["action"] for step in shown["steps"]] == ["default/lab/double", "default/lab/heavy"]
    text = lab("activations", "show", chain["activationId"]).out
    assert "state:      succeeded\n" in text
    assert f"cause:      event {id} from //" in text
    assert "├── lab/double  succeeded" in text
    assert "└── lab/heavy  succeeded" in text
    [logs] = lab.json("activations", "logs", shown["steps"][0]["activationId"])
    assert logs["logs"][0].endswith("stdout: doubling 20")
    ran = lab("activations", "logs", chain["activationId"])
    assert re.fullmatch(r"lab/double: \S+ +stdout: doubling 20\n", ran.out)
    assert (ran.code, ran.err) == (0, "")


def test_what_failed_says_why(lab: Lab) -> None:
    flow = """
from eventmill import Mill, happened
mill = Mill("telling")
@mill.function(retries=0)
def look(event):
    return {"a": {1}} if event.data["n"] == 1 else {"e": event.data["energy"]}
mill.on(happened("telling"), look)
"""
    assert lab("deploy", lab.write("telling.py", flow)).code == 0
    lab.send("telling", 1)
    lab.send("telling", 2)
    ids = [a["activationId"] for a in lab.ended("telling.look", 2)]
    lines = [
        line for line in lab("activations", "list", "--action", "telling/look").out.splitlines() if "failed" in line
    ]
    assert sorted(line.split("telling.look", 1)[1].strip() for line in lines) == [
        "KeyError: 'energy'",
        "what look returned is not JSON: a set at 'a'",
    ]
    text = lab("activations", "show", ids[0][:12]).out
    assert f"activation: {ids[0]}\n" in text
    assert '"type": "telling"' in text
    logs = "".join(lab("activations", "logs", id).out for id in ids)
    assert "KeyError: 'energy'" in logs
    assert "telling.py" in logs
    assert "runtime.py" not in logs
    assert lab("activations", "show", "0" * 12).err.startswith("eventmill: '000000000000': none of the last 200")
    assert lab("activations", "show", "0" * 32).err == f"eventmill: there is no activation '{'0' * 32}'\n"
    ran = lab("emit", "--from", ".", "--rule", "no such")
    assert ran.err == "eventmill: there is no rule 'no such'\n"


def test_lists_are_filtered(lab: Lab) -> None:
    lab.send("lab.refuse")
    lab.ended("lab.refuse")
    failed = lab.json("activations", "list", "--state", "failed", "--action", "lab/refuse", "--since", "1h")
    assert failed
    assert {a["state"] for a in failed} == {"failed"}
    shown = lab("activations", "show", failed[0]["activationId"])
    assert shown.err == f"what it has written: eventmill activations logs {failed[0]['activationId']}\n"
    assert lab.json("activations", "list", "--action", "lab/refuse", "--since", "2100-01-01") == []
    assert len(lab.json("activations", "list", "--limit", "1")) == 1
    ran = lab("activations", "list", "--state", "done")
    assert ran.code == 2
    assert ran.err.startswith("eventmill: --state done: write one or several (a,b) of pending, ")


def test_follow(lab: Lab) -> None:
    lab.send("lab.wait")
    running = wait_for(lambda: lab.json("activations", "list", "--action", "lab/wait", "--state", "running,handed"))
    id = running[0]["activationId"]
    assert id in [a["activationId"] for a in lab.json("activations", "list", "--state", "unfinished")]
    ran = lab("activations", "logs", id)
    assert (ran.code, ran.out, ran.err) == (0, "", "still under way: logs come with its end\n")
    assert lab("activations", "cancel", id).out.startswith(f"{id}: ")
    ran = lab("activations", "show", "--follow", id)
    assert ran.code == 1
    assert "state:      cancelled\n" in ran.out
    again = lab("activations", "cancel", id)
    assert again.code == 1
    assert "has ended already (cancelled)" in again.err


def test_dead_letters(lab: Lab) -> None:
    lab("dead-letters", "drop", "--all")
    lab.send("lab.refuse")
    lab.send("lab.refuse")
    letters = wait_for(lambda: found if len(found := lab.json("dead-letters", "list")) == 2 else None)
    assert {(letter["kind"], letter["rule"]) for letter in letters} == {("activation", "default/lab.refuse")}
    assert "lab/refuse: never" in lab("dead-letters", "list", "--kind", "activation").out
    assert lab.json("dead-letters", "list", "--kind", "loop") == []
    assert "reason: default/lab/refuse: never\n" in lab("dead-letters", "show", str(letters[0]["seq"])).out
    replayed = lab("dead-letters", "replay", "--all", "--kind", "activation", "--json")
    assert [answer["seq"] for answer in replayed.objects] == sorted(letter["seq"] for letter in letters)
    again = wait_for(lambda: found if len(found := lab.json("dead-letters", "list")) == 2 else None)
    assert lab("dead-letters", "drop", str(again[0]["seq"])).err == "dropping: 1 of 1 done\n"
    ran = lab("dead-letters", "drop", str(again[0]["seq"]), str(again[1]["seq"]))
    assert ran.code == 1
    assert f"eventmill: dead letter {again[0]['seq']}: there is no dead letter {again[0]['seq']}\n" in ran.err
    assert lab("dead-letters", "list").err == "no dead letters\n"
    assert lab("dead-letters", "replay").code == 2


def test_emit_and_explain(lab: Lab) -> None:
    file = lab.write("event.json", event(type="lab.nothing", subject="/lab/a.txt"))
    assert lab("emit", file).out == "accepted: 1\n"
    assert lab("emit", "-", "--id", "7", stdin=json.dumps(event())).out == "accepted: 7\n"
    explained = {answer["rule"]: answer for answer in lab.json("explain", file)}
    assert not any(answer["matched"] for answer in explained.values())
    text = lab("explain", file, "--rule", "lab.double").out
    assert text.startswith("default/lab.double: no match\n")
    assert '✗ type: ["lab.double"] found "lab.nothing"' in text
    assert lab("explain", file, "--rule", "lab.nosuch").code == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "emit needs an event: EVENT.json, - for stdin, or at least --type"),
        (("--type", ""), "no event: attribute 'type'"),
        (("--type", "a", "--data", "{"), "--data is not JSON"),
        (("--type", "a", "--extension", "Upper=1"), "no event: attribute 'Upper'"),
        (("--type", "a", "--source", "a b"), "no event: attribute 'source'"),
        (("missing.json",), "can't read missing.json: No such file or directory"),
        (("--from", "."), "emit --from DIR and --rule RULE belong together"),
        (("--from", "nosuch", "--rule", "lab.files"), "--from nosuch: there is no such directory"),
    ],
)
def test_wrong_events(lab: Lab, options: tuple[str, ...], message: str) -> None:
    ran = lab("emit", *options)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"eventmill: {message}")


def test_check(lab: Lab) -> None:
    [report] = lab.json("check")
    assert report["settings"]["server"]["port"] == 0
    assert report["components"]["engine"]["ok"] is True
    text = lab("check").out
    assert "limits.depth" in text
    assert "engine" in text


def test_lint(lab: Lab) -> None:
    ran = lab("lint")
    assert (ran.code, ran.out, ran.err) == (0, "", "nothing to complain about\n")


# run


def small_flow(folder: Path) -> str:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "small.py").write_text(flows.SMALL.replace("ROOT", str(folder / "in")))
    return "small.py"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_serves_a_flow_and_says_what_ends(tmp_path: Path, number: int) -> None:
    with started(tmp_path, "run", small_flow(tmp_path), "--json") as process:
        wait_for(lambda: "is served at" in (tmp_path / "stderr").read_text())
        assert f"watching {tmp_path / 'in'}\n" in (tmp_path / "stderr").read_text()
        (tmp_path / "in/new").mkdir()
        (tmp_path / "in/new/a.txt").write_text("x")
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        assert (line["kind"], line["state"], line["action"]) == ("activation", "succeeded", "default/small/note")
        assert line["cause"]["source"] == f"file://{tmp_path / 'in'}"
        assert ended(process, number) == 0
        assert process.stdout.read() == ""


def test_run_prints_lines_for_people(tmp_path: Path, cli: Cli) -> None:
    with started(tmp_path, "run", small_flow(tmp_path)) as process:
        wait_for(lambda: "is served at" in (tmp_path / "stderr").read_text())
        assert cli("emit", "--type", "org.test.asked", "--subject", "who", "--data-dir", "data").code == 0
        assert process.stdout is not None
        assert process.stdout.readline().split()[1:3] == ["succeeded", "small/note"]


def test_run_with_a_flow_that_is_refused(tmp_path: Path, cli: Cli) -> None:
    cli.write("big.py", FLOW.replace("@mill.function(retries=0)", '@mill.function(timeout="2h")'))
    ran = cli.real("run", "big.py", "--data-dir", "data", "--port", "0")
    assert ran.code == 2
    assert "eventmill: big.py:11: action 'lab/refuse': requirement failed: duration 7200000" in ran.err
    assert not (tmp_path / "data").exists()


def test_run_with_a_flow_that_the_server_refuses(cli: Cli) -> None:
    cli.write(
        "call.py", "from eventmill import Mill\nmill = Mill('m')\ncall = mill.http('http://127.0.0.1:9/f', name='f')"
    )
    ran = cli.real("run", "call.py", "--data-dir", "data", "--port", "0")
    assert ran.code == 2
    assert 'add "127.0.0.1:9" to hosts below [functions.http] in the server' in ran.err
    assert ran.err.endswith("eventmill: the flow was refused: nothing was changed\n")


def test_run_waits_for_a_directory(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text(flows.SMALL.replace("ROOT", str(tmp_path / "in/later")))
    with started(tmp_path, "run", "small.py") as process:
        said = tmp_path / "stderr"
        wait_for(lambda: "isn't there: waiting" in said.read_text())
        assert f"waiting for {tmp_path / 'in/later'} to appear\n" in said.read_text()
        (tmp_path / "in/later").mkdir(parents=True)
        (tmp_path / "in/later/a.txt").write_text("x")
        assert process.stdout is not None
        assert process.stdout.readline().split()[1:3] == ["succeeded", "small/note"]


def test_run_tells_of_files_that_were_there_and_of_rules_from_before(tmp_path: Path) -> None:
    small_flow(tmp_path)
    for name in "ab":
        (tmp_path / "in" / name).write_text("")
    said = tmp_path / "stderr"
    with started(tmp_path, "run", "small.py") as process:
        hint = f"eventmill emit --from {tmp_path}/in --rule small.files --data-dir data\n"
        wait_for(lambda: hint in said.read_text())
        assert f"2 files were there already and are ignored; announce them with: {hint}" in said.read_text()
        assert ": 2 rules; Ctrl-C ends it" in said.read_text()
        assert ended(process) == 0
    other = 'from eventmill import Mill, happened\nmill = Mill("other")\n@mill.function\ndef f(event): ...\n'
    (tmp_path / "other.py").write_text(other + 'mill.on(happened("x"), f)\n')
    with started(tmp_path, "run", "other.py"):
        wait_for(lambda: ": 1 rule; Ctrl-C ends it" in said.read_text())
        assert "also active from before: small.asked, small.files (" in said.read_text()
        assert "were there already" not in said.read_text()


def test_a_second_interrupt_ends_run_at_once(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "slow.py").write_text(FLOW)
    with started(tmp_path, "run", "slow.py") as process:
        said = tmp_path / "stderr"
        wait_for(lambda: "is served at" in said.read_text())
        assert cli("emit", "--type", "lab.wait", "--data-dir", "data").code == 0
        command = ("activations", "list", "--state", "handed,running", "--data-dir", "data", "--json")
        wait_for(lambda: cli(*command).objects)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "ending: functions under way get 10 s; Ctrl-C again ends now\n" in said.read_text())
        assert process.poll() is None
        assert ended(process, signal.SIGINT) == 130
        assert "Traceback" not in said.read_text()


def test_a_data_directory_has_one_server(tmp_path: Path, cli: Cli) -> None:
    with started(tmp_path, "serve"):
        ran = cli.real("serve", "--data-dir", "data", "--port", "0")
        assert ran.code == 2
        assert "another server uses the data directory" in ran.err
        checked = cli.write("mill.toml", f'[server]\ndata_dir = "{tmp_path}/data"\nport = 0\n')
        assert cli("check", "--config", checked).code == 0


def test_emit_for_files_that_are_there(tmp_path: Path, cli: Cli) -> None:
    """The same events as the watched directory makes: nothing runs twice."""
    with started(tmp_path, "run", small_flow(tmp_path), "--json") as process:
        assert process.stdout is not None
        wait_for(lambda: "is served at" in (tmp_path / "stderr").read_text())
        (tmp_path / "in/a.txt").write_text("x")
        seen = json.loads(process.stdout.readline())["cause"]
        (tmp_path / "in/b.log").write_text("not matched")
        command = ("emit", "--from", str(tmp_path / "in"), "--rule", "small.files", "--data-dir", "data")
        shown = cli(*command, "--dry-run")
        assert [(made["source"], made["id"]) for made in shown.objects] == [(seen["source"], seen["id"])]
        assert cli(*command, "--json").objects == [{"files": 2, "events": 1}]
        assert cli("emit", "--type", "org.test.asked", "--data-dir", "data", "--subject", "last").code == 0
        assert json.loads(process.stdout.readline())["rule"] == "default/small.asked"

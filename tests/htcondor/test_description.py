"""From bound descriptions to submit calls: what HTCondor is told, what may share a cluster, that data stay data."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventmill.entities.submit import ALLOWED, NEVER, BoundDescription, parse
from eventmill.errors import InvalidConfig, InvalidDescription
from eventmill.executors.archive import unpack
from eventmill.executors.htcondor.description import (
    JOBS_PER_CLUSTER,
    Cluster,
    Facts,
    Sources,
    Terms,
    allowed_commands,
    clusters,
    job_commands,
    numbered,
    read_defaults,
    sources,
)
from eventmill.executors.htcondor.eventlog import EventLog
from eventmill.executors.htcondor.records import Kind
from eventmill.executors.htcondor.rooms import furnish
from eventmill.executors.jobs import read_archive
from eventmill.sdk.pack import load
from tests.sdk.sdk_flows import write

if TYPE_CHECKING:
    from tests.htcondor.pool import CondorPool

ROOM = Path("/spool/rooms/a.1")
FILES = Sources(executable="/spool/code/x/run.sh", input=None, inputs=())


def bound(text: str = "", parameters: Mapping[str, Any] | None = None, **options: Any) -> BoundDescription:
    return parse(f"executable = run.sh\n{text}\nqueue\n").bind(parameters or {}, **options)


def facts(number: int = 1, **more: Any) -> Facts:
    values: dict[str, Any] = {
        "activation": f"{number:032x}", "attempt": 1, "action": "/lab/beam/calibrate", "batch_name": "beam/reduce 7",
        "room": ROOM, "code": Path("/spool/code/x"), "memory_mb": 256, "limit_s": 3600,
    }  # fmt: skip
    return Facts(**{**values, **more})


def commands(text: str = "", parameters: Mapping[str, Any] | None = None, **options: Any) -> dict[str, str]:
    terms = options.pop("terms", Terms())
    files = options.pop("files", FILES)
    given = facts(**options.pop("facts", {}))
    return job_commands(bound(text, parameters, **options), given, terms, files)


def expanded(cluster: Cluster, proc: int) -> dict[str, str]:
    """The commands of one job of a cluster, its items put in."""
    values = dict(cluster.commands)
    for variable, value in cluster.items[proc].items():
        values = {key: text.replace(f"$({variable})", value) for key, text in values.items()}
    return values


# ---- what is told


def test_a_job_as_htcondor_is_told_of_it() -> None:
    terms = Terms(
        server="5eed", log=Path("/spool/log/jobs.log"), keep_claim_idle_s=300, environment={"PATH": "/opt/py"}
    )
    text = """
        arguments = "$(path) 'two words'"
        environment = "TITLE='run 7' COST=$(cost)"
        output = out/$(ClusterId).txt
        initialdir = results
        transfer_output_files = frames.h5, sub/log.txt
        transfer_output_remaps = "frames.h5 = x.h5"
        when_to_transfer_output = ON_SUCCESS
        request_cpus = 4
        +Project = "xfel $(path)"
    """
    told = commands(
        text, {"path": "/d/r7.h5", "cost": "5$"}, terms=terms,
        files=Sources(executable="/spool/code/x/run.sh", input="/spool/code/x/in.txt", inputs=("/d/$x y/",)),
        facts={"traceparent": "00-ab-cd-01"},
    )  # fmt: skip
    attributes = told.pop("job_ad_information_attrs").split(", ")
    assert {"EventmillActivation", "NumJobStarts", "ExitCode", "HoldReasonSubCode"} <= set(attributes)
    assert told == {
        "universe": "vanilla",
        "executable": "/spool/code/x/run.sh",
        "transfer_executable": "true",
        "arguments": "\"/d/r7.h5 'two words'\"",
        "environment": "PATH=/opt/py TITLE='run 7' COST=5$(DOLLAR) EVENTMILL_ACTIVATION=" + f"{1:032x}"
        " EVENTMILL_ATTEMPT=1 TRACEPARENT=00-ab-cd-01",
        "input": "/spool/code/x/in.txt",
        "output": "/spool/rooms/a.1/stdout",
        "error": "/spool/rooms/a.1/stderr",
        "initialdir": "/spool/rooms/a.1/scratch",
        "transfer_input_files": "/spool/rooms/a.1/params.json, /d/$(DOLLAR)x y/, /spool/rooms/a.1/result.json",
        "transfer_output_files": "frames.h5, sub/log.txt, result.json",
        "preserve_relative_paths": "true",
        "should_transfer_files": "YES",
        "when_to_transfer_output": "ON_EXIT",
        "request_cpus": "4",
        "request_memory": "256",
        "allowed_job_duration": "3600",
        "keep_claim_idle": "300",
        "hold": "true",
        "notification": "never",
        "getenv": "false",
        "batch_name": "beam/reduce 7",
        "log": "/spool/log/jobs.log",
        "My.UserLogUseXML": "2",
        "My.EventmillActivation": f'"{1:032x}"',
        "My.EventmillAttempt": "1",
        "My.EventmillServer": '"5eed"',
        "My.EventmillAction": '"/lab/beam/calibrate"',
        "My.Project": '"xfel /d/r7.h5"',
    }
    (cluster,) = clusters([told])
    assert cluster.commands["environment"].startswith(
        '"EVENTMILL_PARAMS=#CoNdOrScRaTcHdIr#/params.json EVENTMILL_RESULT=#CoNdOrScRaTcHdIr#/result.json PATH='
    )


def test_the_authors_word_counts_before_the_pools() -> None:
    terms = Terms(keep_claim_idle_s=300, defaults={"rank": "Memory", "My.Project": '"none"', "request_memory": "1GB"})
    told = commands("rank = Cpus\nkeep_claim_idle = 5\nbatch_name = mine\naccounting_group = a.b\n", terms=terms)
    assert (told["rank"], told["keep_claim_idle"], told["My.Project"]) == ("Cpus", "5", '"none"')
    assert (told["batch_name"], told["accounting_group"], told["request_memory"]) == ("mine", "a.b", "1GB")
    told = commands('+project = "x"\nrequest_memory = 2GB\n', terms=terms)
    assert (told["My.project"], told["request_memory"]) == ('"x"', "2048")
    assert "My.Project" not in told


def test_the_shorter_time_limit_counts() -> None:
    assert commands("allowed_job_duration = 60")["allowed_job_duration"] == "60"
    assert commands("allowed_job_duration = 9999")["allowed_job_duration"] == "3600"
    assert "allowed_job_duration" not in commands(facts={"limit_s": None})


@pytest.mark.parametrize("text", ["periodic_release = true", ""])
def test_nobody_releases_what_was_not_recorded(text: str) -> None:
    """Neither the author's periodic_release nor the pool's default."""
    told = commands(text, terms=Terms(defaults={"periodic_release": "true"}))
    assert told["periodic_release"] == "(HoldReasonCode =!= 15) && (true)"


def test_a_container() -> None:
    told = commands("universe = container\ncontainer_image = /cvmfs/x.sif")
    assert (told["universe"], told["container_image"]) == ("container", "/cvmfs/x.sif")


def test_a_program_of_the_machine_that_runs_it(tmp_path: Path) -> None:
    job = parse("executable = /usr/bin/env\ntransfer_executable = false\nqueue\n").bind({})
    files = sources(job, tmp_path, [])
    told = job_commands(job, facts(), Terms(), files)
    assert (told["executable"], told["transfer_executable"]) == ("/usr/bin/env", "false")


def test_numbers_are_put_in_for_delivery() -> None:
    job = bound('output = $(ClusterId)/$(ProcId).txt\ninitialdir = r$(Cluster)\n'
                'transfer_output_remaps = "a = $(ClusterId).h5"')  # fmt: skip
    assert (numbered(job, 7, 3).output, numbered(job, 7, 3).initialdir) == ("7/3.txt", "r7")
    assert numbered(job, 7, 3).remaps == {"a": "7.h5"}


@pytest.mark.parametrize("room", ["/spool/a,b", '/spool/"x"', "/spool/$(HOME)", "rooms/a", "/spool/x\ny", "/spool/a\\"])
def test_a_state_directory_that_htcondor_can_not_take(room: str) -> None:
    with pytest.raises(InvalidConfig, match="state_dir"):
        commands(facts={"room": Path(room)})


def test_names_of_ours_say_nothing_to_htcondor() -> None:
    told = commands(facts={"batch_name": 'a$(HOME)\n"b\\', "action": 'x"y\\'}, terms=Terms(server="$(X)"))
    assert (told["batch_name"], told["My.EventmillAction"]) == ("a_(HOME)__b_", '"x_y_"')
    assert "$" not in told["My.EventmillServer"]


# ---- data stay data

HOSTILE = {
    "line's end": "a\nhold = false", "return": "a\rb", "NUL": "a\0b", "escape": "\x1b[2J", "1 MB": "x" * (1 << 20),
    "long": "x" * 20_000, "double quote": 'a" b', "double quotes": '""', "single quote": "it's", "quotes": "''\"\"'",
    "macro": "$(ClusterId)", "environment": "$ENV(SECRET)", "late": "$$(Name)", "later": "$$([ 1 + 1 ])",
    "dollar": "$(DOLLAR)x", "dollar in small letters": "$( dollar )", "function": "$INT(3)",
    "choice": "$RANDOM_CHOICE(a,b)",
    "item": "$(Eventmill_My_EventmillActivation)", "default": "$(none:x)", "open": "$(", "just a dollar": "$",
    "shell": "`id`; $HOME && x | y > z", "backslash": "a\\b", "backslash at the end": "a\\", "backslashes": "\\\\",
    "unicode": "ünï→🎈", "blank": " ", "empty": "", "tab": "a\tb", "comment": "# x", "queue": "queue 5",
    "semicolons": "a=b;c",
    "separators": "a, b", "dots": "../../etc/passwd", "root": "/etc/shadow", "half a character": "\ud800",
    "unit separator": "a\x1fb", "percent": "%s%n", "scratch": "#CoNdOrScRaTcHdIr#", "braces": "${HOME}",
}  # fmt: skip
"""Values of a parameter that stands in arguments, in the environment, in an attribute and in the batch name."""

REFUSED = {
    "line's end", "return", "NUL", "escape", "1 MB", "late", "later", "dollar", "dollar in small letters",
    "half a character", "unit separator", "scratch",
}  # fmt: skip

EVERYWHERE = 'arguments = "$(v) end"\nenvironment = "V=$(v)"\n'
NOTED = EVERYWHERE + '+Note = "<$(v)>"\n'
NOT_NOTED = {"backslash", "backslash at the end", "backslashes"}
"""Refused in an attribute alone."""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_parameters(name: str) -> None:
    """They are refused, or stay within their value: no line, no quote and no macro of theirs is HTCondor's to see."""
    value = HOSTILE[name]
    if name in REFUSED:
        with pytest.raises(InvalidDescription):
            commands(EVERYWHERE, {"v": value})
        return
    if name in NOT_NOTED:
        with pytest.raises(InvalidDescription):
            commands(NOTED, {"v": value})
    text = EVERYWHERE if name in NOT_NOTED else NOTED
    told, plain = commands(text, {"v": value}), commands(text, {"v": "x"})
    assert told.keys() == plain.keys()
    for key, text in told.items():
        assert "$" not in text.replace("$(DOLLAR)", "")
        assert not any(c in text for c in "\n\r\0")
        assert not text.endswith("\\") or key == "environment"
    assert {key for key in told if told[key] != plain[key]} <= {"arguments", "environment", "My.Note"}
    (cluster,) = clusters([told])
    frame = cluster.commands["environment"] if "$" in told["environment"] else expanded(cluster, 0)["environment"]
    assert frame.endswith('"')


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "command", ["transfer_input_files = $(v)", "input = $(v)", "batch_name = $(v)", "request_memory = $(v)",
                'transfer_output_remaps = "a = $(v)"', "requirements = $(v)", "accounting_group = $(v)"]
)  # fmt: skip
def test_hostile_parameters_elsewhere(name: str, command: str, tmp_path: Path) -> None:
    """In paths, numbers, names and expressions: refused, or the same one line with nothing to expand."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "run.sh").touch()
    try:
        job = bound(command, {"v": HOSTILE[name]})
        told = job_commands(job, facts(), Terms(), sources(job, code, []))
    except InvalidDescription:
        return
    for key, text in told.items():
        assert not any(c in text for c in "\n\r\0")
        assert not text.endswith("\\")
        if key in ("batch_name", "accounting_group"):
            assert "$" not in text.replace("$(DOLLAR)", "")
    assert not any(".." in path.split("/") for path in job.inputs)
    assert "/etc/shadow" not in json.dumps(told) or command.startswith(("batch_name", "accounting_group"))


@pytest.mark.parametrize("a", ["\\", "x\\", "\\\\", '\\"'])
def test_a_backslash_can_not_join_two_strings_of_an_expression(a: str) -> None:
    """In HTCondor's old syntax `"\\\\"` is not closed: what stands between it and the next string would be a part of
    it, and what the next parameter says would be evaluated."""
    for command in ("requirements", "periodic_remove", "+Note"):
        text = f'{command} = TARGET.Name == "$(a)" && TARGET.Site == "$(b)"'
        with pytest.raises(InvalidDescription, match="backslash"):
            commands(text, {"a": a, "b": " || true //"})
    assert commands('+Note = regexp("\\.h5", "$(b)")', {"b": 'a"b'})["My.Note"] == 'regexp("\\.h5", "a\\"b")'


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=12))
def test_what_shares_a_cluster_comes_out_as_it_went_in(values: list[str]) -> None:
    told = []
    for number, value in enumerate(values):
        try:
            told.append(commands(EVERYWHERE, {"v": value}, facts={"number": number, "room": Path(f"/rooms/{number}")}))
        except InvalidDescription:
            continue
    found: dict[int, dict[str, str]] = {}
    for cluster in clusters(told):
        assert len(cluster.items) == len(cluster.jobs)
        assert all("$" not in value for item in cluster.items for value in item.values())
        found |= {index: expanded(cluster, proc) for proc, index in enumerate(cluster.jobs)}
    assert sorted(found) == list(range(len(told)))
    for index, job in enumerate(told):
        frame = found[index].pop("environment")
        assert frame.endswith(" " + job.pop("environment") + '"')
        assert found[index] == job


# ---- one cluster or many


def many(count: int, text: str = "", **more: Any) -> list[dict[str, str]]:
    job = bound(text, {"v": "x", **more})
    return [
        job_commands(job, facts(number, room=Path(f"/rooms/{number}"), batch_name=f"chain {number}"), Terms(), FILES)
        for number in range(count)
    ]


def test_jobs_of_one_action_are_one_cluster_up_to_a_limit() -> None:
    made = clusters(many(2 * JOBS_PER_CLUSTER + 1))
    assert [len(cluster.items) for cluster in made] == [JOBS_PER_CLUSTER, JOBS_PER_CLUSTER, 1]
    assert [index for cluster in made for index in cluster.jobs] == list(range(2 * JOBS_PER_CLUSTER + 1))
    rooms = {item["Eventmill_initialdir"] for cluster in made[:2] for item in cluster.items}
    assert len(rooms) == 2 * JOBS_PER_CLUSTER
    assert set(made[2].items[0]) == {"Eventmill_My_EventmillActivation"}


def test_what_forces_clusters() -> None:
    tame = [commands('arguments = "$(v)"', {"v": value}) for value in ("a", 'b"c', "d e", "é")]
    assert len(clusters(tame)) == 1
    assert len(clusters([*tame, commands('arguments = "$(v)"', {"v": "5$"})])) == 2
    # a job that lacks a variable would have the first job's
    assert len(clusters([commands(facts={"traceparent": trace}) for trace in ("00-ab-cd-01", "00-ef-cd-01")])) == 1
    assert len(clusters([commands(facts={"traceparent": trace}) for trace in ("00-ab-cd-01", None)])) == 2
    odd = ["A='x B=y' C=''", "A='x '' B=y' C=2", "A=x B=y C=''"]
    assert len(clusters([{**commands(), "environment": value} for value in odd])) == 2
    assert len(clusters([commands(f"request_cpus = {n}") for n in (1, 2, 1)])) == 2
    assert len(clusters([commands("+X = $(n)", {"n": n}) for n in (1, 2)])) == 2
    other = replace(FILES, executable="/spool/code/y/run.sh")
    assert len(clusters([commands(), commands(files=other)])) == 2
    assert len(clusters([commands(), commands('arguments = "a"')])) == 2
    assert clusters([]) == []


# ---- what a site may allow


def test_allowed_commands() -> None:
    lists = {"*": ["nice_user", "My.Site"], "lab": ["Request_Licenses", "+Grant"]}
    assert allowed_commands(lists, "other") == ALLOWED | {"nice_user", "+site"}
    allowed = allowed_commands(lists, "lab")
    job = parse("executable = a\nrequest_licenses = 2\nnice_user = true\n+Grant = 5\nqueue", allowed=allowed).bind({})
    told = job_commands(job, facts(), Terms(), FILES)
    assert (told["request_licenses"], told["nice_user"], told["My.Grant"]) == ("2", "true", "5")


@pytest.mark.parametrize(
    "name", ["hold", "LOG", "universe", "notify_user", "getenv", "My.EventmillActivation", "+eventmillServer", "My.A.B",
             "a b", "x=y", "", "executable", "queue", "max_retries", "leave_in_queue", "environment"]
)  # fmt: skip
def test_what_no_site_can_allow(name: str) -> None:
    with pytest.raises(InvalidConfig):
        allowed_commands({"lab": [name]}, "lab")
    if name != "environment":
        with pytest.raises(InvalidConfig):
            read_defaults({name: "x"})


def test_the_readers_commands_are_no_sites_to_forbid() -> None:
    """What `entities` types and checks is never passed through as text; the rest of its list may have defaults."""
    free = {"rank", "requirements", "periodic_remove", "batch_name", "concurrency_limits", "request_memory", "priority"}
    assert not free & NEVER


def test_defaults() -> None:
    told, variables = read_defaults(
        {"Requirements": "Cpus > 1", "+Project": '"x"', "environment": "\"PATH='/opt/a b' X=1\""}
    )
    assert told == {"requirements": "Cpus > 1", "My.Project": '"x"'}
    assert variables == {"PATH": "/opt/a b", "X": "1"}


@pytest.mark.parametrize("value", ["a\nhold = false", "a\\", "a\\  ", "a\rb"])
def test_a_default_is_one_line(value: str) -> None:
    with pytest.raises(InvalidConfig, match="one line"):
        read_defaults({"rank": value})


@pytest.mark.parametrize("value", ['"A', '"EVENTMILL_PARAMS=x"', '"A B"'])
def test_variables_that_are_none(value: str) -> None:
    with pytest.raises(InvalidConfig):
        read_defaults({"environment": value})


# ---- the files a job names


@pytest.fixture
def code(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    (code / "constants").mkdir(parents=True)
    for name in ("run.sh", "constants/a.txt", "a,b.txt", "in.txt"):
        (code / name).touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/r7.h5").touch()
    (tmp_path / "secret").touch()
    (code / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "data/out").symlink_to(tmp_path / "secret")
    (tmp_path / "data/latest").symlink_to("r7.h5")
    return code


def test_sources(code: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    job = bound(f"input = in.txt\ntransfer_input_files = constants/, {data}/latest, {data}", roots=[str(data)])
    assert sources(job, code, [str(data)]) == Sources(
        executable=f"{code}/run.sh", input=f"{code}/in.txt", inputs=(f"{code}/constants/", f"{data}/r7.h5", str(data))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("transfer_input_files = out", "leads out"),
        ("transfer_input_files = {data}/out", "leads out"),
        ("input = out", "leads out"),
        ("transfer_input_files = none.txt", "there is no"),
        ("transfer_input_files = {data}/none", "there is no"),
        ("input = none", "there is no"),
    ],
)
def test_sources_that_are_none(text: str, message: str, code: Path, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    job = bound(text.format(data=data), roots=[data])
    with pytest.raises(InvalidDescription, match=message):
        sources(job, code, [data])


def test_a_link_to_a_name_that_can_not_be_transferred(code: Path) -> None:
    (code / "fine").symlink_to("a,b.txt")
    with pytest.raises(InvalidDescription, match="can't transfer"):
        sources(bound("transfer_input_files = fine"), code, [])


# ---- plain-Python jobs, with nothing of ours where they run

FLOW = """\
import json
from eventmill import Fatal, Mill, files
import helping

mill = Mill("beamtime")

@mill.job(cpus=1, memory="64MB", include=["table.txt"])
def reduce(params):
    if params.get("fail"):
        raise Fatal("no frames")
    with open("table.txt") as file:
        return {"sum": helping.total(params["frames"]), "table": file.read(), "path": params["path"]}

mill.on(files.written("/raw/*.h5"), reduce)
"""

PARAMS = {"frames": [1, 2, 3], "path": 'ü "$(HOME)" \n $$(x) ${HOME}'}
RESULT = {"sum": 6, "table": "t", "path": PARAMS["path"]}


@pytest.fixture
def packed(tmp_path: Path) -> bytes:
    """A plain-Python job's archive, as it is uploaded."""
    folder = tmp_path / "flow"
    write(folder, "helping.py", "def total(frames):\n    return sum(frames)\n")
    write(folder, "table.txt", "t")
    documents = load(write(folder, "flow.py", FLOW)).documents(namespace="lab")
    exec_ = next(document["exec"] for _, name, document in documents if name == "beamtime/reduce")
    assert exec_["kind"] == "job"
    return exec_["code"].encode()  # type: ignore[no-any-return]


def pythons() -> list[str]:
    found = {sys.executable}
    for minor in range(9, 15):
        path = shutil.which(f"python3.{minor}")
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            found.add(path)
    return sorted(found)


@pytest.mark.parametrize("python", pythons(), ids=os.path.basename)
def test_a_packed_job_runs_in_a_bare_directory(python: str, packed: bytes, tmp_path: Path) -> None:
    """As on an execute node: only what is transferred is there, no variable is set, no package is installed."""
    bare, out = tmp_path / "scratch", tmp_path / "code"
    bare.mkdir()
    archive = read_archive(packed)
    unpack(archive.data, out, files_max=100, bytes_max=1 << 20)
    job = archive.description.bind({})
    for file in (job.executable, *job.inputs):
        shutil.copy(out / file, bare)
    command = ["env", "-i", python, "-I", "-S", job.executable]
    (bare / "params.json").write_text(json.dumps(PARAMS))
    ran = subprocess.run(command, cwd=bare, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert json.loads((bare / "result.json").read_text()) == RESULT
    assert sorted(os.listdir(bare)) == ["flow.zip", "params.json", "result.json", "run.py", "table.txt"]
    (bare / "params.json").write_text('{"fail": true}')
    ran = subprocess.run(command, cwd=bare, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert json.loads((bare / "result.json").read_text()) == {"error": "no frames", "eventmill_fatal": True}
    assert "no frames" in ran.stderr


# ---- in a real pool

SUBMIT = """
import json, sys
import htcondor2

schedd = htcondor2.Schedd()
made = []
for commands, items in json.load(sys.stdin):
    done = schedd.submit(htcondor2.Submit(commands), itemdata=iter(items))
    held = schedd.query(f"ClusterId == {done.cluster()}", ["JobStatus", "HoldReasonCode"])
    assert all((ad["JobStatus"], ad["HoldReasonCode"]) == (5, 15) for ad in held), held
    assert len(held) == len(items), held
    made.append(done.cluster())
schedd.act(htcondor2.JobAction.Release, [f"{cluster}" for cluster in made])
print(json.dumps(made))
"""

SHOW = """#!/usr/bin/env python3
import json, os, sys
os.mkdir("sub")
open("sub/out.txt", "w").write("left")
print("said", sys.stdin.read())
here = {name: open(name).read() for name in os.listdir(".") if name.endswith(".txt")}
json.dump({"arguments": sys.argv[1:], "environment": dict(os.environ), "here": here},
          open(os.environ["EVENTMILL_RESULT"], "w"))
"""


class Lab:
    """Submits jobs to a real pool, and waits until they have left it."""

    def __init__(self, pool: CondorPool, directory: Path) -> None:
        self.pool, self.directory = pool, directory
        self.terms = Terms(log=directory / "jobs.log", keep_claim_idle_s=5, server="test")

    def job(self, number: int, job: BoundDescription, code: Path, params: Mapping[str, Any]) -> dict[str, str]:
        room = self.room(number)
        furnish(room, job, json.dumps(params).encode())
        given = facts(number, room=room, code=code, memory_mb=64)
        return job_commands(job, given, self.terms, sources(job, code, [str(self.directory)]))

    def room(self, number: int) -> Path:
        return self.directory / "rooms" / str(number)

    def run(self, jobs: Sequence[Mapping[str, str]]) -> list[Cluster]:
        """Submit held, release, and read the ends from the jobs' own log."""
        calls = clusters(jobs)
        environment = {**os.environ, "CONDOR_CONFIG": str(self.pool.config), "SECRET": "s3cret"}
        request = json.dumps([[dict(call.commands), list(map(dict, call.items))] for call in calls])
        ran = subprocess.run(
            [sys.executable, "-c", SUBMIT], input=request,
            env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        asyncio.run(self._ends({json.loads(job["My.EventmillActivation"]) for job in jobs}))
        return calls

    async def _ends(self, waited: set[str]) -> None:
        async with asyncio.timeout(90), aclosing(aiter(EventLog(self.directory / "jobs.log"))) as lists:  # type: ignore[type-var]
            async for events in lists:
                for event in events:
                    assert event.kind not in (Kind.HELD, Kind.ABORTED), event.attributes
                waited -= {event.activation for event in events if event.kind is Kind.TERMINATED}
                if not waited:
                    return

    def result(self, number: int) -> dict[str, Any]:
        raw: dict[str, Any] = json.loads((self.room(number) / "scratch/result.json").read_text())
        return raw


def zipped(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return base64.b64encode(buffer.getvalue())


def unpacked(code: bytes, target: Path) -> Path:
    unpack(read_archive(code).data, target, files_max=100, bytes_max=1 << 20)
    return target


@pytest.mark.slow
def test_hostile_parameters_in_a_real_pool(condor: CondorPool, tmp_path: Path) -> None:
    """What is accepted reaches the job as it was: alone, and in one cluster with others."""
    code = unpacked(zipped({"job.sub": "executable = show.py\nqueue\n", "show.py": SHOW}), tmp_path / "code")
    lab = Lab(condor, tmp_path)
    accepted = {name: value for name, value in HOSTILE.items() if name not in REFUSED}
    tame = parse("executable = show.py\n" + EVERYWHERE + "queue\n")
    noted = parse("executable = show.py\n" + NOTED + "queue\n")
    jobs = []
    for number, (name, value) in enumerate(accepted.items()):
        # every third with an attribute, which makes it a cluster of its own
        description = noted if number % 3 == 0 and name not in NOT_NOTED else tame
        jobs.append(lab.job(number, description.bind({"v": value}), code, {"v": value}))
    calls = lab.run(jobs)
    assert max(len(call.items) for call in calls) > len(accepted) / 4
    notes = {ad["EventmillActivation"]: ad.get("Note") for ad in condor.history('EventmillServer == "test"')}
    for number, value in enumerate(accepted.values()):
        result = lab.result(number)
        assert result["arguments"] == [value, "end"]
        assert result["environment"]["V"] == value
        assert result["environment"]["EVENTMILL_ACTIVATION"] == f"{number:032x}"
        assert "s3cret" not in json.dumps(result)
        assert notes[f"{number:032x}"] == (f"<{value}>" if "My.Note" in jobs[number] else None)
    ads = condor.history('EventmillServer == "test"')
    assert len(ads) == len(accepted)
    assert {ad["JobBatchName"] for ad in ads} == {"beam/reduce 7"}


@pytest.mark.slow
def test_files_in_a_real_pool(condor: CondorPool, tmp_path: Path, packed: bytes) -> None:
    """Inputs, standard input, named outputs and none; a plain-Python job by file transfer."""
    lab = Lab(condor, tmp_path)
    files = {
        "show.py": SHOW,
        "in.txt": "input",
        "constants/c.txt": "constant",
        "job.sub": "executable = show.py\nqueue\n",
    }
    code = unpacked(zipped(files), tmp_path / "code")
    (tmp_path / "r 7$(x).txt").write_text("data")
    text = f"""executable = show.py
        input = in.txt
        transfer_input_files = constants/, {tmp_path}/$(name)
        transfer_output_files = sub/out.txt
        queue"""
    params = {"name": "r 7$(x).txt"}
    job = parse(text).bind(params, roots=[str(tmp_path)])
    named = lab.job(1, job, code, params)
    silent = parse('executable = /bin/sh\ntransfer_executable = false\narguments = "-c \'echo x > new.txt\'"\n'
                   'transfer_output_files = ""\nqueue\n').bind({})  # fmt: skip
    nothing = lab.job(2, silent, code, {})
    python_code = unpacked(packed, tmp_path / "python")
    python = lab.job(3, read_archive(packed).description.bind({}), python_code, PARAMS)
    lab.run([named, nothing, python])

    assert lab.result(1)["here"] == {"c.txt": "constant", "in.txt": "input", "r 7$(x).txt": "data"}
    assert (lab.room(1) / "scratch/sub/out.txt").read_text() == "left"
    assert (lab.room(1) / "stdout").read_text() == "said input\n"
    assert lab.result(2) == {}
    assert os.listdir(lab.room(2) / "scratch") == ["result.json"]
    assert lab.result(3) == RESULT
    assert os.listdir(lab.room(3) / "scratch") == ["result.json"]

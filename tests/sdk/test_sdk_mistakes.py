"""Flows that can't work get an error that says where, what and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eventmill import FlowError
from eventmill.sdk.pack import load

from .sdk_flows import flow, write

HEAD = """\
from eventmill import Mill, completed, cron, dcache, every, failed, files, happened
mill = Mill("beamtime")
@mill.function
def inspect(event): return {}
@mill.function
def register(result): ...
"""
"""Six lines: the mistakes below begin on the seventh."""

MISTAKES = {
    "relative glob": (
        "mill.on(files.written('raw/*.h5'), inspect)",
        7,
        "names of files begin with '/', and 'raw/*.h5' doesn't",
    ),
    "unknown unit": ('@mill.function(timeout="30 sec")\ndef f(e): ...', 7, "unknown unit 'sec'"),
    "size without a unit": ("@mill.function(memory=256)\ndef f(e): ...", 7, "write a number and a unit"),
    "timeout of nothing": ("@mill.function(timeout=0)\ndef f(e): ...", 7, "longer than nothing"),
    "not callable": ("mill.function(42)", 7, "a plain Python function is needed"),
    "option as the function": ('mill.function("30s")', 7, "options are named"),
    "unknown option": (
        "@mill.function(timout=3)\ndef f(e): ...",
        7,
        "unknown option 'timout' (did you mean 'timeout'?)",
    ),
    "unknown option of a job": ("mill.job('a.sub', queue=3)", 7, "unknown option 'queue' (known: name, timeout,"),
    "unknown on_hold": ("mill.job('a.sub', on_hold='release')", 7, "on_hold='release': write"),
    "on_hold without end": ("mill.job('a.sub', on_hold={'after': '1m'})", 7, "on_hold={'after': '1m'}: write"),
    "on_hold for no times": ("mill.job('a.sub', on_hold={'after': 60, 'times': 0})", 7, "on_hold: times"),
    "lambda without a name": ("mill.function(lambda event: {})", 7, "a lambda has no name"),
    "async function": ("@mill.function\nasync def f(e): ...", 7, "f is async"),
    "async generator": ("@mill.function\nasync def f(e): yield 1", 7, "f is async"),
    "generator": ("@mill.function\ndef f(e):\n    yield {}", 7, "f is a generator"),
    "two parameters": ("@mill.function\ndef f(event, results): ...", 7, "2 required parameters"),
    "keyword parameter": ("@mill.job\ndef f(event, *, results): ...", 7, "2 required parameters"),
    "bad retries": ("@mill.function(retries=-1)\ndef f(e): ...", 7, "retries=-1"),
    "bad instances": ("@mill.function(instances=0)\ndef f(e): ...", 7, "instances=0"),
    "bad parameters": ("@mill.function(parameters=['a'])\ndef f(e): ...", 7, "a dict with texts as keys"),
    "on_error is no action": ("@mill.function(on_error=print)\ndef f(e): ...", 7, "on_error must be an action"),
    "same name twice": ("@mill.function(name='inspect')\ndef again(e): ...", 7, r"taken by a function (flow.py:3)"),
    "bad characters in a name": ("@mill.function(name='my/function')\ndef f(e): ...", 7, "letters, digits, _ and -"),
    "name not ASCII": ("@mill.function\ndef prüfe(e): ...", 7, "letters, digits, _ and -"),
    "name too long": (f"@mill.function(name='{'x' * 101}')\ndef f(e): ...", 7, "has 101 characters, at most 100"),
    "join with a plain function": (
        "def plain(e): ...\ninspect >> plain",
        8,
        "'plain' is not an action: decorate it with @mill.function or",
    ),
    "join with a string": ("inspect >> 'register'", 7, "'register' is not an action"),
    "plain function joined": ("print >> inspect", 7, "is not an action"),
    "sequence of nothing": ("mill.sequence('empty')", 7, "has no steps"),
    "sequence of strangers": ("mill.sequence('s', inspect, 3)", 7, "a step must be an action"),
    "sequence too long": ("chain = inspect\nfor n in range(50): chain = chain >> inspect", 8, "at most 50 steps"),
    "map of nothing": ("mill.map()", 7, "map() of nothing"),
    "map of a list": ("mill.map([inspect])", 7, "must be an action"),
    "job without .sub": ("mill.job('calibrate.sh')", 7, "a file that ends in .sub"),
    "job with cpus beside .sub": ("mill.job('calibrate.sub', cpus=3)", 7, "belong into the description"),
    "job of a class": ("@mill.job\nclass J: ...", 7, "a plain Python function is needed"),
    "include is a string": ("@mill.job(include='a.json')\ndef f(): ...", 7, "a list of file names"),
    "submit command of two lines": ("@mill.job(submit={'rank': '1\\nqueue 5'})\ndef f(): ...", 7, "texts of one line"),
    "on without a pattern": ("mill.on(inspect)", 7, "on() needs a pattern first"),
    "on with a string": ("mill.on('/raw/*.h5', inspect)", 7, "is not a pattern"),
    "empty pattern": ("mill.on({}, inspect)", 7, "is not a pattern"),
    "value not in a list": ("mill.on({'data': {'n': 3}}, inspect)", 7, r"pattern at data.n: 3 must be in a list"),
    "on without an action": ("mill.on(files.written('/raw/*'))", 7, "what on() starts must be an action"),
    "on with a plain function": ("mill.on(files.written('/raw/*'), print)", 7, "what on() starts must be an action"),
    "on with what was not decorated": (
        "def g(e): ...\nmill.on(files.written('/raw/*'), g)",
        8,
        "'g' is not an action: decorate it with @mill.function or @mill.job",
    ),
    "on with a result": (
        "mill.on(files.written('/raw/*'), inspect({}))",
        7,
        "give the action itself: f, not f()",
    ),
    "same rule twice": (
        "mill.on(files.written('/a'), inspect)\nmill.on(files.written('/b'), inspect)",
        8,
        "rule 'inspect' exists already (flow.py:7)",
    ),
    "written without a glob": ("files.written()", 7, "at least one glob"),
    "data is no dict": ("files.written('/a', data=[3])", 7, "write conditions as a dict"),
    "happened without a type": ("happened()", 7, "needs the type"),
    "completed of a string": ("completed('inspect')", 7, "'inspect' is not an action"),
    "every 10 ms": ("every('10ms')", 7, "the shortest interval is 1s"),
    "cron of four fields": ("cron('0 3 * *')", 7, "five fields"),
    "mill named default": ("Mill('default')", 7, "reserved"),
    "mill with a bad name": ("Mill('my mill')", 7, "Mill name 'my mill'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_definition(tmp_path: Path, mistake: str) -> None:
    text, line, message = MISTAKES[mistake]
    with pytest.raises(FlowError, match=re.escape(message)) as caught:
        flow(tmp_path, HEAD + text)
    assert str(caught.value).startswith(f"flow.py:{line}: ")


WHOLE = {
    "syntax error": ("def f(:\n", "flow.py:1: syntax error: invalid syntax"),
    "no mill": ("x = 1\n", 'flow.py: defines no Mill: begin with  mill = Mill("flow")'),
    "no actions": ("from eventmill import Mill\nmill = Mill('m')\n", "flow.py:2: Mill 'm' has no actions"),
    "missing module": ("import json\nimport no_such_module\n", "flow.py:2: can't import 'no_such_module' here"),
    "misspelt": (
        HEAD + "files.writen('/raw/*')\n",
        "flow.py:7: AttributeError: '_Storage' object has no attribute 'writen'; did you mean 'written'?",
    ),
    "exception": ("x = {}\n\ny = x['a']\n", "flow.py:3: KeyError: 'a'"),
    "action called": (
        HEAD + "mill.on(files.written('/raw/*'), inspect())\n",
        "flow.py:7: TypeError: inspect() missing 1 required positional argument: 'event' (if you mean the action, give",
    ),
    "exit": ("import sys\nsys.exit(3)\n", "flow.py:2: the flow ends the program"),
    "nested function": (
        HEAD + "def make():\n    @mill.function\n    def inner(): ...\nmake()\n",
        "flow.py:8: function 'inner' can't be imported: define it at the top level",
    ),
    "name used again": (HEAD + "inspect = 3\n", "flow.py:3: function 'inspect' can't be imported"),
    "two mills of one name": (
        HEAD + "other = Mill('beamtime')\n@other.function\ndef f(): ...\n",
        "flow.py:2: there are two Mills named 'beamtime'",
    ),
    "a mill that is hidden": (
        HEAD
        + "def notify(): ...\nnotify = Mill('alerts').function(notify)\nmill.on({'type': ['x']}, inspect >> notify)",
        "flow.py:7: 'alerts/notify' belongs to a Mill that flow.py doesn't name",
    ),
    "completion of what is not used": (
        HEAD + "mill.on(completed(inspect >> register), inspect)\n",
        "flow.py:7: rule 'inspect' waits for 'beamtime/inspect-register', which nothing runs",
    ),
    "pattern is not JSON": (HEAD + "mill.on({'type': [{1}]}, inspect)\n", "flow.py:7: the pattern of rule 'inspect'"),
    "unknown time zone": (
        HEAD + "mill.on(cron('0 3 * * *', timezone='Europe/Bärlin'), inspect)\n",
        "flow.py:7: unknown time zone 'Europe/Bärlin'",
    ),
}


@pytest.mark.parametrize("mistake", WHOLE)
def test_a_mistake_of_the_whole_flow(tmp_path: Path, mistake: str) -> None:
    text, message = WHOLE[mistake]
    with pytest.raises(FlowError) as caught:
        flow(tmp_path, text)
    assert str(caught.value).startswith(message)


FILES = {
    "missing .sub": ("mill.job('calibrate.sub')", "flow.py:7: job 'calibrate': there is no 'calibrate.sub'"),
    "missing include of a job": (
        "@mill.job(include=['geometry.json'])\ndef f(): ...",
        "flow.py:7: job 'f': there is no 'geometry.json' beside the flow",
    ),
    "include from elsewhere": (
        "@mill.job(include=['../secrets'])\ndef f(): ...",
        "flow.py:7: job 'f': '../secrets' lies outside of the flow's folder",
    ),
    "include with a comma": (
        "@mill.job(include=['a,b'])\ndef f(): ...",
        "flow.py:7: job 'f': include 'a,b': no commas or blanks",
    ),
    "submit command of our own": (
        "@mill.job(submit={'Executable': '/bin/sh'})\ndef f(): ...",
        "flow.py:7: job 'f': submit command 'Executable' is made by mill.job itself",
    ),
    "no executable": ("mill.job('none.sub')", "flow.py:7: none.sub: executable = …: it must name a program"),
    "executable from data": ("mill.job('data.sub')", "flow.py:7: data.sub: executable = $(program)"),
    "missing executable": ("mill.job('gone.sub')", "flow.py:7: job 'gone': there is no 'gone.sh' beside"),
    "parameter is not JSON": ("@mill.function(parameters={'x': {1}})\ndef f(): ...", "'beamtime/f' has parameters"),
}


@pytest.mark.parametrize("mistake", FILES)
def test_a_mistake_with_files(tmp_path: Path, mistake: str) -> None:
    write(tmp_path, "none.sub", "arguments = 3\nqueue\n")
    write(tmp_path, "data.sub", "executable = $(program)\nqueue\n")
    write(tmp_path, "gone.sub", "executable = gone.sh\nqueue\n")
    text, message = FILES[mistake]
    loaded = flow(tmp_path, HEAD + text)
    with pytest.raises(FlowError) as caught:
        loaded.documents(namespace="ns")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json.py", "'json' is the name of another module"),
        ("eventmill.py", "'eventmill' is the name of another module"),
        ("flow.v2.py", "not a Python file with a plain name"),
        ("flow.txt", "not a Python file with a plain name"),
    ],
)
def test_a_flow_file_with_a_bad_name(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(FlowError, match=message):
        flow(tmp_path, HEAD, name)


def test_no_flow_file(tmp_path: Path) -> None:
    with pytest.raises(FlowError, match=r"flow.py: can't read the flow: No such file"):
        load(tmp_path / "flow.py")

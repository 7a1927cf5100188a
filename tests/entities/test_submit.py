"""The reader of submit descriptions: what it takes, what it refuses, and that data stay data."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventmill.entities.macros import EVALUATED_LATER, EXPANDED_BYTES_MAX, VALUE_BYTES_MAX
from eventmill.entities.quoting import split_arguments, split_environment
from eventmill.entities.submit import ALLOWED, BoundDescription, parse
from eventmill.errors import InvalidDescription


def bound(text: str, parameters: dict[str, Any] | None = None, **options: Any) -> BoundDescription:
    return parse("executable = run.sh\n" + text).bind(parameters or {}, **options)


def refused(text: str, parameters: dict[str, Any] | None = None, **options: Any) -> InvalidDescription:
    with pytest.raises(InvalidDescription) as caught:
        parse(text).bind(parameters or {}, **options)
    return caught.value


# ---- what is taken

GOLDEN = r"""
# Calibration of one run
threads = 4
folder  = results/$(run)
Executable  = calibrate.sh
Arguments   = "--threads $(threads) --in '$(path)' \
               'it''s' ""quoted"" $(gain:1.5) $(ClusterId)"
environment = "OMP=$(threads) TITLE='run $(run)' EMPTY="
input       = start.txt
output      = $(folder)/out_$(Cluster).txt
error       = $(folder)/err_$(Process).txt
log         = job.log
request_cpus   = $(threads)
REQUEST_MEMORY = 1.5 GB
request_disk   = 2G
transfer_input_files   = $(path), constants/ , table.csv
transfer_output_files  = frames.h5
transfer_output_remaps = "frames.h5 = /data/out/$(run).h5; a.txt = b/c.txt"
requirements = (Name == "$(host:none)") && Frames > $(frames)
keep_claim_idle = 300
+Project  = "xfel $(run)"
My.Frames = $(frames)
queue
"""


def test_golden() -> None:
    job = parse(GOLDEN).bind({"path": "/data/in/r 7.h5", "run": 7, "frames": 30}, roots=["/data"])
    assert job == BoundDescription(
        executable="calibrate.sh",
        arguments=("--threads", "4", "--in", "/data/in/r 7.h5", "it's", '"quoted"', "1.5", "\x01"),
        environment={"OMP": "4", "TITLE": "run 7", "EMPTY": ""},
        input="start.txt",
        output="results/7/out_\x01.txt",
        error="results/7/err_\x02.txt",
        inputs=("/data/in/r 7.h5", "constants/", "table.csv"),
        outputs=("frames.h5",),
        remaps={"frames.h5": "/data/out/7.h5", "a.txt": "b/c.txt"},
        request_cpus=4,
        request_memory_mb=1536,
        request_disk_kb=2 << 20,
        other={
            "requirements": '(Name == "none") && Frames > 30',
            "keep_claim_idle": "300",
            "My.Project": '"xfel 7"',
            "My.Frames": "30",
        },
    )
    assert job.to_dict() == {
        "universe": "vanilla",
        "executable": "calibrate.sh",
        "transfer_executable": "true",
        "arguments": '''"--threads 4 --in '/data/in/r 7.h5' 'it''s' ""quoted"" 1.5 $(ClusterId)"''',
        "environment": "\"OMP=4 TITLE='run 7' EMPTY=''\"",
        "input": "start.txt",
        "output": "results/7/out_$(ClusterId).txt",
        "error": "results/7/err_$(ProcId).txt",
        "transfer_input_files": "/data/in/r 7.h5, constants/, table.csv",
        "transfer_output_files": "frames.h5",
        "transfer_output_remaps": '"frames.h5 = /data/out/7.h5; a.txt = b/c.txt"',
        "request_cpus": "4",
        "request_memory": "1536",
        "request_disk": str(2 << 20),
        "should_transfer_files": "YES",
        "when_to_transfer_output": "ON_EXIT",
        "requirements": '(Name == "none") && Frames > 30',
        "keep_claim_idle": "300",
        "My.Project": '"xfel 7"',
        "My.Frames": "30",
    }


def test_the_smallest_description() -> None:
    assert parse("executable = a.sh").bind({}) == BoundDescription(executable="a.sh")


def test_old_syntax() -> None:
    job = bound('arguments = one \\"two\\" $(x)\nenvironment = A=1;B=$(x)', {"x": "a b;c"})
    assert job.arguments == ("one", '"two"', "a b;c")
    assert job.environment == {"A": "1", "B": "a b;c"}


def test_numbers_of_the_local_queue() -> None:
    job = bound("output = $(ClusterId).$(ProcId)\narguments = $(Cluster)", cluster=17)
    assert (job.output, job.arguments) == ("17.0", ("17",))


def test_parameters() -> None:
    given_ = {"data": {"size": 3}, "a.b": "dot", "yes": True, "pi": 3.5, "none": ""}
    job = bound('arguments = "$(data.size) $(a.b) $(yes) $(pi) $(none) $(gone:$(pi))"', given_)
    assert job.arguments == ("3", "dot", "true", "3.5", "", "3.5")


def test_own_definitions_win_over_parameters() -> None:
    assert bound("x = 1\narguments = $(X)", {"x": "2"}).arguments == ("1",)


def test_windows_line_ends_and_repeated_use() -> None:
    description = parse("executable = a\r\narguments = \\\r\n $(n)\r\nqueue\r\n")
    assert [description.bind({"n": n}).arguments for n in (1, 2)] == [("1",), ("2",)]


def test_programs_of_the_machine() -> None:
    job = parse("executable = /bin/cat\ntransfer_executable = false").bind({})
    assert (job.executable, job.transfer_executable) == ("/bin/cat", False)


def test_allowed_commands_are_the_callers() -> None:
    text = "executable = a\n+Flavour = 1\nnice_user = true"
    job = parse(text, allowed={"executable", "+flavour", "nice_user"}).bind({})
    assert job.other == {"My.Flavour": "1", "nice_user": "true"}
    for refused_text in ("executable = a\nrank = 1", "executable = a\n+Other = 1"):
        with pytest.raises(InvalidDescription, match=r"line 2: .* is not allowed on this server"):
            parse(refused_text, allowed={"executable", "+flavour"})


@pytest.mark.parametrize(
    ("written", "mb"), [("2048", 2048), ("500MB", 500), ("1 g", 1024), ("1025K", 2), ("0.5T", 1 << 19)]
)
def test_sizes(written: str, mb: int) -> None:
    assert bound(f"request_memory = {written}").request_memory_mb == mb


# ---- what is refused: (description, part of the message); X stands for a line that is fine

REFUSALS = [
    ("X\ninclude : other.sub", "line 2: 'include' is refused"),
    ("include command : cat /etc/passwd\nX", "line 1: 'include' is refused"),
    ("X\nIF defined x", "'if' is refused"),
    ("X\nelif x", "'elif' is refused"),
    ("X\nelse", "'else' is refused"),
    ("X\nendif", "'endif' is refused"),
    ("X\nuse feature : GPUs", "'use' is refused"),
    ("X\nerror : stop", "'error' is refused"),
    ("X\nwarning : oh", "'warning' is refused"),
    ("X\narguments = $ENV(HOME)", "line 2: '$ENV(…)' is refused: it would read the server's environment"),
    ("X\narguments = a\\\n b\\\n $env(HOME)", "line 2: '$env(…)' is refused"),
    ("X\narguments = $Fpn(path)", "'$Fpn(…)' is refused: macro functions"),
    ("X\narguments = $RANDOM_CHOICE(1,2)", "'$RANDOM_CHOICE(…)' is refused"),
    ("X\narguments = $RANDOM_INTEGER(1,2)", "'$RANDOM_INTEGER(…)' is refused"),
    ("X\narguments = $CHOICE(0,a,b)", "'$CHOICE(…)' is refused"),
    ("X\narguments = $INT(x)", "'$INT(…)' is refused"),
    ("X\narguments = $REAL(x)", "'$REAL(…)' is refused"),
    ("X\narguments = $EVAL(x)", "'$EVAL(…)' is refused"),
    ("X\narguments = $STRING(x)", "'$STRING(…)' is refused"),
    ("X\narguments = $SUBSTR(x,1)", "'$SUBSTR(…)' is refused"),
    ("X\narguments = $$(Memory)", "'$$' is evaluated only when a machine is found"),
    ("X\n+A = $$([Memory * 2])", "'$$' is evaluated only when a machine is found"),
    ("X\narguments = $(a:$ENV(HOME))", "'$ENV(…)' is refused"),
    ("X\narguments = $(1a)", "'$(1a)' does not name a macro"),
    ("X\narguments = $(a", "'$(' is never closed"),
    ("X\na = $(b)\nb = $(a)\narguments = $(a)", "in a circle: a → b → a"),
    ("X\narguments = $(arguments)", "circle"),
    ("X\narguments = $(unknown)", "line 2: $(unknown) is neither defined here nor a parameter"),
    ("X\nqueue 10", "'queue' takes no arguments here; for many jobs use mill.map(job)"),
    ("X\nqueue x from script |", "'queue' takes no arguments"),
    ("X\nqueue\nqueue", "nothing may follow 'queue' (line 2)"),
    ("X\nqueue\narguments = 1", "nothing may follow 'queue'"),
    ("X\nargumets = 1", "line 2: 'argumets' is not a command that is taken (did you mean 'arguments'?)"),
    ("X\nqwertz = 1", "'qwertz' is not a command that is taken; a macro of your own must be used somewhere"),
    ("X\ngetenv = true", "'getenv' is refused: it would hand the server's environment to the job"),
    ("X\nmax_retries = 3", "'max_retries' is refused: how often a job is tried is Eventmill's"),
    ("X\nhold = true", "'hold' is refused"),
    ("X\nuniverse = local", "universe = local: only vanilla, container can be had"),
    ("X\nuniverse = scheduler", "only vanilla, container"),
    ("X\nuniverse = $(u)", "'universe' can't come from a parameter ($(u))"),
    ("executable = $(path)", "'executable' can't come from a parameter ($(path)): it decides what runs"),
    ("e = $(path)\nexecutable = bin/$(e)", "'executable' can't come from a parameter"),
    ("arguments = 1", "there is no 'executable'"),
    ("executable = ../run.sh", "'..' would leave the job's directory"),
    ("executable = /bin/sh", "executable = /bin/sh: a relative path is needed"),
    ("executable = sh\ntransfer_executable = false", "it needs a full path"),
    ("X\nX", "'executable' is set twice (first on line 1)"),
    ("X\n+Cmd = \"/bin/sh\"", "is an attribute of HTCondor's or Eventmill's own"),
    ("X\nMY.Iwd = \"/\"", "is an attribute of HTCondor's or Eventmill's own"),
    ("X\n+EventmillActivation = \"x\"", "is an attribute of HTCondor's or Eventmill's own"),
    ("X\nMy.TransferInput = \"/etc/passwd\"", "is an attribute of HTCondor's or Eventmill's own"),
    ("X\noutput = ../out", "'..' would leave the job's directory"),
    ("X\noutput = a/../../out", "'..' would leave"),
    ("X\ninitialdir = /data", "initialdir = /data: a relative path is needed"),
    ("X\ntransfer_output_files = /etc/passwd", "a relative path is needed"),
    ("X\ntransfer_input_files = http://x/y", "files by URL are not taken"),
    ("X\ntransfer_output_remaps = a=b", "the whole value stands in double quotes"),
    ("X\ntransfer_output_remaps = \"a\"", "'name = path' is needed"),
    ("X\nrequest_cpus = many", "request_cpus = many: a whole number, 1 or more, is needed"),
    ("X\nrequest_cpus = 0", "a whole number, 1 or more"),
    ("X\nrequest_memory = much", "a size such as"),
    ("X\narguments = \"a", "the double quote at the beginning is not closed"),
    ("X\narguments = \"a'b\"", "a single quote is not closed"),
    ("X\narguments = \"a\"b\"", 'a double quote inside double quotes is written ""'),
    ("X\narguments = a\"b", "a double quote here needs the new syntax"),
    ("X\nenvironment = \"1A=2\"", "'1A' can't be the name of a variable"),
    ("X\nenvironment = \"$(x)=2\"", "'$(x)' can't be the name of a variable"),
    ("X\nenvironment = \"EVENTMILL_RESULT=x\"", "'EVENTMILL_RESULT' is Eventmill's own"),
    ("X\nenvironment = \"novalue\"", "'novalue' is not name=value"),
    ("X\nrequirements = Name == $(x)", "line 2: $(x) is neither defined"),
    ("X\nrequirements = Name == \"a", "the expression is not closed"),
    ("X\nhello", "'hello' is not 'key = value'"),
    ("X\nargs @=end\nx\n@end", "is not 'key = value'"),
    ("X\narguments = a\\", "the last line ends with a continuation"),
    ("X\n# a comment \\\narguments = 1", "a comment can't be continued"),
    ("X\narguments = a \\\n# no\n b", "a comment can't be continued, nor stand inside"),
    ("X\narguments = \x00", "line 2: there is a control character"),
    ("X\n" + "#" * 70_000, "a description is at most 65536 bytes long"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSALS)
def test_refusals(text: str, message: str) -> None:
    assert message in str(refused(text.replace("X", "executable = run.sh", 2)))


def test_refusals_at_deploy_time_need_no_parameters() -> None:
    for text, message in REFUSALS:
        if "neither defined" not in message:
            with pytest.raises(InvalidDescription):
                parse(text.replace("X", "executable = run.sh", 2))


def test_macro_bombs_are_bounded() -> None:
    nothing = "\n".join(f"a{n} = $(a{n - 1})$(a{n - 1})" for n in range(1, 40))
    assert bound(f"a0 = \n{nothing}\narguments = $(a39)").arguments == ()
    with pytest.raises(InvalidDescription, match=f"expands to over {EXPANDED_BYTES_MAX} bytes"):
        bound(f"a0 = 0123456789\n{nothing}\narguments = $(a39)")
    chain = "\n".join(f"a{n} = $(a{n - 1})" for n in range(1, 2000))
    with pytest.raises(InvalidDescription, match="nested deeper than 50"):
        bound(f"a0 = 1\n{chain}\narguments = $(a1999)")
    with pytest.raises(InvalidDescription, match="nested deeper than 50"):
        bound("arguments = " + "$(x:" * 1000 + ")" * 1000)


# ---- hostile parameters

HOSTILE = [
    ("a\nqueue 5", "a newline, NUL or other control character"),
    ("a\rb", "a newline, NUL or other control character"),
    ("a\0b", "a newline, NUL or other control character"),
    ("\x01", "a newline, NUL or other control character"),
    ("$$(Memory)", "which HTCondor evaluates"),
    ("$$([1+1])", "which HTCondor evaluates"),
    ("$(dollar)", "which HTCondor evaluates"),
    ("x" * (1 << 20), f"longer than {VALUE_BYTES_MAX} bytes; the job finds it in params.json"),
    ("\ud800", "is not valid Unicode"),
    (None, "the parameter is null"),
    ([1], "the parameter is a list; only scalars are put in"),
    ({"a": 1}, "the parameter is an object; only scalars are put in"),
]


@pytest.mark.parametrize(("value", "message"), HOSTILE)
def test_hostile_values(value: Any, message: str) -> None:
    error = refused("executable = a\narguments = $(x)", {"x": value})
    assert f"line 2: $(x): the {'parameter' if 'parameter' in message else 'value'}" in str(error)
    assert message in str(error)
    assert error.line == 2


DATA = [
    "$(ClusterId)",
    "$ENV(HOME)",
    "$(x)",
    "a b",
    "'",
    '"',
    "''",
    '""',
    "' \"",
    "\\",
    '\\"',
    "$",
    "é\u2028ü",
    "-c",
    ";",
]


@pytest.mark.parametrize("value", DATA)
def test_data_stay_data(value: str) -> None:
    job = bound('arguments = "1 $(x) x$(x)y \'$(x)\'"\nenvironment = "A=$(x) B=2"', {"x": value})
    assert job.arguments == ("1", value, f"x{value}y", value)
    assert job.environment == {"A": value, "B": "2"}
    written = job.to_dict()
    assert "$" not in (written["arguments"] + written["environment"]).replace("$(DOLLAR)", "")


def test_two_dollars_that_meet() -> None:
    job = bound("arguments = $(x)$(x)", {"x": "$"})
    assert job.arguments == ("$$",)
    with pytest.raises(InvalidDescription, match="'arguments' would contain"):
        job.to_dict()


PATHS = [
    ("output = $(x)", "../../etc/cron.d/x", "'..' would leave"),
    ("output = out/$(x)", "..", "'..' would leave"),
    ("output = $(x)", "/etc/passwd", "outside of the directories that jobs may name"),
    ("output = $(x)", "/data/../etc/passwd", "'..' would leave"),
    ("output = $(x)", "/database/x", "outside of the directories"),
    ("output = /$(x)", "/etc/passwd", "outside of the directories"),
    ("output = $(x)", "", "a path can't be empty"),
    ("output = $(x)", " a", "nor begin or end with a blank"),
    ("output = $(x)", 'a"', "can't contain any of"),
    ("initialdir = $(x)", "/data", "a relative path is needed"),
    ("input = $(x)", "/root/.ssh/id_rsa", "outside of the directories"),
    ("transfer_input_files = $(x)", "a,/etc/passwd", "can't contain any of"),
    ("transfer_input_files = $(x)", "https://evil/x", "files by URL"),
    ("transfer_input_files = $(x)", "file:///etc/passwd", "files by URL"),
    ("transfer_output_files = $(x)", "../x", "'..' would leave"),
    ('transfer_output_remaps = "a = $(x)"', "b; c = /etc/passwd", "can't contain any of"),
    ('transfer_output_remaps = "a = $(x)"', "/etc/passwd", "outside of the directories"),
    ("requirements = Name == $(x)", "undefined || true", "must stand inside double quotes"),
    ('requirements = Name == "$(x)" && Arch == "y"', "a\\", "has a backslash"),
    ("batch_name = $(x)", 'a" b', "can't contain double quotes"),
]


@pytest.mark.parametrize(("command", "value", "message"), PATHS)
def test_data_do_not_leave_their_directory(command: str, value: str, message: str) -> None:
    assert message in str(refused(f"executable = a\n{command}", {"x": value}, roots=["/data"]))


def test_expressions_quote_data() -> None:
    job = bound('+Note = "see $(x)"\nrequirements = Disk > $(n)', {"x": 'a" || true || "', "n": 3})
    assert job.other == {"My.Note": '"see a\\" || true || \\""', "requirements": "Disk > 3"}


@pytest.mark.parametrize("program", ["/bin/sh", "/usr/bin/env python3", "/usr/bin/python3.11", "/usr/bin/env A=1 bash"])
@pytest.mark.parametrize(
    "code", ["-c 'cat $(x)'", "-lc $(x)", "-x -c 'b $(x)'", "$(x)", "-x $(x) a", "-c$(x)", "$(x) -c a"]
)
def test_parameters_are_not_executed(program: str, code: str) -> None:
    program, _, rest = program.partition(" ")
    text = f'executable = {program}\ntransfer_executable = false\narguments = "{rest} {code}"'
    with pytest.raises(InvalidDescription, match=r"\$\(x\) would be executed"):
        parse(text)


@pytest.mark.parametrize("start", ['-c \'cat ""$1""\' sh', "-x script.sh", "script.sh -c"])
def test_code_may_take_parameters_as_arguments(start: str) -> None:
    text = f'executable = /bin/sh\ntransfer_executable = false\narguments = "{start} $(x) $(y)"'
    assert parse(text).bind({"x": "-c", "y": "rm b"}).arguments[-2:] == ("-c", "rm b")


def test_a_parameter_of_another_case_is_named() -> None:
    error = refused("executable = a\narguments = $(path:none)", {"Path": "x"})
    assert str(error) == "line 2: $(path): the parameter is called 'Path'"


# ---- properties

VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30).filter(
    lambda v: not EVALUATED_LATER.search(v)
)


@given(st.lists(VALUES, min_size=1, max_size=6))
def test_quoting_is_undone_by_reading(values: list[str]) -> None:
    names = {f"v{n}": value for n, value in enumerate(values)}
    job = bound(
        'arguments = "' + " ".join(f"$({name})" for name in names) + '"\nenvironment = "'
        + " ".join(f"{name.upper()}=$({name})" for name in names) + '"',
        names,
    )  # fmt: skip
    commands = job.to_dict()
    arguments, environment = (commands[key].replace("$(DOLLAR)", "$") for key in ("arguments", "environment"))
    assert ["".join(map(str, word)) for word in split_arguments(list(arguments), 1)] == values
    read = {name: "".join(map(str, value)) for name, value in split_environment(list(environment), 1).items()}
    assert read == {name.upper(): value for name, value in names.items()}


@settings(deadline=None, max_examples=25)
@given(st.lists(VALUES, min_size=1, max_size=4))
def test_a_real_process_gets_the_data(values: list[str]) -> None:
    names = {f"v{n}": value for n, value in enumerate(values)}
    job = bound('arguments = "' + " ".join(f"'$({name})'" for name in names) + '"', names)
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    run = subprocess.run([sys.executable, "-ISc", program, *job.arguments], capture_output=True, check=True)
    assert json.loads(run.stdout) == values


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(InvalidDescription):
        parse("executable = a\n" + text)


@given(
    st.dictionaries(
        st.sampled_from(sorted(ALLOWED - {"+", "executable"})), st.text("$():ENVab \"'\\,;=/.1", max_size=20)
    )
)
@settings(deadline=None)
def test_any_commands_are_read_or_refused(commands: dict[str, str]) -> None:
    text = "".join(f"{key} = {value}\n" for key, value in commands.items())
    try:
        job = bound(text, {"a": "1", "b": "2"}, roots=["/a"])
    except InvalidDescription:
        return
    for value in job.to_dict().values():
        assert "$" not in value.replace("$(DOLLAR)", "")
        assert "\n" not in value

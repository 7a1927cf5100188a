"""The reader of submit descriptions: HTCondor's language for one job, without what executes, reads the environment or
leaves its directory. Both executors of jobs run what this reader has accepted, and nothing else.

Reading has two steps. `parse` takes the text, at deploy time: form, commands, macros, quoting; it needs no parameters,
and tries the description with a placeholder for each. `Description.bind` puts an activation's parameters in, which
are data: whatever they contain, they stay one argument, one value, one part of a path (design, section 9).

Values only: no file is looked at, so that links are the executor's to resolve.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eventmill.entities import macros, quoting
from eventmill.entities.macros import Data, Expander, Lookup, Statement, Text
from eventmill.errors import InvalidDescription

DESCRIPTION_BYTES_MAX = 64 << 10

ANY_ATTRIBUTE = "+"
"""In a set of allowed commands: `+Attr` of any name but HTCondor's own; `+attr` (lower case) allows one attribute."""

_PATHS = ("executable", "input", "output", "error", "initialdir")
_TRANSFER = ("transfer_input_files", "transfer_output_files", "transfer_output_remaps", "transfer_executable",
             "should_transfer_files", "when_to_transfer_output")  # fmt: skip
_NUMBERS = ("priority", "keep_claim_idle", "request_gpus", "allowed_job_duration")
_EXPRESSIONS = ("requirements", "rank", "periodic_hold", "periodic_release", "periodic_remove")
_NAMES = ("batch_name", "accounting_group", "concurrency_limits")
_IGNORED = frozenset({"log"})
"""Taken and left out: Eventmill follows its jobs itself, and nearly every description has one."""

ALLOWED: frozenset[str] = _IGNORED | {
    *_PATHS, *_TRANSFER, *_NUMBERS, *_EXPRESSIONS, *_NAMES, ANY_ATTRIBUTE,
    "arguments", "environment", "universe", "container_image", "request_cpus", "request_memory", "request_disk",
}  # fmt: skip

_RETRIES = "how often a job is tried is Eventmill's to decide and to record"
_WHY_REFUSED = {
    "getenv": "it would hand the server's environment to the job; name what it needs in 'environment'",
    "hold": "jobs are submitted held and released by Eventmill itself",
    "notification": "it would send mail; 'on_error' and completion events tell how a job ended",
    "max_retries": _RETRIES, "retry_until": _RETRIES, "success_exit_code": _RETRIES,
    "on_exit_remove": _RETRIES, "on_exit_hold": _RETRIES,
    "docker_image": "use 'universe = container' and 'container_image'",
    "run_as_owner": "whose account a job runs under is the pool's configuration",
    "leave_in_queue": "Eventmill records how the job ended",
    "accounting_group_user": "on whose account a job runs is the pool's configuration",
}  # fmt: skip
_META = frozenset({"include", "if", "elif", "else", "endif", "use", "error", "warning"})
"""Commands of HTCondor's configuration language; `error = file` is a statement all the same."""

NEVER: frozenset[str] = frozenset({
    # what runs, where its files are, and what becomes of them: typed, checked, or ours
    "executable", "transfer_executable", "copy_to_spool", "arguments", "environment", "env", "getenv",
    "allow_environment_from", "input", "output", "error", "stdin", "stdout", "stderr", "initialdir", "initial_dir",
    "iwd", "remote_initialdir", "job_iwd", "universe", "container_image", "docker_image", "transfer_input",
    "transfer_output", "transfer_error", "transfer_input_files", "transfer_output_files", "transfer_output_remaps",
    "output_destination", "should_transfer_files", "when_to_transfer_output", "preserve_relative_paths",
    "public_input_files", "append_files", "fetch_files", "compress_files", "local_files", "file_remaps",
    "buffer_files", "jar_files", "stream_input", "stream_output", "stream_error", "manifest", "manifest_dir",
    "checkpoint_destination", "skip_filechecks", "transfer_plugins", "vm_disk", "tool_daemon_cmd",
    "tool_daemon_args", "tool_daemon_input",
    # when it runs and when it is gone: one job for one activation, tried again by Eventmill alone
    "hold", "queue", "log", "log_xml", "dagman_log", "job_ad_information_attrs", "max_materialize", "max_idle",
    "materialize_max_idle", "leave_in_queue", "max_retries", "retry_until", "success_exit_code", "on_exit_hold",
    "on_exit_hold_reason", "on_exit_hold_subcode", "on_exit_remove", "noop_job", "noop_job_exit_code",
    "noop_job_exit_signal", "allowed_execute_duration", "cron_minute", "cron_hour", "cron_day_of_month",
    "cron_month", "cron_day_of_week", "batch_id", "jobset",
    # whose it is, and what would run on the access point or in its name
    "run_as_owner", "accounting_group_user", "grid_resource", "hook_keyword", "x509userproxy", "use_x509userproxy",
    "send_credential", "notification", "notify_user", "email_attributes", "use_scitokens", "scitokens_file",
    "include", "use",
})  # fmt: skip
"""Commands that neither a namespace's list nor a pool's defaults can have (`environment` excepted, for defaults)."""

_PLAIN_WORDS = frozenset({"queue", "use", "include", "log", "error", "output", "input", "hold", "priority"})
"""Commands whose attributes are called otherwise, and whose names sites may have given to something else."""
_OTHERWISE = frozenset({
    "acctgroup", "acctgroupuser", "args", "clusterid", "cmd", "completiondate", "concurrencylimits", "env", "err",
    "enteredcurrentstatus", "in", "jobadinformationattrs", "jobcurrentstartdate", "jobprio", "jobstatus",
    "lastremotehost", "manifestdesired", "memoryusage", "ntdomain", "numjobstarts", "osuser", "out", "owner", "procid",
    "returnvalue", "terminatedbysignal", "terminatednormally", "user", "wantcontainer",
    "wantdocker", "wantioproxy", "wantremoteio",
})  # fmt: skip
_RESERVED_ATTRIBUTES = _OTHERWISE | {
    name.replace("_", "") for name in (ALLOWED | NEVER) - _PLAIN_WORDS - {ANY_ATTRIBUTE}
}
"""Job attributes that a command says, or that say how a job has ended."""
_RESERVED_PREFIXES = (
    "cron", "dagman", "deferral", "eventmill", "exit", "hold", "hook", "jobhook", "jobset", "nordugrid",
    "oauthservices", "onexit", "periodic", "postarg", "postcmd", "postenv", "prearg", "precmd", "preenv", "publicinput",
    "release", "remote", "remove", "spool", "stagein", "stageout", "stream", "submit", "timerremove", "tooldaemon",
    "transfer", "userlog", "x509",
)  # fmt: skip
"""Those that say what runs, when, as whom, and which files it reaches: `+Cmd` would go round all our checks."""

_KEY = re.compile(r"(?P<key>(?:\+|[Mm][Yy]\.)?[A-Za-z_][\w.]*)\s*=(?P<value>.*)\Z", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMGT]?)B?\Z", re.IGNORECASE)
_KIB = {"K": 1, "M": 1 << 10, "G": 1 << 20, "T": 1 << 30}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_INTERPRETER = re.compile(r"(?:.*/)?(?:env|sh|bash|dash|ash|ksh|zsh|csh|tcsh|fish|python[\d.]*|perl|ruby|node|lua)\Z")
_CODE_OPTION = re.compile(r"-[A-Za-z]*[ce]\Z|--eval\Z|--command\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundDescription:
    """One job: what is to run, with the parameters in. Paths are normalised; relative ones have no `..`.

    Strings are the data themselves, unquoted; `to_dict` gives HTCondor's form.
    """

    executable: str
    """Relative: a file of the archive. Absolute: a program of the machine that runs the job (not transferred)."""
    transfer_executable: bool = True
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    input: str | None = None
    output: str | None = None
    error: str | None = None
    initialdir: str = ""
    """Below the namespace's directory for results: where relative `output`, `error` and output files arrive."""
    inputs: tuple[str, ...] = ()
    """Relative to the archive, or absolute; a trailing `/` means the directory's contents."""
    outputs: tuple[str, ...] | None = None
    """Relative to the job's scratch directory; None: whatever files are new at its top."""
    remaps: Mapping[str, str] = field(default_factory=dict)
    universe: str = "vanilla"
    container_image: str | None = None
    request_cpus: int = 1
    request_memory_mb: int | None = None
    request_disk_kb: int | None = None
    request_gpus: int = 0
    duration_s_max: int | None = None
    """allowed_job_duration: the job is ended after this time."""
    should_transfer_files: str = "YES"
    when_to_transfer_output: str = "ON_EXIT"
    other: Mapping[str, str] = field(default_factory=dict)
    """Commands that only HTCondor heeds, by name; attributes as `My.Name`."""

    def to_dict(self) -> dict[str, str]:
        """Commands for `htcondor2.Submit(dict)`: arguments and environment in the new syntax, and every `$` as
        `$(DOLLAR)`, so that nothing is expanded there but `$(ClusterId)` and `$(ProcId)` where the author wrote them.
        """
        commands: dict[str, str | None] = {
            "universe": self.universe,
            "executable": self.executable,
            "transfer_executable": str(self.transfer_executable).lower(),
            "arguments": quoting.join_arguments(self.arguments) if self.arguments else None,
            "environment": quoting.join_environment(self.environment) if self.environment else None,
            "input": self.input,
            "output": self.output,
            "error": self.error,
            "initialdir": self.initialdir or None,
            "transfer_input_files": ", ".join(self.inputs) or None,
            "transfer_output_files": None if self.outputs is None else ", ".join(self.outputs) or '""',
            "transfer_output_remaps": _remaps(self.remaps),
            "container_image": self.container_image,
            "request_cpus": str(self.request_cpus),
            "request_memory": None if self.request_memory_mb is None else str(self.request_memory_mb),
            "request_disk": None if self.request_disk_kb is None else str(self.request_disk_kb),
            "request_gpus": str(self.request_gpus) if self.request_gpus else None,
            "allowed_job_duration": None if self.duration_s_max is None else str(self.duration_s_max),
            "should_transfer_files": self.should_transfer_files,
            "when_to_transfer_output": self.when_to_transfer_output,
            **self.other,
        }
        return {key: _for_htcondor(key, value) for key, value in commands.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Description:
    """A submit description that has been read and accepted; its parameters are still open."""

    statements: Mapping[str, Statement]
    """By lower-case key: commands and the author's own macros. Attributes as `my.name`."""
    commands: frozenset[str]
    """Those of the keys that are commands or attributes."""

    def bind(
        self, parameters: Mapping[str, Any], *, roots: Sequence[str] = (), cluster: int | None = None
    ) -> BoundDescription:
        """The job for these parameters.

        `roots`: absolute directories in which input files and remapped outputs may lie. `cluster`: number that stands
        for `$(ClusterId)`; None leaves both numbers to HTCondor. Raises InvalidDescription with the line for a value
        that is missing, too long, not a scalar, or leads out of its directory.
        """
        return self._bind(macros.parameter_lookup(parameters), roots, cluster)

    def _bind(self, lookup: Lookup, roots: Sequence[str], cluster: int | None) -> BoundDescription:
        job = _Values(self, lookup, roots, cluster)
        transferred = job.boolean("transfer_executable", True)
        return BoundDescription(
            executable=job.executable(transferred),
            transfer_executable=transferred,
            arguments=job.arguments(),
            environment=job.environment(),
            input=job.path("input"),
            output=job.path("output"),
            error=job.path("error"),
            initialdir=job.path("initialdir", absolute=False) or "",
            inputs=job.paths("transfer_input_files") or (),
            outputs=job.paths("transfer_output_files", absolute=False),
            remaps=job.remaps(),
            universe=job.choice("universe", ("vanilla", "container")) or "vanilla",
            container_image=job.fixed("container_image"),
            request_cpus=job.integer("request_cpus", 1) or 1,
            request_memory_mb=job.size("request_memory", "M", 1 << 10),
            request_disk_kb=job.size("request_disk", "K", 1),
            request_gpus=job.integer("request_gpus") or 0,
            duration_s_max=job.integer("allowed_job_duration", 1),
            should_transfer_files=(job.choice("should_transfer_files", ("yes", "no", "if_needed")) or "yes").upper(),
            when_to_transfer_output=(
                job.choice("when_to_transfer_output", ("on_exit", "on_success", "on_exit_or_evict")) or "on_exit"
            ).upper(),
            other=job.other(),
        )


def parse(text: str, *, allowed: Container[str] = ALLOWED) -> Description:
    """Read a submit description.

    `allowed`: lower-case commands that are taken. Raises InvalidDescription, with the line, for all that is refused.
    """
    if len(text) > DESCRIPTION_BYTES_MAX or len(text.encode(errors="replace")) > DESCRIPTION_BYTES_MAX:
        raise InvalidDescription(f"a description is at most {DESCRIPTION_BYTES_MAX} bytes long")
    statements = _statements(text.replace("\r\n", "\n"))
    referred = {name for statement in statements.values() for name in macros.references(statement)}
    commands = frozenset(key for key in statements if _is_command(statements[key], key, allowed, referred))
    if "executable" not in commands:
        raise InvalidDescription("there is no 'executable'")
    description = Description(statements, commands)
    # a dry run with "1" for every parameter: it is a number, a word and a file name, so only the author's part can fail
    description._bind(lambda name: Data(name, "1", number=True), ("/",), 1)
    return description


def _statements(text: str) -> dict[str, Statement]:
    """The statements by lower-case key (attributes as `my.name`), up to `queue`."""
    statements: dict[str, Statement] = {}
    queued = 0
    for number, line in _logical_lines(text):
        word = re.split(r"[^\w.+@$]", line, maxsplit=1)[0].lower()
        rest = line[len(word) :].strip()
        if queued:
            raise InvalidDescription(f"nothing may follow 'queue' (line {queued})", number)
        if word == "queue":
            if rest:
                raise InvalidDescription("'queue' takes no arguments here; for many jobs use mill.map(job)", number)
            queued = number
            continue
        if word in _META and not (word == "error" and rest.startswith("=")):
            raise InvalidDescription(f"'{word}' is refused: a description is taken as it stands", number)
        found = _KEY.match(line)
        if not found:
            raise InvalidDescription(f"'{line[:40]}' is not 'key = value'", number)
        key = re.sub(r"^\+", "my.", found["key"].lower())
        if key in statements:
            raise InvalidDescription(f"'{found['key']}' is set twice (first on line {statements[key].line})", number)
        statements[key] = Statement(number, found["key"], found["value"].strip())
    return statements


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Lines with their numbers, stripped, continuations joined, without comments and empty lines."""
    lines: list[tuple[int, str]] = []
    start, joined = 0, ""
    for number, raw in enumerate(text.split("\n"), 1):
        if _CONTROL.search(raw):
            raise InvalidDescription("there is a control character", number)
        line = raw.strip()
        if line.startswith("#"):
            # HTCondor's versions differ in what these mean
            if line.endswith("\\") or start:
                raise InvalidDescription("a comment can't be continued, nor stand inside a continued line", number)
            continue
        start = start or number
        joined += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        if joined.strip():
            lines.append((start, joined.strip()))
        start, joined = 0, ""
    if start:
        raise InvalidDescription("the last line ends with a continuation", start)
    return lines


def _is_command(statement: Statement, key: str, allowed: Container[str], referred: set[str]) -> bool:
    """True: a command; False: a macro of the author's. Raises InvalidDescription if it is neither, or not allowed."""
    if key.startswith("my."):
        _check_attribute(statement, key.removeprefix("my."), allowed)
        return True
    if (why := _WHY_REFUSED.get(key)) and key not in allowed:
        raise InvalidDescription(f"'{statement.key}' is refused: {why}", statement.line)
    if key in allowed:
        return True
    if key in ALLOWED:
        raise InvalidDescription(f"'{statement.key}' is not allowed on this server", statement.line, key)
    if key in referred:
        return False
    near = difflib.get_close_matches(key, sorted(ALLOWED), n=1)
    raise InvalidDescription(
        f"'{statement.key}' is not a command that is taken" + (f" (did you mean '{near[0]}'?)" if near else "")
        + "; a macro of your own must be used somewhere",
        statement.line, key,
    )  # fmt: skip


def _check_attribute(statement: Statement, name: str, allowed: Container[str]) -> None:
    reserved = name in _RESERVED_ATTRIBUTES or name.removeprefix("job") in _RESERVED_ATTRIBUTES
    if reserved or name.startswith(_RESERVED_PREFIXES) or "." in name:
        raise InvalidDescription(
            f"'{statement.key}' is an attribute of HTCondor's or Eventmill's own; use the command for it",
            statement.line,
        )
    if ANY_ATTRIBUTE not in allowed and f"+{name}" not in allowed:
        raise InvalidDescription(f"'{statement.key}' is not allowed on this server", statement.line)


class _Values:
    """A description's commands as typed values, for one set of parameters."""

    def __init__(self, description: Description, lookup: Lookup, roots: Sequence[str], cluster: int | None) -> None:
        self._description = description
        self._expander = Expander(description.statements, lookup)
        self._roots = [posixpath.normpath(root) for root in roots]
        self._numbers = {} if cluster is None else {macros.CLUSTER: str(cluster), macros.PROC: "0"}

    def text(self, key: str) -> tuple[Text, int]:
        """The command's expanded text (empty if it isn't there) and its line."""
        if key not in self._description.commands:
            return [], 0
        statement = self._description.statements[key]
        text = self._expander.expand(statement)
        return [self._numbers.get(u, u) if isinstance(u, str) else u for u in macros.strip(text)], statement.line

    def fixed(self, key: str) -> str | None:
        """What parameters may have no part in: it decides what is executed."""
        text, line = self.text(key)
        for unit in text:
            if isinstance(unit, Data):
                raise InvalidDescription(
                    f"'{key}' can't come from a parameter ($({unit.name})): it decides what runs", line
                )
        return macros.join(text) or None

    def choice(self, key: str, choices: tuple[str, ...]) -> str | None:
        value = self.fixed(key)
        if value is not None and value.lower() not in choices:
            raise InvalidDescription(f"{key} = {value}: only {', '.join(choices)} can be had", self.text(key)[1])
        return value and value.lower()

    def boolean(self, key: str, default: bool) -> bool:
        value = self.choice(key, ("true", "false", "yes", "no"))
        return default if value is None else value in ("true", "yes")

    def integer(self, key: str, least: int | None = 0) -> int | None:
        text, line = self.text(key)
        if not text:
            return None
        value = macros.join(text)
        if not re.fullmatch(r"-?[0-9]{1,9}", value) or (least is not None and int(value) < least):
            bound = "" if least is None else f", {least} or more,"
            raise InvalidDescription(f"{key} = {value[:40]}: a whole number{bound} is needed", line)
        return int(value)

    def size(self, key: str, unit: str, per_unit: int) -> int | None:
        """A size with HTCondor's letters, in the given unit, rounded up; a bare number has that unit."""
        text, line = self.text(key)
        if not text:
            return None
        found = _SIZE.match(macros.join(text))
        if not found or not float(found[1]):
            raise InvalidDescription(
                f"{key} = {macros.join(text)[:40]}: a size such as 2048, 500MB or 16GB is needed", line
            )
        return -int(-float(found[1]) * _KIB[found[2].upper() or unit] // per_unit)

    def executable(self, transferred: bool) -> str:
        line = self.text("executable")[1]
        path = self.fixed("executable")
        if not path:
            raise InvalidDescription("'executable' is empty", line)
        if transferred:
            return self._inside([*path], "executable", line, absolute=False)
        if not path.startswith("/"):
            raise InvalidDescription(
                f"executable = {path}: with transfer_executable = false it needs a full path", line
            )
        return posixpath.normpath(path)

    def arguments(self) -> tuple[str, ...]:
        text, line = self.text("arguments")
        words = quoting.split_arguments(text, line)
        self._refuse_code(words, line)
        return tuple(map(macros.join, words))

    def _refuse_code(self, words: list[Text], line: int) -> None:
        """`sh -c "… $(path)"` and `python3 $(path)` would execute a parameter: with the usual interpreters, all up to
        the script or code is the author's own. What the script does with its arguments is its author's care.
        """
        program = self.fixed("executable") or ""
        while _INTERPRETER.match(program) and words:
            end = _end_of_code(words, env := posixpath.basename(program) == "env")
            for unit in (unit for word in words[:end] for unit in word):
                if isinstance(unit, Data):
                    raise InvalidDescription(
                        f"$({unit.name}) would be executed by {program}, or be an option of it; "
                        "let the code or script come first, and read it as an argument of its own",
                        line,
                    )
            program = macros.join(words[end - 1]) if env else ""
            words = words[end:]

    def environment(self) -> dict[str, str]:
        text, line = self.text("environment")
        return {name: macros.join(value) for name, value in quoting.split_environment(text, line).items()}

    def path(self, key: str, *, absolute: bool = True) -> str | None:
        text, line = self.text(key)
        if not text:
            return None
        if macros.join(text) == "/dev/null" and key in ("input", "output", "error"):
            return "/dev/null"
        return self._inside(text, key, line, absolute=absolute)

    def paths(self, key: str, *, absolute: bool = True) -> tuple[str, ...] | None:
        if key not in self._description.commands:
            return None
        text, line = self.text(key)
        if macros.join(text) == '""':
            return ()
        parts = [part for part in macros.split(text, ",") if part]
        return tuple(self._inside(part, key, line, absolute=absolute, refused=",") for part in parts)

    def remaps(self) -> dict[str, str]:
        """`"name = path; name = path"`."""
        text, line = self.text("transfer_output_remaps")
        if not text:
            return {}
        if len(text) < 2 or text[0] != '"' or text[-1] != '"':
            raise InvalidDescription("transfer_output_remaps: the whole value stands in double quotes", line)
        remaps: dict[str, str] = {}
        for part in filter(None, macros.split(text[1:-1], ";")):
            name, *target = macros.split(part, "=")
            if len(target) != 1:
                raise InvalidDescription("transfer_output_remaps: 'name = path' is needed, separated by ';'", line)
            source = self._inside(name, "transfer_output_remaps", line, absolute=False, refused=";=")
            remaps[source] = self._inside(target[0], "transfer_output_remaps", line, refused=";=")
        return remaps

    def _inside(self, text: Text, key: str, line: int, *, absolute: bool = True, refused: str = "") -> str:
        """A path that stays inside: relative without `..`, or below one of the roots."""
        path = macros.join(text)
        shown = f"{key} = {path[:100]}"
        if not path or path != path.strip():
            raise InvalidDescription(f"{shown}: a path can't be empty, nor begin or end with a blank", line)
        if any(c in '"\\' + refused for c in path):
            raise InvalidDescription(
                f"{shown}: a path here can't contain any of {' '.join(chr(34) + chr(92) + refused)}", line
            )
        if _URL.match(path):
            raise InvalidDescription(f"{shown}: files by URL are not taken", line)
        if ".." in path.split("/"):
            raise InvalidDescription(f"{shown}: '..' would leave the job's directory", line)
        normal = posixpath.normpath(path)
        if path.startswith("/"):
            normal = "/" + normal.lstrip("/")
            if not absolute:
                raise InvalidDescription(f"{shown}: a relative path is needed", line)
            if not any(normal == root or normal.startswith(root.rstrip("/") + "/") for root in self._roots):
                raise InvalidDescription(f"{shown}: outside of the directories that jobs may name", line)
        return normal + ("/" if path.endswith("/") and normal != "/" else "")

    def other(self) -> dict[str, str]:
        """What only HTCondor heeds."""
        typed = BoundDescription.__dataclass_fields__.keys() | {
            "transfer_input_files", "transfer_output_files", "transfer_output_remaps", "allowed_job_duration",
            "request_memory", "request_disk",
        }  # fmt: skip
        commands: dict[str, str] = {}
        for key in sorted(self._description.commands - typed - _IGNORED):
            statement = self._description.statements[key]
            name = re.sub(r"^(\+|my\.)", "My.", statement.key, flags=re.IGNORECASE) if key.startswith("my.") else key
            if key in _EXPRESSIONS or key.startswith("my."):
                commands[name] = self._expression(key)
            elif key in _NUMBERS:
                commands[name] = str(self.integer(key, None if key == "priority" else 0) or 0)
            else:
                commands[name] = self._name(key)
        return commands

    def _expression(self, key: str) -> str:
        """A ClassAd expression: data only inside a string literal, escaped, or as numbers. Without backslashes: a
        batch system may take one for the escape of the quote that ends the string."""
        text, line = self.text(key)
        written: list[str] = []
        quoted = escaped = False
        for unit in text:
            if isinstance(unit, Data):
                if not quoted and not unit.number:
                    raise InvalidDescription(
                        f"{key}: $({unit.name}) is text here and must stand inside double quotes", line
                    )
                if "\\" in unit.text:
                    raise InvalidDescription(f"{key}: $({unit.name}) has a backslash, which no expression takes", line)
                written.append(unit.text.replace('"', '\\"') if quoted else unit.text)
                continue
            quoted ^= unit == '"' and not escaped
            escaped = unit == "\\" and quoted and not escaped
            written.append(unit)
        if quoted or not text:
            raise InvalidDescription(f"{key}: the expression is {'not closed' if quoted else 'empty'}", line)
        return "".join(written)

    def _name(self, key: str) -> str:
        text, line = self.text(key)
        if any(isinstance(unit, Data) and '"' in unit.text for unit in text):
            raise InvalidDescription(f"{key}: a parameter here can't contain double quotes", line)
        return macros.join(text)


def _end_of_code(words: list[Text], env: bool) -> int:
    """How many of an interpreter's arguments belong to what it runs: options, then a script or the code after `-c`."""
    for at, word in enumerate(words):
        text = macros.join(word)
        if _CODE_OPTION.match(text):
            return min(at + 2, len(words))
        if not text.startswith("-") and not (env and "=" in text):
            return at + 1
    return len(words)


def _remaps(remaps: Mapping[str, str]) -> str | None:
    return '"' + "; ".join(f"{name} = {path}" for name, path in remaps.items()) + '"' if remaps else None


def _for_htcondor(key: str, value: str) -> str:
    """No `$` of ours means anything to HTCondor, but those of its own two numbers."""
    if macros.EVALUATED_LATER.search(value):
        raise InvalidDescription(
            f"'{key}' would contain '$$' or '$(DOLLAR)', which HTCondor evaluates; read it from params.json"
        )
    value = value.replace("$", "$(DOLLAR)")
    return value.replace(macros.CLUSTER, "$(ClusterId)").replace(macros.PROC, "$(ProcId)")

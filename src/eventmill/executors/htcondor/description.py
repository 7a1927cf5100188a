"""From an attempt's bound description to what `htcondor2.Submit` and its item data take. Functions of values, except
`sources`, which looks at the files that a job names.

A job has a *room* on the access point, a directory that the queue makes (`rooms`); HTCondor sees nothing else of us:

    room/params.json   transferred in
    room/scratch/      `initialdir`: what the job leaves arrives here, `result.json` with it
    room/stdout, room/stderr

Where output files are to go in the end (`output`, `initialdir`, remaps, ON_SUCCESS) is done by `delivery` when the job
has ended, as for the local queue; so HTCondor writes in the room only, whoever the job's owner is. Files are always
transferred (`should_transfer_files`), which a job on a shared file system does not notice: full paths stay full paths.

One cluster or many
    Jobs that differ only in ids, rooms, arguments, environment, input files and batch name go into one cluster, those
    as item data. What forces a cluster of its own:
    - another value of any other command (executable, that is code; resources; requirements; attributes);
    - other variables in the environment: those that a job lacks would be the cluster's first job's;
    - a `$` in one of the values above: items are macros too, and what comes from parameters is written `$(DOLLAR)`
      where HTCondor expands once, not where one value stands in another;
    - more than JOBS_PER_CLUSTER jobs: a submit blocks the schedd.

What is data and what is not
    Parameters reach arguments, environment, paths and string literals only, quoted by `entities`. A value that ends
    with a backslash is refused: the bindings print commands as lines, and it would swallow the next one. So is one with
    a backslash in a string of an expression (`entities` writes two): HTCondor's old syntax, which this is, takes it for
    the escape of the quote that closes the string, whatever stands before it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from eventmill.entities import macros, quoting
from eventmill.entities.submit import ALLOWED, NEVER, BoundDescription
from eventmill.errors import InvalidConfig, InvalidDescription
from eventmill.executors.htcondor.records import ACTIVATION
from eventmill.executors.jobs import PARAMS_ENV, PARAMS_FILE, RESULT_ENV, RESULT_FILE

JOBS_PER_CLUSTER: Final = 500
ATTEMPT: Final = "EventmillAttempt"
SERVER: Final = "EventmillServer"
ACTION: Final = "EventmillAction"

INFORMATION: Final = (
    ACTIVATION, ATTEMPT, SERVER, "Owner", "JobStatus", "NumJobStarts", "ExitCode", "ExitBySignal", "ExitSignal",
    "HoldReason", "HoldReasonCode", "HoldReasonSubCode", "RemoveReason", "RemoteHost", "LastRemoteHost", "MemoryUsage",
    "RemoteWallClockTime", "RemoteUserCpu", "RemoteSysCpu",
)  # fmt: skip
"""Attributes that come with each event in a job log of ours; for a pool's log the same are advised."""

LOG_IN_JSON: Final = "2"
"""Of `UserLogUseXML`: in spite of its name it takes 1 for XML and 2 for JSON."""

SUBMITTED_HELD: Final = 15
"""HoldReasonCode of a job that was submitted held, and has not been released."""

_TYPED: Final = {
    "request_memory": "request_memory_mb", "request_disk": "request_disk_kb", "request_gpus": "request_gpus",
    "allowed_job_duration": "duration_s_max",
}  # fmt: skip
_ATTRIBUTE: Final = re.compile(r"(?:\+|My\.)([A-Za-z_]\w*)\Z", re.IGNORECASE)
_COMMAND: Final = re.compile(r"[A-Za-z_]\w*\Z")
_UNNAMEABLE: Final = re.compile(r'[,"\\\x00-\x1f\x7f\ud800-\udfff]|^\s|\s\Z|://')
"""Half characters are bytes of a name that is not UTF-8."""
_BREAKS: Final = re.compile(r"[\x00\n\r]")
_TRACEPARENT: Final = re.compile(r"[0-9a-f-]{1,64}\Z")

_ITEMS: Final = (
    f"My.{ACTIVATION}", f"My.{ATTEMPT}", "initialdir", "output", "error", "input", "transfer_input_files", "arguments",
    "environment", "batch_name",
)  # fmt: skip
"""Commands whose values may differ within a cluster."""
_SCRATCH_MARK: Final = "#CoNdOrScRaTcHdIr#"
"""What a schedd writes for `$$(CondorScratchDir)`, and a starter replaces by the scratch directory, wherever it stands.
A schedd that was killed can't expand the macro a second time, and would put jobs that run on hold instead of finding
them again; so it is given the mark itself."""
_VARIABLES: Final = re.compile(r"(\w+)=(?:'(?:[^']|'')*'|[^ ]*)(?: |\Z)")
"""Names in an environment as `quoting` writes it."""
_FRAMES: Final = {
    "environment": f'"{PARAMS_ENV}={_SCRATCH_MARK}/{PARAMS_FILE} {RESULT_ENV}={_SCRATCH_MARK}/{RESULT_FILE} %s"'
}
"""What stands around a value: the starter knows the scratch directory's name when it starts the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is the same for all jobs of a pool."""

    server: str = ""
    """Who submits: jobs of other servers' stores in the same pool are none of ours."""
    log: Path | None = None
    """A job log of ours; None: the pool's own is read."""
    keep_claim_idle_s: int = 0
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Commands for the jobs that do not have their own (`read_defaults`)."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of all jobs: `PATH`, where `python3` of plain-Python jobs is not in the usual places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one attempt besides its description."""

    activation: str
    attempt: int
    action: str
    """Its qualified name."""
    batch_name: str
    """What condor_q shows it under, with all others of its chain, unless the description says otherwise."""
    room: Path
    code: Path
    """Where its archive is unpacked."""
    memory_mb: int
    """The action's limit, for descriptions without request_memory."""
    limit_s: int | None = None
    """The attempt's time limit: beyond it HTCondor holds the job (HoldReasonCode 46)."""
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """One call of `submit`: `htcondor2.Submit(dict(commands))` with `itemdata=iter(items)`."""

    commands: Mapping[str, str]
    items: tuple[Mapping[str, str], ...]
    """One for each job, in the order of the procs."""
    jobs: tuple[int, ...]
    """Which of the jobs given these are, by index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The files a job needs, with full paths in which no link is left."""

    executable: str
    input: str | None
    inputs: tuple[str, ...]


def allowed_commands(commands: Mapping[str, Sequence[str]], namespace: str) -> frozenset[str]:
    """The commands that the descriptions of a namespace may have, for `entities.submit.parse`.

    `commands`: the pool's lists by namespace, `*` for all. Raises InvalidConfig for one that can't be allowed.
    """
    extra = {name.strip().lower() for key in ("*", namespace) for name in commands.get(key, ())}
    for name in extra:
        bare = re.sub(r"^my\.", "+", name)
        if name in NEVER or bare.startswith("+eventmill") or not (_COMMAND.match(name) or _ATTRIBUTE.match(name)):
            raise InvalidConfig(f"commands: '{name}' can't be allowed: it is Eventmill's own to say")
    return ALLOWED | {re.sub(r"^my\.", "+", name) for name in extra}


def read_defaults(table: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """A pool's default commands (attributes as `My.Name`), and the variables of its `environment`.

    The values are the operator's own and stay as they are. Raises InvalidConfig.
    """
    commands: dict[str, str] = {}
    variables: dict[str, str] = {}
    for key, value in table.items():
        name = key.strip()
        if "\n" in value or "\r" in value or value.rstrip().endswith("\\"):
            raise InvalidConfig(f"defaults: '{name}' must be one line, without a backslash at its end")
        attribute = _ATTRIBUTE.match(name)
        if name.lower() == "environment":
            try:
                words = quoting.split_environment(list(value), 0)
            except InvalidDescription as e:
                raise InvalidConfig(f"defaults: {e}") from e
            variables = {variable: macros.join(text) for variable, text in words.items()}
        elif name.lower() in NEVER or (attribute and attribute[1].lower().startswith("eventmill")):
            raise InvalidConfig(f"defaults: '{name}' is Eventmill's own to say")
        elif attribute or _COMMAND.match(name):
            commands[f"My.{attribute[1]}" if attribute else name.lower()] = value
        else:
            raise InvalidConfig(f"defaults: '{name}' is not a submit command")
    return commands, variables


def sources(bound: BoundDescription, code: Path, roots: Iterable[str]) -> Sources:
    """Where the files lie that a description names. Looks at them: call it in a thread.

    `roots`: absolute directories in which full paths may lie. Raises InvalidDescription if a file isn't there, leads
    out of its directory by a link, or has a name that can't be transferred.
    """
    allowed = [os.path.realpath(root) for root in roots]
    archive = os.path.realpath(code)
    executable = bound.executable
    if bound.transfer_executable:
        executable = _source(archive, executable, "executable", allowed)
    stdin = None if bound.input in (None, "/dev/null") else _source(archive, bound.input or "", "input", allowed)
    inputs = tuple(_source(archive, path, "transfer_input_files", allowed) for path in bound.inputs)
    return Sources(executable=executable, input=stdin, inputs=inputs)


def _source(archive: str, path: str, command: str, roots: Sequence[str]) -> str:
    """A file's full path, resolved; a `/` at the end (the directory's contents) stays."""
    found = os.path.realpath(os.path.join(archive, path))
    within = roots if path.startswith("/") else [archive]
    if not any(found == root or found.startswith(root.rstrip("/") + "/") for root in within):
        raise InvalidDescription(f"{command}: {path} leads out of the directories that jobs may name")
    if not os.path.exists(found):
        raise InvalidDescription(f"{command}: there is no {path}")
    if _UNNAMEABLE.search(found):
        raise InvalidDescription(f"{command}: HTCondor can't transfer a file of this name: {found!r}")
    return found + "/" if path.endswith("/") and os.path.isdir(found) else found


def job_commands(bound: BoundDescription, facts: Facts, terms: Terms, files: Sources) -> dict[str, str]:
    """The commands of one job. Raises InvalidDescription for a value that HTCondor would not take as it is."""
    described = bound.to_dict()
    for key in ("input", "output", "error", "initialdir", "transfer_input_files", "transfer_output_remaps"):
        described.pop(key, None)
    commands = {
        **_defaults(bound, terms),
        **described,
        **_resources(bound, facts, terms),
        **_transfer(bound, facts, files),
        "environment": _environment(bound, facts, terms),
        **_identity(bound, facts, terms),
    }
    for key in bound.other:
        if "\\\\" in commands[key]:
            raise InvalidDescription(
                f"{key}: no parameter with a backslash can stand in an expression: HTCondor would take the string's end"
                " for a part of it"
            )
    if release := commands.get("periodic_release"):
        # nobody's but ours: it must not run before its handle is recorded
        commands["periodic_release"] = f"(HoldReasonCode =!= {SUBMITTED_HELD}) && ({release})"
    for key, value in commands.items():
        if (value.endswith("\\") and key not in _FRAMES) or _BREAKS.search(value):
            raise InvalidDescription(f"{key}: a value can't end with a backslash, nor contain a line's end or NUL")
        if _SCRATCH_MARK in value:
            raise InvalidDescription(f"{key}: '{_SCRATCH_MARK}' is evaluated by HTCondor; read it from params.json")
    return commands


def _defaults(bound: BoundDescription, terms: Terms) -> dict[str, str]:
    """The pool's defaults, but for what the description says itself."""
    own = {key.lower() for key in bound.other}
    own |= {key for key, name in _TYPED.items() if getattr(bound, name)}
    return {key: value for key, value in terms.defaults.items() if key.lower() not in own}


def _resources(bound: BoundDescription, facts: Facts, terms: Terms) -> dict[str, str]:
    commands: dict[str, str] = {}
    if bound.request_memory_mb is None and "request_memory" not in terms.defaults:
        commands["request_memory"] = str(facts.memory_mb)
    limits = [limit for limit in (facts.limit_s, bound.duration_s_max) if limit]
    if limits:
        commands["allowed_job_duration"] = str(min(limits))
    if terms.keep_claim_idle_s and not {"keep_claim_idle"} & (bound.other.keys() | terms.defaults.keys()):
        commands["keep_claim_idle"] = str(terms.keep_claim_idle_s)
    return commands


def _transfer(bound: BoundDescription, facts: Facts, files: Sources) -> dict[str, str]:
    room = _path(facts.room)
    inputs = [f"{room}/{PARAMS_FILE}", *map(_literal, files.inputs)]
    commands = {
        "executable": _literal(files.executable),
        "initialdir": f"{room}/scratch",
        "output": f"{room}/stdout",
        "error": f"{room}/stderr",
        "should_transfer_files": "YES",
        # whether a failed job's files are delivered is decided later; its result file is wanted in any case
        "when_to_transfer_output": "ON_EXIT_OR_EVICT" if bound.when_to_transfer_output.endswith("EVICT") else "ON_EXIT",
    }
    if files.input is not None:
        commands["input"] = _literal(files.input)
    if bound.outputs is not None:
        # a file that is named and not there would put the job on hold: rooms has made an empty result
        inputs.append(f"{room}/{RESULT_FILE}")
        names = [*(name for name in bound.outputs if name != RESULT_FILE), RESULT_FILE]
        commands["transfer_output_files"] = ", ".join(map(_literal, names))
        commands["preserve_relative_paths"] = "true"
    commands["transfer_input_files"] = ", ".join(inputs)
    return commands


def _environment(bound: BoundDescription, facts: Facts, terms: Terms) -> str:
    variables = {
        **terms.environment,
        **bound.environment,
        "EVENTMILL_ACTIVATION": facts.activation,
        "EVENTMILL_ATTEMPT": str(facts.attempt),
    }
    if facts.traceparent and _TRACEPARENT.match(facts.traceparent):
        variables["TRACEPARENT"] = facts.traceparent
    inside = quoting.join_environment(variables)[1:-1]
    if macros.EVALUATED_LATER.search(inside):
        raise InvalidDescription("environment: '$$' and '$(DOLLAR)' are evaluated by HTCondor; see params.json")
    return _literal(inside)


def _identity(bound: BoundDescription, facts: Facts, terms: Terms) -> dict[str, str]:
    """Whose job it is, how it starts, and where its events go."""
    commands = {
        "hold": "true",
        "notification": "never",
        "getenv": "false",
        f"My.{ACTIVATION}": f'"{facts.activation}"',
        f"My.{ATTEMPT}": str(facts.attempt),
        f"My.{ACTION}": _string(facts.action),
        "job_ad_information_attrs": ", ".join(INFORMATION),
    }
    if "batch_name" not in bound.other:
        commands["batch_name"] = _word(facts.batch_name)
    if terms.server:
        commands[f"My.{SERVER}"] = _string(terms.server)
    if terms.log is not None:
        commands |= {"log": _path(terms.log), "My.UserLogUseXML": LOG_IN_JSON}
    return commands


def clusters(jobs: Sequence[Mapping[str, str]]) -> list[Cluster]:
    """Jobs (of `job_commands`, for one identity) gathered into as few submit calls as they allow."""
    groups: dict[tuple[tuple[str, object], ...], list[int]] = {}
    for index, commands in enumerate(jobs):
        key = tuple((name, _in_common(name, value)) for name, value in sorted(commands.items()))
        groups.setdefault(key, []).append(index)
    return [
        _cluster(jobs, members[start : start + JOBS_PER_CLUSTER])
        for members in groups.values()
        for start in range(0, len(members), JOBS_PER_CLUSTER)
    ]


def _in_common(name: str, value: str) -> object:
    """What the jobs of a cluster must have in common of this command."""
    if name not in _ITEMS or "$" in value:
        return value
    return tuple(_VARIABLES.findall(value)) if name == "environment" else None


def _cluster(jobs: Sequence[Mapping[str, str]], members: Sequence[int]) -> Cluster:
    """One cluster: what all have in common as commands, the rest (the id always) as item data."""
    first = jobs[members[0]]
    differ = [f"My.{ACTIVATION}"]
    differ += [n for n, value in first.items() if n not in differ and any(jobs[i][n] != value for i in members)]
    variables = {name: "Eventmill_" + re.sub(r"\W", "_", name) for name in differ}
    commands = {
        name: _FRAMES.get(name, "%s").replace("%s", f"$({variables[name]})" if name in variables else value)
        for name, value in first.items()
    }
    items = tuple({variable: jobs[index][name] for name, variable in variables.items()} for index in members)
    return Cluster(commands, items, tuple(members))


def numbered(bound: BoundDescription, cluster: int, proc: int) -> BoundDescription:
    """The description with the job's numbers where its author wrote `$(ClusterId)` and `$(ProcId)`: for delivery."""

    def put(text: str) -> str:
        return text.replace(macros.CLUSTER, str(cluster)).replace(macros.PROC, str(proc))

    return replace(
        bound,
        output=bound.output and put(bound.output),
        error=bound.error and put(bound.error),
        initialdir=put(bound.initialdir),
        outputs=None if bound.outputs is None else tuple(map(put, bound.outputs)),
        remaps={put(name): put(path) for name, path in bound.remaps.items()},
    )


def _path(path: Path) -> str:
    """A path of ours. Raises InvalidConfig if the server's own directory has a name that HTCondor can't take."""
    text = str(path)
    if not path.is_absolute() or _UNNAMEABLE.search(text) or "$" in text:
        raise InvalidConfig(f"state_dir: HTCondor can't take a path with commas, quotes, backslashes or '$': {text!r}")
    return text


def _literal(text: str) -> str:
    """Text in which no macro is expanded but the job's numbers."""
    text = text.replace("$", "$(DOLLAR)")
    return text.replace(macros.CLUSTER, "$(ClusterId)").replace(macros.PROC, "$(ProcId)")


def _string(text: str) -> str:
    """A ClassAd string literal."""
    return '"' + _word(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _word(text: str) -> str:
    """A name of ours on one line, in which nothing means anything to HTCondor."""
    return re.sub(r"[\x00-\x1f\x7f$\"\\]", "_", text).strip()

"""What is wrong with rules although it is allowed: dear, dead and circular ones, as far as documents show it.

Functions of values: entities as they are deployed go in, findings come out. Nothing is executed or unpacked to disk.
"""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from eventmill.entities import Document, submit
from eventmill.errors import InvalidInput
from eventmill.rules import Index, Pattern, glob_root, matches, parse
from eventmill.rules.pattern import Exact, Exists, Field, Glob, Numeric, Prefix, Test
from eventmill.sdk.patterns import FAILED_TYPE, SUCCEEDED_TYPE, WRITTEN_TYPES

Entity = tuple[str, str, Document]

_REQUIRED: Final = frozenset({"specversion", "id", "source", "type"})
_TEXTS: Final = _REQUIRED | {"subject", "time", "datacontenttype", "dataschema", "data_base64"}
_ATTRIBUTE = re.compile(r"[a-z0-9_]+\Z")
_OUTPUT_PARAMETER = re.compile(r"out|dest|target|write|result|save", re.IGNORECASE)
"""A bound parameter of such a name is taken for a place that the action writes to."""
_OUTPUT_COMMANDS: Final = ("transfer_output_remaps", "output", "error", "initialdir")
_ABSOLUTE = re.compile(r"(?<![^\s;=\"'])/[^\s;\"']+")
_MACRO = re.compile(r"\$\(")
_DESCRIPTION_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """`rule`: the rule's name, or the action's where it is about an action."""

    severity: Literal["error", "warning"]
    rule: str
    message: str

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def lint(entities: Iterable[Entity], namespace: str) -> list[Finding]:
    """Findings about the rules of one namespace. `entities`: (collection, name, document) of all its packages, actions
    (with their code), triggers and rules."""
    documents = {(collection, name): document for collection, name, document in entities}
    findings: list[Finding] = []
    index: Index[str] = Index()
    for (collection, name), rule in documents.items():
        if collection != "rules":
            continue
        trigger = documents.get(("triggers", _local(rule["trigger"])))
        if trigger is None:
            findings.append(Finding("warning", name, f"dead: its trigger {rule['trigger']} does not exist"))
            continue
        wanted = _named(trigger.get("annotations", ())).get("pattern")
        if wanted is None:
            continue  # only fired by hand
        pattern = parse(wanted)
        index.add(name, pattern)
        if reason := never(pattern):
            findings.append(Finding("error", name, f"can never match: {reason}"))
        findings += [
            Finding("warning", name, text) for text in _loops(pattern, _local(rule["action"]), namespace, documents)
        ]
    findings += [
        Finding("warning", name, "keyless: every event is compared with it; add an exact value, a prefix or a suffix")
        for name in index.keyless()
    ]
    findings += _refused_descriptions(documents)
    return findings


def _refused_descriptions(documents: Mapping[tuple[str, str], Any]) -> Iterator[Finding]:
    """Jobs whose submit description the server would not take."""
    for (collection, name), document in documents.items():
        if collection == "actions" and document["exec"]["kind"] == "job":
            try:
                _description(document["exec"]["code"])
            except InvalidInput as e:
                yield Finding("error", name, f"its submit description is refused: {e}")


def never(pattern: Pattern) -> str | None:
    """Why no event can match, if that is so: each of its alternatives asks for something that there isn't."""
    reasons = [next(filter(None, map(_impossible, fields)), None) for fields in pattern.alternatives]
    if None in reasons:
        return next((reason for fields in pattern.alternatives if (reason := _relative_names(fields))), None)
    return reasons[0]


def _impossible(field: Field) -> str | None:
    """Why no CloudEvent has such a field, if that is so."""
    name, *below = field.names
    if name == "data":
        return None
    if not _ATTRIBUTE.match(name):
        return f"no event has an attribute '{name}' (they are lower-case letters and digits; data is below 'data')"
    if below:
        return f"attribute '{name}' has no parts, so there is no '{field.path}' (data is below 'data')"
    if all(_fails_on_attribute(test, name) for test in field.tests):
        return (
            f"attribute '{name}' is a text and always there" if name in _REQUIRED else f"attribute '{name}' is a text"
        )
    if name == "specversion" and all(isinstance(test, Exact) and test.value != "1.0" for test in field.tests):
        return "specversion is always '1.0'"
    return None


def _fails_on_attribute(test: Test, name: str) -> bool:
    if isinstance(test, Exact):
        return test.value is None or (name in _TEXTS and not isinstance(test.value, str))
    if isinstance(test, Exists):
        return not test.wanted and name in _REQUIRED
    return isinstance(test, Numeric) and name in _TEXTS


def _relative_names(fields: Iterable[Field]) -> str | None:
    """Names of files begin with a slash; `raw/*.h5` is a slip that the language allows."""
    tests = {field.path: field.tests for field in fields}
    if not any(isinstance(test, Exact) and test.value in WRITTEN_TYPES for test in tests.get("type", ())):
        return None
    globs = [test.text for test in tests.get("subject", ()) if isinstance(test, Glob)]
    if globs and len(globs) == len(tests["subject"]) and not any(glob[:1] in "/*?[" for glob in globs):
        return f"names of files begin with '/', and '{globs[0]}' doesn't"
    return None


# loops


def _loops(pattern: Pattern, action: str, namespace: str, documents: Mapping[tuple[str, str], Any]) -> Iterator[str]:
    """How the action of a rule may start the rule again."""
    started = sorted(_started(action, documents))
    for name in started:
        for type, word in ((SUCCEEDED_TYPE, "succeeds"), (FAILED_TYPE, "fails")):
            if _matches_subject(pattern, {type}, f"{namespace}/{name}"):
                yield f"a loop: it starts '{name}', and waits for '{name}' itself ({word})"
        for how, path in _written(name, documents):
            if _is_watched(pattern, path):
                yield f"a loop: '{name}' writes to {path} ({how}), and the rule waits for files there"


def _started(action: str, documents: Mapping[tuple[str, str], Any]) -> set[str]:
    """The action, and all that run as part of it or because of it."""
    found, waiting = set(), [action]
    while waiting:
        name = waiting.pop()
        if name in found or ("actions", name) not in documents:
            continue
        found.add(name)
        document = documents["actions", name]
        waiting += map(_local, document["exec"].get("components", ()))
        on_error = _named(document["annotations"]).get("on_error")
        if isinstance(on_error, str):
            waiting.append(_local(on_error))
    return found


def _written(action: str, documents: Mapping[tuple[str, str], Any]) -> Iterator[tuple[str, str]]:
    """Places that the action writes to, each with where it says so."""
    document = documents["actions", action]
    if document["exec"]["kind"] in ("sequence", "map"):
        return  # they write nothing themselves
    package = documents.get(("packages", action.partition("/")[0]), {})
    for key, value in {**_named(package.get("parameters", ())), **_named(document["parameters"])}.items():
        if isinstance(value, str) and value.startswith("/") and _OUTPUT_PARAMETER.search(key):
            yield f"parameter '{key}'", value
    if document["exec"]["kind"] == "job":
        for command, text in _output_commands(document["exec"]["code"]):
            for path in _ABSOLUTE.findall(text):
                yield command, path


def _output_commands(code: str) -> Iterator[tuple[str, str]]:
    """The commands of a job's submit description that say where its output goes."""
    try:
        statements = _description(code).statements
    except InvalidInput:
        return  # is a finding of its own
    for command in _OUTPUT_COMMANDS:
        if command in statements:
            yield command, statements[command].value


def _description(code: str) -> submit.Description:
    """Raises InvalidDescription."""
    return submit.parse(_text(code).decode())


def _text(code: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(code))) as archive, archive.open("job.sub") as file:
        return file.read(_DESCRIPTION_BYTES_MAX)


def description_alone(code: str) -> str:
    """A job's archive without all that is not looked at here."""
    small = io.BytesIO()
    with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("job.sub", _text(code))
    return base64.b64encode(small.getvalue()).decode()


def _is_watched(pattern: Pattern, path: str) -> bool:
    """Whether the pattern waits for files at this path, or somewhere below or above it."""
    exact = _MACRO.split(path)[0]
    if exact == path and _matches_subject(pattern, set(WRITTEN_TYPES), path):
        return True
    place = exact.rstrip("/") if exact == path else exact.rpartition("/")[0]
    return any(
        _inside(place, root) or _inside(root, place)
        for fields in pattern.alternatives
        if _waits_for(fields, set(WRITTEN_TYPES))
        for root in _roots(fields)
    )


def _roots(fields: Iterable[Field]) -> Iterator[str]:
    """The directories below which subjects must lie."""
    for field in fields:
        for test in field.tests if field.path == "subject" else ():
            if isinstance(test, Glob):
                yield glob_root(test.text)
            elif isinstance(test, Prefix):
                yield test.text.rpartition("/")[0]


def _matches_subject(pattern: Pattern, types: set[str], subject: str) -> bool:
    """Whether an event of one of these types about this subject may match, whatever else is in it."""
    for fields in pattern.alternatives:
        about = tuple(field for field in fields if field.path == "subject")
        if about and _waits_for(fields, types) and matches(Pattern((about,)), {"subject": subject}):
            return True
    return False


def _waits_for(fields: Iterable[Field], types: set[str]) -> bool:
    tests = next((field.tests for field in fields if field.path == "type"), ())
    return any(isinstance(test, Exact) and test.value in types for test in tests)


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _local(qualified: str) -> str:
    """`package/name` of `/namespace/package/name`."""
    return qualified.lstrip("/").partition("/")[2]


def _named(pairs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """OpenWhisk's list of keys and values as a dict."""
    return {pair["key"]: pair["value"] for pair in pairs}

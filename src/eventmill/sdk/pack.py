"""From a flow file to the documents of its deployment. It executes the flow file, and writes nothing.

`load` imports the file; `Flow.documents` turns its mills into OpenWhisk's packages, actions, triggers and rules, in an
order in which they can be PUT. `load` changes `sys.path` and `sys.modules` while it runs: one load at a time.
"""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Iterator, List, Mapping, Optional, Set, Tuple, Union

from eventmill.sdk.actions import Action, Map, PythonJob, Sequence, Service, SubmitJob, Wrapped
from eventmill.sdk.archive import Archive, function_archive, python_job_archive, submit_job_archive
from eventmill.sdk.errors import FlowError
from eventmill.sdk.mill import Mill, Rule, Schedule
from eventmill.sdk.patterns import Own, ticks_of

Document = Dict[str, Any]
Entity = Tuple[str, str, Document]
"""(collection, name, document): what is PUT to `/namespaces/_/<collection>/<name>?overwrite=true`."""

_OPTIONAL_ANNOTATIONS = ("cloudevents", "description", "on_error", "on_hold", "partial", "pool", "retries", "timeout")
_RESERVED_MODULES = ("__main__", "main__", "exec__", "eventmill")
"""What a worker calls its own modules (`main__` and `exec__`: OpenWhisk's Python runtime)."""


class Flow:
    """A loaded flow file: its mills, and the modules beside it that it imports."""

    def __init__(self, path: Path, module: ModuleType, siblings: List[str]) -> None:
        self.path = path
        self.module = module
        self.siblings = siblings
        self.mills = _mills(path, module)
        self._attributes = {id(value): name for name, value in vars(module).items() if isinstance(value, Action)}
        self._check()

    def documents(
        self, *, namespace: str, python_kind: str = "python:3.11", parameters: Optional[Mapping[str, Any]] = None
    ) -> List[Entity]:
        """All entities of the flow, in an order in which they can be PUT one after the other.

        `namespace`: where they will live; completion events and ticks carry it in their subject. `parameters`: other
        values for parameters of the mills. Every document has the annotation `digest` of its contents: an entity
        whose digest is there already need not be PUT.
        """
        values = self._parameters(parameters or {})
        functions = self._function_archive()
        packed = _Packed(self, namespace, python_kind, functions.zipped(), functions.base64())
        actions = [packed.action(action) for action in self.actions()]
        rules = [(mill, rule) for mill in self.mills for rule in mill.rules.values()]
        entities = [packed.package(mill, values) for mill in self.mills] + actions
        entities += [packed.trigger(mill, rule) for mill, rule in rules]
        entities += [packed.rule(mill, rule) for mill, rule in rules]
        return [_digested(*entity) for entity in entities]

    def actions(self) -> List[Action]:
        """The actions of all mills, each after those that it needs."""
        ordered: Dict[int, Action] = {}

        def visit(action: Action) -> None:
            for needed in action.needs():
                visit(needed)
            ordered.setdefault(id(action), action)

        for mill in self.mills:
            for action in mill.actions.values():
                visit(action)
        return list(ordered.values())

    def attribute(self, action: Action) -> str:
        """The name by which the flow's module knows this action."""
        return self._attributes[id(action)]

    def _function_archive(self) -> Archive:
        archive = Archive(f"flow {self.path.name}", "")
        for name in (self.path.name, *self.siblings, *(name for mill in self.mills for name in mill.include)):
            archive.add_path(self.path.parent, name)
        wrapped = (action for action in self.actions() if isinstance(action, Wrapped))
        return function_archive(archive, self.path.stem, [self.attribute(action) for action in wrapped])

    def _parameters(self, given: Mapping[str, Any]) -> Dict[str, Dict[str, Any]]:
        """Each mill's parameters with the values given for this deployment."""
        known = sorted({name for mill in self.mills for name in mill.parameters})
        for name in given:
            if name not in known:
                has = f"it has {', '.join(known)}" if known else "declare it by Mill(…, parameters={…})"
                raise FlowError(f"the flow has no parameter '{name}' ({has})", self.path.name)
        return {
            mill.name: {name: given.get(name, value) for name, value in mill.parameters.items()} for mill in self.mills
        }

    def _check(self) -> None:
        """What can only be known of the flow as a whole."""
        actions = self.actions()
        for action in actions:
            if action.mill not in self.mills:
                raise FlowError(
                    f"'{action.path}' belongs to a Mill that {self.path.name} doesn't name: import that Mill as well",
                    action.where,
                )
            if isinstance(action, Wrapped) and id(action) not in self._attributes:
                raise FlowError(
                    f"{action.word} '{action.name}' can't be imported: define it at the top level of {self.path.name}, "
                    "not inside of a function or under a name that is used again",
                    action.where,
                )
        paths = {action.path for action in actions}
        for rule in (rule for mill in self.mills for rule in mill.rules.values()):
            _check_rule(rule, paths)


class _Packed:
    """Makes the documents of one deployment."""

    def __init__(self, flow: Flow, namespace: str, python_kind: str, flow_zip: bytes, flow_code: str) -> None:
        self.flow = flow
        self.namespace = namespace
        self.python_kind = python_kind
        self.flow_zip = flow_zip
        self.flow_code = flow_code

    def package(self, mill: Mill, values: Mapping[str, Mapping[str, Any]]) -> Entity:
        bound = [{"key": key, "value": value} for key, value in sorted(values[mill.name].items())]
        return "packages", mill.name, {"parameters": bound, "annotations": self._annotations({})}

    def action(self, action: Action) -> Entity:
        named = action.annotations()
        if action.on_error is not None:
            named["on_error"] = f"/{self.namespace}/{action.on_error.path}"
        document: Document = {
            "exec": self._exec(action),
            "annotations": self._annotations({"provide-api-key": False, **named}),
            # annotations are merged on an update: those that are gone must be named
            "delAnnotations": [name for name in _OPTIONAL_ANNOTATIONS if name not in named],
            "limits": action.limits(),
            "parameters": action.bound(),
        }
        return "actions", action.path, document

    def trigger(self, mill: Mill, rule: Rule) -> Entity:
        name = _trigger_name(mill, rule)
        if isinstance(rule.pattern, Schedule):
            annotations = {"pattern": ticks_of(f"{self.namespace}/{name}"), "schedule": dict(rule.pattern)}
        else:
            annotations = {"pattern": _resolved(rule.pattern, self.namespace)}
        return "triggers", name, {"parameters": [], "annotations": self._annotations(annotations)}

    def rule(self, mill: Mill, rule: Rule) -> Entity:
        document = {
            "trigger": f"/_/{_trigger_name(mill, rule)}",
            "action": f"/_/{rule.action.path}",
            "annotations": self._annotations({}),
        }
        return "rules", f"{mill.name}.{rule.name}", document

    def _exec(self, action: Action) -> Document:
        if isinstance(action, Sequence):
            return {"kind": "sequence", "components": [f"/_/{step.path}" for step in action.components]}
        if isinstance(action, Map):
            return {"kind": "map", "components": [f"/_/{action.action.path}"]}
        if isinstance(action, Service):
            return {"kind": "http", "url": action.url, "method": action.method}
        root, module = self.flow.path.parent, self.flow.path.stem
        if isinstance(action, SubmitJob):
            return {"kind": "job", "code": submit_job_archive(action, root).base64(), "binary": True}
        attribute = self.flow.attribute(action)
        if isinstance(action, PythonJob):
            archive = python_job_archive(action, root, self.flow_zip, module, attribute)
            return {"kind": "job", "code": archive.base64(), "binary": True}
        return {"kind": self.python_kind, "code": self.flow_code, "binary": True, "main": attribute}

    def _annotations(self, values: Mapping[str, Any]) -> List[Document]:
        named = {**values, "flow": self.flow.path.name}
        return [{"key": key, "value": named[key]} for key in sorted(named)]


def load(path: Union[str, Path]) -> Flow:
    """Import a flow file as a module named by its file's stem, with its folder on the path, and take it off again.

    Raises FlowError with file and line for whatever the file does wrong.
    """
    path = Path(path).resolve()
    _check_stem(path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise FlowError(f"can't read the flow: {error.strerror}", path.name) from error
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    with _imports_from(path.parent, module) as siblings:
        try:
            exec(compile(source, str(path), "exec"), vars(module))
        except FlowError:
            raise
        except (Exception, SystemExit) as error:
            raise FlowError(_explained(error), _line_of(error, path)) from error
    return Flow(path, module, siblings)


@contextmanager
def _imports_from(folder: Path, module: ModuleType) -> Iterator[List[str]]:
    """Let `module` import what lies in its folder; afterwards forget it all, and name it in the list that is yielded.

    A later load sees the sources as they are then: nothing stays in `sys.modules`, no bytecode is written.
    """
    siblings: List[str] = []
    before, path, no_bytecode = dict(sys.modules), list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.modules[module.__name__] = module
    sys.dont_write_bytecode = True
    try:
        yield siblings
    finally:
        sys.path[:] = path
        sys.dont_write_bytecode = no_bytecode
        for name in [name for name in sys.modules if name not in before]:
            top = _sibling(folder, name.partition(".")[0])
            if top is not None:
                del sys.modules[name]
                if top not in siblings and "." not in name:
                    siblings.append(top)
        sys.modules.pop(module.__name__, None)
        if module.__name__ in before:
            sys.modules[module.__name__] = before[module.__name__]
        siblings.sort()


def _sibling(folder: Path, name: str) -> Optional[str]:
    """The file or folder beside the flow that the top-level module of this name was imported from."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is not None and name != "eventmill":
        for relative, home in ((f"{name}.py", f"{name}.py"), (f"{name}/__init__.py", name)):
            if Path(file) == folder / relative:
                return home
    return None


def _check_stem(path: Path) -> None:
    standard = getattr(sys, "stdlib_module_names", ())  # from Python 3.10 on
    if path.suffix != ".py" or "." in path.stem:
        raise FlowError(f"{path.name} is not a Python file with a plain name, such as flow.py", path.name)
    if path.stem in _RESERVED_MODULES or path.stem in standard:
        raise FlowError(f"'{path.stem}' is the name of another module: call the flow file something else", path.name)


def _mills(path: Path, module: ModuleType) -> List[Mill]:
    mills = list({id(value): value for value in vars(module).values() if isinstance(value, Mill)}.values())
    if not mills:
        raise FlowError(f'defines no Mill: begin with  mill = Mill("{path.stem}")', path.name)
    names = [mill.name for mill in mills]
    for mill in mills:
        if names.count(mill.name) > 1:
            raise FlowError(f"there are two Mills named '{mill.name}': one package has one Mill", mill.where)
        if not mill.actions:
            raise FlowError(f"Mill '{mill.name}' has no actions: define one with @{mill.name}.function", mill.where)
    return mills


def _check_rule(rule: Rule, paths: Set[str]) -> None:
    if isinstance(rule.pattern, Schedule):
        _check_timezone(rule)
        return
    for subject in _own_subjects(rule.pattern):
        if subject not in paths:
            raise FlowError(f"rule '{rule.name}' waits for '{subject}', which nothing runs: use it in on()", rule.where)
    try:
        json.dumps(rule.pattern, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FlowError(f"the pattern of rule '{rule.name}' is not JSON: {error}", rule.where) from error


def _check_timezone(rule: Rule) -> None:
    from zoneinfo import available_timezones

    zone = rule.pattern.get("timezone", "UTC")
    known = available_timezones()
    if known and zone not in known:  # a machine without a time zone database leaves the check to the server
        raise FlowError(f"unknown time zone '{zone}': write a name such as 'Europe/Berlin'", rule.where)


def _trigger_name(mill: Mill, rule: Rule) -> str:
    """A namespace's triggers, rules and packages share their names; no Mill or rule of ours has a dot in its own."""
    return f"{mill.name}.{rule.name}.trigger"


def _resolved(value: Any, namespace: str) -> Any:
    """The pattern with our own subjects completed by the namespace."""
    if isinstance(value, Own):
        return f"{namespace}/{value}"
    if isinstance(value, dict):
        return {key: _resolved(item, namespace) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, namespace) for item in value]
    return value


def _own_subjects(value: Any) -> Iterator[Own]:
    if isinstance(value, Own):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _own_subjects(item)


def _digested(collection: str, name: str, document: Document) -> Entity:
    """The entity with the annotation `digest` of what it is without it."""
    try:
        text = json.dumps(document, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FlowError(f"'{name}' has parameters that are not JSON: {error}", "") from error
    digest = {"key": "digest", "value": blake2b(text.encode(), digest_size=16).hexdigest()}
    return collection, name, {**document, "annotations": [*document["annotations"], digest]}


def _explained(error: BaseException) -> str:
    """Why a flow file could not be loaded, in a line."""
    if isinstance(error, SyntaxError):
        return f"syntax error: {error.msg}"
    if isinstance(error, ModuleNotFoundError):
        return f"can't import '{error.name}' here: install it, or import it inside of the function that needs it"
    if isinstance(error, SystemExit):
        return "the flow ends the program while it is loaded: keep that under  if __name__ == '__main__':"
    hint = ""
    if isinstance(error, TypeError) and "required positional argument" in str(error):
        hint = " (if you mean the action, give it itself: f, not f())"
    elif isinstance(error, AttributeError) and getattr(error, "name", None):  # it says of what from Python 3.10 on
        from difflib import get_close_matches  # for mistakes only

        known = [name for name in dir(getattr(error, "obj", None)) if not name.startswith("_")]
        near = get_close_matches(str(error.name), known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{type(error).__name__}: {error}{hint}"


def _line_of(error: BaseException, path: Path) -> str:
    """`file:line` of the flow's own line that led to the error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path.name}:{lines[-1]}" if lines else path.name

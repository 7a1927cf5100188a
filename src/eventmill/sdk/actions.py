"""What can be run, as an author defines it: functions, jobs, sequences, maps. Values that touch no file.

A flow file is executed twice: where it is deployed, to be packed (`pack`), and inside each worker and job, to get at
its functions (`runtime`). So a definition checks only what can be known in both places, and at once, since the line
that is wrong is known then; what needs files is checked by `pack`.
"""

from __future__ import annotations

import os
from types import FunctionType

from eventmill.sdk.errors import FlowError, caller, line_of
from eventmill.sdk.units import megabytes, milliseconds, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any, Callable, Dict, Iterable, List, Mapping, NoReturn, Optional, Tuple, Union

    from eventmill.sdk.mill import Mill

NAME_LENGTH_MAX = 100
COMPONENTS_MAX = 50
"""OpenWhisk's longest sequence."""

_COROUTINE, _GENERATOR, _ASYNC_GENERATOR, _VARARGS = 0x80, 0x20, 0x200, 0x04  # inspect.CO_*, without importing it


class Action:
    """What can be run: the common part of function, job, sequence and map. `a >> b` runs b with a's result."""

    word = "action"

    def __init__(self, mill: Mill, name: str, on_error: Optional[Action] = None) -> None:
        self.mill = mill
        self.name = name
        self.on_error = None if on_error is None else used(on_error, "on_error")
        self.where = caller()
        """Where it was defined: `flow.py:12`."""

    @property
    def path(self) -> str:
        """`package/name`."""
        return f"{self.mill.name}/{self.name}"

    def __rshift__(self, other: Action) -> Sequence:
        if not isinstance(other, Action):
            _foreign(other)
        return Sequence(self.mill, (*self.steps(), *other.steps()))

    def __rrshift__(self, other: object) -> NoReturn:
        _foreign(other)

    def __repr__(self) -> str:
        return f"<{self.word} {self.path}>"

    def steps(self) -> Tuple[Action, ...]:
        """What it adds to a sequence."""
        return (self,)

    def needs(self) -> Tuple[Action, ...]:
        """The actions that must exist before this one."""
        return () if self.on_error is None else (self.on_error,)

    def limits(self) -> Dict[str, int]:
        """OpenWhisk's `limits`: `timeout` in ms, `memory` and `logs` in MB."""
        return {}

    def annotations(self) -> Dict[str, Any]:
        return {}

    def bound(self) -> List[Dict[str, Any]]:
        """Its own parameters, in OpenWhisk's form."""
        return []


class Coded(Action):
    """An action with code of its own: the common part of functions and jobs."""

    def __init__(
        self,
        mill: Mill,
        name: str,
        *,
        on_error: Optional[Action] = None,
        timeout: Union[float, str, None] = None,
        retries: Optional[int] = None,
        parameters: Optional[Mapping[str, Any]] = None,
    ) -> None:
        super().__init__(mill, name, on_error)
        self.timeout_ms = None if timeout is None else milliseconds(timeout, "timeout")
        self.retries = None if retries is None else _count(retries, "retries", 0)
        self.parameters = checked_mapping(parameters, "parameters")

    def limits(self) -> Dict[str, int]:
        return {} if self.timeout_ms is None else {"timeout": self.timeout_ms}

    def annotations(self) -> Dict[str, Any]:
        return {} if self.retries is None else {"retries": self.retries}

    def bound(self) -> List[Dict[str, Any]]:
        return [{"key": key, "value": value} for key, value in sorted(self.parameters.items())]


class Wrapped(Coded):
    """A Python function as an action; calling it calls the plain function, so that it can be tested as one."""

    def __init__(self, mill: Mill, function: FunctionType, name: Optional[str] = None, **common: Any) -> None:
        _check_function(function, self.word)
        if name is None and function.__name__ == "<lambda>":
            raise FlowError(f"a lambda has no name: write name=…, or def the {self.word}")
        super().__init__(mill, name or function.__name__, **common)
        self.function = function
        self.where = line_of(function)
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def annotations(self) -> Dict[str, Any]:
        doc = (self.function.__doc__ or "").strip()
        return {**super().annotations(), **({"description": doc.splitlines()[0]} if doc else {})}


class Function(Wrapped):
    """A short action: code in a warm worker."""

    word = "function"

    def __init__(
        self,
        mill: Mill,
        function: FunctionType,
        *,
        timeout: Union[float, str] = "60s",
        memory: str = "256MB",
        logs: str = "10MB",
        instances: Optional[int] = None,
        init: Optional[Mapping[str, Any]] = None,
        **common: Any,
    ) -> None:
        super().__init__(mill, function, timeout=timeout, **common)
        self.memory_mb = megabytes(memory, "memory")
        self.logs_mb = megabytes(logs, "logs")
        self.instances = None if instances is None else _count(instances, "instances", 1)
        self.init = checked_mapping(init, "init")

    def limits(self) -> Dict[str, int]:
        own = {"memory": self.memory_mb, "logs": self.logs_mb}
        return {**super().limits(), **own, **({} if self.instances is None else {"instances": self.instances})}

    def bound(self) -> List[Dict[str, Any]]:
        return super().bound() + [{"key": k, "value": v, "init": True} for k, v in sorted(self.init.items())]


class PythonJob(Wrapped):
    """A Python function that the batch system runs."""

    word = "job"

    def __init__(
        self,
        mill: Mill,
        function: FunctionType,
        *,
        cpus: Optional[int] = None,
        memory: Optional[str] = None,
        pool: Optional[str] = None,
        on_hold: Union[str, Mapping[str, Any], None] = None,
        include: Iterable[str] = (),
        submit: Optional[Mapping[str, str]] = None,
        **common: Any,
    ) -> None:
        super().__init__(mill, function, **common)
        self.cpus = 1 if cpus is None else _count(cpus, "cpus", 1)
        self.memory_mb = megabytes("1GB" if memory is None else memory, "memory")
        self.place = _place(pool, on_hold)
        self.include = checked_paths(include)
        self.submit = _submit_commands(submit)

    def annotations(self) -> Dict[str, Any]:
        return {**super().annotations(), **self.place}


class SubmitJob(Coded):
    """A job as an HTCondor submit description: a file, with its executable and its input files."""

    word = "job"

    def __init__(
        self,
        mill: Mill,
        file: str,
        *,
        name: Optional[str] = None,
        pool: Optional[str] = None,
        on_hold: Union[str, Mapping[str, Any], None] = None,
        include: Iterable[str] = (),
        **common: Any,
    ) -> None:
        if not file.endswith(".sub"):
            raise FlowError(f"job({file!r}): name a submit description, a file that ends in .sub")
        super().__init__(mill, name or os.path.basename(file)[: -len(".sub")], **common)
        self.file = file
        self.place = _place(pool, on_hold)
        self.include = checked_paths(include)

    def annotations(self) -> Dict[str, Any]:
        return {**super().annotations(), **self.place}


class Service(Coded):
    """Somebody else's HTTP service as an action: it gets the event, and its answer is the result."""

    word = "service"

    def __init__(
        self,
        mill: Mill,
        url: str,
        *,
        name: str,
        method: str = "POST",
        structured: bool = False,
        timeout: Union[float, str] = "60s",
        instances: Optional[int] = None,
        **common: Any,
    ) -> None:
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise FlowError(f"http({url!r}): write a URL that begins with https:// or http://")
        super().__init__(mill, name, timeout=timeout, **common)
        self.url = url
        self.method = method
        self.structured = structured
        self.instances = None if instances is None else _count(instances, "instances", 1)

    def limits(self) -> Dict[str, int]:
        return {**super().limits(), **({} if self.instances is None else {"instances": self.instances})}

    def annotations(self) -> Dict[str, Any]:
        return {**super().annotations(), **({"cloudevents": "structured"} if self.structured else {})}


class Composed(Action):
    """An action made of others: the common part of sequences and maps. Its `timeout` is that of the whole."""

    def __init__(
        self,
        mill: Mill,
        name: str,
        *,
        named: bool,
        on_error: Optional[Action] = None,
        timeout: Union[float, str, None] = None,
    ) -> None:
        super().__init__(mill, name, on_error)
        self.named = named
        self.timeout_ms = None if timeout is None else milliseconds(timeout, "timeout")

    def annotations(self) -> Dict[str, Any]:
        return {} if self.timeout_ms is None else {"timeout": self.timeout_ms}


class Sequence(Composed):
    """Actions one after the other, each with its predecessor's result. Without a name, it is named after its steps."""

    word = "sequence"

    def __init__(self, mill: Mill, components: Tuple[Action, ...], name: Optional[str] = None, **common: Any) -> None:
        if len(components) > COMPONENTS_MAX:
            raise FlowError(f"a sequence has at most {COMPONENTS_MAX} steps, this one has {len(components)}: split it")
        own = name or _joined([action.name for action in components])
        super().__init__(mill, own, named=name is not None, **common)
        self.components = components

    def steps(self) -> Tuple[Action, ...]:
        return (self,) if self.named else self.components

    def needs(self) -> Tuple[Action, ...]:
        return (*self.components, *super().needs())


class Map(Composed):
    """One action for each element of its parameters' `items`; the results are joined in order."""

    word = "map"

    def __init__(self, mill: Mill, action: Action, partial: bool, name: Optional[str] = None, **common: Any) -> None:
        own = name or f"{'partial-' if partial else ''}map-{action.name}"
        super().__init__(mill, own, named=name is not None, **common)
        self.action = action
        self.partial = partial

    def needs(self) -> Tuple[Action, ...]:
        return (self.action, *super().needs())

    def annotations(self) -> Dict[str, Any]:
        return {**super().annotations(), "partial": self.partial}


def takes_argument(function: Callable[..., Any]) -> bool:
    """Whether it wants the parameters (a function without any is called with nothing)."""
    code: CodeType = function.__code__
    return bool(code.co_argcount or code.co_flags & _VARARGS)


def _check_function(function: object, word: str) -> None:
    """Refuse what can't be called with one dict and answer with one."""
    if not isinstance(function, FunctionType):
        raise FlowError(
            f"{function!r} can't be a {word}: a plain Python function is needed (options are named: name=…)"
        )
    where = line_of(function)
    flags = function.__code__.co_flags
    if flags & (_COROUTINE | _ASYNC_GENERATOR):
        raise FlowError(f"{function.__name__} is async: a {word} has a process to itself, write a plain def", where)
    if flags & _GENERATOR:
        raise FlowError(f"{function.__name__} is a generator: a {word} returns one dict, collect it first", where)
    code = function.__code__
    required = code.co_argcount - len(function.__defaults__ or ())
    keywords = code.co_kwonlyargcount - len(function.__kwdefaults__ or {})
    if required > 1 or keywords > 0:
        raise FlowError(
            f"{function.__name__} has {required + keywords} required parameters: a {word} is called with one, "
            "the event or its predecessor's result as a dict",
            where,
        )


def checked_name(name: object, what: str) -> str:
    if not (isinstance(name, str) and name.isascii() and name.replace("-", "_").isidentifier() and name[0] != "-"):
        raise FlowError(f"{what} name {name!r}: letters, digits, _ and - are allowed, and it begins with a letter or _")
    if len(name) > NAME_LENGTH_MAX:
        raise FlowError(f"{what} name '{name[:20]}…' has {len(name)} characters, at most {NAME_LENGTH_MAX} are allowed")
    return name


def _joined(names: List[str]) -> str:
    """The name of an anonymous sequence, the same for the same steps."""
    name = "-".join(names)
    if len(name) <= NAME_LENGTH_MAX:
        return name
    from hashlib import blake2b  # loads OpenSSL: not for names that fit

    return f"{name[: NAME_LENGTH_MAX - 9]}-{blake2b(name.encode(), digest_size=4).hexdigest()}"


def same(one: Action, other: Action) -> bool:
    """Whether two anonymous sequences or maps have the same contents, so that one of them is enough."""
    if not (isinstance(one, Composed) and isinstance(other, Composed)) or one.named or other.named:
        return False
    return one.word == other.word and one.needs() == other.needs() and one.annotations() == other.annotations()


def _foreign(other: object) -> NoReturn:
    if isinstance(other, FunctionType):
        raise FlowError(_undecorated(other))
    hint = "decorate it with @mill.function" if callable(other) else "only actions of a Mill can be joined by >>"
    raise FlowError(f"{other!r} is not an action: {hint}")


def _undecorated(function: FunctionType) -> str:
    return f"'{function.__name__}' is not an action: decorate it with @mill.function or @mill.job"


def checked_action(action: object, what: str) -> Action:
    if isinstance(action, FunctionType):
        raise FlowError(_undecorated(action))
    if not isinstance(action, Action):
        called = action is None or isinstance(action, (dict, list))
        hint = ": give the action itself: f, not f()" if called else ""
        raise FlowError(f"{what} must be an action (a function, job, sequence or map of a Mill), not {action!r}{hint}")
    return action


def checked_options(options: Mapping[str, Any], known: Tuple[str, ...]) -> None:
    """Refuse options that there aren't, with the one that may have been meant."""
    for name in options:
        if name not in known:
            from difflib import get_close_matches  # for mistakes only

            near = get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise FlowError(f"unknown option '{name}' ({hint})")


def used(action: object, what: str) -> Action:
    """The action as it is deployed: an anonymous sequence becomes one of its mill's actions when it is used."""
    found = checked_action(action, what)
    return found.mill.define(found) if isinstance(found, Sequence) else found


def _count(value: object, what: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FlowError(f"{what}={value!r}: a whole number of at least {least} is needed")
    return value


def checked_mapping(values: object, what: str) -> Dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise FlowError(f"{what}={values!r}: a dict with texts as keys is needed")
    return dict(values)


def checked_paths(include: object) -> Tuple[str, ...]:
    if not isinstance(include, (list, tuple)) or not all(isinstance(path, str) for path in include):
        raise FlowError(f"include={include!r}: a list of file names is needed")
    return tuple(include)


def _place(pool: Optional[str], on_hold: Union[str, Mapping[str, Any], None]) -> Dict[str, Any]:
    """A job's annotations: its batch system, and what happens when that puts it on hold."""
    place: Dict[str, Any] = {} if pool is None else {"pool": pool}
    if isinstance(on_hold, str) and on_hold in ("fail", "wait"):
        place["on_hold"] = on_hold
    elif isinstance(on_hold, dict) and on_hold.keys() == {"after", "times"}:
        after, times = seconds(on_hold["after"], "on_hold: after"), _count(on_hold["times"], "on_hold: times", 1)
        place["on_hold"] = {"after": after, "times": times}
    elif on_hold is not None:
        raise FlowError(f'on_hold={on_hold!r}: write "fail", "wait", or {{"after": "10m", "times": 3}}')
    return place


def _submit_commands(commands: object) -> Dict[str, str]:
    """Further submit commands; each stays on its own line, so that none can smuggle in another."""
    result = checked_mapping(commands, "submit")
    for key, value in result.items():
        if not isinstance(value, str) or not {*key}.isdisjoint("\r\n=") or not {*value}.isdisjoint("\r\n"):
            raise FlowError(f"submit={{{key!r}: {value!r}}}: a command and its value are texts of one line")
    return result

"""The `Mill`: one flow's actions and the rules that start them. Making one touches no file and no server."""

from __future__ import annotations

from types import FunctionType

from eventmill.sdk.actions import (
    Action,
    Function,
    Map,
    PythonJob,
    Sequence,
    Service,
    SubmitJob,
    checked_action,
    checked_mapping,
    checked_name,
    checked_options,
    checked_paths,
    same,
    used,
)
from eventmill.sdk.errors import FlowError, caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterable, Mapping, Optional, TypeVar, Union, overload

    AnyAction = TypeVar("AnyAction", bound=Action)
    JsonObject = Dict[str, Any]
else:
    JsonObject = dict


_COMMON = ("name", "timeout", "retries", "parameters", "on_error")
_FUNCTION_OPTIONS = (*_COMMON, "memory", "logs", "instances", "init")
_JOB_OPTIONS = (*_COMMON, "cpus", "memory", "pool", "on_hold", "include", "submit")


class Schedule(JsonObject):
    """When a trigger fires by the clock: `{"every_s": 600.0}`, or `{"cron": "0 3 * * *", "timezone": "UTC"}`."""


class Rule:
    """A pattern or schedule and the action that it starts. Its name is its identity: events are counted by it."""

    def __init__(self, name: str, pattern: Mapping[str, Any], action: Action) -> None:
        self.name = name
        self.pattern = pattern
        self.action = action
        self.where = caller()


class Mill:
    """A flow's actions and rules; its name is the package that they are deployed as.

    `include`: files and folders beside the flow file that its Python code needs (modules that it imports while it is
    loaded come along by themselves). `parameters`: bound to every function and job, below what they are called with;
    a deploy may give them other values.
    """

    def __init__(
        self, name: str, *, include: Iterable[str] = (), parameters: Optional[Mapping[str, Any]] = None
    ) -> None:
        self.name = checked_name(name, "Mill")
        if name == "default":
            raise FlowError("Mill('default'): this package name is reserved: choose another")
        self.include = checked_paths(include)
        self.parameters = checked_mapping(parameters, "parameters")
        self.actions: Dict[str, Action] = {}
        self.rules: Dict[str, Rule] = {}
        self.where = caller()

    def __repr__(self) -> str:
        return f"<Mill {self.name}>"

    if TYPE_CHECKING:

        @overload
        def function(self, function: Callable[..., Any], **options: Any) -> Function: ...

        @overload
        def function(
            self,
            *,
            name: Optional[str] = None,
            timeout: Union[float, str] = "60s",
            memory: str = "256MB",
            logs: str = "10MB",
            instances: Optional[int] = None,
            retries: Optional[int] = None,
            parameters: Optional[Mapping[str, Any]] = None,
            init: Optional[Mapping[str, Any]] = None,
            on_error: Optional[Action] = None,
        ) -> Callable[[Callable[..., Any]], Function]: ...

    def function(self, function: Any = None, **options: Any) -> Any:
        """Make a function of a Python function, as a decorator with or without options.

        `name`: its own, unless given. `timeout`: seconds or "30s". `memory`, `logs`: "256MB". `instances`: how many run
        at once at most. `retries`: how many further attempts a failed one gets. `parameters`: bound below what it is
        called with. `init`: given to its code as environment variables. `on_error`: the action that gets the failed
        activation.
        """

        checked_options(options, _FUNCTION_OPTIONS)

        def define(function: FunctionType) -> Function:
            return self.define(Function(self, function, **options))

        return define if function is None else define(function)

    if TYPE_CHECKING:

        @overload
        def job(self, what: Callable[..., Any], **options: Any) -> PythonJob: ...

        @overload
        def job(
            self,
            what: str,
            *,
            name: Optional[str] = None,
            timeout: Union[float, str, None] = None,
            pool: Optional[str] = None,
            on_hold: Union[str, Mapping[str, Any], None] = None,
            include: Iterable[str] = (),
            retries: Optional[int] = None,
            parameters: Optional[Mapping[str, Any]] = None,
            on_error: Optional[Action] = None,
        ) -> SubmitJob: ...

        @overload
        def job(
            self,
            *,
            name: Optional[str] = None,
            cpus: Optional[int] = None,
            memory: Optional[str] = None,
            timeout: Union[float, str, None] = None,
            pool: Optional[str] = None,
            on_hold: Union[str, Mapping[str, Any], None] = None,
            include: Iterable[str] = (),
            submit: Optional[Mapping[str, str]] = None,
            retries: Optional[int] = None,
            parameters: Optional[Mapping[str, Any]] = None,
            on_error: Optional[Action] = None,
        ) -> Callable[[Callable[..., Any]], PythonJob]: ...

    def job(self, what: Any = None, **options: Any) -> Any:
        """Make a job: `mill.job("calibrate.sub")` of a submit description, or, as a decorator, of a Python function.

        `cpus`, `memory` ("16GB"): what it requests. `submit`: further submit commands, such as
        {"request_gpus": "1"} (all three for Python jobs only: a description says it itself). `pool`: the batch
        system, by the server's name for it. `on_hold`: what happens when HTCondor holds the job: "fail" (as if nothing
        is said), "wait" for somebody to release it, or {"after": "10m", "times": 3}: it is released again. `include`:
        files that come along; a Python job finds them in its working directory. The rest as for functions.
        """
        checked_options(options, _JOB_OPTIONS)
        if isinstance(what, str):
            misplaced = [key for key in ("cpus", "memory", "submit") if key in options]
            if misplaced:
                raise FlowError(f"job({what!r}): {', '.join(misplaced)} belong into the description itself")
            return self.define(SubmitJob(self, what, **options))

        def define(function: FunctionType) -> PythonJob:
            return self.define(PythonJob(self, function, **options))

        return define if what is None else define(what)

    def http(
        self,
        url: str,
        *,
        name: str,
        method: str = "POST",
        structured: bool = False,
        timeout: Union[float, str] = "60s",
        instances: Optional[int] = None,
        retries: Optional[int] = None,
        parameters: Optional[Mapping[str, Any]] = None,
        on_error: Optional[Action] = None,
    ) -> Service:
        """Make an action of an HTTP service: it is sent the event, or its predecessor's result, as a CloudEvent.

        The server's configuration says which hosts may be called, and has their secrets. `structured`: the event whole
        as the body, instead of its attributes as headers and its data as the body. The rest as for functions.
        """
        return self.define(
            Service(
                self, url, name=name, method=method, structured=structured, timeout=timeout, instances=instances,
                retries=retries, parameters=parameters, on_error=on_error,
            )
        )  # fmt: skip

    def sequence(
        self,
        name: str,
        *actions: Action,
        timeout: Union[float, str, None] = None,
        on_error: Optional[Action] = None,
    ) -> Sequence:
        """A sequence with a name of its own: one step of a sequence that it is part of.

        `timeout`: for all of it together, the waiting included. `on_error`: gets the failed sequence's activation.
        """
        if not actions:
            raise FlowError(f"sequence({name!r}) has no steps: name the actions that it consists of")
        steps = tuple(step for action in actions for step in checked_action(action, "a step").steps())
        named = checked_name(name, "sequence")
        return self.define(Sequence(self, steps, named, timeout=timeout, on_error=on_error))

    def map(
        self,
        action: Optional[Action] = None,
        *,
        partial: bool = False,
        name: Optional[str] = None,
        timeout: Union[float, str, None] = None,
        on_error: Optional[Action] = None,
    ) -> Map:
        """Run one action per element of the previous result's `items`; the result is `{"items": […], "failed": […]}`.

        `partial`: the map succeeds even if some elements have failed. `timeout`: for all of it together.
        """
        if action is None:
            raise FlowError("map() of nothing: name the action that is run for each element")
        element = used(action, "what is mapped")
        return self.define(Map(self, element, partial, name, timeout=timeout, on_error=on_error))

    def on(self, pattern: Any = None, action: Optional[Action] = None, *, name: Optional[str] = None) -> None:
        """Start this action for every event that matches the pattern (or at every tick of a schedule).

        The rule is named after its action unless it is given a name.
        """
        if pattern is None or isinstance(pattern, (Action, FunctionType)):
            raise FlowError('on() needs a pattern first, such as on(files.written("/data/**/*.h5"), action)')
        _check_pattern(pattern)
        started = used(action, "what on() starts")
        rule = Rule(checked_name(name or started.name, "rule"), pattern, started)
        if rule.name in self.rules:
            where = self.rules[rule.name].where
            raise FlowError(f"rule '{rule.name}' exists already ({where}): give this one a name: on(…, name=…)")
        self.rules[rule.name] = rule

    def define(self, action: AnyAction) -> AnyAction:
        """Enter an action under its name; an anonymous sequence or map that is there already is enough."""
        checked_name(action.name, action.word)
        known = self.actions.setdefault(action.name, action)
        if known is not action and not same(known, action):
            raise FlowError(
                f"the name '{action.name}' is taken by a {known.word} ({known.where}): give one of them name=…"
            )
        return known  # type: ignore[return-value]  # of the same kind, or we would not be here


def _check_pattern(pattern: object, path: str = "") -> None:
    """Refuse what is not an object with lists as leaves: the commonest slip. The rest is the server's to check."""
    if not isinstance(pattern, dict) or not pattern:
        raise FlowError(f"{pattern!r} is not a pattern: write a dict, or make one by files.written(…) and its like")
    if isinstance(pattern, Schedule):
        return
    for key, value in pattern.items():
        if isinstance(value, dict):
            _check_pattern(value, f"{path}{key}.")
        elif not isinstance(value, list):
            raise FlowError(f"pattern at {path}{key}: {value!r} must be in a list of alternatives: [{value!r}]")

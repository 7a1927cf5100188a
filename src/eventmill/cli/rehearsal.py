"""What `eventmill test` does: a flow's rules and actions on one event, in this process, without a server.

Follows the engine's rules for results, maps, `on_error` and completion events; leaves out time limits, retries and
everything durable. The author's code runs here with the rights of whoever calls the command, and prints to stderr.
"""

from __future__ import annotations

import io
import os
import sys
import textwrap
import time
import traceback
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, BinaryIO, Literal, TextIO

import orjson

from eventmill.cli.deployment import named
from eventmill.config import Limits, PathMap
from eventmill.engine.completion import completion_event
from eventmill.engine.decide import element_params, error_of, items_of
from eventmill.entities import Activation, Category, State, Status
from eventmill.errors import InvalidInput
from eventmill.events import PathTable
from eventmill.rules import Pattern, explain, matches, parse
from eventmill.sdk import runtime
from eventmill.sdk.actions import Action, Coded, Function, Map, SubmitJob, Wrapped
from eventmill.sdk.actions import Sequence as Chain
from eventmill.sdk.errors import Fatal, Retry
from eventmill.sdk.event import PATHS_ENV
from eventmill.sdk.maps import results
from eventmill.sdk.pack import Entity, Flow

_NAMESPACE = "default"
_RESULT_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Step:
    """Something that has happened: a rule was compared with an event, or an action has run.

    `outcome`: `matched`, `no match`; `succeeded`, `failed`, `not run`. `level`: how deep in sequences and maps.
    """

    kind: Literal["rule", "action"]
    name: str
    outcome: str
    text: str = ""
    event: str = ""
    level: int = 0
    result: Any = None
    duration_ms: float | None = None

    @property
    def failed(self) -> bool:
        return self.outcome in ("failed", "not run")

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}

    def as_text(self) -> str:
        if self.kind == "rule":
            return (
                f"rule {self.name}: {self.outcome}" + (f" ({self.event})" if self.event else "") + _indented(self.text)
            )
        took = "" if self.duration_ms is None else f" in {self.duration_ms:.1f} ms"
        shown = "" if self.result is None else f"  {_shortened(self.result)}"
        return f"{'  ' * (self.level + 1)}{self.name}: {self.outcome}{took}{shown}" + (
            f"  {self.text}" if self.text else ""
        )


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    pattern: Pattern
    action: Action


@dataclass(frozen=True, slots=True)
class _End:
    """How an action ended."""

    ok: bool
    result: Any
    text: str = ""
    outcome: str = ""
    duration_ms: float | None = None
    logs: tuple[str, ...] = ()
    activation: str = ""


Steps = Generator[Step, None, _End]


class _Tee(io.TextIOBase):
    """What a function writes: passed on to our stderr, and kept as the lines of its logs."""

    def __init__(self, stream: str, passed_on: TextIO, lines: list[str]) -> None:
        self._stream = stream
        self._passed_on = passed_on
        self._lines = lines
        self._rest = ""

    def write(self, text: str) -> int:
        self._passed_on.write(text)
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self._lines.append(f"{datetime.now(UTC).isoformat()[:23]}Z {self._stream}: {line}")
        return len(text)

    def flush(self) -> None:
        self._passed_on.flush()

    def fileno(self) -> int:
        """For programs that the function starts: what they write is seen, and not kept."""
        return self._passed_on.fileno()

    @property
    def buffer(self) -> BinaryIO:
        return self._passed_on.buffer

    def end(self) -> None:
        """A last line that was not ended counts, too."""
        if self._rest:
            self.write("\n")


class Rehearsal:
    """One flow, and one event after the other: the one that is given, then the completions of what it started.

    `assumed`: results of actions (by name) that are not run. Raises InvalidInput if there is no such action.
    """

    def __init__(
        self, flow: Flow, entities: Iterable[Entity], assumed: Mapping[str, Any], paths: Sequence[PathMap]
    ) -> None:
        self._folder = str(flow.path.parent)
        self._actions = {action.path: action for action in flow.actions()}
        documents = {(collection, name): document for collection, name, document in entities}
        self._rules = _rules(documents, self._actions)
        self._packages = {n: named(d["parameters"]) for (c, n), d in documents.items() if c == "packages"}
        self._assumed = {self._path_of(name): result for name, result in assumed.items()}
        self._paths = PathTable(paths).environment()
        self._events: deque[tuple[Mapping[str, Any], int]] = deque()

    def run(self, event: Mapping[str, Any]) -> Iterator[Step]:
        """What happens, as it happens."""
        self._events.append((event, 0))
        while self._events:
            yield from self._take(*self._events.popleft())

    def _take(self, event: Mapping[str, Any], depth: int) -> Iterator[Step]:
        about = f"{event['type']} {event.get('subject', '')}" if depth else ""
        for rule in self._rules:
            matched = matches(rule.pattern, event)
            if matched and depth > Limits().depth:
                text = f"the loop guard: more than {Limits().depth} completions lie behind this event"
                yield Step("rule", rule.name, "failed", text, about)
            elif matched:
                yield Step("rule", rule.name, "matched", event=about)
                yield from self._run(rule.action, dict(event), 0, depth, rule.name)
            elif not depth:
                yield Step("rule", rule.name, "no match", _conditions(rule.pattern, event))

    def _run(self, action: Action, params: Any, level: int, depth: int, rule: str | None = None) -> Steps:
        """Run an action, and what an `on_error` names if it fails; tell what became of it."""
        id, start_ms, params = uuid.uuid4().hex, time.time_ns() // 1_000_000, self._given(action, params)
        if action.path in self._assumed:
            end = _checked(self._assumed[action.path], "as given by --result")
        elif isinstance(action, Chain):
            end = yield from self._run_sequence(action, params, level, depth)
        elif isinstance(action, Map):
            end = yield from self._run_map(action, params, level, depth)
        elif isinstance(action, Wrapped):
            end = self._call(action, params)
        else:
            what = "a submit description is not run" if isinstance(action, SubmitJob) else "a service is not called"
            hint = f"{what} here: give its result, --result '{action.name}={{…}}'"
            end = _End(False, None, hint, "not run")
        end = replace(end, activation=id)
        outcome = end.outcome or ("succeeded" if end.ok else "failed")
        yield Step("action", action.path, outcome, end.text, "", level, end.result, end.duration_ms)
        if end.outcome == "not run":
            return end
        row = Activation(
            id=id, namespace=_NAMESPACE, action=f"{_NAMESPACE}/{action.path}", revision=0, attempt=1, partition=0,
            category=Category.FUNCTION, state=State.SUCCEEDED if end.ok else State.FAILED, params=orjson.dumps(params),
            status=Status.SUCCESS if end.ok else Status.APPLICATION_ERROR, result=orjson.dumps(end.result), depth=depth,
            rule=rule and f"{_NAMESPACE}/{rule}", started=start_ms, ended=time.time_ns() // 1_000_000, logs=end.logs,
        )  # fmt: skip
        # the completion is the next event but those that wait already
        self._events.append((orjson.loads(completion_event(row, row.ended or 0)), depth + 1))
        if not end.ok and action.on_error is not None:
            yield from self._run(action.on_error, _failed_document(row), level, depth)
        return end

    def _given(self, action: Action, params: Any) -> Any:
        """The parameters with those that package and action bind below them."""
        if isinstance(action, Coded) and isinstance(params, dict):
            return {**self._packages[action.mill.name], **action.parameters, **params}
        return params

    def _run_sequence(self, action: Chain, params: Any, level: int, depth: int) -> Steps:
        end = _End(True, params)
        for component in action.components:
            end = yield from self._run(component, end.result, level + 1, depth)
            if not end.ok:
                break
        return _End(end.ok, end.result, outcome=end.outcome)

    def _run_map(self, action: Map, params: Any, level: int, depth: int) -> Steps:
        elements = items_of(orjson.dumps(params))
        if elements is None:
            return _failure("a map needs a list: parameters that are a list, or an object with a list `items`")
        if isinstance(elements, str):
            try:
                elements = list(results({"href": elements}))
            except (OSError, ValueError) as e:
                return _failure(f"{elements} can't be read: {e}")
        items, failed = [], []
        for index, element in enumerate(elements):
            end = yield from self._run(action.action, orjson.loads(element_params(element)), level + 1, depth)
            if end.ok:
                items.append(end.result)
            else:
                failed.append({"index": index, "activationId": end.activation, "error": _error_of(end.result)})
        result: dict[str, Any] = {"items": items, "failed": failed}
        if failed and not action.partial:
            result["error"] = f"{len(failed)} of {len(elements)} elements failed"
        return _checked(result)

    def _call(self, action: Wrapped, params: Any) -> _End:
        begin = time.perf_counter()
        lines: list[str] = []
        with self._surroundings(action, lines):
            end = _called(action, params)
        return replace(end, duration_ms=1000 * (time.perf_counter() - begin), logs=tuple(lines))

    @contextmanager
    def _surroundings(self, action: Wrapped, lines: list[str]) -> Iterator[None]:
        """Those of a function: modules beside the flow, paths, `init` parameters, and a stdout that isn't ours.

        What it writes is added to `lines`."""
        out, err = _Tee("stdout", sys.stderr, lines), _Tee("stderr", sys.stderr, lines)
        before = dict(os.environ)
        os.environ[PATHS_ENV] = self._paths
        init = action.init if isinstance(action, Function) else {}
        os.environ.update({k: v if isinstance(v, str) else orjson.dumps(v).decode() for k, v in init.items()})
        sys.path.insert(0, self._folder)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                yield
        finally:
            out.end()
            err.end()
            sys.path.remove(self._folder)
            os.environ.clear()
            os.environ.update(before)

    def _path_of(self, name: str) -> str:
        """An action by `name`, or by `package/name` where that is not clear."""
        paths = [path for path, action in self._actions.items() if name in (path, action.name)]
        if len(paths) != 1:
            known = ", ".join(sorted(self._actions))
            raise InvalidInput(f"--result {name}=…: " + ("write package/name" if paths else f"the flow has {known}"))
        return paths[0]


def _called(action: Wrapped, params: Any) -> _End:
    try:
        return _checked(orjson.loads(runtime.encoded(runtime.call(action.function, params), action.function)))
    except Retry as e:
        after = e.eventmill_retry_after
        return _failure(str(e), "wants another attempt" + ("" if after is None else f" after {after:g} s"))
    except Fatal as e:
        return _failure(str(e), "no attempt would help")
    except (Exception, SystemExit) as e:
        traceback.print_exception(type(e), e, runtime.authors_part(e, skip=1))
        return _failure(runtime.text_of(e))


def _failed_document(row: Activation) -> dict[str, Any]:
    """What an `on_error` action gets: the same as from the engine."""
    return {
        "activationId": row.id, "action": row.action, "rule": row.rule, "attempt": row.attempt,
        "start": row.started, "end": row.ended, "params": orjson.loads(row.params), "logs": list(row.logs),
        **error_of(row.result),
    }  # fmt: skip


def _conditions(pattern: Pattern, event: Mapping[str, Any]) -> str:
    """The conditions, one a line, each with what it met."""
    return textwrap.dedent(str(explain(pattern, event)).partition("\n")[2])


def _rules(documents: Mapping[tuple[str, str], Any], actions: Mapping[str, Action]) -> list[_Rule]:
    rules = []
    for (collection, name), rule in documents.items():
        if collection == "rules":
            trigger = documents["triggers", rule["trigger"].removeprefix("/_/")]
            pattern = parse(named(trigger["annotations"])["pattern"])
            rules.append(_Rule(name, pattern, actions[rule["action"].removeprefix("/_/")]))
    return rules


def _checked(result: Any, text: str = "") -> _End:
    """OpenWhisk's rule: a result with `error` is a failure."""
    return _End(not (isinstance(result, dict) and "error" in result), result, text)


def _failure(message: str, text: str = "") -> _End:
    return _End(False, {"error": message}, text)


def _error_of(result: Any) -> Any:
    return result.get("error") if isinstance(result, dict) else result


def _shortened(result: Any) -> str:
    text = orjson.dumps(result).decode()
    return text if len(text) <= _RESULT_CHARACTERS else f"{text[:_RESULT_CHARACTERS]}… ({len(text)} characters)"


def _indented(text: str) -> str:
    return "".join(f"\n    {line}" for line in text.splitlines())

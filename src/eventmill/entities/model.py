"""Actions, triggers, rules and activations as plain values. No I/O, no clock.

The JSON documents of packages, actions, triggers and rules are OpenWhisk's (design, section 7); these classes hold what
the engine and the executors need of them, ready to use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import Any

from eventmill.entities.states import State

Document = dict[str, Any]
"""An entity as OpenWhisk's JSON object."""


class Category(StrEnum):
    """Who runs an action: the function executor, the batch system, or the engine itself."""

    FUNCTION = "function"
    JOB = "job"
    SEQUENCE = "sequence"
    MAP = "map"
    CONDUCTOR = "conductor"
    """A function that says which action runs next. Its calls are steps of it, of category FUNCTION."""
    TRIGGER = "trigger"
    """Not an action: the record that a trigger was fired by hand."""

    @property
    def has_steps(self) -> bool:
        """It waits in no queue and runs nowhere: its steps do."""
        return self in (Category.SEQUENCE, Category.MAP, Category.CONDUCTOR)


_FALSE = (None, False, 0, "")
"""Values of an annotation that are as if it were not there, as OpenWhisk takes them: an empty list is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run of an action may use. `instances`: how many activations of it run at once (None: the server's)."""

    timeout_ms: int = 60_000
    memory_mb: int = 256
    logs_mb: int = 10
    instances: int | None = None


@dataclass(frozen=True, kw_only=True)
class Action:
    """One revision of an action: what an activation was recorded with stays what it runs.

    `kind`: `python:3.11` and its like, `job`, `sequence`, `map`.
    `code`: digest of the code in the store (functions: source text or base64 zip; jobs: base64 zip).
    `components`: qualified names of a sequence's actions, or a map's one action.
    """

    namespace: str
    name: str
    """With its package: `name` or `package/name`."""
    version: str
    revision: int
    kind: str
    code: str | None = None
    binary: bool = False
    main: str | None = None
    components: tuple[str, ...] = ()
    url: str = ""
    method: str = "POST"
    """Where, and how, an action of kind `http` is called."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Bound parameters, the package's included."""
    init_parameters: Mapping[str, Any] = field(default_factory=dict)
    """Those marked `init`: environment of the code, not part of the parameters."""
    annotations: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = Limits()
    published: bool = False
    """Whether other namespaces may read and call it: its package is published."""
    binding: str | None = None
    """Qualified name of the binding through which it was found, whose parameters it has, too."""

    @cached_property
    def gets_key(self) -> bool:
        """Whether its code is given a key for the API, which is good while its activation is under way."""
        return self.annotations.get("provide-api-key") is True

    @cached_property
    def qualified(self) -> str:
        """`namespace/[package/]name`."""
        return f"{self.namespace}/{self.name}"

    @cached_property
    def category(self) -> Category:
        match self.kind:
            case "job" | "sequence" | "map":
                return Category(self.kind)
            case _:
                is_conductor = self.annotations.get("conductor", False) not in _FALSE
                return Category.CONDUCTOR if is_conductor else Category.FUNCTION


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An active rule, joined with its trigger: what the engine needs to turn a match into an activation."""

    uid: str
    namespace: str
    name: str
    trigger: str
    action: str
    """Qualified name; its revision is looked up when a match is recorded."""
    pattern: Mapping[str, Any] | None
    """None: only fired by hand."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The trigger's parameters: defaults below the event's attributes."""
    payload: Mapping[str, Any] = field(default_factory=dict)
    """What a schedule's ticks carry, as OpenWhisk's alarms do: above the tick's own attributes."""


class Status(IntEnum):
    """OpenWhisk's outcome codes."""

    SUCCESS = 0
    APPLICATION_ERROR = 1
    DEVELOPER_ERROR = 2
    INTERNAL_ERROR = 3

    @property
    def text(self) -> str:
        return ("success", "application error", "action developer error", "whisk internal error")[self]


@dataclass(slots=True)
class MapState:
    """How far a map is: `spread` of `count` elements have an activation, `left` have not finished, `failed` failed.
    `component`: the revision that is run for each, pinned when the map began."""

    component: int
    count: int
    """Elements that are known: of a file, those that have been read."""
    spread: int
    left: int
    failed: int
    source: int | None = None
    """Where the next element begins in the file that the elements are in (bytes); None: there is no more in it."""
    again: int | None = None
    """A replay: failed elements from this one on are still to be tried again; None: none are."""

    @property
    def begun(self) -> bool:
        """All elements have an activation, and those that were to be tried again are."""
        return self.spread == self.count and self.source is None and self.again is None

    @property
    def over(self) -> bool:
        """All elements have ended: their results can be joined."""
        return self.begun and self.left == 0


@dataclass(slots=True, kw_only=True)
class Activation:
    """One run of one action for one cause (a row of the store). Times are epoch milliseconds."""

    id: str
    namespace: str
    action: str
    revision: int
    category: Category
    state: State
    partition: int
    """Row id of the partition that it belongs to."""
    params: bytes
    """JSON object (or array): the event, the predecessor's result, or a call's arguments."""
    attempt: int = 1
    """Number of the current attempt; grows with every retry and replay."""
    attempts_left: int = 0
    """How many more times a failure is retried."""
    interruptions: int = 0
    """How often a server died under it."""
    finishes: int = 0
    """How often it has finished: replays finish again."""
    cancelled: bool = False
    """Somebody has asked to end it."""
    created: int = 0
    due: int = 0
    """Not before this time (a retry's back-off); 0: at once."""
    started: int | None = None
    ended: int | None = None
    deadline: int | None = None
    """A chain that has not finished by then has failed."""
    handle: str | None = None
    """What the executor calls it (a job's schedd#cluster.proc)."""
    status: Status | None = None
    result: bytes | None = None
    logs: tuple[str, ...] = ()
    usage: Mapping[str, Any] | None = None
    """Attempt's facts from the executor: host, initTime in ms, exit code, memory, …; of a fired trigger its version."""
    rule: str | None = None
    """Qualified name of the rule; None: called by hand, or a step."""
    cause_source: str | None = None
    cause_id: str | None = None
    """The event that caused it."""
    parent: str | None = None
    """The chain's or map's activation of which this is a step."""
    index: int = 0
    """Its place in the parent: step of the sequence, element of the map."""
    depth: int = 0
    """How many completions lie between the first event and this one: the loop guard."""
    traceparent: str | None = None
    chain: bytes | None = None
    """A sequence's components, pinned as revisions when it began: a JSON list. A conductor's counts of its steps."""
    queue: str = ""
    """Whose turn it waits for: its action's, or its batch system's; "" for what waits for nobody."""
    transaction: str = ""
    """The request that it began with, also that of its chain; "" if an event did."""
    binding: str | None = None
    """Qualified name of the binding that it was called through, if it was."""
    seq: int = 0
    """Its place in the order of recording; 0 until it is recorded."""

    def copy(self) -> Activation:
        """Another one with the same values, in half the time that `dataclasses.replace` takes."""
        other = object.__new__(Activation)
        for name in Activation.__slots__:
            setattr(other, name, getattr(self, name))
        return other

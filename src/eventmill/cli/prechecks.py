"""What is wrong with a flow's documents, as far as that can be known before anything is sent: all of it, with lines.

The checks are those that the server makes of a body; what depends on what is there already is only known by trying.
Values in, messages out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from eventmill.cli.deployment import named
from eventmill.config import Limits, Pool
from eventmill.errors import EventmillError, InvalidInput, InvalidPattern
from eventmill.rules import parse
from eventmill.sdk.pack import Entity, Flow
from eventmill.sources import parse_schedule


@dataclass(frozen=True, slots=True)
class Server:
    """What a server bounds, and its pools."""

    limits: Limits
    pools: Mapping[str, Pool]


def where(flow: Flow, collection: str, name: str) -> str:
    """`flow.py:12`, where this entity was defined; the file alone for what it does not define (any more)."""
    package, _, own = name.removesuffix(".trigger").partition("." if collection in ("triggers", "rules") else "/")
    for mill in flow.mills:
        if mill.name == package and collection == "packages":
            return mill.where
        if mill.name == package and collection in ("triggers", "rules") and own in mill.rules:
            return mill.rules[own].where
    lines = {action.path: action.where for action in flow.actions()} if collection == "actions" else {}
    return lines.get(name, flow.path.name)


def in_patterns(flow: Flow, entities: Iterable[Entity]) -> Iterator[str]:
    """Patterns and schedules that can't be used, by the rule that they are for."""
    for collection, name, document in entities:
        if collection != "triggers":
            continue
        rule = name.removesuffix(".trigger").partition(".")[2]
        annotations = named(document["annotations"])
        try:
            parse(annotations["pattern"])
            if "schedule" in annotations:
                parse_schedule(rule, annotations["schedule"])
        except InvalidPattern as e:
            yield f"{where(flow, collection, name)}: rule '{rule}': {e}"
        except InvalidInput as e:
            reason = str(e).removeprefix(f"schedule '{rule}': ")
            yield f"{where(flow, collection, name)}: rule '{rule}': {reason}"


def in_documents(flow: Flow, entities: Iterable[Entity], namespace: str, server: Server) -> Iterator[str]:
    """Entities that this server would refuse whatever it has."""
    from eventmill.api.errors import Refusal

    for collection, name, document in entities:
        try:
            _check(collection, document, namespace, server)
        except (InvalidInput, Refusal) as e:
            yield f"{where(flow, collection, name)}: {collection.removesuffix('s')} '{name}': {_reason(e)}"


def _check(collection: str, document: dict[str, Any], namespace: str, server: Server) -> None:
    from eventmill.api import documents, jobs
    from eventmill.entities.kinds import PYTHON_ONLY

    limits = server.limits
    match collection:
        case "packages":
            documents.package_change(document, limits, namespace)
        case "actions":
            change = documents.action_change(document, limits, namespace, PYTHON_ONLY)
            if change["exec"]["kind"] == "job":
                annotations = named(document["annotations"])
                place = jobs.Place.of(annotations, server.pools, namespace)
                jobs.check(change["exec"]["code"], annotations, place, limits)
            documents.action(change, None, limits)
        case "triggers":
            documents.trigger_change(document, limits, partial(parse_schedule, "schedule"))
        case "rules":
            documents.rule_change(document, limits, namespace)


def _reason(error: EventmillError) -> str:
    return " ".join(str(error).split()).removeprefix("The request content was malformed: ")

"""The rules in memory, as of one generation of the store, and the actions that they lead to.

A transaction that finds the store at another generation brings the book up to date first, inside itself: what it
commits was matched against the rules that are in force at its commit (design: guarantee 8).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Set
from typing import Any

from eventmill.config import Limits
from eventmill.engine.completion import owner_of
from eventmill.engine.lint import Entity, description_alone
from eventmill.entities import Action, Rule
from eventmill.errors import InvalidEntity, InvalidPattern
from eventmill.rules import Index, explain, parse
from eventmill.store import COLLECTIONS, Change, Stored, Tx

_log = logging.getLogger(__name__)

_REVISIONS_KEPT = 4096
"""Pinned revisions of actions in memory; the others are read again."""


class RuleBook:
    """Used on the event loop alone. `match` answers from memory; all else reads through the given transaction."""

    def __init__(self) -> None:
        self._generation = -1
        self._index: Index[str] = Index()
        self._rules: dict[str, Rule] = {}
        self._uids: dict[str, str] = {}
        """uid of each rule that is in the index, by qualified name."""
        self._actions: dict[str, Action | None] = {}
        self._revisions: dict[tuple[int, str], Action] = {}
        """By revision, and the name that it was asked for by."""

    def __len__(self) -> int:
        return len(self._rules)

    def __contains__(self, uid: object) -> bool:
        return uid in self._rules

    def keyless(self) -> list[Rule]:
        """Rules that no required key of the event selects: each costs every event a little."""
        return [self._rules[uid] for uid in self._index.keyless()]

    def rules(self) -> list[Rule]:
        return list(self._rules.values())

    def match(self, fields: Mapping[str, Any]) -> list[Rule]:
        """The active rules whose pattern matches these fields of an event, and whom it is for."""
        rules = [self._rules[uid] for uid in self._index.match(fields)]
        if not rules or (owner := owner_of(fields)) is None:
            return rules
        return [rule for rule in rules if rule.namespace == owner]

    def types(self) -> Set[str] | None:
        """All types of events that an active rule can match; None: any."""
        return self._index.types

    def admit(self, pattern: Mapping[str, Any], uids: Collection[str], namespace: str, limits: Limits) -> None:
        """Check a pattern before a namespace's rules with these uids are stored with it (new ones, or ones that have
        another). Raises InvalidPattern, or InvalidEntity, which says which limit is reached."""
        parsed = parse(pattern, pattern_bytes=limits.pattern_bytes, or_alternatives=limits.or_alternatives)
        if len(self) + sum(uid not in self for uid in uids) > limits.rules:
            raise InvalidEntity(f"there are {limits.rules} active rules already, the most allowed (limits.rules)")
        alone: Index[int] = Index()
        alone.add(0, parsed)
        if alone.keyless():
            self._admit_keyless(set(uids), namespace, limits)

    def _admit_keyless(self, uids: set[str], namespace: str, limits: Limits) -> None:
        keyless = self.keyless()
        own = {rule.uid for rule in keyless if rule.namespace == namespace}
        if len({rule.uid for rule in keyless} | uids) > limits.keyless_rules:
            reached = f"there are {limits.keyless_rules} such rules already (limits.keyless_rules)"
        elif len(own | uids) > limits.keyless_rules_per_namespace:
            most = limits.keyless_rules_per_namespace
            reached = f"{namespace} has {most} such rules already (limits.keyless_rules_per_namespace)"
        else:
            return
        raise InvalidEntity(
            "the pattern has no key that selects events (an exact value, a prefix, a suffix, a literal part of a"
            f" path), and {reached}"
        )

    def explain(self, event: Mapping[str, Any], namespace: str | None = None) -> list[tuple[str, bool, str]]:
        """(rule, matched, why) of every active rule, of one namespace or all."""
        found = []
        owner = owner_of(event)
        for rule in self.rules():
            if namespace in (None, rule.namespace) and rule.pattern is not None:
                explanation = explain(parse(rule.pattern), event)
                matched, why = explanation.matched, str(explanation)
                if matched and owner not in (None, rule.namespace):
                    matched, why = False, f"source: the event is for the rules of namespace {owner} alone"
                found.append((f"{rule.namespace}/{rule.name}", matched, why))
        return found

    def catch_up(self, tx: Tx) -> bool:
        """Bring the book to the store's generation; True if anything had changed."""
        generation = tx.entities.generation()
        if generation == self._generation:
            return False
        self._actions.clear()
        self._revisions.clear()  # their packages' parameters may have changed
        changes = tx.entities.changes(self._generation) if self._generation >= 0 else None
        if changes is None:
            self._reload(tx)
        else:
            for change in changes:
                self._apply(tx, change)
        self._generation = generation
        return True

    def action(self, tx: Tx, qualified: str, caller: str) -> Action | None:
        """The action as it is now; None if there is none of this name that the namespace `caller` may run."""
        if "/" not in qualified:
            return None
        if qualified not in self._actions:
            action = self._actions[qualified] = tx.entities.action(qualified)
            if action is not None:
                self._remember(action, qualified)
        action = self._actions[qualified]
        return action if action is not None and _may_run(action, qualified, caller) else None

    def revision(self, tx: Tx, revision: int, named: str = "") -> Action:
        """The action as it was when an activation was recorded with it. `named`: a name that it was found by, which may
        be that of a binding, whose parameters it then has."""
        action = self._revisions.get((revision, named))
        if action is None:
            action = tx.entities.revision(revision, named or None)
            self._remember(action, named)
        return action

    def _remember(self, action: Action, named: str) -> None:
        if len(self._revisions) >= _REVISIONS_KEPT:
            self._revisions.clear()
        self._revisions[action.revision, named] = action
        if action.binding is None:
            self._revisions[action.revision, ""] = action

    # keeping up

    def _reload(self, tx: Tx) -> None:
        self._index, self._rules, self._uids = Index(), {}, {}
        triggers = {f"{t.namespace}/{t.name}": t for t in tx.entities.triggers()}
        for stored in tx.entities.rules():
            self._put(stored, triggers.get(stored.document["trigger"]))

    def _apply(self, tx: Tx, change: Change) -> None:
        qualified = f"{change.namespace}/{change.name}"
        if change.collection == "rules":
            self._drop(qualified)
            stored = tx.entities.get(change.namespace, change.name)
            if stored is not None and stored.collection == "rules":
                self._put(stored, _trigger(tx, stored.document["trigger"]))
        elif change.collection == "triggers":
            trigger = _trigger(tx, qualified)
            for stored in tx.entities.rules_of(qualified):
                self._drop(f"{stored.namespace}/{stored.name}")
                self._put(stored, trigger)

    def _drop(self, qualified: str) -> None:
        uid = self._uids.pop(qualified, None)
        if uid is not None:
            self._index.remove(uid)
            del self._rules[uid]

    def _put(self, stored: Stored, trigger: Stored | None) -> None:
        """Take in a rule if it is active and its trigger has a pattern."""
        if trigger is None or stored.document.get("status") != "active":
            return
        rule = to_rule(stored, trigger)
        if rule.pattern is None:
            return
        try:
            self._index.add(rule.uid, parse(rule.pattern))
        except InvalidPattern:
            # refused when it is deployed; a store from a version that took it must not stop the server
            _log.exception("rule %s/%s is left out", rule.namespace, rule.name)
            return
        self._rules[rule.uid] = rule
        self._uids[f"{rule.namespace}/{rule.name}"] = rule.uid


def documents(tx: Tx, namespace: str) -> list[Entity]:
    """All entities of a namespace, jobs with an archive of their description alone: all that they have may be much."""
    found: list[Entity] = []
    for collection in COLLECTIONS:
        for stored in tx.entities.listing(collection, namespace):
            document = stored.document
            if document.get("exec", {}).get("kind") == "job":
                code = description_alone(tx.entities.code(document["exec"]["code"]).decode())
                document = {**document, "exec": {**document["exec"], "code": code}}
            found.append((collection, stored.name, document))
    return found


def _may_run(action: Action, named: str, caller: str) -> bool:
    """A namespace runs its own actions and published ones; through bindings of its own alone."""
    by_own_name = action.qualified == named
    return (named.startswith(caller + "/") or by_own_name) and (action.published or action.namespace == caller)


def to_rule(stored: Stored, trigger: Stored) -> Rule:
    """A rule's document joined with its trigger's."""
    annotations = {a["key"]: a["value"] for a in trigger.document.get("annotations", [])}
    return Rule(
        uid=stored.uid,
        namespace=stored.namespace,
        name=stored.name,
        trigger=stored.document["trigger"],
        action=stored.document["action"],
        pattern=annotations.get("pattern"),
        parameters={p["key"]: p["value"] for p in trigger.document.get("parameters", [])},
        payload=annotations.get("schedule", {}).get("payload", {}),
    )


def _trigger(tx: Tx, qualified: str) -> Stored | None:
    namespace, name = qualified.split("/", 1)
    stored = tx.entities.get(namespace, name)
    return stored if stored is not None and stored.collection == "triggers" else None

"""`/whisk.system/alarms`: feeds that make a trigger fire at times, like OpenWhisk's package; the server does it itself.

Life-cycle calls (CREATE, READ, UPDATE, DELETE) of whoever owns the trigger become its annotation `schedule`, and the
pattern of that schedule's ticks: what fires it is the same as for any schedule. A call changes nothing but the trigger,
in one transaction; repeating it is harmless. `authKey` is neither needed nor kept. On the event loop only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from eventmill.api import documents
from eventmill.api.lookup import SYSTEM, check_schedules, now_ms
from eventmill.api.services import Services
from eventmill.engine import Engine
from eventmill.entities import Activation, Document, Status
from eventmill.errors import InvalidEntity, InvalidSchedule
from eventmill.sdk.patterns import ticks_of
from eventmill.store import Stored, Tx

PACKAGE = f"{SYSTEM}/alarms/"
_SECRET = "authKey"
_FIRST_MS = 30_000
"""An interval without a start begins so much later, as OpenWhisk's does."""
_OWN = ("schedule", "pattern")


class _Wrong(Exception):
    """What the caller is told as `{"error": …}`."""


class Alarms:
    """Does what is asked of the feeds, and records it as their activations."""

    def __init__(self, services: Services) -> None:
        self._store = services.store
        self._engine: Engine = services.engine
        self._check = services.check_schedule
        self._limits = services.settings.limits

    @staticmethod
    def serves(action: str) -> bool:
        """Whether this action (qualified name) is one of the feeds."""
        return action.startswith(PACKAGE)

    async def call(self, action: str, caller: str, parameters: Mapping[str, Any]) -> Activation:
        """The call's activation, which has ended. Raises Throttled or Unavailable, and has done nothing then, if the
        caller may not have one more activation."""
        await self._engine.check_room(caller)
        started_ms = now_ms()
        known = {name: value for name, value in parameters.items() if name != _SECRET}
        try:
            result = await self._act(action.removeprefix(PACKAGE), caller, known)
            status = Status.SUCCESS
        except _Wrong as e:
            result, status = {"error": str(e)}, Status.APPLICATION_ERROR
        return await self._engine.record(action, caller, known, status, result, started_ms=started_ms)

    async def _act(self, feed: str, caller: str, parameters: Mapping[str, Any]) -> Document:
        name = _trigger_name(parameters, caller)
        match parameters.get("lifecycleEvent"):
            case "CREATE":
                return await self._change(caller, name, lambda before: self._made(feed, parameters))
            case "UPDATE":
                return await self._change(caller, name, lambda before: self._updated(feed, parameters, before))
            case "DELETE":
                return await self._change(caller, name, lambda before: None)
            case "READ":
                return _shown(await self._store.read(lambda tx: _alarm(tx, caller, name)))
            case _:
                raise _Wrong("unsupported lifecycleEvent")

    async def _change(self, caller: str, name: str, change: Callable[[Document], Document | None]) -> Document:
        """Give the trigger another schedule, or (None) none any more; one that is gone needs none."""

        def work(tx: Tx) -> None:
            trigger = tx.entities.get(caller, name)
            if trigger is None or trigger.collection != "triggers":
                if change({}) is not None:
                    raise _missing(name)
                return
            annotations = documents.values(trigger.document["annotations"])
            schedule = change(annotations.get("schedule", {}))
            if "schedule" not in annotations:
                if schedule is None:
                    return
                if "pattern" in annotations:
                    raise _Wrong("the trigger has a pattern of its own, which an alarm would replace")
            document = _with(trigger, schedule)
            if schedule is not None:
                self._admit(tx, trigger, document)
            tx.entities.put("triggers", caller, name, trigger.uid, document, now_ms())

        await self._store.transact(work, durable=True)
        return {"status": "success"}

    def _admit(self, tx: Tx, trigger: Stored, document: Document) -> None:
        """The namespace may have one more schedule, and the engine must be able to take the active rules in, which have
        a pattern now."""
        rules = tx.entities.rules_of(f"{trigger.namespace}/{trigger.name}")
        active = [rule.uid for rule in rules if rule.document["status"] == "active"]
        try:
            check_schedules(tx, trigger.namespace, document, trigger.document, self._limits)
            self._engine.admit(documents.values(document["annotations"])["pattern"], active, trigger.namespace)
        except InvalidEntity as e:
            raise _Wrong(str(e)) from e

    def _made(self, feed: str, parameters: Mapping[str, Any]) -> Document:
        schedule = _rhythm(feed, parameters)
        if schedule is None:
            raise _Wrong(_LACKS[feed])
        if feed != "once":
            schedule |= _bounds(parameters)
        if feed == "interval":
            schedule.setdefault("start", now_ms() + _FIRST_MS)
        return self._checked({**schedule, "payload": _payload(parameters)}, parameters)

    def _updated(self, feed: str, parameters: Mapping[str, Any], before: Document) -> Document:
        if not before:
            raise _Wrong(_NO_ALARM)
        changed = {**(_rhythm(feed, parameters) or {}), **({} if feed == "once" else _bounds(parameters))}
        if parameters.get("trigger_payload"):
            changed["payload"] = _payload(parameters)
        if not changed:
            raise _Wrong("no updatable parameters were specified")
        return self._checked({**before, **changed}, parameters)

    def _checked(self, schedule: Document, parameters: Mapping[str, Any]) -> Document:
        try:
            self._check(schedule)
        except InvalidSchedule as e:
            if e.field == "cron":
                raise _Wrong(f"cron pattern '{parameters.get('cron')}' is not valid") from e
            raise _Wrong(e.reason) from e
        return schedule


_LACKS = {
    "alarm": "alarms trigger feed is missing the cron parameter",
    "interval": "interval trigger feed is missing the minutes parameter",
    "once": "alarms once trigger feed is missing the date parameter",
}
_NO_ALARM = "the trigger has no alarm"


def _missing(name: str) -> _Wrong:
    return _Wrong(f"there is no trigger /_/{name}")


def _trigger_name(parameters: Mapping[str, Any], caller: str) -> str:
    """The trigger's name: `t`, `/_/t`, or with the caller's namespace."""
    given = parameters.get("triggerName")
    if not isinstance(given, str) or not given:
        raise _Wrong("no trigger name parameter was provided")
    namespace, _, name = given[1:].partition("/") if given.startswith("/") else ("_", "", given)
    if namespace not in ("_", caller):
        raise _Wrong("Trigger authentication request failed.")
    return name


def _rhythm(feed: str, parameters: Mapping[str, Any]) -> Document | None:
    """What of a schedule says how often; None if it isn't said."""
    if str(parameters.get("deleteAfterFire", "false")).strip().lower() != "false":
        raise _Wrong("deleteAfterFire is not supported: the trigger stays, and does not fire any more")
    if feed == "once":
        return {"at": _date(parameters, "date")} if parameters.get("date") else None
    if feed == "interval":
        given = parameters.get("minutes")
        return {"every_s": 60 * _minutes(given)} if given not in (None, "") else None
    if not parameters.get("cron"):
        return None
    zone = parameters.get("timezone")
    return {"cron": parameters["cron"], **({"timezone": zone} if zone else {})}


def _minutes(given: Any) -> int:
    try:
        minutes = int(given)
        exact = minutes == float(given) and not isinstance(given, bool)
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact:
        raise _Wrong("the minutes parameter must be an integer")
    if minutes <= 0:
        raise _Wrong("minutes must be at least 1")
    return minutes


def _bounds(parameters: Mapping[str, Any]) -> Document:
    given = {"start": "startDate", "stop": "stopDate"}
    return {key: _date(parameters, name) for key, name in given.items() if parameters.get(name)}


def _date(parameters: Mapping[str, Any], name: str) -> int | str:
    """A time that is still to come: epoch ms or ISO 8601, in UTC unless it says otherwise."""
    given = parameters[name]
    try:
        moment = datetime.fromisoformat(given) if isinstance(given, str) else datetime.fromtimestamp(given / 1000, UTC)
    except (ValueError, TypeError, OverflowError, OSError):
        raise _Wrong(f"{name} parameter '{str(given)[:100]}' is not a valid Date") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if moment.timestamp() <= time.time():
        raise _Wrong(f"{name} parameter '{given}' must be in the future")
    return given if isinstance(given, int) else moment.isoformat().replace("+00:00", "Z")


def _payload(parameters: Mapping[str, Any]) -> Document:
    given = parameters.get("trigger_payload") or {}
    if isinstance(given, str):
        return {"payload": given}
    if not isinstance(given, dict):
        raise _Wrong("trigger_payload must be an object or a text")
    return given


def _with(trigger: Stored, schedule: Document | None) -> Document:
    """The trigger's document with this schedule in place of what it had."""
    kept = [pair for pair in trigger.document["annotations"] if pair["key"] not in _OWN]
    if schedule is not None:
        pattern = ticks_of(f"{trigger.namespace}/{trigger.name}")
        kept += [{"key": "schedule", "value": schedule}, {"key": "pattern", "value": pattern}]
    return {**trigger.document, "annotations": kept}


def _alarm(tx: Tx, caller: str, name: str) -> Stored:
    trigger = tx.entities.get(caller, name)
    if trigger is None or trigger.collection != "triggers":
        raise _missing(name)
    if "schedule" not in documents.values(trigger.document["annotations"]):
        raise _Wrong(_NO_ALARM)
    return trigger


def _shown(trigger: Stored) -> Document:
    """What READ answers."""
    schedule: Document = documents.values(trigger.document["annotations"])["schedule"]
    config = {"name": trigger.name, "namespace": trigger.namespace, "payload": schedule.get("payload", {})}
    names = {"cron": "cron", "timezone": "timezone", "at": "date", "start": "startDate", "stop": "stopDate"}
    config |= {shown: schedule[key] for key, shown in names.items() if key in schedule}
    if "every_s" in schedule:
        config["minutes"] = schedule["every_s"] / 60
    if "at" in schedule:
        config["deleteAfterFire"] = "false"
    ends = schedule.get("at", schedule.get("stop"))
    changed = datetime.fromtimestamp(trigger.updated / 1000, UTC)
    status = {
        "active": ends is None or _epoch_ms(ends) > now_ms(),
        "dateChanged": trigger.updated,
        "dateChangedISO": changed.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return {"config": config, "status": status}


def _epoch_ms(moment: int | str) -> float:
    return moment if isinstance(moment, int) else datetime.fromisoformat(moment).timestamp() * 1000

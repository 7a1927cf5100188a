"""`date`, the time at which a message was made, in all forms that dCache has written.

Today ISO 8601 with an offset, in the zone of whichever JVM wrote it: two copies of one message may differ in the text,
and only instants can be compared. Before 5.0 `Mon Oct 01 13:49:00 CEST 2018`, whose abbreviation of the zone may stand
for several: then the instant is not known, and nothing is guessed. Functions of values.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

_ISO = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?"
    r"(?:Z|[+-][0-9]{2}:[0-9]{2}(?::[0-9]{2})?)"
)
_OLD = re.compile(r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) ([0-9]{2}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) (\S{1,20}) ([0-9]{4})")
_OFFSET = re.compile(r"(?:GMT|UTC)([+-])([0-9]{2}):([0-9]{2})")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

ZONES: Final = {
    "UTC": 0, "GMT": 0, "Z": 0,
    "WET": 0, "WEST": 60, "CET": 60, "CEST": 120, "MET": 60, "MEST": 120, "EET": 120, "EEST": 180, "MSK": 180,
    "EST": -300, "EDT": -240, "MST": -420, "MDT": -360, "PST": -480, "PDT": -420,
    "JST": 540, "KST": 540, "HKT": 480, "AEST": 600, "AEDT": 660, "NZST": 720, "NZDT": 780,
}  # fmt: skip
"""Minutes east of Greenwich for the abbreviations that meant one zone alone when dCache wrote them (2018). Not among
them: CST (Chicago, Shanghai, Havana), IST (Kolkata, Jerusalem, Dublin), BST, AST and all that nobody has met."""


def instant(date: str) -> datetime | None:
    """The date in UTC; None if its zone is not known. Raises ValueError for a time that can't be."""
    try:
        moment = datetime.fromisoformat(date) if _ISO.fullmatch(date) else _old(date)
        return None if moment is None else moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("it is outside the years 1 to 9999 in UTC") from None


def microseconds(moment: datetime) -> int:
    """Since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def timestamp(moment: datetime) -> str:
    """RFC 3339 for a time in UTC: with milliseconds, or with as much as there is."""
    text = moment.isoformat(timespec="microseconds" if moment.microsecond % 1000 else "milliseconds")
    return text.removesuffix("+00:00") + "Z"


def _old(date: str) -> datetime | None:
    match = _OLD.fullmatch(date)
    if match is None or match[1] not in _MONTHS:
        raise ValueError("it has neither the form 2018-10-01T13:50:30.008+02:00 nor Mon Oct 01 13:49:00 CEST 2018")
    day, hour, minute, second, year = (int(match[i]) for i in (2, 3, 4, 5, 7))
    local = datetime(year, _MONTHS.index(match[1]) + 1, day, hour, minute, second)
    offset = _offset_minutes(match[6])
    return None if offset is None else local.replace(tzinfo=timezone(timedelta(minutes=offset)))


def _offset_minutes(zone: str) -> int | None:
    match = _OFFSET.fullmatch(zone)
    if match is None:
        return ZONES.get(zone)
    minutes = int(match[2]) * 60 + int(match[3])
    return -minutes if match[1] == "-" else minutes

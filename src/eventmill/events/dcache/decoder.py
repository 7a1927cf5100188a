"""The decoder of dCache's billing topic: from one record to at most one event.

Owns the order of things: what every record goes through (`fields`), and what only those do that match (`event`). What
`fields` gives has the values that the event will have, personal data taken out, and lacks only `id` and `time`; so
nobody can find by a pattern what the event would not show him. A record is changed where it is, never copied.

Concurrency: one thread, which owns the count of records that made no event, the only state.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import quote

from eventmill.errors import InvalidConfig, InvalidEvent
from eventmill.events.codec import check_depth
from eventmill.events.dcache import dates
from eventmill.events.dcache.kinds import (
    KINDS,
    UPLOADED,
    WRITTEN,
    NoEvent,
    Record,
    status_code,
    unknown_kind,
    user_path,
)
from eventmill.events.dcache.personal import Personal, cleaner
from eventmill.events.dcache.storage import storage
from eventmill.events.decoders import TOMBSTONE, DecodeError, Ignored, parsed
from eventmill.events.digest import digest
from eventmill.events.paths import PathTable
from eventmill.events.validation import is_clean
from eventmill.sdk.event import Event

_IN_A_SOURCE: Final = "/~!$&'()*+,;=:@"
"""Characters of an instance's name that its source shows as they are."""


class DcacheDecoder:
    """Events of one `instance` of dCache, whose name is part of their source and of their ids.

    `paths` maps what dCache calls a file to the subject. `personal`: what is about a person is dropped, replaced by
    pseudonyms (made with `personal_key`, if there is one), or kept. `srm`: what says that a file is there that was
    written through SRM: its door's `request`, or, where that door tells nothing (before 2024), already the pool's
    `transfer`.

    Raises InvalidConfig if the instance has no proper name.
    """

    def __init__(
        self,
        instance: str,
        *,
        paths: PathTable,
        personal: Personal = "drop",
        personal_key: bytes = b"",
        srm: Literal["request", "transfer"] = "request",
    ) -> None:
        if not instance or not is_clean(instance):
            raise InvalidConfig("an instance of dCache needs a name, without control characters")
        self.ignored = Ignored()
        self._instance = instance
        self._source = f"//dcache/{quote(instance, safe=_IN_A_SOURCE)}"
        self._subject_of = paths.from_source
        self._clean = cleaner(personal, instance, personal_key)
        self._uploaded = WRITTEN if srm == "transfer" else UPLOADED

    def fields(self, raw: bytes, types: Set[str] | None = None) -> Mapping[str, Any] | None:
        """The event without `id` and `time`; None for a record that makes none, which is counted, and for one that
        nobody waits for."""
        record = _record(raw)
        if record is None:
            self.ignored.count(TOMBSTONE)
            return None
        kind = KINDS.get(record["msgType"], unknown_kind)(record)
        if isinstance(kind, NoEvent):
            self.ignored.count(kind)
            return None
        type = self._uploaded if kind is UPLOADED else kind
        if types is not None and type not in types:
            return None
        self._clean(record)
        info = record.get("storageInfo")
        if isinstance(info, str):
            _, storage_class, hsm_type = storage(info)
            if storage_class is not None:
                record["storageClass"], record["hsmType"] = storage_class, hsm_type
        path, pnfsid = record.get("billingPath"), record.get("pnfsid")
        if path.__class__ is not str or path[:1] != "/":
            path = user_path(record)
        fields = {
            "specversion": "1.0",
            "source": self._source,
            "type": type,
            "subject": None if path is None else self._subject_of(path),
            "partitionkey": pnfsid,
            "datacontenttype": "application/json",
            "data": record,
        }
        if path is None:
            del fields["subject"]
        if not (pnfsid and isinstance(pnfsid, str)):
            del fields["partitionkey"]
        return fields

    def event(self, fields: Mapping[str, Any]) -> Event:
        """The event. Raises DecodeError for an impossible time, and for a name that no event can carry."""
        record = fields["data"]
        for name in ("subject", "partitionkey"):
            if not is_clean(fields.get(name, "")):
                raise DecodeError(f"the {_FIELDS[name]} has control characters, which no event can carry")
        try:
            check_depth(record)
        except InvalidEvent as e:
            raise DecodeError(str(e)) from None
        moment = _moment(record["date"])
        event = Event(specversion="1.0", id=self._id(fields["type"], record, moment))
        if moment is not None:
            event["time"] = dates.timestamp(moment)
        event.update(fields)
        return event

    def _id(self, type: str, record: Record, moment: datetime | None) -> str:
        """The same for all that say the same: two producers, the billing copy, a POSC upload and its `putDone`.

        A file is written once, whoever tells of it; all else is one message, told in whatever time zone.
        """
        pnfsid = _text(record.get("pnfsid"))
        if type == WRITTEN and pnfsid:
            return digest(self._instance, "written", pnfsid, _text(record.get("size")))
        return digest(
            self._instance,
            record["msgType"],
            _text(record.get("cellName")),
            _text(record.get("session")) or _text(record.get("transaction")),
            record["date"] if moment is None else dates.microseconds(moment),
            pnfsid or _text(record.get("billingPath")),
            _text(status_code(record)),
        )


_FIELDS: Final = {"subject": "billingPath", "partitionkey": "pnfsid"}


def _record(raw: bytes) -> Record | None:
    """The record, with its `size`, under whichever name it was sent; doors send 0 for what they don't know.

    None for one without a value. Raises DecodeError.
    """
    record = parsed(raw)
    if record is None:
        return None
    message_type, date = record.get("msgType"), record.get("date")
    if not isinstance(message_type, str) or not message_type:
        raise DecodeError("no msgType")
    if not isinstance(date, str) or not date:
        raise DecodeError("no date")
    size = record.get("fileSize")
    if size is None:
        size = record.get("filesize")
    if size.__class__ is int:
        if size < 0:
            raise DecodeError(f"a negative fileSize: {size}")
        record["size"] = size
    elif size is not None:
        raise DecodeError("fileSize is not a whole number of bytes")
    return record


def _moment(date: str) -> datetime | None:
    """Raises DecodeError."""
    try:
        return dates.instant(date)
    except ValueError as e:
        raise DecodeError(f"an impossible date {date[:40]!r}: {e}") from None


def _text(value: Any) -> str:
    """A field as part of an id; what is no text or number counts as missing."""
    return value if isinstance(value, str) else str(value) if value.__class__ is int else ""

"""The table: which event a record of dCache's is.

A record for which the table has no row makes no event, whatever is missing in it or of an unexpected kind: that is for
the caller to count, not an error. Looks at one record alone: those of door and pool about one transfer lie on different
partitions. Must never change a record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

Record = dict[str, Any]
"""One message, as decoded from JSON."""

WRITTEN: Final = "org.dcache.file.written"
UPLOADED: Final = "org.dcache.file.uploaded"
READ: Final = "org.dcache.file.read"
TRANSFER_FAILED: Final = "org.dcache.transfer.failed"
REMOVED: Final = "org.dcache.file.removed"
REPLICA_REMOVED: Final = "org.dcache.replica.removed"
STORED: Final = "org.dcache.file.stored"
STORE_FAILED: Final = "org.dcache.store.failed"
RESTORED: Final = "org.dcache.file.restored"
RESTORE_FAILED: Final = "org.dcache.restore.failed"
HIT: Final = "org.dcache.file.hit"
WARNING: Final = "org.dcache.warning"
REQUEST: Final = "org.dcache.request"

_MESSAGE_TYPE_CHARACTERS_MAX: Final = 40
_UNKNOWN_PATHS: Final = frozenset(("", "Unknown", "N/A"))


class NoEvent(str):
    """Instead of a type: why a record makes no event, in a few words that it can be counted under."""

    __slots__ = ()


BETWEEN_POOLS: Final = NoEvent("transfer (between pools)")
UNCLEAR_TRANSFER: Final = NoEvent("transfer (neither read nor written by a pool)")
UNENDED_TRANSFER: Final = NoEvent("transfer (no status)")
UNCLEAR_REMOVE: Final = NoEvent("remove (by neither door nor pool)")
UNENDED_STORE: Final = NoEvent("store (no status)")
UNENDED_RESTORE: Final = NoEvent("restore (no status)")
CHECK: Final = NoEvent("check")


def user_path(record: Record) -> str | None:
    """The path as users know it, if the record has one: NFS says where a file was by the id of its directory alone."""
    path = record.get("billingPath")
    if path.__class__ is not str or (path[:1] != "/" and _is_unknown(path)):
        return None
    return path


def _is_unknown(path: str) -> bool:
    return path in _UNKNOWN_PATHS or path.startswith("parent:[")


def status_code(record: Record) -> int | None:
    """0 for success. None if the record does not say."""
    status = record.get("status")
    code = status.get("code") if status.__class__ is dict else None
    return code if code.__class__ is int else None


def _transfer(record: Record) -> str:
    get = record.get
    if get("isP2p") is True:
        return BETWEEN_POOLS
    status = get("status")
    if status.__class__ is not dict or status.get("code") != 0:
        return UNENDED_TRANSFER if status_code(record) is None else TRANSFER_FAILED
    direction = get("isWrite")
    if direction == "read":
        return READ
    if direction != "write" or get("cellType") != "pool":
        return UNCLEAR_TRANSFER
    path = get("transferPath")
    if path.__class__ is str and path == get("billingPath"):
        return WRITTEN
    return _written_elsewhere(record)


def _written_elsewhere(record: Record) -> str:
    """The two paths of a written file differ: SRM writes elsewhere, and moves the file later (`putDone`).

    So does XRootD when it persists on success only; but then the pool has the commit behind it, and no record follows.
    """
    path, protocol = record.get("transferPath"), record.get("protocolInfo")
    if not isinstance(path, str) or _is_unknown(path) or user_path(record) is None:
        return WRITTEN
    return WRITTEN if isinstance(protocol, dict) and protocol.get("protocol") == "Xrootd" else UPLOADED


def _request(record: Record) -> str:
    """A request proves nothing, but for SRM's `putDone`: now the uploaded file is there."""
    session = record.get("session")
    if session.__class__ is str and ":srm2:prepareToPut:" in session and record.get("pnfsid"):
        return WRITTEN if status_code(record) == 0 else REQUEST
    return REQUEST


def _remove(record: Record) -> str:
    """Two shapes under one name: a user's delete, told by the door; a pool's replica, which may have been only a
    cached one."""
    cell_type = record.get("cellType")
    if cell_type == "door":
        return REMOVED
    return REPLICA_REMOVED if cell_type == "pool" else UNCLEAR_REMOVE


def _store(record: Record) -> str:
    code = status_code(record)
    return UNENDED_STORE if code is None else STORE_FAILED if code else STORED


def _restore(record: Record) -> str:
    code = status_code(record)
    return UNENDED_RESTORE if code is None else RESTORE_FAILED if code else RESTORED


def unknown_kind(record: Record) -> str:
    """For a `msgType` that is not in `KINDS`."""
    return NoEvent(f"unknown msgType {record['msgType'][:_MESSAGE_TYPE_CHARACTERS_MAX]!r}")


KINDS: Final[dict[str, Callable[[Record], str]]] = {
    "transfer": _transfer,
    "request": _request,
    "remove": _remove,
    "store": _store,
    "restore": _restore,
    "hit": lambda record: HIT,
    "warning": lambda record: WARNING,
    "check": lambda record: CHECK,
}
"""By `msgType`: the type of a record's event, or a NoEvent. A file that is not at its path yet is `UPLOADED`."""

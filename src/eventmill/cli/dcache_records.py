"""Records as dCache writes them, to the field: what doors, pools and the pool manager say about one file.

Plain functions of who, what and when; nothing is random here. Times are milliseconds since 1970, sizes bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

Record = dict[str, Any]

OK: Final = (0, "")
"""Status of a success: code and message."""


@dataclass(frozen=True, slots=True)
class User:
    name: str
    uid: int
    group: str
    address: str
    certificate: str | None = None
    """Distinguished name, of users who come with a certificate."""

    @property
    def principals(self) -> list[str]:
        mapped = [
            f"UidPrincipal[{self.uid}]", f"GidPrincipal[{self.uid},primary]", f"UserNamePrincipal[{self.name}]",
            f"GroupNamePrincipal[{self.group}]", f"Origin[{self.address}]",
        ]  # fmt: skip
        return mapped if self.certificate is None else [self.certificate, *mapped]

    @property
    def owner(self) -> str:
        return self.certificate or self.name


@dataclass(frozen=True, slots=True)
class Cell:
    """A door, a pool, or the pool manager. `zone_minutes`: of its JVM, east of Greenwich."""

    name: str
    domain: str
    type: str
    zone_minutes: int = 0
    protocol: str = ""
    version: tuple[int, int] = (1, 1)

    @property
    def address(self) -> str:
        return f"{self.name}@{self.domain}"


@dataclass(frozen=True, slots=True)
class File:
    path: str
    pnfsid: str
    size: int
    storage_info: str


@dataclass(frozen=True, slots=True)
class Visit:
    """One client's request for one file: its session is the transfer's initiator."""

    user: User
    door: Cell
    session: str
    file: File
    transfer_path: str
    """Where the data really go or come from."""


def date(ms: int, zone_minutes: int) -> str:
    """ISO 8601 as Java writes it: no more digits than needed, the offset of the writer's zone."""
    seconds, rest = divmod(ms, 1000)
    fraction = f".{rest:03}".rstrip("0") if rest else ""
    return f"{_second(seconds + 60 * zone_minutes)}{fraction}{_offset(zone_minutes)}"


@lru_cache(1024)
def _second(seconds: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).isoformat()[:19]


def _offset(minutes: int) -> str:
    return f"{'+' if minutes > 0 else '-'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}" if minutes else "Z"


def transfer(
    visit: Visit, pool: Cell, ms: int, *, write: bool, number: int, duration_ms: int, status: tuple[int, str] = OK
) -> Record:
    """A pool's mover has ended."""
    file, door = visit.file, visit.door
    moved = file.size if status == OK else file.size // 3
    seconds = max(duration_ms, 1) / 1000
    way = "write" if write else "read"
    return {
        **_envelope("transfer", pool, ms, status),
        f"mean{way.capitalize()}Bandwidth": moved / seconds,
        f"{way}Idle": f"PT{seconds * 0.7:.6f}S",
        f"{way}Active": f"PT{seconds * 0.3:.6f}S",
        "localEndpoint": "131.169.5.21:24567",
        "session": f"pool:{pool.address}:{ms - duration_ms}-{number}",
        "subject": visit.user.principals,
        "pnfsid": file.pnfsid,
        "billingPath": file.path,
        "fileSize": file.size,
        "storageInfo": file.storage_info,
        "transferSize": moved,
        "transferTime": duration_ms,
        "isWrite": way,
        "protocolInfo": _protocol_info(door, visit.user.address),
        "initiator": visit.session,
        "isP2p": False,
        "transferPath": visit.transfer_path,
    }


def between_pools(file: File, source: Cell, ms: int, *, number: int, duration_ms: int) -> Record:
    """A replica is copied to another pool; the source tells of it, without names."""
    session = f"pool:{source.address}:{ms - duration_ms}-{number}"
    return {
        **_envelope("transfer", source, ms, OK),
        "session": session,
        "subject": ["UidPrincipal[0]", "GidPrincipal[0,primary]"],
        "pnfsid": file.pnfsid,
        "billingPath": "Unknown",
        "fileSize": file.size,
        "storageInfo": file.storage_info,
        "transferSize": file.size,
        "transferTime": duration_ms,
        "isWrite": "read",
        "protocolInfo": _protocol_info(Cell("", "", "", protocol="Http"), "131.169.5.22"),
        "initiator": session,
        "isP2p": True,
        "transferPath": "Unknown",
    }


def request(
    visit: Visit, ms: int, *, duration_ms: int, status: tuple[int, str] = OK, mover: Record | None = None
) -> Record:
    """A door's view of a client's request; `mover` is the pool's record, which the door repeats in part."""
    record = _of_door("request", visit, ms, status, duration_ms) | {
        "pnfsid": visit.file.pnfsid,
        "fileSize": visit.file.size if status == OK else 0,
        "storageInfo": visit.file.storage_info,
    }
    if mover is not None:
        left_out = ("subject", "pnfsid", "fileSize", "initiator", "billingPath", "storageInfo")
        record["moverInfo"] = {name: value for name, value in mover.items() if name not in left_out}
    return record


def housekeeping(visit: Visit, ms: int) -> Record:
    """What the dcap door tells of mkdir, chmod and the like: a request like any other."""
    return _of_door("request", visit, ms, OK, 3) | {"client": "unknown", "clientChain": "unknown", "fileSize": 0}


def check(visit: Visit, ms: int) -> Record:
    return _of_door("check", visit, ms, OK, 1) | {"pnfsid": visit.file.pnfsid, "fileSize": visit.file.size}


def removed_by_user(visit: Visit, ms: int, *, knows_size: bool) -> Record:
    """A user's delete, as the door tells it."""
    return _of_door("remove", visit, ms, OK, 5) | {
        "pnfsid": visit.file.pnfsid,
        "fileSize": visit.file.size if knows_size else 0,
        "storageInfo": visit.file.storage_info,
    }


def removed_from_pool(file: File, pool: Cell, ms: int, *, number: int) -> Record:
    """A replica has gone from a pool."""
    session = f"pool:{pool.address}:{ms}-{number}"
    return {
        **_envelope("remove", pool, ms, (0, "cleaner-disk@cleanerDomain [PoolRemoveFiles]")),
        "transaction": session,
        "session": session,
        "subject": ["UidPrincipal[0]", "GidPrincipal[0,primary]"],
        "pnfsid": file.pnfsid,
        "billingPath": "Unknown",
        "fileSize": file.size,
        "storageInfo": file.storage_info,
    }


def tape(
    message_type: str, file: File, pool: Cell, ms: int, *, number: int, duration_ms: int, status: tuple[int, str] = OK
) -> Record:
    """`store` or `restore`. A restore does not know the path; a failed store has no location."""
    session = f"pool:{pool.address}:{ms}-{number}"
    done = status == OK or message_type == "restore"
    return {
        **_envelope(message_type, pool, ms, status),
        "transaction": session,
        "session": session,
        "hsm": {"type": "osm", "instance": "osm", "provider": "script"},
        "locations": [f"osm://osm/?store=sql&group=data&bfid=1.2.{file.pnfsid[-8:]}"] if done else [],
        "pnfsid": file.pnfsid,
        "billingPath": file.path if message_type == "store" else "Unknown",
        "fileSize": file.size,
        "storageInfo": file.storage_info,
        "transferTime": duration_ms,
        "queuingTime": duration_ms // 2 if message_type == "store" else 0,
    }


def hit(visit: Visit, pool: Cell, ms: int) -> Record:
    """The pool manager has chosen a pool for a read. The only record whose size is `filesize`."""
    door = visit.door
    text = f"{door.protocol}-{door.version[0]}.{door.version[1]}:{visit.user.address}:0"
    record = {
        **_envelope("hit", pool, ms, OK),
        "pnfsid": visit.file.pnfsid,
        "filesize": visit.file.size,
        "billingPath": visit.file.path,
        "protocol": f"{text}:{door.name}:{door.domain}:{visit.file.path}" if door.protocol == "Http" else text,
        "cached": True,
        "storageInfo": visit.file.storage_info,
    }
    del record["queuingTime"]
    return record


def warning(manager: Cell, ms: int, message: str) -> Record:
    record = _envelope("warning", manager, ms, (0, message))
    del record["queuingTime"]
    return record


def _envelope(message_type: str, cell: Cell, ms: int, status: tuple[int, str]) -> Record:
    return {
        "VERSION" if cell.type == "door" else "version": "1.0",
        "msgType": message_type,
        "date": date(ms, cell.zone_minutes),
        "queuingTime": 0,
        "cellName": cell.name,
        "cellType": cell.type,
        "cellDomain": cell.domain,
        "status": {"code": status[0], "msg": status[1]},
    }


def _of_door(message_type: str, visit: Visit, ms: int, status: tuple[int, str], duration_ms: int) -> Record:
    user = visit.user
    return {
        **_envelope(message_type, visit.door, ms, status),
        "session": visit.session,
        "sessionDuration": duration_ms,
        "transferPath": visit.transfer_path,
        "subject": user.principals,
        "client": user.address,
        "clientChain": user.address,
        "mappedUID": user.uid,
        "mappedGID": user.uid,
        "owner": user.owner,
        "billingPath": visit.file.path,
    }


def _protocol_info(door: Cell, address: str) -> Record:
    return {
        "protocol": door.protocol,
        "versionMajor": door.version[0],
        "versionMinor": door.version[1],
        "transferTag": "",
        "port": 0,
        "host": address,
    }

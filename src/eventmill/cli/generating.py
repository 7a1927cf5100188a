"""Traffic of a dCache site, made from a seed: which files are written, read, moved to tape and removed, by whom, when.

The same seed and settings make the same records, whatever the clock says: time is simulated. Records come in the order
of their times, those of one transfer among those of others, as they would arrive from several doors and pools. Knows
what is random, not how a record looks (`dcache_records`). One generator is for one thread; it holds the records of the
next simulated minute and `FILES_MAX` files.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Final

from eventmill.cli import dcache_records as records
from eventmill.cli.dcache_records import Cell, File, Record, User, Visit
from eventmill.errors import InvalidInput

START_MS: Final = 1_777_874_400_000
"""When the simulated time begins: 2026-05-04T06:00:00Z."""
MEAN_GAP_MS: Final = 5.0
"""Between the beginnings of two things that happen."""
FILES_MAX: Final = 5000
"""Files that are remembered, to be read and removed later."""
BURST_MEAN: Final = 40
"""Files that are written into one directory in a row."""
ZONES: Final = (0, 60, 120, -300)
"""Of the JVMs that write: minutes east of Greenwich."""

WEIGHT_MAX: Final = 1_000_000

_BILLING_ONLY: Final = ("hit", "warning")
"""What no other producer sends."""
_ENDINGS: Final = (".h5", ".h5", ".nxs", ".cbf", ".root", ".log")
_FAILURES: Final = (
    (10011, "General problem: connection to {address} was closed by {name}"),
    (10006, "Transfer did not start within 300 s"),
    (10018, "Permission denied for {name}"),
    (10027, "Failed to fetch https://remote.example.org/f.h5?authz=Bearer%20eyJhbGciOi.x.y: 403 Forbidden"),
)


@dataclass(slots=True)
class Traffic:
    """What happens at one site, below `directory`.

    `mix`: how often what happens, weights by the names in SCENES. `twice`: the share (0 to 1) of records that the
    billing service sends too, as where all producers are switched on: with the date in its own time zone.
    """

    seed: int
    directory: str
    mix: Mapping[str, float]
    twice: float

    def records(self, files: int) -> Iterator[Record]:
        """Records until so many files have been written; 0: without end."""
        rng = random.Random(self.seed)
        site = _Site(rng, self.directory.rstrip("/"))
        names, weights = list(self.mix), list(self.mix.values())
        clock, order, new_files = float(START_MS), 0, 0
        queue: list[tuple[int, int, Record]] = []
        while not files or new_files < files:
            clock += rng.expovariate(1 / MEAN_GAP_MS)
            [scene] = rng.choices(names, weights)
            new_files += scene in NEW_FILES
            for ms, record in SCENES[scene](site, int(clock)):
                for at, copy in self._copies(rng, ms, record):
                    order += 1
                    heappush(queue, (at, order, copy))
            while queue and queue[0][0] <= clock:
                yield heappop(queue)[2]
        while queue:
            yield heappop(queue)[2]

    def _copies(self, rng: random.Random, ms: int, record: Record) -> Iterator[tuple[int, Record]]:
        """The record, and perhaps the same once more: without `moverInfo`, which comes too late for the billing."""
        yield ms, record
        if rng.random() < self.twice and record["msgType"] not in _BILLING_ONLY:
            copy = {**record, "date": records.date(ms, rng.choice(ZONES))}
            copy.pop("moverInfo", None)
            yield ms + rng.randint(0, 40), copy


def parse_mix(text: str) -> dict[str, float]:
    """Weights from `written=10,read=30`; what is not named does not happen. Raises InvalidInput."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in SCENES:
            near = difflib.get_close_matches(name, SCENES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(SCENES)}"
            raise InvalidInput(f"--mix: '{name}' does not happen in dCache; {hint}")
        mix[name] = _weight(part.strip(), weight)
    if not any(mix.get(name) for name in NEW_FILES):
        raise InvalidInput("--mix: 'written' or 'srm' is needed, or there would be no files")
    return mix


def _weight(part: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1
    if not 0 <= weight <= WEIGHT_MAX:
        raise InvalidInput(f"--mix {part}: write NAME=WEIGHT, with a weight from 0 to {WEIGHT_MAX:,}")
    return weight


class _Site:
    """Who and what there is, and what has been written so far."""

    def __init__(self, rng: random.Random, directory: str) -> None:
        self.rng = rng
        self.users = [_user(rng, number) for number in range(25)]
        self.pools = [
            Cell(f"dcache-pool-{number:02}", f"dcache-pool-{number:02}Domain", "pool", rng.choice(ZONES))
            for number in range(12)
        ]
        self.doors = {
            name: Cell(f"{name}-door1", f"{name.lower()}Domain", "door", rng.choice(ZONES), protocol, version)
            for name, protocol, version in (
                ("WebDAV", "Http", (1, 1)), ("Xrootd", "Xrootd", (5, 0)), ("GFTP", "GFtp", (2, 0)),
                ("DCap", "DCap", (3, 0)), ("NFS", "NFS4", (4, 1)),
            )
        }  # fmt: skip
        self.srm = Cell("SRM-door1", "srmDomain", "door", rng.choice(ZONES))
        self.manager = Cell("PoolManager", "dCacheDomain", "PoolManager")
        self._directory = directory
        self._files: list[File] = []
        self._under_way: list[tuple[int, int, File]] = []
        self._burst = ("", "", "")
        self._left = self._number = 0

    def new_file(self) -> File:
        """The next file of the burst that is going on."""
        rng = self.rng
        if not self._left:
            self._left = 1 + int(rng.expovariate(1 / BURST_MEAN))
            self._burst = self._new_burst()
        self._left -= 1
        group, folder, ending = self._burst
        pnfsid = f"0000{rng.getrandbits(128):032X}"
        return File(f"{folder}/s{self.number():06}{ending}", pnfsid, _size(rng), f"{group}:raw@osm")

    def will_be_there(self, file: File, ms: int) -> None:
        """From then on the file can be read and removed."""
        heappush(self._under_way, (ms, self.number(), file))

    def old_file(self, ms: int) -> File:
        """One that has been written, or, at the beginning, one that was there before."""
        while self._under_way and self._under_way[0][0] < ms:
            self._files.append(heappop(self._under_way)[2])
        if len(self._files) > FILES_MAX:
            del self._files[: FILES_MAX // 10]
        if not self._files:
            self._files.append(self.new_file())
        return self.rng.choice(self._files)

    def removed_file(self, ms: int) -> File:
        """One that is not there any more."""
        file = self.old_file(ms)
        self._files.remove(file)
        return file

    def visit(self, file: File, door: str, ms: int) -> Visit:
        """Somebody asks a door for this file."""
        cell = self.doors[door]
        session = f"door:{cell.address}:AAX{self.rng.getrandbits(48):012x}:{ms * 1000}"
        return Visit(self.rng.choice(self.users), cell, session, file, file.path)

    def door(self) -> str:
        return self.rng.choice(list(self.doors))

    def pool(self) -> Cell:
        return self.rng.choice(self.pools)

    def number(self) -> int:
        self._number += 1
        return self._number

    def _new_burst(self) -> tuple[str, str, str]:
        rng = self.rng
        group = rng.choice(("exfel", "petra3", "flash", "belle2"))
        run = f"p{rng.randrange(3000, 3040):06}/raw/r{rng.randrange(1000):04}"
        return group, f"{self._directory}/{group}/{run}", rng.choice(_ENDINGS)


def _user(rng: random.Random, number: int) -> User:
    name = f"user{number:03}"
    address = f"192.0.2.{number + 1}" if number % 3 else f"2001:db8:0:0:0:0:0:{number + 1:x}"
    certificate = f"/C=DE/O=Example/CN=User {number:03}" if number % 5 == 0 else None
    return User(name, 20_000 + number, rng.choice(("exfel", "petra3", "flash", "belle2")), address, certificate)


def _size(rng: random.Random) -> int:
    """Most files have megabytes, a few many gigabytes, one in fifty is empty."""
    return int(rng.lognormvariate(16.5, 2.0)) if rng.random() > 0.02 else 0


# what happens: records with their times, oldest first

Scene = Iterator[tuple[int, Record]]


def _written(site: _Site, ms: int) -> Scene:
    """A file is sent to a pool; the pool tells of it, then the door."""
    visit, pool = site.visit(site.new_file(), site.door(), ms), site.pool()
    if visit.door.protocol == "Xrootd" and site.rng.random() < 0.3:
        visit = replace(visit, transfer_path=f"{visit.file.path}.posc-{site.number()}")
    for at, record in _transferred(site, visit, pool, ms, write=True):
        yield at, record
    site.will_be_there(visit.file, at)


def _read(site: _Site, ms: int) -> Scene:
    yield from _transferred(site, site.visit(site.old_file(ms), site.door(), ms), site.pool(), ms, write=False)


def _transferred(site: _Site, visit: Visit, pool: Cell, ms: int, *, write: bool) -> Scene:
    duration = _duration_ms(site, visit.file)
    end = ms + duration
    moved = records.transfer(visit, pool, end, write=write, number=site.number(), duration_ms=duration)
    yield end, moved
    told = end + site.rng.randint(1, 30)
    with_mover = moved if site.rng.random() < 0.5 else None
    yield told, records.request(visit, told, duration_ms=duration + 20, mover=with_mover)


def _srm(site: _Site, ms: int) -> Scene:
    """SRM: the file goes to an upload directory, and is at its path when the client says `putDone`."""
    rng, file = site.rng, site.new_file()
    name = file.path.rpartition("/")[2]
    uuid = f"{rng.getrandbits(32):08x}-{rng.getrandbits(16):04x}-4{rng.getrandbits(12):03x}-9{rng.getrandbits(12):03x}"
    upload = f"/upload/{site.number() % 10}/{uuid}-{rng.getrandbits(48):012x}/{name}"
    visit = replace(site.visit(file, "GFTP", ms), transfer_path=upload)
    duration = _duration_ms(site, file)
    end = ms + duration
    yield end, records.transfer(visit, site.pool(), end, write=True, number=site.number(), duration_ms=duration)
    at_upload = replace(visit, file=replace(file, path=upload))
    yield end + 5, records.request(at_upload, end + 5, duration_ms=duration)
    done = end + rng.randint(50, 3000)
    session = f"{ms}:{site.number()}:srm2:prepareToPut:{-rng.getrandbits(31)}:{-rng.getrandbits(31)}"
    yield done, records.request(replace(visit, door=site.srm, session=session), done, duration_ms=done - ms)
    site.will_be_there(file, done)


def _failed(site: _Site, ms: int) -> Scene:
    """A transfer breaks off; the door's record has the pool's in it."""
    rng = site.rng
    write = rng.random() < 0.6
    file = replace(site.old_file(ms), pnfsid=f"0000{rng.getrandbits(128):032X}") if write else site.old_file(ms)
    visit = site.visit(file, site.door(), ms)
    code, message = rng.choice(_FAILURES)
    status = code, message.format(address=visit.user.address, name=visit.user.name)
    duration, end = 400, ms + 400
    moved = records.transfer(
        visit, site.pool(), end, write=write, number=site.number(), duration_ms=duration, status=status
    )
    yield end, moved
    yield end + 3, records.request(visit, end + 3, duration_ms=duration, status=status, mover=moved)


def _removed(site: _Site, ms: int) -> Scene:
    """A user deletes a file; some time later its replica goes."""
    file, door = site.removed_file(ms), site.door()
    visit = site.visit(file, door, ms)
    if door == "NFS":
        visit = replace(
            visit, file=replace(file, path=f"parent:[{file.pnfsid[:32]}0001]/{file.path.rpartition('/')[2]}")
        )
    yield ms, records.removed_by_user(visit, ms, knows_size=door in ("WebDAV", "DCap"))
    gone = ms + site.rng.randint(1000, 60_000)
    yield gone, records.removed_from_pool(file, site.pool(), gone, number=site.number())


def _p2p(site: _Site, ms: int) -> Scene:
    yield ms, records.between_pools(site.old_file(ms), site.pool(), ms, number=site.number(), duration_ms=800)


def _store(site: _Site, ms: int) -> Scene:
    yield ms, _tape(site, "store", ms)


def _restore(site: _Site, ms: int) -> Scene:
    yield ms, _tape(site, "restore", ms)


def _tape(site: _Site, message_type: str, ms: int) -> Record:
    status = (35, "HSM script: no free drive") if site.rng.random() < 0.1 else records.OK
    file, pool = site.old_file(ms), site.pool()
    return records.tape(message_type, file, pool, ms, number=site.number(), duration_ms=5300, status=status)


def _hit(site: _Site, ms: int) -> Scene:
    yield ms, records.hit(site.visit(site.old_file(ms), site.door(), ms), site.pool(), ms)


def _request(site: _Site, ms: int) -> Scene:
    """The dcap door tells of a mkdir as it tells of a transfer."""
    file = site.old_file(ms)
    folder = replace(file, path=file.path.rpartition("/")[0])
    yield ms, records.housekeeping(site.visit(folder, "DCap", ms), ms)


def _warning(site: _Site, ms: int) -> Scene:
    yield ms, records.warning(site.manager, ms, "Suspend: no pool can take this file")


def _check(site: _Site, ms: int) -> Scene:
    yield ms, records.check(site.visit(site.old_file(ms), "DCap", ms), ms)


def _duration_ms(site: _Site, file: File) -> int:
    """At a gigabyte a second, for at most half a minute."""
    return min(30_000, 10 + file.size // 1_000_000) + site.rng.randint(0, 20)


NEW_FILES: Final = ("written", "srm")
SCENES: Final[dict[str, Callable[[_Site, int], Scene]]] = {
    "written": _written, "srm": _srm, "read": _read, "removed": _removed, "failed": _failed, "p2p": _p2p,
    "store": _store, "restore": _restore, "hit": _hit, "request": _request, "warning": _warning, "check": _check,
}  # fmt: skip

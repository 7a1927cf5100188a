"""What `eventmill check --config FILE` looks at: whether a server with this configuration would find what it needs.

Looks and changes nothing: no directory is made, no database is opened, no topic is read or made.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from eventmill.config import Functions, HttpFunctions, Pool, Secret, Settings
from eventmill.errors import InvalidConfig, Unavailable
from eventmill.events import PathTable
from eventmill.executors.htcondor.description import allowed_commands, read_defaults
from eventmill.executors.htcondor.rooms import spool_problem
from eventmill.executors.openwhisk import OpenWhisk
from eventmill.executors.pool import node


@dataclass(frozen=True, slots=True)
class Component:
    """Something that the server needs. `detail` says what was found, and if it can't be had, what to do."""

    name: str
    ok: bool
    detail: str
    is_warning: bool = False
    """The server runs nevertheless: what isn't there yet is taken up when it comes."""


def components(settings: Settings) -> Iterator[Component]:
    """Everything that the configuration names."""
    yield _data_dir(settings.server.data_dir)
    yield _disk(settings.server.data_dir, settings.limits.disk_free_mb)
    yield _port(settings)
    yield _paths(settings)
    if settings.backbone.kind == "kafka":
        yield from _kafka(settings)
    if settings.functions.engine == "openwhisk":
        yield _openwhisk(settings.functions)
    else:
        yield _node()
    if settings.functions.node_modules is not None:
        yield _directory("functions.node_modules", settings.functions.node_modules)
    yield from _services(settings.functions.http)
    for name, pool in settings.pools.items():
        if pool.kind == "htcondor":
            yield from _condor(f"pools.{name}", pool, settings.server.data_dir)
    for source in settings.files:
        yield _source(f"files {source.path}", source.path)
    for row in settings.paths:
        if row.local is not None:
            yield _directory(f"paths {row.subject}", Path(row.local))
    yield from _open_secrets(settings)


def _data_dir(path: Path) -> Component:
    """It exists and is ours, or can be made."""
    name = "server.data_dir"
    if path.is_dir():
        usable = os.access(path, os.R_OK | os.W_OK | os.X_OK)
        return Component(name, usable, str(path) if usable else f"{path} can't be written by this user")
    above = _nearest(path)
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        return Component(name, True, f"{path} will be made")
    why = "can't be written by this user" if above.is_dir() else "is no directory"
    return Component(name, False, f"{path} is not there and can't be made: {above} {why}")


def _disk(path: Path, free_mb: int) -> Component:
    free = shutil.disk_usage(_nearest(path)).free >> 20
    enough = free > free_mb
    hint = "" if enough else f": below limits.disk_free_mb = {free_mb} nothing is taken in"
    return Component("disk", enough, f"{free} MB free{hint}")


def _port(settings: Settings) -> Component:
    """Free to listen on, or taken by the server of this data directory, which is no fault."""
    host, port = settings.server.host, settings.server.port
    name, where = "server.port", f"{host}:{port}"
    if port == 0:
        return Component(name, True, "any free port")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as e:
        if _is_served(settings.server.data_dir):
            return Component(name, True, f"{where}: a server with this data directory is running")
        return Component(name, False, f"can't listen on {where}: {e.strerror}; choose another with --port")
    return Component(name, True, f"{where} is free")


def _is_served(data_dir: Path) -> bool:
    """Whether a server holds the lock of the data directory."""
    try:
        with open(data_dir / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _paths(settings: Settings) -> Component:
    try:
        PathTable(settings.paths)
    except InvalidConfig as e:
        return Component("paths", False, str(e))
    return Component("paths", True, f"{len(settings.paths)} rows")


def _kafka(settings: Settings) -> Iterator[Component]:
    """The client, the brokers and the topics. Our own topic may be missing: the server makes it."""
    where = f"Kafka at {settings.backbone.brokers}"
    try:
        from eventmill.backbone.kafka.by_hand import topics
        from eventmill.backbone.kafka.subscription import Subscription, matches

        Subscription(settings, PathTable())  # decoders, their secrets, the registry's client
        known = topics(settings.backbone)
    except (InvalidConfig, Unavailable) as e:
        yield Component("backbone", False, f"{where}: {e}")
        return
    own = settings.backbone.topic
    yield Component("backbone", True, f"{where} answers; {own} {'is there' if own in known else 'will be made'}")
    for row in settings.topics:
        name = f"topics {row.name or row.regex}"
        if row.regex is not None:
            found = sum(matches(row, topic) for topic in known)
            yield Component(name, True, f"{found} there now")
        else:
            there = row.name in known
            hint = "is not there, or we may not DESCRIBE it: it is waited for. Is the name right?"
            yield Component(name, True, "is there" if there else hint, is_warning=not there)


def _openwhisk(functions: Functions) -> Component:
    """The key, the certificates, and whether it answers; one that is away is waited for."""

    async def ask() -> tuple[bool, str, str]:
        with tempfile.TemporaryDirectory() as state:
            asked = OpenWhisk.of(functions, lambda digest: b"", state_dir=Path(state))
            try:
                await asked.start()
                return *asked.condition(), asked.offer()
            finally:
                await asked.stop()

    where = f"OpenWhisk at {functions.api_host}"
    try:
        answers, line, offer = asyncio.run(ask())
    except InvalidConfig as e:
        return Component("functions", False, str(e))
    if answers:
        return Component("functions", True, f"{where} answers: {offer}")
    return Component("functions", True, line.replace("OpenWhisk", where, 1), is_warning=True)


def _node() -> Component:
    """What runs JavaScript; without it its kinds are refused."""
    found = node.find()
    if found is None:
        hint = "no Node.js: nodejs kinds are refused (pip install 'eventmill[nodejs]')"
        return Component("functions nodejs", True, hint)
    return Component("functions nodejs", True, f"{', '.join(found.kinds)} run by {found.path}")


def _open_secrets(settings: Settings) -> Iterator[Component]:
    """Files with secrets that everybody can read."""
    for name, secret in _secrets(settings, ""):
        if secret.file is None:
            continue
        with contextlib.suppress(OSError):  # who needs it has said that it can't be read
            mode = stat.S_IMODE(secret.file.stat().st_mode)
            if mode & stat.S_IROTH:
                detail = f"everybody can read {secret.file} (mode {mode:04o}): chmod o-r"
                yield Component(f"{name} file", True, detail, is_warning=True)


def _secrets(value: Any, name: str) -> Iterator[tuple[str, Secret]]:
    """All secrets below a part of the settings, with their settings' names."""
    if isinstance(value, Secret):
        yield name, value
    elif isinstance(value, BaseModel | dict | list):
        parts = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else value
        for key, part in parts:
            yield from _secrets(part, f"{name}.{key}" if name else str(key))


def _services(http: HttpFunctions) -> Iterator[Component]:
    """The secrets of functions that are services."""
    for host, headers in http.headers.items():
        try:
            for secret in headers.values():
                secret.read()
        except InvalidConfig as e:
            yield Component(f"functions.http {host}", False, str(e))


def _condor(name: str, pool: Pool, data_dir: Path) -> Iterator[Component]:
    """The bindings, the files and the commands of a pool; the schedd is for the running server to ask."""
    found = importlib.util.find_spec("htcondor2") is not None
    yield Component(name, found, "bindings found" if found else "no bindings: pip install 'eventmill[htcondor]'")
    try:
        read_defaults(pool.defaults)
        for namespace in pool.commands:
            allowed_commands(pool.commands, namespace)
    except InvalidConfig as e:
        yield Component(f"{name}.commands", False, str(e))
    files = {"condor_config": pool.condor_config} | {f"tokens.{key}": path for key, path in pool.tokens.items()}
    for key, path in files.items():
        if path is not None:
            readable = os.access(path, os.R_OK)
            yield Component(f"{name}.{key}", readable, str(path) if readable else f"{path} can't be read by this user")
    if pool.event_log is not None:
        yield _event_log(f"{name}.event_log", pool.event_log)
    if pool.history_dir is not None:
        yield _history_dir(f"{name}.history_dir", pool.history_dir)
    if pool.spool_dir is not None:
        problem = spool_problem(pool.spool_dir, outside=data_dir)
        yield Component(f"{name}.spool_dir", problem is None, problem or str(pool.spool_dir))


def _event_log(name: str, path: Path) -> Component:
    """HTCondor makes it with its first event."""
    if not path.exists():
        return Component(name, True, f"{path} is not there yet: it will be waited for")
    if not os.access(path, os.R_OK) or not os.access(path.parent, os.R_OK | os.X_OK):
        return Component(name, False, f"{path}, or its directory, can't be read by this user")
    with path.open("rb") as log:
        is_json = log.read(1) in (b"", b"{")
    return Component(name, is_json, str(path) if is_json else f"{path}: EVENT_LOG_FORMAT_OPTIONS = JSON is needed")


def _history_dir(name: str, path: Path) -> Component:
    """What has been read is removed from there."""
    usable = path.is_dir() and os.access(path, os.R_OK | os.W_OK | os.X_OK)
    return Component(name, usable, str(path) if usable else f"{path} is no directory that this user can write")


def _source(name: str, path: Path) -> Component:
    """A root that is not there yet is no fault: the server waits for it."""
    if not path.exists():
        return Component(name, True, f"{path} is not there yet: it will be waited for")
    return _directory(name, path)


def _directory(name: str, path: Path) -> Component:
    if not path.is_dir():
        return Component(name, False, f"{path} is no directory here")
    readable = os.access(path, os.R_OK | os.X_OK)
    return Component(name, readable, str(path) if readable else f"{path} can't be read by this user")


def _nearest(path: Path) -> Path:
    """The path, or what exists above it."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path

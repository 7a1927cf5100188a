"""What an action is at OpenWhisk: its name there, and its document. Functions of values.

An action's name holds the digest of all that its document is made of, and of who calls it. So each revision has an
action of its own, two of them run beside each other, and one that is there is the right one: nothing need be compared.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from eventmill.entities import Action, Document, ids
from eventmill.entities.kinds import BLACKBOX, NATIVE, SKELETON
from eventmill.errors import InvalidArchive
from eventmill.executors import archive
from eventmill.executors.openwhisk.limits import TheirLimits

PACKAGE = "eventmill"
"""The package with all of our actions, in the namespace of the key."""

_NAME_CHARS = 200
_MODULE = "eventmill_action"
_MAIN = "__main__.py"
_MAIN_BYTES_MAX = 8 << 20
"""Of an archive's own, which is taken into memory."""


def is_wrapped(action: Action) -> bool:
    """Whether our own code is around the author's (`entry`), so that results are marked and arrays are possible."""
    return action.kind.startswith("python:")


def name(action: Action, namespace: str, environment: Mapping[str, str], limits: TheirLimits) -> str:
    """`package/name` there, of this revision for calls of this namespace: callers share no warm process."""
    made_of = [_document(action, environment, limits), action.code, namespace]
    digest = ids.digest(json.dumps(made_of).encode() + _entry())
    readable = re.sub(r"[^A-Za-z0-9_@.&-]", ".", action.qualified)[:_NAME_CHARS]
    return f"{PACKAGE}/{readable}-{digest[:32]}"


def document(
    action: Action,
    environment: Mapping[str, str],
    limits: TheirLimits,
    code: bytes,
    *,
    files_max: int,
    bytes_max: int,
) -> Document:
    """What is PUT. `code`: as it was uploaded, text or a zip in base64, of which at most so many files with so many
    bytes are taken. Takes long for a large zip. Raises InvalidArchive."""
    made = _document(action, environment, limits)
    if is_wrapped(action):
        entry = _entry().replace(b"import MAIN as", f"import {action.main or 'main'} as".encode())
        wrapped = _rewritten(code, entry, files_max, bytes_max) if action.binary else _zipped(code, entry)
        made["exec"] = {"kind": action.kind, "code": wrapped, "binary": True, "main": "main"}
    else:
        main = {"main": action.main} if action.main else {}
        kind = {"kind": BLACKBOX, "image": SKELETON} if action.kind in (BLACKBOX, NATIVE) else {"kind": action.kind}
        made["exec"] = {**kind, "code": code.decode(), "binary": action.binary, **main}
    return made


def _document(action: Action, environment: Mapping[str, str], limits: TheirLimits) -> Document:
    """All but the code."""
    init = {**environment, **action.init_parameters}
    return {
        "exec": {"kind": action.kind, "main": action.main},
        "limits": limits.of(action),
        "parameters": [{"key": key, "value": value, "init": True} for key, value in sorted(init.items())],
        "annotations": [
            {"key": "provide-api-key", "value": False},
            {"key": "eventmill-action", "value": action.qualified},
        ],
    }


def body(params: bytes, action: Action, own: Mapping[str, Any]) -> bytes | None:
    """The body of a call; None if parameters of this form can't be handed to it. `own`: what `entry` wants to know; no
    parameter can take its place."""
    if is_wrapped(action):
        return b'{"__eventmill":%b,"params":%b}' % (json.dumps(own).encode(), params)
    return params if params.startswith(b"{") else None


@cache
def _entry() -> bytes:
    return Path(__file__).with_name("entry.py").read_bytes()


def _zipped(source: bytes, entry: bytes) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(f"{_MODULE}.py", source)
        made.writestr(_MAIN, entry)
    return base64.b64encode(buffer.getvalue()).decode()


def _rewritten(code: bytes, entry: bytes, files_max: int, bytes_max: int) -> str:
    """The zip with `entry` as its `__main__.py`, which calls what was there before. Only that is unpacked; all else
    stays as it lies. Without a `__main__.py` it stays as it is: OpenWhisk says what it thinks of it."""
    try:
        data = base64.b64decode(code)
    except binascii.Error as e:
        raise InvalidArchive("this is not a zip archive") from e
    with archive.opened(data, files_max=files_max) as uploaded:
        if sum(member.file_size for member in uploaded.infolist()) > bytes_max:
            raise InvalidArchive(f"the archive's contents are too large: more than {bytes_max} bytes")
        if _MAIN not in uploaded.namelist():
            return code.decode()
        authors = archive.read(uploaded, uploaded.getinfo(_MAIN), bytes_max=_MAIN_BYTES_MAX)
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as made:
        for name in (_MAIN, f"{_MODULE}.py"):  # in the directory alone: its bytes stay, and nobody sees them
            made.filelist = [member for member in made.filelist if member.filename != name]
            made.NameToInfo.pop(name, None)
        made.writestr(f"{_MODULE}.py", authors)
        made.writestr(_MAIN, entry)
    return base64.b64encode(buffer.getvalue()).decode()

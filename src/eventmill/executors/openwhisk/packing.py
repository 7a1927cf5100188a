"""What an action is at OpenWhisk: its name there, and its document. Functions of values.

An action's name holds the digest of all that its document is made of. So each revision has an action of its own, two of
them run beside each other, and one that is there is the right one: nothing need be compared.
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
from eventmill.executors.openwhisk.limits import TheirLimits

PACKAGE = "eventmill"
"""The package with all of our actions, in the namespace of the key."""

_NAME_CHARS = 200
_MODULE = "eventmill_action"
_MAIN = "__main__.py"


def is_wrapped(action: Action) -> bool:
    """Whether our own code is around the author's (`entry`), so that results are marked and arrays are possible."""
    return action.kind.startswith("python:")


def name(action: Action, environment: Mapping[str, str], limits: TheirLimits) -> str:
    """`package/name` of this revision there."""
    digest = ids.digest(json.dumps([_document(action, environment, limits), action.code]).encode() + _entry())
    readable = re.sub(r"[^A-Za-z0-9_@.&-]", ".", action.qualified)[:_NAME_CHARS]
    return f"{PACKAGE}/{readable}-{digest[:32]}"


def document(action: Action, environment: Mapping[str, str], limits: TheirLimits, code: bytes) -> Document:
    """What is PUT. `code`: as it was uploaded, text or a zip in base64. Takes long for a large zip."""
    made = _document(action, environment, limits)
    if is_wrapped(action):
        wrapped = _wrapped(action, code)
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
    """The body of a call; None if parameters of this form can't be handed to it. `own`: what `entry` wants to know."""
    is_object = params.startswith(b"{")
    if not is_wrapped(action):
        return params if is_object else None
    ours = json.dumps(own).encode()
    if not is_object:
        return b'{"__eventmill":%b,"list":%b}}' % (ours[:-1], params)
    return b'{"__eventmill":%b%b%b' % (ours, b"" if params[1:].lstrip() == b"}" else b",", params[1:])


@cache
def _entry() -> bytes:
    return Path(__file__).with_name("entry.py").read_bytes()


def _wrapped(action: Action, code: bytes) -> str:
    """The zip with `entry` as its `__main__.py`, which calls what was there before. What is no zip with a `__main__.py`
    stays as it is: OpenWhisk says what it thinks of it."""
    entry = _entry().replace(b"import MAIN as", f"import {action.main or 'main'} as".encode())
    if not action.binary:
        return _zipped({f"{_MODULE}.py": code, _MAIN: entry})
    try:
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(code))) as archive:
            if _MAIN not in archive.namelist():
                return code.decode()
            return _rewritten(archive, entry)
    except (zipfile.BadZipFile, binascii.Error):
        return code.decode()


def _rewritten(archive: zipfile.ZipFile, entry: bytes) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for info in archive.infolist():
            content = archive.read(info)
            if info.filename == _MAIN:
                info.filename = f"{_MODULE}.py"
            made.writestr(info, content)
        made.writestr(_MAIN, entry)
    return base64.b64encode(buffer.getvalue()).decode()


def _zipped(members: Mapping[str, bytes]) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for member, content in members.items():
            made.writestr(member, content)
    return base64.b64encode(buffer.getvalue()).decode()

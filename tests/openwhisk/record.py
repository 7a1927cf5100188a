"""`python -m tests.openwhisk.record`: plays the requests of script.py against a real OpenWhisk, and writes down what it
answers as tests/api/more-sessions.jsonl: one JSON object per line, with placeholders for what differs from run to run.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from tests.api.conftest import Caller
from tests.api.sessions import FILES, Replay
from tests.api.targets import empty
from tests.openwhisk.script import SESSIONS, Request
from tests.openwhisk.server import OpenWhisk

HEADERS = ("www-authenticate", "x-openwhisk-activation-id", "location")
"""Those of an answer that matter; a type that is not JSON, and what an OPTIONS says, besides."""
CORS = ("access-control-allow-origin", "access-control-allow-headers", "access-control-allow-methods")
TIMES = {
    **dict.fromkeys(("start", "end", "updated"), "<time>"),
    **dict.fromkeys(("duration", "waitTime", "initTime"), "<ms>"),
}
_ID = re.compile(r"(?<![0-9a-zA-Z])[0-9a-f]{32}(?![0-9a-zA-Z])")
_LOG_TIME = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z *")
SETTLE_S = 1.5
"""By then activations that have ended are stored."""


def main() -> int:
    with OpenWhisk() as server:
        keys = server.keys
        with (
            Caller(server.url, "guest", keys["guest"]) as owner,
            Caller(server.url, "whisk.system", keys["whisk.system"]) as other,
        ):
            lines = [json.dumps(step) for name in SESSIONS for step in _record(name, owner, other)]
    FILES[1].write_text("\n".join(lines) + "\n")
    print(f"{len(SESSIONS)} sessions, {len(lines)} steps")
    return 0


def _record(session: str, owner: Caller, other: Caller) -> Iterator[Mapping[str, Any]]:
    empty(owner)
    empty(other)
    time.sleep(SETTLE_S)  # nothing of the session before is stored later
    recorder = Recorder(owner, other)
    for number, request in enumerate(SESSIONS[session], 1):
        yield {"session": session, "step": number, **recorder.step(request)}


class Recorder:
    """One session: what it has seen of names and ids, and by which placeholder it writes them."""

    def __init__(self, owner: Caller, other: Caller) -> None:
        self._replay = Replay(owner, other)
        self._names = {owner.namespace: "<ns>", other.namespace: "<other>"}
        self._ids: dict[str, str] = {}

    def step(self, request: Request) -> Mapping[str, Any]:
        if request["method"] == "GET" and "/activations" in request["path"]:
            time.sleep(SETTLE_S)
        answer = self._replay.send(request)
        headers = {name: self._text(answer.headers[name]) for name in _telling(request, answer)}
        body = self._body(answer)
        self._replay.learn({placeholder: id for id, placeholder in self._ids.items()})
        return {"request": request, "response": {"status": answer.status_code, "headers": headers, "body": body}}

    def _body(self, answer: httpx.Response) -> Any:
        if not answer.content:
            return None
        if answer.headers.get("content-type", "").startswith("application/json"):
            return self._value(answer.json())
        return self._text(answer.text)

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() == {"error", "code"}:
                value = {**value, "code": "<transactionId>"}
            if value.get("key") in TIMES:
                return {**value, "value": TIMES[value["key"]]}
            return {self._text(key): self._field(key, item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._value(item) for item in value]
        return self._text(value) if isinstance(value, str) else value

    def _field(self, key: str, value: Any) -> Any:
        if key in ("build", "buildno"):
            return "<version>"
        return TIMES[key] if key in TIMES and isinstance(value, int) else self._value(value)

    def _text(self, text: str) -> str:
        text = _LOG_TIME.sub("<time> ", text)
        text = _ID.sub(lambda match: self._ids.setdefault(match[0], f"<activationId{len(self._ids) + 1}>"), text)
        for name, placeholder in self._names.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", placeholder, text)
        return re.sub(r"[ax]{1000,}", lambda match: f"<{len(match[0])} characters>", text)


def _telling(request: Request, answer: httpx.Response) -> list[str]:
    """The headers that are written down."""
    is_json = answer.headers.get("content-type", "application/json") == "application/json"
    names = [*HEADERS, *(CORS if request["method"] == "OPTIONS" else ()), *(() if is_json else ("content-type",))]
    return [name for name in names if name in answer.headers]


if __name__ == "__main__":
    sys.exit(main())

"""The CloudEvent, as a workflow's author sees it: the structured JSON object, with its attributes as properties.

CloudEvents 1.0.2, JSON format. A plain `dict` underneath, so that it is what a function gets, returns and prints.
Checking it against the specification is the server's part (`eventmill.events`).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

    JsonObject = Dict[str, Any]
else:
    JsonObject = dict

ATTRIBUTES = ("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema")
"""The attributes that the specification defines; `data` and `data_base64` are the payload, all else extensions."""

PATHS_ENV = "EVENTMILL_PATHS"
"""Environment variable with the server's `[[paths]]` table: a JSON list of [subject prefix, local prefix]."""


class Event(JsonObject):
    """A CloudEvent 1.0 in its structured JSON form.

    >>> event = Event.new("org.example.done", "//lab/device", subject="/run/1.h5", data={"frames": 3})
    >>> event.subject, event["data"]["frames"]
    ('/run/1.h5', 3)
    """

    @classmethod
    def new(
        cls,
        type: str,
        source: str,
        *,
        subject: Optional[str] = None,
        data: Any = None,
        id: Optional[str] = None,
        time: Optional[str] = None,
        **extensions: Any,
    ) -> Event:
        """Make an event; `id` is random and `time` is now unless given; `extensions` are extension attributes."""
        from datetime import datetime, timezone  # here and below: what few workers need is loaded when it is

        event = cls(
            specversion="1.0",
            id=id or os.urandom(16).hex(),
            source=source,
            type=type,
            time=time or datetime.now(timezone.utc).isoformat().replace("+00:00", "Z"),
            **extensions,
        )
        if subject is not None:
            event["subject"] = subject
        if data is not None:
            event["datacontenttype"] = "application/json"
            event["data"] = data
        return event

    @property
    def id(self) -> str:
        return str(self["id"])

    @property
    def source(self) -> str:
        return str(self["source"])

    @property
    def type(self) -> str:
        return str(self["type"])

    @property
    def subject(self) -> Optional[str]:
        return self.get("subject")

    @property
    def time(self) -> Optional[str]:
        return self.get("time")

    @property
    def data(self) -> Any:
        return self.get("data")

    @property
    def extensions(self) -> Dict[str, Any]:
        return {k: v for k, v in self.items() if k not in ATTRIBUTES and k not in ("data", "data_base64")}

    @property
    def path(self) -> str:
        """Where this machine sees the file that the event is about: `subject`, mapped by the server's `[[paths]]`."""
        if self.subject is None:
            raise LookupError(f"event {self.get('id')} has no subject, and so no path")
        return local_path(self.subject)


def local_path(subject: str) -> str:
    """Map a subject to this machine's path by the longest matching prefix of `[[paths]]`; unchanged without one."""
    import json

    table = json.loads(os.environ.get(PATHS_ENV) or "[]")
    for prefix, local in sorted(table, key=lambda row: -len(row[0])):
        if subject == prefix or subject.startswith(prefix.rstrip("/") + "/"):
            return str(local).rstrip("/") + subject[len(prefix.rstrip("/")) :]
    return subject

"""A stand-in for the Confluent Schema Registry: the few answers over HTTP that a reader of records needs.

Not the registry itself, of which there is no package to run here: schemas by number, versions of subjects, the
registry's own codes for what it hasn't got, basic authentication, and failures as they are asked for.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"


class Registry:
    """`add` schemas; `url`; `asked` lists the paths that were asked for. As a context it is stopped at the end."""

    def __init__(self) -> None:
        self.schemas: dict[int, dict[str, Any]] = {}
        self.subjects: dict[tuple[str, int], int] = {}
        self.asked: list[str] = []
        self.answer: tuple[int, bytes] | None = None
        """Given to every question, if it is set: a status and a body."""
        self.answers: dict[int, tuple[int, bytes]] = {}
        """Given to questions about a schema with this number."""
        self.delay_s = 0.0
        """For every answer."""
        self.user_info: str | None = None
        """`user:password`, if somebody has to say it."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, schema: Any, kind: str = "AVRO", subject: str = "", references: tuple[str, ...] = ()) -> int:
        """A schema's number; `references`: names of types that are subjects here, in their first version."""
        number = len(self.schemas) + 1
        document: dict[str, Any] = {"schema": schema if isinstance(schema, str) else json.dumps(schema)}
        if kind != "AVRO":  # which the registry leaves out
            document["schemaType"] = kind
        if references:
            document["references"] = [{"name": name, "subject": name, "version": 1} for name in references]
        self.schemas[number] = document
        if subject:
            self.subjects[subject, 1] = number
        return number

    def reply(self, path: str, authorization: str | None) -> tuple[int, bytes]:
        self.asked.append(path)
        time.sleep(self.delay_s)
        if self.answer is not None:
            return self.answer
        if self.user_info is not None and authorization != _basic(self.user_info):
            return 401, json.dumps({"error_code": 401, "message": "Unauthorized"}).encode()
        match path.partition("?")[0].strip("/").split("/"):
            case ["schemas", "types"]:
                return 200, b'["JSON", "PROTOBUF", "AVRO"]'
            case ["schemas", "ids", number] if int(number) in self.answers:
                return self.answers[int(number)]
            case ["schemas", "ids", number]:
                return self._found(self.schemas.get(int(number)), 40403, "Schema not found")
            case ["subjects", subject, "versions", version]:
                known = self.subjects.get((subject, int(version)))
                more = {"subject": subject, "version": int(version), "id": known}
                found = None if known is None else {**self.schemas[known], **more}
                return self._found(found, 40401, "Subject not found")
        return 404, json.dumps({"error_code": 404, "message": "HTTP 404 Not Found"}).encode()

    def _found(self, document: dict[str, Any] | None, code: int, message: str) -> tuple[int, bytes]:
        if document is None:
            return 404, json.dumps({"error_code": code, "message": message}).encode()
        return 200, json.dumps(document).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, body = registry.reply(self.path, self.headers["Authorization"])
                self.send_response(status)
                self.send_header("Content-Type", MEDIA_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _basic(user_info: str) -> str:
    return f"Basic {base64.b64encode(user_info.encode()).decode()}"


def framed(number: int, value: bytes) -> bytes:
    """A value in Confluent's wire format."""
    return b"\0" + number.to_bytes(4, "big") + value

"""HTTP on a connection, as uvicorn speaks it, with what it leaves open: a bound on what is kept of a request before
anybody has looked at it, and error documents where the parser gives up.

It must do next to nothing per chunk: every byte that comes in passes here.
"""

from __future__ import annotations

import os

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX = 64 << 10
"""Request line and headers together; trailers likewise."""


class Bounded(HttpToolsProtocol):
    """A connection is closed when more than this has come in without a head, a piece of a body or an end coming of it.
    (What a head that is complete may have, the front checks: one read may bring more.)"""

    _advanced = False
    _pending = 0
    _in_head = False

    def data_received(self, data: bytes) -> None:
        self._advanced = False
        super().data_received(data)
        self._pending = 0 if self._advanced else self._pending + len(data)
        if self._pending > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._send_refusal(431, "Request Header Fields Too Large", f"more than {HEAD_BYTES_MAX} bytes of headers")

    def on_message_begin(self) -> None:
        self._advanced = self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer, which nobody wants
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._advanced, self._in_head = True, False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._advanced = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._send_refusal(400, "Bad Request", "This is not HTTP as it should be.")

    def _send_refusal(self, status: int, phrase: str, why: str) -> None:
        """Answer, unless another answer is being sent or has to come first, and close."""
        if self.cycle is None or self.cycle.response_complete or not (self.cycle.response_started or self.pipeline):
            if self.cycle is not None:
                self.cycle.disconnected = True  # what it would still say is too late
            body = orjson.dumps({"error": why, "code": os.urandom(16).hex()})
            head = (
                f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

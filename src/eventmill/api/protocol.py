"""HTTP on a connection, as uvicorn speaks it, with what it leaves open: bounds on what is kept of a request before
anybody has looked at it, on how long it may take to come, on how many connections there are; error documents where the
parser gives up; and bodies of requests that offer another protocol.

It must do next to nothing per chunk: every byte that comes in passes here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import ClassVar

import orjson
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_log = logging.getLogger(__name__)

HEAD_BYTES_MAX = 64 << 10
"""Request line and headers together; trailers likewise."""
_TOLD_EVERY_S = 60.0
_STATUS = b"HTTP/1.1 "
_JOINED_BYTES_MAX = 64 << 10


class Bounded(HttpToolsProtocol):
    """A connection is closed when more than `HEAD_BYTES_MAX` have come in without a head, a piece of a body or an end
    coming of it (what a head that is complete may have, the front checks: one read may bring more); or when nothing has
    come of it for `patience_s`, though something is to come. (One that has been answered, uvicorn closes sooner.)"""

    connections_max: ClassVar[int] = 1000
    """Further ones are refused at once; those that there are go on."""
    patience_s: ClassVar[float] = 30.0
    _told: ClassVar[float] = -_TOLD_EVERY_S

    _advanced = False
    _pending = 0
    _in_head = False
    _in_message = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Joining(transport, self.loop))
        if len(self.connections) > self.connections_max:
            self._tell()
            self._send_refusal(503, "Service Unavailable", "too many connections", "retry-after: 1\r\n")
        else:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._advanced = False
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except HttpParserError:  # anybody can send what is none, as often as they like: not for the log
            self._send_refusal(400, "Bad Request", "This is not HTTP as it should be.")
        self._pending = 0 if self._advanced else self._pending + len(data)
        if self._pending > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._send_refusal(431, "Request Header Fields Too Large", f"more than {HEAD_BYTES_MAX} bytes of headers")
        elif self._advanced and not self._in_message:
            self._expect_nothing()
        elif self._advanced or self._timer is None:
            self._expect()

    def _parse(self, data: bytes | memoryview) -> None:
        """Let the parser have it all. Raises HttpParserError."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as e:
                data = memoryview(data)[e.args[0] :]
                self._decline_upgrade()

    def _decline_upgrade(self) -> None:
        """Behind a head that offers another protocol (h2c, say, as Java's client does) the parser goes on with the next
        request, whatever the head says of a body. We go on with HTTP/1.1, so that there a body is what it is elsewhere:
        a new parser is told the head once more, without the offer. What that parser makes of it is known already, and
        the methods below pass over it (it is within a message, and not within its head)."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        # by POST: CONNECT would be an offer by itself
        self.parser.feed_data(b"POST / HTTP/%b\r\n%b\r\n" % (version, b"".join(lines)))

    def _expect(self) -> None:
        """Something has to come of this connection before long."""
        self._expect_nothing()
        self._timer = self.loop.call_later(self.patience_s, self._close_idle)

    def _expect_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_idle(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        is_answering = not self._in_message and self.cycle is not None and not self.cycle.response_complete
        if self.flow.read_paused or is_answering:  # it is we who are late
            self._expect()
        elif self._in_message:
            self._send_refusal(408, "Request Timeout", f"nothing has come for {self.patience_s:g} s")
        else:
            self.transport.close()

    def _tell(self) -> None:
        if time.monotonic() - Bounded._told >= _TOLD_EVERY_S:
            Bounded._told = time.monotonic()
            _log.warning(
                "connections are refused: there are %d, the most allowed (server.connections_max)", self.connections_max
            )

    def on_message_begin(self) -> None:
        if self._in_message:  # told once more
            return
        self._advanced = self._in_head = self._in_message = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer, which nobody wants
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._in_head:
            return
        self._advanced, self._in_head = True, False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # it takes the head for the whole of it
            return
        self._advanced, self._in_message = True, False
        super().on_message_complete()

    def _send_refusal(self, status: int, phrase: str, why: str, headers: str = "") -> None:
        """Answer, unless another answer is being sent or has to come first, and close."""
        if self.cycle is None or self.cycle.response_complete or not (self.cycle.response_started or self.pipeline):
            if self.cycle is not None:
                self.cycle.disconnected = True  # what it would still say is too late
            body = orjson.dumps({"error": why, "code": os.urandom(16).hex()})
            head = (
                f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"connection: close\r\n{headers}\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


class _Joining(asyncio.Transport):
    """A connection on which the head of an answer waits for what follows it, but not beyond the loop's next turn: the
    two make one packet, and wake the client up once. What is written behind its end is dropped: uvloop would raise, and
    of several requests that wait on a connection only the last is told of its end."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        for name in ("is_closing", "get_extra_info", "pause_reading", "resume_reading", "is_reading"):
            setattr(self, name, getattr(transport, name))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) > _JOINED_BYTES_MAX:
            self._send_head()
        elif self._head:
            self._head, data = b"", self._head + data
        elif bytes(data[: len(_STATUS)]) == _STATUS:
            self._head = bytes(data)
            self._loop.call_soon(self._send_head)
            return
        if not self._transport.is_closing():
            self._transport.write(data)

    def _send_head(self) -> None:
        self._head, head = b"", self._head
        if head and not self._transport.is_closing():
            self._transport.write(head)

    def close(self) -> None:
        self._send_head()
        self._transport.close()

    def abort(self) -> None:
        self._head = b""
        self._transport.abort()


def bounded(connections_max: int) -> type[Bounded]:
    """The protocol for a server with at most so many connections."""

    class Limited(Bounded):
        pass

    Limited.connections_max = connections_max
    return Limited

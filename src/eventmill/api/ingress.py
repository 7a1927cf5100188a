"""POST /events: CloudEvents over HTTP, one or many. The hot path: checked, appended, answered when they are durable."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from eventmill.api.auth import identity_of
from eventmill.api.errors import Refusal
from eventmill.api.routing import route
from eventmill.api.services import Services
from eventmill.api.wire import Json, read_body
from eventmill.events import from_http
from eventmill.sdk.event import Event
from eventmill.store import Identity

RESERVED = "/eventmill/"
"""Sources of the events that the server makes itself: a chain must be able to believe them."""
BATCH_EVENTS_OF_FULL_SIZE = 16
"""A request's body may be as large as this many events of the largest size; a batch may have more, smaller ones."""


def routes(services: Services) -> list[BaseRoute]:
    limits = services.settings.limits
    bytes_max = BATCH_EVENTS_OF_FULL_SIZE * limits.event_bytes

    async def post(request: Request) -> Response:
        body = await read_body(request, bytes_max)
        events = from_http(request.headers, body, limits=limits)
        _check_sources(events, identity_of(request))
        await services.backbone.append(events)
        return Json({"accepted": len(events)}, 202)

    return [route("POST", "/events", post)]


def _check_sources(events: list[Event], identity: Identity) -> None:
    """A key posts events in the name of its own sources only. Raises Refusal (403)."""
    for source in {event["source"] for event in events}:
        if source.startswith(RESERVED):
            raise Refusal(f"attribute 'source': '{RESERVED}…' is the server's own, for completions and ticks", 403)
        if not identity.may_post(source):
            own = ", ".join(identity.sources) or "none"
            raise Refusal(f"attribute 'source': this key may not post events of '{source[:200]}' (it may: {own})", 403)

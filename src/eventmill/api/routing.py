"""Routes as OpenWhisk has them: a path answers the verbs that it names, HEAD not among them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

Endpoint = Callable[[Request], Awaitable[Response]]

NAMESPACE = "/api/v1/namespaces/{namespace}"
OWN = "/eventmill/v1"
CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-headers": "Authorization, Origin, X-Requested-With, Content-Type, Accept, User-Agent",
}
"""What answers tell browsers; which verbs, each face says itself."""


class _Handler:
    """Answers a request with nothing between: what an endpoint raises is the front's, which Starlette's own wrapping of
    functions would only pass on."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def route(method: str, path: str, endpoint: Endpoint) -> Route:
    made = Route(path, _Handler(endpoint))
    made.methods = {method}
    return made

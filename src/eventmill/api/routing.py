"""Routes as OpenWhisk has them: a path answers the verbs that it names, HEAD not among them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Endpoint = Callable[[Request], Awaitable[Response]]

NAMESPACE = "/api/v1/namespaces/{namespace}"
OWN = "/eventmill/v1"
CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-headers": "Authorization, Origin, X-Requested-With, Content-Type, Accept, User-Agent",
}
"""What answers tell browsers; which verbs, each face says itself."""


def route(method: str, path: str, endpoint: Endpoint) -> Route:
    made = Route(path, endpoint, methods=[method])
    made.methods = {method}
    return made

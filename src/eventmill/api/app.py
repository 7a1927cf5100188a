"""The HTTP face of a server, put together."""

from __future__ import annotations

from typing import NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request

from eventmill.api import health, info, ingress, job_ends
from eventmill.api.actions import Actions
from eventmill.api.activations import Activations
from eventmill.api.auth import Authenticator
from eventmill.api.errors import NO_SUCH_PATH, Refusal
from eventmill.api.front import Front
from eventmill.api.invocation import Invocations
from eventmill.api.namespaces import Namespaces
from eventmill.api.own import Own
from eventmill.api.packages import Packages
from eventmill.api.revisions import Revisions
from eventmill.api.rules import Rules
from eventmill.api.services import Services
from eventmill.api.throttle import Throttle
from eventmill.api.triggers import Triggers
from eventmill.api.web import Web


def create_app(services: Services) -> Starlette:
    """The ASGI application. It starts and stops nothing: `services` run before it and after it.

    The hot paths come first, since routes are tried in order.
    """
    revisions, throttle = Revisions(), Throttle(services.settings.limits)
    authenticator = Authenticator(services.store, services.signer)
    invocations = Invocations(services, revisions, throttle)
    routes = [
        *ingress.routes(services),
        *Actions(services, invocations).routes(),
        *Triggers(services, throttle).routes(),
        *Activations(services, revisions).routes(),
        *Web(services, invocations).routes(),
        *Rules(services).routes(),
        *Packages(services).routes(),
        *Own(services).routes(),
        *Namespaces(services, authenticator).routes(),
        *info.routes(services),
        *health.routes(services),
        *job_ends.routes(services),
    ]
    front = Middleware(Front, authenticator=authenticator, server=services.settings.server, metrics=services.metrics)
    app = Starlette(routes=routes, middleware=[front], exception_handlers={HTTPException: _no_route})
    app.router.redirect_slashes = False
    app.state.authenticator = authenticator
    return app


def _no_route(request: Request, error: Exception) -> NoReturn:
    """No such path, or not this verb. Under /api/v1 OpenWhisk knows no 405, elsewhere nothing else."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if path == "/api/v1" or path.startswith("/api/v1/"):
        raise Refusal(NO_SUCH_PATH, 404)
    if error.status_code == 404 and not path.startswith("/eventmill/"):
        raise Refusal("HTTP method not allowed, supported methods: OPTIONS", 405)
    raise Refusal(NO_SUCH_PATH if error.status_code == 404 else error.detail, error.status_code, error.headers)

"""The HTTP face of a server, put together."""

from __future__ import annotations

from starlette.routing import BaseRoute, Router

from eventmill.api import health, info, ingress, job_ends
from eventmill.api.actions import Actions
from eventmill.api.activations import Activations
from eventmill.api.auth import Authenticator
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


def create_app(services: Services) -> Front:
    """The ASGI application. It starts and stops nothing: `services` run before it and after it."""
    authenticator = Authenticator(services.store, services.signer)
    router = Router(routes_of(services, authenticator), redirect_slashes=False)
    return Front(router, authenticator=authenticator, server=services.settings.server, metrics=services.metrics)


def routes_of(services: Services, authenticator: Authenticator) -> list[BaseRoute]:
    """The hot paths come first, since routes are tried in order."""
    revisions, throttle = Revisions(), Throttle(services.settings.limits)
    invocations = Invocations(services, revisions, throttle)
    return [
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

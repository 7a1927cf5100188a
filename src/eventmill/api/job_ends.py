"""POST /eventmill/v1/job-ends/ACTIVATION/ATTEMPT: a job says itself that it has ended, by the token it was given.

No key opens it, and the token opens nothing else. There is no body: what a job would say of its end is not believed
anyway, the batch system is asked. It answers 202 as often as it is asked while the attempt is under way, else 401,
which does not tell whether there is such an activation.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from eventmill.api.errors import Refusal
from eventmill.api.routing import route
from eventmill.api.services import Services
from eventmill.api.wire import Json
from eventmill.executors.jobs import END_PATH, JOB_END


def routes(services: Services) -> list[BaseRoute]:
    def is_believed(token: str, activation: str, attempt: str) -> bool:
        # the token first: who has none can't make anybody look anywhere
        return services.signer.check(token, JOB_END, activation, attempt) and services.engine.noticed(
            activation, int(attempt)
        )

    async def ended(request: Request) -> Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        named = request.path_params["activation"], request.path_params["attempt"]
        if scheme.lower() != "bearer" or not is_believed(token.strip(), *named):
            raise Refusal("The supplied authentication is invalid", 401, {"www-authenticate": "Bearer"})
        return Json({}, 202)

    return [route("POST", END_PATH, ended)]

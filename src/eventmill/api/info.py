"""What clients ask about the server itself: kinds, limits, versions, their namespace."""

from __future__ import annotations

from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from eventmill.api.auth import identity_of, own_namespace
from eventmill.api.documents import LIMITS, LOGS_MB_MAX, MEMORY_MB_MIN, TIMEOUT_MS_MIN
from eventmill.api.routing import NAMESPACE, route
from eventmill.api.services import Services
from eventmill.api.wire import Json
from eventmill.config import Limits
from eventmill.entities import Document
from eventmill.entities.kinds import Kinds
from eventmill.executors.kinds import kinds_of

_MB = 1 << 20


def routes(services: Services) -> list[BaseRoute]:
    limits = services.settings.limits
    kinds = kinds_of(services.settings.functions)

    async def root(request: Request) -> Response:
        return Json(_info(limits, kinds))

    async def ping(request: Request) -> Response:
        return PlainTextResponse("pong")

    async def api(request: Request) -> Response:
        return Json(_api())

    async def namespaces(request: Request) -> Response:
        return Json([identity_of(request).namespace])

    async def effective_limits(request: Request) -> Response:
        own_namespace(request)
        return Json(_limits(limits))

    return [
        route("GET", "/", root),
        route("GET", "/ping", ping),
        route("GET", "/api/v1", api),
        route("GET", "/api/v1/", api),
        route("GET", "/api/v1/namespaces", namespaces),
        route("GET", "/api/v1/namespaces/", namespaces),
        route("GET", NAMESPACE + "/limits", effective_limits),
        route("GET", NAMESPACE + "/limits/", effective_limits),
    ]


def _info(limits: Limits, kinds: Kinds) -> Document:
    """OpenWhisk's info document: kinds, and limits in ms and bytes. Rates are bounded by what may be under way."""
    bounds = {
        "duration": (TIMEOUT_MS_MIN, limits.function_timeout_ms),
        "memory": (MEMORY_MB_MIN * _MB, limits.function_memory_mb * _MB),
        "logs": (0, LOGS_MB_MAX * _MB),
    }
    ranges = {
        f"{scope}{end}_action_{what}": value
        for what, ends in bounds.items()
        for end, value in zip(("min", "max"), ends, strict=True)
        for scope in ("", "default_")
    }
    return {
        "description": "OpenWhisk",
        "support": {"github": "https://github.com/apache/openwhisk/issues", "slack": "http://slack.openwhisk.org"},
        "api_paths": ["/api/v1"],
        "limits": {
            "actions_per_minute": limits.invocations_per_minute,
            "triggers_per_minute": limits.fires_per_minute,
            "concurrent_actions": limits.concurrent_invocations,
            "sequence_length": limits.sequence_components,
            **ranges,
        },
        "runtimes": {family: _runtimes(family, found) for family, found in kinds.families.items()},
    }


def _runtimes(family: str, kinds: tuple[str, ...]) -> list[Document]:
    names = (*kinds, "python:3") if family == "python" else kinds
    return [_runtime(name, kinds[-1]) for name in names]


def _runtime(kind: str, default: str) -> Document:
    return {
        "kind": kind,
        "image": f"eventmill/{default}",
        "deprecated": False,
        "default": kind == default,
        "attached": True,
        "requireMain": False,
    }


def _api() -> Document:
    release = version("eventmill")
    return {
        "description": "OpenWhisk API",
        "api_version": "1.0.0",
        "api_version_path": "v1",
        "build": release,
        "buildno": release,
        "swagger_paths": {"ui": "/docs", "api-docs": "/api-docs"},
    }


def _limits(limits: Limits) -> Document:
    """A namespace's limits: MB and ms."""
    return {
        "invocationsPerMinute": limits.invocations_per_minute,
        "concurrentInvocations": limits.concurrent_invocations,
        "firesPerMinute": limits.fires_per_minute,
        "minActionMemory": MEMORY_MB_MIN,
        "maxActionMemory": limits.function_memory_mb,
        "minActionLogs": 0,
        "maxActionLogs": LOGS_MB_MAX,
        "minActionTimeout": TIMEOUT_MS_MIN,
        "maxActionTimeout": limits.function_timeout_ms,
        "minActionConcurrency": LIMITS["concurrency"],
        "maxActionConcurrency": LIMITS["concurrency"],
        "maxParameterSize": f"{limits.payload_bytes} B",
        "maxActionInstances": limits.concurrent_invocations,
    }

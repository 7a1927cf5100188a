"""What the HTTP face refuses, in OpenWhisk's words: error documents `{"error", "code"}`, `code` being the request's id.

Owns the texts that clients compare and the status of every error that the rooms below raise. No secret and no payload
goes into an answer. Values only.
"""

from __future__ import annotations

from collections.abc import Mapping

from eventmill.errors import (
    Conflict,
    EventmillError,
    IllegalTransition,
    InvalidEntity,
    InvalidEvent,
    InvalidInput,
    LostPartition,
    NotFound,
    Throttled,
    Unavailable,
)

NO_SUCH_PATH = "The requested resource could not be found."
EXISTS = "resource already exists"
OTHER_COLLECTION = "Resource by this name exists but is not in this collection."
INVALID_KEY = "The supplied authentication is invalid"
INTERNAL = "There was an internal server error."


class Refusal(EventmillError):
    """A request that is refused with this status; `headers` go with the answer."""

    def __init__(self, text: str, status: int = 400, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = dict(headers or {})


def malformed(why: str) -> Refusal:
    """The body is not what is needed."""
    return Refusal(f"The request content was malformed:\n{why}")


def malformed_query(name: str, why: str) -> Refusal:
    return Refusal(f"The query parameter '{name}' was malformed:\n{why}")


def missing(name: str | None = None) -> Refusal:
    """There is no such thing; packages are named, all else is not (as OpenWhisk's answers have it)."""
    named = f"'{name}' " if name else ""
    return Refusal(f"The requested resource {named}does not exist.", 404)


def forbidden(resource: str) -> Refusal:
    return Refusal(f"The supplied authentication is not authorized to access '{resource}'.", 403)


def too_large(what: str, size: int, limit: int) -> Refusal:
    """The connection is closed with this answer: what remains of the body is not read."""
    return Refusal(f"{what} larger than allowed: {size} > {limit} bytes.", 413)


def status_of(error: EventmillError) -> int:
    """The HTTP status of an error of any room."""
    match error:
        case Refusal() | InvalidEntity() | InvalidEvent():
            return error.status
        case InvalidInput():
            return 400
        case NotFound():
            return 404
        case Conflict() | IllegalTransition():
            return 409
        case Throttled():
            return 429
        case Unavailable() | LostPartition():
            return 503
        case _:
            return 500

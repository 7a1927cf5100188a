"""OpenWhisk's own answers, as recorded, are ours: the sessions about entities."""

from __future__ import annotations

import pytest

from tests.api.conftest import Running
from tests.api.sessions import Replay, steps

DIFFERENT = {
    ("routes", 1): "the info document needs a key, as all but health does",
    ("routes", 2): "so does /ping",
    ("routes", 3): "so does the API's description",
    ("routes", 5): "we have no rates per minute",
    ("routes", 8): "with a wrong verb or path outside /api, too, the key comes first",
    ("routes", 9): "with a wrong verb or path outside /api, too, the key comes first",
    ("action-crud", 8): "nodejs is not a kind of ours, yet",
    ("action-crud", 9): "follows from the above",
    ("action-crud", 10): "follows from the above",
    ("action-crud", 11): "follows from the above",
    ("action-crud", 13): "follows from the above",
    ("action-crud", 19): "neither are images",
    ("action-refusals", 2): "names our kinds",
    ("action-refusals", 5): "images are no kind of ours",
    ("action-refusals", 8): "we want an object before we want its field",
}
"""Steps whose answer is meant to be another one, and why."""

ENTITIES = ("routes", "action-crud", "action-refusals", "names", "lists")


@pytest.mark.parametrize("session", ENTITIES)
def test_answers_as_openwhisk_does(server: Running, session: str) -> None:
    replay(server, session)


def replay(server: Running, session: str, upto: int | None = None) -> None:
    with server.caller() as owner, server.caller() as other:
        replay = Replay(owner, other)
        found = []
        for step in steps(session)[:upto]:
            answer = replay.send(step["request"])
            differences = replay.differences(step["response"], answer)
            if (session, step["step"]) not in DIFFERENT:
                found += [f"{session} {step['step']} {step['request']['path']}: {text}" for text in differences]
    assert not found, "\n".join(found)

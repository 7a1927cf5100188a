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
    ("packages", 9): "an activation does not know the binding that it was called through",
    ("results", 31): "the result's size is counted without the blanks of Python's encoder",
    ("results", 38): "functions get no key: only a digest of it is kept",
    ("triggers-rules", 17): "rules' actions get no __ow_headers",
    ("triggers-rules", 37): "the record of a firing does not know the trigger's version",
    ("sequences", 26): "components are pinned when a sequence begins: it fails before its first step",
}
"""Steps whose answer is meant to be another one, and why."""

_TIMED_OUT = "a time limit is told by the error alone; not by the annotation, nor by a log line"
DIFFERENT |= {("results", step): _TIMED_OUT for step in (26, 27, 29)}

RUNNING = ("packages", "invoke", "results", "activation-lists", "triggers-rules", "sequences")
ENTITIES = ("routes", "action-crud", "action-refusals", "names", "lists")


@pytest.mark.parametrize("session", ENTITIES)
def test_answers_as_openwhisk_does(server: Running, session: str) -> None:
    replay(server, session)


@pytest.mark.slow
@pytest.mark.parametrize("session", RUNNING)
def test_runs_what_openwhisk_runs(mill: Running, session: str) -> None:
    replay(mill, session)


def replay(server: Running, session: str) -> None:
    with server.caller() as owner, server.caller() as other:
        replay = Replay(owner, other)
        found = []
        for step in steps(session):
            differences = replay.step(step)
            if (session, step["step"]) not in DIFFERENT:
                found += [f"{session} {step['step']} {step['request']['path']}: {text}" for text in differences]
    assert not found, "\n".join(found)

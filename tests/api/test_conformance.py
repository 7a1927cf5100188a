"""OpenWhisk's own answers, as recorded, are those of a server: of ours, or with `--openwhisk` of any other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.api.differences import DIFFERENT, HEAD, PAGE, STATED, rows, seen
from tests.api.sessions import PATIENCE_S, Replay, needs_other, sessions
from tests.api.targets import Callers, Foreign, ours

ENTITIES = ("routes", "action-crud", "action-refusals", "names", "lists")
"""Sessions that run nothing: they take no time."""

EXCERPTS = ("waits", "conflict", "accept", "throttling", "deprecated")
"""Single steps out of something longer, which can't be replayed by themselves: `conflict` is a test below, `accept` and
`waits` are in `accepts` and `queries`, and test_throttling.py has what the others need, a server with other limits."""


@pytest.fixture(scope="module")
def foreign(pytestconfig: pytest.Config) -> Iterator[Foreign | None]:
    """The server that the command line names, if it does."""
    url, key, other = (pytestconfig.getoption(name) for name in ("openwhisk", "key", "other_key"))
    if url is None:
        yield None
    elif url == "real":
        from tests.openwhisk.server import OpenWhisk

        with OpenWhisk() as server:
            yield Foreign(server.url, (server.keys["guest"], server.keys["whisk.system"]))
    elif key is None:
        pytest.exit("--openwhisk needs the key of a namespace of that server: --key UUID:KEY", returncode=4)
    else:
        yield Foreign(url.rstrip("/"), tuple(filter(None, (key, other))))


@pytest.fixture
def callers(request: pytest.FixtureRequest, foreign: Foreign | None, session: str) -> Iterator[Callers]:
    if foreign is not None:
        with foreign.callers() as callers:
            yield callers
    else:
        with ours(request.getfixturevalue("server" if session in ENTITIES else "mill")) as callers:
            yield callers


def _marked(session: str) -> object:
    return pytest.param(session, marks=() if session in ENTITIES else (pytest.mark.slow,))


@pytest.mark.parametrize("session", [_marked(session) for session in sessions() if session not in EXCERPTS])
def test_answers_as_openwhisk_does(callers: Callers, session: str) -> None:
    if callers.other is None and needs_other(session):
        pytest.skip("needs a second namespace: --other-key UUID:KEY")
    replay = Replay(callers.owner, callers.other, sizes=not callers.is_ours)
    found = []
    for step in sessions()[session]:
        difference = DIFFERENT.get((session, step["step"])) if callers.is_ours else None
        differences = replay.step(step, 1.0 if difference else PATIENCE_S)
        if difference:
            differences = [] if differences else [f"no longer different: {difference}"]
        found += [f"{session} {step['step']} {step['request']['path']}: {text}" for text in differences]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("session", ["conflict"])
def test_updates_at_once(callers: Callers, session: str) -> None:
    """Each is done, or refused as lost."""
    made, lost = sessions()[session]
    replay = Replay(callers.owner, callers.other)
    assert replay.step(made) == []
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(replay.send, [lost["request"]] * 6))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert [text for answer in refused for text in replay.differences(lost["response"], answer)] == []
    assert len(refused) < 6
    assert not (callers.is_ours and refused)


def test_the_page_lists_the_differences() -> None:
    assert HEAD + rows() + "\n##" in PAGE.read_text()
    assert seen() == set(STATED)
    assert all(0 < step <= len(sessions()[session]) for session, step in DIFFERENT)

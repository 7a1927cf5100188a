"""POST /events: the three modes, what is refused, and that an answer means that the event is durable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Caller, Running, running

ONE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"


def event(**attributes: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": "1", "source": "//lab/a", "type": "org.example.x", **attributes}


def post(caller: Caller, body: Any, content_type: str | None = ONE, headers: Mapping[str, str] | None = None) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {**(headers or {}), **({} if content_type is None else {"content-type": content_type})}
    return caller.post("/events", content=content, headers=sent)


def log_of(server: Running) -> list[dict[str, Any]]:
    """What is in the log."""
    read = server.services.store.read
    return [json.loads(value) for value in server.run(lambda: read(lambda tx: tx.records(0, 100_000, 1 << 30)[1]))]


def test_all_three_modes(server: Running, caller: Caller) -> None:
    mark = caller.namespace
    answers = [
        post(caller, event(id="structured", subject=mark, data={"a": 1})),
        post(caller, [event(id="b1", subject=mark), event(id="b2", subject=mark, ext="x")], BATCH),
        post(
            caller, b'{"a": 2}', "application/json",
            {"ce-specversion": "1.0", "ce-id": "binary", "ce-source": "//lab/a", "ce-type": "t", "ce-subject": mark},
        ),
        post(caller, [], BATCH),
    ]  # fmt: skip
    assert [(a.status_code, a.json()["accepted"]) for a in answers] == [(202, 1), (202, 2), (202, 1), (202, 0)]
    mine = [e for e in log_of(server) if e.get("subject") == mark]
    assert [e["id"] for e in mine] == ["structured", "b1", "b2", "binary"]
    assert mine[0]["data"] == {"a": 1}
    assert mine[2]["ext"] == "x"
    assert mine[3]["data"] == {"a": 2}


@pytest.mark.parametrize(
    ("body", "content_type", "status", "text"),
    [
        (b"", ONE, 400, ""),
        (b"{", ONE, 400, ""),
        (b"[]", ONE, 400, ""),
        (b"{}", BATCH, 400, ""),
        (event(id=""), ONE, 400, "attribute 'id': must not be empty"),
        ({k: v for k, v in event().items() if k != "type"}, ONE, 400, "attribute 'type': is missing"),
        (event(specversion="0.3"), ONE, 400, "attribute 'specversion': "),
        (event(source="no uri at all"), ONE, 400, "attribute 'source': "),
        (event(time="yesterday"), ONE, 400, "attribute 'time': "),
        (event(BadName=1), ONE, 400, "attribute 'BadName': "),
        (event(data=1, data_base64="AAAA"), ONE, 400, "attribute 'data_base64': "),
        ([event(), event(id=3)], BATCH, 400, "id"),
        ([event()] * 1001, BATCH, 413, "1000"),
        (event(data="x" * (1 << 20)), ONE, 413, ""),
        (b"x" * (16 << 20) + b"x", BATCH, 413, "Request larger than allowed: 16777217 > 16777216 bytes."),
        (event(), "application/json", 415, "Content-Type"),
        (event(), None, 415, "Content-Type"),
        (event(), "application/cloudevents+xml", 415, "application/cloudevents+xml"),
        (event(data=json.loads("[" * 300 + "]" * 300)), ONE, 400, ""),
        (event(data=json.loads("[" * 252 + "]" * 252)), ONE, 400, ""),
    ],
)  # fmt: skip
def test_what_is_no_event(
    server: Running, caller: Caller, body: Any, content_type: str, status: int, text: str
) -> None:
    before = len(log_of(server))
    answer = post(caller, body, content_type)
    assert answer.status_code == status, answer.text
    assert text in answer.json()["error"]
    assert len(log_of(server)) == before


def test_a_key_posts_only_in_the_name_of_its_sources(server: Running) -> None:
    with server.caller(["//lab/a", "/mine/"]) as caller:
        assert post(caller, event(source="//lab/a/detector")).status_code == 202
        assert post(caller, event(source="/mine/x")).status_code == 202
        before = len(log_of(server))
        for source in ("//lab/b", "//LAB/a", "/mine", "urn:x"):
            answer = post(caller, [event(), event(source=source)], BATCH)
            assert answer.status_code == 403
            assert answer.json()["error"].startswith("attribute 'source': ")
            assert source in answer.json()["error"]
        assert len(log_of(server)) == before
    with server.caller([]) as caller:
        assert post(caller, event()).status_code == 403


def test_nobody_posts_completions_and_ticks(server: Running, caller: Caller) -> None:
    before = len(log_of(server))
    answer = post(caller, event(source="/eventmill/schedules"))
    assert answer.status_code == 403
    assert "the server's own" in answer.json()["error"]
    assert len(log_of(server)) == before


@pytest.mark.slow
def test_what_was_accepted_is_there_after_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as server, server.caller() as caller:
        for n in range(20):
            assert post(caller, [event(id=f"{n}-{i}") for i in range(10)], BATCH).status_code == 202
    with running(tmp_path) as server:
        assert [e["id"] for e in log_of(server)] == [f"{n}-{i}" for n in range(20) for i in range(10)]


def test_no_room_is_an_answer(tmp_path: Path) -> None:
    with running(tmp_path) as server, server.caller() as caller:
        server.services.backbone._room._disk_free = 1 << 62  # type: ignore[attr-defined]
        answer = post(caller, event())
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "make room" in answer.json()["error"]

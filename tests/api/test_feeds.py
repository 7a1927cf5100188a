"""What comes with the server: /whisk.system/utils, and the feeds of /whisk.system/alarms."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventmill.api.alarms import _minutes, _Wrong
from tests.api.conftest import Caller, Running, running
from tests.cli.server import started, wait_for

pytestmark = pytest.mark.slow

SYSTEM = "/api/v1/namespaces/whisk.system"
FUTURE = "2999-01-01T00:00:00.000Z"
SECRET = "uuid-of-mine:that-nobody-may-read"


def call(caller: Caller, path: str, body: Any) -> Any:
    return caller.post(f"/api/v1/namespaces/{path}", json=body, params={"blocking": "true", "result": "true"})


@pytest.mark.parametrize(
    ("name", "given", "result"),
    [
        ("echo", {"a": [1]}, {"a": [1]}),
        ("cat", {"lines": ["a", "b"]}, {"lines": ["a", "b"], "payload": "a\nb"}),
        ("cat", {}, {"lines": [], "payload": ""}),
        ("head", {"lines": ["a", "b", "c"], "num": 2}, {"lines": ["a", "b"], "num": 2}),
        ("head", {"lines": ["a", "b"]}, {"lines": ["a"], "num": 1}),
        ("sort", {"lines": ["b", "a", "C"]}, {"lines": ["C", "a", "b"], "length": 3}),
        ("split", {"payload": "a\nb\r\nc"}, {"lines": ["a", "b", "c"], "payload": "a\nb\r\nc"}),
        ("split", {"payload": "a,b", "separator": ","}, {"lines": ["a", "b"], "payload": "a,b"}),
        ("smash", {"a": 1, "$fieldName": "p"}, {"p": {"a": 1}}),
        ("smash", {"a": 1}, {"error": "Expected an argument '$fieldName' of type 'string'."}),
    ],
)
def test_utils(user: Caller, name: str, given: Any, result: Any) -> None:
    answer = call(user, f"whisk.system/actions/utils/{name}", given)
    assert answer.json() == result
    assert answer.status_code == (502 if "error" in result else 200)


def test_utils_that_know_who_calls(user: Caller) -> None:
    assert call(user, "whisk.system/actions/utils/namespace", {}).json() == {"namespace": user.namespace}
    url = call(user, "whisk.system/actions/utils/hosturl", {"path": "a", "web": True, "ext": ".json"}).json()["url"]
    assert url.endswith(f"/api/v1/web/{user.namespace}/default/a.json")
    assert call(user, "whisk.system/actions/utils/date", {}).json()["date"].endswith("Z")


def test_in_a_sequence_as_the_manual_has_it(user: Caller) -> None:
    components = ["/whisk.system/utils/split", "/whisk.system/utils/sort"]
    user.put("actions/mySequence", {"exec": {"kind": "sequence", "components": components}})
    answer = call(user, "_/actions/mySequence", {"payload": "over, the, lazy", "separator": ", "})
    assert answer.json() == {"length": 3, "lines": ["lazy", "over", "the"]}


def test_everybody_reads_them_and_nobody_changes_them(user: Caller) -> None:
    packages = user.get(f"{SYSTEM}/packages").json()
    assert {package["name"] for package in packages} == {"utils", "alarms"}
    alarms = user.get(f"{SYSTEM}/packages/alarms").json()
    assert {feed["name"] for feed in alarms["feeds"]} == {"alarm", "interval", "once"}
    assert "def main" in user.get(f"{SYSTEM}/actions/utils/echo").json()["exec"]["code"]
    for method in ("PUT", "DELETE"):
        answer = user.request(method, f"{SYSTEM}/actions/utils/echo", json={} if method == "PUT" else None)
        assert answer.status_code == 403


def test_they_are_put_once(tmp_path: Path) -> None:
    def versions() -> Any:
        with running(tmp_path) as server, server.caller() as caller:
            found = [*caller.get(f"{SYSTEM}/packages").json(), *caller.get(f"{SYSTEM}/actions/utils/").json()]
            return sorted((one["name"], one["version"], one["updated"]) for one in found)

    before = versions()
    assert versions() == before
    with sqlite3.connect(tmp_path / "store.db") as connection:  # as if by another release
        connection.execute("UPDATE entities SET document=replace(document, 'utils', 'utils') WHERE name='utils'")
        connection.execute("DELETE FROM entities WHERE name='utils/cat'")
        connection.execute("INSERT INTO entities SELECT namespace, 'utils/old', collection, uid, updated, document,"
                           " revision, trigger FROM entities WHERE name='utils/echo'")  # fmt: skip
    assert [name for name, *_ in versions()] == [name for name, *_ in before]


# alarms


class Feeds:
    """The feeds as clients use them."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.triggers: Iterator[str] = iter(f"t{n}" for n in range(100))

    def trigger(self, feed: str) -> str:
        name = next(self.triggers)
        self.caller.put(f"triggers/{name}", {"annotations": [{"key": "feed", "value": f"/whisk.system/alarms/{feed}"}]})
        return name

    def call(self, feed: str, event: str, name: str, **parameters: Any) -> tuple[int, Any]:
        body = {"lifecycleEvent": event, "triggerName": f"/_/{name}", "authKey": SECRET, **parameters}
        answer = call(self.caller, f"whisk.system/actions/alarms/{feed}", body)
        return answer.status_code, answer.json()

    def config(self, feed: str, name: str) -> Any:
        status, read = self.call(feed, "READ", name)
        assert status == 200
        return {key: value for key, value in read["config"].items() if key not in ("name", "namespace")}

    def annotations(self, name: str) -> Any:
        return {a["key"]: a["value"] for a in self.caller.api("GET", f"triggers/{name}").json()["annotations"]}


@pytest.fixture
def feeds(user: Caller) -> Feeds:
    return Feeds(user)


DONE = (200, {"status": "success"})


def test_the_life_of_an_alarm(feeds: Feeds) -> None:
    name = feeds.trigger("alarm")
    payload = {"id": 1}
    assert (
        feeds.call("alarm", "CREATE", name, cron="0 3 * * *", timezone="Europe/Berlin", trigger_payload=payload) == DONE
    )
    annotations = feeds.annotations(name)
    assert annotations["schedule"] == {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "payload": payload}
    assert annotations["pattern"] == {
        "source": ["/eventmill/schedules"],
        "type": ["org.eventmill.schedule.tick"],
        "subject": [f"{feeds.caller.namespace}/{name}"],
    }
    status, read = feeds.call("alarm", "READ", name)
    assert status == 200
    assert read["config"] == {
        "name": name, "namespace": feeds.caller.namespace, "payload": payload, "cron": "0 3 * * *",
        "timezone": "Europe/Berlin",
    }  # fmt: skip
    assert read["status"]["active"] is True
    assert read["status"]["dateChangedISO"].endswith("Z")
    assert feeds.call("alarm", "UPDATE", name, cron="*/5 * * * * *", stopDate=FUTURE) == DONE
    config = feeds.config("alarm", name)
    assert (config["cron"], config["stopDate"], config["payload"]) == ("*/5 * * * * *", "2999-01-01T00:00:00Z", payload)
    assert feeds.call("alarm", "DELETE", name) == DONE
    assert set(feeds.annotations(name)) == {"feed"}
    assert feeds.call("alarm", "DELETE", name) == DONE
    assert feeds.call("alarm", "READ", name) == (502, {"error": "the trigger has no alarm"})


def test_intervals_and_what_is_due_once(feeds: Feeds) -> None:
    name = feeds.trigger("interval")
    assert feeds.call("interval", "CREATE", name, minutes="5", trigger_payload="text") == DONE
    config = feeds.config("interval", name)
    assert (config["minutes"], config["payload"]) == (5, {"payload": "text"})
    assert 0 < config["startDate"] - time.time() * 1000 <= 30_000
    name = feeds.trigger("once")
    assert feeds.call("once", "CREATE", name, date=FUTURE) == DONE
    config = feeds.config("once", name)
    assert config == {"date": "2999-01-01T00:00:00Z", "deleteAfterFire": "false", "payload": {}}
    due = int(time.time() * 1000) + 100_000
    assert feeds.call("once", "UPDATE", name, date=due) == DONE
    assert feeds.config("once", name)["date"] == due


def test_a_trigger_that_is_put_again_keeps_its_alarm(feeds: Feeds) -> None:
    name = feeds.trigger("alarm")
    feeds.call("alarm", "CREATE", name, cron="0 3 * * *")
    feeds.caller.put(f"triggers/{name}", {"parameters": [{"key": "a", "value": 1}]}, overwrite="true")
    assert "schedule" in feeds.annotations(name)
    feed = {"key": "feed", "value": "/whisk.system/alarms/alarm"}
    feeds.caller.put(f"triggers/{name}", {"annotations": [feed]}, overwrite="true")
    assert set(feeds.annotations(name)) == {"feed", "schedule", "pattern"}
    feeds.caller.put(f"triggers/{name}", {"annotations": []}, overwrite="true")
    assert feeds.annotations(name) == {}


@pytest.mark.parametrize(
    ("feed", "parameters", "error"),
    [
        ("alarm", {}, "alarms trigger feed is missing the cron parameter"),
        ("alarm", {"cron": "x"}, "cron pattern 'x' is not valid"),
        ("alarm", {"cron": "61 * * * *"}, "cron pattern '61 * * * *' is not valid"),
        ("alarm", {"cron": "0 3 * * *", "timezone": "Mars"}, "there is no time zone 'Mars' (such as 'Europe/Berlin')"),
        ("alarm", {"cron": "0 0 29 2 *", "startDate": "9998-12-31T00:00:00Z"}, "cron '0 0 29 2 *' is never due between "
         "start and stop"),
        ("alarm", {"cron": "0 3 * * *", "timezone": "cron 'x' fields"}, "there is no time zone "
         "\"cron 'x' fields\" (such as 'Europe/Berlin')"),
        ("alarm", {"cron": "0 3 * * *", "startDate": "x"}, "startDate parameter 'x' is not a valid Date"),
        ("alarm", {"cron": "0 3 * * *", "stopDate": 5}, "stopDate parameter '5' must be in the future"),
        ("interval", {}, "interval trigger feed is missing the minutes parameter"),
        ("interval", {"minutes": "x"}, "the minutes parameter must be an integer"),
        ("interval", {"minutes": 1.5}, "the minutes parameter must be an integer"),
        ("interval", {"minutes": "inf"}, "the minutes parameter must be an integer"),
        ("interval", {"minutes": "9" * 400}, "the minutes parameter must be an integer"),
        ("interval", {"minutes": True}, "the minutes parameter must be an integer"),
        ("interval", {"minutes": 10**8}, "every_s must be a number of seconds from 1 to 31622400"),
        ("interval", {"minutes": -1}, "minutes must be at least 1"),
        ("interval", {"minutes": 0}, "minutes must be at least 1"),
        ("interval", {"minutes": 5, "deleteAfterFire": "rules"}, "deleteAfterFire is not supported: the trigger stays, "
         "and does not fire any more"),
        ("alarm", {"cron": "0 3 * * *", "deleteAfterFire": True}, "deleteAfterFire is not supported: the trigger "
         "stays, and does not fire any more"),
        ("once", {}, "alarms once trigger feed is missing the date parameter"),
        ("once", {"date": FUTURE, "deleteAfterFire": "rules"}, "deleteAfterFire is not supported: the trigger stays, "
         "and does not fire any more"),
        ("once", {"date": FUTURE, "trigger_payload": 5}, "trigger_payload must be an object or a text"),
        ("once", {"triggerName": "/whisk.system/t"}, "Trigger authentication request failed."),
        ("once", {"triggerName": "/_/nosuch", "date": FUTURE}, "there is no trigger /_/nosuch"),
        ("once", {"triggerName": ""}, "no trigger name parameter was provided"),
        ("once", {"lifecycleEvent": "PAUSE"}, "unsupported lifecycleEvent"),
    ],
)  # fmt: skip
def test_refusals_are_the_feeds_own(feeds: Feeds, feed: str, parameters: dict[str, Any], error: str) -> None:
    body = {"lifecycleEvent": "CREATE", "triggerName": f"/_/{feeds.trigger(feed)}", **parameters}
    answer = call(feeds.caller, f"whisk.system/actions/alarms/{feed}", body)
    assert (answer.status_code, answer.json()) == (502, {"error": error})


@pytest.mark.parametrize("minutes", [float("inf"), float("nan"), 10**400])
def test_numbers_that_no_json_has(minutes: Any) -> None:
    with pytest.raises(_Wrong, match="must be an integer"):
        _minutes(minutes)


def test_a_pattern_of_the_author_is_not_replaced(feeds: Feeds) -> None:
    name = feeds.trigger("alarm")
    pattern = {"key": "pattern", "value": {"type": ["org.test.mine"]}}
    feed = {"key": "feed", "value": "/whisk.system/alarms/alarm"}
    feeds.caller.put(f"triggers/{name}", {"annotations": [feed, pattern]}, overwrite="true")
    refused = (502, {"error": "the trigger has a pattern of its own, which an alarm would replace"})
    assert feeds.call("alarm", "CREATE", name, cron="0 3 * * *") == refused
    assert feeds.call("alarm", "DELETE", name) == DONE, "there is no alarm"
    assert feeds.annotations(name) == {"feed": feed["value"], "pattern": pattern["value"]}


def test_a_namespace_has_so_many_schedules(tmp_path: Path) -> None:
    with running(tmp_path, limits={"schedules": 2}) as server, server.caller() as caller, server.caller() as other:
        feeds = Feeds(caller)
        names = [feeds.trigger("alarm") for _ in range(4)]
        assert feeds.call("alarm", "CREATE", names[0], cron="0 3 * * *") == DONE
        hourly = {"annotations": [{"key": "schedule", "value": {"every_s": 3600}}]}
        caller.put("triggers/hourly", hourly)
        error = f"namespace {caller.namespace} has 2 schedules already, the most allowed (limits.schedules)"
        assert feeds.call("alarm", "CREATE", names[1], cron="0 3 * * *") == (502, {"error": error})
        answer = caller.api("PUT", "triggers/one-more", hourly)
        assert (answer.status_code, answer.json()["error"]) == (400, error)
        assert feeds.call("alarm", "UPDATE", names[0], cron="0 4 * * *") == DONE
        caller.put("triggers/hourly", hourly, overwrite="true")
        caller.put("triggers/plain", {})
        other.put("triggers/hourly", hourly)
        assert feeds.call("alarm", "DELETE", names[0]) == DONE
        caller.put("triggers/one-more", hourly)


def test_a_call_is_an_activation_without_the_key(feeds: Feeds, mill: Running) -> None:
    name = feeds.trigger("alarm")
    body = {"lifecycleEvent": "CREATE", "triggerName": f"/_/{name}", "authKey": SECRET, "cron": "0 3 * * *"}
    path = f"{SYSTEM}/actions/alarms/alarm"
    document = feeds.caller.post(path, json=body, params={"blocking": "true"}).json()
    assert document["response"] == {"status": "success", "success": True, "result": {"status": "success"}, "size": 20}
    assert {"key": "path", "value": "whisk.system/alarms/alarm"} in document["annotations"]
    stored = feeds.caller.api("GET", f"activations/{document['activationId']}").json()
    assert (stored["namespace"], stored["name"]) == (feeds.caller.namespace, "alarm")
    for file in Path(mill.services.settings.server.data_dir).glob("store.db*"):
        assert SECRET.encode() not in file.read_bytes()
    assert feeds.caller.post(path, json=body).status_code == 202  # not waited for, it is done all the same


def test_a_feed_of_ones_own_gets_a_key_if_it_says_so(user: Caller, mill: Running) -> None:
    """A client sends its user's key, and what a call brings is written down."""
    body = {"lifecycleEvent": "CREATE", "triggerName": "/_/t", "authKey": "mine:is-not-for-the-store"}
    asks = [{"key": "provide-api-key", "value": True}]
    user.function("plain", "def main(args):\n    return args", annotations=[{"key": "feed", "value": True}])
    assert call(user, "_/actions/plain", body).json() == {"lifecycleEvent": "CREATE", "triggerName": "/_/t"}
    for file in Path(mill.services.settings.server.data_dir).glob("store.db*"):
        assert b"is-not-for-the-store" not in file.read_bytes()
    user.function("asks", "def main(args):\n    return args", annotations=asks)
    assert call(user, "_/actions/asks", body).json() == body
    assert call(user, "_/actions/plain", {"authKey": "a"}).json() == {"authKey": "a"}  # asks for nothing of a feed


def test_through_a_binding(feeds: Feeds) -> None:
    feeds.caller.put("packages/clock", {"binding": {"namespace": "whisk.system", "name": "alarms"},
                                        "parameters": [{"key": "timezone", "value": "Europe/Berlin"}]})  # fmt: skip
    name = feeds.trigger("alarm")
    body = {"lifecycleEvent": "CREATE", "triggerName": name, "cron": "0 3 * * *"}
    assert call(feeds.caller, "_/actions/clock/alarm", body).json() == {"status": "success"}
    assert feeds.config("alarm", name)["timezone"] == "Europe/Berlin"


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """A whole server: one that has schedules."""
    folder = tmp_path_factory.mktemp("clocked")
    with started(folder, "serve"):
        url, key = ((folder / "data" / name).read_text().strip() for name in ("address", "key"))
        with Caller(url, "default", key) as caller:
            yield caller


@pytest.mark.parametrize("feed", ["alarm", "once"])
def test_what_is_due_fires(clocked: Caller, feed: str) -> None:
    feeds = Feeds(clocked)
    feeds.triggers = iter([f"due-{feed}"])
    name = feeds.trigger(feed)
    clocked.put(
        "actions/got", {"exec": {"kind": "python:3", "code": "def main(args):\n    return args"}}, overwrite="true"
    )
    clocked.put(f"rules/{name}-rule", {"trigger": f"/_/{name}", "action": "/_/got"})
    when = {"cron": "* * * * * *"} if feed == "alarm" else {"date": int(time.time() * 1000) + 300}
    payload = {"id": "mine", "who": feed}
    assert feeds.call(feed, "CREATE", name, trigger_payload=payload, **when) == DONE
    [ran, *_] = wait_for(lambda: _ran(clocked, f"default/{name}-rule"))
    result = clocked.api("GET", f"activations/{ran['activationId']}/result").json()["result"]
    assert result.items() >= payload.items()
    assert (result["type"], result["subject"]) == ("org.eventmill.schedule.tick", f"default/{name}")
    assert feeds.call(feed, "DELETE", name) == DONE


def _ran(caller: Caller, rule: str) -> list[Any]:
    found = caller.get("/eventmill/v1/activations", params={"state": "succeeded", "limit": 200}).json()
    return [a for a in found if a["rule"] == rule]

"""The requests of the sessions that record.py writes down: what the sessions that were given leave out.

Each session begins with empty namespaces. `<ns>`, `<other>` are the namespaces, `<activationIdN>` is the N-th
activation that the answers of a session have named.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

Request = dict[str, Any]

PYTHON = "python:3.11"
ECHO = "def main(a):\n    return a"
NODE = "function main(a) { return {greeting: 'Hello ' + (a.name || 'you')}; }"
SKELETON = "openwhisk/dockerskeleton"
ANSWERS = "#!/bin/sh\nwhile read -r line; do echo '%s' >&3; done\n"
ZIP = (
    "UEsDBBQAAAAAAAAAIQDo/9lsKQAAACkAAAALAAAAX19tYWluX18ucHlkZWYgbWFpbihhKToKICAgIHJldHVybiB7J3ppcHBlZCc6IFRydWV9Cl"
    "BLAQIUAxQAAAAAAAAAIQDo/9lsKQAAACkAAAALAAAAAAAAAAAAAACAAQAAAABfX21haW5fXy5weVBLBQYAAAAAAQABADkAAABSAAAAAAA="
)
"""`__main__.py`, zipped, in base64."""
FEED = "def main(a):\n    return {'event': a['lifecycleEvent'], 'trigger': a['triggerName'], 'cron': a.get('cron')}"


def call(
    method: str,
    path: str,
    body: Any = None,
    query: str = "",
    *,
    caller: str = "owner",
    headers: Any = None,
    **more: Any,
) -> Request:
    """A request; a path without a leading slash is one of the caller's namespace."""
    whole = path if path.startswith("/") else f"/api/v1/namespaces/_/{path}"
    request = {"method": method, "path": whole, "query": query, "caller": caller}
    return {**request, "headers": headers or {}, "body": body, **more}


def get(path: str, query: str = "", **more: Any) -> Request:
    return call("GET", path, None, query, **more)


def put(path: str, body: Any, query: str = "", **more: Any) -> Request:
    return call("PUT", path, body, query, **more)


def post(path: str, body: Any = None, query: str = "", **more: Any) -> Request:
    return call("POST", path, body, query, **more)


def delete(path: str, query: str = "", **more: Any) -> Request:
    return call("DELETE", path, None, query, **more)


def code(text: str = ECHO, kind: str = PYTHON, *, image: str | None = None, **fields: Any) -> Any:
    """The body of an action."""
    return {"exec": {"kind": kind, "code": text, **({"image": image} if image else {})}, **fields}


def sequence(*components: str) -> Any:
    return {"exec": {"kind": "sequence", "components": list(components)}}


def pairs(**values: Any) -> list[Any]:
    return [{"key": key.replace("_", "-"), "value": value} for key, value in values.items()]


SESSIONS: dict[str, list[Request]] = {
    # the command line client's own forms: names in bodies, both query values always
    "wsk-action": [
        put("actions/hello", {"namespace": "_", "name": "hello", **code(NODE, "nodejs:default")}, "overwrite=false"),
        put("actions/hello", {"namespace": "_", "name": "hello", **code(NODE, "nodejs:default")}, "overwrite=false"),
        put(
            "actions/hello", {"namespace": "_", "name": "hello", "parameters": pairs(name="you all")}, "overwrite=true"
        ),
        get("actions/hello"),
        get("actions/hello", "code=false"),
        post("actions/hello", {}, "blocking=true&result=false"),
        post("actions/hello", {"name": "Bob"}, "blocking=true&result=true"),
        post("actions/hello", {"name": "Bob"}, "blocking=false&result=false"),
        get("activations/<activationId3>"),
        get("activations/<activationId3>/result"),
        get("activations/<activationId3>/logs"),
        get("actions", "limit=30&skip=0"),
        delete("actions/hello"),
        delete("actions/hello"),
        get("actions/hello"),
        post("actions/hello", {}, "blocking=true&result=false"),
        get("actions", "limit=30&skip=0"),
    ],
    "wsk-package": [
        put(
            "packages/p", {"namespace": "_", "name": "p", "publish": False, "parameters": pairs(a=1)}, "overwrite=false"
        ),
        put("actions/p/act", {"namespace": "_", "name": "p/act", **code()}, "overwrite=false"),
        put(
            "packages/b",
            {"name": "b", "binding": {"namespace": "<ns>", "name": "p"}, "parameters": pairs(b=2), "publish": False},
            "overwrite=false",
        ),
        get("packages/b"),
        get("packages/p"),
        post("actions/b/act", {"c": 3}, "blocking=true&result=true"),
        get("actions/b/act", "code=false"),
        get("actions/b/act"),
        put("packages/b", {"parameters": pairs(b=3)}, "overwrite=true"),
        post("actions/b/act", {"c": 3}, "blocking=true&result=true"),
        put("packages/p", {"publish": True}, "overwrite=true"),
        get("packages", "limit=30&skip=0"),
        get("actions/b/"),
        get("actions/p/", "limit=1&skip=1"),
        delete("actions/b/act"),
        delete("packages/p"),
        delete("packages/b"),
        delete("actions/p/act"),
        delete("packages/p"),
        post("packages/refresh"),
        delete("packages/p"),
    ],
    "wsk-trigger": [
        put(
            "actions/hello",
            code("def main(a):\n    return {'greeting': a.get('name', '?') + ' ' + a.get('from', '?')}"),
        ),
        put("triggers/t", {"name": "t", "annotations": pairs(a=1), "parameters": pairs(name="x")}, "overwrite=false"),
        put("triggers/t", {"name": "t", "parameters": pairs(name="Bob")}, "overwrite=true"),
        put("rules/r", {"name": "r", "trigger": "/_/t", "action": "/_/hello"}, "overwrite=false"),
        get("rules/r"),
        get("triggers/t"),
        post("triggers/t", {"from": "Rome"}),
        get("activations/<activationId1>"),
        get("activations/<activationId2>/result"),
        post("rules/r", {"status": "inactive"}),
        get("rules/r"),
        get("triggers/t"),
        post("triggers/t", {"from": "Rome"}),
        post("rules/r", {"status": "active"}),
        post("triggers/t"),
        get("activations/<activationId3>"),
        get("rules", "limit=30&skip=0"),
        get("triggers", "limit=30&skip=0"),
        delete("rules/r"),
        get("rules/r"),
        delete("triggers/t"),
        post("triggers/t", {}),
    ],
    "wsk-feed": [
        put("packages/clock", {"parameters": pairs(cron="* * * * *")}),
        put("actions/clock/tick", code(FEED, annotations=pairs(feed=True))),
        get("packages/clock"),
        put("triggers/t", {"name": "t", "annotations": pairs(feed="/_/clock/tick")}, "overwrite=false"),
        post(
            "actions/clock/tick",
            {"lifecycleEvent": "CREATE", "triggerName": "/<ns>/t", "authKey": "k", "cron": "1 * * * *"},
            "blocking=true&result=false",
        ),
        post(
            "actions/clock/tick",
            {"lifecycleEvent": "READ", "triggerName": "/<ns>/t", "authKey": "k"},
            "blocking=true&result=false",
        ),
        post(
            "actions/clock/tick",
            {"lifecycleEvent": "UPDATE", "triggerName": "/<ns>/t", "authKey": "k", "cron": "2 * * * *"},
            "blocking=true&result=true",
        ),
        post("actions/clock/tick", {"authKey": "k"}, "blocking=true&result=true"),
        post(
            "actions/clock/tick",
            {"lifecycleEvent": "DELETE", "triggerName": "/<ns>/t", "authKey": "k"},
            "blocking=true&result=true",
        ),
        delete("triggers/t"),
        put("triggers/t2", {"annotations": pairs(feed="/_/a/b/c")}),
        put("triggers/t3", {"annotations": pairs(feed="")}),
        put("triggers/t4", {"annotations": pairs(feed=5)}),
        put("triggers/t5", {"annotations": pairs(feed="tick")}),
    ],
    "wsk-sequence": [
        put("packages/p", {}),
        put("actions/p/inc", code("def main(a):\n    print('n is', a['n'])\n    return {'n': a['n'] + 1}")),
        put("packages/b", {"binding": {"namespace": "_", "name": "p"}}),
        put("actions/s", {"name": "s", **sequence("/_/p/inc", "/<ns>/p/inc")}, "overwrite=false"),
        post("actions/s", {"n": 1}, "blocking=true&result=true"),
        post("actions/s", {"n": 1}, "blocking=true&result=false"),
        get("activations/<activationId2>"),
        get("activations/<activationId3>/logs"),
        get("activations/<activationId2>/logs"),
        get("activations/<activationId2>/result"),
        put("actions/s", sequence("/_/p/inc"), "overwrite=true"),
        post("actions/s", {"n": 1}, "blocking=true&result=true"),
        put("actions/s2", sequence("/_/s", "/_/s")),
        post("actions/s2", {"n": 1}, "blocking=true&result=true"),
        put("actions/s", sequence("/_/s2"), "overwrite=true"),
        put("actions/s3", sequence("/_/b/inc")),
        post("actions/s3", {"n": 1}, "blocking=true&result=true"),
        put("triggers/t", {}),
        put("rules/r", {"trigger": "/_/t", "action": "/_/b/inc"}),
        delete("rules/r"),
        delete("triggers/t"),
        put("actions/s", {"exec": {"kind": "sequence"}}, "overwrite=true"),
        put("actions/s", {"exec": {"kind": "sequence", "components": "/_/p/inc"}}, "overwrite=true"),
        put("actions/s", {"exec": {"kind": "sequence", "components": [5]}}, "overwrite=true"),
        put("actions/s", sequence("p/inc"), "overwrite=true"),
        put("actions/s", sequence("inc"), "overwrite=true"),
        put("actions/s", sequence("/_/t"), "overwrite=true"),
        get("actions/s"),
        delete("actions/p/inc"),
        delete("actions/s"),
    ],
    "wsk-poll": [
        put("actions/a", code("def main(a):\n    print('one')\n    print('two')\n    return a")),
        put("packages/p", {}),
        put("actions/p/a", code()),
        post("actions/a", {"n": 1}, "blocking=true&result=true"),
        get("activations", "docs=true&limit=0&since=<time>"),
        get("activations", "docs=false&limit=30&skip=0&since=<time>"),
        post("actions/p/a", {"n": 2}, "blocking=true&result=true"),
        get("activations", "docs=true&limit=0&since=<time>&name=p/a"),
        get("activations", "limit=30&skip=0&since=<time>&name="),
        get("activations", "limit=1&skip=0&since=<time>&name=a"),
        get("activations", "since=<time>&name=/<ns>/a"),
        get("activations", "since=<time>&upto=1"),
        get("activations", "since=-1&limit=0&upto=1"),
        get("activations", "upto=x"),
        get("activations", "since=<time>&count=true&limit=1"),
        get("activations", "since=<time>&count=true&skip=1"),
        get("activations", "since=<time>&count=true&skip=5"),
        get("activations", "docs=x"),
        get("activations/", "since=<time>&limit=1&skip=1"),
        get("activations/<activationId1>/"),
        get("activations/<activationId1>/logs/"),
        get("activations/<activationId1>/nosuch"),
        get("activations/<activationId1>/logs/x"),
        get("activations/0123456789abcdef0123456789abcdef"),
        get("activations/0123456789abcdef0123456789abcdef/logs"),
        get("activations/0123456789abcdef0123456789abcdef/result"),
        get("activations/0123456789ABCDEF0123456789ABCDEF"),
        get("activations/0123"),
        get("activations/0123/logs"),
        delete("activations/<activationId1>"),
        put("activations/<activationId1>", {}),
        post("activations/<activationId1>", {}),
        post("activations", {}),
    ],
    "wskdeploy": [
        get("/api/v1"),
        put(
            "packages/demo",
            {
                "namespace": "_",
                "name": "demo",
                "publish": False,
                "annotations": pairs(whisk_managed={"projectName": "demo", "projectDeps": []}),
            },
            "overwrite=true",
        ),
        put(
            "actions/demo/hello",
            {
                "namespace": "_",
                "name": "demo/hello",
                "exec": {"kind": "nodejs:20", "code": NODE},
                "annotations": pairs(web_export=False, raw_http=False, final=False),
                "limits": {"timeout": 60000, "memory": 128, "logs": 5},
                "parameters": pairs(name=""),
            },
            "overwrite=true",
        ),
        put("actions/demo/seq", {"name": "demo/seq", **sequence("/_/demo/hello")}, "overwrite=true"),
        put("triggers/t", {"namespace": "_", "name": "t", "parameters": []}, "overwrite=true"),
        put("rules/r", {"namespace": "_", "name": "r", "trigger": "/_/t", "action": "/_/demo/hello"}, "overwrite=true"),
        post("rules/r", {"status": "active"}),
        get("packages", "limit=0&skip=0"),
        get("packages/demo"),
        post("actions/demo/seq", {"name": "x"}, "blocking=true&result=true"),
        delete("rules/r"),
        delete("triggers/t"),
        delete("actions/demo/seq"),
        delete("actions/demo/hello"),
        delete("packages/demo"),
    ],
    "wsk-web": [
        put(
            "actions/hello",
            code(
                "def main(a):\n    return {'body': 'Hello ' + a.get('name', '?'), 'html': '<p>'}",
                annotations=pairs(web_export=True, raw_http=False, final=True),
            ),
        ),
        get("/api/v1/web/<ns>/default/hello", "name=Bob", caller="none"),
        get("/api/v1/web/<ns>/default/hello.json", "name=Bob", caller="none"),
        get("/api/v1/web/<ns>/default/hello.text", "name=Bob", caller="none"),
        post("/api/v1/web/<ns>/default/hello.http", {"name": "Bob"}, caller="none"),
        put("actions/hello", {"annotations": pairs(web_export=False)}, "overwrite=true"),
        get("/api/v1/web/<ns>/default/hello", "name=Bob", caller="none"),
    ],
    # entities, further
    "counts": [
        *(get(collection, "count=true") for collection in ("actions", "packages", "rules", "triggers")),
        put("packages/p", {}),
        put("actions/p/a", code()),
        put("actions/a", code()),
        put("triggers/t", {}),
        put("rules/r", {"trigger": "/_/t", "action": "/_/a"}),
        *(get(collection, "count=true") for collection in ("actions", "packages", "rules", "triggers")),
        *(get(collection, "count=true&skip=1&limit=1") for collection in ("actions", "packages", "rules", "triggers")),
        *(get(collection, "count=false&limit=1") for collection in ("actions", "packages", "rules", "triggers")),
        *(get(collection, "limit=201") for collection in ("packages", "rules", "triggers")),
        *(get(collection, "skip=-1") for collection in ("packages", "rules", "triggers")),
        get("actions/p/", "count=true"),
        get("actions/nosuch/"),
        get("actions/a/"),
    ],
    "parameters": [
        put("packages/p", {"parameters": pairs(a="package", b="package", d="package")}),
        put(
            "packages/bind", {"binding": {"namespace": "_", "name": "p"}, "parameters": pairs(b="binding", c="binding")}
        ),
        put("actions/p/f", code(parameters=pairs(c="action", e="", n=None), annotations=pairs(final=True))),
        post("actions/p/f", {"x": 1}, "blocking=true&result=true"),
        post("actions/p/f", {"a": 1}, "blocking=true&result=true"),
        post("actions/p/f", {"e": 1}, "blocking=true&result=true"),
        post("actions/p/f", {"n": 1}, "blocking=true&result=true"),
        post("actions/bind/f", {"x": 1}, "blocking=true&result=true"),
        post("actions/bind/f", {"b": 1}, "blocking=true&result=true"),
        put("actions/p/f", {"annotations": pairs(final=False)}, "overwrite=true"),
        post("actions/p/f", {"a": 1}, "blocking=true&result=true"),
        put(
            "actions/i",
            code(
                "import os\ndef main(a):\n    return {'a': a, 'env': [os.environ.get('A'), os.environ.get('J')]}",
                parameters=[
                    {"key": "A", "value": "one", "init": True},
                    {"key": "J", "value": {"n": 1}, "init": True},
                    {"key": "p", "value": 2, "init": False},
                    {"key": "q", "value": 3},
                ],
            ),
        ),
        post("actions/i", {}, "blocking=true&result=true"),
        post("actions/i", {"p": 4}, "blocking=true&result=true"),
        get("actions/i"),
        put("actions/i", {"parameters": [{"key": "A", "value": 1}, {"key": "A", "value": 2}]}, "overwrite=true"),
        put("actions/i", {"parameters": []}, "overwrite=true"),
        put("actions/i", {"parameters": [{"key": "", "value": 1}]}, "overwrite=true"),
        put("actions/i", {"parameters": [{"key": "k"}]}, "overwrite=true"),
        put("actions/i", {"parameters": [{"value": "k"}]}, "overwrite=true"),
        put("actions/i", {"parameters": {"k": "v"}}, "overwrite=true"),
        put("actions/i", {"parameters": [5]}, "overwrite=true"),
        put("actions/i", {"annotations": {"k": "v"}}, "overwrite=true"),
        put("packages/p", {"parameters": 5}, "overwrite=true"),
        put("triggers/t", {"parameters": "x"}),
        put("rules/r", {"annotations": "x"}),
    ],
    "annotations": [
        put("actions/a", code(annotations=pairs(a=1, b={"c": [None]}))),
        put("actions/a", {"annotations": pairs(a=2, d="d")}, "overwrite=true"),
        put("actions/a", {"delAnnotations": ["b", "nosuch"]}, "overwrite=true"),
        put("actions/a", {"delAnnotations": ["a"], "annotations": pairs(a=3)}, "overwrite=true"),
        put("actions/a", {"delAnnotations": ["provide-api-key", "exec"]}, "overwrite=true"),
        put("actions/a", {"delAnnotations": "a"}, "overwrite=true"),
        put("actions/a", {"delAnnotations": [1]}, "overwrite=true"),
        put("actions/a", {"annotations": []}, "overwrite=true"),
        put("actions/k", code(annotations=pairs(provide_api_key=True, exec="mine"))),
        put("packages/p", {"annotations": pairs(a=1)}),
        put("packages/p", {"annotations": pairs(b=1)}, "overwrite=true"),
        put("triggers/t", {"annotations": pairs(a=1)}),
        put("triggers/t", {"annotations": pairs(b=1)}, "overwrite=true"),
        put("rules/r", {"trigger": "/_/t", "action": "/_/a", "annotations": pairs(a=1)}),
        put("rules/r", {"annotations": pairs(b=1)}, "overwrite=true"),
    ],
    "versions": [
        put("actions/a", code(version="1.2.3")),
        put("actions/a", {}, "overwrite=true"),
        put("actions/a", {"version": "0.0.7"}, "overwrite=true"),
        put("actions/a", {"version": "5"}, "overwrite=true"),
        put("actions/a", {"version": "5.1"}, "overwrite=true"),
        put("actions/a", {"version": "0.0.0"}, "overwrite=true"),
        put("actions/a", {"version": "x"}, "overwrite=true"),
        put("actions/a", {"version": "1.2.3.4"}, "overwrite=true"),
        put("actions/a", {"version": 5}, "overwrite=true"),
        put("triggers/t", {"version": "2.0.0"}),
        put("triggers/t", {"publish": True}, "overwrite=true"),
        put("packages/p", {"version": "2.0.0"}),
        put("packages/p", {"publish": "yes"}, "overwrite=true"),
        put("rules/r", {"version": "3.0.0", "trigger": "/_/t", "action": "/_/a"}),
        put("rules/r", {}, "overwrite=true"),
        put("rules/r", {"status": "inactive"}, "overwrite=true"),
        post("actions/a", {}, "blocking=true&result=false"),
    ],
    "kinds": [
        put("actions/p1", code(kind="python:default")),
        put("actions/p2", code(kind=" PYTHON:3.11 ")),
        put("actions/p3", code(kind="python:3")),
        put("actions/n1", code(NODE, "nodejs:default")),
        put(
            "actions/m",
            {"exec": {"kind": PYTHON, "code": "def other(a):\n    return {'other': True}", "main": "other"}},
        ),
        post("actions/m", {}, "blocking=true&result=true"),
        put("actions/z", code(ZIP)),
        post("actions/z", {}, "blocking=true&result=true"),
        get("actions/z"),
        get("actions", "limit=1"),
        put("actions/z", code("YWJj"), "overwrite=true"),
        post("actions/z", {}, "blocking=true&result=true"),
        put("actions/x", {"exec": {"kind": PYTHON}}),
        put("actions/x", {"exec": {"kind": PYTHON, "code": 5}}),
        put("actions/x", {"exec": {"kind": PYTHON, "code": ""}}),
        put("actions/x", {"exec": {"kind": PYTHON, "code": ECHO, "main": 5}}),
        put("actions/x", {"exec": {"kind": 5, "code": ECHO}}),
        put("actions/x", {"exec": {"code": ECHO}}),
        put("actions/x", {"exec": 5}),
        put("actions/x", {"exec": {"kind": "blackbox"}}),
        put("actions/x", {"exec": {"kind": "blackbox", "image": 5}}),
    ],
    "published": [
        put("packages/pub", {"publish": True}, caller="other"),
        put("packages/priv", {}, caller="other"),
        put("actions/pub/a", code(), caller="other"),
        put("actions/priv/a", code(), caller="other"),
        put("actions/bare", code(), caller="other"),
        put("packages/bpub", {"publish": True, "binding": {"namespace": "_", "name": "pub"}}, caller="other"),
        get("/api/v1/namespaces/<other>/packages/bpub"),
        get("/api/v1/namespaces/<other>/packages", "count=true"),
        get("/api/v1/namespaces/<other>/actions/pub/"),
        get("/api/v1/namespaces/<other>/actions/priv/"),
        get("/api/v1/namespaces/<other>/actions/bpub/"),
        post("/api/v1/namespaces/<other>/actions/bpub/a", {}, "blocking=true"),
        put("triggers/t", {}),
        put("rules/r", {"trigger": "/_/t", "action": "/<other>/pub/a"}),
        put("rules/r2", {"trigger": "/_/t", "action": "/<other>/priv/a"}),
        put("rules/r2", {"trigger": "/_/t", "action": "/<other>/bare"}),
        put("rules/r2", {"trigger": "/_/t", "action": "/<other>/pub/nosuch"}),
        put("rules/r2", {"trigger": "/<other>/t", "action": "/<other>/pub/a"}),
        put("actions/s", sequence("/<other>/pub/a")),
        put("actions/s2", sequence("/<other>/priv/a")),
        put("actions/s2", sequence("/<other>/bare")),
        put("actions/s2", sequence("/<other>/pub/nosuch")),
        put("packages/b2", {"binding": {"namespace": "<other>", "name": "nosuch"}}),
        put("packages/b2", {"binding": {"namespace": "<other>", "name": "bpub"}}),
        put("packages/b2", {"binding": {"namespace": "<other>", "name": "pub"}, "parameters": pairs(b=1)}),
        get("packages/b2"),
        get("actions/b2/a", "code=false"),
        post("actions/b2/a", {"x": 1}, "blocking=true"),
        post("actions/s", {"x": 1}, "blocking=true&result=true"),
        delete("/api/v1/namespaces/<other>/packages/pub"),
        put("/api/v1/namespaces/<other>/packages/new", {}),
        get("/api/v1/namespaces/<other>/limits"),
        get("/api/v1/namespaces/<other>/activations"),
        get("/api/v1/namespaces/<other>/rules"),
        get("/api/v1/namespaces/<other>/triggers/t"),
        post("/api/v1/namespaces/<other>/triggers/t", {}),
        get("/api/v1/namespaces/<other>/rules/r"),
        post("/api/v1/namespaces/<other>/rules/r", {"status": "active"}),
        get("/api/v1/namespaces/<other>/activations/0123456789abcdef0123456789abcdef"),
        get("/api/v1/namespaces/nosuchns/packages/x"),
        get("/api/v1/namespaces/nosuchns/actions"),
        put("packages/pub", {"publish": False}, "overwrite=true", caller="other"),
        get("packages/b2"),
        post("actions/s", {"x": 1}, "blocking=true&result=true"),
        delete("packages/b2"),
    ],
    "collections": [
        put("actions/a", code()),
        put("triggers/t", {}),
        put("rules/r", {"trigger": "/_/t", "action": "/_/a"}),
        put("packages/p", {}),
        *(get(f"{collection}/a") for collection in ("triggers", "rules", "packages")),
        *(delete(f"{collection}/a") for collection in ("triggers", "rules", "packages")),
        *(put(f"{collection}/a", {}, "overwrite=true") for collection in ("triggers", "packages")),
        put("rules/a", {"trigger": "/_/t", "action": "/_/a"}, "overwrite=true"),
        put("rules/a", {"trigger": "/_/t", "action": "/_/a"}),
        put("actions/t", code()),
        put("actions/p", code(), "overwrite=true"),
        post("actions/t", {}),
        post("actions/p", {}),
        post("triggers/a", {}),
        post("rules/a", {"status": "active"}),
        get("actions/a/a"),
        put("actions/a/a", code()),
        put("actions/nosuch/a", code()),
        post("actions/nosuch/a", {}),
        delete("actions/nosuch/a"),
        delete("packages/nosuch"),
        delete("rules/nosuch"),
        delete("triggers/nosuch"),
        get("triggers/nosuch"),
        get("rules/nosuch"),
        post("rules/nosuch", {"status": "active"}),
        post("triggers/nosuch", {}),
        put("rules/x", {"trigger": "/_/a", "action": "/_/a"}),
        put("rules/x", {"trigger": "/_/t", "action": "/_/t"}),
        put("rules/x", {"trigger": "/_/t", "action": "/_/p"}),
        put("rules/x", {"trigger": "t", "action": "a"}),
        put("rules/x", {"trigger": "/_/nosuch", "action": "/_/a"}),
        put("rules/x", {"trigger": "/_/t", "action": "/_/p/nosuch"}),
        put("rules/x", {"trigger": "/_/t", "action": "/_/nosuch/a"}),
        put("rules/x", {"trigger": {"path": "_", "name": "t"}, "action": {"path": "<ns>", "name": "a"}}),
        put("rules/x", {"trigger": "/_/t"}),
        put("rules/x", {"trigger": 5, "action": "/_/a"}),
        put("packages/b", {"binding": {"namespace": "_", "name": "a"}}),
        put("packages/b", {"binding": {"namespace": "_", "name": "nosuch"}}),
        put("packages/b", {"binding": {"namespace": "_"}}),
        put("packages/b", {"binding": 5}),
        put("packages/b", {"binding": {}}),
        put("packages/p", {"binding": {"namespace": "_", "name": "b"}}, "overwrite=true"),
    ],
    # bytes and headers
    "bodies": [
        put("actions/a", code()),
        *(
            put(f"{kind}/x", "{}", headers={"Content-Type": "text/plain"})
            for kind in ("actions", "triggers", "rules", "packages")
        ),
        *(post(f"{kind}/a", "{}", headers={"Content-Type": "text/plain"}) for kind in ("actions", "triggers", "rules")),
        post("actions/a", "a=1", "blocking=true", headers={"Content-Type": "application/x-www-form-urlencoded"}),
        post(
            "actions/a",
            '{"a": 1}',
            "blocking=true&result=true",
            headers={"Content-Type": "application/json; charset=utf-8"},
        ),
        post("actions/a", "", "blocking=true&result=true", headers={"Content-Type": "text/plain"}),
        *(post("actions/a", body) for body in ("[]", "1", '"x"', "null", "true", "{", "{]", '{"a": }')),
        *(put(f"{kind}/x", None) for kind in ("triggers", "packages", "rules")),
        post("rules/x", None),
        post("actions/a", {"x": "<string of 1048569 characters>"}),
        post("actions/a", {"x": "<string of 1048568 characters>"}, "blocking=true"),
        post("triggers/x", {"x": "<string of 1048576 characters>"}),
        put("packages/x", {"parameters": pairs(x="<string of 1048576 characters>")}),
        put("triggers/x", {"annotations": pairs(x="<string of 1048576 characters>")}),
        put("packages/x", {"parameters": pairs(x="<string of 1048573 characters>")}),
        put("packages/x", {"parameters": pairs(x="<string of 1048574 characters>")}, "overwrite=true"),
        post("actions/a", {"ü": "é\u2028\U0001f600"}, "blocking=true&result=true"),
        post("actions/a", '{"a": 1, "a": 2}', "blocking=true&result=true"),
        post("actions/a", '{"a": 12345678901234567890123, "b": 1e400, "c": -0.0}', "blocking=true&result=true"),
    ],
    "queries": [
        put("actions/a", code()),
        *(post("actions/a", {}, f"blocking={value}&result=true") for value in ("yes", "on", "TRUE", "1", "x", "")),
        post("actions/a", {}, "blocking=true&result=x"),
        *(post("actions/a", {}, f"blocking=true&timeout={value}") for value in ("0", "60001", "-1", "x", "1.5", "")),
        post("actions/a", {}, "timeout=0"),
        put("actions/slow", code("import time\ndef main(a):\n    time.sleep(1.5)\n    return {'done': True}")),
        post("actions/slow", {}, "blocking=true&timeout=100"),
        get("activations/<activationId6>/result"),
        put("actions/a", {}, "overwrite=x"),
        get("actions/a", "code=x"),
        get("actions", "limit=1&limit=2"),
        get("actions", "nosuch=1&limit=1"),
        delete("actions/a", "force=x"),
        put("packages/p", {}, "overwrite=1"),
        put("packages/p", {}, "overwrite=no"),
        put("packages/p", {}, "overwrite=off"),
        delete("packages/p", "force=x"),
    ],
    "accepts": [
        put("actions/a", code()),
        *(
            get("actions/a", "code=false", headers={"Accept": value})
            for value in (
                "*/*",
                "application/*",
                "text/html, */*;q=0.1",
                "application/json;q=0.5",
                "application/xml",
                "nonsense",
            )
        ),
        get("actions", headers={"Accept": "text/plain"}),
        get("nosuch", headers={"Accept": "text/plain"}),
        put("packages/p", {}, headers={"Accept": "text/plain"}),
        get("packages/p"),
        post("actions/a", {}, "blocking=true", headers={"Accept": "text/plain"}),
        delete("packages/p", headers={"Accept": "text/plain"}),
        get("packages/p"),
        get("packages/p", headers={"Accept": "text/plain"}),
    ],
    "paths": [
        *(
            get(path)
            for path in (
                "/api/v1/",
                "/api/v2",
                "/api",
                "/api/v1/namespaces/",
                "/api/v1/namespaces/_",
                "/api/v1/namespaces/_/",
                "/api/v1/namespaces/_/nosuch",
            )
        ),
        *(
            get(path)
            for path in (
                "/api/v1/namespaces/_/actions//",
                "/api/v1//namespaces",
                "/api/v1/namespaces//actions",
                "actions/a%2Fb",
                "actions/%2E%2E",
                "actions/..%2Fx",
                "actions/a/b/c",
                "actions/a%00b",
            )
        ),
        *(
            put(f"packages/{name}", {})
            for name in (
                "a%20b",
                "a%26b",
                "a@b",
                "a.b",
                "a-b",
                "_a",
                "%20a",
                "a%20",
                ".a",
                "-a",
                "@a",
                "a%2Bb",
                "%C3%A4",
                "a%0Ab",
                "a%25b",
                "a:b",
                "a~b",
                "a$b",
                "a'b",
            )
        ),
        get("packages/a%20b"),
        get("packages/a&b"),
        get("packages/a+b"),
        get("packages/a@b/"),
        get("packages", "limit=2"),
        get("/api/v1/namespaces/%20/actions"),
        get("/api/v1/namespaces/a%20/actions"),
        get("/api/v1/namespaces/<257 times x>/actions"),
        *(call("PATCH", path, {}) for path in ("actions/a", "/api/v1/namespaces", "nosuch")),
        *(call("HEAD", path) for path in ("actions/a", "actions", "/api/v1/namespaces")),
        *(
            post(path, {})
            for path in ("actions", "packages", "packages/a.b", "rules", "triggers", "limits", "/api/v1/namespaces")
        ),
        *(delete(path) for path in ("actions", "limits", "/api/v1/namespaces", "activations")),
        *(put(path, {}) for path in ("actions", "limits", "activations")),
    ],
    "authentication": [
        *(
            get(path, caller=caller)
            for caller in ("none", "wrong")
            for path in ("/api/v1/namespaces", "actions", "packages/p", "activations", "limits", "nosuch")
        ),
        *(put(f"{kind}/x", {}, caller="none") for kind in ("actions", "packages", "rules", "triggers")),
        *(post(f"{kind}/x", {}, caller="wrong") for kind in ("actions", "rules", "triggers")),
        delete("actions/x", caller="none"),
        *(
            get("actions", caller="none", headers={"Authorization": value})
            for value in ("Basic", "Basic !!!", "Basic bm9jb2xvbg==", "Bearer x", "nonsense")
        ),
    ],
    "cors": [
        *(
            call("OPTIONS", path, caller="none")
            for path in ("actions", "actions/a", "activations/x", "nosuch", "/api/v1/namespaces", "/api/v1")
        ),
        call(
            "OPTIONS",
            "actions/a",
            caller="none",
            headers={"Origin": "http://example.com", "Access-Control-Request-Method": "PUT"},
        ),
    ],
    # how functions in JavaScript end
    "nodejs": list(
        chain.from_iterable(
            (put("actions/f", code(text, "nodejs:20"), "overwrite=true"), post("actions/f", {"n": 1}, "blocking=true"))
            for text in (
                "function main(p) { return { got: p } }",
                "const main = async () => [1, 'a']",
                "exports.main = () => ({ exported: 1 })",
                "function main() { return }",
                "const main = () => ({ a: NaN, f() {}, u: undefined })",
                "const main = () => ({ error: 'x', b: 1 })",
                "const main = () => ({ error: undefined, b: 1 })",
                "const main = () => null",
                "const main = () => 'text'",
                "const main = () => 7",
                "const main = () => new Date(0)",
                "function main() { const a = {}; a.a = a; return a }",
                "const main = () => ({ a: 10n })",
                "function main() { throw new TypeError('boom') }",
                "function main() { throw 'boom' }",
                "const main = () => Promise.reject({ a: 1, f() {} })",
                "const main = () => Promise.reject('no')",
                "const main = () => Promise.reject()",
                "function main() { process.exit(3) }",
                "const other = 1",
                "const main = 7",
            )
        )
    ),
    # executables: scripts that answer on descriptor 3
    "executables": [
        put("actions/f", {"exec": {"kind": "blackbox", "image": "openwhisk/dockerskeleton"}}),
        post("actions/f", {}, "blocking=true"),
        *chain.from_iterable(
            (
                put("actions/f", code(ANSWERS % text, "blackbox", image=SKELETON), "overwrite=true"),
                post("actions/f", {"n": 1}, "blocking=true"),
            )
            for text in ('{"a":1}', "[1,2]", '{"error":"x"}', '{"error":null}', "7", "null", "hello")
        ),
        put("actions/f", code("#!/bin/sh\nread -r line\nexit 3\n", "blackbox", image=SKELETON), "overwrite=true"),
        post("actions/f", {}, "blocking=true"),
        put("actions/f", code("#!/bin/sh\nexit 3\n", "blackbox", image=SKELETON), "overwrite=true"),
        post("actions/f", {}, "blocking=true"),
        get("actions/f"),
        delete("actions/f"),
    ],
}
"""By name."""

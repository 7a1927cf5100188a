"""The `url` of an action (`path`: its name, with its package), of a `trigger`, or of a `web` action with an `ext`."""

import os
from typing import Any

EXTENSIONS = (".html", ".http", ".json", ".svg", ".text")


def main(args: dict[str, Any]) -> dict[str, Any]:
    web, trigger, path, ext = (args.get(name) for name in ("web", "trigger", "path", "ext"))
    if web is True and trigger:
        return {"error": "triggers are not allowed for web actions."}
    if web is True and ext and ext not in EXTENSIONS:
        return {"error": 'extension for web action must be one of [".html", ".http", ".json", ".svg", ".text"].'}
    if web is not True and trigger and "/" in (path or ""):
        return {"error": "triggers are not allowed in packages."}
    return {"url": _url(web is True, trigger is True, path, ext or "")}


def _url(web: bool, trigger: bool, path: "str | None", ext: str) -> str:
    host, namespace = os.environ.get("__OW_API_HOST", ""), os.environ["__OW_NAMESPACE"]
    if not web:
        base = f"{host}/api/v1/namespaces/{namespace}/{'triggers' if trigger else 'actions'}"
        return f"{base}/{path}" if path else base
    base = f"{host}/api/v1/web/{namespace}"
    if not path:
        return base
    return f"{base}/{path if '/' in path else 'default/' + path}{ext}"

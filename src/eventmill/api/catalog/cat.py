"""Joins `lines` (a list) into one text, the `payload`."""

from typing import Any


def main(args: dict[str, Any]) -> dict[str, Any]:
    lines = args.get("lines") or []
    return {"lines": lines, "payload": "\n".join("" if line is None else str(line) for line in lines)}

"""Sorts `lines`, a list, as texts."""

from typing import Any


def main(args: dict[str, Any]) -> dict[str, Any]:
    lines = sorted(args.get("lines") or [], key=str)
    return {"lines": lines, "length": len(lines)}

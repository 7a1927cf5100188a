"""The first `num` (1, unless given) of `lines`, a list."""

from typing import Any


def main(args: dict[str, Any]) -> dict[str, Any]:
    num = args.get("num") or 1
    return {"lines": (args.get("lines") or [])[:num], "num": num}

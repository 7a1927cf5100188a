"""Splits a text, the `payload`, into `lines`: at line ends, or at the `separator`."""

from typing import Any


def main(args: dict[str, Any]) -> dict[str, Any]:
    payload, separator = args["payload"], args.get("separator")
    text = payload if isinstance(payload, str) else str(payload)
    lines = text.split(separator) if separator else text.replace("\r\n", "\n").split("\n")
    return {"lines": lines, "payload": payload}

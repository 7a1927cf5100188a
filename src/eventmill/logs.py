"""Logs: lines for people, or one JSON object a line for machines. To standard error, through `logging` alone."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import orjson

_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """`time`, `level`, `logger`, `message`, and whatever was given as `extra` (ids)."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{k: v for k, v in record.__dict__.items() if k not in _OWN},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except orjson.JSONEncodeError:  # half characters: names of files that are not UTF-8
            return json.dumps(line, default=str)


def configure(format: Literal["text", "json"], level: int = logging.INFO) -> None:
    """Send the process's logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    if format == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for quiet in ("uvicorn.access", "httpx", "httpcore"):
        logging.getLogger(quiet).setLevel(logging.WARNING)

"""Lines for machines are JSON, whatever stands in them."""

from __future__ import annotations

import json
import logging

from eventmill.logs import JsonLines


def line(message: str, **extra: object) -> dict[str, object]:
    record = logging.makeLogRecord({"name": "eventmill.x", "levelname": "ERROR", "msg": message, **extra})
    document: dict[str, object] = json.loads(JsonLines().format(record))
    return document


def test_a_line_has_what_was_given_with_it() -> None:
    found = line("job ended", transaction="t1")
    assert (found["level"], found["logger"], found["message"], found["transaction"]) == (
        "error", "eventmill.x", "job ended", "t1"
    )  # fmt: skip


def test_names_of_files_that_are_not_utf8_can_be_said() -> None:
    assert line("can't read \udce9.h5")["message"] == "can't read \udce9.h5"

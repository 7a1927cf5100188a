"""Reading a map's results: the same from both forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventmill import FlowError, results

FAILED = {"index": 1, "activationId": "0" * 32, "error": "no"}


def in_file(path: Path, *elements: Any) -> dict[str, Any]:
    path.write_text("".join(json.dumps(each) + "\n" for each in elements))
    failed = sum(each == FAILED for each in elements)
    return {"href": path.as_uri(), "path": str(path), "count": len(elements), "failed": failed}


def test_both_forms(tmp_path: Path) -> None:
    elements = [{"v": "a\nb"}, FAILED, {"error": "of its own"}, [3]]
    ok = [each for each in elements if each != FAILED]
    for result in ({"items": ok, "failed": [FAILED]}, in_file(tmp_path / "a b%.jsonl", *elements)):
        assert list(results(result)) == ok
        assert list(results(result, failed=True)) == [FAILED]


def test_one_at_a_time(tmp_path: Path) -> None:
    read = results(in_file(tmp_path / "x", 1, 2))
    assert isinstance(read, Iterator)
    assert next(read) == 1


def test_what_is_no_maps_result_is_said_at_once() -> None:
    with pytest.raises(FlowError, match="no map's result: it has neither `items` nor `href`"):
        results({"v": 1})

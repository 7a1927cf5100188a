"""The flows in the documentation load and can be deployed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .sdk_flows import CALIBRATE_SUB, documents, flow, write

PAGE = Path(__file__).parents[2] / "docs" / "workflows.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_flow_of_the_page(tmp_path: Path, number: int) -> None:
    write(tmp_path, "calibrate.sub", CALIBRATE_SUB)
    write(tmp_path, "bin/calibrate.sh", "#!/bin/sh\n")
    write(tmp_path, "agipd.json", "{}")
    assert any(collection == "rules" for collection, _ in documents(flow(tmp_path, BLOCKS[number])))


def test_there_are_some() -> None:
    assert len(BLOCKS) >= 4


def test_the_mistake_that_it_shows_is_what_is_said(tmp_path: Path) -> None:
    from eventmill import FlowError

    shown = "timeout='30 sec': unknown unit 'sec' (known: ms, s, m, h, d)"
    assert f"flow.py:12: {shown}" in PAGE.read_text()
    with pytest.raises(FlowError, match=re.escape(shown)):
        flow(tmp_path, 'from eventmill import Mill\n@Mill("m").function(timeout="30 sec")\ndef f(): ...\n')

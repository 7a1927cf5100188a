"""The README's flow does what the README says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.server.mill import EVENTMILL, mill

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_the_ten_lines(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    watched = tmp_path / "beamtime"
    watched.mkdir()
    flow = tmp_path / "flow.py"
    flow.write_text(code.replace("/tmp/beamtime", str(watched)))
    command = [EVENTMILL, "run", str(flow), "--port", "0", "--data-dir", str(tmp_path / "data")]
    with (
        mill(tmp_path) as m,
        (tmp_path / "out").open("w") as out,
        (tmp_path / "err").open("w") as err,
        subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process,
    ):
        m.until(lambda: "is served at" in (tmp_path / "err").read_text(), 30, "the flow to be served")
        (watched / "run1.h5").write_bytes(b"x" * 5000)
        m.until(lambda: "inspect-reduce-register" in (tmp_path / "out").read_text(), 30, "the chain to end")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert f"registered {watched}/run1.h5 5 kB" in (tmp_path / "out").read_text()
    served = (tmp_path / "err").read_text()
    assert ": 1 rule; Ctrl-C ends it\n" in served
    assert served.endswith("ending: functions under way get 10 s; Ctrl-C again ends now\n")


def test_the_event_by_hand(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    [event] = re.findall(r"```json\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "run1.h5").write_bytes(b"x" * 5000)
    for name, text in (("flow.py", code), ("event.json", event)):
        (tmp_path / name).write_text(text.replace("/tmp/beamtime", str(tmp_path)))
    command = [EVENTMILL, "test", "flow.py", "event.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"registered {tmp_path}/run1.h5 5 kB" in done.stderr

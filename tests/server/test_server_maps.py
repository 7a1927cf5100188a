"""A map whose results go into a file, on a real server: functions and jobs read it, and a kill loses nothing of it."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from eventmill.points import MAP_POINTS
from tests.server.mill import CONFIG, mill

pytestmark = pytest.mark.slow

FLOW = """
from eventmill import Mill, happened, results

mill = Mill("tiles")


@mill.function
def split(event):
    return {"items": [{"tile": n} for n in range(200)]}


@mill.function
def fit(tile):
    if tile["tile"] % 10 == 0:
        return {"error": "empty"}
    return {"tile": tile["tile"], "chi2": tile["tile"] / 200, "pad": "x" * 20}


@mill.function
def again(fitted):
    return {"twice": 2 * fitted["tile"], "pad": "x" * 20}


def summed(result):
    values = [each["twice"] for each in results(result)]
    return {"sum": sum(values), "count": len(values), "href": "href" in result}


@mill.job(memory="64MB")
def batch(result):
    return {"job": summed(result), **result}


@mill.function
def join(result):
    return {"function": summed(result), "job": result["job"]}


each = mill.map(fit, partial=True)
mill.on(happened("witness.note"), split >> each >> mill.map(again) >> batch >> join)
"""


@pytest.mark.parametrize("point", [*MAP_POINTS, *(f"{point}:2" for point in MAP_POINTS)])
def test_killed_between_the_file_and_its_record(point: str, tmp_path: Path) -> None:
    flow = tmp_path / "flow.py"
    flow.write_text(FLOW)
    with mill(tmp_path, CONFIG + "payload_bytes = 4096\n") as m:
        m.start()
        m.deploy(flow)
        m.stop()
        m.start(kill_at=point)
        assert m.post("note", [1])
        m.until(m.died, 30, f"death at {point}")
        m.start()
        m.until_done()
        expected = {"sum": sum(2 * n for n in range(200) if n % 10), "count": 180, "href": True}
        ((result,),) = m.query("SELECT result FROM activations WHERE action='default/tiles/join'")
        assert orjson.loads(result) == {"function": expected, "job": expected}
        rows = m.query("SELECT action, state, count(*) FROM activations WHERE category='function' GROUP BY 1, 2")
        assert {(action.rpartition("/")[2], state): count for action, state, count in rows} == {
            ("split", 5): 1, ("fit", 5): 180, ("fit", 6): 20, ("again", 5): 180, ("join", 5): 1
        }  # fmt: skip
        maps = m.query("SELECT result FROM activations WHERE category='map' ORDER BY seq")
        assert [orjson.loads(result)["failed"] for (result,) in maps] == [20, 0]
        folder = m.data / "results" / "default"
        assert sorted(path.name for path in folder.glob("*.jsonl")) == sorted(
            Path(orjson.loads(result)["path"]).name for (result,) in maps
        )
        m.stop()

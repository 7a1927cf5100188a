"""Flows that the tests deploy, run and lint."""

from __future__ import annotations

BEAMTIME = """
import os
from eventmill import Fatal, Mill, Retry, completed, files

mill = Mill("beamtime", parameters={"threshold": 0.5})

@mill.function
def alarm(failure):
    print("alarm:", failure["error"])
    return {"told": failure["action"]}

@mill.function(on_error=alarm, init={"SITE": "desy"})
def inspect(event):
    import helper
    print("looking at", event.path)
    if "broken" in event.subject:
        raise Fatal("unreadable")
    if "busy" in event.subject:
        raise Retry("still busy", after="5s")
    if "typo" in event.subject:
        return {}["path"]
    known = {"frames": helper.FRAMES, "site": os.environ["SITE"], "threshold": event["threshold"]}
    return {"path": event.path, "items": [1, {"n": 2}], **known}

@mill.job(cpus=1, memory="128MB")
def reconstruct(inspected):
    return {**inspected, "volume": inspected["path"] + ".vol"}

@mill.function
def half(element):
    value = element.get("value", element.get("n"))
    return {"error": "odd"} if value == 7 else {"half": value / 2}

calibrate = mill.job("calibrate.sub")

mill.on(files.written("/exfel/**/raw/*.h5"), inspect >> reconstruct >> mill.map(half), name="raw")
mill.on(files.written("/exfel/**/cal/*.h5"), inspect >> calibrate, name="cal")
@mill.function
def report(completion):
    return {"volume": completion["data"]["result"]["volume"]}

mill.on(completed(reconstruct), report, name="after")
"""

HELPER = "FRAMES = 7\n"

SUBMIT = """
executable = work.sh
arguments = $(path) out.h5
output = out.txt
queue
"""

SMALL = """
from eventmill import Mill, files, happened

mill = Mill("small")

@mill.function
def note(event):
    print("noted", event.subject)
    return {"seen": event.subject, "path": event.path}

mill.on(files.written("ROOT/**/*.txt"), note, name="files")
mill.on(happened("org.test.asked"), note, name="asked")
"""

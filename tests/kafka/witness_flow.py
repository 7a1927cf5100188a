"""A flow over records from Kafka whose actions testify to a witness outside: a file to which each appends who it is and
which event it is about, and syncs it. What completes is an event too, and testifies once more."""

import os
import time
from typing import Any

from eventmill import Event, Mill, completed, files, happened

mill = Mill("witness")

WITNESS = {"witness": os.environ.get("EVENTMILL_WITNESS", "")}
"""The file's name: known where the flow is deployed, and from then on a parameter of its actions."""


def testify(params: dict[str, Any], who: str, id: str) -> dict[str, Any]:
    fd = os.open(params["witness"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, f"{who} {id}\n".encode())
    os.fsync(fd)
    os.close(fd)
    time.sleep(0.03)  # time to be killed between the effect and its record
    return {"id": id}


@mill.function(timeout="20s", parameters=WITNESS)
def note(event: Event) -> dict[str, Any]:
    return testify(event, "note", event.id)


@mill.function(timeout="20s", parameters=WITNESS)
def tally(event: Event) -> dict[str, Any]:
    return testify(event, "tally", event.id)


@mill.function(timeout="20s", parameters=WITNESS)
def look(event: Event) -> dict[str, Any]:
    return testify(event, "look", event.id)


@mill.job(cpus=1, memory="64MB", timeout="60s", parameters=WITNESS)
def work(params: dict[str, Any]) -> dict[str, Any]:
    return testify(params, "work", params["id"])


@mill.function(timeout="20s", parameters=WITNESS)
def register(params: dict[str, Any]) -> dict[str, Any]:
    return testify(params, "register", params["id"])


@mill.function(timeout="20s", parameters=WITNESS)
def echo(event: Event) -> dict[str, Any]:
    return testify(event, "echo", event["causationid"])


@mill.function(timeout="60s", parameters=WITNESS)
def slow(event: Event) -> dict[str, Any]:
    """Says which of its runs it was."""
    run = os.urandom(4).hex()
    testify(event, f"slow-begun-{run}", event.id)
    time.sleep(event.data["seconds"])
    testify(event, f"slow-ended-{run}", event.id)
    return {"run": run}


chain = mill.sequence("chain", look, work, register)

mill.on(happened("witness.note"), note)
mill.on(happened("org.lab.line"), note, name="line")
mill.on(files.written("/pnfs/**"), note, name="file")
mill.on(files.written("/pnfs/**", data={"size": [{"numeric": [">=", 10_000_000]}]}), tally)
mill.on(happened("witness.chain"), chain)
mill.on(happened("witness.slow"), slow)
mill.on(completed(note), echo)
mill.on(completed(chain), echo, name="closed")

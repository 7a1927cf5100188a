"""A flow whose actions testify to a witness outside: a file to which each appends its activation, and syncs it."""

import os
from typing import Any

from eventmill import Event, Mill, happened

mill = Mill("witness")


def testify(params: dict[str, Any], who: str, activation: str) -> dict[str, Any]:
    line = f"{who} {params['n']} {activation}\n".encode()
    fd = os.open(params["witness"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line)
    os.fsync(fd)
    os.close(fd)
    return {"n": params["n"], "witness": params["witness"]}


@mill.function(timeout="20s")
def note(event: Event) -> dict[str, Any]:
    return testify(event.data, "note", os.environ["__OW_ACTIVATION_ID"])


@mill.function(timeout="20s")
def look(event: Event) -> dict[str, Any]:
    return testify(event.data, "look", os.environ["__OW_ACTIVATION_ID"])


@mill.job(cpus=1, memory="64MB", timeout="60s")
def work(params: dict[str, Any]) -> dict[str, Any]:
    return testify(params, "work", os.environ["EVENTMILL_ACTIVATION"])


@mill.function(timeout="20s")
def register(params: dict[str, Any]) -> dict[str, Any]:
    return testify(params, "register", os.environ["__OW_ACTIVATION_ID"])


mill.on(happened("witness.note"), note)
# never met, but asked for: the judge looks for what activations have told the log
mill.on({"type": ["org.eventmill.activation.succeeded"], "subject": ["nothing"]}, note, name="nothing")
mill.on(happened("witness.chain"), look >> work >> register)

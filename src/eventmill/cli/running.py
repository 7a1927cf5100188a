"""What `eventmill run` does: a server in this process, the flow deployed to it over loopback, and a line for whatever
ends.

The server owns the event loop and its signals. The deploy is a client like any other, in a thread, because it waits for
a server that lives on the loop; so does printing, because a terminal may be paused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import uvloop

from eventmill.cli import output
from eventmill.cli.client import Client, Target, segment
from eventmill.cli.deployment import Change, carry_out, plan
from eventmill.cli.flows import refusals
from eventmill.cli.options import CANCELLED, DATA_DIR, WRONG, CommandFailed
from eventmill.cli.watching import Earlier, Watch, earlier, sources, watches
from eventmill.config import Settings
from eventmill.sdk.pack import Entity, Flow

if TYPE_CHECKING:
    from eventmill.entities import Activation
    from eventmill.server import Running
    from eventmill.store import DeadLetter

NAMESPACE = "default"
"""That of the key which a server makes for itself."""

_OTHERS_MAX = 50
"""Rules of other flows that are looked at; a few of them are named."""
_NAMED_MAX = 10


def run_flow(flow: Flow, entities: Sequence[Entity], settings: Settings, json: bool) -> None:
    """Serve the flow until SIGTERM or Ctrl-C, which end it cleanly. Raises CommandFailed if the flow was refused."""
    found = watches(entities, settings)
    settings = settings.model_copy(update={"files": sources(found, settings)})
    is_first = not (settings.server.data_dir / "store.db").exists()
    # the server's own log would hide what the flow does; what goes wrong is still said
    logging.getLogger("eventmill").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    ignored = earlier(entities, settings) if is_first else []
    uvloop.run(_Run(flow, entities, found, ignored, settings, json).serve())


def _watching(watch: Watch) -> str:
    if watch.problem:
        return f"not watched: {watch.path}: {watch.problem}"
    return f"watching {watch.path}" if watch.path.is_dir() else f"waiting for {watch.path} to appear"


class _Run:
    """One run: the server, and beside it the deploy and the printing. If one of these fails, the server is ended."""

    def __init__(
        self, flow: Flow, entities: Sequence[Entity], watches: Sequence[Watch], ignored: Sequence[Earlier],
        settings: Settings, json: bool,
    ) -> None:  # fmt: skip
        self._flow = flow
        self._entities = entities
        self._watches = watches
        self._ignored = ignored
        self._settings = settings
        self._json = json
        self._beside: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None
        self._server: asyncio.Task[None] | None = None
        self._interrupted = False

    async def serve(self) -> None:
        from eventmill.server import serve

        self._server = asyncio.create_task(serve(self._settings, ready=self._ready))
        await asyncio.sleep(0)  # the server has taken the signals: what Ctrl-C means here comes after that
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            await self._server
        except asyncio.CancelledError:
            if self._failure is None:
                raise
        finally:
            for task in self._beside:
                task.cancel()
            await asyncio.gather(*self._beside, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    def _interrupt(self) -> None:
        """The first Ctrl-C ends the server as SIGTERM does, the second one like a kill, which harms nothing."""
        if self._interrupted:
            output.note("ended at once: what was under way runs again with the next start")
            os._exit(CANCELLED)
        self._interrupted = True
        seconds = self._settings.server.drain_timeout_s
        output.note(f"ending: functions under way get {seconds:g} s; Ctrl-C again ends now")
        signal.raise_signal(signal.SIGTERM)

    async def _ready(self, running: Running) -> None:
        """The server waits for this before it watches anything: the first file finds the flow's rules."""
        # in this order: what the deploy makes happen must be seen
        for work in (self._print_all(running), self._deploy(running)):
            task = asyncio.create_task(work)
            task.add_done_callback(self._ended)
            self._beside.append(task)
        await asyncio.wait([task])

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = self._failure or failure
            assert self._server is not None
            self._server.cancel()

    async def _deploy(self, running: Running) -> None:
        changes, others = await asyncio.to_thread(self._put, Target(running.url, "this process", running.key))
        for refusal in refusals(self._flow, changes):
            output.note(f"eventmill: {refusal}")
        if any(change.outcome == "refused" for change in changes):
            raise CommandFailed(WRONG)
        if others:
            output.note(f"also active from before: {_some(others)} (eventmill undeploy NAME removes a flow)")
        rules = sum(change.collection == "rules" and change.outcome != "deleted" for change in changes)
        counted = output.counted(rules, "rule")
        for watch in self._watches:
            output.note(_watching(watch))
        output.note(f"{self._flow.path.name} is served at {running.url}: {counted}; Ctrl-C ends it")
        for found in self._ignored:
            output.note(_announcing(found, self._settings.server.data_dir))

    def _put(self, target: Target) -> tuple[list[Change], list[str]]:
        """Deploy; what became of it, and which rules of other flows are active beside it."""
        with Client(target) as client:
            changes = carry_out(client, NAMESPACE, plan(client, NAMESPACE, self._flow, self._entities))
            own = {name for collection, name, _ in self._entities if collection == "rules"}
            path = f"/api/v1/namespaces/{NAMESPACE}/rules"
            names = [rule["name"] for rule in client.pages(path, _OTHERS_MAX + len(own)) if rule["name"] not in own]
            active = [name for name in names if client.get(f"{path}/{segment(name)}")["status"] == "active"]
            return changes, sorted(active)

    async def _print_all(self, running: Running) -> None:
        async for activations, letters in running.engine.follow():
            await asyncio.to_thread(self._print, activations, letters)

    def _print(self, activations: Sequence[Activation], letters: Sequence[DeadLetter]) -> None:
        for line in _json_lines(activations, letters) if self._json else _lines(activations, letters):
            output.json_line(line) if self._json else output.line(line)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _announcing(found: Earlier, data_dir: Path) -> str:
    """How files that were there first can be had after all."""
    where = "" if data_dir == DATA_DIR else f" --data-dir {shlex.quote(str(data_dir))}"
    few = "1 file was" if found.count == 1 else f"{found.counted} were"
    other = f" (or another rule: {_some(found.rules[1:])})" if len(found.rules) > 1 else ""
    command = f"eventmill emit --from {shlex.quote(str(found.path))} --rule {found.rules[0]}{where}{other}"
    return f"{few} there already and {'is' if found.count == 1 else 'are'} ignored; announce them with: {command}"


def _json_lines(activations: Sequence[Activation], letters: Sequence[DeadLetter]) -> Iterator[Any]:
    from eventmill.api.answers import dead_letter, own_activation

    for activation in activations:
        yield {"kind": "activation", **own_activation(activation)}
    for letter in letters:
        yield {"kind": "dead-letter", **dead_letter(letter)}


def _lines(activations: Sequence[Activation], letters: Sequence[DeadLetter]) -> Iterator[str]:
    now = time.strftime("%H:%M:%S")
    for row in activations:
        action = output.local(row.action)
        took = output.lasting(row.started, row.ended) if row.started else ""
        parts = [now, f"{row.state!s:<9}", action, took, _about(row.params), _why(row), row.id]
        yield "  ".join(filter(None, parts))
        if row.category in ("function", "job"):  # a chain's logs are the ids of its steps
            yield from ("          " + line.partition(" ")[2] for line in row.logs)
    for letter in letters:
        about = [
            now,
            "dead letter",
            letter.kind,
            output.local(letter.rule or ""),
            output.short(letter.reason),
            letter.activation or "",
        ]
        yield "  ".join(filter(None, about))


def _about(params: bytes) -> str:
    """The subject of the event that an activation got, or the path that its predecessor named."""
    try:
        value = orjson.loads(params)
    except orjson.JSONDecodeError:
        return ""
    about = (
        next((value[name] for name in ("subject", "path") if value.get(name)), "") if isinstance(value, dict) else ""
    )
    return output.short(about) if isinstance(about, str) else ""


def _why(row: Activation) -> str:
    """A failure's error, in short."""
    result = None if row.state.name == "SUCCEEDED" or row.result is None else orjson.loads(row.result)
    return f"error: {output.short(str(result.get('error')))}" if isinstance(result, dict) else ""

"""A schedd, asked through a helper process (`helper`): one request at a time, in the order of asking.

It owns the helper, and counts what the schedd is asked. A helper that dies is replaced when somebody asks again; what
was on its way then fails with Unavailable, and nobody can say whether it was done: the caller looks. Whoever stops
waiting for an answer leaves it to come and be dropped.

Nothing blocks the event loop, to which everything here belongs.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from eventmill.errors import InvalidDescription, InvalidInput, Unavailable
from eventmill.executors.htcondor import helper

CALL_TIMEOUT_S = 120.0
"""A schedd that has not answered by then is taken for dead: the helper is ended."""
START_TIMEOUT_S = 30.0
BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""After the first, second, … helper in a row that has died without an answer, before the next one is started."""


class TooMany(Unavailable):
    """The schedd takes fewer jobs: `at_once`, or now, until some of the owner's, or of all, have left the queue.
    Nothing was submitted."""

    def __init__(self, message: str, *, at_once: bool) -> None:
        super().__init__(message)
        self.at_once = at_once


class OtherSchedd(Unavailable):
    """Another schedd answers than the one that has the jobs. It was asked nothing."""


@dataclass(frozen=True, slots=True)
class Acted:
    """What became of an order: by cluster.proc, for whom it is denied, and with whom the schedd has failed. All others
    are done, or were gone, or not in a state for it."""

    denied: Sequence[str] = ()
    failed: Sequence[str] = ()


class Pin:
    """What the schedd of a pool calls itself, for all identities: empty until the first one has met it."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    async def meet(self, name: str) -> None:
        """It has answered; it may not say its name."""
        self.name = self.name or name


class Condor:
    """One identity's way to a schedd. `token_file`: its IDTOKEN; without it the server's own account counts. `pin`:
    which schedd it must be; any other one is asked nothing (OtherSchedd).

    `directory` is this identity's in this pool: its lock is there. Every call raises Unavailable if it has no answer,
    also if the identity may not ask; InvalidInput if what was asked is wrong.
    """

    def __init__(
        self,
        *,
        directory: Path,
        condor_config: Path | None = None,
        schedd: str = "",
        collector: str = "",
        token_file: Path | None = None,
        call_timeout_s: float = CALL_TIMEOUT_S,
        pin: Pin | None = None,
    ) -> None:
        self.calls: Counter[str] = Counter(helper_restarts=0)
        """How often the schedd was asked, by what; and how often a helper had to be replaced (`helper_restarts`)."""
        self.trouble = ""
        """Why it could not be asked the last time; empty if it could."""
        self._settings = {
            "parent": os.getpid(),
            "lock": str(directory / "lock"),
            "condor_config": None if condor_config is None else str(condor_config.absolute()),
            "schedd": schedd,
            "collector": collector,
            "token_file": None if token_file is None else str(token_file.absolute()),
            "token_directory": str(directory / "token"),
        }
        self._call_timeout_s = call_timeout_s
        self._pin = pin or Pin()
        self._met = False
        """The schedd has said its name."""
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._calls_under_way: set[asyncio.Task[Any]] = set()
        self._stopped = False
        self.starts = 0
        """How many helpers there have been."""
        self._deaths = 0
        self._died_at = 0.0
        self._why = ""
        self._number = 0
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def pid(self) -> int | None:
        """The helper's, if there is one."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    def condition(self) -> tuple[bool, str]:
        """Whether the schedd has answered the last time, or why not."""
        return not self.trouble, self.trouble or "ready"

    async def submit(self, base: Mapping[str, str], items: Sequence[Mapping[str, str]]) -> list[str]:
        """Submit a job for each of the items (1 to 500), all or none; their `cluster.proc`.

        `base`: commands, in which `$(name)` is an item's value. Items have the same variables; their values are data,
        `$` written `$(DOLLAR)`. But beware: a command whose value becomes empty, and a variable that `environment`
        lacks, come from the cluster's first job. Raises InvalidDescription for what HTCondor does not want, TooMany if
        fewer may be wanted.
        """
        cluster, first, count = await self._call("submit", base=base, items=items)
        if count != len(items):
            raise Unavailable(f"HTCondor made {count} jobs of {len(items)}")
        return [f"{cluster}.{first + n}" for n in range(count)]

    async def release(self, ids: Sequence[str]) -> Acted:
        """Let held jobs run; those that are not held, or gone, stay as they are."""
        return await self._act("release", ids)

    async def remove(self, ids: Sequence[str], reason: str) -> Acted:
        """Take jobs out of the queue; they have a record in the history, with the reason."""
        return await self._act("remove", ids, reason=reason)

    async def query(self, constraint: str, attributes: Sequence[str], limit: int = -1) -> list[dict[str, Any]]:
        """Ads of jobs in the queue, with these attributes (none: all); values as JSON has them."""
        ads: list[dict[str, Any]] = await self._call("query", constraint=constraint, attributes=attributes, limit=limit)
        return ads

    async def history(self, ids: Sequence[str], attributes: Sequence[str]) -> list[dict[str, Any]]:
        """Ads of these jobs, if they have left the queue and the history still knows them; one may be there twice."""
        ads: list[dict[str, Any]] = await self._call("history", ids=ids, attributes=attributes) if ids else []
        return ads

    async def ping(self) -> dict[str, str]:
        """Who answers, and whom it takes us for: version, schedd, schedd_version, address, identity."""
        facts: dict[str, str] = await self._call("ping")
        return facts

    async def stop(self) -> None:
        """End the helper; what is on its way fails, and so does whatever is asked from now on."""
        self._stopped = True
        await self._end()
        await asyncio.gather(*self._calls_under_way, return_exceptions=True)
        await self._end()  # one that was just being started

    async def _act(self, op: str, ids: Sequence[str], **values: Any) -> Acted:
        return Acted(**await self._call(op, ids=ids, **values)) if ids else Acted()

    async def _call(self, op: str, **values: Any) -> Any:
        """A call goes on to its end even if its caller does not: the helper has it already."""
        call = asyncio.ensure_future(self._in_turn(op, values))
        self._calls_under_way.add(call)
        call.add_done_callback(self._done)
        return await asyncio.shield(call)

    def _done(self, call: asyncio.Task[Any]) -> None:
        self._calls_under_way.discard(call)
        if not call.cancelled():
            call.exception()  # the caller may be gone

    async def _in_turn(self, op: str, values: Mapping[str, Any]) -> Any:
        async with self._turn:
            # whoever it is must be known before anything is asked
            answer = {} if self._met else await self._meet()
            if "error" not in answer:
                answer = await self._answer(op, values)
        if "error" not in answer:
            self.trouble = ""
            return answer["result"]
        if answer["kind"] == "refused":
            wrong = InvalidDescription if op == "submit" else InvalidInput
            raise wrong(f"HTCondor does not take it: {answer['error']}")
        self.trouble = f"HTCondor: {answer['error']}"
        if answer["kind"] in ("full", "large"):
            raise TooMany(self.trouble, at_once=answer["kind"] == "large")
        if answer["kind"] == "elsewhere":
            await self._end()  # the pin may be changed
            raise OtherSchedd(self.trouble)
        raise Unavailable(self.trouble)

    async def _meet(self) -> dict[str, Any]:
        answer = await self._answer("meet", {})
        if "error" not in answer:
            await self._pin.meet(answer["result"])
            self._met = True
        return answer

    async def _answer(self, op: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Start a helper if there is none, and ask it. Everything that goes wrong is an answer."""
        try:
            process = self._process if self.pid is not None else None
            process = process or await self._start()
            self._number += 1
            self.calls[op] += 1
            request = {"number": self._number, "op": op, **values}
            answer = await asyncio.wait_for(_exchange(process, request), self._call_timeout_s)
        except Unavailable as e:
            return _unavailable(str(e))
        except TimeoutError:
            await self._end()
            return _unavailable(f"no answer within {self._call_timeout_s:g} s")
        except (asyncio.IncompleteReadError, BrokenPipeError, ConnectionResetError):
            await self._died()
            return _unavailable("the helper process has ended")
        assert answer["number"] == self._number
        self._deaths = 0
        if answer.get("kind") == "auth":
            await self._end()  # its token may have run out; the next one reads it anew, and starts without a session
        return answer

    async def _start(self) -> asyncio.subprocess.Process:
        """Start a helper. Raises Unavailable with what it says."""
        if self._stopped:
            raise Unavailable("stopped")
        if self._wait_s() > 0:
            raise Unavailable(self._why)  # without the time: it is the same trouble as before
        if self._process is not None:
            self.calls["helper_restarts"] += 1
        self.starts += 1
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", helper.__file__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )  # fmt: skip
        try:
            settings = {**self._settings, "pinned": self._pin.name}
            answer = await asyncio.wait_for(_exchange(process, settings), START_TIMEOUT_S)
        except TimeoutError:
            answer = {"error": f"the helper process is not ready after {START_TIMEOUT_S:g} s"}
        except (asyncio.IncompleteReadError, BrokenPipeError, ConnectionResetError):
            answer = {"error": "the helper process has ended while it was starting"}
        if "error" in answer:
            await self._died(answer["error"])
            raise Unavailable(answer["error"])
        return process

    def _wait_s(self) -> float:
        """Until a helper may be started."""
        back_off_s = BACK_OFF_S[min(self._deaths, len(BACK_OFF_S)) - 1] if self._deaths else 0.0
        return self._died_at + back_off_s - time.monotonic() if back_off_s else 0.0

    async def _died(self, why: str = "the helper process has ended") -> None:
        self._deaths += 1
        self._died_at = time.monotonic()
        self._why = why
        await self._end()

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _unavailable(text: str) -> dict[str, Any]:
    return {"error": text, "kind": "unavailable"}


async def _exchange(process: asyncio.subprocess.Process, value: Mapping[str, Any]) -> dict[str, Any]:
    """Send a frame and wait for one."""
    assert process.stdin is not None
    assert process.stdout is not None
    raw = orjson.dumps(value)
    process.stdin.write(struct.pack(">I", len(raw)) + raw)
    await process.stdin.drain()
    head = await process.stdout.readexactly(4)
    answer: dict[str, Any] = orjson.loads(await process.stdout.readexactly(struct.unpack(">I", head)[0]))
    return answer

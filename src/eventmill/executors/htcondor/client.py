"""A schedd, asked through a helper process (`helper`): one request at a time, in the order of asking.

A helper that dies is replaced when somebody asks again; what was on its way then fails with Unavailable, and nobody can
say whether it was done: the caller looks. Nothing blocks the event loop, to which everything here belongs.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from eventmill.errors import InvalidDescription, Unavailable
from eventmill.executors.htcondor import helper

CALL_TIMEOUT_S = 120.0
"""A schedd that has not answered by then is taken for dead: the helper is ended."""
START_TIMEOUT_S = 30.0
_AGAIN_S = 1.0
"""A helper that has just ended is not started again before this."""


class Condor:
    """One identity's way to a schedd. `token_file`: its IDTOKEN; without it the server's own account counts."""

    def __init__(
        self,
        *,
        directory: Path,
        condor_config: Path | None = None,
        schedd: str = "",
        collector: str = "",
        token_file: Path | None = None,
    ) -> None:
        self.calls: Counter[str] = Counter()
        """How often the schedd was asked, by what."""
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
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._started_at = -_AGAIN_S
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def submit(self, base: Mapping[str, str], items: Sequence[Mapping[str, str]]) -> list[str]:
        """Submit a job for each of the items, all or none; their `cluster.proc`. Raises InvalidDescription if the
        schedd does not want them."""
        cluster, first, count = await self._call("submit", base=base, items=items)
        if count != len(items):
            raise Unavailable(f"HTCondor made {count} jobs of {len(items)}")
        return [f"{cluster}.{first + n}" for n in range(count)]

    async def release(self, ids: Sequence[str]) -> None:
        """Let held jobs run; those that are not held stay as they are."""
        await self._call("release", ids=ids)

    async def remove(self, ids: Sequence[str], reason: str) -> None:
        await self._call("remove", ids=ids, reason=reason)

    async def query(self, constraint: str, attributes: Sequence[str]) -> list[dict[str, Any]]:
        """Ads of jobs in the queue, with these attributes."""
        ads: list[dict[str, Any]] = await self._call("query", constraint=constraint, attributes=attributes)
        return ads

    async def history(self, ids: Sequence[str], attributes: Sequence[str]) -> list[dict[str, Any]]:
        """Ads of these jobs, if they have left the queue and the history still knows them; one may be there twice."""
        ads: list[dict[str, Any]] = await self._call("history", ids=ids, attributes=attributes)
        return ads

    async def ping(self) -> None:
        """Raises Unavailable if the schedd has no answer."""
        await self._call("ping")

    async def stop(self) -> None:
        """End the helper; what is on its way fails."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _call(self, op: str, **values: Any) -> Any:
        async with self._turn:
            try:
                answer = await asyncio.wait_for(self._ask({"op": op, **values}), CALL_TIMEOUT_S)
            except TimeoutError:
                await self.stop()
                answer = {"error": f"no answer within {CALL_TIMEOUT_S:g} s", "kind": "unavailable"}
            except (asyncio.IncompleteReadError, BrokenPipeError, ConnectionResetError):
                answer = {"error": "the helper process has ended", "kind": "unavailable"}
            except asyncio.CancelledError:  # the next answer would be taken for another request's
                if self._process is not None and self._process.returncode is None:
                    self._process.kill()
                raise
        self.calls[op] += 1
        if "error" not in answer:
            self.trouble = ""
            return answer["result"]
        if answer["kind"] == "refused":
            raise InvalidDescription(f"HTCondor does not take the job: {answer['error']}")
        self.trouble = f"HTCondor: {answer['error']}"
        raise Unavailable(self.trouble)

    async def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.returncode is not None:
            await self._start()
        return await self._exchange(request)

    async def _start(self) -> None:
        """Start a helper. Raises Unavailable with what it says."""
        await asyncio.sleep(max(0.0, self._started_at + _AGAIN_S - time.monotonic()))
        self._started_at = time.monotonic()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", helper.__file__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )  # fmt: skip
        answer = await asyncio.wait_for(self._exchange(self._settings), START_TIMEOUT_S)
        if "error" in answer:
            self._process.kill()
            await self._process.wait()
            self.trouble = f"HTCondor: {answer['error']}"
            raise Unavailable(self.trouble)

    async def _exchange(self, value: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        raw = orjson.dumps(value)
        self._process.stdin.write(struct.pack(">I", len(raw)) + raw)
        await self._process.stdin.drain()
        head = await self._process.stdout.readexactly(4)
        answer: dict[str, Any] = orjson.loads(await self._process.stdout.readexactly(struct.unpack(">I", head)[0]))
        return answer

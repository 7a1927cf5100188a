"""The other side's limits and kinds, as it tells them. Values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eventmill.entities import Action, Document


@dataclass(frozen=True, slots=True)
class TheirLimits:
    """What an action may ask for there; the defaults are what OpenWhisk has when it says nothing."""

    timeout_ms_min: int = 100
    timeout_ms_max: int = 300_000
    memory_mb_min: int = 128
    memory_mb_max: int = 512
    logs_mb_max: int = 10
    concurrent: int = 30
    """Activations of the namespace that run at once."""
    kinds: frozenset[str] | None = None
    """None: it does not say."""

    @classmethod
    def read(cls, said: Mapping[str, Any], kinds: Iterable[str] | None) -> TheirLimits:
        """From the answer; what it leaves out, or says in a form of its own, is the default."""
        names = {
            "timeout_ms_min": "minActionTimeout", "timeout_ms_max": "maxActionTimeout",
            "memory_mb_min": "minActionMemory", "memory_mb_max": "maxActionMemory",
            "logs_mb_max": "maxActionLogs", "concurrent": "concurrentInvocations",
        }  # fmt: skip
        known = {own: value for own, theirs in names.items() if type(value := said.get(theirs)) is int and value >= 1}
        return cls(**known, kinds=None if kinds is None else frozenset(kinds))

    def __str__(self) -> str:
        kinds = "" if self.kinds is None else f"; kinds {', '.join(sorted(self.kinds))}"
        return f"up to {self.timeout_ms_max / 1000:g} s, {self.memory_mb_max} MB, {self.concurrent} at once{kinds}"

    def of(self, action: Action) -> Document:
        """An action's limits there. Less memory or time than they give at least does no harm, nor do shorter logs."""
        wanted = action.limits
        return {
            "timeout": max(wanted.timeout_ms, self.timeout_ms_min),
            "memory": max(wanted.memory_mb, self.memory_mb_min),
            "logs": min(wanted.logs_mb, self.logs_mb_max),
        }

    def refusal(self, action: Action) -> str | None:
        """Why an action can't run there; None if it can."""
        if self.kinds is not None and ":" in action.kind and action.kind not in self.kinds:
            has = ", ".join(sorted(self.kinds))
            return f"the OpenWhisk that runs functions has no kind '{action.kind}': it has {has}"
        for what, wanted, most, unit in (
            ("time", action.limits.timeout_ms, self.timeout_ms_max, "ms"),
            ("memory", action.limits.memory_mb, self.memory_mb_max, "MB"),
        ):
            if wanted > most:
                return (
                    f"the {what} limit of {wanted} {unit} is more than the OpenWhisk that runs functions allows: "
                    f"{most} {unit}"
                )
        return None

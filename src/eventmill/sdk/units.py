"""Durations and sizes as people write them: "30s", "1.5h", "256MB", "16GB"."""

from __future__ import annotations

from eventmill.sdk.errors import FlowError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Union

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
MEGABYTES = {"MB": 1.0, "GB": 1024.0, "TB": 1024.0 * 1024.0}
"""As OpenWhisk and HTCondor count them: 1 MB is 2**20 bytes."""


def seconds(value: Union[float, str], what: str) -> float:
    """A duration in seconds: a number is seconds already. Must be > 0. `what` names it in the error."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        result = float(value)
    else:
        result = _quantity(value, what, SECONDS, "30s")
    if not 0 < result < float("inf"):
        raise FlowError(f"{what}={value!r}: a duration must be longer than nothing and end some day")
    return result


def milliseconds(value: Union[float, str], what: str) -> int:
    """A duration in whole milliseconds, at least 1."""
    return max(1, round(1000 * seconds(value, what)))


def megabytes(value: str, what: str) -> int:
    """A size in whole MB. A number without a unit is refused: some systems read bytes, others MB."""
    result = round(_quantity(value, what, MEGABYTES, "256MB"))
    if result < 1:
        raise FlowError(f"{what}={value!r}: a size must be at least 1MB")
    return result


def _quantity(value: object, what: str, units: Dict[str, float], example: str) -> float:
    text = value.strip() if isinstance(value, str) else ""
    unit = text.lstrip("0123456789. ")
    try:
        number = float(text[: len(text) - len(unit)])
    except ValueError:
        unit = ""
    if not unit:
        raise FlowError(f'{what}={value!r}: write a number and a unit, such as {what}="{example}"') from None
    if unit not in units:
        raise FlowError(f"{what}={value!r}: unknown unit '{unit}' (known: {', '.join(units)})")
    return number * units[unit]

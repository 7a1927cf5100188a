"""Durations and sizes."""

from __future__ import annotations

import pytest

from eventmill import FlowError
from eventmill.sdk.units import megabytes, milliseconds, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", 30), ("5m", 300), ("1.5h", 5400), ("2d", 172_800), ("250ms", 0.25), (" 7 s ", 7), (90, 90), (0.5, 0.5)],
)
def test_seconds(text: str | float, expected: float) -> None:
    assert seconds(text, "timeout") == expected


def test_milliseconds_are_whole_and_never_none() -> None:
    assert milliseconds("1.5s", "timeout") == 1500
    assert milliseconds(0.00001, "timeout") == 1


@pytest.mark.parametrize(("text", "expected"), [("256MB", 256), ("16GB", 16_384), ("0.5GB", 512), ("1 TB", 1 << 20)])
def test_megabytes(text: str, expected: int) -> None:
    assert megabytes(text, "memory") == expected


@pytest.mark.parametrize(
    "value", ["", "s", "3", "1.2.3s", "-5s", "0s", "5M", "5 minutes", 0, -1, None, True, [5], float("inf")]
)
def test_no_duration(value: object) -> None:
    with pytest.raises(FlowError, match="timeout="):
        seconds(value, "timeout")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["", "256", "256mb", "0MB", "0.1MB", "12GiB", 256, None, "1e3MB"])
def test_no_size(value: object) -> None:
    with pytest.raises(FlowError, match="memory="):
        megabytes(value, "memory")  # type: ignore[arg-type]


def test_an_unknown_unit_names_the_known_ones() -> None:
    with pytest.raises(FlowError, match=r"unknown unit 'parsec' \(known: ms, s, m, h, d\)"):
        seconds("3parsec", "timeout")

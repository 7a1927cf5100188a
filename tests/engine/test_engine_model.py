"""The randomised model of the engine with fixed seeds; `./dev soak --model` plays others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine import model


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "power"), [(s, False) for s in range(12)] + [(s, True) for s in range(8)])
def test_whatever_happens_nothing_is_lost_or_stranded(seed: int, power: bool, tmp_path: Path) -> None:
    played = model.run(seed, tmp_path, power=power)
    assert not played.failures, "\n".join([f"{played.limits}", *played.trace])

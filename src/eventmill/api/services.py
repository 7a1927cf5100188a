"""What the HTTP face is given by the server that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from eventmill.backbone import Backbone
from eventmill.config import Settings
from eventmill.engine import Engine
from eventmill.signing import Signer, new_key
from eventmill.store import Store


@dataclass(frozen=True, slots=True)
class Services:
    """The rooms below, started by the server and stopped after the HTTP face has.

    `metrics`: where counters are registered, and what /metrics shows.
    `check_schedule`: raises InvalidSchedule for an annotation `schedule` that can't be used. It comes from the sources,
    which this room may not know.
    `signer`: knows the tokens of the activations under way.
    """

    store: Store
    engine: Engine
    backbone: Backbone
    settings: Settings
    metrics: CollectorRegistry = field(default_factory=CollectorRegistry)
    signer: Signer = field(default_factory=lambda: Signer(new_key()))
    check_schedule: Callable[[Mapping[str, Any]], object] = field(kw_only=True)

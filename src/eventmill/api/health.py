"""Whether the server lives and is ready, without a key; and its metrics, with one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from eventmill.api.services import Services
from eventmill.api.wire import Json
from eventmill.backbone import Numbers


def routes(services: Services) -> list[BaseRoute]:
    async def healthz(request: Request) -> Response:
        """The process answers: no reason to kill it."""
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        """200 if events are taken and dealt with, else 503; `reasons` says why not."""
        status = services.engine.status()
        answer = {"ready": status["ready"], "reasons": status["reasons"]}
        return Json(answer, 200 if status["ready"] else 503)

    async def metrics(request: Request) -> Response:
        collector.numbers = await services.backbone.numbers()
        return Response(generate_latest(services.metrics), media_type=CONTENT_TYPE_LATEST)

    collector = _Collector(services)
    services.metrics.register(collector)
    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]


class _Collector(Collector):
    """The engine's own counts, and those of the log, read when somebody asks."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.numbers = Numbers()

    def collect(self) -> Iterator[Metric]:
        status = self._services.engine.status()
        yield GaugeMetricFamily("eventmill_ready", "1 if the server is ready", value=float(status["ready"]))
        for name, text in (
            ("under_way", "Activations that executors have"),
            ("alive", "Activations that have not finished"),
            ("partitions", "Partitions of the log that are this server's"),
            ("rules", "Active rules with a pattern"),
            ("keyless_rules", "Rules that every event is tried against"),
        ):
            yield GaugeMetricFamily(f"eventmill_{name}", text, value=float(status[name]))
        yield _totals(status["totals"])
        yield _of_executors(self._services.engine.executor_counts())
        yield from _of_the_log(self.numbers, self._services.engine.conditions()["backbone"][0])

    def describe(self) -> Iterator[Metric]:
        """Nothing is promised: the engine is not asked before it has started."""
        return iter(())


def _totals(totals: Mapping[str, Any]) -> Metric:
    family = CounterMetricFamily("eventmill_engine", "What the engine has dealt with since its start", labels=("what",))
    for what, count in sorted(totals.items()):
        family.add_metric((what,), float(count))
    return family


def _of_executors(counts: Mapping[str, Mapping[str, int]]) -> Metric:
    family = CounterMetricFamily(
        "eventmill_executor", "What executors have done since their start", labels=("executor", "what")
    )
    for name, numbers in sorted(counts.items()):
        for what, count in sorted(numbers.items()):
            family.add_metric((name, what), float(count))
    return family


def _of_the_log(numbers: Numbers, ok: bool) -> Iterator[Metric]:
    yield GaugeMetricFamily("eventmill_backbone_ok", "1 if records come in from the log", value=float(ok))
    yield GaugeMetricFamily("eventmill_outbox_records", "Own events that wait for Kafka", value=float(numbers.outbox))
    yield CounterMetricFamily("eventmill_relayed", "Own events that Kafka has acknowledged", value=numbers.relayed)
    lag = GaugeMetricFamily("eventmill_kafka_lag", "Records that have not been dealt with yet", labels=("topic",))
    for topic, records in sorted(numbers.lag.items()):
        lag.add_metric((topic,), records)
    yield lag
    ignored = CounterMetricFamily(
        "eventmill_records_ignored", "Records that made no event, by the reason", labels=("topic", "reason")
    )
    for topic, reasons in sorted(numbers.ignored.items()):
        for reason, records in sorted(reasons.items()):
            ignored.add_metric((topic, reason), records)
    yield ignored

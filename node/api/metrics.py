"""/metrics: counters of the API itself and of every component that has some, in the text formats of Prometheus.

Nothing is pushed: components count in plain integers and are asked when somebody scrapes. Counting a request costs a dictionary
lookup and a bisection, no lock and no label formatting.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from node.api.ports import MetricSource, Sample

NAMESPACE = "holdfast_"

DURATION_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From a cached 4 KiB read to a hundred-MiB transfer; what takes longer lands in +Inf."""

RequestKey = tuple[str, str, int]
"""(method, route template, status)"""


class RequestCounters:
    """What the API has answered, by method, route and status. Routes are templates, so the number of series is bounded."""

    def __init__(self) -> None:
        self._buckets: dict[RequestKey, list[int]] = {}
        self._seconds: dict[RequestKey, float] = {}
        self.bytes_received = 0
        self.bytes_sent = 0
        self.in_flight = 0
        self.client_aborts = 0
        self.broken_answers = 0
        self.malformed_requests = 0
        self.connections_refused = 0

    def count(self, key: RequestKey, seconds: float) -> None:
        """One answered request."""
        buckets = self._buckets.get(key)
        if buckets is None:
            buckets = self._buckets[key] = [0] * (len(DURATION_BUCKETS_S) + 1)
            self._seconds[key] = 0.0
        buckets[bisect_left(DURATION_BUCKETS_S, seconds)] += 1
        self._seconds[key] += seconds

    def answered(self, key: RequestKey) -> int:
        """How many requests were answered so."""
        return sum(self._buckets.get(key, ()))

    def histogram(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(
            NAMESPACE + "http_request_duration_seconds",
            "Seconds from the head of a request to the end of its answer (of a short one: to its hand-over)",
            labels=("method", "route", "status"),
        )
        bounds = [*(str(bound) for bound in DURATION_BUCKETS_S), "+Inf"]
        for (method, route, status), buckets in self._buckets.items():
            family.add_metric(
                (method, route, str(status)),
                buckets=list(zip(bounds, accumulate(buckets), strict=True)),
                sum_value=self._seconds[method, route, status],
            )
        return family

    def samples(self) -> Iterator[Sample]:
        yield Sample("http_received_bytes", "counter", "Bytes of request bodies read", self.bytes_received)
        yield Sample("http_sent_bytes", "counter", "Bytes of volume content sent", self.bytes_sent)
        yield Sample("http_requests_in_flight", "gauge", "Requests being answered now", self.in_flight)
        yield Sample(
            "http_client_aborts", "counter", "Requests whose client went away before the end", self.client_aborts
        )
        yield Sample(
            "http_broken_answers", "counter", "Answers cut off because the content failed half-way", self.broken_answers
        )
        yield Sample("http_malformed_requests", "counter", "Requests that were not HTTP", self.malformed_requests)
        yield Sample("http_connections_refused", "counter", "Connections closed at the limit", self.connections_refused)


class Metrics:
    """The registry of one node: the API's own counters, the process, and the sources that were added."""

    def __init__(self) -> None:
        self.requests = RequestCounters()
        self._sources: list[MetricSource] = [self.requests]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_SourceCollector(self))

    def add(self, source: MetricSource) -> None:
        """Show the counters of another component."""
        self._sources.append(source)

    def families(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """Everything but the process, samples of one name together whichever source they come from."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily] = {}
        for source in self._sources:
            for sample in source.samples():
                family = families.get(sample.name)
                if family is None:
                    kind = CounterMetricFamily if sample.kind == "counter" else GaugeMetricFamily
                    family = kind(NAMESPACE + sample.name, sample.documentation, labels=tuple(sample.labels))
                    families[sample.name] = family
                family.add_sample(
                    NAMESPACE + sample.name + ("_total" if sample.kind == "counter" else ""),
                    dict(sample.labels),
                    sample.value,
                )
        return [*families.values(), self.requests.histogram()]

    def render(self, accept: str | None) -> tuple[bytes, str]:
        """The body and its content type, in the format that the scraper's Accept header prefers."""
        encoder, content_type = choose_encoder(accept or "")
        return encoder(self._registry), content_type


class _SourceCollector(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        return self._metrics.families()

    def describe(self) -> Iterable[CounterMetricFamily]:
        # Named so that registration doesn't ask components that may not be running yet.
        return ()

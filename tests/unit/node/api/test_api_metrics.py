"""/metrics: what components count and what the API counts itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from node.api.metrics import DURATION_BUCKETS_S, RequestCounters
from node.api.ports import Sample

if TYPE_CHECKING:
    from tests.unit.node.api.conftest import Harness


class Chunks:
    def __init__(self) -> None:
        self.puts = 0

    def samples(self) -> Iterable[Sample]:
        yield Sample("chunk_puts", "counter", "Chunks stored", self.puts)
        yield Sample("chunk_live_bytes", "gauge", "Bytes of live chunks", 4096, {"kind": "data"})
        yield Sample("chunk_live_bytes", "gauge", "Bytes of live chunks", 512, {"kind": 'map "pages"'})


async def scrape(http: Harness) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = await http.request("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.body.decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_sources_are_asked_at_each_scrape(http: Harness) -> None:
    source = Chunks()
    http.metrics.add(source)
    assert (await scrape(http))["holdfast_chunk_puts_total", ()] == 0
    source.puts = 7
    shown = await scrape(http)
    assert shown["holdfast_chunk_puts_total", ()] == 7
    assert shown["holdfast_chunk_live_bytes", (("kind", "data"),)] == 4096
    assert shown["holdfast_chunk_live_bytes", (("kind", 'map "pages"'),)] == 512
    assert shown["process_resident_memory_bytes", ()] > 0


async def test_requests_are_counted_by_method_route_and_status(http: Harness) -> None:
    http.volumes.put("v", b"x" * 100)
    for target in ("/v1/volumes/v/data", "/v1/volumes/v/data", "/v1/volumes/w/data", "/random/1", "/random/2"):
        await http.request("GET", target)
    await http.request("PUT", "/v1/volumes/v/data", b"12345")
    await http.request("LOCK", "/v1/volumes/v/data")
    shown = await scrape(http)

    def count(method: str, route: str, status: int) -> float:
        labels = (("method", method), ("route", route), ("status", str(status)))
        return shown["holdfast_http_request_duration_seconds_count", labels]

    assert count("GET", "/v1/volumes/{volume}/data", 200) == 2
    assert count("GET", "/v1/volumes/{volume}/data", 404) == 1
    assert count("PUT", "/v1/volumes/{volume}/data", 200) == 1
    assert count("GET", "(none)", 404) == 2
    assert shown["holdfast_http_received_bytes_total", ()] == 5
    assert shown["holdfast_http_sent_bytes_total", ()] == 200
    assert shown["holdfast_http_requests_in_flight", ()] == 1  # the scrape itself


def test_buckets_are_cumulative() -> None:
    counters = RequestCounters()
    key = ("GET", "/x", 200)
    for seconds in (0.0001, 0.0005, 0.0006, 3.0, 100.0):
        counters.count(key, seconds)
    samples = {(sample.name, sample.labels.get("le")): sample.value for sample in counters.histogram().samples}
    name = "holdfast_http_request_duration_seconds"
    assert samples[f"{name}_bucket", "0.0005"] == 2
    assert samples[f"{name}_bucket", "0.001"] == 3
    assert samples[f"{name}_bucket", "5.0"] == 4
    assert samples[f"{name}_bucket", "+Inf"] == samples[f"{name}_count", None] == 5
    assert abs(samples[f"{name}_sum", None] - 103.0012) < 1e-9
    assert list(DURATION_BUCKETS_S) == sorted(DURATION_BUCKETS_S)
    assert counters.answered(key) == 5


async def test_open_metrics_on_request(http: Harness) -> None:
    answer = await http.request("GET", "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")

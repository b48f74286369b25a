"""Prometheus counters of requests, scans and batches. The web application keeps them for all replicas."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from upfield.export.service.replicas.strips import SliceBatch
from upfield.export.service.scan_requests.admission import AdmissionQueue

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)


class Counters:
    """The service's counters, in their own Prometheus registry."""

    def __init__(self, batch_size: int) -> None:
        """Create the counters for batches of at most `batch_size` slices."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        sizes = sorted({*range(1, min(batch_size, 8) + 1), *(2**power for power in range(4, 12))})
        sizes = [size for size in sizes if size < batch_size] + [batch_size]
        self._requests = Counter(
            "upfield_requests", "Requests answered.", ("method", "path", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "upfield_request_seconds",
            "Time from the start of a request to the end of its response.",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._slices = Counter("upfield_slices_restored", "Slices restored.", registry=self.registry)
        self._batch_slices = Histogram(
            "upfield_batch_slices",
            "Slices in a batch, without padding.",
            buckets=sizes,
            registry=self.registry,
        )
        self._batch_scans = Histogram(
            "upfield_batch_scans", "Scans that share a batch.", buckets=(1, 2, 3, 4, 6, 8), registry=self.registry
        )

    def watch(self, queue: AdmissionQueue) -> None:
        """Add gauges for the waiting scans of `queue` and for all its admitted scans."""
        waiting = Gauge("upfield_queue_length", "Scans waiting in the queue.", registry=self.registry)
        waiting.set_function(lambda: len(queue.waiting))
        admitted = Gauge("upfield_scans", "Scans being received, waiting, or being processed.", registry=self.registry)
        admitted.set_function(lambda: queue.num_admitted)

    def note_request(self, method: str, path: str, status: int, seconds: float) -> None:
        """Record one response: the request's method and route, the status, and the duration."""
        self._requests.labels(method, path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def note_batch(self, batch: SliceBatch) -> None:
        """Record one batch: its slices, and the scans that they come from."""
        self._slices.inc(batch.num_slices)
        self._batch_slices.observe(batch.num_slices)
        self._batch_scans.observe(batch.num_scans)

    def exposition(self) -> bytes:
        """Return all counters in Prometheus's text format."""
        return generate_latest(self.registry)

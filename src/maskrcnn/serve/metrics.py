"""Counts and times of a service, in the text format that Prometheus reads (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from maskrcnn.memory import resident_mib

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32)

Labels = tuple[str, ...]


@dataclass(slots=True)
class Counter:
    """A number that only grows, for each combination of labels."""

    name: str
    help: str
    labels: Labels = ()
    values: dict[Labels, float] = field(default_factory=dict)

    def add(self, amount: float, *of: str) -> None:
        with _LOCK:
            self.values[of] = self.values.get(of, 0.0) + amount

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, "counter")
        for of, value in sorted(self.values.items()):
            yield f"{self.name}{_labels(self.labels, of)} {_number(value)}"


@dataclass(slots=True)
class Gauge:
    """A number that is asked for when the metrics are."""

    name: str
    help: str
    value: Callable[[], float]

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, "gauge")
        yield f"{self.name} {_number(self.value())}"


@dataclass(slots=True)
class Histogram:
    """Counts of values up to each bound, for each combination of labels."""

    name: str
    help: str
    bounds: tuple[float, ...]
    labels: Labels = ()
    counts: dict[Labels, list[int]] = field(default_factory=dict)
    sums: dict[Labels, float] = field(default_factory=dict)

    def observe(self, value: float, *of: str) -> None:
        with _LOCK:
            counts = self.counts.setdefault(of, [0] * (len(self.bounds) + 1))
            counts[bisect_left(self.bounds, value)] += 1
            self.sums[of] = self.sums.get(of, 0.0) + value

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, "histogram")
        for of, counts in sorted(self.counts.items()):
            total = 0
            for bound, count in zip((*map(_number, self.bounds), "+Inf"), counts, strict=True):
                total += count
                yield f"{self.name}_bucket{_labels((*self.labels, 'le'), (*of, bound))} {total}"
            yield f"{self.name}_sum{_labels(self.labels, of)} {_number(self.sums[of])}"
            yield f"{self.name}_count{_labels(self.labels, of)} {total}"


class Metrics:
    """Counters, gauges and histograms of a service."""

    def __init__(self, queued: Callable[[], float], ready: Callable[[], float]) -> None:
        self.requests = Counter(
            "maskrcnn_requests_total", "Requests answered.", ("method", "route", "status")
        )
        self.seconds = Histogram(
            "maskrcnn_request_seconds", "Time from a request's first byte to its answer.", SECONDS, ("route",)
        )
        self.pictures = Counter("maskrcnn_pictures_total", "Pictures that a model has seen.", ("model",))
        self.instances = Counter("maskrcnn_instances_total", "Objects answered.", ("model",))
        self.model_seconds = Histogram(
            "maskrcnn_model_seconds", "Time of a batch in the model.", SECONDS, ("model",)
        )
        self.queue_seconds = Histogram("maskrcnn_queue_seconds", "Time of a picture in the queue.", SECONDS)
        self.batch_size = Histogram("maskrcnn_batch_size", "Pictures in a batch.", SIZES)
        self.queue = Gauge("maskrcnn_queue_length", "Accepted pictures that the model has not taken.", queued)
        self.ready = Gauge("maskrcnn_ready", "1 when the models are warm and pictures are accepted.", ready)
        self.memory = Gauge("process_resident_memory_bytes", "Resident memory.", resident_bytes)

    def text(self) -> str:
        """All metrics in the text format."""
        with _LOCK:
            return "".join(f"{line}\n" for part in vars(self).values() for line in part.lines())


def resident_bytes() -> float:
    """Resident memory of this process; not-a-number where Linux's /proc is not there."""
    resident = resident_mib()
    return float("nan") if resident is None else resident * 2**20


_LOCK = threading.Lock()


def _head(name: str, text: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _labels(names: Labels, values: Labels) -> str:
    pairs: Mapping[str, str] = dict(zip(names, values, strict=True))
    if not pairs:
        return ""
    escaped = (
        f'{k}="{v}"'
        for k, v in (
            (k, v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for k, v in pairs.items()
        )
    )
    return "{" + ",".join(escaped) + "}"


def _number(value: float) -> str:
    return "NaN" if value != value else f"{value:.15g}"

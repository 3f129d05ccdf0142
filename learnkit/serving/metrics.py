"""Metrics of a server in the text format of Prometheus: what it answered, knows, and sees drift."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from learnkit.inference.monitor import Monitor
from learnkit.inference.prediction import Prediction, Result
from learnkit.serving.http_errors import Refusal

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_LABELS = 200  # classes that have a line of their own: whoever teaches can make up any number
OTHERS = ""  # no class has this name
_PATHS = ("/predict", "/extend", "/undo", "/reload", "/health", "/ready", "/model", "/metrics")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_HELP = {
    "images_waiting": "Images let in and not answered yet.",
    "requests": "Requests under way.",
    "unsaved_changes": "Changes of the model that are not on disk yet.",
    "class_images": "Images each class rests on.",
    "drift_images": "Images the drift monitor has seen.",
    "drift_evidence": "Evidence of drift, of all images and of those taken for a class.",
    "drift_bound": "Evidence at which there is an alarm.",
    "drift_alarm": "1 from the alarm on until the monitor is reset.",
}

Sample = tuple[str | None, float]  # a class, or None for no label at all, and a value
Gauges = Mapping[str, Iterable[Sample]]


class Metrics:
    """Counters of what a server did, and gauges of how it stands whenever somebody asks.

    A class beyond the first 200 is counted with the others, under the label "". Without the package
    prometheus_client nothing is counted, and `text` says so. Where its variable
    PROMETHEUS_MULTIPROC_DIR names a folder, counters are those of all processes that share it, and
    there are no gauges, which are each process's own.

    Args:
        gauges: gives how the server stands.
    """

    def __init__(self, gauges: Callable[[], Gauges]):
        self._gauges, self._labels = gauges, set[str]()
        try:
            import prometheus_client as prometheus
        except ImportError:
            self._registry = None
            return
        # not the global one, which refuses the same names a second time in a process
        self._registry = registry = prometheus.CollectorRegistry()
        counter = lambda name, what, labels=(): prometheus.Counter(
            f"learnkit_{name}", what, labels, registry=registry
        )
        self._answers = counter("answers", "Answers sent.", ("path", "status"))
        self._predicted = counter(
            "predictions", "Images that were found to be of a class.", ("label",)
        )
        self._unknown = counter("unknown_images", "Images that were found to be of no class.")
        self._failed = counter("failed_images", "Images that could not be predicted.")
        self._learned = counter("learned_images", "Images that were taught.")
        self._seconds = prometheus.Histogram(
            "learnkit_request_seconds",
            "From a request's headers to the end of its answer.",
            ("path",),
            registry=registry,
            buckets=_SECONDS,
        )
        self._shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        if not self._shared:
            registry.register(self)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer; those of unknown paths together."""
        if self._registry is not None:
            # a client can ask for any path, and Prometheus keeps a line for each
            shown = path if path in _PATHS else "other"
            self._answers.labels(shown, str(status)).inc()
            self._seconds.labels(shown).observe(seconds)

    def predicted(self, results: Sequence[Result]) -> None:
        """Count what became of images."""
        if self._registry is None:
            return
        for result in results:
            if not isinstance(result, Prediction):
                self._failed.inc()
            elif result.is_ood:
                self._unknown.inc()
            else:
                names = (result.label,) if isinstance(result.label, str) else result.label
                for name in names:
                    self._predicted.labels(self._bounded(name)).inc()

    def learned(self, n_images: int) -> None:
        """Count images that were taught."""
        if self._registry is not None:
            # prometheus_client raises ValueError for less than 0
            self._learned.inc(max(n_images, 0))

    def text(self) -> bytes:
        """All of them in the text format of Prometheus.

        Raises:
            Refusal: 501 the package is not installed.
        """
        if self._registry is None:
            raise Refusal(
                501,
                "metrics need prometheus_client, which is not installed: "
                '`pip install "learnkit[serve]"`',
            )
        from prometheus_client import CollectorRegistry, generate_latest, multiprocess

        registry = self._registry
        if self._shared:
            # one for each answer, as prometheus_client asks: it reads the files of all processes
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry)

    def collect(self) -> Iterator[Any]:
        """The gauges, as prometheus_client asks for them."""
        from prometheus_client.core import GaugeMetricFamily

        for name, samples in self._gauges().items():
            found = [*samples][: MOST_LABELS + 1]  # with that of all images
            family = GaugeMetricFamily(f"learnkit_{name}", _HELP[name])
            for label, value in found:
                labels = {} if label is None else {"label": label}
                family.add_sample(f"learnkit_{name}", labels, value)
            yield family

    def describe(self) -> list[Any]:
        """Nothing: gauges are not known before they are asked for."""
        return []

    def _bounded(self, label: str) -> str:
        if label not in self._labels:
            if len(self._labels) >= MOST_LABELS:
                return OTHERS
            self._labels.add(label)
        return label


def drift_gauges(monitor: Monitor | None) -> Gauges:
    """What a drift monitor has seen, by name; nothing without one."""
    if monitor is None:
        return {}
    state = monitor.state  # one value: no image comes between the numbers
    raised = {alarm.label for alarm in state.alarms}
    tests = state.tests
    return {
        "drift_images": [(label, test.n_images) for label, test in tests.items()],
        "drift_evidence": [(label, test.level) for label, test in tests.items()],
        "drift_alarm": [(label, float(label in raised)) for label in tests],
        "drift_bound": [(None, monitor.bound)],
    }

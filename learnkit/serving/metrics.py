"""Metrics of a served model, drift among them, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from learnkit.inference.monitor import Monitor

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HELP = {
    "images_waiting": "Images let in and not answered yet.",
    "requests": "Requests under way.",
    "unsaved_changes": "Changes of the model that are not on disk yet.",
    "drift_images": "Images the drift monitor has seen.",
    "drift_evidence": "Evidence of drift, of all images and of those taken for a class.",
    "drift_bound": "Evidence at which there is an alarm.",
    "drift_alarm": "1 from the alarm on until the monitor is reset.",
}

Sample = tuple[Mapping[str, str], float]  # labels and a value


def metrics_text(gauges: Mapping[str, float], monitor: Monitor | None) -> str:
    """The gauges, and those of the monitor if there is one, in the text format.

    Source: Prometheus, "Exposition formats", text format 0.0.4.
    """
    found: dict[str, list[Sample]] = {name: [({}, value)] for name, value in gauges.items()}
    if monitor is not None:
        found |= _drift_gauges(monitor)
    return "".join(_family(f"learnkit_{name}", _HELP[name], found[name]) for name in found)


def _drift_gauges(monitor: Monitor) -> dict[str, list[Sample]]:
    state = monitor.state  # one value: no image comes between the numbers
    raised = {alarm.label for alarm in state.alarms}
    tests = [(_names(label), test, label in raised) for label, test in state.tests.items()]
    return {
        "drift_images": [(names, test.n_images) for names, test, _ in tests],
        "drift_evidence": [(names, test.level) for names, test, _ in tests],
        "drift_alarm": [(names, float(is_raised)) for names, _, is_raised in tests],
        "drift_bound": [({}, monitor.bound)],
    }


def _names(label: str | None) -> dict[str, str]:
    return {} if label is None else {"label": label}


def _family(name: str, help_: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {help_}", f"# TYPE {name} gauge"]
    lines += [f"{name}{_labels(labels)} {value:.17g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    """As `{name="value"}`; nothing for none."""
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')

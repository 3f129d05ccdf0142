"""From what was tried to the report."""

from __future__ import annotations

import importlib.metadata
import math
from importlib.util import find_spec
from typing import TYPE_CHECKING

from learnkit._version import __version__
from learnkit.backends.processor import processor_name, telling_flags
from learnkit.optimize import gates as gate
from learnkit.optimize.conversion_report import ConversionReport
from learnkit.optimize.quality import Candidate, Latency
from learnkit.optimize.trial import Trial

if TYPE_CHECKING:
    from learnkit.optimize.trials import Trials

_PACKAGES = ("torch", "timm", "numpy", "onnx", "onnxruntime", "openvino")
_BUSY = (
    "others used the machine while it was timed: ratios may be off; optimise again when it is idle"
)


def report_of(trials: Trials, trial: Trial, *, forced: bool = False) -> ConversionReport:
    """What is known of a trial that was judged, and of the others beside it."""
    task, converted = trials.task, trial.converted
    assert trial.quality is not None
    flags = " ".join(telling_flags())
    full = trials.base.n_weight_bytes
    return ConversionReport(
        variant=converted.name,
        backend=converted.backend,
        precision=converted.precision,
        device=task.device,
        threads=trial.network.session.threads,
        params=dict(converted.params),
        versions=_versions(),
        processor={"name": processor_name(), "flags": flags},
        samples=task.samples and task.samples.described("images"),
        test=task.test.described(task.what),
        n_bytes=converted.n_bytes or full,
        n_bytes_float32=full,
        latency=tuple(_latency(trial, batch) for batch in task.batches),
        quality=trial.quality,
        verdicts=trial.verdicts,
        state=trial.state,
        notes=(*task.notes, *converted.notes, *(_BUSY,) * trials.busy),
        candidates=_candidates(trials, trial, forced),
        forced=forced,
    )


def _candidates(trials: Trials, chosen: Trial, forced: bool) -> tuple[Candidate, ...]:
    """All that was tried, if there was a choice."""
    if len(trials.found) + len(trials.problems) < 2:
        return ()
    taken = chosen if forced or chosen.passed else None
    rows = [_candidate(name, trial, taken) for name, trial in trials.found.items()]
    failed = [Candidate(name, {}, math.nan, why) for name, why in trials.problems.items()]
    return (*rows, *failed)


def _candidate(name: str, trial: Trial, taken: Trial | None) -> Candidate:
    outcome = "taken" if trial is taken else gate.failures(trial.verdicts)
    if trial.quality is None:
        outcome = "slower, not judged"
    return Candidate(
        name,
        {str(batch): times.median for batch, times in trial.times.items()},
        math.nan if trial.quality is None else trial.quality.agreement,
        outcome or "passed",
    )


def _latency(trial: Trial, batch: int) -> Latency:
    own = trial.times[batch]
    return Latency(
        batch, own.median, own.p95, trial.reference[batch].median, trial.eager[batch].median
    )


def _versions() -> dict[str, str]:
    """Versions of everything installed that decides the numbers."""
    there = [name for name in _PACKAGES if find_spec(name) is not None]
    return {"learnkit": __version__, **{name: importlib.metadata.version(name) for name in there}}

"""A faster model, and the proof of what that cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from learnkit._version import versions
from learnkit.backends.processor import processor_name, telling_flags
from learnkit.backends.registry import BACKENDS, PRECISIONS, check_backend, why_not
from learnkit.errors import BackendUnavailableError, ConversionRefusedError, OptimizeError
from learnkit.inference.model import Model
from learnkit.optimize import gates as gate
from learnkit.optimize.conversion_report import ConversionReport
from learnkit.optimize.convert import QUANTIZING
from learnkit.optimize.job import Given, job_of
from learnkit.optimize.quality import Candidate, Latency
from learnkit.optimize.trials import Trial, Trials

AUTO = "auto"
_CHEAPER = ("int8", "bfloat16", "float32", "float16")  # in what order a fall-back is looked for


def optimize(
    model: Model,
    precision: str = "float32",
    samples: Any = None,
    *,
    backend: str = AUTO,
    device: str = "cpu",
    test: Any = None,
    ood: Any = None,
    learned: Any = None,
    force: bool = False,
    fallback: bool = False,
    threads: int | None = None,
    gates: gate.Gates | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    **backend_params: Any,
) -> tuple[Model, ConversionReport]:
    """(the fastest variant of `model` that passes its gates, the report); see `Predictor.optimize`.

    `model` is over weights as trained, and stays as it is.
    """
    wanted = candidates(backend, precision, device, backend_params)
    job = job_of(
        model,
        precision,
        Given(samples, test, ood, learned),
        gates=gates,
        batch_size=batch_size,
        params=backend_params,
        progress=progress,
        device=device,
        threads=threads,
    )
    trials = Trials(job)
    # where nothing else is tried, what prevents the conversion is the answer
    found = trials.fastest_passing(wanted, strict=len(wanted) == 1 and not fallback)
    if found is None and fallback:
        others = [one for one in cheaper(precision, backend, device) if one not in wanted]
        if job.samples is None:  # int8 takes its ranges from them
            others = [one for one in others if one[1] != "int8"]
        found = trials.fastest_passing(others)
    best = found or trials.best(precision)
    if found is None and not force:
        raise _refused(report_of(trials, best))
    report = report_of(trials, best, forced=found is None)
    assert best.model is not None
    return best.model.replace(report=report.to_dict()), report


def candidates(
    backend: str, precision: str, device: str, params: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """The pairs (backend, precision) that are meant and possible here.

    Raises:
        OptimizeError: no such precision, or parameters that no backend meant takes.
        BackendUnavailableError: none is possible; the message names what is.
        MissingExtraError: the one asked for is not installed.
    """
    if precision not in PRECISIONS:
        raise OptimizeError(f"`precision` is {precision!r}; there are {', '.join(PRECISIONS)}")
    own = {k: v for k, v in params.items() if precision != "int8" or k not in QUANTIZING}
    if backend != AUTO:
        check_backend(backend, precision, device, own)
        return [(backend, precision)]
    found = [
        (one.name, precision)
        for one in BACKENDS.values()
        if why_not(one, precision, device) is None and not one.missing
    ]
    known = {name for one in BACKENDS.values() for name in one.parameters}
    if unknown := sorted(own.keys() - known):
        raise OptimizeError(
            f"no backend has a parameter {', '.join(unknown)}; they have {sorted(known)}"
        )
    if not found:
        reasons = [
            f"{one.name}: {why_not(one, precision, device) or 'not installed'}"
            for one in BACKENDS.values()
        ]
        raise BackendUnavailableError(
            f"nothing here runs {precision!r} on {device!r} ({'; '.join(reasons)}); "
            "learnkit.devices() lists what is possible"
        )
    return found


def cheaper(precision: str, backend: str, device: str) -> list[tuple[str, str]]:
    """What to fall back to: other precisions of the backend asked for."""
    names = BACKENDS if backend == AUTO else (backend,)
    return [
        (name, other)
        for other in _CHEAPER
        for name in names
        if other != precision
        and why_not(BACKENDS[name], other, device) is None
        and not BACKENDS[name].missing
    ]


def _refused(report: ConversionReport) -> ConversionRefusedError:
    error = ConversionRefusedError(
        f"{report.variant} is refused: {report.failures}. The error's `report` has the details; "
        "fallback=True takes the best variant that passes, force=True takes this one"
    )
    error.report = report
    return error


_PACKAGES = ("torch", "timm", "numpy", "onnx", "onnxruntime", "openvino")


def report_of(trials: Trials, trial: Trial, *, forced: bool = False) -> ConversionReport:
    """What is known of a trial that was compared, and of the others beside it."""
    job, converted = trials.job, trial.converted
    assert trial.quality is not None
    flags = " ".join(telling_flags())
    # what the float32 weights that travel take: all but those of a head outside the network
    module = job.source.network.model if job.source.head is None else job.source.network.model[0]
    full = sum(one.numel() * one.element_size() for one in module.state_dict().values())
    return ConversionReport(
        variant=converted.name,
        backend=converted.backend,
        precision=converted.precision,
        device=job.device,
        threads=trial.network.threads,
        params=dict(converted.params),
        versions=versions(*_PACKAGES),
        processor={"name": processor_name(), "flags": flags},
        samples=job.samples and job.samples.described("images"),
        test=job.test.described(job.what),
        # torch's variants have no files: it casts the float32 weights on loading
        n_bytes=converted.n_bytes or full,
        n_bytes_float32=full,
        latency=tuple(
            Latency(
                batch,
                trial.times[batch].best,
                trial.times[batch].p95,
                trial.reference[batch].best,
                trial.eager[batch].best,
            )
            for batch in job.batches
        ),
        quality=trial.quality,
        verdicts=trial.verdicts,
        state=trial.state,
        notes=(*trials.notes, *converted.notes),
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
        {str(batch): times.best for batch, times in trial.times.items()},
        math.nan if trial.quality is None else trial.quality.agreement,
        outcome or "passed",
    )

"""A predictor made faster, and proof of what that cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from learnkit.deploy.backends import BACKENDS, PRECISIONS, check_backend, why_not
from learnkit.deploy.conversion import QUANTIZING
from learnkit.deploy.gates import Gates
from learnkit.deploy.heads import check_tells
from learnkit.deploy.labelled import Labelled, is_dataset, labelled_images
from learnkit.deploy.measuring import BATCHES
from learnkit.deploy.report import ConversionReport
from learnkit.deploy.samples import (
    FEW,
    MAX_SAMPLES,
    MAX_TEST,
    PER_CLASS,
    Pictures,
    check_samples,
    kept_apart,
    no_pictures,
    picture_name,
    read_pictures,
    set_apart,
)
from learnkit.deploy.trials import PROBES, Task, Trials
from learnkit.errors import (
    BackendUnavailableError,
    ConversionRefusedError,
    DataError,
    OptimizeError,
)

if TYPE_CHECKING:
    from learnkit.deploy.optimized import OptimizedPredictor
    from learnkit.deploy.predictor import Predictor

AUTO = "auto"
_CHEAPER = ("int8", "bfloat16", "float32", "float16")  # in what order a fall-back is looked for


def optimize(
    predictor: Predictor,
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
    gates: Gates | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    **backend_params: Any,
) -> tuple[OptimizedPredictor, ConversionReport]:
    """(faster predictor, report); see `Predictor.optimize`."""
    gates = Gates() if gates is None else gates
    wanted = candidates(backend, precision, device, backend_params)
    if ood is not None:
        check_tells(predictor.ood)
    pictures = _Pictures(predictor, precision, samples, test, ood, progress)
    images = _learned(predictor, samples, learned)
    task = Task(
        predictor=predictor,
        samples=pictures.samples,
        test=pictures.test,
        what=pictures.what,
        strange=pictures.strange,
        learned=images,
        device=device,
        threads=threads,
        gates=gates,
        batches=tuple(sorted({1, batch_size or BATCHES[-1]})),
        params=backend_params
        if batch_size is None
        else {**backend_params, "batch_size": batch_size},
        notes=(*pictures.notes, *_optimism(images, pictures.test)),
        progress=progress,
    )
    trials = Trials(task)
    found = trials.fastest_passing(wanted)
    if found is None and fallback:
        others = [pair for pair in _others(precision, backend, device) if pair not in wanted]
        found = trials.fastest_passing(_allowed(others, pictures.samples))
    if found is None and not force:
        raise _refused(trials.report(trials.best(precision)))
    report = trials.report(found or trials.best(precision), forced=found is None)
    chosen = trials.predictor(found or trials.best(precision))
    chosen.report = report
    return chosen, report


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


def _others(precision: str, backend: str, device: str) -> list[tuple[str, str]]:
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


def _allowed(pairs: Sequence[tuple[str, str]], samples: Pictures | None) -> list[tuple[str, str]]:
    """Without int8 where there are no samples to take ranges from."""
    return [pair for pair in pairs if samples is not None or pair[1] != "int8"]


class _Pictures:
    """Samples and test images, kept apart, and what there is to say of them."""

    def __init__(
        self,
        predictor: Predictor,
        precision: str,
        samples: Any,
        test: Any,
        ood: Any,
        progress: bool,
    ):
        self.predictor, self.progress = predictor, progress
        self.notes: tuple[str, ...] = ()
        self.samples = self._samples(samples, precision)
        given = self._read(samples, "samples", MAX_TEST) if self._serves(samples, test) else None
        self.test = given or no_pictures(predictor.preprocessing)
        self.what = "images of `samples`, by which nothing is calibrated" if given else "images"
        if test is not None:
            self.test, self.what = self._read(test, "test", MAX_TEST), "images"
        if self.samples is not None:
            self._keep_apart(test)
        elif test is None and given is None:
            self._probes()
        self.strange = None if ood is None else self._read(ood, "ood", MAX_TEST).pixels

    def _samples(self, samples: Any, precision: str) -> Pictures | None:
        if precision != "int8":
            return None
        if samples is None:
            raise OptimizeError(
                f"`samples` is missing: int8 takes its ranges from images; give {FEW} to "
                f"{PER_CLASS} of each class, as they come in use (not those it is judged by)"
            )
        return check_samples(self._read(samples, "samples", MAX_SAMPLES), self.predictor.classes)

    def _serves(self, samples: Any, test: Any) -> bool:
        """Whether the samples are what to judge by: a cast takes nothing from them."""
        return self.samples is None and samples is not None and test is None

    def _keep_apart(self, test: Any) -> None:
        assert self.samples is not None
        if test is None:
            self.samples, self.test = set_apart(self.samples)
            self.what = "images, a third of the samples, set apart"
            return
        self.samples, self.test, said = kept_apart(self.samples, self.test)
        self.notes += (said,) if said else ()

    def _probes(self) -> None:
        """Judge by the probe images where there is nothing else: numbers, no verdict."""
        from learnkit.deploy.probes import default_probes

        probes = self.predictor.probes
        probes = default_probes(self.predictor.preprocessing) if probes is None else probes
        names = tuple(f"probe {i}" for i in range(len(probes)))
        self.test, self.what = Pictures(names, None, probes, names), PROBES

    def _read(self, data: Any, what: str, limit: int) -> Pictures:
        predictor = self.predictor
        return read_pictures(
            data,
            predictor.preprocessing,
            predictor.classes,
            what=what,
            limit=limit,
            progress=self.progress,
        )


def _learned(predictor: Predictor, samples: Any, learned: Any) -> Labelled | None:
    """The images the model has learned from, where they are at hand."""
    if predictor.ood is None:
        return None
    if isinstance(learned, Labelled):
        return learned
    data = samples if learned is None else learned
    is_folder = isinstance(data, str | os.PathLike) and os.path.isdir(data)
    if learned is None and not is_dataset(data) and not is_folder:
        return data if isinstance(data, Labelled) else None
    try:
        return labelled_images(data)
    except DataError:
        if learned is not None:
            raise
        return None


def _optimism(learned: Labelled | None, test: Pictures) -> tuple[str, ...]:
    """What to say where images decide threshold and temperature that judge them, too."""
    if learned is None or learned.validation is None:
        return ()
    names = {picture_name(item, "") for item in learned.validation.items}
    if not (n := len(names & set(test.names) - {""})):
        return ()
    return (
        f"threshold and temperature are fitted on {n} of the test images: false alarms and "
        "calibration error are optimistic, before and after alike",
    )


def _refused(report: ConversionReport) -> ConversionRefusedError:
    error = ConversionRefusedError(
        f"{report.variant} is refused: {report.failures}. The error's `report` has the details; "
        "fallback=True takes the best variant that passes, force=True takes this one"
    )
    error.report = report
    return error

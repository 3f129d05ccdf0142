"""The images a conversion rests on, of whatever was given: samples, test, what was learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from learnkit.continual.classifier import check_detects_ood
from learnkit.data.labelled_images import Labelled, has_labels, labelled_images
from learnkit.errors import DataError, OptimizeError
from learnkit.inference.model import Model
from learnkit.optimize import gates as gate
from learnkit.optimize.gates import Gates
from learnkit.optimize.samples import (
    FEW,
    MAX_SAMPLES,
    MAX_TEST,
    PER_CLASS,
    Pictures,
    check_samples,
    kept_apart,
    read_pictures,
    set_apart,
)
from learnkit.optimize.timing import BATCHES


class Gathered:
    """Samples and test images, kept apart, and what there is to say of them."""

    def __init__(
        self,
        model: Model,
        precision: str,
        samples: Any,
        test: Any,
        ood: Any,
        progress: bool,
    ):
        self.model, self.progress = model, progress
        self.notes: tuple[str, ...] = ()
        self.samples = self._samples(samples, precision)
        self.what = "images"
        if test is not None:
            self.test = self._read(test, "test", MAX_TEST)
        if self.samples is not None:
            self._keep_apart(test)
        elif test is None and samples is not None:
            # a cast takes nothing from its samples, so that they serve to compare by
            self.test = self._read(samples, "samples", MAX_TEST)
            self.what = "images of `samples`, by which nothing is calibrated"
        elif test is None:
            self._probes()
        self.unknown = None if ood is None else self._unknown(ood)

    def _samples(self, samples: Any, precision: str) -> Pictures | None:
        if precision != "int8":
            return None
        if samples is None:
            raise OptimizeError(
                f"`samples` is missing: int8 takes its ranges from images; give {FEW} to "
                f"{PER_CLASS} of each class, as they come in use (not those it is judged by)"
            )
        return check_samples(self._read(samples, "samples", MAX_SAMPLES), self.model.classes)

    def _keep_apart(self, test: Any) -> None:
        assert self.samples is not None
        if test is None:
            self.samples, self.test = set_apart(self.samples)
            self.what = "images, a third of the samples, set apart"
            return
        self.samples, self.test, said = kept_apart(self.samples, self.test)
        self.notes += (said,) if said else ()

    def _probes(self) -> None:
        """Compare by the probe images where there is nothing else: numbers, no verdict."""
        from learnkit.backends.torch_session import default_probes

        probes = self.model.probes
        probes = default_probes(self.model.preprocessing) if probes is None else probes
        names = tuple(f"probe {i}" for i in range(len(probes)))
        self.test, self.what = Pictures(names, None, probes, names), PROBES

    def _read(self, data: Any, what: str, limit: int) -> Pictures:
        model = self.model
        return read_pictures(
            data,
            model.preprocessing,
            model.classes,
            what=what,
            limit=limit,
            multi_label=model.multi_label,
            progress=self.progress,
        )

    def _unknown(self, ood: Any) -> Tensor:
        """Images of no known class: what is among the known ones says nothing of those."""
        found, known = self._read(ood, "ood", MAX_TEST), {*self.test.digests}
        if self.samples is not None:
            known.update(self.samples.digests)
        left = found.without(known)
        if not left:
            raise OptimizeError(
                f"the {len(found)} images of `ood` are all in `samples` or `test`, too; give "
                "images of no class the model knows"
            )
        if n := len(found) - len(left):
            self.notes += (f"{n} images of `ood` are in `samples` or `test`, too, and left out",)
        return left.pixels


def learned_images(model: Model, samples: Any, learned: Any) -> Labelled | None:
    """The images the model has learned from, where they are at hand."""
    if model.ood is None:
        return None
    data = samples if learned is None else learned
    if learned is None and not has_labels(data):
        return None
    try:
        return labelled_images(data)
    except DataError:
        # nobody said of `samples` that they were learned: they need not be such images
        if learned is not None:
            raise
        return None


class Given(NamedTuple):
    """The images that `Predictor.optimize` is given, as they are given."""

    samples: Any
    test: Any
    ood: Any
    learned: Any


def job_of(
    model: Model,
    precision: str,
    given: Given,
    *,
    gates: Gates | None,
    batch_size: int | None,
    params: Mapping[str, Any],
    progress: bool,
    **place: Any,
) -> Job:
    """What is to be done, all images read; `place` says where: what else a `Job` takes."""
    gates = Gates() if gates is None else gates
    _check_numbers(gates, batch_size, params)
    if given.ood is not None:
        check_detects_ood(model.ood)
    pictures = Gathered(model, precision, given.samples, given.test, given.ood, progress)
    images = learned_images(model, given.samples, given.learned)
    return Job(
        source=model,
        samples=pictures.samples,
        test=pictures.test,
        what=pictures.what,
        unknown=pictures.unknown,
        learned=images,
        gates=gates,
        batches=tuple(sorted({1, batch_size or BATCHES[-1]})),
        params=params if batch_size is None else {**params, "batch_size": batch_size},
        notes=pictures.notes,
        progress=progress,
        **place,
    )


def _check_numbers(gates: Any, batch_size: Any, params: Mapping[str, Any]) -> None:
    """Raise OptimizeError for what would only be noticed after minutes, or never."""
    if not isinstance(gates, Gates):
        raise OptimizeError(f"`gates` is {gates!r:.100}; give learnkit's Gates, or leave it out")
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise OptimizeError(f"`batch_size` is {batch_size!r}; a batch has at least one image")
    for name, most in (("target", 1.0), ("max_error", math.inf)):
        value = params.get(name, 1.0)
        # not by isinstance, for which True is an int; so written that NaN is refused
        if type(value) not in (int, float) or not 0 < value <= most:
            rule = "a share above 0, at most 1" if most == 1 else "a number above 0"
            raise OptimizeError(f"`{name}` is {value!r:.100}; it must be {rule}")


PROBES = "probe images: no test images were given"


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be converted, by which images, and what is asked of it; see `optimize`."""

    source: Model
    samples: Pictures | None
    test: Pictures
    what: str
    unknown: Tensor | None
    learned: Labelled | None
    device: str
    threads: int | None
    gates: gate.Gates
    batches: tuple[int, ...]
    params: Mapping[str, Any]
    notes: tuple[str, ...]
    progress: bool

"""The scoring file: a head's `Scoring` as tensors, for processes without torch.

The class statistics stay out of it: they are for learning. It is read back without trusting it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit._version import __version__
from learnkit.bundle.variant import Variant, path_of
from learnkit.errors import BundleCorruptError, BundleVersionError, ExportError
from learnkit.storage.formats import from_plain, parse_arrays, parse_json, read_field, to_json
from learnkit.storage.read_folder import Folder
from learnkit.uncertainty.conformal import Calibration
from learnkit.uncertainty.ood import ClassDistances, Neighbors
from learnkit.uncertainty.scoring import GRID, OF_CLASSES, PARTS, Scoring
from learnkit.uncertainty.threshold import GUARANTEES, SOURCES, Threshold

if TYPE_CHECKING:
    from torch import Tensor

    from learnkit.continual.classifier import ContinualClassifier

FORMAT = 2
_TYPES = {"facts": np.uint8, "known": np.bool_, "reference": np.int16, "misfit_labels": np.int64}
_ALWAYS = {
    *("facts", "weight", "bias", "known", "misfits", "misfit_weights"),
    *("threshold_scores", "threshold_weights"),
}
_PER_CLASS = {"shifts", "misfit_labels"}  # from format 2 on


def scoring_tensors(head: ContinualClassifier) -> dict[str, Tensor]:
    """Everything `head` scores features by, at this moment, as tensors for a safetensors file.

    `facts` is JSON in UTF-8: which score there is, and the threshold. `weight (C,D)` and `bias
    (C,)` give calibrated logits of embedded features, where a class is `known (C,)`;
    `misfits (R,)` with their weights are the nonconformity scores of prediction sets;
    `threshold_scores (n,)` with theirs give p-values. The parts of the score add what
    they need: the fields of `ClassDistances`, and `reference (K,D)` int16, the remembered features.

    Args:
        head: of the continual state; or an `OodDetector` beside a trained head.

    Raises:
        ExportError: it knows no class, or has a score that cannot be written.
    """
    import torch

    if head.knowledge.derived is None:
        raise ExportError("the model knows no class yet; extend it before it is exported")
    scoring = head.scoring
    known, threshold = np.isfinite(scoring.bias), scoring.threshold
    arrays = {
        "weight": scoring.weight,
        # forgotten classes have -inf, and files hold finite numbers: `known` tells them
        "bias": np.where(known, scoring.bias, 0.0),
        "known": known,
        "misfits": scoring.nonconformity[0],
        "misfit_weights": scoring.nonconformity[1],
        "threshold_scores": threshold.calibration_scores,
        "threshold_weights": threshold.calibration_weights,
        **_score_arrays(scoring),
        **_per_class_arrays(scoring),
    }
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    facts = torch.frombuffer(bytearray(to_json(_facts(scoring))), dtype=torch.uint8)
    return {"facts": facts, **tensors}


def _facts(scoring: Scoring) -> dict[str, Any]:
    parts, threshold = [part for part, _, _ in scoring.standards], scoring.threshold
    if unknown := sorted(set(parts) - PARTS):
        raise ExportError(
            f"the score has the parts {unknown}, which no process without torch could compute; "
            "choose another `score`"
        )
    return {
        "format": FORMAT if _per_class_arrays(scoring) else 1,  # what an older learnkit reads
        "labels": scoring.labels,
        "root": scoring.root,
        "temperature": scoring.temperature,
        "standards": [list(standard) for standard in scoring.standards],
        "combined": "mean",
        "threshold": {
            "value": threshold.value,
            "source": threshold.source,
            "guarantee": threshold.guarantee,
            "statement": threshold.statement,
            "loc": threshold.loc,
            "scale": threshold.scale,
        },
    }


def _score_arrays(scoring: Scoring) -> dict[str, np.ndarray]:
    """What the parts of the score need."""
    parts = {part for part, _, _ in scoring.standards}
    distances, found = scoring.distances, {}
    if parts & {"mahalanobis", "relative"}:
        found |= {
            "center": distances.center,
            "covectors": distances.covectors,
            "offsets": distances.offsets,
        }
    if "mahalanobis" in parts:
        found |= {"base": np.float64(distances.base), "axes": distances.axes}
    if "knn" in parts:
        # they lie on that grid: exact, in a quarter of the bytes
        found["reference"] = np.rint(scoring.neighbors.features * GRID).astype(np.int16)
    return found


def _per_class_arrays(scoring: Scoring) -> dict[str, np.ndarray]:
    """What a promise class by class needs."""
    found = {} if scoring.shifts is None else {"shifts": scoring.shifts}
    for labels in scoring.nonconformity[2:]:
        found["misfit_labels"] = labels
    return found


def read_scoring(data: bytes, where: str, *, n_classes: int, n_features: int) -> Scoring:
    """The scoring in `data`, the content of the file `where`.

    Args:
        data: the file's content.
        where: its name, for messages.
        n_classes: of the model.
        n_features: of its network.

    Raises:
        BundleCorruptError: a tensor or a fact is missing, unknown, of another shape or type, or
            breaks a rule; or it is of other classes or features.
        BundleVersionError: a newer learnkit wrote it, with a score this one does not know.
    """
    arrays = parse_arrays(data, where)
    file = _File(arrays, where)
    facts = file.facts()
    standards = file.standards(facts.standards)
    parts = {part for part, _, _ in standards}
    file.check_names(parts)
    # a detector has classes of its own
    known = file.get("known", n_classes if facts.labels else None)
    if not known.any():
        raise file.corrupt("no class is `known`")
    return Scoring(
        labels=facts.labels,
        root=facts.root,
        temperature=file.above_zero("temperature", facts.temperature),
        standards=standards,
        threshold=_threshold(file, facts.threshold),
        weight=file.get("weight", len(known), n_features),
        bias=np.where(known, file.get("bias", len(known)), -np.inf),
        nonconformity=file.nonconformity(n_classes),
        distances=_geometry(file, parts, n_features),
        neighbors=(
            Neighbors(file.some("reference", None, n_features).astype(np.float64) / GRID)
            if "knn" in parts
            else None
        ),
        shifts=file.get("shifts", len(known)) if "shifts" in arrays else None,
    )


def stored_scoring(variant: Variant, folder: Folder) -> Scoring | None:
    """The scoring of `variant` among the files of its bundle; None for a trained head alone.

    Raises:
        BundleCorruptError: it is missing, no sound one, or of another kind of head.
    """
    name = path_of(variant.name, "judge.safetensors")
    if variant.continual is None and variant.ood is None:
        return None
    scoring = read_scoring(
        folder.bytes(name),
        name,
        n_classes=len(variant.classes),
        n_features=variant.n_features,
    )
    if scoring.labels != (variant.continual is not None):
        raise BundleCorruptError(f"{name} and the description disagree about the head")
    return scoring


@dataclass(frozen=True)
class ThresholdFacts:
    """A threshold in `ScoringFacts`; `loc` and `scale` count if it is parametric."""

    value: float
    source: str
    guarantee: str
    statement: str
    loc: float
    scale: float


@dataclass(frozen=True)
class ScoringFacts:
    """The JSON in a file of scores: all that is no tensor."""

    format: int
    labels: bool
    root: bool
    temperature: float
    standards: list
    combined: str
    threshold: ThresholdFacts


class _File:
    """The tensors of one file, and how it complains."""

    def __init__(self, arrays: Mapping[str, np.ndarray], where: str):
        self.arrays, self.where = arrays, where

    def corrupt(self, what: str) -> BundleCorruptError:
        return BundleCorruptError(f"{self.where}: {what}")

    def newer(self, what: str) -> BundleVersionError:
        return BundleVersionError(
            f"{self.where} has {what}, which learnkit {__version__} does not know: upgrade learnkit"
        )

    def get(self, name: str, *shape: int | None) -> np.ndarray:
        """A tensor, if it is of its type and of this shape; None stands for any length."""
        if name not in self.arrays:
            raise self.corrupt(f"`{name}` is missing")
        array, dtype = self.arrays[name], _TYPES.get(name, np.float64)
        fits = len(shape) == array.ndim and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            wanted = tuple("any" if want is None else want for want in shape)
            raise self.corrupt(
                f"`{name}` is {array.dtype} {array.shape}; it must be {np.dtype(dtype)} {wanted}"
            )
        return array

    def some(self, name: str, *shape: int | None) -> np.ndarray:
        """The same, with one row at least."""
        array = self.get(name, *shape)
        if not len(array):
            raise self.corrupt(f"`{name}` is empty; there is nothing to be far from")
        return array

    def facts(self) -> ScoringFacts:
        facts = parse_json(self.get("facts", None).tobytes(), f"`facts` of {self.where}")
        version = read_field(facts, "format", int, self.where)
        if version > FORMAT:
            raise self.newer(f"format {version}")
        if version < 1:
            raise self.corrupt(f"`format` is {version}; 1 was first")
        if facts.get("combined") != "mean":
            raise self.newer(f"a score combined by {facts.get('combined')!r}")
        return from_plain(ScoringFacts, facts, self.where)

    def above_zero(self, name: str, value: float) -> float:
        if not value > 0:  # so written that NaN, for null, fails
            raise self.corrupt(f"`{name}` is {value}; it is above 0")
        return value

    def standards(self, values: list[Any]) -> tuple[tuple[str, float, float], ...]:
        """(part, mean, spread) of every part of the score."""
        if not values:
            raise self.corrupt(f"`standards` is {values!r:.100}; a score has a part at least")
        for value in values:
            if not isinstance(value, list) or [type(v) for v in value] != [str, float, float]:
                raise self.corrupt(f"`standards` holds {value!r:.100}, not [part, mean, spread]")
            if value[0] not in PARTS:
                raise self.newer(f"the score {value[0]!r:.100}")
            if value[2] <= 0:
                raise self.corrupt(f"the spread of {value[0]!r} is {value[2]}; it is above 0")
        found = tuple((part, loc, spread) for part, loc, spread in values)
        if len({part for part, _, _ in found}) < len(found):
            raise self.corrupt("`standards` has a part twice")
        return found

    def check_names(self, parts: set[str]) -> None:
        """Raise unless the file holds the tensors these parts need, and no others."""
        wanted = set(_ALWAYS)
        if parts & OF_CLASSES:
            wanted |= {"center", "covectors", "offsets"}
        wanted |= {"base", "axes"} if "mahalanobis" in parts else set()
        wanted |= {"reference"} if "knn" in parts else set()
        if self.arrays.keys() - _PER_CLASS != wanted:
            odd = sorted((self.arrays.keys() - _PER_CLASS) ^ wanted)
            raise self.corrupt(f"tensors missing or unexpected: {odd[:5]}")

    def weighted(self, name: str, weights: str) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and their weights, which are above 0."""
        values = self.get(name, None)
        found = self.get(weights, len(values))
        if (found <= 0).any() or not math.isfinite(found.sum()):
            raise self.corrupt(f"`{weights}` are not all above 0")
        return values, found

    def nonconformity(self, n_classes: int) -> Calibration:
        """Scores and weights of prediction sets, with labels if each class has its own."""
        scores, weights = self.weighted("misfits", "misfit_weights")
        if "misfit_labels" not in self.arrays:
            return scores, weights
        labels = self.get("misfit_labels", len(scores))
        if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
            raise self.corrupt(f"`misfit_labels` are not all of the {n_classes} classes")
        return scores, weights, labels


def _threshold(file: _File, facts: ThresholdFacts) -> Threshold:
    scores, weights = file.weighted("threshold_scores", "threshold_weights")
    for name, choices in ("source", SOURCES), ("guarantee", GUARANTEES):
        if (found := getattr(facts, name)) not in choices:
            raise file.corrupt(f"`{name}` of the threshold is {found!r:.100}")
    # p-values are found by bisection, which is silently wrong in any other order
    if (np.diff(scores) < 0).any():
        raise file.corrupt("`threshold_scores` are not in ascending order")
    loc, scale = 0.0, 1.0
    if facts.source == "parametric":
        loc, scale = facts.loc, file.above_zero("scale", facts.scale)
    if not (math.isfinite(facts.value) and math.isfinite(loc)):
        raise file.corrupt(f"the threshold is {facts.value}, from {loc}; it is finite")
    return Threshold(
        value=facts.value,
        source=facts.source,
        n=len(scores),
        guarantee=facts.guarantee,
        statement=facts.statement,
        loc=loc,
        scale=scale,
        calibration_scores=scores,
        calibration_weights=weights,
    )


def _geometry(file: _File, parts: set[str], n_features: int) -> ClassDistances | None:
    if not parts & OF_CLASSES:
        return None
    offsets = file.some("offsets", None)
    base, axes = 0.0, None
    if "mahalanobis" in parts:
        base, axes = float(file.get("base")), file.get("axes", n_features, None)
        if base < 0:
            raise file.corrupt(f"`base` is {base}; it is a square")
    return ClassDistances(
        center=file.get("center", n_features),
        covectors=file.get("covectors", len(offsets), n_features),
        offsets=offsets,
        base=base,
        axes=axes,
    )

"""Predictions: the record of one image, and its conclusion from features and logits.

Concluded with numpy alone, and once, for every predictor; numbers are torch's or numpy's.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.data.labels import ids_of_classes
from learnkit.errors import LearnkitError, PredictionError, number_of
from learnkit.evaluation.inputs import LabelThreshold, labels_above
from learnkit.inference.tta import view
from learnkit.report.document import Bar, BarRow, Bars, Document, Paragraph, Span, share_text
from learnkit.report.notebook import Shown
from learnkit.storage.formats import finite_or_none
from learnkit.uncertainty.conformal import prediction_sets, set_quantiles
from learnkit.uncertainty.ood import sigmoid, softmax
from learnkit.uncertainty.scoring import Scoring

if TYPE_CHECKING:
    from torch import Tensor

    from learnkit.inference.model import Model

    Values = Tensor | np.ndarray

Array = np.ndarray

UNKNOWN = "UNKNOWN"
_SHOWN = 5
_KNOWN, _NO_LABEL = "of a known kind", "no label"


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(Shown):
    """The label of one image and the probabilities behind it; unpacks as (label, index, probs).

    A model that detects images out of distribution fills in the fields from `ood_score`
    on; they are None otherwise.

    Attributes:
        label: name of the likeliest class; of a multi-label model the names above the threshold.
        index: its number in `classes`; of a multi-label model a tuple of numbers.
        probs: probabilities float32 (C,) in the order of `classes`; they sum to 1, unless the model
            is multi-label. A tensor, or an array where there is no torch (`load_runtime`).
        classes: the C class names.
        ood_score: out-of-distribution score; higher is more unusual.
        ood_threshold: the image is flagged if its score is above this.
        p_value: share of known images at least as unusual as this one, in (0, 1]; None too where
            there were no scores to count.
        nonconformity: nonconformity scores, one minus the probability of the true class, of images
            the model has not learned, and their weights, both (M,), for prediction sets; with
            sets class by class (`per_class=True`) their classes too.
        class_ids: the ids of the classes, in their order, where they are not simply their numbers.

    >>> import torch
    >>> label, index, probs = prediction_of(torch.tensor([.1, .7, .2]), ("ant", "bee", "wasp"))
    >>> label, index
    ('bee', 1)
    """

    label: str | tuple[str, ...]
    index: int | tuple[int, ...]
    probs: Values
    classes: tuple[str, ...]
    ood_score: float | None = field(default=None, kw_only=True)
    ood_threshold: float | None = field(default=None, kw_only=True)
    p_value: float | None = field(default=None, kw_only=True)
    nonconformity: tuple[Values, ...] | None = field(default=None, kw_only=True)
    class_ids: tuple[int, ...] | None = field(default=None, kw_only=True)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.label, self.index, self.probs))

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int | slice) -> Any:
        return (self.label, self.index, self.probs)[i]

    @property
    def misfits(self) -> tuple[Values, ...] | None:
        """The former name of `nonconformity`."""
        warnings.warn("`misfits` is called `nonconformity` now", DeprecationWarning, stacklevel=2)
        return self.nonconformity

    @property
    def verdict(self) -> str:
        """What to act on: the label, or "UNKNOWN" for an image that is out of distribution.

        Several labels are joined by commas; none are "no label".
        """
        if self.is_ood:
            return UNKNOWN
        return self.label if isinstance(self.label, str) else ", ".join(self.label) or _NO_LABEL

    @property
    def confidence(self) -> float:
        """Probability of the likeliest class, in [0, 1]."""
        return float(self.probs.max())

    @property
    def class_id(self) -> int | tuple[int, ...]:
        """The id of the label, of a multi-label model a tuple: `index` where there are no others.

        It stays a class's own whatever classes come and go, and is the dataset's if that has ids.
        """
        ids = self.class_ids or range(len(self.classes))
        if isinstance(self.index, tuple):
            return tuple(ids[place] for place in self.index)
        return ids[self.index]

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """(class name, probability) of all classes, likeliest first; equals in class order."""
        probs = self.probs.tolist()
        return [(self.classes[i], probs[i]) for i in self._order()]

    def _order(self) -> list[int]:
        """Class numbers, likeliest first; equals in class order."""
        probs = self.probs.tolist()
        return sorted(range(len(probs)), key=probs.__getitem__, reverse=True)

    @property
    def is_ood(self) -> bool | None:
        """Whether the image is flagged as out of distribution; None if the model detects none."""
        if self.ood_score is None:
            return None
        return not self.ood_score <= self.ood_threshold  # so written that NaN is flagged

    def prediction_set(self, alpha: float = 0.1) -> tuple[str, ...]:
        """The classes that cannot be ruled out, likeliest first; the likeliest is always there.

        For a share of at least 1 - `alpha` of images like those the model was calibrated on, the
        true class is among them. Of too few such images for `alpha`, or none, all classes are left.

        Args:
            alpha: share of images for which the true class may be missing, in (0, 1).

        Raises:
            PredictionError: the model has nothing to calibrate sets by, or is multi-label.
            UncertaintyError: `alpha` outside (0, 1).
        """
        if self.nonconformity is None:
            if isinstance(self.index, tuple):
                raise PredictionError(
                    "this model is multi-label, and prediction sets are of models that give an "
                    "image one class; `probs` has how likely each label is by itself"
                )
            raise PredictionError(
                "this model has nothing to calibrate prediction sets by; it needs the continual "
                "state or fit_ood, and images it remembers or validation images"
            )
        quantile = set_quantiles(self.nonconformity, alpha, len(self.classes))
        (found,) = prediction_sets(self.probs[None], quantile).tolist()
        kept = dict(zip(self.classes, found, strict=True))
        return tuple(name for name, prob in self.ranking if kept[name] and prob > 0)

    def to_dict(self, *, alpha: float | None = None) -> dict[str, Any]:
        """label, index, confidence and probs by class name, all as JSON types.

        Models that detect images out of distribution add is_ood, ood_score, ood_threshold and
        p_value (an infinite score or threshold is None); with `alpha` there is the prediction_set,
        and class_id where classes have ids of their own.
        """
        plain = lambda x: list(x) if isinstance(x, tuple) else x
        found = {
            "label": plain(self.label),
            "index": plain(self.index),
            "confidence": self.confidence,
            "probs": dict(zip(self.classes, self.probs.tolist(), strict=True)),
        }
        if self.class_ids is not None:
            found["class_id"] = plain(self.class_id)
        if self.ood_score is not None:
            found["is_ood"] = self.is_ood
            for name in ("ood_score", "ood_threshold", "p_value"):
                found[name] = finite_or_none(getattr(self, name))
        if alpha is not None:
            found["prediction_set"] = list(self.prediction_set(alpha))
        return found

    def to_halcon(self) -> dict[str, Any]:
        """HALCON's classification result: ids, names and confidences, likeliest first.

        Models that detect images out of distribution add ood_result (1 or 0), ood_score,
        ood_threshold as HALCON has them, and ood_p_value.
        """
        ranking, ids = self.ranking, self.class_ids or range(len(self.classes))
        result: dict[str, Any] = {
            "classification_class_ids": tuple(ids[place] for place in self._order()),
            "classification_class_names": tuple(name for name, _ in ranking),
            "classification_confidences": tuple(prob for _, prob in ranking),
        }
        if self.ood_score is not None:
            result |= {
                "ood_result": int(bool(self.is_ood)),
                "ood_score": self.ood_score,
                "ood_threshold": self.ood_threshold,
            }
        if self.p_value is not None:
            result["ood_p_value"] = self.p_value
        return result

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}: {prob:.4f}" for name, prob in self.ranking[:_SHOWN])
        more = ", ..." if len(self.classes) > _SHOWN else ""
        flag = ", out of distribution" if self.is_ood else ""
        return f"Prediction({self.label!r}, {{{shown}{more}}}{flag})"

    def document(self) -> Document:
        """The label, whether the image is out-of-distribution, and the likeliest classes."""
        named = (self.label,) if isinstance(self.label, str) else self.label
        rows = [
            BarRow(name, [Bar(prob, share_text(prob))], is_chosen=name in named)
            for name, prob in self.ranking[:_SHOWN]
        ]
        blocks = [
            Paragraph(Span(", ".join(named) or _NO_LABEL, "strong")),
            *self._ood_blocks(),
            Bars(rows, top=1.0),
        ]
        return Document(blocks)

    def _ood_blocks(self) -> list[Paragraph]:
        if self.ood_score is None:
            return []
        verdict = Span("⚠ unlike the images it knows", "strong") if self.is_ood else _KNOWN
        p_value = "" if self.p_value is None else f", p {self.p_value:.2g}"
        numbers = f" (score {self.ood_score:.3g}, threshold {self.ood_threshold:.3g}{p_value})"
        return [Paragraph(Span((verdict, numbers), "faint"))]


def prediction_of(
    probs: Values,
    classes: tuple[str, ...],
    *,
    multi_label: bool = False,
    threshold: LabelThreshold = 0.5,
    **ood: Any,
) -> Prediction:
    """The prediction for one row of probabilities (C,); `threshold` counts if `multi_label`.

    Args:
        probs: probabilities float32 (C,).
        classes: C names.
        multi_label: several labels, or none, are possible.
        threshold: a label counts above it; one per class, or one for all.
        **ood: fields of `Prediction` from `ood_score` on.
    """
    if multi_label:
        above = labels_above(probs, threshold).tolist()
        found = tuple(i for i, counts in enumerate(above) if counts)
        return Prediction(tuple(classes[i] for i in found), found, probs, classes, **ood)
    index = int(probs.argmax())
    return Prediction(classes[index], index, probs, classes, **ood)


def not_finite() -> PredictionError:
    """The error that stands in for a prediction whose numbers are not finite."""
    return PredictionError(
        "the network's output for this image is not finite, so any label would be a guess; check "
        "the weights for NaN, and the image for values far outside those of training"
    )


def raised(result: Result) -> Prediction:
    """The prediction; an error that stands in its place is raised."""
    if isinstance(result, Prediction):
        return result
    raise result


Result = Prediction | LearnkitError


def predictions(
    model: Model,
    images: np.ndarray,
    wrap: Callable[[Array], Any] = np.asarray,
    n_views: int = 1,
) -> list[Result]:
    """For each image its prediction, or a PredictionError where numbers are not finite.

    All of it is concluded from what the model knows at one moment, whoever changes it meanwhile.

    Args:
        model: says it.
        images: uint8 (N, H, W, channels).
        wrap: makes what probabilities are given as of the array (N, C).
        n_views: of each image, over which probabilities are averaged; see `tta`. OOD scores are
            those of the images as they are.

    Raises:
        PredictionError: the network gives no (N, C), or no features where they are needed.
    """
    return predictions_and_features(model, images, wrap, n_views)[0]


def predictions_and_features(
    model: Model,
    images: np.ndarray,
    wrap: Callable[[Array], Any] = np.asarray,
    n_views: int = 1,
) -> tuple[list[Result], Array | None]:
    """What `predictions` gives, and the pooled features (N, D) where anything rests on them."""
    scoring, classes = knowledge_of(model)
    if not len(images):
        return [], None
    features, logits = model.network.run(images)
    if scoring is not None and features is None:
        raise PredictionError(model.network.no_features())
    said = {
        "multi_label": model.multi_label,
        "threshold": model.threshold,
        "wrap": wrap,
        "class_ids": ids_of_classes(model.class_ids, len(classes)) if model.class_ids else None,
    }
    results = conclude(scoring, features, logits, classes, **said)
    if n_views > 1:
        passes = (model.network.run(view(images, number)) for number in range(1, n_views))
        others = [conclude(scoring, *one, classes, **said) for one in passes]
        labels = {"multi_label": model.multi_label, "threshold": model.threshold}
        results = [_average(one, wrap, labels) for one in zip(results, *others, strict=True)]
    return results, features


def knowledge_of(model: Model) -> tuple[Scoring | None, tuple[str, ...]]:
    """(scoring or None, class names), both of one moment, whoever changes the model meanwhile."""
    if model.ood is None:
        return model.stored, model.names
    ood = copy.copy(model.ood)  # shares what it knows, which never changes
    return ood.scoring, model.names if model.head is None else ood.classes


def conclude(
    scoring: Scoring | None,
    features: Array | None,
    logits: Array | None,
    classes: tuple[str, ...],
    *,
    multi_label: bool = False,
    threshold: float = 0.5,
    wrap: Callable[[Array], Any] = np.asarray,
    class_ids: tuple[int, ...] | None = None,
) -> list[Result]:
    """For each image its prediction, or a PredictionError where numbers are not finite.

    Args:
        scoring: of the head or a detector; None for a trained head alone.
        features: pooled features (N, D), where anything is scored.
        logits: the network's own (N, C), where the labels come from them.
        classes: the C names.
        multi_label: an image may have several labels, or none.
        threshold: a label counts above it, if `multi_label`.
        wrap: makes what probabilities are given as of the array (N, C).
        class_ids: of the classes, where these are not their places.

    Raises:
        PredictionError: the logits are no (N, C).
    """
    by_scoring = scoring is not None and scoring.labels
    if not by_scoring:
        check_outputs(logits, len(classes))
    sound = np.isfinite(features if by_scoring else logits).all(1)
    if scoring is not None:
        sound &= np.isfinite(features).all(1)
        features = _blanked(features, ~sound)
    values = scoring.logits(features) if by_scoring else _blanked(logits, ~sound)
    values = values.astype(np.float64)
    probs = wrap((sigmoid(values) if multi_label else softmax(values)).astype(np.float32))
    told = [{}] * len(probs) if scoring is None else scoring.ood_fields(features)
    said = {"multi_label": multi_label, "threshold": threshold, "class_ids": class_ids}
    return [
        prediction_of(row, classes, **said, **ood) if is_sound else not_finite()
        for row, ood, is_sound in zip(probs, told, sound.tolist(), strict=True)
    ]


def _blanked(rows: Array, out: Array) -> Array:
    """`rows`, zeros in those that are `out`."""
    # not left out: sums over another number of rows have other bits
    return np.where(out[:, None], np.zeros_like(rows), rows) if out.any() else rows


def logits_of(model: Model, images: np.ndarray) -> Tensor:
    """The outputs float32 (N, C) for `images` uint8 (N, H, W, channels), as a tensor.

    Raises:
        PredictionError: the network gives no (N, C).
    """
    import torch

    if model.head is not None:
        with torch.no_grad():
            return model.head(torch.from_numpy(model.network.features(images)))
    if not len(images):
        return torch.zeros(0, len(model.names))
    logits = model.network.run(images)[1]
    check_outputs(logits, len(model.names))
    return torch.from_numpy(logits)


def check_outputs(logits: Array | None, n_classes: int) -> None:
    """Raise PredictionError unless `logits` are (N, n_classes)."""
    if logits is None:
        raise PredictionError("the network has no head: it gives features, not logits")
    n = len(logits) if logits.ndim else 0
    if logits.shape != (n, n_classes):
        raise PredictionError(
            f"the network gives outputs of shape {logits.shape} for {number_of(n, 'image')} and "
            f"{n_classes} "
            f"classes; it must give ({n}, {n_classes})"
        )


def _average(views: Sequence[Result], wrap: Callable[[Array], Any], labels: Any) -> Result:
    """The first view with the probabilities averaged over all; an error in one is that of all."""
    failed = next((one for one in views if isinstance(one, LearnkitError)), None)
    if failed is not None:
        return failed
    first: Prediction = views[0]
    probs = np.mean([np.asarray(one.probs, np.float64) for one in views], 0)
    kept = {
        name: getattr(first, name)
        for name in ("ood_score", "ood_threshold", "p_value", "nonconformity", "class_ids")
    }
    return prediction_of(wrap(probs.astype(np.float32)), first.classes, **labels, **kept)

"""Suggestions of images to label next: those whose labels would teach the model most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from learnkit.continual.fingerprints import Learned
from learnkit.data.labelled_images import files_or_images
from learnkit.data.read_images import chunks, image_name, load_ahead, reasons_once
from learnkit.errors import (
    DataError,
    ImageReadError,
    LearnkitError,
    UnreadableImagesError,
    number_of,
)
from learnkit.inference.batch import BATCH, padded_run
from learnkit.inference.model import Model
from learnkit.inference.prediction import (
    Prediction,
    Result,
    conclude,
    knowledge_of,
    not_finite,
)
from learnkit.report.document import Document, Gallery, Items, Lines, Paragraph, Picture, Span
from learnkit.report.notebook import Shown
from learnkit.report.progress import counted, watched
from learnkit.storage.formats import finite_or_none
from learnkit.uncertainty.coverage import cover
from learnkit.uncertainty.scoring import unit_rows

if TYPE_CHECKING:
    import pandas as pd

    from learnkit.uncertainty.scoring import Scoring

_PICTURES = 24  # in a notebook
_THUMB = 96  # pixels of a picture's longer side
_DOUBT = 0.5  # from here on the two likeliest labels are the reason
_COLUMNS = ("place", "item", "reason", "label", "confidence", "uncertainty", "novelty", "covers")


@dataclass(frozen=True)
class Suggestion:
    """An image whose label is worth having, and why.

    Attributes:
        item: the image, as it was given.
        place: its number among the images given.
        reason: a sentence for whoever labels it.
        label: what the model takes it for; a tuple of labels of a multi-label model; "" of one
            that knows no class yet.
        confidence: the probability of the likeliest label.
        uncertainty: one minus the lead of the likeliest label over the next, in 0..1; of a
            multi-label model that of the least certain label.
        novelty: one minus the p-value of its OOD score, in 0..1; None if the model detects none.
        covers: how many of the images given are likest to this one, itself included; 0 of one that
            shows the same as one before it.
        picture: a small picture, pixels uint8 (H, W[, 3]); None after the first 24.
    """

    item: Any
    place: int
    reason: str
    label: str | tuple[str, ...]
    confidence: float
    uncertainty: float
    novelty: float | None
    covers: int
    picture: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Suggestions(Shown, Sequence[Suggestion]):
    """Images to label next, the most valuable first: a sequence of `Suggestion`.

    Attributes:
        suggestions: one per image.
        n_images: how many they were chosen from.
        failures: {image: why it could not be read}; these were left out.
    """

    suggestions: tuple[Suggestion, ...]
    n_images: int
    failures: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.suggestions)

    def __iter__(self) -> Iterator[Suggestion]:
        return iter(self.suggestions)

    def __getitem__(self, i: Any) -> Any:
        return self.suggestions[i]

    @property
    def items(self) -> list[Any]:
        """The images, as they were given: what `extend` takes beside their labels."""
        return [one.item for one in self.suggestions]

    def table(self) -> pd.DataFrame:
        """A row per image: place, item, reason, label, confidence, uncertainty, novelty, covers."""
        import pandas as pd

        rows = [[getattr(one, name) for name in _COLUMNS] for one in self.suggestions]
        return pd.DataFrame(rows, columns=list(_COLUMNS))

    def plot(self, axes: Any = None) -> np.ndarray:
        """Array of matplotlib axes with the images and the reasons for them.

        Args:
            axes: one per image; None makes a figure.
        """
        from learnkit.data.display import show_images

        reasons = [one.reason.replace("; ", "\n") for one in self.suggestions]
        return show_images(self.items, reasons, axes=axes, side=2.4)

    def __str__(self) -> str:
        failed = f"; {len(self.failures)} could not be read" if self.failures else ""
        return f"{len(self)} of {number_of(self.n_images, 'image')} to label next{failed}"

    def document(self) -> Document:
        """The sentence, pictures of the first images with the reasons, and what was unreadable."""
        pictures = [
            Picture(image_name(one.item, one.place), None, Lines((one.reason,)), one.picture)
            for one in self.suggestions[:_PICTURES]
        ]
        more = len(self) - len(pictures)
        rest = [Paragraph(Span(f"and {more} more: see table()", "faint"))] if more else []
        unread = [Items([*self.failures.values()])] if self.failures else []
        return Document([Paragraph(Span(str(self), "strong")), Gallery(pictures), *rest, *unread])


def suggest(
    record: Model,
    images: Any,
    n: int,
    *,
    n_workers: int = 2,
    progress: bool = True,
    read: Callable[[list[Any]], tuple[np.ndarray, np.ndarray | None]] | None = None,
) -> Suggestions:
    """Up to `n` of `images` to label next, see `BasePredictor.suggest`.

    `read` gives features (N, D) and logits of all images otherwise than the recipe of `record`.
    """
    items = files_or_images(images)
    n = _checked(n, len(items))
    if read is None:
        places, features, logits, failures = _read(record, items, n_workers, progress)
    else:
        places, (features, logits), failures = list(range(len(items))), read(items), {}
    scoring, results = _answers(record, features, logits)
    for place, result in zip(places, results, strict=True):
        if isinstance(result, LearnkitError):
            failures[image_name(items[place], place)] = str(result)
    sound = [i for i, result in enumerate(results) if not isinstance(result, LearnkitError)]
    if not sound:
        why = reasons_once(failures)
        error = UnreadableImagesError(f"no image can be read ({len(items)} given): {why}")
        error.failures = failures
        raise error
    readable = [results[i] for i in sound]
    found = choose(scoring, features[sound], readable, min(n, len(sound)), progress=progress)
    known = _learned(record, features[[sound[i] for i, _ in found]])
    suggestions = [
        _suggestion(
            record,
            items,
            places[sound[i]],
            readable[i],
            _reason(readable[i], covers, known[number]),
            covers,
            shown=number < _PICTURES,
        )
        for number, (i, covers) in enumerate(found)
    ]
    return Suggestions(tuple(suggestions), len(items), failures)


def _learned(record: Model, features: np.ndarray) -> Sequence[bool | None]:
    """Whether each image (N, D) was learned; None where nobody knows."""
    if record.ood is None:
        return [None] * len(features)
    learned = Learned.of(record.ood.knowledge)
    return learned.know(learned.on_grid(features)).tolist()


def _answers(
    record: Model, features: np.ndarray, logits: np.ndarray | None
) -> tuple[Scoring | None, Sequence[Result | None]]:
    """(scoring, what the model says of each image: None if it knows no class yet)."""
    if not record.knows_classes:
        return None, [None if sound else not_finite() for sound in np.isfinite(features).all(1)]
    scoring, classes = knowledge_of(record)
    options = {"multi_label": record.multi_label, "threshold": record.threshold}
    return scoring, conclude(scoring, features, logits, classes, **options)


def choose(
    scoring: Scoring | None,
    features: np.ndarray,
    predictions: Sequence[Prediction | None],
    n: int,
    *,
    progress: bool = False,
) -> list[tuple[int, int]]:
    """(place, number of images covered) of each of the `n` images chosen, see `cover`.

    Args:
        scoring: of the model; its remembered features count as labelled. None knows none.
        features: pooled features (N, D) of the images.
        predictions: for each of them; None where no class is known: all are worth the same.
        n: at most N.
        progress: show a bar.
    """
    known = None
    if scoring is not None:
        features = unit_rows(features, root=scoring.root)
        known = None if scoring.neighbors is None else scoring.neighbors.features
    weights = [*map(_worth, predictions)]
    with counted("suggest", len(weights) + n, progress) as done:
        found = cover(features, weights, n, known=known, done=done)
    return list(zip(found.chosen.tolist(), found.n_covered.tolist(), strict=True))


def _worth(prediction: Prediction | None) -> float:
    """How much an image is in doubt, in 0..1."""
    if prediction is None:
        return 1.0
    # The root: confidences of a model with few labels are rough. Of ants and bees with 50 labels
    # it recognised .935, and .917 with weights in proportion (8 draws, by which it was chosen).
    uncertainty = _uncertainty(prediction) ** 0.5
    p_value = prediction.p_value
    return uncertainty if p_value is None else max(uncertainty, 1 - p_value)


def _uncertainty(prediction: Prediction | None) -> float:
    """One minus the lead of the likeliest label; of labels for themselves, the least certain's."""
    if prediction is None:
        return 1.0
    probs = np.asarray(prediction.probs, np.float64)
    if isinstance(prediction.label, tuple):
        return float(1 - np.abs(2 * probs - 1).min())
    # the 0 is the next one of a model with a single class
    first, second = np.sort(np.append(probs, 0.0))[:-3:-1]
    return float(1 - (first - second))


def _suggestion(
    record: Model,
    items: Sequence[Any],
    place: int,
    prediction: Prediction | None,
    reason: str,
    covers: int,
    *,
    shown: bool,
) -> Suggestion:
    p_value = None if prediction is None else finite_or_none(prediction.p_value)
    return Suggestion(
        item=items[place],
        place=place,
        reason=reason,
        label="" if prediction is None else prediction.label,
        confidence=0.0 if prediction is None else prediction.confidence,
        uncertainty=_uncertainty(prediction),
        novelty=None if p_value is None else 1 - p_value,
        covers=covers,
        picture=_picture(record, items[place]) if shown else None,
    )


def _reason(prediction: Prediction | None, covers: int, learned: bool | None) -> str:
    """Why an image is worth its label, for whoever gives it, or that it was `learned` already."""
    alike = f"{covers - 1} more like it" if covers > 1 else "stands for itself alone"
    if not covers:
        alike = "shows the same as one before it: one label is enough for both"
    if learned:
        return f"learned already: its label teaches nothing new; {alike}"
    if prediction is None:
        return f"no class is known yet; {alike}"
    if prediction.is_ood:
        return f"unlike the images the model knows; {alike}"
    (first, p), *others = prediction.ranking
    if isinstance(prediction.label, tuple):
        name, prob = min(prediction.ranking, key=lambda one: abs(one[1] - 0.5))
        return f"{name} or not ({prob:.0%}); {alike}"
    if others and _uncertainty(prediction) >= _DOUBT:
        second, q = others[0]
        return f"{first} ({p:.0%}) or {second} ({q:.0%}); {alike}"
    fresh = "" if learned is None else ", not learned yet"
    return f"{first} ({p:.0%}){fresh}; {alike}"


def _read(
    record: Model, items: Sequence[Any], n_workers: int, progress: bool
) -> tuple[list[int], np.ndarray, np.ndarray | None, dict[str, str]]:
    """(places, features (N, D), logits or None, failures) of the images that can be read."""
    load = record.preprocessing.pixels
    loaded = load_ahead(load, items, n_ahead=2 * BATCH, n_workers=n_workers)
    failures: dict[str, str] = {}
    places: list[int] = []

    def readable() -> Iterator[np.ndarray]:
        for place, (item, found) in enumerate(watched(loaded, len(items), progress, "features")):
            if isinstance(found, ImageReadError):
                failures[image_name(item, place)] = str(found)
            else:
                places.append(place)
                yield found

    network = record.network
    # as a list: `places` and `failures` are complete only once it is made
    batches = [padded_run(network, images) for images in chunks(readable(), BATCH)]
    features, logits = zip(*(batches or [padded_run(network, [])]), strict=True)
    together = None if logits[0] is None else np.concatenate(logits)
    return places, np.concatenate(features), together, failures


def _picture(record: Model, item: Any) -> np.ndarray | None:
    """A small picture of what the network sees; None of what can be read once only."""
    try:
        pixels = record.preprocessing.pixels(item)
    except ImageReadError:
        return None
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((_THUMB, _THUMB))
    return np.asarray(image)


def _checked(n: Any, n_images: int) -> int:
    """How many to suggest: up to `n`, as many as there are images."""
    if not n_images:
        raise DataError("`images` is empty; give files, a folder or a dataset to choose from")
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
        raise DataError(f"`n` is {n!r}; give a whole number of 1 or more: up to so many are chosen")
    return min(int(n), n_images)

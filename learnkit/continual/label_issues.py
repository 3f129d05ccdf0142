"""Label issues: what is odd about images to a classifier that has not learned them.

Many images of known classes that are flagged as OOD mean that something has changed: the camera,
the light, the labels. A new class that looks like a known one may be that class under another name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from learnkit.continual.checks import check_labelled_features
from learnkit.continual.closed_form.every_image import EveryImage, leave_every_image_out
from learnkit.continual.embedding import features_on_grid
from learnkit.continual.fingerprints import fingerprints_of
from learnkit.continual.statistics import ClassStatistics
from learnkit.data.image import read_image
from learnkit.data.read_images import image_name
from learnkit.errors import DataError, ImageReadError, number_of
from learnkit.report.document import (
    ARROW,
    Document,
    Gallery,
    Lines,
    Paragraph,
    Picture,
    Span,
    Table,
    share_text,
)
from learnkit.report.notebook import Shown
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.label_noise import (
    OUTLYING,
    LabelNoise,
    false_discovery_rates,
    fit_label_noise,
    label_noise_bounds,
    label_suspects,
    robust_deviations,
)
from learnkit.uncertainty.scoring import Scoring
from learnkit.uncertainty.threshold import Threshold

if TYPE_CHECKING:
    import pandas as pd

_LOOKED, _PER_CLASS = 512, 32  # images looked at, in all and of a class
_LEAST_FLAGGED = 0.25  # share flagged that is worth a word, however many images there are
_LEAST_SCORES = 20  # what a threshold rests on before its false-alarm rate can be held against it
_CHANCE = 1e-3
_LEAST_IMAGES, _ALIKE, _SURE = 3, 0.8, 0.8  # of a new class; share and confidence that count


def label_issues(
    scoring: Scoring, stats: ClassStatistics, features: Tensor, labels: Sequence[str]
) -> tuple[str, ...]:
    """Notes on new images, as the classifier saw them before it learned them; mostly none.

    Args:
        scoring: What follows from the statistics so far, the threshold as fitted.
        stats: These statistics.
        features: Pooled features of the new images (N, D), none of them blank.
        labels: A class name per image.
    """
    rows = _spread(labels)
    labels = [labels[row] for row in rows]
    seen = features[rows].numpy()
    flagged = scoring.threshold.is_ood(scoring.ood_scores(seen)).tolist()
    known = {name for name, n in zip(stats.class_names, stats.counts.tolist(), strict=True) if n}
    probs = scoring.probs(seen)
    likeness = [
        stats.class_names[place] if prob >= _SURE and not out else None
        for place, prob, out in zip(probs.argmax(1), probs.max(1), flagged, strict=True)
    ]
    of_known = [out for out, name in zip(flagged, labels, strict=True) if name in known]
    return (*_drift(scoring.threshold, of_known), *_twins(labels, likeness, known))


def not_learned_before(
    stats: ClassStatistics, features: Tensor, labels: Sequence[str]
) -> tuple[Tensor, list[str], tuple[str, ...]]:
    """(features, labels, notes) of the images that their classes have not learned yet.

    Of those that come twice the first is one.
    """
    codes = stats.fingerprints(features)
    repeated = stats.learned.repeated(codes, labels, stats.class_names)
    elsewhere = int((stats.learned.know(codes) & ~repeated).sum())
    # what is left of an image under one name is one row
    n_under_several = int((np.unique(codes[~repeated], return_counts=True)[1] > 1).sum())
    notes, n, rows = [], len(labels), np.flatnonzero(~repeated)
    if len(rows) < n:
        notes.append(
            f"already learned: {n - len(rows)} of {n} images, which count once; `again=True` "
            "counts them once more"
        )
    if elsewhere:
        notes.append(
            f"{elsewhere} of {n} images were learned under another name before, and speak for both "
            "classes now; `subtract` them from the wrong one"
        )
    if n_under_several:
        notes.append(
            f"given under more than one name: {number_of(n_under_several, 'image')}, each of which "
            "speaks for all these classes now; `subtract` it from the wrong ones"
        )
    return features[rows], [labels[row] for row in rows], tuple(notes)


def _spread(labels: Sequence[str]) -> list[int]:
    """Rows to look at: evenly spaced ones of each class."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    most = max(1, min(_PER_CLASS, _LOOKED // len(rows)))
    chosen = [row for own in rows.values() for row in own[:: -(-len(own) // most)]]
    return chosen[:: -(-len(chosen) // _LOOKED)]


def _drift(threshold: Threshold, flagged: list[bool]) -> tuple[str, ...]:
    """A note if more images of known classes are flagged than the threshold lets one expect."""
    n, k = len(flagged), sum(flagged)
    rate = threshold.false_alarm_rate
    if not n or rate is None or threshold.n < _LEAST_SCORES or k < _LEAST_FLAGGED * n:
        return ()
    if _at_least(k, n, rate) > _CHANCE:
        return ()
    return (
        f"{k} of {n} new images of known classes were flagged as out-of-distribution before they "
        f"were learned, where {rate:.0%} would be expected: have camera, light or parts changed, "
        "or are labels wrong?",
    )


def _twins(
    labels: Sequence[str], likeness: Sequence[str | None], known: set[str]
) -> tuple[str, ...]:
    """A note for every new class whose images were taken for one known class."""
    notes = []
    for name in dict.fromkeys(label for label in labels if label not in known):
        seen = [other for label, other in zip(labels, likeness, strict=True) if label == name]
        ((other, n),) = Counter(seen).most_common(1)
        if other is not None and len(seen) >= _LEAST_IMAGES and n >= _ALIKE * len(seen):
            notes.append(
                f"{n} of {len(seen)} images of the new class {name!r} were taken for {other!r}, "
                "and none of these was flagged as out-of-distribution: if both are one, join them "
                "with merge_classes"
            )
    return tuple(notes)


def _at_least(k: int, n: int, rate: float) -> float:
    """Probability of `k` or more of `n` at this rate.

    >>> round(_at_least(2, 3, 0.5), 6)
    0.5
    """
    return sum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k, n + 1))


_LENGTHS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # of the list, that are told of
_BLOCK = 1024  # images
_PICTURES, _THUMB = 12, 96  # in a notebook; pixels of the longer side


class LabelErrors(Shown):
    """Images in the order in which their labels should be looked at, the most suspicious first.

    Attributes:
        frame: a row per image: `path`; `label`; `predicted`, the likeliest class of the image left
            out; `p_label` and `p_predicted`, the probabilities of the two; `p_wrong`, that the
            label is wrong; `suspect`, whether the rule of confident learning names it;
            `false_discovery`, the share of right labels to expect among the rows down to this one,
            which is too low where images show another class as well, or are like none of their own:
            of the first 100 of 2,011 crops of circuit boards with other defects beside the named
            one, 5 % of their labels flipped, 30 were right where 11 were expected;
            `ood_score`, how far the image is from every class, in robust standard deviations, and
            `outlier`, whether that is over 3.5; `place` among the images given. Images of classes
            that have no other image cannot be left out: they stand last, with NaN.
        noise: of the labels, as estimated.
        n_wrong_interval: the least and the largest number of wrong labels to expect, at a level of
            95 %, for chance alone: classes that look alike are no noise and still count a little,
            and so do images that show two. Of 250 labels of CIFAR-10 flipped among 5,000 it was 178
            to 231, of 101 flipped among the crops of circuit boards 129 to 149, of none 24 to 40.
        items: the images, as they were given.
        classes: the names of the classes, sorted.
        probs: of each of them for each image as it was given, left out (N, C); NaN where it could
            not be.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        noise: LabelNoise,
        items: Sequence[Any],
        classes: Sequence[str],
        probs: Array,
        n_wrong_interval: tuple[float, float],
    ):
        self.frame, self.noise, self.items = frame, noise, items
        self.n_wrong_interval = n_wrong_interval
        self.classes, self.probs = tuple(classes), probs

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def suspects(self) -> pd.DataFrame:
        """The rows of `frame` whose labels are probably wrong."""
        return self.frame[self.frame["suspect"]]

    @property
    def outliers(self) -> pd.DataFrame:
        """The rows of `frame` that are far from every class, the farthest first."""
        found = self.frame[self.frame["outlier"]]
        return found.sort_values("ood_score", ascending=False, kind="stable")

    @property
    def n_wrong(self) -> float:
        """Number of wrong labels to expect."""
        return float(self.frame["p_wrong"].sum())

    def __str__(self) -> str:
        left = int(self.frame["p_label"].isna().sum())
        alone = f"; {left} could not be left out: their classes have no other image" if left else ""
        found = self.suspects
        right = len(found) - float(found["p_wrong"].sum())
        low, high = self.n_wrong_interval
        said = (
            f", of which about {right:.0f} {_are(right)} right, more if images show another class "
            "as well"
        )
        if round(right) == len(found):
            said = ", and all of them may be right" if len(found) else ""
        return (
            f"about {self.n_wrong:.0f} of {len(self)} labels {_are(self.n_wrong)} wrong "
            f"({low:.0f} to {high:.0f}); "
            f"{number_of(len(found), 'suspect')}{said}{alone}"
        )

    def __repr__(self) -> str:
        return f"LabelErrors({self})"

    def document(self) -> Document:
        """The sentence, what to expect of lists of some lengths, and the first suspects."""
        n_suspects = len(self.suspects)
        lengths = [k for k in (*_LENGTHS, n_suspects) if k <= n_suspects]
        rates = [(k, self.frame["false_discovery"].iloc[k - 1]) for k in sorted({*lengths} - {0})]
        rows = [(k, f"{k - k * rate:.0f}", share_text(rate, 0)) for k, rate in rates]
        lengths = Table(rows, ("look at the first", "wrong, about", "right, about"), "rrr")
        shown = self.suspects.head(_PICTURES)
        pictures = [self._picture(row) for row in shown.to_dict("records")]
        return Document([Paragraph(Span(str(self), "strong")), lengths, Gallery(pictures)])

    def _picture(self, row: dict[str, Any]) -> Picture:
        verdict = (row["label"], ARROW, row["predicted"], f" {share_text(row['p_predicted'], 0)}")
        try:
            image = read_image(self.items[row["place"]])
        except ImageReadError:
            return Picture(row["path"], None, Lines((verdict,)))
        image.thumbnail((_THUMB, _THUMB))
        return Picture(row["path"], None, Lines((verdict,)), np.asarray(image))


def _are(n: float) -> str:
    return "is" if round(n) == 1 else "are"


def label_errors(
    features: Tensor,
    labels: Sequence[str],
    items: Sequence[Any],
    *,
    root: bool = False,
    groups: Sequence[Any] | None = None,
) -> LabelErrors:
    """Labels that are probably wrong: each image by the statistics of all others, exactly.

    An image leaves its class, the covariance and the mean of all with its copies, and, given
    groups, with its group: no training, no folds.

    Args:
        features: pooled features (N, D) of the images.
        labels: a class name per image.
        items: the images, for their names and pictures.
        root: whether to take square roots of the features first.
        groups: what each image belongs to, None for none.

    Raises:
        DataError: fewer than two classes, or no class with two images that differ.
    """
    features, labels = check_labelled_features(features, labels, None, features.shape[1])
    if len(names := sorted(set(labels))) < 2:
        raise DataError(
            f"all {len(labels)} labels are {names[0]!r}; label errors are found between classes: "
            "give images of two or more"
        )
    stats = _statistics_of_all(features, labels, root, groups)
    moments = stats.moments()
    if all(moments.is_alone):
        raise DataError(
            f"none of the {len(names)} classes has two images that differ: an image left out has "
            "nothing to be compared with; give more images"
        )
    every = leave_every_image_out(moments)
    return _ranked(every, _rows_of(every, features, labels, stats.class_names, root), labels, items)


def _statistics_of_all(
    features: Tensor, labels: Sequence[str], root: bool, groups: Sequence[Any] | None
) -> ClassStatistics:
    """Statistics that remember every image, classes in the order of their names."""
    most = max(Counter(labels).values())
    empty = ClassStatistics.empty(
        features.shape[1], root=root, memory_size=most, case_sensitive=True
    )
    # names as they are: nothing is learned here
    stats = empty.with_classes(labels, known=labels).update(features, labels)
    stats = stats if groups is None else stats.grouped(features, labels, groups)
    return stats.canonical()


def _rows_of(
    every: EveryImage, features: Tensor, labels: Sequence[str], names: Sequence[str], root: bool
) -> Array:
    """Row of each image among those left out, -1 for none, int64 (N,)."""
    memory, place = every.memory, {name: i for i, name in enumerate(names)}
    own = zip(memory.labels.tolist(), fingerprints_of(memory.grid).tolist(), strict=True)
    # copies of an image in one class share a row: they left together
    row = {key: i for i, key in enumerate(own)}
    codes = [
        code  # of some at a time: embedded they take twice the memory, and more on the way
        for part in features.split(_BLOCK)
        for code in fingerprints_of(features_on_grid(part, root=root)).tolist()
    ]
    keys = zip((place[label] for label in labels), codes, strict=True)
    return np.array([row.get(key, -1) for key in keys], dtype=np.int64)


def _ranked(
    every: EveryImage, rows: Array, labels: Sequence[str], items: Sequence[Any]
) -> LabelErrors:
    """The table of all images, `rows` (N,) of which were left out."""
    import pandas as pd

    names = sorted(set(labels))
    known = np.flatnonzero(rows >= 0)
    at = rows[known]
    logits, given = every.logits.numpy(), every.labels.numpy()
    counted = np.sort(at)  # in an order of their own: else the last bits would tell that given
    rows_of_all, start = (logits[counted], given[counted]), {"temperature": every.temperature}
    noise = fit_label_noise(*rows_of_all, every.shares.numpy(), **start)
    bounds = label_noise_bounds(noise, *rows_of_all, **start)
    logits, given = logits[at], given[at]
    probs = noise.probs(logits)
    predicted = probs.argmax(1)
    # the cube root of a squared distance is close to normal (Wilson and Hilferty, 1931)
    scores = robust_deviations(np.cbrt(np.maximum(every.mahalanobis.numpy()[at], 0)))

    def column(values: Array, otherwise: Any) -> Array:
        whole = np.full(len(rows), otherwise, dtype=np.asarray(values).dtype)
        whole[known] = values
        return whole

    frame = pd.DataFrame(
        {
            "path": [image_name(item, number) for number, item in enumerate(items)],
            "label": list(labels),
            "predicted": column(np.array(names, dtype=object)[predicted], None),
            "p_label": column(probs[np.arange(len(at)), given], np.nan),
            "p_predicted": column(probs.max(1), np.nan),
            "p_wrong": column(noise.wrong(probs, given), np.nan),
            "suspect": column(label_suspects(probs, given), False),
            "ood_score": column(scores, np.nan),
            "outlier": column(scores > OUTLYING, False),
            "place": np.arange(len(rows)),
        }
    )
    odds = column(noise.log_odds(logits, given), np.nan)
    frame = frame.iloc[np.argsort(odds, kind="stable")].reset_index(drop=True)  # NaN last
    rates = false_discovery_rates(frame["p_wrong"].to_numpy())
    frame.insert(7, "false_discovery", rates)
    whole = np.full((len(rows), len(names)), np.nan)
    whole[known] = probs
    low, high = (float(one.wrong(one.probs(logits), given).sum()) for one in bounds)
    return LabelErrors(frame, noise, items, names, whole, (low, high))

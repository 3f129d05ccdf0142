"""Scores of the images that wait, from kept features: judged anew whenever the model changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from learnkit.serving.labelling.kept_features import KeptFeatures
from learnkit.uncertainty.scoring import Scoring

_BLOCK = 1024  # rows judged at once
_GROWTH = 1024


class Scores:
    """What the model says of every image that came: one place in arrays for each.

    Args:
        kept: the features of the images.
    """

    def __init__(self, kept: KeptFeatures):
        self.kept, self._lock = kept, threading.Lock()
        self._place: dict[str, int] = {}
        self._row = np.zeros(0, np.intp)
        self.ood, self.p, self.lead = (np.zeros(0) for _ in range(3))
        self.said = np.zeros(0, np.intp)
        self.flagged, self._is_judged = np.zeros(0, bool), np.zeros(0, bool)
        self.version = 0
        self.scoring: Scoring | None = None
        self.classes: tuple[str, ...] = ()

    def know(self, scoring: Scoring | None, classes: Sequence[str]) -> None:
        """Judge by this from now on; None says that no class is known."""
        self.scoring, self.classes = scoring, tuple(classes)

    def add(self, images: Iterable[tuple[str, str]], at_most: int | None = None) -> None:
        """Take in images, (id, SHA-256), whose features are kept, and judge them.

        Args:
            images: those that are there already are passed over.
            at_most: how many of them are judged now; the others are when they are rescored.
        """
        new = [(image, sha) for image, sha in images if image not in self._place]
        if not new:
            return
        with self._lock:
            start = len(self._place)
            self._grow(start + len(new))
            places = np.arange(start, start + len(new))
            self._row[places] = self.kept.places([sha for _, sha in new])
            self._place.update({image: start + i for i, (image, _) in enumerate(new)})
        self._judge(places[:at_most])

    def _grow(self, n: int) -> None:
        if n <= len(self._row):
            return
        more = max(n, len(self._row) + _GROWTH)
        blank = {"_row": 0, "ood": np.nan, "p": np.nan, "lead": 0.0, "said": -1, "flagged": True}
        blank["_is_judged"] = False
        for name, value in blank.items():
            old = getattr(self, name)
            new = np.full(more, value, old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)

    def __contains__(self, image: str) -> bool:
        place = self._place.get(image)
        return place is not None and bool(self._is_judged[place])

    def places(self, images: Iterable[str]) -> np.ndarray:
        """Places in the arrays of images, which are all there."""
        return np.array([self._place[image] for image in images], np.intp)

    def is_judged(self, images: Iterable[str]) -> np.ndarray:
        """Which of images are there and have been judged, bool (K,)."""
        with self._lock:
            places = np.array([self._place.get(image, -1) for image in images], np.intp)
            return (places >= 0) & (self._is_judged[places] if len(self._is_judged) else False)

    def unjudged(self) -> list[str]:
        """Images that are there and have not been judged yet."""
        with self._lock:
            if self._is_judged[: len(self._place)].all():
                return []
            return [image for image, place in self._place.items() if not self._is_judged[place]]

    def rescore(
        self, images: Sequence[str], is_outdated: Callable[[], bool] = lambda: False
    ) -> None:
        """Judge images anew, block by block, unless that `is_outdated` meanwhile; others not."""
        places = np.array([self._place[one] for one in images if one in self._place], np.intp)
        for start in range(0, len(places), _BLOCK):
            if is_outdated():
                return
            self._judge(places[start : start + _BLOCK])

    def _judge(self, places: np.ndarray) -> None:
        # read once: `know` may put another in its place while this one judges
        scoring = self.scoring
        for start in range(0, len(places), _BLOCK):
            part = places[start : start + _BLOCK]
            if scoring is None:
                self._put(part, said=-1, p=np.nan, lead=0.0, ood=np.nan, flagged=True)
                continue
            probs, scores = scoring.probs_and_ood_scores(self.kept.block(self._row[part]))
            # a column of zeros in front: of one class alone the second is nothing
            first, second = np.sort(np.pad(probs, ((0, 0), (1, 0))), axis=1)[:, :-3:-1].T
            flagged = scoring.threshold.is_ood(scores)
            said = probs.argmax(1)
            self._put(part, said=said, p=first, lead=first - second, ood=scores, flagged=flagged)

    def _put(self, places: np.ndarray, **values: Any) -> None:
        """Note what was judged."""
        # not while arrays are made longer, which would lose what is put into the old ones
        with self._lock:
            for name, value in values.items():
                getattr(self, name)[places] = value
            self._is_judged[places] = True
            self.version += 1

    def of(self, image: str) -> dict[str, Any]:
        """What is said of an image: `said`, `p`, `ood` and `flagged`, as JSON types."""
        place = self._place[image]
        said, p, ood = int(self.said[place]), float(self.p[place]), float(self.ood[place])
        known = 0 <= said < len(self.classes)
        return {
            "said": self.classes[said] if known else None,
            "p": round(p, 4) if known else None,
            "ood": round(ood, 4) if np.isfinite(ood) else None,
            "flagged": bool(self.flagged[place]),
        }

    def probs(self, image: str) -> list[float]:
        """Probabilities of the classes in their order; none where no class is known."""
        if self.scoring is None:
            return []
        rows = self.kept.block(self._row[[self._place[image]]])
        return [round(float(p), 4) for p in self.scoring.probs(rows)[0]]

    def features(self, images: Sequence[str]) -> np.ndarray:
        """Kept features float32 (N, D) of images."""
        return self.kept.block(self._row[self.places(images)])

"""A served model that learns: one change at a time, whole or not at all, and saved at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from learnkit._version import versions
from learnkit.data.labels import name_problem, nfc
from learnkit.errors import (
    ContinualNotInitializedError,
    ContinualStateError,
    ContinualUnsupportedError,
    ImageReadError,
    LearnkitError,
    OptimizedModelError,
    number_of,
)
from learnkit.inference.model import model_digest
from learnkit.serving.http_errors import Refusal
from learnkit.serving.uploads import Upload
from learnkit.storage.formats import finite_or_none

_CANNOT = (ContinualNotInitializedError, ContinualUnsupportedError, OptimizedModelError)
_SHOWN = 20
_PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "pillow", "fastapi", "uvicorn")


class ServedModel:
    """A predictor that may learn while it is served.

    Args:
        predictor: the model.
        save_to: where what was learned is saved; None for nowhere.
        check: raises ImageReadError for images that are not to be decoded.
    """

    def __init__(
        self,
        predictor: Any,
        save_to: str | os.PathLike | None,
        *,
        check: Callable[[Upload], None] = lambda image: None,
    ):
        self._predictor, self._check, self._lock = predictor, check, threading.Lock()
        self.save_to = None if save_to is None else Path(save_to)
        self.n_unsaved, self.digest, self.has_saved = 0, model_digest(predictor), False

    @property
    def can_extend(self) -> bool:
        """Whether the model is in the continual state, in a process that can change it."""
        able = callable(getattr(self._predictor, "extend", None))
        return able and getattr(self._predictor, "continual", None) is not None

    def check_can_extend(self) -> None:
        """Raise Refusal 501 unless the model can learn."""
        if not self.can_extend:
            raise Refusal(
                501,
                "this model cannot learn: it is not in the continual state, or is served without "
                "what that takes; serve one from `learnkit train --continual`, with torch",
            )

    def extend(self, images: Sequence[Upload], labels: Sequence[str], **how: Any) -> dict[str, Any]:
        """Learn `images`; what changed, as JSON types. `how` is for the predictor's `extend`.

        Raises:
            Refusal: 422 images or labels that cannot be learned, 501 a model that cannot learn;
                nothing is changed then.
        """

        def learn() -> Any:
            # all are looked at before any is learned: one that is refused leaves nothing changed
            if failures := [reason for reason in map(self._refused, images) if reason]:
                raise ImageReadError("; ".join(failures[:_SHOWN]))
            return self._predictor.extend(list(images), list(labels), progress=False, **how)

        return self._changed(learn)

    def undo(self) -> dict[str, Any]:
        """Take back the last change; what changed, as JSON types.

        Raises:
            Refusal: 409 there is none to take back, 501 a model that cannot learn.
        """
        return self._changed(lambda: self._predictor.undo())

    def _changed(self, change: Callable[[], Any]) -> dict[str, Any]:
        with self._lock:
            try:
                report = change()
            except _CANNOT as error:
                raise Refusal(501, str(error)) from error
            except ContinualStateError as error:
                raise Refusal(409, str(error)) from error
            except LearnkitError as error:
                raise Refusal(422, str(error)) from error
            self.n_unsaved += 1
            self.digest = model_digest(self._predictor)
            return report.to_dict()

    def save(self) -> None:
        """Write what was learned since the last time, if anything, and if there is a place for it.

        Raises:
            LearnkitError: it could not be written.
        """
        with self._lock:
            # the lock is held while it is written: a change meanwhile would count as saved
            if self.n_unsaved and self.save_to is not None:
                self._predictor.digest = self._predictor.save(self.save_to)
                self.n_unsaved, self.digest = 0, model_digest(self._predictor)
                self.has_saved = True

    def save_beside(self) -> Path | None:
        """A new folder beside the place that refused what was learned, which is in it now.

        None without such a place. Raises like `save`.
        """
        with self._lock:
            if self.save_to is None:
                return None
            name = f"{self.save_to.name}.learned-{model_digest(self._predictor)[:12]}"
            self._predictor.save(beside := self.save_to.with_name(name))
            return beside

    def _refused(self, image: Upload) -> str | None:
        try:
            self._check(image)
        except ImageReadError as error:
            return str(error)
        return None


def flag_in(fields: Mapping[str, Sequence[str]], name: str) -> bool:
    """Whether a form says that something is true; Refusal 400 if it says something else."""
    given = list(fields.get(name, ()))
    if given not in ([], ["true"], ["false"]):
        raise Refusal(400, f"the field `{name}` is {given[0][:20]!a}; send true or false, once")
    return given == ["true"]


def alpha_in(fields: Mapping[str, Sequence[str]]) -> float | None:
    """The share of images whose class a prediction set may miss; None if nobody asks for sets.

    Raises:
        Refusal: 400 it is no number between 0 and 1, or stands there twice.
    """
    given = list(fields.get("alpha", ()))
    if not given:
        return None
    try:
        (alpha,) = map(float, given)
    except ValueError:
        alpha = 0.0
    if not 0 < alpha < 1:  # so written that NaN is refused
        raise Refusal(
            400,
            f"`alpha` is {given[0][:20]!a}; send one number between 0 and 1, such as 0.1: for so "
            "many images the true class may be missing from the prediction set",
        )
    return alpha


def groups_in(fields: Mapping[str, Sequence[str]], n: int) -> list[str] | None:
    """What a form says each of `n` images belongs to; None if it says nothing.

    Raises:
        Refusal: 400 another number.
    """
    given = list(fields.get("group", ()))
    if len(given) not in (0, 1, n):
        raise Refusal(
            400,
            f"the request has {number_of(len(given), 'group')} for {number_of(n, 'image')}; send "
            "the field `group` once, or "
            "once for each image, in their order",
        )
    return given * (n if len(given) == 1 else 1) or None


def labels_for(n: int, given: Sequence[str], known: Sequence[str]) -> list[str]:
    """One label for each of `n` images: `given`, or the only one there is for all.

    Raises:
        Refusal: 400 none, or another number; 422 one that is none of the names `known` and is
            endless, cannot be shown, or is a formula where a spreadsheet opens a table of
            predictions.
    """
    if len(given) not in (1, n):
        raise Refusal(
            400,
            f"the request has {number_of(len(given), 'label')} for {number_of(n, 'image')}; send "
            "the field `label` once, or "
            "once for each image, in their order",
        )
    for label in given:
        if nfc(label) not in known and (reason := name_problem(label)):
            raise Refusal(422, f"the label {reason}")
    return list(given) * (n if len(given) == 1 else 1)


def model_facts(predictor: Any) -> dict[str, Any]:
    """Classes, what they rest on, thresholds, input and versions."""
    recipe = predictor.preprocessing
    head = getattr(predictor, "continual", None)
    multi_label = bool(getattr(predictor, "multi_label", False))
    threshold = None
    if getattr(
        predictor, "knows_classes", True
    ):  # what has learned nothing yet has no threshold either
        threshold = getattr(getattr(head, "threshold", None), "value", None)
        threshold = getattr(predictor, "ood_threshold", threshold)
    return {
        "classes": list(predictor.classes),
        "multi_label": multi_label,
        "threshold": predictor.threshold if multi_label else None,
        "ood_threshold": finite_or_none(threshold),
        "images_per_class": getattr(head, "n_images", None),
        "size": list(recipe.size),
        "channels": recipe.channels,
        "versions": versions(*_PACKAGES),
    }

"""The ledger: what the model knows is what it knew at first, and the changes in force since.

Statistics add up exactly, so that a change is taken back by adding up the others: the result is to
the bit as if it had never been made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learnkit.continual.knowledge import Knowledge
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import BundleCorruptError, ContinualStateError, LearnkitError
from learnkit.serving.labelling.journal import CLASSES, NAMED, Change, Changes
from learnkit.storage.filesystem import write_file
from learnkit.storage.formats import parse_tensors, tensors_to_bytes

_CONFIG = "config"

Rows = Callable[[Sequence[str]], torch.Tensor]


class Ledger:
    """Knowledge at first, and what follows from it by a list of changes.

    Args:
        base: what was known at first, nothing of it derived.
        rows: gives exact features float32 (N, D) of images by their SHA-256.
        origin: of these features; see `Session.origin`.
    """

    def __init__(self, base: Knowledge, rows: Rows, origin: str):
        self.base, self._rows, self._origin = base, rows, origin

    def folded(self, changes: Changes, without: Iterable[str] = ()) -> Knowledge:
        """What is known by the changes in force but those `without`, nothing of it derived.

        Raises:
            ContinualStateError: a later change rests on one that is taken back.
        """
        left_out = set(without)
        known = self.base
        for change in changes:
            gone = change.key in left_out or change.state == "undone"
            if change.sealed:
                known = self._unsealed(known, change) if gone else known
            elif not gone and change.counts:
                known = self._taught(known, change, changes.teaching(change, left_out))
        return known

    def _taught(self, known: Knowledge, change: Change, images: list[dict[str, Any]]) -> Knowledge:
        try:
            if change.do in CLASSES:
                return with_class_change(known, change)
            if change.do == NAMED and images:
                return self.extended(known, change, images)[0]
        except LearnkitError as error:
            raise ContinualStateError(
                f"that cannot be taken back alone: {_said(change)} rests on it ({error}); take "
                "that back first"
            ) from error
        return known

    def extended(
        self, known: Knowledge, change: Change, images: Sequence[dict[str, Any]]
    ) -> tuple[Knowledge, tuple[str, ...]]:
        """(knowledge with the images of a label, notes); those of another class leave that.

        Raises:
            LearnkitError: they cannot be learned.
        """
        label, shas = str(change.label), [image["sha"] for image in images]
        features = self._rows(shas)
        elsewhere = [
            (row, name)
            for row, name in enumerate(labels_known(known.statistics, features))
            if name is not None and name != label
        ]
        if elsewhere:
            places, names = zip(*elsewhere, strict=True)
            known, _ = known.subtract(features[list(places)], list(names))
        reuse = bool(change.about.get("again"))
        return known.extend(
            features, [label] * len(shas), None, None, origin=self._origin, reuse_names=reuse
        )

    def _unsealed(self, known: Knowledge, change: Change) -> Knowledge:
        """Without what the model that all starts from has learned by a change."""
        if change.do != NAMED:
            raise ContinualStateError(
                f"{_said(change)} was made before another program changed the model, and cannot be "
                "taken back here"
            )
        features = self._rows([image["sha"] for image in change.images])
        names = labels_known(known.statistics, features)
        places = [row for row, name in enumerate(names) if name is not None]
        if not places:
            return known
        return known.subtract(features[places], [str(names[row]) for row in places])[0]


def labels_known(statistics: ClassStatistics, features: torch.Tensor) -> list[str | None]:
    """The class that has learned each image (N, D), None where none has."""
    if not statistics.n_classes:
        return [None] * len(features)
    codes = statistics.fingerprints(features)
    found: list[str | None] = [None] * len(codes)
    for name, own in zip(statistics.class_names, statistics.learned.classes, strict=True):
        for row in np.flatnonzero(np.isin(codes, own)):
            found[row] = name
    return found


def with_class_change(known: Knowledge, change: Change) -> Knowledge:
    """Knowledge with a class renamed, merged or forgotten.

    Raises:
        LearnkitError: it cannot be.
    """
    about = change.about
    if change.do == "rename":
        return known.rename({about["from"]: about["to"]})[0]
    if change.do == "merge":
        return known.merge_classes([about["from"]], about["to"])[0]
    return known.forget(about["from"])[0]


def is_in(known: Knowledge, change: Change, rows: Rows) -> bool:
    """Whether a model that somebody else wrote knows of a change already."""
    if change.do == NAMED:
        if not change.images:
            return False
        features = rows([image["sha"] for image in change.images])
        return all(name is not None for name in labels_known(known.statistics, features))
    about, stats = change.about, known.statistics
    if change.do == "forget":
        return not known.n_images.get(about["from"], 0)
    return stats.former_names.get(about["from"]) == about["to"]


def write_knowledge(path: Path, known: Knowledge) -> None:
    """Keep what is known in a file; OSError if it cannot be written."""
    config, tensors = known.to_state()
    text = json.dumps(config, sort_keys=True).encode()
    # in the same file: settings and sums of two moments never meet
    # torch warns of buffers that cannot be written to, such as `bytes`
    packed = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    data = tensors_to_bytes({**tensors, _CONFIG: packed})
    write_file(path, lambda file: file.write(data))


def read_knowledge(path: Path) -> Knowledge | None:
    """What is kept in a file; None if it is not there, or not whole."""
    try:
        tensors = parse_tensors(path.read_bytes(), path.name)
        config = json.loads(bytes(tensors.pop(_CONFIG).tolist()))
        return Knowledge.from_state(config, tensors)
    except (OSError, KeyError, ValueError, BundleCorruptError, LearnkitError):
        return None


def _said(change: Change) -> str:
    """A change in a few words."""
    about = change.about
    if change.do == NAMED:
        return f"the label {change.label!r}"
    to = f" to {about['to']!r}" if "to" in about else ""
    return f"{change.do} {about['from']!r}{to}"

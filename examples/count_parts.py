"""Count what is in a folder of images, by an exported model, and list what it does not know.

    python examples/count_parts.py MODEL IMAGES

Runs with torch and without. mypy and pyright check this file, with the settings in pyproject.toml:
fastai has no types of its own.
"""

import importlib.util
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from learnkit import (
    LearnkitError,
    Prediction,
    Predictor,
    RuntimePredictor,
    load_learner,
    load_runtime,
)
from learnkit.inference.batch import predict_stream


@dataclass
class Count:
    """How many images are of which class, those that are of none, and why others were not read."""

    classes: Counter[str] = field(default_factory=Counter)
    unknown: list[Path] = field(default_factory=list)
    unread: dict[Path, str] = field(default_factory=dict)

    def add(self, path: Path, answer: Prediction | LearnkitError) -> None:
        """Count one image."""
        if isinstance(answer, LearnkitError):
            self.unread[path] = str(answer)
        elif answer.is_ood:
            self.unknown.append(path)
        else:
            self.classes[answer.ranking[0][0]] += 1


def opened(path: Path) -> Predictor | RuntimePredictor:
    """The model, with torch where there is torch."""
    return load_learner(path) if importlib.util.find_spec("torch") else load_runtime(path)


def count(model: Path, images: Path) -> Count:
    """What a model sees in a folder; files that are no images are left for `unread`."""
    predictor, found = opened(model), Count()
    paths = sorted(path for path in images.rglob("*") if path.is_file())
    for path, answer in predict_stream(predictor, paths, bs=16, n_workers=2):
        found.add(path, answer)
    return found


if __name__ == "__main__":
    found = count(*map(Path, sys.argv[1:]))
    for name, n in found.classes.most_common():
        print(f"{n:6}  {name}")
    for path in found.unknown:
        print(f"unknown: {path}")
    for path, reason in found.unread.items():
        print(f"not read: {path}: {reason}")

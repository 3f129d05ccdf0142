"""What a network says about one image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from torch import Tensor

_SHOWN = 5
_BAR = "background:#4c72b0;height:.8em"


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The label of one image and the probabilities behind it; unpacks as (label, index, probs).

    Attributes:
        label: name of the likeliest class; of a multi-label model the names above the threshold.
        index: its number in `classes`; of a multi-label model a tuple of numbers.
        probs: probabilities float32 (C,) in the order of `classes`; they sum to 1, unless the model
            is multi-label.
        classes: the C class names.

    >>> import torch
    >>> label, index, probs = prediction_of(torch.tensor([.1, .7, .2]), ("ant", "bee", "wasp"))
    >>> label, index
    ('bee', 1)
    """

    label: str | tuple[str, ...]
    index: int | tuple[int, ...]
    probs: Tensor
    classes: tuple[str, ...]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.label, self.index, self.probs))

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int | slice) -> Any:
        return (self.label, self.index, self.probs)[i]

    @property
    def confidence(self) -> float:
        """Probability of the likeliest class, in [0, 1]."""
        return float(self.probs.max())

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """(class name, probability) of all classes, likeliest first; equals in class order."""
        order = self.probs.argsort(descending=True, stable=True).tolist()
        probs = self.probs.tolist()
        return [(self.classes[i], probs[i]) for i in order]

    def to_dict(self) -> dict[str, Any]:
        """label, index, confidence and probs by class name, all as JSON types."""
        plain = lambda x: list(x) if isinstance(x, tuple) else x
        return {
            "label": plain(self.label),
            "index": plain(self.index),
            "confidence": self.confidence,
            "probs": dict(zip(self.classes, self.probs.tolist(), strict=True)),
        }

    def to_halcon(self) -> dict[str, tuple]:
        """HALCON's classification result: ids, names and confidences, likeliest first."""
        order = self.probs.argsort(descending=True, stable=True).tolist()
        ranking = self.ranking
        return {
            "classification_class_ids": tuple(order),
            "classification_class_names": tuple(name for name, _ in ranking),
            "classification_confidences": tuple(prob for _, prob in ranking),
        }

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}: {prob:.4f}" for name, prob in self.ranking[:_SHOWN])
        more = ", ..." if len(self.classes) > _SHOWN else ""
        return f"Prediction({self.label!r}, {{{shown}{more}}})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{prob:.1%}</td>"
            f'<td><div style="{_BAR};width:{100 * prob:.0f}px"></div></td></tr>'
            for name, prob in self.ranking[:_SHOWN]
        )
        label = self.label if isinstance(self.label, str) else ", ".join(self.label) or "no label"
        return f"<b>{escape(label)}</b><table>{rows}</table>"


def prediction_of(
    probs: Tensor, classes: tuple[str, ...], *, multi_label: bool = False, threshold: float = 0.5
) -> Prediction:
    """The prediction for one row of probabilities (C,); `threshold` counts if `multi_label`."""
    if multi_label:
        found = tuple(i for i, p in enumerate(probs.tolist()) if p > threshold)
        return Prediction(tuple(classes[i] for i in found), found, probs, classes)
    index = int(probs.argmax())
    return Prediction(classes[index], index, probs, classes)

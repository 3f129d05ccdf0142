"""Evidence beside an image: where the network looked, and the learned images most alike it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.interpret.page.images import name_of
from learnkit.interpret.page.thumbs import picture_order

if TYPE_CHECKING:
    from learnkit.interpret.page.images import EvaluatedImages

_MAX_HEATS = 200
_MAX_ALIKE = 200  # images beside which learned ones are shown
Array = np.ndarray


def heats_of(images: EvaluatedImages) -> dict[int, dict[str, Any]]:
    """For the worst mistakes the maps of what was predicted and of the truth, by place.

    Of several labels an image: of the surest one that is not there, and of the one least believed
    that is; `hc` says which these are, -1 for none.
    """
    wrong = np.flatnonzero(~images.right)
    worst = wrong[np.argsort(-images.losses[wrong], kind="stable")][:_MAX_HEATS]
    said, meant = images.predicted[worst], images.targets[worst]
    if images.multi_label:
        said, meant = _wrong_labels(images.probs[worst], said.astype(bool), meant == 1)
    found: dict[int, dict[str, Any]] = {}
    for key, numbers in (("h", said), ("ha", meant)):
        told = np.flatnonzero(numbers >= 0)
        maps = images.maps(worst[told].tolist(), numbers[told].tolist()) if len(told) else []
        if maps is None:
            return {}
        for row, one in zip(told.tolist(), maps, strict=True):
            about = found.setdefault(int(worst[row]), {"hs": list(one.shape)})
            about[key] = heat_text(one)
            if images.multi_label:
                about["hc"] = [int(said[row]), int(meant[row])]
    for place, about in found.items():
        about["hb"] = [round(at, 4) for at in images.seen_box(place)]
    return found


def _wrong_labels(probs: Array, said: Array, meant: Array) -> tuple[Array, Array]:
    """(the likeliest class said and not meant, the least likely one meant and not said), (n,) each.

    -1 where there is none in a row of probabilities and flags (n, C).
    """
    extra, missed = said & ~meant, meant & ~said
    first = np.where(extra, probs, -np.inf).argmax(1)
    last = np.where(missed, probs, np.inf).argmin(1)
    return np.where(extra.any(1), first, -1), np.where(missed.any(1), last, -1)


def heat_text(heat: Array) -> str:
    """A map of evidence (h, w) as base64 of bytes, row by row, the strongest cell being 255."""
    strongest = float(heat.max()) if heat.size else 0.0
    scaled = np.clip(heat / strongest, 0, 1) * 255 if strongest > 0 else np.zeros_like(heat)
    return base64.b64encode(np.rint(scaled).astype(np.uint8).tobytes()).decode("ascii")


def add_alike(data: dict[str, Any], images: EvaluatedImages, listed: Sequence[int]) -> list[Any]:
    """Add the learned images most alike the remarkable ones to a page's data; return their files.

    A row's `m` names [class, similarity, place in `kin` or -1] of each; `n_kin` is how many learned
    images were looked at, and how many there are.

    Args:
        data: of the page.
        images: the evaluated images.
        listed: the places of its rows.
    """
    chosen = picture_order(data["images"])[0][:_MAX_ALIKE]
    found = images.alike and chosen and images.alike([listed[row] for row in chosen])
    if not found:
        return []
    numbers = {one["name"]: number for number, one in enumerate(data["classes"])}
    kin: dict[int, int] = {}
    for row, own, similarity in zip(chosen, found.rows, found.similarity, strict=True):
        data["images"][row]["m"] = [
            [
                numbers.get(found.labels[one], found.labels[one]),
                round(float(likeness), 3),
                -1 if found.sources is None else kin.setdefault(one, len(kin)),
            ]
            for one, likeness in zip(own.tolist(), similarity, strict=True)
            if one >= 0
        ]
    sources = [] if found.sources is None else [found.sources[one] for one in kin]
    names = [name_of(one, place, found.root) for place, one in enumerate(sources)]
    data["kin"] = [{"p": name} for name in names]
    data["n_kin"] = [len(found.labels), found.n_learned]
    return sources

"""The page of a folder of images: labels that are probably wrong, copies, and what is damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.data.display import difference_picture
from learnkit.data.image import read_image
from learnkit.errors import ImageReadError
from learnkit.evaluation.evaluate import evaluate
from learnkit.interpret.page.build import page_data
from learnkit.interpret.page.images import EvaluatedImages, name_of
from learnkit.interpret.page.thumbs import SMALL, add_pictures, data_url
from learnkit.report.document import share_text
from learnkit.uncertainty.label_noise import OUTLYING

if TYPE_CHECKING:
    import pandas as pd

    from learnkit.continual.label_issues import LabelErrors

_MAX_SUSPECTS = 200
_MAX_PAIRS = 60  # pictures of differences
_COPIES = ("duplicate", "near duplicate", "conflicting labels", "look-alikes")


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Images of a folder, with what was found about each.

    Attributes:
        errors: the ranking of their labels.
        root: the folder.
        findings: of `ImageDataset.check`.
        unreadable: why images cannot be read, by path below the folder.
        facts: of the model whose features were used.
    """

    errors: LabelErrors
    root: Path
    findings: pd.DataFrame
    unreadable: Mapping[str, str]
    facts: Mapping[str, str]

    @cached_property
    def names(self) -> list[str]:
        """The path of each image below the folder."""
        return [name_of(item, place, self.root) for place, item in enumerate(self.errors.items)]

    @cached_property
    def known(self) -> np.ndarray:
        """Places of the images that were left out, by which the others can be told (M,)."""
        return np.flatnonzero(~np.isnan(self.errors.probs[:, 0]))


def digests_of(sources: Sequence[Any]) -> list[str]:
    """The SHA-256 (hex) of each file, "" of what is in none."""
    nothing = np.zeros((len(sources), 1))
    found = EvaluatedImages(nothing, np.zeros(len(sources), int), sources).sha256
    return [digest or "" for digest in found]


def cleaning_data(
    images: FolderImages, *, max_mb: float, command: str = "", created: str | None = None
) -> dict[str, Any]:
    """What `page_html` draws of kind "cleaning", as JSON types.

    Args:
        images: of the folder.
        max_mb: megabytes for numbers and pictures.
        command: that made it.
        created: when, as "2026-11-25T22:50Z"; default now.
    """
    errors, known = images.errors, images.known
    by_place = errors.frame.sort_values("place", ignore_index=True)
    ranked = by_place.iloc[known].reset_index(drop=True)
    number = {name: place for place, name in enumerate(errors.classes)}
    targets = np.array([number[name] for name in ranked["label"]])
    shown = EvaluatedImages(
        probs=errors.probs[known],
        targets=targets,
        sources=[errors.items[place] for place in known],
        root=images.root,
        ood_scores=ranked["ood_score"].to_numpy(),
        ood_threshold=OUTLYING,
        unreadable={str(images.root / path): why for path, why in images.unreadable.items()},
        facts=images.facts,
    )
    evaluation = evaluate(shown.probs, targets, errors.classes)
    name = images.root.name
    listed, data = page_data(
        evaluation, shown, title=f"{name}: what to clean", command=command, created=created
    )
    rows = {place: row for row, place in enumerate(listed)}
    _mark(data["images"], ranked.iloc[listed])
    place_of = {images.names[place]: rows[i] for i, place in enumerate(known) if i in rows}
    data["findings"] = _findings(images, place_of)
    data["duplicates"] = [one["images"] for one in data["findings"] if one["kind"] in _COPIES]
    for group, members in enumerate(data["duplicates"]):
        for row in members:
            data["images"][row]["d"] = group
    data |= {"kind": "cleaning", "bins": None, "summary": _summary(images)}
    add_pictures(data, lambda row: shown.open(listed[row]), max_mb=max_mb)
    return data


def _mark(rows: list[dict[str, Any]], ranked: pd.DataFrame) -> None:
    """Say of the first suspects how suspicious they are, and why."""
    for row in rows:
        row.pop("w", None)
        row.pop("k", None)
    suspects = np.flatnonzero(ranked["suspect"].to_numpy())
    order = suspects[np.argsort(ranked["p_label"].to_numpy()[suspects], kind="stable")]
    for place in order[:_MAX_SUSPECTS].tolist():
        one = ranked.iloc[place]
        # not 0: the page takes a row for a suspect by a `w` above it
        rows[place]["w"] = float(f"{max(1 - one['p_label'], 1e-3):.4g}")
        rows[place]["wt"] = (
            f"says {one['label']}, looks like {one['predicted']} ({_odds(one['p_predicted'])}); "
            f"wrong with a probability of {_odds(one['p_wrong'])}"
        )


def _odds(share: float) -> str:
    """A probability in whole percent, never none and never all."""
    if 0.01 <= share <= 0.99:
        return share_text(share, 0)
    return "less than 1 %" if share < 0.5 else "more than 99 %"


def _findings(images: FolderImages, place_of: Mapping[str, int]) -> list[dict[str, Any]]:
    """Findings with the rows of their images; of pairs a picture of the difference."""
    found, n_pairs, seen = [], 0, set()
    for one in images.findings.to_dict("records"):
        kind = one["finding"].removesuffix(" across splits")
        if kind == "conflicting labels" and one["paths"] in seen:
            continue  # a row for each of the files, of which one shows them all
        seen.add(one["paths"])
        about = ": ".join(filter(None, (one["path"] or one["class"], one["detail"])))
        row = {
            "kind": kind,
            "text": ": ".join(filter(None, (one["finding"], about))),
            "images": [place_of[path] for path in one["paths"] if path in place_of],
        }
        if kind in _COPIES and len(one["paths"]) > 1 and n_pairs < _MAX_PAIRS:
            n_pairs += 1
            if picture := _pair(images.root, one["paths"]):
                row["picture"] = picture
        found.append(row)
    return found


def _pair(root: Path, paths: Sequence[str]) -> str | None:
    """Where two images differ, as a data URL."""
    try:
        pair = [read_image(root / path) for path in paths[:2]]
    except ImageReadError:
        return None
    return data_url(difference_picture(*pair), SMALL)


def _summary(images: FolderImages) -> list[dict[str, Any]]:
    """Sentences of what to look at first."""
    errors, findings = images.errors, images.findings
    said = [
        _say(f"{sentence[:1].upper()}{sentence[1:]}.", "suspects") for sentence in [str(errors)]
    ]
    if n := int(errors.frame["outlier"].sum()):
        text = f"{n} image{'s are' if n > 1 else ' is'} unlike all others"
        said.append(_say(f"{text} (over {OUTLYING} robust deviations).", "flagged"))
    counts = findings.groupby(["severity", "finding"], sort=False).size()
    for (severity, finding), n in counts.items():
        kind = finding.removesuffix(" across splits")
        show = "duplicates" if kind in _COPIES else None
        said.append(_say(f"{finding}: {n}.", show, warning=severity != "info"))
    return said


def _say(text: str, show: str | None = None, *, warning: bool = False) -> dict[str, Any]:
    return {"text": text, "warning": warning, "show": show}

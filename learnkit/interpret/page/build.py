"""The evaluation page's numbers: one dictionary of JSON types, version 1, that the page draws."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit._version import __version__
from learnkit.errors import EvaluationError, number_of
from learnkit.evaluation.evaluate import json_value
from learnkit.evaluation.intervals import N_RESAMPLES
from learnkit.evaluation.measures import (
    Inspection,
    calibration_bins,
    class_counts,
    good_classes,
    inspection,
    wilson_interval,
)
from learnkit.evaluation.verdict import meaning
from learnkit.interpret.page.evidence import heats_of
from learnkit.interpret.page.sentences import summary_sentences
from learnkit.report.matrix import sparse_counts
from learnkit.report.progress import duration

if TYPE_CHECKING:
    from learnkit.evaluation.evaluate import Evaluation
    from learnkit.interpret.page.images import EvaluatedImages

VERSION = 1
N_BINS = 15
MAX_ROWS = 100_000  # images that are listed; above, right ones are counted alone
_MAX_SUSPECTS = 200
_MINUTE = "%Y-%m-%dT%H:%MZ"
_TOP, _LEAST_PROB = 5, 0.001
Array = np.ndarray
# Left out of the row of an image where it has this value: 50,000 rows are a file to be mailed. Of
# one label an image, `pa` is left out if `t` has it, and `l` always, which follows from it.
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("pa", "l", "s", "h", "ha", "hs", "sha")),
    "hb": [0.0, 0.0, 1.0, 1.0],
    **dict.fromkeys(("th", "big", "d"), -1),
    **dict.fromkeys(("u", "o", "k"), False),
    "w": 0,
}


def page_data(
    evaluation: Evaluation,
    images: EvaluatedImages,
    *,
    good: Sequence[str] | None = None,
    title: str | None = None,
    command: str = "",
    created: str | None = None,
) -> tuple[list[int], dict[str, Any]]:
    """(places of the images listed, what `page_html` draws, without pictures).

    Args:
        evaluation: of the known images.
        images: these, and what was answered to each.
        good: names of the classes that mean a part is good; default as it was evaluated.
        title: of the page; default the model on so many images.
        command: that made it.
        created: when, as "2026-11-25T22:50Z"; default now.

    Raises:
        EvaluationError: `good` names no class, or all of them; or `created` is no such moment.
    """
    n, classes = images.n_known, evaluation.classes
    _check_moment(created)
    is_good = good_classes(evaluation.good if good is None else good, classes)
    inspected = _inspected(images, is_good) if is_good.any() and not images.multi_label else None
    suspicion, groups = suspicions(images), same_files(images)
    listed = _listed(images, suspicion)
    rows = _image_rows(images, suspicion, groups, listed)
    folder = images.root.name if images.root is not None else ""
    place = {number: row for row, number in enumerate(listed.tolist())}
    duplicates = [[place[i] for i in group if i in place] for group in groups]
    model = {"learnkit": __version__, **dict.fromkeys(("name", "arch", "size", "digest"), "")}
    model |= images.facts
    name = model["name"] or model["arch"] or "model"
    confusion = evaluation.confusion.to_numpy()
    created = created or time.strftime(_MINUTE, time.gmtime())
    data = {
        "version": VERSION,
        "kind": "evaluation",
        "title": title
        or f"{name} on {number_of(n, 'image')}" + (f" of {folder}" if folder else ""),
        "created": created,
        "model": model,
        "data": {"folder": folder, "n": n, "fingerprint": _fingerprint(images)},
        "multi_label": images.multi_label,
        "good_set": inspected is not None,
        "classes": [
            {"name": name, "good": bool(one), "n_learned": images.n_learned.get(name)}
            for name, one in zip(classes, is_good, strict=True)
        ],
        "summary": summary_sentences(evaluation, images, inspected, groups),
        "measures": {name: json_value(value) for name, value, _ in evaluation.with_intervals()},
        "meanings": {name: meaning(name) for name in evaluation.summary.index},
        "intervals": {
            name: [json_value(low), json_value(high)]
            for name, low, high in evaluation.intervals.itertuples()
        },
        "confusion": [] if images.multi_label or not n else sparse_counts(confusion),
        "label_tables": _label_tables(evaluation) if images.multi_label else [],
        "rows": _class_rows(evaluation, images) if n else [],
        "ood": _ood(evaluation, images),
        "bins": _bins(images),
        "unreadable": [{"path": path, "why": why} for path, why in images.failures.items()],
        "duplicates": duplicates,
        "findings": [],
        "images": rows,
        "kin": [],
        "n_kin": [0, 0],
        "rows_left_out": len(images) - len(listed),
        "pictures_left_out": len(rows),
        "thumbs": [],
        "bigs": [],
        "command": command,
    }
    return listed.tolist(), data | {"measured": _measured(data, images)}


def _check_moment(created: str | None) -> None:
    try:
        time.strptime(created or "2026-01-01T00:00Z", _MINUTE)
    except (TypeError, ValueError):
        raise EvaluationError(
            f"`created` is {created!r}; give a moment such as '2026-11-25T22:50Z', in UTC"
        ) from None


def suspicions(images: EvaluatedImages) -> Array:
    """How likely each known image is labelled wrongly (N,), 1 less its label's probability.

    0 unless another class is predicted, and as surely as images of that class usually are: with a
    probability of at least the mean of those labelled so. At most 200 are kept. Of several labels
    per image none is judged.

    Source: Northcutt, Jiang and Chuang, "Confident learning", 2021, section 3.1.
    """
    found = np.zeros(images.n_known)
    if images.multi_label or not images.n_known:
        return found
    n_classes, rows = images.probs.shape[1], np.arange(images.n_known)
    counts = np.bincount(images.targets, minlength=n_classes)
    sums = np.bincount(images.targets, images.actual_probs, n_classes)
    # no probability reaches infinity: nothing is as sure as images of a class without any
    usual = np.where(counts, sums / np.maximum(counts, 1), np.inf)
    predicted = images.predicted[: images.n_known]
    sure = images.probs[rows, predicted] >= usual[predicted]
    wrong = np.flatnonzero((predicted != images.targets) & sure)
    kept = wrong[np.argsort(images.actual_probs[wrong], kind="stable")][:_MAX_SUSPECTS]
    found[kept] = 1 - images.actual_probs[kept]
    return found


def same_files(images: EvaluatedImages) -> list[list[int]]:
    """Places of images that are the same file, byte by byte, in groups of two or more."""
    groups: dict[str, list[int]] = {}
    for place, digest in enumerate(images.sha256):
        if digest is not None:
            groups.setdefault(digest, []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def _inspected(images: EvaluatedImages, good: Array) -> Inspection:
    n = images.n_known
    flagged = None if images.ood_scores is None else images.flagged[:n]
    return inspection(images.targets, images.predicted[:n], good, flagged)


def _listed(images: EvaluatedImages, suspicion: Array) -> Array:
    """Places of the images to list: all, or as many as there may be, the remarkable ones first."""
    if len(images) <= MAX_ROWS:
        return np.arange(len(images))
    remarkable = images.flagged.copy()
    remarkable[images.n_known :] = True
    remarkable[: images.n_known] |= ~images.right | (suspicion > 0)
    order = np.argsort(~remarkable, kind="stable")
    return np.sort(order[:MAX_ROWS])


def _image_rows(
    images: EvaluatedImages, suspicion: Array, groups: Sequence[Sequence[int]], listed: Array
) -> list[dict[str, Any]]:
    group_of = {place: number for number, group in enumerate(groups) for place in group}
    heats = heats_of(images)
    order = np.argsort(-images.probs, 1, kind="stable")[:, :_TOP]
    rows = []
    for place in listed.tolist():
        known = place < images.n_known
        top = [[int(c), _short(images.probs[place, c])] for c in order[place]]
        top = top[:1] + [pair for pair in top[1:] if pair[1] >= _LEAST_PROB]
        told = images.multi_label or all(c != images.targets[place] for c, _ in top) if known else 0
        sha = images.sha256[place]
        row = {
            "p": images.names[place],
            "a": _label(images.targets[place]) if known else -1,
            "y": _label(images.predicted[place]),
            "t": top,
            "pa": _short(images.actual_probs[place]) if told else None,
            "l": _short(images.losses[place]) if known and images.multi_label else None,
            "s": None if images.ood_scores is None else _score(images, place),
            "u": bool(images.flagged[place]),
            "o": not known,
            "w": _short(suspicion[place]) if known else 0,
            "d": group_of.get(place, -1),
            "k": bool(known and images.learned is not None and images.learned[place]),
            # as base64 without padding, a third shorter than in hex
            "sha": sha and base64.b64encode(bytes.fromhex(sha)).decode().rstrip("="),
            **heats.get(place, {}),
        }
        # what has no default is held against the row itself, which none of its values equals
        rows.append({key: one for key, one in row.items() if one != DEFAULTS.get(key, row)})
    return rows


def _score(images: EvaluatedImages, place: int) -> float | None:
    """An OOD score, as short as leaves it on its side of the threshold."""
    score, limit = float(images.ood_scores[place]), images.ood_threshold
    short = _short(score)
    if short is None or limit is None or (short > limit) == (score > limit):
        return short
    return score


def _label(value: Any) -> int | list[int]:
    """A class number, or those of flags (C,)."""
    return np.flatnonzero(value).tolist() if np.ndim(value) else int(value)


def _short(value: Any) -> float | None:
    """A number of four significant digits; None for what is not finite."""
    value = float(value)
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _class_rows(evaluation: Evaluation, images: EvaluatedImages) -> list[dict[str, Any]]:
    matrix, classes = evaluation.confusion.to_numpy(), evaluation.classes
    if images.multi_label:
        matrix = matrix.reshape(-1, 2, 2)
    hits, counts, predicted = class_counts(matrix)
    taken_for = [None] * len(classes)
    if not images.multi_label:
        others = matrix * (1 - np.eye(len(classes), dtype=matrix.dtype))
        taken_for = [classes[row.argmax()] if row.any() else None for row in others]
    alarms = None
    if images.ood_threshold is not None and not images.multi_label:
        flagged = images.flagged[: images.n_known]
        alarms = np.bincount(images.targets[flagged], minlength=len(classes))
    return [
        {
            "name": name,
            "n": int(counts[i]),
            "learned": images.n_learned.get(name),
            "found": _rate(hits[i], counts[i]),
            "right": _rate(hits[i], predicted[i]),
            "taken_for": taken_for[i],
            "false_alarm": None if alarms is None else _rate(alarms[i], counts[i]),
        }
        for i, name in enumerate(classes)
    ]


def _rate(k: Any, n: Any) -> list[Any]:
    """[k, n, low, high], the bounds None of nothing."""
    low, high = wilson_interval(int(k), int(n))
    return [int(k), int(n), json_value(low), json_value(high)]


def _label_tables(evaluation: Evaluation) -> list[dict[str, Any]]:
    f1 = evaluation.per_class["f1"].to_numpy()
    order = np.argsort(np.where(np.isnan(f1), 2.0, f1), kind="stable")
    cells = evaluation.confusion.to_numpy()
    return [
        {
            "name": evaluation.classes[i],
            **dict(zip(("tn", "fp", "fn", "tp"), cells[i].tolist(), strict=True)),
            "f1": json_value(f1[i]),
        }
        for i in order.tolist()
    ]


def _ood(evaluation: Evaluation, images: EvaluatedImages) -> dict[str, Any] | None:
    if images.ood_scores is None:
        return None
    n, measures = images.n_known, evaluation.summary
    strange = images.flagged[n:]
    return {
        "threshold": None if images.ood_threshold is None else float(images.ood_threshold),
        "promised": evaluation.promised,
        "rate": float(images.flagged[:n].mean()) if n else None,
        "detected": float(strange.mean()) if len(strange) else None,
        "auroc": json_value(measures.get("auroc")),
        "missed": int((~strange).sum()),
        "n_strange": len(strange),
    }


def _bins(images: EvaluatedImages) -> dict[str, list[Any]]:
    n = images.n_known
    found = calibration_bins(images.probs[:n], images.targets, n_bins=N_BINS)
    return {
        "edges": [i / N_BINS for i in range(N_BINS + 1)],
        "n": [int(one) for one in found.n],
        "confidence": [json_value(one) for one in found.confidence],
        "accuracy": [json_value(one) for one in found.accuracy],
    }


def _fingerprint(images: EvaluatedImages) -> str:
    """SHA-256 of names, labels and files: the same images under the same labels have the same."""
    digest = hashlib.sha256()
    for place in range(images.n_known):
        about = (images.names[place], _label(images.targets[place]), images.sha256[place])
        digest.update(repr(about).encode())
    return digest.hexdigest()


def _measured(data: dict[str, Any], images: EvaluatedImages) -> list[list[str]]:
    """Label and text of everything that it takes to repeat the evaluation."""
    model, n_strange = data["model"], len(images) - images.n_known
    found = {
        "model": model["name"],
        "network": ", ".join(filter(None, (model["arch"], model["size"]))),
        "model digest": model["digest"],
        "versions": model.get("versions") or f"learnkit {model['learnkit']}",
        "images": f"{data['data']['n']}" + (f", {n_strange} unknown ones" if n_strange else ""),
        "pictures show": model.get("shown", ""),
        "folder": data["data"]["folder"],
        "images' fingerprint": data["data"]["fingerprint"],
        "learned images among them": "not known"
        if images.learned is None
        else str(int(np.sum(images.learned))),
        "intervals": f"by counts; else by {N_RESAMPLES:,} resamples within each class, seed 0",
        "unreadable": str(len(images.unreadable)),
        "right images not listed": str(data["rows_left_out"] or ""),
        "created": data["created"],
        "time taken": "" if images.seconds is None else duration(images.seconds),
        "command": data["command"],
    }
    return [[label, text] for label, text in found.items() if text]

"""The verdict of the evaluation page: sentences, and which pictures show what each one says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.errors import number_of
from learnkit.evaluation.measures import wilson_interval
from learnkit.report.document import interval_ends, share_text

if TYPE_CHECKING:
    from learnkit.evaluation.evaluate import Evaluation
    from learnkit.evaluation.measures import Inspection
    from learnkit.interpret.page.images import EvaluatedImages

_FEW = 30  # images of a class below which its figures mean little
_GAP = 0.1  # by which accuracy is above the mean over the classes where frequent classes hide rare
_NAMED = 5
Sentence = dict[str, Any]


def summary_sentences(
    evaluation: Evaluation,
    images: EvaluatedImages,
    inspection: Inspection | None,
    duplicates: Sequence[Sequence[int]] = (),
) -> list[Sentence]:
    """Sentences {"text", "warning", "show"}: how many are right, what is missed, what misleads.

    Args:
        evaluation: of the images.
        images: these.
        inspection: escapes and false rejects, where good classes are told.
        duplicates: groups of known images that are the same file.
    """
    n = images.n_known
    if not n:
        return [_say("No image could be judged.", warning=bool(images.unreadable))]
    said = [_right(evaluation, images, n)]
    said += [] if inspection is None else _inspected(inspection, n)
    said += _worst(evaluation)
    said += _unknown(images, to_a_person=inspection is None)
    said += _few(evaluation)
    said += _absent(evaluation, images)
    said += _hidden(evaluation)
    said += _seen_before(images, duplicates)
    said += _noted(evaluation, images)
    return said


def _say(text: str, show: str | None = None, *, warning: bool = False) -> Sentence:
    return {"text": text, "warning": warning, "show": show}


def _likely(k: int, n: int, bounds: Iterable[float] | None = None) -> str:
    """A share with its interval, in words: `bounds`, or Wilson's.

    >>> _likely(231, 256)
    '90.2 %, with 95 % confidence between 85.9 % and 93.3 %'
    """
    low, high = interval_ends(*(wilson_interval(k, n) if bounds is None else bounds), percent=True)
    return f"{share_text(k / n)}, with 95 % confidence between {low} and {high}"


def _right(evaluation: Evaluation, images: EvaluatedImages, n: int) -> Sentence:
    k = int(images.right.sum())
    likely = _likely(k, n, evaluation.all_measures[["accuracy_low", "accuracy_high"]])
    if k == n:
        return _say(f"No mistakes among {number_of(n, 'image')} ({likely}).")
    what = "have exactly the right labels" if images.multi_label else "right"
    return _say(f"{k} of {n} {what} ({likely}).", "set=errors")


def _inspected(found: Inspection, n: int) -> list[Sentence]:
    said = []
    if found.n_defects:
        k = found.n_escapes
        text = f"{k} of {found.n_defects} defects passed as good ({_likely(k, found.n_defects)})."
        said.append(_say(text, "set=escapes" if k else None, warning=k > 0))
    else:
        said.append(_say("No defect among the images: escapes are not tested.", warning=True))
    if found.n_good:
        k = found.n_rejects
        text = f"{k} of {found.n_good} good parts rejected ({_likely(k, found.n_good)})."
        said.append(_say(text, "set=rejects" if k else None))
    else:
        said.append(_say("No good part among the images: rejects are not tested.", warning=True))
    if found.n_flagged is not None:
        k = found.n_flagged
        show = "set=flagged" if k else None
        said.append(_say(f"{k} of {n} go to a person ({share_text(k / n)}).", show))
    return said


def _worst(evaluation: Evaluation) -> list[Sentence]:
    """The class of the lowest recall, of equals the larger; nothing if all of it is found."""
    rows = evaluation.per_class
    known = rows[rows["n"] > 0].sort_values("n", ascending=False, kind="stable")
    if len(known) < 2 or known["recall"].min() == 1:
        return []
    place = rows.index.get_indexer_for([known["recall"].idxmin()])[0]
    n = int(rows["n"].iloc[place])
    k = round(float(rows["recall"].iloc[place]) * n)
    kind = "label" if evaluation.multi_label else "class"
    return [_say(f"Worst {kind}: {rows.index[place]}, {k} of {n} found.", f"class={place}")]


def _unknown(images: EvaluatedImages, *, to_a_person: bool) -> list[Sentence]:
    said, n, n_strange = [], images.n_known, len(images) - images.n_known
    if images.ood_scores is None:
        text = "This model does not tell images that it does not know: it always gives an answer."
        return [_say(text, warning=True)]
    if images.ood_threshold is None:
        return [_say("This model has no threshold: it flags nothing as unknown.", warning=True)]
    if not n_strange:
        text = "Not tested whether unknown images are noticed: add --ood FOLDER."
        said.append(_say(text, warning=True))
    else:
        k = int(images.flagged[n:].sum())
        text = f"Unknown images: {k} of {n_strange} noticed ({_likely(k, n_strange)})."
        show = "set=missed" if k < n_strange else None
        said.append(_say(text, show, warning=2 * k < n_strange))
    k = int(images.flagged[:n].sum())
    if to_a_person:
        text = f"{k} of {n} known images are taken for unknown ({share_text(k / n)})."
        said.append(_say(text, "set=flagged" if k else None))
    return said


def _few(evaluation: Evaluation) -> list[Sentence]:
    counts = evaluation.per_class["n"]
    few = [(name, int(n)) for name, n in counts.items() if 0 < n < _FEW]
    if not few:
        return []
    if len(few) == 1:
        ((name, n),) = few
        place = counts.index.get_indexer_for([name])[0]
        images = number_of(n, "image")
        text = f"{name} has {images} here: its figures mean little. Give {_FEW} or more."
        return [_say(text, f"class={place}", warning=True)]
    few.sort(key=lambda pair: pair[1])
    named = ", ".join(f"{name} {n}" for name, n in few[:_NAMED])
    more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
    text = (
        f"{len(few)} classes have fewer than {_FEW} images here ({named}{more}): their figures "
        f"mean little. Give {_FEW} or more of each."
    )
    return [_say(text, warning=True)]


def _absent(evaluation: Evaluation, images: EvaluatedImages) -> list[Sentence]:
    counts = evaluation.per_class["n"]
    names = list(counts.index[(counts == 0) & ~images.gone(counts.index)])
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more classes" if len(names) > _NAMED else ""
    text = f"No images of {', '.join(names[:_NAMED])}{more} here: nothing is known of them."
    return [_say(text, warning=True)]


def _hidden(evaluation: Evaluation) -> list[Sentence]:
    """What accuracy hides: one that is far above the mean over the classes."""
    measures = evaluation.all_measures
    balanced, accuracy = measures.get("balanced_accuracy"), measures["accuracy"]
    # so written that NaN says nothing
    if balanced is None or not accuracy - balanced > _GAP:
        return []
    text = (
        f"The frequent class hides the rare ones: averaged over the classes {share_text(balanced)} "
        f"are right, not {share_text(accuracy)}."
    )
    return [_say(text, warning=True)]


def _noted(evaluation: Evaluation, images: EvaluatedImages) -> list[Sentence]:
    """The notes of the evaluation, less that on learned images, which have a set to show."""
    shown = 0 if images.learned is None else int(np.sum(images.learned))
    said = f"{shown} of {images.n_known} images were learned" if shown else None
    notes = [note for note in evaluation.notes if said is None or said not in note]
    return [_say(f"{note[:1].upper()}{note[1:]}.", warning=True) for note in notes]


def _seen_before(images: EvaluatedImages, duplicates: Sequence[Sequence[int]]) -> list[Sentence]:
    said, n = [], images.n_known
    k = 0 if images.learned is None else int(np.sum(images.learned))
    if k:
        text = f"The model has learned {k} of these {n} images: the figures are optimistic."
        said.append(_say(text, "set=learned", warning=True))
    if duplicates:
        k = sum(len(group) - 1 for group in duplicates)
        have = "image is a copy" if k == 1 else "images are copies"
        text = f"{k} {have} of another one here: each counts."
        said.append(_say(text, "set=duplicates", warning=True))
    return said

"""Knowledge of a head, learned again from the features of a converted network where it can be."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from learnkit.backends.session import Session
from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.embedding import embed, to_grid
from learnkit.continual.fingerprints import feature_hashes, group_codes
from learnkit.continual.knowledge import History, Knowledge
from learnkit.continual.memory import FeatureMemory
from learnkit.continual.ood_detector import OodDetector
from learnkit.data.labelled_images import Labelled
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import number_of
from learnkit.inference.batch import BATCH
from learnkit.inference.features import feature_rows
from learnkit.uncertainty.scoring import GRID, unit_rows

CARRIED = "carried over from float32"
UNMOVED = 0.5  # steps of the grid on which features of length 1 are kept
N_COMPARED = 64
Head = TypeVar("Head", bound=ContinualClassifier)


def learned_again(
    head: Head,
    was: Session,
    network: Session,
    recipe: Preprocessing,
    learned: Labelled | None,
    *,
    progress: bool,
) -> tuple[Head, str]:
    """(head, what became of it) for a converted `network`; the given head is left as it is.

    If `learned` are the images `head` has learned, all of them, the new head is to the bit what
    learning them with the converted network gives. If not, it keeps its statistics as they are. So
    it does if the features are the same but for rounding, as of float32 in another backend.

    Args:
        head: what knows classes in float32.
        was: the network in float32.
        network: converted; gives other features.
        recipe: reads images for both.
        learned: images, labels and, set apart, those that decide threshold and temperature.
        progress: show a progress bar.
    """
    kept = copy.deepcopy(head).eval()
    if problem := _problem(head, learned):
        return kept, f"{CARRIED}: {problem}"
    assert learned is not None
    moved = _moved((was, network), recipe, learned, progress)
    # the bytes of features decide which images are remembered: rounding alone would choose others
    if moved < UNMOVED:
        return kept, (
            f"kept as it is: features moved by {moved:.1g} steps of the grid they are kept on, "
            f"below {UNMOVED:g} (on {min(len(learned.items), N_COMPARED)} of its images)"
        )
    new = type(head)(**head.settings.to_dict())
    features = _features(network, recipe, learned, progress)
    seen: Any = (was, recipe, head.settings.root, progress)
    validation, codes = None, _group_codes(head.statistics.memory, learned, *seen)
    if learned.validation is not None and len(head.knowledge.validation):
        validation = (
            _features(network, recipe, learned.validation, progress),
            learned.validation.labels,
            _group_codes(head.knowledge.validation, learned.validation, *seen),
        )
    # in the order they had, under the names they have: classes keep their numbers
    new.history = History((Knowledge.empty(head.settings, head.classes),))
    given = {"validation": validation, "origin": network.origin(BATCH)}
    new.extend(features, learned.labels, groups=codes, **given)
    if new.n_images != head.n_images:
        return kept, (
            f"{CARRIED}: images that are blank, or there twice, are others for the converted "
            "network"
        )
    _settle(new, head, [*(codes or ()), *((validation and validation[2]) or ())])
    what = number_of(len(learned.labels), "image") + (
        f" and {len(validation[1])} of validation" if validation else ""
    )
    n_learned, n_kept = int(head.statistics.counts.sum()), head.statistics.memory.n_copies
    lost = "; groups only of images it remembered" if codes and n_kept < n_learned else ""
    return new.eval(), (
        f"learned again from {what}: class statistics, threshold and temperature{lost}"
    )


def _problem(head: ContinualClassifier, learned: Labelled | None) -> str:
    """Why `learned` are not the images `head` has learned; empty if they are."""
    if learned is None:
        return "the images it was learned from are not at hand"
    counts, wanted = Counter(learned.labels), {n: k for n, k in head.n_images.items() if k}
    if counts.keys() != wanted.keys() or any(counts[name] < k for name, k in wanted.items()):
        return (
            f"it has learned {number_of(sum(wanted.values()), 'image')} of "
            f"{number_of(len(wanted), 'class')}, and those at "
            f"hand are {sum(counts.values())} of {len(counts)}"
        )
    # a few too many can be blank ones, which are not learned
    if sum(counts.values()) - sum(wanted.values()) > 0.1 * sum(wanted.values()):
        return "more images are at hand than it has learned"
    if len(head.knowledge.validation) and learned.validation is None:
        return "the validation images that decide its threshold are not at hand"
    return ""


def _moved(
    networks: tuple[Session, Session], recipe: Preprocessing, learned: Labelled, progress: bool
) -> float:
    """How far a number of the features of length 1 moves at most, in steps of the grid."""
    n = len(learned.items)
    places = range(n) if n <= N_COMPARED else [i * n // N_COMPARED for i in range(N_COMPARED)]
    some = Labelled([learned.items[i] for i in places], [])
    old, new = (embed(_features(one, recipe, some, progress), root=False) for one in networks)
    return float((new - old).abs().max() * GRID) if n else 0.0


def _features(network: Session, recipe: Preprocessing, images: Labelled, progress: bool) -> Tensor:
    return feature_rows(network, recipe, images.items, bs=BATCH, n_workers=2, progress=progress)


def _group_codes(
    memory: FeatureMemory,
    images: Labelled,
    was: Session,
    recipe: Preprocessing,
    root: bool,
    progress: bool,
) -> list[int | None] | None:
    """Codes of the groups of images (N,), as far as `memory` has them; None without groups."""
    cells = list(zip(memory.class_names, memory.cells, strict=True))
    told = {(n, one): g for n, c in cells for one, g in zip(c.hashes, c.given, strict=False) if g}
    if not told:
        return None
    # by float32: the hashes of what is remembered are of its features
    embedded = unit_rows(_features(was, recipe, images, progress), root=root)
    pairs = zip(images.labels, feature_hashes(to_grid(embedded).numpy()), strict=True)
    return [told.get(pair) for pair in pairs]


def _settle(new: ContinualClassifier, head: ContinualClassifier, codes: list[int | None]) -> None:
    """Give `new` what `head` has that images do not decide; nothing is left to undo.

    Groups get the `codes` they had, under which more of them will come.
    """
    if head.knowledge.manual_threshold is not None:
        new.set_threshold(head.knowledge.manual_threshold)
    if isinstance(new, OodDetector):
        new.head_nonconformity, new.head_labels = head.head_nonconformity, head.head_labels
    known = [code for code in codes if code is not None]
    was = dict(zip(group_codes(known, len(known)).tolist(), known, strict=True))

    def with_former_codes(memory: FeatureMemory) -> FeatureMemory:
        return memory.with_given([was.get(one, one) for one in memory.given().tolist()])

    memory, validation = map(with_former_codes, (new.statistics.memory, new.knowledge.validation))
    named = {"former_names": head.statistics.former_names, "memory": memory}
    statistics = replace(new.statistics, **named)
    knowledge = replace(new.knowledge, statistics=statistics, validation=validation)
    # its former state is the empty one it began from, and none to go back to
    new.history = History((knowledge,), audit=head.audit)

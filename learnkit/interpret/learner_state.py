"""State of a learner, apart from its network, and what a pass over it reads off that state.

One unchanging value, replaced as a whole: what a verb changes together takes effect together, and a
shallow copy of a learner goes its own way.

In the continual state names, numbers and scores come from the head. Loaders number the classes as
they did in training; the head numbers those it knows now, under the names they have now, so that a
number of a loader is translated by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learnkit.continual.classifier import ContinualClassifier, continual_head
from learnkit.data.labels import ids_by_name
from learnkit.errors import InterpretationError, LearnkitError, number_of
from learnkit.interpret.normalization import network_classes, network_normalization
from learnkit.report.document import visible

if TYPE_CHECKING:
    from learnkit.continual.ood_detector import OodDetector


@dataclass(frozen=True, eq=False)
class ContinualRecord:
    """What only the learner can know of its continual state.

    Attributes:
        trained_head: the head before, None where it is not known.
        former_names: what a class was called -> what it is called now.
        learned: files learned from.
        validated: files that decide threshold and temperature.
        earlier: the record before the last change.
        snapshots: the record by the name that the head's knowledge was kept under.
        class_ids: ids of the head's first classes, as of a `Model`.
        digest: of the knowledge that all this is noted of; "" where nobody knows.
    """

    trained_head: nn.Module | None = None
    former_names: Mapping[str, str] = field(default_factory=dict)
    learned: frozenset[str] = frozenset()
    validated: frozenset[str] = frozenset()
    earlier: ContinualRecord | None = None
    snapshots: Mapping[str, ContinualRecord] = field(default_factory=dict)
    class_ids: tuple[int, ...] = ()
    digest: str = ""


@dataclass(frozen=True, eq=False)
class LearnerState:
    """All that learnkit adds to a fastai Learner, as `learn.state`.

    Attributes:
        record: of the continual state; None outside it.
        ood_detector: what `fit_ood` made for the trained head, None without.
        metadata: what came along in the bundle it was made from, its model card included.
        probes: images uint8 (n, C, H, W) of that bundle; they go on with the next one.
        class_ids: ids that classes have from elsewhere than the loaders' dataset, by name.
        fits_to_come: fits that the running verb has still to begin.
        seen: (folder, what changes are known by) of the bundles it was made from and exported to.
    """

    record: ContinualRecord | None = None
    ood_detector: OodDetector | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    probes: Tensor | None = None
    class_ids: Mapping[str, int] = field(default_factory=dict)
    fits_to_come: int = 0
    seen: tuple[tuple[Path, str], ...] = ()


def learner_state(learn: Any) -> LearnerState:
    """The state of a learner; an empty one for a Learner of fastai's own."""
    # Not by getattr alone: fastai's Learner looks up in its model what it has not itself.
    state = getattr(learn, "state", None)
    return state if isinstance(state, LearnerState) else LearnerState()


def detector_of(learn: Any) -> ContinualClassifier | None:
    """The out-of-distribution detector of this learner: its continual head, else `fit_ood`'s."""
    head = continual_head(learn.model)
    return learner_state(learn).ood_detector if head is None else head


def ood_limit(learn: Any) -> float | None:
    """The OOD score above which the learner flags an image; None if it flags none."""
    detector = None if learn is None else detector_of(learn)
    return None if detector is None else detector.threshold.value


def class_numbers(
    learn: Any, classes: Sequence[str], *, in_training: bool = False
) -> dict[str, int]:
    """The number of every class name, and of every name a class used to have.

    A class merged into another keeps its name without images; its number is then the other's.

    Args:
        learn: the learner.
        classes: what its outputs are called.
        in_training: a name stands for what it stood for in training, even if another class has it
            now.
    """
    numbers = {name: i for i, name in enumerate(classes)}
    head, record = continual_head(learn.model), learner_state(learn).record
    if head is None or record is None:
        return numbers
    live = {name for name, n in head.n_images.items() if n and not in_training}
    former = {old: now for old, now in record.former_names.items() if old not in live}
    return numbers | {old: numbers[now] for old, now in former.items() if now in numbers}


def class_names(learn: Any) -> list[str] | None:
    """What the learner's outputs are called, None if nobody says.

    In the continual state the names of the classes it has learned, else those its head was trained
    with, else those of its loaders.
    """
    head = continual_head(learn.model)
    if head is not None:
        return list(head.classes)
    names = network_classes(learn.model)
    return names_of(learn.dls) if names is None else list(names)


def first_class_ids(learn: Any) -> tuple[int, ...]:
    """Ids of the learner's first outputs, as of a `Model`; empty where they are their places."""
    state = learner_state(learn)
    if continual_head(learn.model) is not None:
        return () if state.record is None else state.record.class_ids
    return ids_among(class_names(learn) or (), learn, learn.dls)


def ids_among(names: Sequence[str], learn: Any, data: Any) -> tuple[int, ...]:
    """Ids of classes: the learner's own, else those of `data`, else above the largest.

    Args:
        names: of the classes.
        learn: the learner; its own ids are those that it was given, and of its loaders' dataset.
        data: an ImageDataset, or loaders over one; anything else has no ids.

    Returns:
        One id for each, or none where these are the places of the classes.
    """
    known: dict[str, int] = {}
    for found in (learner_state(learn).class_ids, _ids_in(learn.dls), _ids_in(data)):
        taken = {*known.values()}
        known |= {n: i for n, i in found.items() if n not in known and i not in taken}
    ids = ids_by_name(names, known)
    return () if ids == tuple(range(len(ids))) else ids


def _ids_in(data: Any) -> dict[str, int]:
    """Ids of the classes of a dataset, by name; none where they are their places."""
    dataset = getattr(data, "image_dataset", data)
    ids = getattr(dataset, "class_ids", None)
    if not isinstance(ids, list) or ids == list(range(len(ids))):
        return {}
    return dict(zip(dataset.classes, ids, strict=True))


def names_of(loaders: Any) -> list[str] | None:
    """The class names of a loader, or of several; None if there are none.

    fastai's datasets have a `vocab`; those of torchvision have `classes`, also under a `Subset`.
    """
    vocab = getattr(loaders, "vocab", None)
    if vocab is None:
        first = next(iter(getattr(loaders, "loaders", ())), loaders)
        vocab = _classes_of(getattr(first, "dataset", None))
    if vocab is None:
        return None
    if len(vocab) and not isinstance(vocab[-1], str) and hasattr(vocab[-1], "__iter__"):
        vocab = vocab[-1]  # one vocabulary per block: the labels' is the last
    return [str(name) for name in vocab]


def _classes_of(dataset: Any) -> list[str] | None:
    """What a dataset that is not fastai's, or the one it is a part of, calls its classes."""
    if dataset is None or hasattr(dataset, "tls"):
        return None
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes):
        return list(classes)
    return _classes_of(getattr(dataset, "dataset", None))


@dataclass(frozen=True, eq=False)
class Renumbering:
    """Translation of the class numbers of a loader into those of a learner's outputs.

    Attributes:
        numbers: the output of every class of the loader, int64; -1 where the learner has none.
        names: what the loader calls its classes.
        n_classes: outputs there are.
        remedy: what to do about classes the learner has no output for.
    """

    numbers: Tensor
    names: Sequence[str]
    n_classes: int
    remedy: str

    def __call__(self, targets: Tensor) -> Tensor:
        """Class numbers (N,), or flags (N, C) of several labels per image, of the outputs.

        Targets of other shapes, such as pixels or measures, come back as they are.

        Raises:
            InterpretationError: one is of a class the learner does not know.
        """
        numbers = self.numbers.to(targets.device)
        if targets.ndim == 1 and not targets.is_floating_point():
            new = numbers[targets.long()]
            self._check_known(targets[new < 0].unique().tolist())
            return new
        if targets.ndim != 2 or targets.shape[1] != len(self.names):
            return targets
        known = numbers >= 0
        shown = (targets != 0).any(0) & ~known
        self._check_known(torch.nonzero(shown).flatten().tolist())
        new = targets.new_zeros(len(targets), self.n_classes)
        new[:, numbers[known]] = targets[:, known]
        return new

    def _check_known(self, unknown: Sequence[int]) -> None:
        if unknown:
            names = sorted(self.names[number] for number in unknown)
            raise InterpretationError(
                f"The samples have labels the learner does not know: {', '.join(names[:5])}; "
                f"{self.remedy}, or leave those samples out"
            )


def renumbering(learn: Any, dl: Any) -> Renumbering | None:
    """The translation of the class numbers of `dl`; None where they are those of the outputs.

    Numbers of a loader without class names are taken for those of the outputs.
    """
    names, classes = names_of(dl), class_names(learn)
    if names is None or classes is None:
        return None
    continual = continual_head(learn.model) is not None
    numbers = class_numbers(learn, classes, in_training=_is_own(learn, dl))
    found = [numbers.get(name, -1) for name in names]
    if found == list(range(len(classes))):
        return None
    remedy = "extend it with images of them" if continual else "train on images of them, too"
    return Renumbering(torch.tensor(found, dtype=torch.int64), names, len(classes), remedy)


def _is_own(learn: Any, dl: Any) -> bool:
    """Whether `dl` runs over images of the learner's loaders, as their copies by `new` do."""
    dataset = getattr(dl, "dataset", None)
    return dataset is not None and any(
        dataset is getattr(own, "dataset", None) for own in learn.dls.loaders
    )


def loss_of(learn: Any) -> Any:
    """The loss the outputs were made for; in the continual state plain cross-entropy."""
    return learn.loss_func if continual_head(learn.model) is None else nn.CrossEntropyLoss()


_NAMES_SHOWN, _LONGEST = 10, 40


def learner_facts(learn: Any) -> dict[str, str]:
    """What a learner is and knows, by name, without a pass over data: network, classes, state.

    Also of a learner that lacks the usual parts.
    """
    parts = vars(learn)
    model, dls = parts.get("model"), parts.get("dls")
    body = model[0] if isinstance(model, nn.Sequential) and len(model) else model
    arch = getattr(body, "arch", None)
    kind = "no network" if model is None else type(model).__name__
    facts = {"network": arch if isinstance(arch, str) else kind}
    if isinstance(model, nn.Module):
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        moves = sum(n for n, wanted in sizes if wanted)
        facts["parameters"] = f"{sum(n for n, _ in sizes):,}, {moves:,} of them not frozen"
        head = continual_head(model)
        names = network_classes(model)
        if head is not None:  # one forgotten or merged away keeps its place alone
            names = [name for name, n in head.n_images.items() if n]
        if (names := names_of(dls) if names is None else names) is not None:
            facts["classes"] = names_text(names)
    if dls is not None:
        facts["images"] = loaders_text(dls)
    if model is not None and (pixels := network_normalization(model)) is not None:
        facts["pixels"] = str(pixels)
    return facts | _state_texts(learn, model)


def names_text(names: Sequence[str]) -> str:
    """How many classes there are, and what the first are called."""
    if not len(names):
        return "no class yet"
    shown = [visible(str(name), "?") for name in names[:_NAMES_SHOWN]]
    shown = [f"{name[:_LONGEST]}..." if len(name) > _LONGEST else name for name in shown]
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    kind = "class" if len(names) == 1 else "classes"
    return f"{len(names)} {kind}: {', '.join(shown)}{more}"


def loaders_text(dls: Any) -> str:
    """How many images loaders have, of which size, and in which batches; none is read."""
    loaders = list(getattr(dls, "loaders", ()))
    counts = [getattr(dl, "n", None) for dl in loaders]  # a loader need not tell
    kinds = ("train", "valid", "test")
    parts = [f"{n} {kind}" for kind, n in zip(kinds, counts, strict=False) if isinstance(n, int)]
    recipe = getattr(dls, "preprocessing", None)
    if recipe is not None:
        parts.append(" x ".join(map(str, (recipe.channels, *recipe.size))))
    size = getattr(loaders[0], "bs", None) if loaders else None
    return ", ".join([*parts, *([f"batches of {size}"] if size else [])])


def _state_texts(learn: Any, model: Any) -> dict[str, str]:
    """The state in a phrase, and the thresholds in force."""
    history = vars(learn).get("training_history")
    n_epochs = 0 if history is None else len(history.frame)
    head = None if model is None else continual_head(model)
    detector = learner_state(learn).ood_detector if head is None else head
    if head is not None:
        n_images = sum(head.n_images.values())
        texts = {"state": f"continual, {number_of(n_images, 'image')} learned"}
    else:
        trained = f"trained for {number_of(n_epochs, 'epoch')}"
        texts = {"state": trained if n_epochs else "not trained here"}
        texts["state"] += ", detects OOD" if detector is not None else ""
    if detector is None:
        return texts
    try:
        threshold = detector.threshold
        texts["OOD threshold"] = f"{threshold.value:.4g}: {threshold.statement}"
        texts["temperature"] = f"{detector.temperature:.4g}"
    except LearnkitError:  # it knows no class yet
        pass
    return texts

"""Outputs of one pass over the data: the only place where interpretation runs a model.

Tables, plots and measures are functions of `Outputs`. The pass runs no callback (MixUp and its kin
concern training) and leaves the learner, its loaders, its loss and all random states as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learnkit.data.labels import ids_of_classes
from learnkit.errors import InterpretationError, number_of
from learnkit.evaluation.evaluate import Evaluation, evaluate
from learnkit.evaluation.inputs import LabelThreshold, check_probs, labels_above
from learnkit.interpret.learner_state import (
    class_names,
    detector_of,
    first_class_ids,
    loss_of,
    renumbering,
)
from learnkit.interpret.losses import activation_of, item_losses, loss_threshold
from learnkit.interpret.normalization import renormalization
from learnkit.interpret.source import Source, detached, no_samples, split_batch
from learnkit.models.eval_mode import evaluating, randomness_kept
from learnkit.report.progress import watched

_ONE_ANSWER = "interpretation of classifiers needs logits (N, C), one row per image"
_NO_MASKS = "Segmentation, with one answer per pixel, is not interpreted here"


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a classifier said about N samples, as plain tensors on the CPU, in dataset order.

    Attributes:
        logits: the network's outputs, float32 (N, C).
        probs: their probabilities, float32 (N, C).
        targets: class numbers int64 (N,), or zeros and ones float32 (N, C) if `multi_label`; None
            for samples without labels.
        losses: float32 (N,); None for samples without labels.
        features: pooled feature maps of the body, float32 (N, D), if asked for.
        ood_scores: float64 (N,), higher = further out, if the model gives any; as predictors have
            them, so that one above the threshold here is above it there.
        items: the files, if known.
        classes: C names.
        multi_label: whether a sample may have several labels.
        threshold: a label is predicted above this probability, or these, one per class (multi-label
            only).
        class_ids: the ids of the classes, where they are not simply their numbers.
    """

    logits: Tensor
    probs: Tensor
    targets: Tensor | None
    losses: Tensor | None
    features: Tensor | None = None
    ood_scores: Tensor | None = None
    items: Sequence[Path] | None = None
    classes: Sequence[str] = ()
    multi_label: bool = False
    threshold: LabelThreshold = 0.5
    class_ids: tuple[int, ...] | None = None

    def __post_init__(self):
        check_answers(self.probs, self.targets, self.classes, multi_label=self.multi_label)
        for name in ("logits", "targets", "losses", "features", "ood_scores", "items"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.probs):
                raise InterpretationError(
                    f"`{name}` has {number_of(len(value), 'row')}, `probs` has {len(self.probs)}; "
                    "give one row"
                    " of each per sample, in the same order"
                )

    @classmethod
    def from_probs(
        cls,
        probs: Any,
        targets: Any,
        losses: Any = None,
        classes: Sequence[str] | None = None,
        *,
        threshold: LabelThreshold = 0.5,
    ) -> Outputs:
        """Outputs of which only probabilities (N, C), truth and losses are known.

        Two-dimensional targets mean several labels per sample. The logits are those the
        probabilities would come from.

        Raises:
            EvaluationError: `probs` are no probabilities.
            InterpretationError: one row per pixel instead of one per sample, or lengths differ.
        """
        probs, targets = (detached(torch.as_tensor(t)).cpu() for t in (probs, targets))
        flags = targets.ndim == 2 and probs.ndim == 2
        probs = probs.float()
        check_answers(probs, targets, classes or (), multi_label=flags)
        check_probs(probs, multi_label=flags)
        tiny = torch.finfo(torch.float32).tiny
        return cls(
            # to float32 1 - 1e-8 is 1, of which the logit is infinite
            logits=probs.logit(eps=1e-7) if flags else probs.clamp_min(tiny).log(),
            probs=probs,
            targets=targets.float() if flags else targets.long(),
            losses=None if losses is None else detached(torch.as_tensor(losses)).float().cpu(),
            classes=tuple(classes or map(str, range(probs.shape[1]))),
            multi_label=flags,
            threshold=threshold,
        )

    def __len__(self) -> int:
        return len(self.probs)

    def __repr__(self) -> str:
        given = [f.name for f in fields(self) if isinstance(getattr(self, f.name), Tensor)]
        return f"Outputs(n={len(self)}, classes={len(self.classes)}, {', '.join(given)})"

    @cached_property
    def pred_labels(self) -> Tensor:
        """Predicted class numbers int64 (N,), or flags bool (N, C) if `multi_label`."""
        if self.multi_label:
            return torch.from_numpy(labels_above(self.probs, self.threshold))
        return self.probs.argmax(1)

    @cached_property
    def correct(self) -> Tensor:
        """Whether each prediction is right, bool (N,); several labels must all be right."""
        same = self.pred_labels == self.require_targets()
        return same.all(1) if self.multi_label else same

    def require_targets(self) -> Tensor:
        """The targets; an InterpretationError where the samples have no labels."""
        if self.targets is None:
            raise InterpretationError(
                "The samples have no labels, so no prediction is right or wrong; pass a loader with"
                " labels, for example `learn.dls.test_dl(items, with_labels=True)`"
            )
        return self.targets

    def probability_of(self, labels: Tensor) -> Tensor:
        """The probability of the given answers, float32 (N,).

        Of class numbers (N,) simply theirs; of flags (N, C) that of the whole set of labels, the
        product over the classes.
        """
        if not self.multi_label:
            return self.probs.gather(1, labels[:, None])[:, 0]
        return torch.where(labels.bool(), self.probs, 1 - self.probs).prod(1)

    def with_probs(self, probs: Tensor) -> Outputs:
        """The same samples with other probabilities (N, C), and the losses that follow from them.

        The loss is minus the logarithm of the true answer's probability; where a sample may have
        several labels its mean over the classes.
        """
        probs = detached(probs).cpu()
        tiny = torch.finfo(torch.float32).tiny
        logits = probs.logit(eps=1e-7) if self.multi_label else probs.clamp_min(tiny).log()
        new = replace(self, probs=probs, logits=logits, losses=None, features=None)
        if self.targets is None:
            return new
        losses = -new.probability_of(self.targets).clamp_min(tiny).log()
        return replace(new, losses=losses / (probs.shape[1] if self.multi_label else 1))

    def evaluate(self, **wanted: Any) -> Evaluation:
        """The measures of these outputs: all, or those wanted by `measures` and `good`."""
        options = {"multi_label": self.multi_label, "threshold": self.threshold, **wanted}
        targets, ids = self.require_targets(), self.class_ids
        return evaluate(self.probs, targets, self.classes, class_ids=ids, **options)


def collect_outputs(
    learn: Any,
    dl: Any = None,
    *,
    ds_idx: int = 1,
    data: Any = None,
    with_features: bool = False,
    progress: bool | None = None,
) -> Outputs:
    """Run the learner's model once over the data, in dataset order, without augmentation.

    Args:
        learn: a fastai Learner of a classifier.
        dl: a loader; one that shuffles is read in dataset order all the same.
        ds_idx: which of the learner's loaders, if neither `dl` nor `data` is given; 0 is train.
        data: an ImageDataset whose labels the learner knows.
        with_features: also keep the body's feature maps, averaged over height and width; needs a
            model `nn.Sequential(body, head)`. They are kept where OOD images are detected.
        progress: show a bar; None does so if the learner shows bars.

    Raises:
        InterpretationError: the model gives no class logits (a segmentation or regression model),
            the loss's activation gives no probabilities, or there are no samples.
    """
    source = Source.of(learn, dl, ds_idx=ds_idx, data=data)
    return collect_from(learn, source, with_features=with_features, progress=progress)


def collect_from(
    learn: Any, source: Source, *, with_features: bool = False, progress: bool | None = None
) -> Outputs:
    """Run the learner's model once over a `Source`; see `collect_outputs`."""
    show = hasattr(learn, "progress") if progress is None else progress
    detector, numbers = detector_of(learn), renumbering(learn, source.dl)
    pixels = renormalization(learn, source.template)
    rows: list[dict[str, Tensor]] = []
    n_seen = 0
    with (
        randomness_kept(),
        evaluating(learn.model),
        torch.no_grad(),
        pooled_features(learn.model, with_features or detector is not None) as features,
    ):
        for batch in watched(source.batches(), None, show, "predict", "batches"):
            xb, target = split_batch(learn, batch)
            xb = xb if pixels is None else tuple(map(pixels, xb))
            if source.targets is not None:
                target = source.targets[n_seen : n_seen + len(xb[0])]
            elif target is not None and numbers is not None:
                target = numbers(detached(target))
            row = _answers(learn, xb, target)
            pooled = features.pop() if features else None
            if detector is not None:
                row["ood_scores"] = detector.ood_scores(pooled)
            if pooled is not None:
                row["features"] = pooled
            rows.append(row)
            n_seen += len(row["logits"])
    if not rows:
        raise InterpretationError(no_samples(learn))
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return _assembled(learn, source, joined)


def _answers(learn: Any, xb: Sequence[Tensor], target: Tensor | None) -> dict[str, Tensor]:
    """Return logits and, with labels, targets and losses of one batch, on the CPU."""
    from fastai.torch_core import to_device  # here: Outputs of a deployed model need no fastai

    device = next((p.device for p in learn.model.parameters()), torch.device("cpu"))
    logits = learn.model(*to_device(xb, device))
    check_class_logits(logits)
    row = {"logits": detached(logits)}
    if target is not None:
        target = detached(to_device(target, device))
        check_answers(row["logits"], target, (), multi_label=target.ndim == 2)
        losses = item_losses(loss_of(learn), row["logits"], target)
        row |= {"targets": target, "losses": losses}
    return {name: value.cpu() for name, value in row.items()}


def _assembled(learn: Any, source: Source, joined: dict[str, Tensor]) -> Outputs:
    """Return the whole pass as `Outputs`: activation applied, names and files attached."""
    logits, targets = joined["logits"].float(), joined.get("targets")
    flags = targets is not None and targets.ndim == 2
    probs = detached(activation_of(loss_of(learn), multi_label=flags)(logits))
    competing = bool(((finite_sums(probs) - 1).abs() < 1e-3).all())
    ids = first_class_ids(learn)
    multi_label = flags or (targets is None and not competing)
    if targets is not None:
        check_activation(probs, competing, flags=flags, loss=learn.loss_func)
    return Outputs(
        logits=logits,
        probs=probs,
        targets=targets if targets is None or flags else targets.long(),
        losses=joined.get("losses"),
        features=joined.get("features"),
        ood_scores=joined.get("ood_scores"),
        items=source.items,
        classes=class_names(learn) or [str(i) for i in range(logits.shape[1])],
        multi_label=multi_label,
        threshold=loss_threshold(learn.loss_func, logits.shape[1]) if multi_label else 0.5,
        class_ids=ids_of_classes(ids, logits.shape[1]) if ids else None,
    )


@contextmanager
def pooled_features(model: nn.Module, wanted: bool) -> Iterator[list[Tensor]]:
    """Yield a list that receives the pooled output of the body at each forward pass."""
    seen: list[Tensor] = []
    if not wanted:
        yield seen
        return
    if not isinstance(model, nn.Sequential) or len(model) < 2:
        raise InterpretationError(
            f"`with_features=True` needs a model nn.Sequential(body, head), this one is a"
            f" {type(model).__name__}"
        )

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        pooled = output.mean((2, 3)) if output.ndim == 4 else output.flatten(1)
        seen.append(detached(pooled).float().cpu())

    handle = model[0].register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def check_class_logits(logits: Any) -> None:
    """Raise InterpretationError unless a network's output is one row of logits per image."""
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        is_tensor = isinstance(logits, Tensor)
        found = f"shape {tuple(logits.shape)}" if is_tensor else f"type {type(logits).__name__}"
        raise InterpretationError(f"The network's outputs have {found}; {_ONE_ANSWER}. {_NO_MASKS}")


def check_answers(
    probs: Tensor, targets: Tensor | None, classes: Sequence[str], *, multi_label: bool
) -> None:
    """Raise InterpretationError unless probabilities, labels and class names fit together."""
    check_class_logits(probs)
    if classes and probs.shape[1] != len(classes):
        raise InterpretationError(
            f"The network has {number_of(probs.shape[1], 'output')} for "
            f"{number_of(len(classes), 'class')}; {_ONE_ANSWER}"
            " and one column per class"
        )
    if targets is None:
        return
    shape = probs.shape if multi_label else probs.shape[:1]
    if targets.shape != shape or (targets.is_floating_point() and not multi_label):
        raise InterpretationError(
            f"`targets` are {targets.dtype} of shape {tuple(targets.shape)} with {probs.shape[1]}"
            " classes; class numbers (N,) or, with a sigmoid loss, flags (N, C) are needed."
            " Regression and segmentation are not interpreted here"
        )


def check_activation(probs: Tensor, competing: bool, *, flags: bool, loss: Any) -> None:
    """Raise InterpretationError unless the loss's activation suits the kind of labels.

    Args:
        probs: what the activation made of the logits (N, C).
        competing: whether they sum to 1 for each sample, so that the classes compete.
        flags: whether the targets are flags (N, C) instead of class numbers (N,).
        loss: the learner's loss function, to be named.
    """
    if flags and competing and probs.shape[1] > 1:
        raise InterpretationError(
            "The targets are flags (N, C), but the loss makes the classes compete (softmax); train"
            " with a sigmoid loss such as BCEWithLogitsLossFlat, or with class numbers (N,)"
        )
    if not flags and not competing:
        raise InterpretationError(
            f"Probabilities of a sample sum to {finite_sums(probs)[0].item():.4g} instead of 1;"
            f" give the loss ({type(loss).__name__}) an `activation` method that turns the"
            " network's outputs into probabilities"
        )


def finite_sums(probs: Tensor) -> Tensor:
    """Sums (N,) over the classes; of rows that are not finite none, for they have no say."""
    return probs[probs.isfinite().all(1)].sum(1)

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.losses import (
    BaseLoss,
    BCELossFlat,
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    FocalLossFlat,
    LabelSmoothingCrossEntropy,
    LabelSmoothingCrossEntropyFlat,
)
from torch import nn

from learnkit.interpret.losses import activation_of, item_losses

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 1.0, 1.0], [0.0, 4.0, -2.0]])
TARGETS = torch.tensor([0, 2, 1, 0])
FLAGS = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
WEIGHTS = torch.tensor([0.2, 1.0, 3.0])


def mean_only(logits, targets):
    """A user's loss that knows nothing of reductions."""
    return F.cross_entropy(logits, targets)


class MeanWhateverIsAsked(nn.Module):
    """Has a `reduction` and ignores it."""

    reduction = "mean"

    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets)


class ReadOnlyReduction:
    reduction = property(lambda self: "mean")

    def __call__(self, logits, targets):
        return F.cross_entropy(logits, targets)


SINGLE_LABEL = {
    "CrossEntropyLossFlat": CrossEntropyLossFlat(),
    "CrossEntropyLoss": nn.CrossEntropyLoss(),
    "smoothing": LabelSmoothingCrossEntropy(),
    "smoothing-flat": LabelSmoothingCrossEntropyFlat(),
    "focal": FocalLossFlat(),
    "function": F.cross_entropy,
    "partial": partial(F.cross_entropy, label_smoothing=0.1),
    "no-reduction": mean_only,
    "ignored-reduction": MeanWhateverIsAsked(),
    "read-only-reduction": ReadOnlyReduction(),
}


@pytest.mark.parametrize("loss_func", SINGLE_LABEL.values(), ids=SINGLE_LABEL)
def test_item_losses_are_the_losses_of_single_samples(loss_func):
    expected = [float(loss_func(LOGITS[i : i + 1], TARGETS[i : i + 1])) for i in range(4)]
    losses = item_losses(loss_func, LOGITS, TARGETS)
    assert type(losses) is torch.Tensor
    torch.testing.assert_close(losses, torch.tensor(expected))


@pytest.mark.parametrize("loss_cls", [CrossEntropyLossFlat, nn.CrossEntropyLoss])
def test_class_weights_stay_in(loss_cls):
    expected = WEIGHTS[TARGETS] * F.cross_entropy(LOGITS, TARGETS, reduction="none")
    torch.testing.assert_close(item_losses(loss_cls(weight=WEIGHTS), LOGITS, TARGETS), expected)


@pytest.mark.parametrize("loss_func", [BCEWithLogitsLossFlat(), nn.BCEWithLogitsLoss()])
def test_losses_per_label_are_averaged_over_the_labels(loss_func):
    bce = F.binary_cross_entropy_with_logits(LOGITS, FLAGS.float(), reduction="none")
    losses = item_losses(loss_func, LOGITS, FLAGS.float())
    torch.testing.assert_close(losses, bce.mean(1))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_reduction_is_put_back_even_after_an_exception(reduction):
    loss_func = CrossEntropyLossFlat(reduction=reduction)
    item_losses(loss_func, LOGITS, TARGETS)
    assert loss_func.reduction == reduction
    with pytest.raises((IndexError, RuntimeError)):
        item_losses(loss_func, LOGITS, TARGETS + 7)
    assert loss_func.reduction == reduction


@pytest.mark.parametrize(
    ("loss_func", "multi_label", "expected"),
    [
        (CrossEntropyLossFlat(), False, LOGITS.softmax(1)),
        (BaseLoss(nn.CrossEntropyLoss), False, LOGITS.softmax(1)),
        (nn.CrossEntropyLoss(), False, LOGITS.softmax(1)),
        (F.cross_entropy, False, LOGITS.softmax(1)),
        (mean_only, False, LOGITS.softmax(1)),
        (mean_only, True, LOGITS.sigmoid()),
        (BCEWithLogitsLossFlat(), True, LOGITS.sigmoid()),
        (nn.BCEWithLogitsLoss(), True, LOGITS.sigmoid()),
        (partial(F.binary_cross_entropy_with_logits), True, LOGITS.sigmoid()),
        (BCELossFlat(), True, LOGITS),
        (nn.NLLLoss(), False, LOGITS.exp()),
    ],
)
def test_the_activation_is_what_the_loss_implies(loss_func, multi_label, expected):
    found = activation_of(loss_func, multi_label=multi_label)(LOGITS)
    torch.testing.assert_close(torch.as_tensor(found), expected)


def test_a_loss_s_own_activation_wins():
    loss_func = nn.CrossEntropyLoss()
    loss_func.activation = lambda logits: logits * 0
    assert activation_of(loss_func)(LOGITS).sum() == 0

"""Batch norms that carry no statistics, as in weights converted from a deployed model.

Converters fold batch norms into the convolutions and leave the identity behind. In training mode
such a layer would normalise by the batch it sees, which the network was never meant to do: its
features break and fine-tuning hardly beats chance.
"""

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.callback.core import TrainEvalCallback
from torch import nn

from learnkit.callback.base import TrainingCallback


class FoldedNorms(TrainingCallback):
    """Keeps a body's folded batch norms in eval mode in training; `cnn_learner` adds it itself."""

    run_after = TrainEvalCallback

    def before_train(self) -> None:
        """Undo for the folded layers what fastai has just done for all."""
        for norm in folded_norms(self.model[0]):
            norm.eval()


def folded_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms whose statistics are the identity's: mean 0 and one variance, near 1.

    Only of a trained network does this tell anything: those of a new one are the identity too.

    >>> len(folded_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))))
    1
    """
    folded = []
    for norm in model.modules():
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            continue
        mean, var = norm.running_mean, norm.running_var
        # near 1: it may be 1 - eps, so that what the layer divides by is 1
        near = 1e-3 + norm.eps
        if not mean.any() and bool((var == var[0]).all()) and abs(float(var[0]) - 1) < near:
            folded.append(norm)
    return folded

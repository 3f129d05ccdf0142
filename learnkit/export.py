"""A learner's way out: the Predictor over its model, and the bundle with its card and probes."""

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.learner import Learner

from learnkit.deploy.predictor import Predictor
from learnkit.loaders import is_multi_label
from learnkit.transforms import preprocessing_of

N_PROBES = 4


def predictor_of(learn: Learner) -> Predictor:
    """Return a Predictor that shares the learner's model and reads images as its validation does.

    Raises:
        ExportError: A validation transform is code; the message names it.
    """
    return Predictor(
        learn.model,
        preprocessing_of(learn.dls),
        [str(name) for name in learn.dls.vocab],
        multi_label=is_multi_label(learn.dls),
        device=next(learn.model.parameters()).device,
    )

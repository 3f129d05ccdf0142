"""A fastai Learner with learnkit's verbs: `ImageLearner`, its factory `cnn_learner`, its loaders.

    from learnkit.learner import ImageLearner, cnn_learner

Both names are loaded when they are first used, so that importing another file of this room, such as
the loaders, costs only that.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learnkit.learner.factory import cnn_learner as cnn_learner
    from learnkit.learner.learner import ImageLearner as ImageLearner

_HOMES = {"ImageLearner": "learnkit.learner.learner", "cnn_learner": "learnkit.learner.factory"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'learnkit.learner' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

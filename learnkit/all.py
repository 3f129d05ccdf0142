"""The names a notebook imports: `from learnkit.all import *`.

fastai.vision's names first, then every public name of learnkit, which wins where both have one
(`cnn_learner`, `load_learner`, ...).
"""

import learnkit._torchvision

from fastai.vision.all import *

import learnkit

globals().update({name: getattr(learnkit, name) for name in learnkit.PUBLIC_NAMES})

__all__ = [name for name in globals() if not name.startswith("_")]

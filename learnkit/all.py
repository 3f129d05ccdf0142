"""The names a notebook imports: `from learnkit.all import *`.

fastai.vision's names first, then every public name of learnkit, which wins where both have one
(`cnn_learner`, `load_learner`, ...).
"""

from typing import TYPE_CHECKING

import learnkit._torchvision

import learnkit

if TYPE_CHECKING:
    # of two names alike mypy takes the first and pyright the last: ours are both
    # isort: off
    from learnkit import *
    from fastai.vision.all import *
    from learnkit import *
    # isort: on
else:
    from fastai.vision.all import *

    globals().update({name: getattr(learnkit, name) for name in learnkit.PUBLIC_NAMES})
    __all__ = [name for name in globals() if not name.startswith("_")]

"""learnkit: image classifiers that keep learning on the job.

`import learnkit` is light: every public name is loaded, and torch with it, when it is first used.
In a notebook, `from learnkit.all import *` brings fastai's vision names and all of learnkit's.
"""

import gc
import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from learnkit._version import __version__ as __version__

if TYPE_CHECKING:
    from learnkit.backends.devices import devices as devices
    from learnkit.callback.after_fit import Calibration as Calibration
    from learnkit.callback.after_fit import ContinualLearning as ContinualLearning
    from learnkit.callback.after_fit import OutOfDistribution as OutOfDistribution
    from learnkit.callback.checkpoint import Checkpoint as Checkpoint
    from learnkit.callback.frozen_features import FrozenFeatures as FrozenFeatures
    from learnkit.callback.history import TrainingHistory as TrainingHistory
    from learnkit.callback.stop_on_non_finite import StopOnNonFinite as StopOnNonFinite
    from learnkit.data.dataset import ImageDataset as ImageDataset
    from learnkit.data.image import read_image as read_image
    from learnkit.data.preprocess import Preprocessing as Preprocessing
    from learnkit.deploy.predictor import Predictor as Predictor
    from learnkit.deploy.predictor import load_learner as load_learner
    from learnkit.deploy.runtime_predictor import RuntimePredictor as RuntimePredictor
    from learnkit.deploy.runtime_predictor import load_runtime as load_runtime
    from learnkit.errors import LearnkitError as LearnkitError
    from learnkit.evaluation.evaluate import Evaluation as Evaluation
    from learnkit.evaluation.evaluate import evaluate as evaluate
    from learnkit.inference.prediction import Prediction as Prediction
    from learnkit.interpret.accuracy_matrix import AccuracyMatrix as AccuracyMatrix
    from learnkit.interpret.classification import (
        ClassificationInterpretation as ClassificationInterpretation,
    )
    from learnkit.interpret.gradcam import grad_cam as grad_cam
    from learnkit.interpret.outputs import Outputs as Outputs
    from learnkit.learner.factory import cnn_learner as cnn_learner
    from learnkit.learner.learner import ImageLearner as ImageLearner
    from learnkit.models.body import create_body as create_body
    from learnkit.models.create import create_cnn_model as create_cnn_model
    from learnkit.models.head import create_head as create_head
    from learnkit.models.meta import model_meta as model_meta
    from learnkit.optimize.conversion_report import ConversionReport as ConversionReport
    from learnkit.optimize.gates import Gates as Gates

# tqdm's bars are text where ipywidgets is missing, which a user of a notebook need not be told by
# whichever library imports it first; fastai's say without validation images that they are empty,
# which the loaders have told with what follows from it.
warnings.filterwarnings("ignore", "IProgress not found|Your generator is empty")

# Public name -> the module it lives in. `learnkit.all` exports the same names.
PUBLIC_NAMES: dict[str, str] = {
    # data
    "ImageDataset": "learnkit.data.dataset",
    "Preprocessing": "learnkit.data.preprocess",
    "read_image": "learnkit.data.image",
    # models
    "create_body": "learnkit.models.body",
    "create_cnn_model": "learnkit.models.create",
    "create_head": "learnkit.models.head",
    "model_meta": "learnkit.models.meta",
    # learner
    "ImageLearner": "learnkit.learner.learner",
    "cnn_learner": "learnkit.learner.factory",
    # callbacks
    "FrozenFeatures": "learnkit.callback.frozen_features",
    "TrainingHistory": "learnkit.callback.history",
    "StopOnNonFinite": "learnkit.callback.stop_on_non_finite",
    "Checkpoint": "learnkit.callback.checkpoint",
    "ContinualLearning": "learnkit.callback.after_fit",
    "OutOfDistribution": "learnkit.callback.after_fit",
    "Calibration": "learnkit.callback.after_fit",
    # evaluation and interpretation
    "Evaluation": "learnkit.evaluation.evaluate",
    "evaluate": "learnkit.evaluation.evaluate",
    "Outputs": "learnkit.interpret.outputs",
    "ClassificationInterpretation": "learnkit.interpret.classification",
    "grad_cam": "learnkit.interpret.gradcam",
    "AccuracyMatrix": "learnkit.interpret.accuracy_matrix",
    # deployment
    "Prediction": "learnkit.inference.prediction",
    "Predictor": "learnkit.deploy.predictor",
    "RuntimePredictor": "learnkit.deploy.runtime_predictor",
    "load_learner": "learnkit.deploy.predictor",
    "load_runtime": "learnkit.deploy.runtime_predictor",
    "devices": "learnkit.backends.devices",
    "Gates": "learnkit.optimize.gates",
    "ConversionReport": "learnkit.optimize.conversion_report",
    # errors
    "LearnkitError": "learnkit.errors",
}

# Old module paths, as documentation and pickles may name them -> where they are now. Each warns,
# for one version.
MOVED = {
    "learnkit.callback.calibration": "learnkit.callback.after_fit",
    "learnkit.callback.continual": "learnkit.callback.after_fit",
    "learnkit.callback.guard": "learnkit.callback.stop_on_non_finite",
    "learnkit.callback.ood": "learnkit.callback.after_fit",
    "learnkit.demo": "learnkit.cli.demo",
    "learnkit.deploy.backends.devices": "learnkit.backends.devices",
    "learnkit.deploy.bulk": "learnkit.inference.batch",
    "learnkit.deploy.by_path": "learnkit.deploy.pickling",
    "learnkit.deploy.conversion.gates": "learnkit.optimize.gates",
    "learnkit.deploy.conversion.report": "learnkit.optimize.conversion_report",
    "learnkit.deploy.loading": "learnkit.deploy.predictor",
    "learnkit.deploy.prediction": "learnkit.inference.prediction",
    "learnkit.deploy.runtime.predictor": "learnkit.deploy.runtime_predictor",
    "learnkit.loaders": "learnkit.learner.dataloaders",
    "learnkit.transforms": "learnkit.learner.transforms",
}
_FOLDERS = {"learnkit.deploy.backends", "learnkit.deploy.conversion", "learnkit.deploy.runtime"}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC_NAMES:
        raise AttributeError(f"module 'learnkit' has no attribute {name!r}")
    # Importing torch and timm makes a million objects and no garbage; the collector's passes over
    # them are a fifth of the time it takes.
    collecting = gc.isenabled()
    gc.disable()
    try:
        value = getattr(importlib.import_module(PUBLIC_NAMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from learnkit.errors import MissingExtraError

        raise MissingExtraError(
            f"learnkit.{name} needs torch, which is not installed: `pip install learnkit` brings "
            "it; `load_runtime` predicts without it"
        ) from error
    finally:
        if collecting:
            gc.enable()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC_NAMES})


class _OldPaths:
    """The finder and loader of old module paths."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """How to import `name`, if it is an old path or a folder on the way to one."""
        if name in MOVED or name in _FOLDERS:
            return ModuleSpec(name, self, is_package=name in _FOLDERS)
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """None, for a plain new module."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of the one of old, with a warning."""
        name = module.__name__
        if name in MOVED:
            said = f"{name} is now {MOVED[name]}; the old path goes with the next version"
            warnings.warn(said, DeprecationWarning, stacklevel=2)
            # The import system hands out what it finds here afterwards: one module, not a copy.
            sys.modules[name] = importlib.import_module(MOVED[name])


# behind all others: it is asked for what is found nowhere else
if not any(type(finder).__name__ == "_OldPaths" for finder in sys.meta_path):
    sys.meta_path.append(_OldPaths())

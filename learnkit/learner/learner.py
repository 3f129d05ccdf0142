"""ImageLearner and its factory: learnkit's verbs on a fastai Learner, each a line to its home."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import pandas as pd
from fastai.data.core import DataLoaders
from fastai.vision.all import Learner  # with fit_one_cycle, lr_find, ... attached to it
from torch import nn

from learnkit.data.dataset import ImageDataset
from learnkit.deploy.predictor import Predictor
from learnkit.evaluation.evaluate import Evaluation
from learnkit.inference.prediction import Prediction
from learnkit.interpret.classification import ClassificationInterpretation
from learnkit.interpret.outputs import Outputs, collect_outputs
from learnkit.interpret.plots import plot_history
from learnkit.learner.adopt import adopted_arguments, go_on_from
from learnkit.learner.build import default_callbacks
from learnkit.learner.continual_verbs import ContinualVerbs
from learnkit.learner.export import export_learner, predict_items, predict_one, predictor_of
from learnkit.learner.optimizing import OptimizingVerb
from learnkit.learner.training_verbs import TrainingVerbs
from learnkit.learner.uncertainty import with_ood_measures


class ImageLearner(TrainingVerbs, ContinualVerbs, OptimizingVerb, Learner):
    """A fastai Learner that also interprets, evaluates, exports and predicts.

    Everything of fastai's Learner works as before. Two callbacks come with it: `TrainingHistory`
    (`learn.history`) and `StopOnNonFinite` (training stops at the first NaN, good weights stay).

    Args:
        dls: Image DataLoaders, from `ImageDataset.dataloaders` or any of fastai's factories.
        model: `nn.Sequential(body, head)` for all of learnkit's verbs.
        *args: As for fastai's Learner.
        train_bn: What trains in frozen groups: True the batch norms (as in fastai v1), "all" every
            kind of norm (as in fastai v2), False nothing, and running statistics stay as they are.
        cbs: Callbacks, as for fastai's Learner.
        **kwargs: As for fastai's Learner.
    """

    def __init__(
        self,
        dls: DataLoaders,
        model: nn.Module,
        *args: Any,
        train_bn: bool | str = True,
        cbs: Any = None,
        **kwargs: Any,
    ):
        cbs = default_callbacks(cbs, train_bn=train_bn)
        super().__init__(dls, model, *args, train_bn=train_bn, cbs=cbs, **kwargs)

    @classmethod
    def from_learner(cls, learn: Learner) -> "ImageLearner":
        """An ImageLearner over the same data, model and optimizer; `learn` stays usable."""
        return go_on_from(learn, cls(**adopted_arguments(learn)))

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch over all fits: losses, metrics, learning rate, seconds."""
        return self.training_history.frame

    def plot_history(self, ax: Any = None) -> Any:
        """Axes of losses and, beside them, errors and metrics per epoch: see `plot_history`."""
        return plot_history(self.history, ax=ax)

    def outputs(
        self,
        ds_idx: int = 1,
        *,
        dl: Any = None,
        data: ImageDataset | None = None,
        with_features: bool = False,
    ) -> Outputs:
        """Logits, probabilities, targets and losses of one pass, in dataset order."""
        return collect_outputs(self, dl, ds_idx=ds_idx, data=data, with_features=with_features)

    def interpret(
        self, ds_idx: int = 1, *, dl: Any = None, data: ImageDataset | None = None
    ) -> ClassificationInterpretation:
        """Confusion matrices, top losses and heatmaps; one pass now, arithmetic afterwards."""
        return ClassificationInterpretation.from_learner(self, ds_idx=ds_idx, dl=dl, data=data)

    def evaluate(
        self,
        dl: Any = None,
        *,
        ds_idx: int = 1,
        data: ImageDataset | None = None,
        ood: Any = None,
    ) -> Evaluation:
        """`.summary`, `.per_class` and `.confusion` of a loader, a dataset or a split by index.

        Where unusual images can be told, the summary has the `false_alarm_rate` on these images;
        with images of no known class (`ood`: a loader, a folder, files) also `detection_rate`,
        `auroc` and `fpr_at_95_tpr`, the unusual images being the positive class.
        """
        interp = self.interpret(ds_idx, dl=dl, data=data)
        return with_ood_measures(self, interp.evaluation, interp.outputs, ood)

    def predictor(self) -> Predictor:
        """A Predictor that shares this learner's model and reads images as validation does."""
        return predictor_of(self)

    def predict(self, item: Any, rm_type_tfms: Any = None, with_input: bool = False) -> Any:
        """A Prediction, which unpacks as (label, index, probs), of a path, picture, array..."""
        return predict_one(self, item, with_input=with_input)

    def predict_batch(self, items: Iterable[Any], bs: int = 64) -> list[Prediction]:
        """One Prediction per item, computed `bs` at a time."""
        return predict_items(self, items, bs=bs)

    def export(self, path: str | Path = "model", *, evaluate: bool = True) -> Path:
        """The folder of the bundle written: data only, loads with `load_learner`.

        Args:
            path: Folder to create, or an earlier bundle to replace; relative to where Python runs.
            evaluate: Measure the validation images (one pass) for the model card.

        Raises:
            ExportError: Something about the learner cannot travel as data; the message names it.
            BundleWriteError: The folder could not be written; what stood there still does.
        """
        return export_learner(self, path, evaluate=evaluate)

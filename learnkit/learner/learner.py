"""ImageLearner and its factory: learnkit's verbs on a fastai Learner, each a line to its home."""

from collections.abc import Callable, Iterable, Sequence
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
from learnkit.learner.build import assemble, callbacks_for, default_callbacks
from learnkit.learner.continual_verbs import ContinualVerbs
from learnkit.learner.export import export_learner, predict_items, predict_one, predictor_of
from learnkit.learner.optimizing import OptimizingVerb
from learnkit.learner.training_verbs import TrainingVerbs
from learnkit.learner.uncertainty import with_ood_measures
from learnkit.models.meta import as_splitter, param_groups


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


def cnn_learner(
    dls: DataLoaders | None = None,
    arch: str | Callable | nn.Module | None = None,
    pretrained: bool | str | Path = True,
    cut: int | Callable | None = None,
    split_on: Any = None,
    *,
    splitter: Callable | None = None,
    custom_head: nn.Module | Callable | None = None,
    lin_ftrs: Sequence[int] | None = None,
    ps: float | Sequence[float] = 0.5,
    concat_pool: bool = True,
    bn_final: bool = False,
    first_bn: bool = True,
    lin_first: bool = False,
    y_range: tuple[float, float] | None = None,
    init: Callable | None = nn.init.kaiming_normal_,
    n_in: int | None = None,
    n_out: int | None = None,
    normalize: bool | tuple[Sequence[float], Sequence[float]] = True,
    train_bn: bool | str = True,
    weights: Any = None,
    arch_kwargs: dict[str, Any] | None = None,
    data: DataLoaders | None = None,
    base_arch: Any = None,
    **learner_kwargs: Any,
) -> ImageLearner:
    """An ImageLearner: the body of `arch`, cut before its classifier, under a new head.

    With pretrained weights the body starts frozen. fastai v1's names (`data`, `base_arch`,
    `split_on`) work too. The given DataLoaders are not changed.

    Args:
        dls: Image DataLoaders; classes, image size and channels are read off them.
        arch: A timm or torchvision name, a constructor, or a module.
        pretrained: True for the hub's weights, False for random ones, or a weights file
            (safetensors, or a state dict that loads with `weights_only=True`).
        cut: Where to cut the body: children()[:cut], or a function of the network.
        split_on: Parameter groups in any of the shapes of fastai v1 and v2; see `as_splitter`.
        splitter: fastai v2's name for `split_on`.
        custom_head: A module, or a function of (n_features, n_out) that makes one.
        lin_ftrs: Widths of the head's hidden layers; default one of 512.
        ps: Dropout of the head: one probability, or one per layer.
        concat_pool: Pool by mean and maximum together rather than by mean alone.
        bn_final: A last batch norm after the last linear layer.
        first_bn: A batch norm before the first linear layer.
        lin_first: Linear layers before their batch norm and dropout.
        y_range: Squash the outputs into this interval.
        init: Initialises the head's weights; None keeps torch's.
        n_in: Input channels; default those of `dls`.
        n_out: Outputs; default the number of classes of `dls`.
        normalize: True normalises with the statistics the weights were trained with, False not at
            all, a pair (mean, std) with these.
        train_bn: See `ImageLearner`.
        weights: torchvision's weights enum or name, when not the default ones.
        arch_kwargs: Further arguments of the constructor, such as `{"pad_type": "same"}`.
        data: fastai v1's name for `dls`.
        base_arch: fastai v1's name for `arch`.
        **learner_kwargs: For fastai's Learner: `metrics`, `loss_func`, `cbs`, `path`, ...

    Raises:
        UnknownArchitectureError: No such name; the nearest are suggested.
        CutError: `cut` truncates the network or leaves no feature map.
        WeightsUnavailableError: The hub cannot be reached; raised before any training.
        InputSizeError: The images do not fit the network.
    """
    model, dls = assemble(
        dls if dls is not None else data,
        arch if arch is not None else base_arch,
        pretrained=pretrained,
        normalize=normalize,
        n_in=n_in,
        n_out=n_out,
        cut=cut,
        custom_head=custom_head,
        lin_ftrs=lin_ftrs,
        ps=ps,
        concat_pool=concat_pool,
        bn_final=bn_final,
        first_bn=first_bn,
        lin_first=lin_first,
        y_range=y_range,
        init=init,
        weights=weights,
        arch_kwargs=arch_kwargs,
    )
    groups = split_on if split_on is not None else splitter
    splitter = param_groups if groups is None else as_splitter(groups)
    learn = ImageLearner(dls, model, splitter=splitter, train_bn=train_bn, **learner_kwargs)
    learn.add_cbs(callbacks_for(model, pretrained))
    if pretrained:
        learn.freeze()
    return learn

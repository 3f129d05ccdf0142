"""Handles: a model that can be trained or was converted, and a device it may be converted for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.optimizer import SGD, Adam, Optimizer
from fastai.torch_core import set_seed
from torch import nn

from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor
from learnkit.errors import DataError, OptimizeError
from learnkit.halcon.errors import (
    H_ERR_DL_CLASS_IDS_INVALID,
    H_ERR_DL_CLASS_IDS_MISSING,
    H_ERR_DL_CLASS_IDS_NOT_UNIQUE,
    H_ERR_DL_MODEL_APPLY_NO_DEF_OUTPUTS,
    H_ERR_WRONG_HANDLE_TYPE,
    operator_error,
)
from learnkit.halcon.operators import as_tuple, is_whole
from learnkit.inference.weights_check import channel_stats
from learnkit.learner.dataloaders import empty_dataloaders
from learnkit.learner.factory import cnn_learner
from learnkit.learner.learner import ImageLearner
from learnkit.models.eval_mode import randomness_kept

# HALCON's own limit
MAX_CLASS_ID = 65_534
MAX_SIDE = 16_384  # of images, in pixels
# Pascanu, Mikolov and Bengio, 2013, section 3.2; what it is worth stands at `train_dl_model`
_MAX_NORM = 1.0  # of the gradients of a step
PARAMETERS = "halcon"  # where a bundle's metadata keep what only this module sets

# What a new model is trained with; names and values are HALCON's.
DEFAULTS: dict[str, Any] = {
    "batch_size": 1,
    "batch_size_multiplier": 1,
    "learning_rate": 0.001,
    "momentum": 0.9,
    "weight_prior": 0.0,
    "solver_type": "sgd",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
}


@dataclass(eq=False)
class HDlDevice:
    """A processor together with the interface that runs networks on it."""

    row: Mapping[str, Any]

    @property
    def runtime(self) -> str:
        """'cpu' or 'gpu'."""
        return "cpu" if self.row["device"] == "cpu" else "gpu"

    def __repr__(self) -> str:
        return f"HDlDevice({self.row['backend']} on {self.row['device']})"


@dataclass(eq=False, repr=False)
class HDlModel:
    """A model: network, classes with their ids, and the parameters of its training.

    Leave the facade through `.learner`, an `ImageLearner`, and `.predictor`, a `Predictor`.

    Attributes:
        pretrained: a row of `PRETRAINED` while its network is not made yet; None afterwards.
        size: (height, width) of the images.
        channels: of the images.
        per_image: how the contrast of each image is stretched, as `Preprocessing` has it.
        names: of the classes, while the network is not made yet.
        ids: the id of each class, in the order of the names.
        parameters: of the training, by HALCON's names.
        device: what it is meant to run on.
        solver: the optimizer that was made, and its settings; None before the first training.
    """

    pretrained: dict[str, Any] | None = None
    size: tuple[int, int] = (224, 224)
    channels: int = 3
    per_image: str | None = None
    names: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=lambda: dict(DEFAULTS))
    device: HDlDevice | None = None
    meta_data: dict[str, str] = field(default_factory=dict)
    made: ImageLearner | None = None
    converted: Predictor | None = None
    solver: Any = None
    cleared: bool = False

    @property
    def is_converted(self) -> bool:
        """Whether it was optimised for inference."""
        return self.converted is not None

    @property
    def continual(self) -> bool:
        """Whether it is in the continual state."""
        if self.converted is not None:
            return self.converted.continual is not None
        return self.made is not None and self.made.continual is not None

    @property
    def learner(self) -> ImageLearner:
        """The learner; it is made now if only the name of its network was known."""
        if self.converted is not None:
            raise OptimizeError(
                "a model that was optimised cannot be trained; read the model it was made from"
            )
        if self.made is None:
            if not self.names:
                raise operator_error(
                    H_ERR_DL_MODEL_APPLY_NO_DEF_OUTPUTS,
                    "the model knows no class yet; set 'class_names' and 'class_ids' by "
                    "set_dl_model_param, or give it images by init_dl_continual_learning",
                )
            self.made = self._made(self.names)
            self._give_ids()
        return self.made

    @property
    def predictor(self) -> Predictor:
        """A predictor of what the model knows now."""
        return self.learner.predictor() if self.converted is None else self.converted

    @property
    def recipe(self) -> Preprocessing:
        """How its images are read."""
        if self.converted is not None:
            return self.converted.preprocessing
        if self.made is not None:
            return self.made.dls.preprocessing
        return Preprocessing(
            self.size, channels=self.channels, method="squish", per_image=self.per_image
        )

    def adopt(self, recipe: Preprocessing) -> None:
        """Read images as a dataset was preprocessed.

        Raises:
            DataError: It was preprocessed for another model.
        """
        if self.made is None and self.converted is None:
            self.per_image = recipe.per_image
        for name in ("size", "channels", "per_image"):
            ours, theirs = getattr(self.recipe, name), getattr(recipe, name)
            if ours != theirs:
                raise DataError(
                    f"the dataset was preprocessed with `{name}` {theirs!r} and the model has "
                    f"{ours!r}; preprocess it with create_dl_preprocess_param_from_model"
                )

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of their ids in results."""
        if self.converted is not None:
            return list(self.converted.classes)
        return list(self.names) if self.made is None else list(self.made.classes)

    @property
    def class_ids(self) -> list[int]:
        """The id of each class."""
        if self.converted is None and self.made is None:
            return list(self.ids)
        return list(self.predictor.class_ids)

    def starts_empty(self) -> None:
        """Make the network without a class, in the continual state."""
        self.made = self._made([])
        self.made.init_continual(reset_class_information=True)

    def _made(self, classes: list[str]) -> ImageLearner:
        row = self.pretrained or {}
        options = {"weights": row.get("weights"), "arch_kwargs": row.get("arch_kwargs")}
        pretrained = options.pop("weights")
        recipe = self.recipe
        stats = [
            one and channel_stats(one, recipe.channels) for one in (row.get("mean"), row.get("std"))
        ]
        # one linear layer, which begins with zeros: no class is likelier before the first step
        head = {"lin_ftrs": [], "ps": 0.0, "concat_pool": False, "first_bn": False}
        with randomness_kept():
            set_seed(0)  # a pretrained model of a name is one and the same
            learn = cnn_learner(
                empty_dataloaders(recipe, classes),
                row["arch"],
                pretrained=True if pretrained is None else pretrained,
                normalize=True if stats[0] is None else stats,
                init=nn.init.zeros_,
                **head,
                **options,
            )
        return silenced(learn)

    def _give_ids(self) -> None:
        """Let the learner's classes have the ids that were set."""
        if not self.ids:
            return
        if len(self.ids) != len(self.names):
            raise operator_error(
                H_ERR_DL_CLASS_IDS_INVALID,
                f"there are {len(self.ids)} 'class_ids' for {len(self.names)} 'class_names'; set "
                "both to the same number",
            )
        ids = dict(zip(self.names, self.ids, strict=True))
        self.made.state = replace(self.made.state, class_ids=ids)

    def __repr__(self) -> str:
        if self.cleared:
            return "HDlModel(cleared)"
        kind = "optimised" if self.is_converted else "continual" if self.continual else "trainable"
        height, width = self.recipe.size
        return (
            f"HDlModel(classification, {kind}, {len(self.class_names)} classes, {width}x{height})"
        )


def silenced(learn: ImageLearner) -> ImageLearner:
    """The learner without the bars and lines that fastai prints for each epoch."""
    if hasattr(learn, "progress"):
        learn.remove_cb(learn.progress)
    # without a bar fastai's Recorder prints the numbers of each epoch by it
    learn.logger = lambda *_: None
    return learn


def checked_model(model: Any) -> HDlModel:
    """The model of a handle.

    Raises:
        HOperatorError: 2404, no handle of a model, or one that was cleared.
    """
    found = as_tuple(model)
    one = found[0] if len(found) == 1 else model
    if not isinstance(one, HDlModel) or one.cleared:
        seen = "was cleared" if isinstance(one, HDlModel) else f"is a {type(one).__name__}"
        raise operator_error(
            H_ERR_WRONG_HANDLE_TYPE, f"the handle {seen}; read a model again with read_dl_model"
        )
    return one


def checked_ids(ids: Any) -> list[int]:
    """Class ids: different whole numbers in 0..65534.

    Raises:
        HOperatorError: 7802, there are none; 7793, not such numbers; 7792, twice the same.
    """
    found = as_tuple(ids)
    if not found:
        raise operator_error(H_ERR_DL_CLASS_IDS_MISSING, "'class_ids' is empty; give one per class")
    if wrong := [one for one in found if not is_whole(one, 0, MAX_CLASS_ID)]:
        raise operator_error(
            H_ERR_DL_CLASS_IDS_INVALID,
            f"'class_ids' has {wrong[0]!r}; ids are whole numbers in 0..{MAX_CLASS_ID}",
        )
    if len(set(found)) < len(found):
        twice = next(one for one in found if found.count(one) > 1)
        raise operator_error(
            H_ERR_DL_CLASS_IDS_NOT_UNIQUE, f"'class_ids' has {twice} more than once"
        )
    return found


def set_optimizer(model: HDlModel) -> None:
    """Let the learner train with the model's solver."""
    kind, settings = model.solver = solver_of(model)
    model.learner.opt_func = partial(ClippedOptimizer, kind, **settings)
    # `fit` makes an optimizer only where there is none
    model.learner.opt = None


def solver_of(model: HDlModel) -> tuple[Callable[..., Optimizer], dict[str, float]]:
    """The optimizer, one of fastai's, and its settings."""
    p = model.parameters
    if p["solver_type"] == "sgd":
        return SGD, {"mom": p["momentum"]}
    return Adam, {"mom": p["adam_beta1"], "sqr_mom": p["adam_beta2"], "eps": p["adam_epsilon"]}


class ClippedOptimizer(Optimizer):
    """fastai's optimizer, before whose steps long gradients are scaled to a norm of 1.

    Args:
        kind: what makes fastai's.
        params: to be optimised.
        **settings: of `kind`.
    """

    def __init__(self, kind: Callable[..., Optimizer], params: Any, **settings: Any):
        # fastai's SGD and Adam are functions that make an Optimizer, no classes to derive from
        plain = kind(params, **settings)
        super().__init__(plain.param_lists, plain.cbs, **plain.hypers[0])

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One step."""
        # not by fastai's GradientClip: `train_batch` steps without callbacks
        parameters = [parameter for parameter, *_ in self.all_params(with_grad=True)]
        nn.utils.clip_grad_norm_(parameters, _MAX_NORM)
        super().step(closure)

"""Training: the fit over preprocessed samples, and a single step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.torch_core import set_seed

from learnkit.data.dataset import ImageDataset
from learnkit.errors import ContinualStateError, OodLockedError
from learnkit.halcon import errors
from learnkit.halcon.dataset import samples_of
from learnkit.halcon.dictionaries import json_text, plain
from learnkit.halcon.errors import HError, operator_error
from learnkit.halcon.evaluation import evaluate_dl_model
from learnkit.halcon.handles import (
    MAX_CLASS_ID,
    HDlModel,
    checked_model,
    set_optimizer,
    solver_of,
)
from learnkit.halcon.model import ids_of, sample_images, samples_in, write_dl_model
from learnkit.halcon.operators import (
    as_tuple,
    is_whole,
    operator,
    procedure,
    writing,
)
from learnkit.halcon.preprocess import images_for
from learnkit.halcon.samples import SampleAugmentation, augmentation
from learnkit.halcon.train_param import MEASURE, completed
from learnkit.learner.dataloaders import image_dataloaders
from learnkit.report.progress import counted

_HYPERS = {"learning_rate": "lr", "momentum": "mom", "weight_prior": "wd"}  # of fastai's optimizers


class TrainingRecord(Callback):
    """What `train_dl_model` returns: losses, evaluations; models written on the way.

    Args:
        model: the model that is trained.
        dldataset: with the validation images.
        param: of `create_dl_train_param`.
        start: the first epoch.
    """

    run_valid = False

    def __init__(self, model: HDlModel, dldataset: Any, param: Mapping[str, Any], start: int):
        super().__init__()
        self.of, self.dldataset, self.param, self.start = model, dldataset, param, start
        self.results: list[dict[str, float]] = []
        self.infos: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.best = float("inf")
        self.advance: Callable[[int], object] = lambda _: None
        self.has_validation = any(
            sample.get("split") == "validation" for sample in samples_of(dldataset)
        )

    def before_epoch(self) -> None:
        """Set what is to change at this epoch."""
        for change in self.param["change_strategies"]:
            values = dict(zip(change["epochs"], change["values"], strict=True))
            if (epoch := self.start + self.epoch) in values:
                self._change(change["model_param"], values[epoch])

    def _change(self, name: str, value: float) -> None:
        """Set a parameter of the training, for all of the network."""
        self.of.parameters[name] = value
        self.opt.set_hypers(**{_HYPERS[name]: value})

    def after_batch(self) -> None:
        """Note the loss of the step."""
        if self.training:
            self.results.append({"total_loss": float(self.loss.detach())})
            self.advance(1)

    def after_epoch(self) -> None:
        """Note the epoch; evaluate and write, where it is time."""
        epoch = self.start + self.epoch + 1
        last = [one["total_loss"] for one in self.results]
        size = self.of.parameters["batch_size"]
        # the parameter counts images, and `last` has a loss per step
        last = last[-max(1, self.param["num_samples_mean_loss"] // size) :]
        info = {
            "epoch": epoch,
            "num_epochs": self.param["num_epochs"],
            "mean_loss": sum(last) / len(last) if last else float("nan"),
            "mean_loss_samples": len(last) * size,
            "model_params": dict(self.of.parameters),
        }
        self.infos.append(info)
        final = epoch == self.param["num_epochs"]
        if epoch % self.param["evaluation_interval_epochs"] == 0 or final:
            self.evaluate(epoch, info)
        for strategy in self.param["serialization_strategies"]:
            at_epoch = strategy["type"] == "epochs" and epoch in strategy["epochs"]
            if at_epoch or (strategy["type"] == "final" and final):
                suffix = f"_{epoch}" if at_epoch else ""
                self._write(f"{strategy['basename']}{suffix}", epoch)

    def evaluate(self, epoch: int, info: dict[str, Any]) -> None:
        """Evaluate the validation images, and write the model if it is the best so far."""
        if not self.has_validation:
            return
        how = {"show_progress": "false", **self.param["evaluation_param"]}
        # the one by which the best model is chosen is told in every evaluation
        how["measures"] = [*dict.fromkeys([*as_tuple(how.get("measures")), MEASURE])]
        result, _ = evaluate_dl_model(self.dldataset, self.of, "split", "validation", how)
        del result["evaluated_samples"]["confidences"]  # of every epoch they would fill the files
        self.evaluations.append({"epoch": epoch, "result": result})
        samples = result["evaluated_samples"]
        # of all images, whatever classes are asked for
        wrong = np.not_equal(samples["top1_predictions"], samples["image_label_ids"])
        value = float(wrong.mean())
        if self.param["display_param"]["enabled"]:
            told = f"epoch {epoch}: {MEASURE} {value:.4f}, mean loss {info['mean_loss']:.4f}"
            print(told)  # noqa: T201  # it is what 'enable_display' asks for
        if value < self.best:
            self.best = value
            info["best"] = {"epoch": epoch, MEASURE: value}
            for strategy in self.param["serialization_strategies"]:
                if strategy["type"] == "best":
                    self._write(strategy["basename"], epoch)

    def _write(self, basename: str, epoch: int) -> None:
        """Write the model, and beside it how the training went so far."""
        write_dl_model(self.of, f"{basename}.hdl")
        told = {"epoch": epoch, "train_infos": self.infos, "evaluation_infos": self.evaluations}
        text = json_text(plain(told))
        with writing(file := f"{basename}_info.json"):
            Path(file).write_text(text, encoding="utf-8")


@procedure("TrainResults", "TrainInfos", "EvaluationInfos")
def train_dl_model(
    dldataset: Mapping[str, Any],
    dlmodel_handle: Any,
    train_param: Mapping[str, Any],
    start_epoch: int = 0,
) -> tuple[list[dict[str, float]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Train a model: (the loss of each step, a note per epoch, the evaluations).

    All of the network is trained at 'learning_rate', from a linear classifier that begins with
    zeros. Differs from HALCON: gradients are scaled to a norm of 1 where it is larger. Without that
    the first steps at .003 destroy what the network was pretrained on: of 153 ants and bees 46 %
    were wrong after two epochs, and so 11 % are; 14 % at .001, 9 % at .01. `model.learner` has
    `fine_tune` and `fit_one_cycle` besides. Source of the scaling: Pascanu, Mikolov and Bengio, "On
    the difficulty of training recurrent neural networks", 2013, section 3.2.

    Args:
        dldataset: preprocessed and split.
        dlmodel_handle: changed.
        train_param: of `create_dl_train_param`.
        start_epoch: where the count of epochs begins.

    Raises:
        HError: the dataset is not preprocessed, has other classes than the model, or fewer training
            images than a batch; or `start_epoch` is not in 0..num_epochs.
        HOperatorError: 7917, an optimised model; 7974, one in the continual state; 7988, one with
            out-of-distribution detection.
    """
    model = checked_model(dlmodel_handle)
    train_param = completed(train_param, ids_of(model))
    n_epochs = train_param["num_epochs"]
    if not is_whole(start_epoch, 0, n_epochs):
        raise HError(f"`start_epoch` is {start_epoch!r:.80}; it lies in 0..{n_epochs}")
    data = images_for(model, dldataset)
    learn = model.learner
    _check_trainable(model)
    _check_classes(model, data)
    size = model.parameters["batch_size"]
    n_train = sum(data.frame["split"] == "train")
    if n_train < size:
        raise HError(
            f"there are {n_train} training samples and a batch has {size}; lower 'batch_size'"
        )
    learn.dls = _loaders(model, data, train_param)
    record = TrainingRecord(model, dldataset, train_param, start_epoch)
    for change in train_param["change_strategies"]:
        if change["initial_value"] is not None:
            model.parameters[change["model_param"]] = change["initial_value"]
    # after the initial values: an optimizer is made with its momentum
    set_optimizer(model)
    n = n_epochs - start_epoch
    cbs: list[Any] = [record]
    if model.parameters["batch_size_multiplier"] > 1:
        # fastai counts images here, not batches
        cbs.append(GradientAccumulation(size * model.parameters["batch_size_multiplier"]))
    rate, decay = model.parameters["learning_rate"], model.parameters["weight_prior"]
    with counted("train", n * len(learn.dls.train), True, "steps") as advance, learn.no_bar():
        record.advance = advance
        set_seed(train_param["seed_rand"])
        learn.unfreeze()
        if train_param["evaluate_before_train"]:
            record.evaluate(start_epoch, {"mean_loss": float("nan")})
        learn.fit(n, rate, wd=decay, cbs=cbs)
    return record.results, record.infos, record.evaluations


def _loaders(model: HDlModel, data: ImageDataset, train_param: Mapping[str, Any]) -> Any:
    """Loaders over preprocessed images; an incomplete batch at the end of an epoch is left out."""
    param, seed = train_param["augmentation_param"], train_param["seed_rand"]
    size = model.parameters["batch_size"]
    dls = image_dataloaders(data, bs=size, preprocessing=model.recipe, seed=seed)
    if param:
        dls.train.after_item.add(SampleAugmentation(augmentation(param), seed))
    dls.train.drop_last = True
    return dls


def _check_trainable(model: HDlModel) -> None:
    """Raise what a training is refused with before anything is read."""
    if model.continual:
        raise ContinualStateError(
            "a model in the continual state is not trained any more; read the model as it was "
            "before init_dl_continual_learning, or call model.learner.refit"
        )
    if model.learner.ood is not None:
        raise OodLockedError(
            "training would make the out-of-distribution detection wrong; set 'clear_ood' first"
        )


def _check_classes(model: HDlModel, data: ImageDataset) -> None:
    known, found = set(model.class_names), set(data.classes)
    if known != found:
        other = sorted(known ^ found)
        raise HError(
            f"the classes of the model and of the dataset differ by {', '.join(map(repr, other))}; "
            "set 'class_names' and 'class_ids' of the pretrained model to those of the dataset"
        )


@operator("DLTrainResult")
def train_dl_model_batch(dlmodel_handle: Any, dlsample_batch: Any) -> dict[str, float]:
    """One step of training by a batch of labelled samples: {'total_loss': the loss before it}.

    Raises:
        HOperatorError: 7784, another number of samples than batch_size; 7800, than batch_size x
            batch_size_multiplier, where that is set;
            7789, a label that is not one id; 7793, an id that no class has; 7917, 7974, 7988, as
            `train_dl_model`.
    """
    model, samples = checked_model(dlmodel_handle), samples_in(dlsample_batch)
    p = model.parameters
    wanted = p["batch_size"] * p["batch_size_multiplier"]
    if len(samples) != wanted:
        several = p["batch_size_multiplier"] > 1
        raise operator_error(
            errors.H_ERR_DL_INPUT_WRONG_BS_WITH_MULTIPLIER
            if several
            else errors.H_ERR_DL_INPUT_WRONG_BS,
            f"there are {len(samples)} samples; a batch has 'batch_size' x "
            f"'batch_size_multiplier' = {wanted}",
        )
    learn, images = model.learner, sample_images(samples)
    _check_trainable(model)
    labels = _labels(model, samples)
    if model.solver != solver_of(model):  # a learner comes with an optimizer of its own
        set_optimizer(model)
        learn.unfreeze()
        learn.create_opt()
    # at every step: both may be set between two, which leaves the optimizer its averages
    learn.opt.set_hypers(lr=p["learning_rate"], wd=p["weight_prior"])
    return learn.train_batch(images, labels)


def _labels(model: HDlModel, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The name of each sample's class."""
    names = {number: name for name, number in ids_of(model).items()}
    found = []
    for place, sample in enumerate(samples):
        ids = as_tuple(sample.get("image_label_id"))
        if len(ids) != 1:
            raise operator_error(
                errors.H_ERR_DL_INPUT_WRONG_LENGTH,
                f"sample {place} has {len(ids)} 'image_label_id'; one is needed",
            )
        if not is_whole(ids[0], 0, MAX_CLASS_ID) or ids[0] not in names:
            raise operator_error(
                errors.H_ERR_DL_CLASS_IDS_INVALID,
                f"sample {place} has the 'image_label_id' {ids[0]!r}; there are {sorted(names)}",
            )
        found.append(names[ids[0]])
    return found

"""Training: its parameters, the fit over preprocessed samples, and a single step."""

from __future__ import annotations

import time
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
from learnkit.halcon.dataset import MAX_SEED, samples_of
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
from learnkit.halcon.model_param import training_value
from learnkit.halcon.operators import (
    as_bool,
    as_dict,
    as_tuple,
    checked_params,
    is_whole,
    one_value,
    operator,
    procedure,
    writing,
)
from learnkit.halcon.preprocess import images_for
from learnkit.halcon.samples import SampleAugmentation, augmentation
from learnkit.learner.dataloaders import image_dataloaders
from learnkit.report.progress import counted

_NAMES = ("evaluate", "augment", "change", "serialize", "display", "evaluate_before_train")
_MEASURE = "top1_error"
_HYPERS = {"learning_rate": "lr", "momentum": "mom", "weight_prior": "wd"}  # of fastai's optimizers
_MAX_EPOCHS = 1_000_000
_DISPLAY = {
    "enabled": False,
    "num_images": 6,
    "randomize_images": True,
    "update_images_interval_epochs": 4,
    "change_plot_interval_seconds": 10,
    "selected_percentage_train_samples": 0,
}


_OF_TRAINING: dict[str, Any] = {
    "evaluation_interval_epochs": 1,
    "evaluation_param": {},
    "augmentation_param": {},
    "change_strategies": [],
    "serialization_strategies": [],
    "display_param": {},
    "evaluate_before_train": False,
    "seed_rand": 42,
    "num_samples_mean_loss": 1000,
}


@procedure("TrainParam")
def create_dl_train_param(
    dlmodel_handle: Any,
    num_epochs: int,
    evaluation_interval_epochs: int = 1,
    enable_display: Any = "true",
    random_seed: Any = (),
    gen_param_name: Any = (),
    gen_param_value: Any = (),
) -> dict[str, Any]:
    """The parameters of a training, as a dictionary with HALCON's keys.

    Args:
        dlmodel_handle: the model.
        num_epochs: from 1 on.
        evaluation_interval_epochs: epochs from one evaluation of the validation images to the next.
        enable_display: 'true' prints a line per evaluation.
        random_seed: of order and augmentation; [] takes the clock.
        gen_param_name: 'evaluate', 'augment', 'change', 'serialize', 'display',
            'evaluate_before_train'; 'change' and 'serialize' as often as wanted. The keys of
            'display' and 'scale_momentum_threshold' of 'change' are taken and not used.
        gen_param_value: a dictionary for each.

    Raises:
        HError: an unknown name, another number of values than of names, or values out of range.
    """
    checked_model(dlmodel_handle)
    counts = {"num_epochs": num_epochs, "evaluation_interval_epochs": evaluation_interval_epochs}
    for name, value in counts.items():
        if not is_whole(value, 1, _MAX_EPOCHS):
            raise HError(f"`{name}` is {value!r:.80}; it is a whole number from 1 on")
    names, values = as_tuple(gen_param_name), _values(gen_param_value)
    if len(names) != len(values):
        raise HError(f"there are {len(values)} values for the {len(names)} names {names}")
    if unknown := [name for name in names if name not in _NAMES]:
        raise HError(f"{unknown[0]!r} is unknown; there are {', '.join(map(repr, _NAMES))}")
    given = {name: [v for n, v in zip(names, values, strict=True) if n == name] for name in _NAMES}
    seed = one_value(as_tuple(random_seed) or time.time_ns() % 2**31)
    if not is_whole(seed, 0, MAX_SEED):
        raise HError(
            f"`random_seed` is {random_seed!r:.80}; it is a number in 0..{MAX_SEED}, or []"
        )
    best = [{"type": "best", "basename": "model_best"}]
    before = given["evaluate_before_train"] or ["false"]
    return {
        **counts,
        "evaluation_param": as_dict(given["evaluate"]) or {"measures": [_MEASURE]},
        "augmentation_param": as_dict(given["augment"]),
        "change_strategies": [_change(as_dict(one)) for one in given["change"]],
        "serialization_strategies": [
            _serialization(as_dict(s)) for s in given["serialize"] or best
        ],
        "display_param": checked_params(
            as_dict(given["display"]), _DISPLAY, "'display'", of_operator=False
        )
        | {"enabled": as_bool(enable_display, "enable_display")},
        "evaluate_before_train": as_bool(before[0], "evaluate_before_train"),
        "seed_rand": seed,
        "update_interval_seconds": 2,
        "evaluation_comparison_keys": [_MEASURE],
        "num_samples_mean_loss": 1000,
    }


def _values(value: Any) -> list[Any]:
    """The values; one dictionary is one value."""
    return [value] if isinstance(value, Mapping) else as_tuple(value)


def _change(strategy: dict[str, Any]) -> dict[str, Any]:
    """A checked change of a parameter of the model at some epochs."""
    keys = {"model_param": None, "initial_value": None, "epochs": [], "values": []}
    keys |= {"scale_momentum_threshold": None}
    found = checked_params(strategy, keys, "'change'", of_operator=False)
    found |= {key: as_tuple(found[key]) for key in ("epochs", "values")}
    if found["model_param"] not in ("learning_rate", "momentum", "weight_prior"):
        raise HError(
            f"'change' has the 'model_param' {found['model_param']!r}; it takes 'learning_rate', "
            "'momentum' or 'weight_prior'"
        )
    for value in [*found["values"], *as_tuple(found["initial_value"])]:
        training_value(found["model_param"], value)
    if len(found["epochs"]) != len(found["values"]):
        raise HError(
            f"'change' has {len(found['values'])} values for {len(found['epochs'])} epochs"
        )
    return found


def _serialization(strategy: dict[str, Any]) -> dict[str, Any]:
    """A checked strategy of writing the model during the training."""
    keys = {"type": "best", "basename": None, "epochs": []}
    found = checked_params(strategy, keys, "'serialize'", of_operator=False)
    if found["type"] not in ("best", "epochs", "final"):
        raise HError(
            f"'serialize' has the type {found['type']!r}; it takes 'best', 'epochs' or 'final'"
        )
    return found | {
        "basename": found["basename"] or f"model_{found['type']}",
        "epochs": as_tuple(found["epochs"]),
    }


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
        # the best model is chosen by this one, whatever else is asked for
        how["measures"] = [*dict.fromkeys([*as_tuple(how.get("measures")), _MEASURE])]
        result, _ = evaluate_dl_model(self.dldataset, self.of, "split", "validation", how)
        del result["evaluated_samples"]["confidences"]  # of every epoch they would fill the files
        self.evaluations.append({"epoch": epoch, "result": result})
        samples = result["evaluated_samples"]
        # of all images, whatever classes are asked for
        wrong = np.not_equal(samples["top1_predictions"], samples["image_label_ids"])
        value = float(wrong.mean())
        if self.param["display_param"]["enabled"]:
            told = f"epoch {epoch}: {_MEASURE} {value:.4f}, mean loss {info['mean_loss']:.4f}"
            print(told)  # noqa: T201  # it is what 'enable_display' asks for
        if value < self.best:
            self.best = value
            info["best"] = {"epoch": epoch, _MEASURE: value}
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
    model, train_param = checked_model(dlmodel_handle), _completed(train_param)
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


def _completed(train_param: Any) -> dict[str, Any]:
    """The parameters of a training, also where JSON has made scalars of their tuples.

    Raises:
        HError: one is missing or has a value that it does not take.
    """
    given = {**_OF_TRAINING, **as_dict(train_param)}
    counts = ("num_epochs", "evaluation_interval_epochs", "num_samples_mean_loss")
    for name, most in (*((name, _MAX_EPOCHS) for name in counts), ("seed_rand", MAX_SEED)):
        given[name] = one_value(given.get(name))
        if not is_whole(given[name], int(name != "seed_rand"), most):
            raise HError(
                f"`train_param` has {name!r} {given[name]!r:.80}; create_dl_train_param makes it"
            )
    changes, files = (
        [as_dict(one) for one in _values(given[key])]
        for key in ("change_strategies", "serialization_strategies")
    )
    return given | {
        "change_strategies": [_change(one) for one in changes],
        "serialization_strategies": [_serialization(one) for one in files],
        "evaluation_param": as_dict(given["evaluation_param"]),
        "augmentation_param": as_dict(given["augmentation_param"]),
        "display_param": {**_DISPLAY, **as_dict(given["display_param"])},
    }


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

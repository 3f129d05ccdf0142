"""The parameters of a training: HALCON's dictionary, made and checked."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from learnkit.halcon.dataset import MAX_SEED
from learnkit.halcon.errors import HError
from learnkit.halcon.evaluation import checked_evaluation
from learnkit.halcon.handles import checked_model
from learnkit.halcon.model_param import training_value
from learnkit.halcon.operators import (
    as_bool,
    as_dict,
    as_tuple,
    checked_params,
    is_whole,
    one_value,
    procedure,
)
from learnkit.halcon.samples import augmentation

_NAMES = ("evaluate", "augment", "change", "serialize", "display", "evaluate_before_train")
MEASURE = "top1_error"
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
    evaluation, augmented = as_dict(given["evaluate"]), as_dict(given["augment"])
    checked_evaluation(evaluation)
    augmentation(augmented)
    return {
        **counts,
        "evaluation_param": evaluation or {"measures": [MEASURE]},
        "augmentation_param": augmented,
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
        "evaluation_comparison_keys": [MEASURE],
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
    _check_epochs("'change'", found["epochs"])
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
    epochs, basename = as_tuple(found["epochs"]), found["basename"] or f"model_{found['type']}"
    _check_epochs("'serialize'", epochs)
    if not isinstance(basename, str | os.PathLike) or "\0" in str(basename):
        raise HError(f"'serialize' has the 'basename' {basename!r:.80}; it is the name of a file")
    return found | {"basename": basename, "epochs": epochs}


def _check_epochs(where: str, epochs: Sequence[Any]) -> None:
    if wrong := [one for one in epochs if not is_whole(one, 0, _MAX_EPOCHS)]:
        raise HError(f"{where} has the epoch {wrong[0]!r:.80}; epochs are whole numbers from 0 on")


def completed(train_param: Any, ids: Mapping[str, int]) -> dict[str, Any]:
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
    evaluation = as_dict(given["evaluation_param"])
    checked_evaluation(evaluation, ids)
    shown = checked_params(
        as_dict(given["display_param"]), _DISPLAY, "'display_param'", of_operator=False
    )
    return given | {
        "change_strategies": [_change(one) for one in changes],
        "serialization_strategies": [_serialization(one) for one in files],
        "evaluation_param": evaluation,
        "augmentation_param": as_dict(given["augmentation_param"]),
        "display_param": shown | {"enabled": as_bool(shown["enabled"], "enabled")},
        "evaluate_before_train": as_bool(given["evaluate_before_train"], "evaluate_before_train"),
    }

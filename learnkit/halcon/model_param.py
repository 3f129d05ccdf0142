"""Parameters of models by HALCON's names: what may be asked, and what may be set when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from learnkit.errors import ContinualStateError, DataError, OodLockedError, OptimizedModelError
from learnkit.halcon import errors
from learnkit.halcon.errors import operator_error
from learnkit.halcon.handles import (
    DEFAULTS,
    MAX_SIDE,
    HDlDevice,
    HDlModel,
    checked_ids,
    checked_model,
)
from learnkit.halcon.images import RANGE_MAX, RANGE_MIN
from learnkit.halcon.operators import (
    as_bool,
    as_tuple,
    is_whole,
    one_of,
    one_value,
    operator,
    wrong_value,
)
from learnkit.storage.array_files import MAX_CHANNELS

_AFTER_OPTIMISATION = ("device", "runtime", "meta_data", "class_names", "ood_threshold")
_SOLVERS = ("sgd", "adam")
_MOST = dict.fromkeys(("momentum", "weight_prior", "adam_beta1", "adam_beta2"), 1)
MAX_BATCH = 65_536


@operator("GenParamValue")
def get_dl_model_param(dlmodel_handle: Any, gen_param_name: str) -> list[Any]:
    """The values of a parameter of the model.

    Raises:
        HOperatorError: 7788, there is no such parameter, or no `ood_threshold` yet.
    """
    model = checked_model(dlmodel_handle)
    if gen_param_name in DEFAULTS:
        return [model.parameters[gen_param_name]]
    if gen_param_name not in _GET:
        known = ", ".join(map(repr, sorted({*DEFAULTS, *_GET})))
        raise operator_error(
            errors.H_ERR_DL_PARAM_NOT_AVAILABLE,
            f"there is no parameter {gen_param_name!r}; there are {known}",
        )
    return as_tuple(_GET[gen_param_name](model))


@operator("GenParamValue")
def get_dl_model_param_s(dlmodel_handle: Any, gen_param_name: str) -> Any:
    """The only value of a parameter; HTupleConversionError where it has several."""
    found = get_dl_model_param(dlmodel_handle, gen_param_name)
    return one_of(found, repr(gen_param_name))


@operator()
def set_dl_model_param(dlmodel_handle: Any, gen_param_name: str, gen_param_value: Any) -> None:
    """Set a parameter of the model.

    Raises:
        HOperatorError: 7788, there is no such parameter, or it cannot be set; 7914, it takes no
            such value; 7916, it is fixed after optimisation; 7974 and 7988, it would change what
            the model has learned; 7792, 7793 and 7802, wrong class ids.
    """
    model = checked_model(dlmodel_handle)
    if gen_param_name not in {*_SET, *DEFAULTS}:
        known = ", ".join(map(repr, sorted({*_SET, *DEFAULTS})))
        raise operator_error(
            errors.H_ERR_DL_PARAM_NOT_AVAILABLE,
            f"the parameter {gen_param_name!r} cannot be set; these can: {known}",
        )
    if model.is_converted and gen_param_name not in _AFTER_OPTIMISATION:
        raise OptimizedModelError(
            f"{gen_param_name!r} is fixed in an optimised model; these can be set: "
            f"{', '.join(map(repr, _AFTER_OPTIMISATION))}"
        )
    if gen_param_name in DEFAULTS:
        model.parameters[gen_param_name] = training_value(gen_param_name, gen_param_value)
    else:
        _SET[gen_param_name](model, gen_param_value)


def training_value(name: str, value: Any) -> Any:
    """The checked value of a parameter of the training."""
    (one,) = as_tuple(value) if len(as_tuple(value)) == 1 else (None,)
    if name == "solver_type":
        if one not in _SOLVERS:
            raise wrong_value(name, value, "'sgd' or 'adam'")
        return one
    if name.startswith("batch_size"):
        if not is_whole(one, 1, MAX_BATCH):
            raise wrong_value(name, value, f"a whole number in 1..{MAX_BATCH}")
        return one
    most = _MOST.get(name, float("inf"))
    # to Python True is an int; NaN lies in no range
    if isinstance(one, bool) or not isinstance(one, int | float) or not 0 <= one <= most:
        raise wrong_value(name, value, "a number from 0 on" if most > 1 else "a number in 0..1")
    return float(one)


def _ood_threshold(model: HDlModel) -> float:
    detector = model.predictor.ood if model.made or model.converted else None
    if detector is None:
        raise operator_error(
            errors.H_ERR_DL_PARAM_NOT_AVAILABLE,
            "'ood_threshold' is not there before fit_dl_out_of_distribution or "
            "init_dl_continual_learning",
        )
    return float(detector.threshold)


def _summary(model: HDlModel) -> str:
    if model.converted is not None:
        return f"{model.converted.variant}\n{model!r}"
    network = model.learner.model
    n = sum(parameter.numel() for parameter in network.parameters())
    spec = getattr(network, "spec", None)
    return f"{getattr(spec, 'arch', type(network).__name__)}: {n} parameters\n{model!r}"


def _runtime(model: HDlModel) -> str:
    return "cpu" if model.device is None else model.device.runtime


_GET: dict[str, Callable[[HDlModel], Any]] = {
    "type": lambda model: "classification",
    "class_names": lambda model: model.class_names,
    "class_ids": lambda model: model.class_ids,
    "image_width": lambda model: model.recipe.size[1],
    "image_height": lambda model: model.recipe.size[0],
    "image_num_channels": lambda model: model.recipe.channels,
    "image_dimensions": lambda model: [*model.recipe.size[::-1], model.recipe.channels],
    "image_range_min": lambda model: RANGE_MIN,
    "image_range_max": lambda model: RANGE_MAX,
    "device": lambda model: model.device,
    "runtime": _runtime,
    "gpu": lambda model: 0,
    "meta_data": lambda model: [dict(model.meta_data)],
    "precision": lambda model: (
        (model.predictor.variant if model.is_converted else None) or "float32"
    ).rpartition("-")[2],
    "precision_is_converted": lambda model: "true" if model.is_converted else "false",
    "optimize_for_inference": lambda model: "false",
    "ood_threshold": _ood_threshold,
    "num_trainable_params": lambda model: sum(
        one.numel()
        for one in (() if model.is_converted else model.learner.model.parameters())
        if one.requires_grad
    ),
    "summary": _summary,
}


def _set_names(model: HDlModel, value: Any) -> None:
    names = as_tuple(value)
    if not names or not all(isinstance(name, str) for name in names):
        raise wrong_value("class_names", value, "a name for each class")
    if model.converted is not None:
        model.converted.set(class_names=names)
    elif model.made is None:
        if len(set(names)) < len(names):
            raise DataError(f"'class_names' has a name twice: {names}")
        model.names = names
    else:
        _rename(model, names)


def _rename(model: HDlModel, names: list[str]) -> None:
    """Rename the classes of a network that is made; their number is fixed."""
    old = model.class_names
    if len(names) != len(old):
        kind = ContinualStateError if model.continual else DataError
        raise kind(
            f"'class_names' has {len(names)} names and the model {len(old)} classes; for other "
            "classes read the pretrained network, or learn them by extend_dl_continual_learning"
        )
    if names == old:
        return
    if not model.continual:
        raise DataError(
            f"the classes of a trained network are {old}; they can be renamed in the continual "
            "state, after init_dl_continual_learning"
        )
    model.made.rename(dict(zip(old, names, strict=True)))


def _set_ids(model: HDlModel, value: Any) -> None:
    ids = checked_ids(value)
    if model.made is None:
        model.ids = ids
        return
    names = model.class_names
    if ids == model.class_ids:
        return
    if model.continual or len(ids) != len(names):
        raise ContinualStateError(
            f"the {len(names)} classes of this model have the ids {model.class_ids}, by which they "
            "were learned; 'class_ids' is set before the first training"
        )
    model.made.state = replace(model.made.state, class_ids=dict(zip(names, ids, strict=True)))


def _set_dimensions(model: HDlModel, value: Any) -> None:
    found = as_tuple(value)
    if len(found) != 3:
        raise wrong_value("image_dimensions", value, "[width, height, number of channels]")
    width, height, channels = found
    _resize(model, (height, width), channels)


def _resize(model: HDlModel, size: tuple[int, int], channels: int) -> None:
    if size == model.recipe.size and channels == model.recipe.channels:
        return
    if model.made is not None:
        if model.continual:
            raise ContinualStateError("the size of images is fixed in the continual state")
        if model.made.ood is not None:
            raise OodLockedError(
                "the size of images is fixed while there is OOD detection; set 'clear_ood'"
            )
        raise DataError(
            "the size of images is set before the network is used first; read the pretrained "
            "network again, and set 'image_dimensions' then"
        )
    sides = all(is_whole(one, 1, MAX_SIDE) for one in size)
    if not sides or not is_whole(channels, 1, MAX_CHANNELS):
        rule = f"pixels in 1..{MAX_SIDE}, and 1 to {MAX_CHANNELS} channels"
        raise wrong_value("image_dimensions", [*size[::-1], channels], rule)
    model.size, model.channels = size, channels


def _set_device(model: HDlModel, value: Any) -> None:
    device = one_value(value)
    if not isinstance(device, HDlDevice):
        raise wrong_value("device", value, "a device of query_available_dl_devices")
    if model.converted is not None:
        model.converted.set(device=device.row["device"])
    model.device = device


def _set_runtime(model: HDlModel, value: Any) -> None:
    if value not in ("cpu", "gpu"):
        raise wrong_value("runtime", value, "'cpu' or 'gpu'")
    if value != _runtime(model):
        raise wrong_value("runtime", value, "what the device has; set 'device' to one with it")


def _set_meta_data(model: HDlModel, value: Any) -> None:
    value = dict(value) if isinstance(value, Mapping) else None
    if value is None or not all(isinstance(one, str) for pair in value.items() for one in pair):
        raise wrong_value("meta_data", value, "a dictionary of strings")
    model.meta_data = value


def _set_ood_threshold(model: HDlModel, value: Any) -> None:
    _ood_threshold(model)  # it has to be there
    one = one_value(value)
    # no score lies above NaN: nothing would be flagged any more
    if isinstance(one, bool) or not isinstance(one, int | float) or one != one:
        raise wrong_value("ood_threshold", value, "a number")
    if model.converted is not None:
        model.converted.set(ood_threshold=float(one))
    else:
        model.made.ood.threshold = float(one)


def _clear_ood(model: HDlModel, value: Any) -> None:
    if model.continual:
        raise ContinualStateError("OOD detection is part of the continual state and stays with it")
    if model.made is not None:
        model.made.clear_ood()


_SET: dict[str, Callable[[HDlModel, Any], object]] = {  # what they return is not looked at
    "class_names": _set_names,
    "class_ids": _set_ids,
    "image_dimensions": _set_dimensions,
    "image_width": lambda model, value: _resize(
        model, (model.recipe.size[0], one_of(value, "'image_width'")), model.recipe.channels
    ),
    "image_height": lambda model, value: _resize(
        model, (one_of(value, "'image_height'"), model.recipe.size[1]), model.recipe.channels
    ),
    "image_num_channels": lambda model, value: _resize(
        model, model.recipe.size, one_of(value, "'image_num_channels'")
    ),
    "device": _set_device,
    "runtime": _set_runtime,
    "gpu": lambda model, value: None,
    "meta_data": _set_meta_data,
    # checked alone: nothing is kept for training that could be freed
    "optimize_for_inference": lambda model, value: as_bool(value, "optimize_for_inference"),
    "ood_threshold": _set_ood_threshold,
    "clear_ood": _clear_ood,
}

"""Devices, and the optimisation of a model for one of them."""

from __future__ import annotations

from typing import Any

from learnkit.backends.devices import devices
from learnkit.data.labelled_images import Labelled
from learnkit.errors import warn_user
from learnkit.halcon import errors
from learnkit.halcon.errors import operator_error
from learnkit.halcon.handles import HDlDevice, HDlModel, checked_model
from learnkit.halcon.model import ids_of, sample_images, samples_in
from learnkit.halcon.operators import (
    as_tuple,
    checked_params,
    is_whole,
    one_of,
    one_value,
    operator,
    wrong_value,
)

_SETTABLE = ("threads",)
_MAX_THREADS = 1024


@operator("DLDeviceHandles")
def query_available_dl_devices(
    gen_param_name: Any = (), gen_param_value: Any = ()
) -> list[HDlDevice]:
    """The devices of this machine, GPUs first; those alone that have the values asked for.

    Name a parameter twice to allow two values: `(['runtime', 'runtime'], ['gpu', 'cpu'])`.

    Raises:
        HOperatorError: 7911, no such parameter; 7914, another number of values than of names.
    """
    names, values = as_tuple(gen_param_name), as_tuple(gen_param_value)
    if len(names) != len(values):
        raise wrong_value("gen_param_value", values, f"one value for each of {names}")
    # a backend that is not installed has a row, too, and runs no precision
    found = [HDlDevice(row) for row in devices() if row["precisions"]]
    # stable: GPUs among each other stay in the order of `devices`
    found.sort(key=lambda device: device.runtime != "gpu")
    names = list(map(str, names))
    for name in dict.fromkeys(names):
        wanted = [value for one, value in zip(names, values, strict=True) if one == name]
        found = [one for one in found if any(v in get_dl_device_param(one, name) for v in wanted)]
    return found


@operator("DLDeviceHandle")
def query_available_dl_devices_s(gen_param_name: Any = (), gen_param_value: Any = ()) -> HDlDevice:
    """The only device that has the values asked for."""
    return one_of(
        query_available_dl_devices(gen_param_name, gen_param_value), "the list of devices"
    )


@operator("GenParamValue")
def get_dl_device_param(dldevice_handle: Any, gen_param_name: str) -> list[Any]:
    """The values of a parameter of a device.

    Raises:
        HOperatorError: 7911, no such parameter; 2404, no device.
    """
    device = _device(dldevice_handle)
    row, is_torch = device.row, device.row["backend"] == "torch"
    values: dict[str, Any] = {
        "runtime": device.runtime,
        "id": 0,
        "name": f"{row['backend']} on {row['device']}",
        "type": device.runtime,
        "ai_accelerator_interface": "none" if is_torch else row["backend"],
        "conversion_supported": "true",
        "precisions": row["precisions"],
        "cast_precisions": tuple(one for one in row["precisions"] if one != "int8"),
        "calibration_precisions": tuple(one for one in row["precisions"] if one == "int8"),
        "optimize_for_inference_params": [dict(row["parameters"])],
        "settable_device_params": _SETTABLE,
    }
    if gen_param_name not in values:
        raise operator_error(
            errors.H_ERR_DL_MODEL_UNSUPPORTED_GENPARAM,
            f"a device has no {gen_param_name!r}; it has {', '.join(map(repr, values))}",
        )
    return as_tuple(values[gen_param_name])


@operator("GenParamValue")
def get_dl_device_param_s(dldevice_handle: Any, gen_param_name: str) -> Any:
    """The only value of a parameter of a device."""
    return one_of(get_dl_device_param(dldevice_handle, gen_param_name), repr(gen_param_name))


@operator()
def set_dl_device_param(dldevice_handle: Any, gen_param_name: Any, gen_param_value: Any) -> None:
    """Set 'threads', the processor threads that a model optimised for the device may use.

    Raises:
        HOperatorError: 7911, nothing else can be set; 7914, no number of threads.
    """
    device = _device(dldevice_handle)
    names, values = as_tuple(gen_param_name), as_tuple(gen_param_value)
    if len(names) != len(values):
        raise wrong_value("gen_param_value", values, f"one value for each of {names}")
    for name, value in zip(names, values, strict=True):
        if name not in _SETTABLE:
            raise operator_error(
                errors.H_ERR_DL_MODEL_UNSUPPORTED_GENPARAM,
                f"{name!r} cannot be set on a device; 'threads' can",
            )
        if not is_whole(value, 1, _MAX_THREADS):
            raise wrong_value("threads", value, f"a whole number in 1..{_MAX_THREADS}")
        device.row = {**device.row, "threads": value}


def _device(dldevice_handle: Any) -> HDlDevice:
    found = as_tuple(dldevice_handle)
    if len(found) != 1 or not isinstance(found[0], HDlDevice):
        raise operator_error(
            errors.H_ERR_WRONG_HANDLE_TYPE,
            f"{dldevice_handle!r:.80} is no device; query_available_dl_devices lists them",
        )
    return found[0]


@operator("DLModelHandleConverted", "ConversionReport")
def optimize_dl_model_for_inference(
    dlmodel_handle: Any,
    dldevice_handle: Any,
    precision: str = "float32",
    dlsamples: Any = (),
    gen_param: Any = (),
) -> tuple[HDlModel, dict[str, Any]]:
    """(the model for a device, a report of what it cost); the given model stays as it is.

    Differs from HALCON: the report holds the converted model against the given one: labels kept,
    accuracy, speed. A model that fails there is given all the same, with a warning that says why;
    `model.predictor.optimize` refuses it.

    Args:
        dlmodel_handle: the model, trained or in the continual state.
        dldevice_handle: of `query_available_dl_devices`.
        precision: 'float32', 'float16', 'bfloat16' or 'int8'.
        dlsamples: for 'int8', 10 to 20 samples of each class of the training.
        gen_param: parameters of the device; [] or {} for its own.

    Raises:
        HOperatorError: 7960, the device has no such precision; 7917, it is optimised already, or
            int8 has no samples; 7911, a parameter that the device has not.
    """
    model, device = checked_model(dlmodel_handle), _device(dldevice_handle)
    row = device.row
    params = checked_params(gen_param, row["parameters"], f"{device!r}")
    if precision not in row["precisions"]:
        raise operator_error(
            errors.H_ERR_DL_DEVICE_UNSUPPORTED_PRECISION,
            f"`precision` is {precision!r}; {device!r} runs {', '.join(row['precisions'])}",
        )
    if model.is_converted:
        raise operator_error(
            errors.H_ERR_DL_MODEL_CONVERTED_UNSUPPORTED,
            "the model is optimised already; optimise the one it was made from",
        )
    predictor, report = model.predictor.optimize(
        precision,
        _labelled(model, dlsamples),
        backend=row["backend"],
        device=row["device"],
        threads=row.get("threads"),
        # what fails a gate is returned all the same, with the warning below
        force=True,
        progress=False,
        **params,
    )
    if not report.passed:
        warn_user(f"the optimised model differs more than `optimize` would let pass: {report}")
    fast = HDlModel(size=model.recipe.size, channels=model.recipe.channels, device=device)
    fast.parameters, fast.meta_data = dict(model.parameters), dict(model.meta_data)
    fast.converted = predictor
    return fast, report.to_dict()


def _labelled(model: HDlModel, dlsamples: Any) -> Any:
    """The images of samples, with the names of their classes where all have an id of the model."""
    samples = samples_in(dlsamples)
    if not samples:
        return None
    images = sample_images(samples)
    names = {number: name for name, number in ids_of(model).items()}
    ids = [one_value(one.get("image_label_id")) for one in samples]
    labels = [names.get(one) if isinstance(one, int) else None for one in ids]
    return images if None in labels else Labelled(images, labels)

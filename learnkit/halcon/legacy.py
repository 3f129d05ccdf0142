"""Operators of HALCON's former "DL classification", which newer releases no longer have.

Procedures of that time (`read_dl_classifier_data_set`, `apply_dl_classifier_batchwise`, ...) are
not here: the ones of today take their place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from learnkit.halcon.errors import (
    H_ERR_DL_INPUT_WRONG_LENGTH,
    H_ERR_DL_MODEL_UNSUPPORTED_GENPARAM,
    H_ERR_WRONG_HANDLE_TYPE,
    operator_error,
)
from learnkit.halcon.handles import HDlModel, checked_model
from learnkit.halcon.images import images_in
from learnkit.halcon.model import (
    apply_dl_model,
    clear_dl_model,
    deserialize_dl_model,
    ids_named,
    ids_of,
    read_dl_model,
    serialize_dl_model,
    write_dl_model,
)
from learnkit.halcon.model_param import get_dl_model_param, set_dl_model_param
from learnkit.halcon.operators import as_dict, as_tuple, is_whole, one_value, operator, wrong_value
from learnkit.halcon.training import train_dl_model_batch

_NAMES = {"classes": "class_names"}


@operator("DLClassifierHandle")
def read_dl_classifier(file_name: str | os.PathLike[str]) -> HDlModel:
    """`read_dl_model`."""
    return read_dl_model(file_name)


@operator()
def write_dl_classifier(dlclassifier_handle: Any, file_name: str | os.PathLike[str]) -> None:
    """`write_dl_model`."""
    write_dl_model(dlclassifier_handle, file_name)


@operator("SerializedItemHandle")
def serialize_dl_classifier(dlclassifier_handle: Any) -> bytes:
    """`serialize_dl_model`."""
    return serialize_dl_model(dlclassifier_handle)


@operator("DLClassifierHandle")
def deserialize_dl_classifier(serialized_item_handle: bytes) -> HDlModel:
    """`deserialize_dl_model`."""
    return deserialize_dl_model(serialized_item_handle)


@operator()
def clear_dl_classifier(dlclassifier_handle: Any) -> None:
    """`clear_dl_model`."""
    clear_dl_model(dlclassifier_handle)


@operator()
def clear_dl_classifier_result(dlclassifier_result_handle: Any) -> None:
    """Nothing; results are plain lists."""


@operator()
def clear_dl_classifier_train_result(dlclassifier_train_result_handle: Any) -> None:
    """Nothing; results are plain dictionaries."""


@operator("GenParamValue")
def get_dl_classifier_param(dlclassifier_handle: Any, gen_param_name: str) -> list[Any]:
    """`get_dl_model_param`; 'classes' are the 'class_names'."""
    return get_dl_model_param(dlclassifier_handle, _NAMES.get(gen_param_name, gen_param_name))


@operator()
def set_dl_classifier_param(
    dlclassifier_handle: Any, gen_param_name: str, gen_param_value: Any
) -> None:
    """`set_dl_model_param`; 'classes' sets names, and ids where there are none."""
    set_dl_model_param(
        dlclassifier_handle, _NAMES.get(gen_param_name, gen_param_name), gen_param_value
    )


@operator("DLClassifierTrainResultHandle")
def train_dl_classifier_batch(
    batch_images: Any, dlclassifier_handle: Any, batch_labels: Any
) -> dict[str, float]:
    """One step of training by images and the ids, or names, of their classes."""
    ids = ids_of(checked_model(dlclassifier_handle))
    labels = ids_named(as_tuple(batch_labels), ids)
    images = images_in(batch_images)
    if len(labels) > len(images):
        raise operator_error(
            H_ERR_DL_INPUT_WRONG_LENGTH,
            f"there are {len(labels)} labels for {len(images)} images; give one for each",
        )
    samples = [
        # a slice: an image without a label has [], which is refused with 7789
        {"image": image, "image_label_id": labels[place : place + 1]}
        for place, image in enumerate(images)
    ]
    return train_dl_model_batch(dlclassifier_handle, samples)


@operator("GenParamValue")
def get_dl_classifier_train_result(
    dlclassifier_train_result_handle: Mapping[str, float], gen_param_name: str
) -> list[float]:
    """The 'loss' of a step."""
    if gen_param_name != "loss":
        raise operator_error(
            H_ERR_DL_MODEL_UNSUPPORTED_GENPARAM, f"a step has no {gen_param_name!r}; it has 'loss'"
        )
    return [as_dict(dlclassifier_train_result_handle).get("total_loss", float("nan"))]


@operator("DLClassifierResultHandle")
def apply_dl_classifier(images: Any, dlclassifier_handle: Any) -> list[dict[str, Any]]:
    """`apply_dl_model` for images."""
    return apply_dl_model(dlclassifier_handle, [{"image": image} for image in images_in(images)])


@operator("GenResultValue")
def get_dl_classifier_result(
    dlclassifier_result_handle: list[dict[str, Any]], index: Any, gen_result_name: str
) -> list[Any]:
    """'predicted_classes' or 'confidences' of one image, all of them; of 'all', the likeliest."""
    keys = {
        "predicted_classes": "classification_class_names",
        "confidences": "classification_confidences",
    }
    if gen_result_name not in keys:
        raise operator_error(
            H_ERR_DL_MODEL_UNSUPPORTED_GENPARAM,
            f"a result has no {gen_result_name!r}; it has {', '.join(map(repr, keys))}",
        )
    key = keys[gen_result_name]
    results = [as_dict(one) for one in as_tuple(dlclassifier_result_handle)]
    if wrong := [one for one in results if key not in one]:
        raise operator_error(
            H_ERR_WRONG_HANDLE_TYPE, f"{wrong[0]!r:.80} is no result; apply_dl_classifier makes it"
        )
    index = one_value(index)
    # the type first: an array compared with a text has no single truth
    if isinstance(index, str) and index == "all":
        return [result[key][0] for result in results]
    if not is_whole(index, 0, len(results) - 1):
        raise wrong_value("index", index, f"'all' or a place in 0..{len(results) - 1}")
    return list(results[index][key])

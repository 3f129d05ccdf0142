"""Models: read, write, serialise, apply, explain; HALCON's operators over learner and predictor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from learnkit.deploy.predictor import Predictor, load_learner
from learnkit.errors import ContinualPredictionError
from learnkit.halcon import errors
from learnkit.halcon.errors import operator_error
from learnkit.halcon.handles import (
    DEFAULTS,
    MAX_CLASS_ID,
    PARAMETERS,
    HDlModel,
    checked_model,
    silenced,
)
from learnkit.halcon.images import as_bytes
from learnkit.halcon.operators import (
    as_tuple,
    checked_params,
    is_whole,
    one_of,
    one_value,
    operator,
)
from learnkit.inference.heatmap import Heatmap
from learnkit.learner.learner import ImageLearner

# What HALCON's names of pretrained networks stand for. Set `weights`, a file, where no hub is
# reached; `arch_kwargs`, `mean` and `std` where the weights were trained otherwise than timm's.
PRETRAINED: dict[str, dict[str, Any]] = {
    f"pretrained_dl_classifier_{name}.hdl": {"arch": arch}
    for name, arch in {
        "compact": "mobilenetv3_small_100",
        "enhanced": "efficientnet_b0",
        "resnet18": "resnet18",
        "resnet50": "resnet50",
        "mobilenet_v2": "mobilenetv2_100",
        "alexnet": "torchvision/alexnet",
    }.items()
}
_METHODS = {"grad_cam": "gradcam", "guided_grad_cam": "guided"}


@operator("DLModelHandle")
def read_dl_model(
    file_name: str | os.PathLike[str],
    *,
    weights: Any = None,
    arch_kwargs: Mapping[str, Any] | None = None,
) -> HDlModel:
    """A model: that of a bundle's folder, whatever it is called, or a pretrained network by name.

    Differs from HALCON: `.hdl` and `.onnx` files of MVTec's are closed or without classes, and are
    refused; the names of its pretrained networks stand for those in `PRETRAINED`.

    Args:
        file_name: a folder that `write_dl_model` or `learn.export` wrote, or a name in
            `PRETRAINED`.
        weights: a file with the weights of a pretrained network.
        arch_kwargs: of its constructor.

    Raises:
        HOperatorError: 7780, there is no such model or it is damaged; 7782, of a newer format.
    """
    path, name = Path(file_name), Path(file_name).name
    if path.is_dir():
        return _opened(path)
    if name in PRETRAINED and not path.exists():
        # a copy: the weights given are those of this model alone
        row = dict(PRETRAINED[name])
        if weights is not None:
            row["weights"] = weights
        if arch_kwargs is not None:
            row["arch_kwargs"] = dict(arch_kwargs)
        return HDlModel(pretrained=row)
    if path.is_file():
        raise operator_error(
            errors.H_ERR_DL_FILE_READ,
            f"{name!r} is a file; models here are folders that write_dl_model or learn.export "
            "wrote. HALCON's own files are closed: train the network here, from the same images",
        )
    raise operator_error(
        errors.H_ERR_DL_FILE_READ,
        f"there is no model {str(file_name)!r}; give a folder that write_dl_model wrote, or one of "
        f"{', '.join(PRETRAINED)}",
    )


def _opened(source: Path | bytes) -> HDlModel:
    """The handle over a bundle; it can be trained unless it was converted."""
    predictor = load_learner(source)
    recipe = predictor.preprocessing
    kept = dict(predictor.metadata.get(PARAMETERS, {}))
    model = HDlModel(size=recipe.size, channels=recipe.channels)
    model.meta_data = dict(kept.get("meta_data", {}))
    # what `learn.export` wrote has none of them
    model.parameters = {name: kept.get(name, value) for name, value in DEFAULTS.items()}
    if predictor.variant is None:
        model.made = silenced(ImageLearner.from_bundle(source))
    else:
        model.converted = predictor
    return model


@operator()
def write_dl_model(dlmodel_handle: Any, file_name: str | os.PathLike[str]) -> None:
    """Write a bundle: network, classes and ids, recipe, OOD detection, continual state, parameters.

    Raises:
        HOperatorError: 7781, the folder cannot be written; what stood there still does.
    """
    _to_write(checked_model(dlmodel_handle)).save(file_name)


@operator("SerializedItemHandle")
def serialize_dl_model(dlmodel_handle: Any) -> bytes:
    """The bundle that `write_dl_model` would write, as bytes."""
    return _to_write(checked_model(dlmodel_handle)).to_bytes()


@operator("DLModelHandle")
def deserialize_dl_model(serialized_item_handle: bytes) -> HDlModel:
    """The model of `serialize_dl_model`'s bytes; they are checked like a bundle.

    Raises:
        HOperatorError: 7780, the bytes are damaged or none of a model.
    """
    return _opened(bytes(serialized_item_handle))


def _to_write(model: HDlModel) -> Predictor:
    """The predictor that is written, with what only this module knows in its metadata."""
    predictor = model.predictor
    about = {**model.parameters, "meta_data": model.meta_data}
    predictor.metadata = {**predictor.metadata, PARAMETERS: about}
    return predictor


@operator()
def clear_dl_model(dlmodel_handle: Any) -> None:
    """Free one model or several; their handles cannot be used afterwards."""
    # all are checked before the first is cleared
    for model in [checked_model(one) for one in as_tuple(dlmodel_handle)]:
        model.made, model.converted, model.pretrained, model.cleared = None, None, None, True


@operator("DLResultBatch")
def apply_dl_model(
    dlmodel_handle: Any, dlsample_batch: Any, outputs: Any = ()
) -> list[dict[str, Any]]:
    """One result per sample: ids, names and confidences of all classes, likeliest first.

    With out-of-distribution detection also `ood_result` (1 or 0), `ood_score`, `ood_threshold`,
    and learnkit's `ood_p_value`. Any number of samples is taken, one alone too.

    Args:
        dlmodel_handle: the model.
        dlsample_batch: samples with 'image', as it was read or preprocessed.
        outputs: [] for these; 'features' adds the network's features.

    Raises:
        HOperatorError: 7783, a sample has no 'image'; 7915, no samples; 7787, no such output; 7910,
            no class is known; 7790 and 7791, an image of another type, or of other grey values.
    """
    model = checked_model(dlmodel_handle)
    extra = as_tuple(outputs)
    if unknown := [name for name in extra if name != "features"]:
        raise operator_error(
            errors.H_ERR_DL_INVALID_OUTPUT,
            f"`outputs` names {unknown[0]!r}; give [] for the classification, or 'features'",
        )
    images = sample_images(dlsample_batch)
    if not model.class_names:
        raise operator_error(
            errors.H_ERR_DL_MODEL_APPLY_NO_DEF_OUTPUTS,
            "the model knows no class yet, so there is nothing to say of an image; teach it by "
            "train_dl_model or extend_dl_continual_learning",
        )
    predictor = model.predictor
    try:
        rows = [one.to_halcon() for one in predictor.predict_batch(images)]
    except ContinualPredictionError as error:
        raise operator_error(
            errors.H_ERR_DL_CONTINUAL_LEARNING_INFERENCE_FAILED, str(error)
        ) from error
    found = [
        {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()}
        for row in rows
    ]
    if extra:
        features = np.asarray(predictor.features(images, progress=False))
        for one, row in zip(found, features, strict=True):
            one["features"] = row.tolist()
    return found


def sample_images(dlsample_batch: Any) -> list[np.ndarray]:
    """The images of samples as uint8.

    Raises:
        HOperatorError: 7915, there are no samples; 7783, one has no 'image'; 7790 and 7791, see
            `as_bytes`.
    """
    samples = samples_in(dlsample_batch)
    if not samples:
        raise operator_error(
            errors.H_ERR_DL_MODEL_INVALID_NUM_SAMPLES, "there are no samples; give one at least"
        )
    for place, sample in enumerate(samples):
        if "image" not in sample:
            raise operator_error(
                errors.H_ERR_DL_INPUTS_MISSING,
                f"sample {place} has no 'image'; it has {sorted(map(str, sample))}",
            )
    return [as_bytes(one["image"], f"sample {place}") for place, one in enumerate(samples)]


def samples_in(dlsample_batch: Any) -> list[dict[str, Any]]:
    """The samples meant: one dictionary, or a sequence of them.

    Raises:
        HOperatorError: 7790, something else.
    """
    samples = [dlsample_batch] if isinstance(dlsample_batch, Mapping) else dlsample_batch
    if not isinstance(samples, Sequence) or not all(isinstance(one, dict) for one in samples):
        raise operator_error(
            errors.H_ERR_DL_INPUT_WRONG_TYPE,
            f"{dlsample_batch!r:.80} are no samples; gen_dl_samples_from_images makes them",
        )
    return list(samples)


@operator("DLResults")
def gen_dl_model_heatmap(
    dlmodel_handle: Any,
    dlsample: Any,
    heatmap_method: str = "grad_cam",
    target_classes: Any = (),
    gen_param: Any = (),
) -> list[dict[str, Any]]:
    """For each sample, `heatmap_<method>` with `heatmap_image_class_<id>`: float32 (H, W) in 0..1.

    Differs from HALCON: models in the continual state are explained, too, and on any processor.

    Args:
        dlmodel_handle: the model, not optimised.
        dlsample: one sample or several.
        heatmap_method: 'grad_cam' or 'guided_grad_cam'.
        target_classes: ids; [] is the likeliest class of each image.
        gen_param: 'target_conv_layer', the name of a layer.

    Raises:
        HOperatorError: 7850, an optimised model has no gradients; 7852, no such method; 7853, an id
            that no class has; 7785, no such layer; 7851, a layer or network without a feature map.
    """
    model = checked_model(dlmodel_handle)
    layer = checked_params(gen_param, {"target_conv_layer": None}, "gen_dl_model_heatmap")
    if model.is_converted:
        raise operator_error(
            errors.H_ERR_DL_HEATMAP_UNSUPPORTED_RUNTIME,
            "an optimised model has no gradients; explain the model it was made from",
        )
    if heatmap_method not in _METHODS:
        raise operator_error(
            errors.H_ERR_DL_HEATMAP_UNSUPPORTED_METHOD,
            f"`heatmap_method` is {heatmap_method!r}; it takes {', '.join(map(repr, _METHODS))}",
        )
    predictor, ids = model.predictor, ids_of(model)
    targets = class_targets(model, target_classes) or None
    how = {"target": targets, "layer": one_value(as_tuple(layer["target_conv_layer"]) or None)}
    _check_layer(model, how["layer"])
    found = [
        predictor.heatmap(image, _METHODS[heatmap_method], **how)
        for image in sample_images(dlsample)
    ]
    return [{f"heatmap_{heatmap_method}": maps_by_id(one, ids)} for one in found]


def _check_layer(model: HDlModel, layer: Any) -> None:
    known = dict(model.learner.model.named_modules())
    if layer is not None and (not isinstance(layer, str) or layer not in known):
        near = get_close_matches(str(layer), known, 3) or [*known][-3:]
        raise operator_error(
            errors.H_ERR_DL_INVALID_NAME,
            f"'target_conv_layer' is {layer!r:.80}, which is no layer of the network; such are "
            f"{', '.join(map(repr, near))}",
        )


@operator("DLResults")
def gen_dl_model_heatmap_s(
    dlmodel_handle: Any,
    dlsample: Any,
    heatmap_method: str = "grad_cam",
    target_classes: Any = (),
    gen_param: Any = (),
) -> dict[str, Any]:
    """The only result of `gen_dl_model_heatmap`, of one sample."""
    how = (heatmap_method, target_classes, gen_param)
    return one_of(gen_dl_model_heatmap(dlmodel_handle, dlsample, *how), "the list of results")


def maps_by_id(found: Heatmap, ids: Mapping[str, int]) -> dict[str, Any]:
    """The maps of a heatmap under HALCON's keys."""
    return {f"heatmap_image_class_{ids[name]}": heat for name, heat in found.maps.items()}


def ids_of(model: HDlModel) -> dict[str, int]:
    """The id of each class by its name."""
    return dict(zip(model.class_names, model.class_ids, strict=True))


def ids_named(names: Sequence[Any], ids: Mapping[str, int]) -> list[Any]:
    """Ids by the names of their classes; what is no such name stays."""
    return [ids.get(one, one) if isinstance(one, str) else one for one in names]


def class_targets(model: HDlModel, target_classes: Any) -> list[str]:
    """The names of the classes with these ids; HOperatorError 7853 for ids that none has."""
    names = {number: name for name, number in ids_of(model).items()}
    wanted = as_tuple(target_classes)
    if unknown := [one for one in wanted if not is_whole(one, 0, MAX_CLASS_ID) or one not in names]:
        raise operator_error(
            errors.H_ERR_DL_HEATMAP_WRONG_TARGET_CLASS_ID,
            f"no class has the id {unknown[0]!r}; there are {sorted(names)}",
        )
    return [names[one] for one in wanted]

"""Datasets of masks, anomalies and boxes; operators for models of these types are refused."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from learnkit.data.annotations.coco import RAW
from learnkit.data.annotations.dl_dataset import RECTANGLE1, DLDataset
from learnkit.data.annotations.masks import masks_of_images
from learnkit.data.dataset import ImageDataset
from learnkit.data.image import find_images
from learnkit.halcon.errors import H_ERR_DL_MODEL_OPERATOR_UNSUPPORTED, HError, operator_error
from learnkit.halcon.operators import (
    as_bool,
    as_tuple,
    checked_params,
    one_value,
    operator,
    procedure,
)

_GOOD = ("good", "ok")  # folders of images without anomaly


def _refuse(name: str, kind: str) -> NoReturn:
    raise operator_error(
        H_ERR_DL_MODEL_OPERATOR_UNSUPPORTED,
        f"{name} is for {kind}, and learnkit classifies images; its datasets are read and written "
        "by learnkit.data, models of this type are not there yet",
    )


@procedure("DLDataset")
def read_dl_dataset_segmentation(
    image_dir: Any,
    segmentation_dir: Any,
    class_names: Any,
    class_ids: Any = (),
    image_list: Any = (),
    segmentation_list: Any = (),
    gen_param: Any = (),
) -> dict[str, Any]:
    """A DLDataset for segmentation; every mask is read once.

    Differs from HALCON: the pixels of the masks are checked, and so is their size.

    Args:
        image_dir: the folder of images.
        segmentation_dir: the folder of masks, whose pixels are class ids.
        class_names: of the classes.
        class_ids: of the classes; [] for 0, 1, 2, ...
        image_list: image files below `image_dir`; [] for all.
        segmentation_list: the mask of each; [] for those of the same name.
        gen_param: no key is known.

    Raises:
        HError: an image has no mask, or a mask has another size or an id of no class.
    """
    checked_params(gen_param, {}, "read_dl_dataset_segmentation", of_operator=False)
    images, root = _listed(image_dir, image_list)
    masks, mask_root = _listed(segmentation_dir, segmentation_list)
    found = masks if as_tuple(segmentation_list) else masks_of_images(images, masks)
    if len(found) != len(images) or None in found:
        lacking = [one for one, mask in zip(images, found, strict=False) if mask is None]
        raise HError(
            f"{len(images)} images and {len(masks)} masks: {lacking[:3] or 'some'} have none; each "
            "image needs one, of its name or at its place in `segmentation_list`"
        )
    names = as_tuple(class_names)
    told = {"image_dir": str(root), "segmentation_dir": str(mask_root), "class_names": names}
    samples = _samples(images, [{"segmentation_file_name": mask} for mask in found])
    ids = as_tuple(class_ids) or list(range(len(names)))
    return _checked({**told, "class_ids": ids, "samples": samples})


@procedure("DLDataset")
def read_dl_dataset_anomaly(
    image_dir: Any,
    anomaly_dir: Any = (),
    image_list: Any = (),
    anomaly_list: Any = (),
    gen_param: Any = (),
) -> dict[str, Any]:
    """A DLDataset for anomaly detection: images below a folder "good" or "ok" are 'ok'.

    Args:
        image_dir: the folder of images.
        anomaly_dir: the folder of masks, at most one for each image that is 'nok', found by the
            names of the image and of its folder; [] for none.
        image_list: image files below `image_dir`; [] for all.
        anomaly_list: the mask of each, '' for none; [] for those found by name.
        gen_param: 'image_sub_dirs': folders below `image_dir` to read, [] for all.

    Raises:
        HError: no images; an unknown key; a mask has another size than its image.
    """
    params = checked_params(
        gen_param, {"image_sub_dirs": ()}, "read_dl_dataset_anomaly", of_operator=False
    )
    images, root = _listed(image_dir, image_list)
    if folders := as_tuple(params["image_sub_dirs"]):
        # with the slash, or 'cut' would be found in 'cut_2', too
        images = [one for one in images if any(one.startswith(f"{name}/") for name in folders)]
    told = {"image_dir": str(root), "class_names": ["ok", "nok"], "class_ids": [0, 1]}
    labels = ["ok" if PurePosixPath(one).parent.name in _GOOD else "nok" for one in images]
    found: Sequence[str | None] = [None] * len(images)
    if as_tuple(anomaly_dir):
        masks, mask_root = _listed(anomaly_dir, anomaly_list)
        told["anomaly_dir"] = str(mask_root)
        found = masks
        if not as_tuple(anomaly_list):
            by_name = {_in_folder(mask): mask for mask in masks}
            names = masks_of_images([_in_folder(one) for one in images], by_name)
            found = [by_name[name] if name else None for name in names]
    if len(found) != len(images):
        raise HError(f"{len(images)} images and {len(found)} in `anomaly_list`; give one each")
    samples = _samples(images, [{"anomaly_label": label} for label in labels])
    for sample, mask in zip(samples, found, strict=True):
        if mask and sample["anomaly_label"] == "nok":
            sample["anomaly_file_name"] = mask
    return _checked({**told, "samples": samples})


@procedure("DLDataset")
def read_dl_dataset_from_coco(
    coco_file_name: Any, image_dir: Any, gen_param: Any = ()
) -> dict[str, Any]:
    """A DLDataset for object detection with upright boxes, of COCO's JSON.

    The names of the keys are not verified.

    Args:
        coco_file_name: the JSON file.
        image_dir: the folder of images.
        gen_param: 'read_raw_annotations' (false): keep whole annotations; 'read_only_noncrowd'
            (true): leave crowds out; 'purpose': 'detection' alone.

    Raises:
        HError: the file is no COCO JSON, an image is missing, or a key or value is unknown.
    """
    defaults = {"read_raw_annotations": False, "read_only_noncrowd": True, "purpose": "detection"}
    params = checked_params(gen_param, defaults, "read_dl_dataset_from_coco", of_operator=False)
    if as_tuple(params["purpose"]) != ["detection"]:
        raise HError(f"'purpose' is {params['purpose']!r}; it takes 'detection'")
    alone = as_bool(params["read_only_noncrowd"], "read_only_noncrowd")
    raw = as_bool(params["read_raw_annotations"], "read_raw_annotations")
    told = ImageDataset.from_coco(one_value(coco_file_name), one_value(image_dir)).to_halcon()
    keys = ["bbox_label_id", *RECTANGLE1, *([RAW] if raw else [])]
    for sample in told["samples"]:
        crowds = [alone and one.get("iscrowd") == 1 for one in sample.get(RAW, ())]
        kept = {
            key: [one for one, crowd in zip(sample[key], crowds, strict=True) if not crowd]
            for key in keys
        }
        for key in sample.keys() - {"image_id", "image_file_name", "split"}:
            del sample[key]
        sample.update(kept)
    return DLDataset(told).to_dict()


def _listed(folder: Any, files: Any) -> tuple[list[str], Path]:
    """(files, or all images, below a folder, with "/"; the folder)."""
    names = as_tuple(folder)
    if len(names) != 1:
        raise HError(f"{folder!r:.100} is {len(names)} folders; give one")
    root = Path(os.path.abspath(names[0]))
    if given := as_tuple(files):
        return [str(one).replace("\\", "/") for one in given], root
    return [path.relative_to(root).as_posix() for path in find_images(root)], root


def _in_folder(path: str) -> str:
    """A file's name below the name of its folder alone."""
    pure = PurePosixPath(path)
    return f"{pure.parent.name}/{pure.name}"


def _samples(images: Sequence[str], more: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not images:
        raise HError("there are no images; check the folder, or `image_list`")
    return [
        {"image_id": number, "image_file_name": name, **one}
        for number, (name, one) in enumerate(zip(images, more, strict=True), 1)
    ]


def _checked(told: dict[str, Any]) -> dict[str, Any]:
    """The dictionary, whose files were all looked at."""
    ImageDataset.from_halcon(told)
    return DLDataset(told).to_dict()


@operator("DLTrainResult")
def train_dl_model_anomaly_dataset(*args: Any, **kwargs: Any) -> NoReturn:
    """Error 7912: models for anomaly detection are not there yet."""
    _refuse("train_dl_model_anomaly_dataset", "anomaly detection")


@operator("DLModelHandle")
def create_dl_model_detection(*args: Any, **kwargs: Any) -> NoReturn:
    """Error 7912: models for object detection are not there yet."""
    _refuse("create_dl_model_detection", "object detection")


@operator("AnomalySegmentationThreshold", "AnomalyClassificationThresholds")
def compute_dl_anomaly_thresholds(*args: Any, **kwargs: Any) -> NoReturn:
    """Error 7912: models for anomaly detection are not there yet."""
    _refuse("compute_dl_anomaly_thresholds", "anomaly detection")

"""Samples: DLSample dictionaries made from images, read, written and augmented."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from fastai.torch_core import TensorImage
from fasttransform import Transform
from PIL import Image, ImageEnhance

from learnkit.data.geometry import Planes, image_of_pixels
from learnkit.halcon import dataset
from learnkit.halcon.errors import HError
from learnkit.halcon.images import images_in, pixels_of
from learnkit.halcon.model import sample_images, samples_in
from learnkit.halcon.operators import (
    as_bool,
    as_dict,
    as_tuple,
    checked_params,
    one_value,
    procedure,
    writing,
)
from learnkit.halcon.preprocess import read_sample, sample_name, write_sample

_AUGMENTATION: dict[str, Any] = {
    "augmentation_percentage": 50,
    "rotate": 0,
    "rotate_range": 0,
    "mirror": "off",
    "brightness_variation": 0,
    "brightness_variation_spot": 0,
    "contrast_variation": 0,
    "saturation_variation": 0,
    "crop_percentage": "off",
    "crop_pixel": "off",
}
_OFF = ("off", 0, None, [], 0.0)
_FLIPS: dict[str, tuple[int, ...]] = {"r": (0,), "c": (1,), "rc": (0, 1), "cr": (0, 1)}


@procedure("DLSampleBatch")
def gen_dl_samples_from_images(images: Any) -> list[dict[str, Any]]:
    """One sample per image, as read: of arrays, PIL images or files, one or several."""
    found = [
        pixels_of(one) if isinstance(one, str | os.PathLike) else np.asarray(one)
        for one in images_in(images)
    ]
    return [{"image": pixels} for pixels in found]


@procedure("DLSampleBatch")
def gen_dl_samples(
    dldataset: Mapping[str, Any],
    sample_indices: Any,
    restrict_keys_dlsample: Any = "off",
    gen_param: Any = (),
) -> list[dict[str, Any]]:
    """Samples of a dataset with the images as they lie in 'image_dir', before preprocessing.

    Args:
        dldataset: the dataset.
        sample_indices: places of samples, as `find_dl_samples` gives them.
        restrict_keys_dlsample: 'off' or 'classification', with labels; 'image_only', without.
        gen_param: 'ignore_missing_labels' ('false'): take samples without a label, too.

    Raises:
        HOperatorError: 7926, there is no such sample.
        HError: another restriction or parameter, or a sample has no label.
    """
    known = {"ignore_missing_labels": "false"}
    params = checked_params(gen_param, known, "gen_dl_samples", of_operator=False)
    may_miss = as_bool(params["ignore_missing_labels"], "ignore_missing_labels")
    wanted = (as_tuple(restrict_keys_dlsample) or ["off"])[0]
    if wanted not in ("off", "classification", "image_only"):
        raise HError(
            f"`restrict_keys_dlsample` is {wanted!r}; it takes 'off', 'classification' or "
            "'image_only'"
        )
    param = as_dict(dldataset.get("preprocess_param"))
    channels = (as_tuple(param.get("image_num_channels")) or [3])[0]
    found = []
    for sample in dataset.chosen(dldataset, sample_indices):
        file = dataset.image_file(dldataset, sample)
        # 1 and 3 become each other in preprocessing; nothing is converted to other numbers
        one = {"image": pixels_of(file, None if channels in (1, 3) else channels)}
        labels = {} if wanted == "image_only" else {"image_label_id": _label_id(sample)}
        if not labels.get("image_label_id", True) and not may_miss:
            raise HError(
                f"the sample with 'image_id' {sample.get('image_id')!r} has no 'image_label_id'; "
                "label it, or set 'ignore_missing_labels' to 'true'"
            )
        found.append(one | {"image_id": sample.get("image_id"), **labels})
    return found


def _label_id(sample: Mapping[str, Any]) -> list[Any]:
    return as_tuple(sample.get("image_label_id", []))


@procedure("DLSampleBatch")
def read_dl_samples(dldataset: Mapping[str, Any], sample_indices: Any) -> list[dict[str, Any]]:
    """The preprocessed samples with these places; ids of classes are those of the dataset.

    Raises:
        HOperatorError: 7926, there is no such sample.
        HError: the dataset was not preprocessed.
    """
    found = []
    for sample in dataset.chosen(dldataset, sample_indices):
        own = {"image_id": sample.get("image_id"), "image_label_id": _label_id(sample)}
        found.append({**read_sample(dataset.sample_file(dldataset, sample)), **own})
    return found


@procedure()
def write_dl_samples(
    dldataset: Mapping[str, Any],
    sample_indices: Any,
    dlsample_batch: Any,
    gen_param_name: Any = (),
    gen_param_value: Any = (),
) -> None:
    """Write samples in the place of those with these places, without loss.

    Args:
        dldataset: with 'dlsample_dir'.
        sample_indices: one place for each sample.
        dlsample_batch: the samples; their 'image_id' is that of the dataset's.
        gen_param_name: 'raise_error_if_content_not_serializable', which is always so here.
        gen_param_value: its value.

    Raises:
        HError: another number of samples than of places, another 'image_id', or a key that holds
            what a file cannot.
    """
    names, values = as_tuple(gen_param_name), as_tuple(gen_param_value)
    known = {"raise_error_if_content_not_serializable": "true"}
    given = dict(zip_longest(names, values))
    checked_params(given, known, "write_dl_samples", of_operator=False)
    rows, samples = dataset.chosen(dldataset, sample_indices), samples_in(dlsample_batch)
    if len(rows) != len(samples):
        raise HError(f"there are {len(samples)} samples for {len(rows)} places; give one each")
    for row, sample in zip(rows, samples, strict=True):
        own = row.get("image_id")
        if as_tuple(sample.get("image_id", own)) != as_tuple(own):
            raise HError(
                f"the sample with 'image_id' {sample['image_id']} was to be written in the place "
                f"of {own}"
            )
    # the images are checked, too, before the first file is written
    pixels = sample_images(samples) if samples else []
    for row, sample, image in zip(rows, samples, pixels, strict=True):
        channels = image.shape[2] if image.ndim == 3 else 1
        row.setdefault("dlsample_file_name", sample_name(dataset.image_id(row), channels))
        file = dataset.sample_file(dldataset, row)
        with writing(file):
            write_sample(file, {**sample, "image": image})


@procedure()
def augment_dl_samples(dlsample_batch: Any, gen_param: Any = ()) -> None:
    """Distort some samples in place, for training: each chosen one in one way, drawn at random.

    Args:
        dlsample_batch: the samples.
        gen_param: 'augmentation_percentage' (50) of the samples are distorted, by one of: 'rotate'
            (90 or 180: multiples of it), 'rotate_range' (degrees to either side), 'mirror' ('r',
            'c', 'rc'), 'brightness_variation' and 'brightness_variation_spot' (grey values),
            'contrast_variation' and 'saturation_variation' (0..1), 'crop_percentage' (of the
            sides, kept), 'crop_pixel'.

    Raises:
        HError: an unknown key, or a value that it does not take.
    """
    param = augmentation(gen_param)
    rng = np.random.default_rng(dataset.seed())
    samples = samples_in(dlsample_batch)
    # all are checked before the first is changed, in place
    found = sample_images(samples) if samples else []
    for sample, pixels in zip(samples, found, strict=True):
        sample["image"] = augmented(pixels, param, rng)


def augmentation(gen_param: Any) -> dict[str, Any]:
    """The checked parameters of an augmentation."""
    param = checked_params(gen_param, _AUGMENTATION, "the augmentation", of_operator=False)
    param = {name: "off" if value == [] else one_value(value) for name, value in param.items()}
    if param["mirror"] not in (*_OFF, *_FLIPS):
        raise HError(f"'mirror' is {param['mirror']!r}; it takes 'off', 'r', 'c' or 'rc'")
    if param["rotate"] not in (*_OFF, 90, 180):
        raise HError(f"'rotate' is {param['rotate']!r}; it takes 0, 90 or 180")
    for name, most in _LIMITS.items():
        if (value := param[name]) in _OFF:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise HError(f"{name!r} is {value!r}; it is a number in 0..{most}, or 'off'")
    return param


class SampleAugmentation(Transform):
    """`augment_dl_samples` for the images of a training.

    Args:
        param: of `augmentation`.
        seed: of what is drawn.
    """

    order, split_idx = 6, 0  # behind ToTensor; of training images alone

    def __init__(self, param: Mapping[str, Any], seed: int):
        super().__init__()
        self.param, self.rng = dict(param), np.random.default_rng(seed)

    def encodes(self, image: TensorImage) -> TensorImage:
        """The image (C, H, W) uint8, distorted in one way or not at all."""
        pixels = np.moveaxis(np.asarray(image), 0, -1)
        found = np.moveaxis(augmented(pixels, self.param, self.rng), -1, 0)
        return type(image)(torch.from_numpy(np.ascontiguousarray(found)))


_LIMITS = {
    "augmentation_percentage": 100,
    "rotate_range": 180,
    "brightness_variation": 255,
    "brightness_variation_spot": 255,
    "contrast_variation": 1,
    "saturation_variation": 1,
    "crop_percentage": 100,
    "crop_pixel": 16_384,
}


def augmented(pixels: np.ndarray, param: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
    """The image (H, W[, C]) uint8, distorted in one way or not at all; of the same shape."""
    # in this order, whatever that of the caller's keys: a seed draws the same
    names = [name for name in _WAYS if param[name] not in _OFF]
    if not names or rng.uniform(0, 100) >= param["augmentation_percentage"]:
        return pixels
    name = names[rng.integers(len(names))]
    # torch takes no negative strides, which flips have; Pillow drops the axis of a single channel
    return np.ascontiguousarray(_WAYS[name](pixels, param[name], rng)).reshape(pixels.shape)


def _rotated(pixels: np.ndarray, multiple: float, rng: np.random.Generator) -> np.ndarray:
    step = int(multiple) // 90
    # from 1 on: a sample that was chosen does not stay as it is
    turns = step * int(rng.integers(1, 4 // step))
    if turns % 2 and pixels.shape[0] != pixels.shape[1]:
        return _resized(np.rot90(pixels, turns), pixels.shape)
    return np.rot90(pixels, turns)


def _turned(pixels: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(-1, 1) * most

    def turned(image: Image.Image) -> Image.Image:
        mean = np.asarray(image).reshape(-1, len(image.getbands())).mean(0).astype(int).tolist()
        fill = tuple(mean) if len(mean) > 1 else mean[0]
        return image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=fill)

    return _changed(pixels, turned)


def _spotted(pixels: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    row, column = rng.uniform(0, height), rng.uniform(0, width)
    radius = rng.uniform(0.1, 0.5) * min(height, width)
    rows, columns = np.ogrid[:height, :width]
    # a Gaussian, of which `radius` is the standard deviation
    spot = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * radius**2))
    spot = spot if pixels.ndim == 2 else spot[..., None]
    return _shifted(pixels, rng.uniform(-1, 1) * most * spot)


def _shifted(pixels: np.ndarray, shift: float | np.ndarray) -> np.ndarray:
    # before the cast, which would wrap around
    return (pixels + np.rint(shift)).clip(0, 255).astype(np.uint8)


def _enhanced(
    enhancer: type[ImageEnhance.Color | ImageEnhance.Contrast],
    pixels: np.ndarray,
    most: float,
    rng: np.random.Generator,
) -> np.ndarray:
    factor = 1 + rng.uniform(-1, 1) * most
    return _changed(pixels, lambda image: enhancer(image).enhance(factor))


def _cut(pixels: np.ndarray, sides: Iterable[int], rng: np.random.Generator) -> np.ndarray:
    height, width = sides
    top = int(rng.integers(pixels.shape[0] - height + 1))
    left = int(rng.integers(pixels.shape[1] - width + 1))
    return _resized(pixels[top : top + height, left : left + width], pixels.shape)


def _resized(pixels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    size = shape[1], shape[0]
    return _changed(pixels, lambda image: image.resize(size, Image.Resampling.BILINEAR))


def _changed(pixels: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """The pixels after a change by Pillow; each channel by itself unless there are 1 or 3."""
    image = image_of_pixels(pixels)
    if isinstance(image, Planes):
        return np.stack([np.asarray(change(one)) for one in image.channels], axis=-1)
    return np.asarray(change(image))


# how an image is distorted by a parameter of this value
_WAYS: dict[str, Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]] = {
    "rotate": _rotated,
    "rotate_range": _turned,
    "mirror": lambda pixels, axes, rng: np.flip(
        pixels, _FLIPS[axes][rng.integers(len(_FLIPS[axes]))]
    ),
    "brightness_variation": lambda pixels, most, rng: _shifted(pixels, rng.uniform(-1, 1) * most),
    "brightness_variation_spot": _spotted,
    "contrast_variation": partial(_enhanced, ImageEnhance.Contrast),
    "saturation_variation": partial(_enhanced, ImageEnhance.Color),
    "crop_percentage": lambda pixels, percent, rng: _cut(
        pixels, (max(1, round(side * percent / 100)) for side in pixels.shape[:2]), rng
    ),
    "crop_pixel": lambda pixels, most, rng: _cut(
        pixels, (min(side, max(1, int(most))) for side in pixels.shape[:2]), rng
    ),
}

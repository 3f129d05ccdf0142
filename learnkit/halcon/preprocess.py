"""Preprocessing: images in the size of the network, once, as samples on disk."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from learnkit.data.dataset import ImageDataset
from learnkit.data.geometry import Planes, image_of_pixels
from learnkit.data.image import naming_errors, source_name
from learnkit.data.preprocess import PER_IMAGE, Preprocessing
from learnkit.data.read_images import read_images
from learnkit.errors import DataError
from learnkit.halcon.dataset import check_type, image_file, image_id, preprocessed, samples_of
from learnkit.halcon.dictionaries import json_text
from learnkit.halcon.errors import HError
from learnkit.halcon.handles import MAX_SIDE, HDlModel, checked_model
from learnkit.halcon.images import RANGE_MAX, RANGE_MIN, as_bytes, pixels_of
from learnkit.halcon.model import samples_in
from learnkit.halcon.operators import (
    as_bool,
    as_dict,
    as_tuple,
    checked_params,
    is_whole,
    one_value,
    procedure,
    writing,
)
from learnkit.storage.array_files import MAX_CHANNELS
from learnkit.storage.filesystem import write_file

FILE_NAME, FOLDER = "dl_dataset.json", "samples"
_TEXT = "dlsample"  # the chunk of a PNG that holds all of a sample but its image
_DESCRIPTION = 270  # the tag of a TIFF that does
_DEFLATE = "tiff_adobe_deflate"
_NORMALIZATIONS = ("none", "all_channels", "first_channel", "constant_values")
_DOMAINS = ("full_domain", "crop_domain")
# ImageNet's, times 255: .485, .456, .406 and .229, .224, .225
_MEANS = {
    "mean_values_normalization": [123.675, 116.28, 103.53],
    "deviation_values_normalization": [58.395, 57.12, 57.375],
}
_AHEAD = 64


@procedure("DLPreprocessParam")
def create_dl_preprocess_param(
    dlmodel_type: str,
    image_width: int,
    image_height: int,
    image_num_channels: int,
    image_range_min: Any = (),
    image_range_max: Any = (),
    normalization_type: Any = "none",
    domain_handling: Any = "full_domain",
    ignore_class_ids: Any = (),
    set_background_id: Any = (),
    class_ids_background: Any = (),
    gen_param: Any = (),
) -> dict[str, Any]:
    """The parameters of preprocessing, as a dictionary with HALCON's keys.

    Images are resized without regard to their proportions. 'all_channels' and 'first_channel'
    stretch the contrast of each image; all else stays as it was read: the network scales its input,
    and normalises it as it was trained, also where 'constant_values' are given.

    Raises:
        HError: a model type other than 'classification', or a value that there is not.
    """
    if dlmodel_type != "classification":
        raise HError(f"`dlmodel_type` is {dlmodel_type!r}; only 'classification' is preprocessed")
    size = {"image_width": image_width, "image_height": image_height}
    for name, value in size.items():
        if not is_whole(value, 1, MAX_SIDE):
            raise HError(f"`{name}` is {value!r:.80}; it is a number of pixels in 1..{MAX_SIDE}")
    if not is_whole(image_num_channels, 1, MAX_CHANNELS):
        raise HError(
            f"`image_num_channels` is {image_num_channels!r:.80}; it is a number in "
            f"1..{MAX_CHANNELS}"
        )
    normalization = _one("normalization_type", normalization_type, _NORMALIZATIONS)
    limits = [
        (as_tuple(given) or [default])[0]
        for given, default in ((image_range_min, RANGE_MIN), (image_range_max, RANGE_MAX))
    ]
    if not all(isinstance(one, int | float) for one in limits) or not limits[0] < limits[1]:
        raise HError(
            f"`image_range_min` and `image_range_max` are {limits}; they are numbers, the first "
            "smaller"
        )
    param = {
        "model_type": dlmodel_type,
        **size,
        "image_num_channels": image_num_channels,
        "image_range_min": limits[0],
        "image_range_max": limits[1],
        "normalization_type": normalization,
        "domain_handling": _one("domain_handling", domain_handling, _DOMAINS),
        "ignore_class_ids": as_tuple(ignore_class_ids),
        "set_background_id": as_tuple(set_background_id),
        "class_ids_background": as_tuple(class_ids_background),
    }
    return param | (_MEANS if normalization == "constant_values" else {}) | as_dict(gen_param)


def _one(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """The value, if it is allowed; scripts of old say 'false' and 'true' for kinds of scaling."""
    found = (as_tuple(value) or [allowed[0]])[0]
    if allowed == _NORMALIZATIONS and found in ("true", "false"):
        # as HALCON's published procedures map them
        found = {"true": "first_channel", "false": "none"}[found]
    if found not in allowed:
        raise HError(f"`{name}` is {value!r}; it takes {', '.join(map(repr, allowed))}")
    return found


@procedure("DLPreprocessParam")
def create_dl_preprocess_param_from_model(
    dlmodel_handle: Any,
    normalization_type: Any = "none",
    domain_handling: Any = "full_domain",
    set_background_id: Any = (),
    class_ids_background: Any = (),
    gen_param: Any = (),
) -> dict[str, Any]:
    """`create_dl_preprocess_param` with the size, channels and range of a model."""
    recipe = checked_model(dlmodel_handle).recipe
    height, width = recipe.size
    what = ("classification", width, height, recipe.channels, RANGE_MIN, RANGE_MAX)
    rest = (normalization_type, domain_handling, [], set_background_id, class_ids_background)
    return create_dl_preprocess_param(*what, *rest, gen_param)


@procedure("DLDatasetFileName")
def preprocess_dl_dataset(
    dldataset: MutableMapping[str, Any],
    data_directory: str | os.PathLike[str],
    dlpreprocess_param: Mapping[str, Any],
    gen_param: Any = (),
) -> str:
    """Write every image in the network's size; return the file of the dataset that points to them.

    The dataset gets `dlsample_dir` and `preprocess_param`, each sample `dlsample_file_name`: a PNG
    file without loss, of other numbers of channels than 1 and 3 a TIFF file, which holds the
    sample's other keys as text. The folder is there whole, or not at all.

    Args:
        dldataset: changed in place, after success.
        data_directory: to write to.
        dlpreprocess_param: of `create_dl_preprocess_param`.
        gen_param: 'overwrite_files': 'false', 'true', or 'auto', which keeps what was preprocessed
            alike; 'show_progress' ('true').

    Raises:
        HError: there are samples in the folder already, parameters are wrong, or images cannot be
            read; all of those are named.
    """
    defaults = {"overwrite_files": "false", "show_progress": "true"}
    params = checked_params(gen_param, defaults, "preprocess_dl_dataset", of_operator=False)
    progress = as_bool(params["show_progress"], "show_progress")
    recipe, folder = recipe_of(dlpreprocess_param), Path(data_directory)
    check_type(dldataset)
    samples = samples_of(dldataset)
    done = _with_samples(dldataset, folder, dlpreprocess_param, samples)
    json_text(done)  # what it cannot hold is told before images are read
    target, mode = folder / FOLDER, one_value(params["overwrite_files"])
    if mode == "auto" and _is_done(folder, done):
        return _noted(dldataset, done, folder)
    if target.exists() and mode != "auto" and not as_bool(mode, "overwrite_files"):
        raise HError(
            f"{target} is there already; set 'overwrite_files' to 'true', or to 'auto' to keep "
            "samples that were made alike"
        )
    # the file of the dataset comes last: 'auto' goes by it
    _write_samples(target, recipe, done, progress)
    return _noted(dldataset, done, folder)


def _with_samples(
    dldataset: Mapping[str, Any], folder: Path, param: Mapping[str, Any], samples: list[Any]
) -> dict[str, Any]:
    """The dataset as it is when its images are preprocessed."""
    ids = [image_id({"image_id": place, **sample}) for place, sample in enumerate(samples)]
    if len(set(ids)) < len(ids):
        raise HError("'image_id' is not unique; every sample needs its own")
    channels = one_value(param["image_num_channels"])
    named = [
        {**sample, "image_id": one, "dlsample_file_name": sample_name(one, channels)}
        for sample, one in zip(samples, ids, strict=True)
    ]
    kept = {**dldataset, "samples": named, "preprocess_param": dict(param)}
    return kept | {"dlsample_dir": str(Path(os.path.abspath(folder / FOLDER)))}


def _is_done(folder: Path, done: Mapping[str, Any]) -> bool:
    """Whether the folder holds this dataset, preprocessed alike, with all its files."""
    try:
        found = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    files = [
        Path(done["dlsample_dir"]) / sample["dlsample_file_name"] for sample in done["samples"]
    ]
    # through JSON as the file went: tuples are lists there
    return found == json.loads(json_text(done)) and all(file.is_file() for file in files)


def _write_samples(
    target: Path, recipe: Preprocessing, done: Mapping[str, Any], progress: bool
) -> None:
    """Write the samples beside `target` and put them in its place when all are there."""
    samples = done["samples"]
    files = [image_file(done, sample) for sample in samples]
    new = target.with_name(f".{target.name}.new")
    # what a killed run left there
    shutil.rmtree(new, ignore_errors=True)
    with writing(new):
        new.mkdir(parents=True)
    try:
        read = read_images(
            recipe.pixels, files, n_ahead=_AHEAD, progress=progress, what="preprocess"
        )
        for sample, pixels in zip(samples, read, strict=True):
            write_sample(new / sample["dlsample_file_name"], {**sample, "image": pixels})
        # a rename replaces no folder that holds files
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _noted(dldataset: MutableMapping[str, Any], done: dict[str, Any], folder: Path) -> str:
    """The file of the dataset; the caller's dictionary knows now what is in it."""
    path = Path(os.path.abspath(folder / FILE_NAME))
    with writing(path):
        write_file(path, lambda file: file.write(json_text(done).encode()))
    for sample, one in zip(samples_of(dldataset), done["samples"], strict=True):
        sample.update(one)
    dldataset.update({key: done[key] for key in ("preprocess_param", "dlsample_dir")})
    return str(path)


def write_sample(file: Path, sample: Mapping[str, Any]) -> None:
    """Write a sample without loss, its other keys as text within, in a file of `sample_name`.

    Raises:
        DataError: a key holds what JSON cannot.
    """
    rest = {
        key: value
        for key, value in sample.items()
        if key not in ("image", "dlsample_file_name", "image_file_name", "split")
    }
    try:
        text = json.dumps(rest, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"the sample for {file.name} cannot be written: {error}") from error
    pixels = sample["image"]
    image = image_of_pixels(np.asarray(pixels))
    if isinstance(image, Planes):
        first, *others = image.channels
        about = {"tiffinfo": {_DESCRIPTION: text}, "save_all": True, "append_images": others}
        pages = io.BytesIO()  # Pillow reads again what it has written of pages
        first.save(pages, "TIFF", compression=_DEFLATE, **about)
        write_file(file, lambda out: out.write(pages.getbuffer()))
        return
    chunk = PngInfo()
    chunk.add_text(_TEXT, text)
    write_file(file, lambda out: image.save(out, "PNG", pnginfo=chunk, compress_level=1))


def sample_name(image_id: int, channels: int) -> str:
    """What a sample's file is called: a PNG, or of many channels a TIFF with a page for each."""
    return f"{image_id}_dlsample.{'png' if channels in (1, 3) else 'tif'}"


def read_sample(file: Path) -> dict[str, Any]:
    """A written sample with its image (H, W, C)."""
    if file.suffix != ".tif":
        pixels = pixels_of(file)
    else:
        with naming_errors(source_name(file), file), Image.open(file, formats=["TIFF"]) as image:
            n_pages = image.n_frames
        pixels = pixels_of(file, n_pages)
    with Image.open(file, formats=["PNG", "TIFF"]) as image:
        tags = getattr(image, "tag_v2", {})
        text = getattr(image, "text", {}).get(_TEXT) or tags.get(_DESCRIPTION) or "{}"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HError(f"the text in the sample {file.name!r} is damaged: {error}") from error
    about = found if isinstance(found, dict) else {}
    return {**about, "image": pixels[..., None] if pixels.ndim == 2 else pixels}


@procedure()
def preprocess_dl_samples(dlsample_batch: Any, dlpreprocess_param: Mapping[str, Any]) -> None:
    """Bring the 'image' of samples, in place, into the network's size: uint8 (H, W, C).

    Raises:
        HError: a sample has no 'image', its number is named; or parameters are wrong.
        HOperatorError: 7790 and 7791, an image of another type or of other grey values.
    """
    recipe, samples = recipe_of(dlpreprocess_param), samples_in(dlsample_batch)
    for place, sample in enumerate(samples):
        if "image" not in sample:
            raise HError(f"sample {place} has no 'image'; it has {sorted(map(str, sample))}")
    # all of them before the first is changed, in place
    found = [
        recipe.pixels(as_bytes(sample["image"], f"sample {place}"))
        for place, sample in enumerate(samples)
    ]
    for sample, pixels in zip(samples, found, strict=True):
        sample["image"] = pixels


def images_for(model: HDlModel, dldataset: Mapping[str, Any]) -> ImageDataset:
    """The preprocessed images of a DLDataset, to be learned from by a model.

    Raises:
        HError: it was not preprocessed or not split, or for another model.
    """
    data = preprocessed(dldataset)
    if "preprocess_param" in dldataset:
        model.adopt(recipe_of(dldataset["preprocess_param"]))
    return data


def recipe_of(dlpreprocess_param: Mapping[str, Any]) -> Preprocessing:
    """How images are read by these parameters; the network normalises them itself.

    Raises:
        HError: a key is missing or has a value that there is not.
    """
    param = as_dict(dlpreprocess_param)
    needed = ("image_width", "image_height", "image_num_channels")
    if missing := [key for key in needed if key not in param]:
        raise HError(
            f"`dlpreprocess_param` has no {missing[0]!r}; create_dl_preprocess_param makes it"
        )
    width, height, channels = ((as_tuple(param[key]) or [None])[0] for key in needed)
    normalization = _one("normalization_type", param.get("normalization_type"), _NORMALIZATIONS)
    per_image = normalization if normalization in PER_IMAGE else None
    return Preprocessing((height, width), channels=channels, method="squish", per_image=per_image)

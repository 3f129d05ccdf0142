"""Datasets: HALCON's DLDataset as a plain dictionary, read from folders, split, searched."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from learnkit.data.annotations.dl_dataset import TYPES, dl_dataset_type
from learnkit.data.dataset import ImageDataset
from learnkit.data.image import find_images
from learnkit.data.readers import class_in_name
from learnkit.errors import DataError, warn_user
from learnkit.halcon import errors
from learnkit.halcon.errors import HError, operator_error
from learnkit.halcon.operators import (
    as_bool,
    as_tuple,
    checked_params,
    is_whole,
    one_value,
    procedure,
)

SPLITS = ("train", "validation", "test")
_NOT_PREPROCESSED = (
    "the dataset is not preprocessed; call preprocess_dl_dataset, and read the file it returns "
    "with read_dict"
)
MAX_SEED = 2**32 - 1
MAX_IMAGE_ID = 2**63 - 1
_system: dict[str, Any] = {"seed_rand": 42}


@procedure()
def set_system(system_parameter: str, value: Any) -> None:
    """Set 'seed_rand', the seed of `split_dl_dataset` and `augment_dl_samples`.

    All else is accepted with a warning and has no effect: trainings of a seed are the same anyway.

    Raises:
        HError: the seed is no whole number.
    """
    if system_parameter != "seed_rand":
        warn_user(f"{system_parameter!r} has no effect here; 'seed_rand' has")
        return
    if not is_whole(number := one_value(value), 0, MAX_SEED):
        raise HError(f"'seed_rand' is {value!r:.80}; it is a whole number in 0..{MAX_SEED}")
    _system["seed_rand"] = number


def seed() -> int:
    """The seed that was set last."""
    return int(_system["seed_rand"])


@procedure("DLDataset")
def read_dl_dataset_classification(
    raw_image_folder: Any, label_source: str | re.Pattern[str] = "last_folder"
) -> dict[str, Any]:
    """A DLDataset of all images below a folder, or below several.

    Args:
        raw_image_folder: a folder, or a list of them.
        label_source: 'last_folder', the folder of an image is its class; 'file_name', the file's
            name without trailing digits and separators is; learnkit's own: a compiled regular
            expression whose group is searched in the file's name.

    Raises:
        HError: no images, or another label source.
    """
    given = as_tuple(raw_image_folder)
    if wrong := [one for one in given if not isinstance(one, str | os.PathLike)]:
        raise HError(f"`raw_image_folder` is {wrong[0]!r:.80}; it is the name of a folder")
    # commonpath takes no relative paths beside absolute ones
    folders = [Path(os.path.abspath(folder)) for folder in given]
    files = [file for folder in folders for file in find_images(folder)]
    if not files:
        raise HError(f"there is no image below {', '.join(map(str, folders)) or 'no folder'}")
    root = Path(os.path.commonpath(folders))
    label_of = _label_source(one_value(label_source))
    labels = [label_of(file) for file in files]
    names = sorted(set(labels))
    ids = {name: number for number, name in enumerate(names)}
    samples = [
        {
            "image_id": number,
            "image_file_name": file.relative_to(root).as_posix(),
            "image_label_id": [ids[label]],
        }
        for number, (file, label) in enumerate(zip(files, labels, strict=True), 1)
    ]
    found = {"image_dir": str(root), "class_names": names, "class_ids": list(ids.values())}
    return found | {"samples": samples}


def _label_source(source: Any) -> Callable[[Path], str]:
    """The function of a file that gives its label."""
    if source == "last_folder":
        return lambda file: file.parent.name
    if source == "file_name":
        return lambda file: class_in_name(file.stem)
    if isinstance(source, re.Pattern):
        return lambda file: _searched(source, file)
    raise HError(
        f"`label_source` is {source!r}; it takes 'last_folder', 'file_name' or a compiled regular "
        "expression"
    )


def _searched(pattern: re.Pattern[str], file: Path) -> str:
    match = pattern.search(file.name)
    if match is None:
        raise HError(f"{pattern.pattern!r} is not found in {file.name!r}")
    return match[1] if pattern.groups else match[0]


@procedure()
def split_dl_dataset(
    dldataset: MutableMapping[str, Any],
    training_percent: float,
    validation_percent: float,
    gen_param: Any = (),
) -> None:
    """Give every sample its 'split': 'train', 'validation' or, the rest, 'test'; class by class.

    Differs from HALCON: the same images are split alike whatever their order in the dataset.

    Args:
        dldataset: changed in place.
        training_percent: 0 to 100.
        validation_percent: 0 to 100.
        gen_param: 'overwrite_split' (false), 'model_type' (guessed from the samples).

    Raises:
        HError: a percentage below 0, a sum above 100, an unknown key, a dataset that is split
            already, or whose type is not known or not classification.
    """
    defaults = {"overwrite_split": "false", "model_type": None}
    params = checked_params(gen_param, defaults, "split_dl_dataset", of_operator=False)
    percents = {"training_percent": training_percent, "validation_percent": validation_percent}
    for name, percent in percents.items():
        if not isinstance(percent, int | float) or not 0 <= percent <= 100:
            raise HError(f"`{name}` is {percent!r}; it lies in 0..100")
    if training_percent + validation_percent > 100:
        raise HError(
            f"`training_percent` {training_percent} and `validation_percent` {validation_percent} "
            "are more than 100 together"
        )
    check_type(dldataset, params["model_type"])
    samples = samples_of(dldataset)
    overwrite = as_bool(params["overwrite_split"], "overwrite_split")
    if not overwrite and any("split" in sample for sample in samples):
        raise HError(
            "the dataset is split already; set 'overwrite_split' to 'true' to split it anew"
        )
    # `ImageDataset.split` refuses what is split already
    unsplit = [{k: v for k, v in sample.items() if k != "split"} for sample in samples]
    data = ImageDataset.from_halcon({**dldataset, "samples": unsplit}, check_files=False)
    shares = training_percent / 100, validation_percent / 100
    split = data.split(*shares, seed=seed()).to_halcon()["samples"]
    # last: what is refused changes nothing
    for sample, one in zip(samples, split, strict=True):
        sample["split"] = one["split"]


@procedure("SampleIndices")
def find_dl_samples(
    samples: Sequence[Mapping[str, Any]], key_name: str, key_value: Any, mode: str = "match"
) -> list[int]:
    """The places of the samples with a value.

    Args:
        samples: of a DLDataset, or DLSamples.
        key_name: a key of theirs; samples without it are not found.
        key_value: one value, or several.
        mode: 'match', the key's tuple is `key_value`; 'or', it is one element, and one of
            `key_value`; 'contain', one of its elements is among `key_value`.

    Raises:
        HError: another mode.
    """
    if wrong := [one for one in as_tuple(samples) if not isinstance(one, Mapping)]:
        raise HError(f"`samples` holds {wrong[0]!r:.80}; samples are dictionaries")
    wanted = as_tuple(key_value)
    tests: dict[str, Callable[[list[Any]], bool]] = {
        "match": lambda found: found == wanted,
        "or": lambda found: len(found) == 1 and found[0] in wanted,
        "contain": lambda found: any(one in wanted for one in found),
    }
    if mode not in tests:
        raise HError(f"`mode` is {mode!r}; it takes 'match', 'or' or 'contain'")
    return [
        place
        for place, sample in enumerate(as_tuple(samples))
        if key_name in sample and tests[mode](as_tuple(sample[key_name]))
    ]


def samples_of(dldataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The samples of a DLDataset.

    Raises:
        HOperatorError: 7925, it is no DLDataset.
    """
    if not isinstance(dldataset, Mapping) or "samples" not in dldataset:
        seen = sorted(map(str, dldataset)) if isinstance(dldataset, Mapping) else type(dldataset)
        raise operator_error(
            errors.H_ERR_DL_INVALID_DATASET,
            f"a DLDataset is a dictionary with 'samples'; this one is {seen}",
        )
    samples = as_tuple(dldataset["samples"])
    if wrong := [one for one in samples if not isinstance(one, dict)]:
        raise operator_error(
            errors.H_ERR_DL_INVALID_DATASET, f"'samples' holds {wrong[0]!r:.80}, no dictionary"
        )
    return samples


def check_type(dldataset: Mapping[str, Any], given: Any = None) -> None:
    """Raise HError unless it is a dataset for classification."""
    # else the type that the keys of the samples tell
    kind = (as_tuple(given) or [None])[0] or dl_dataset_type(samples_of(dldataset))
    if kind is None:
        raise HError(
            "the type of the dataset cannot be told: no sample has "
            f"{', '.join(map(repr, TYPES))}; give 'model_type'"
        )
    if kind != "classification":
        raise HError(
            f"the dataset is for {kind}; only datasets for classification are learned from"
        )


def chosen(dldataset: Mapping[str, Any], sample_indices: Any) -> list[dict[str, Any]]:
    """The samples with these places.

    Raises:
        HOperatorError: 7926, there is no such place.
    """
    samples, places = samples_of(dldataset), as_tuple(sample_indices)
    for place in places:
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(samples):
            raise operator_error(
                errors.H_ERR_DL_INVALID_SAMPLE_INDEX,
                f"`sample_indices` has {place!r}; there are the samples 0..{len(samples) - 1}",
            )
    return [samples[place] for place in places]


def image_id(sample: Mapping[str, Any]) -> int:
    """The id of a sample's image; HError where it is no whole number."""
    found = one_value(sample.get("image_id"))
    if not is_whole(found, -MAX_IMAGE_ID, MAX_IMAGE_ID):
        raise HError(f"a sample has the 'image_id' {found!r:.80}; it is a whole number")
    return found


def image_file(dldataset: Mapping[str, Any], sample: Mapping[str, Any]) -> Path:
    """The image of a sample, which lies in 'image_dir'; HError where it would not."""
    return _file_below(dldataset.get("image_dir", ""), sample, "image_file_name", "image_dir")


def sample_file(dldataset: Mapping[str, Any], sample: Mapping[str, Any]) -> Path:
    """The preprocessed file of a sample, which lies in 'dlsample_dir'; HError where it would not.

    Raises:
        HError: also where the dataset was not preprocessed.
    """
    if "dlsample_dir" not in dldataset or "dlsample_file_name" not in sample:
        raise HError(_NOT_PREPROCESSED)
    return _file_below(dldataset["dlsample_dir"], sample, "dlsample_file_name", "dlsample_dir")


def _file_below(root: Any, sample: Mapping[str, Any], key: str, folder: str) -> Path:
    if key not in sample:
        raise HError(f"a sample has no {key!r}; it has {sorted(map(str, sample))}")
    name = str((as_tuple(sample[key]) or [""])[0]).replace("\\", "/")
    # a dataset may be anybody's: no name leads out of the folder, nor to another drive of Windows
    leaves = name.startswith("/") or ".." in name.split("/") or name[1:2] == ":"
    if not name or leaves or "\0" in name:
        raise HError(f"{key!r} is {name!r}; it must lie below {folder!r}: relative, without '..'")
    return Path(str((as_tuple(root) or [""])[0])) / name


def preprocessed(dldataset: Mapping[str, Any]) -> ImageDataset:
    """The preprocessed images of a DLDataset that is split, as learnkit's own dataset.

    Raises:
        HError: it was not preprocessed or not split, or a file is gone.
    """
    samples = samples_of(dldataset)
    if "dlsample_dir" not in dldataset or any("dlsample_file_name" not in s for s in samples):
        raise HError(_NOT_PREPROCESSED)
    check_type(dldataset)
    rows = [
        {**sample, "image_file_name": (as_tuple(sample["dlsample_file_name"]) or [None])[0]}
        for sample in samples
    ]
    try:
        data = ImageDataset.from_halcon(
            {**dldataset, "samples": rows}, image_dir=str(dldataset["dlsample_dir"])
        )
    except DataError as error:
        error.code = errors.H_ERR_DL_INVALID_DATASET
        raise
    if data.multi_label:
        raise operator_error(
            errors.H_ERR_DL_INPUT_WRONG_LENGTH,
            "a sample has several 'image_label_id', or none; these models learn one class an image",
        )
    return data

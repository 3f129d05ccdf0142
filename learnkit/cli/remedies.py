"""Remedies on the command line: what to type where a message tells what to write in Python."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextvars import ContextVar

from learnkit.errors import (
    ContinualNotInitializedError,
    ConversionRefusedError,
    UnreadableImagesError,
    WeightsUnavailableError,
)

BY_KIND: dict[type[Exception], str] = {
    WeightsUnavailableError: "--weights FILE, or --no-pretrained",
    ConversionRefusedError: "--fallback, or --force",
    ContinualNotInitializedError: "learnkit train FOLDER --continual makes such a model",
    UnreadableImagesError: "learnkit check FOLDER lists them",
}
# What a message names, and what to type. An argument that is an option of the command by the same
# name needs no line here.
BY_WORDS = {
    r"allow_pickle=": "learnkit convert EXPORT.PKL OUT --allow-pickle",
    r"Load it again and repeat": "the same command again, or --out OUT, another folder",
    r"class_names=": "learnkit rename MODEL OLD=NEW",
    r"init_continual\(|fit_ood\(": "learnkit train FOLDER --continual makes such a model",
    r"optimize\(": "learnkit optimize MODEL --out OUT",
    r"compile=": "--backend NAME, another one",
    r"`extend` it": "learnkit extend MODEL FOLDER --out MODEL",
    r"learnkit\.devices\(": "learnkit devices",
    r"merge_classes\(": (
        "learnkit forget MODEL CLASS, then learnkit extend MODEL FOLDER with its images in the "
        "folder of the other class"
    ),
    r"`group=` of `split`": "learnkit train FOLDER --group REGEX",
    r"split\(|overwrite=|raise the share": (
        "images in FOLDER/train and FOLDER/valid, or class folders alone"
    ),
    r"splits=": "other names for these folders, or one of them as FOLDER",
    r"allow_empty=": "images in these folders, or without them",
    r"dataloaders\(method=": "learnkit train FOLDER --method squish",
    r"`max_pixels` if": "a copy of the image with fewer pixels",
    r"would be padded": "learnkit train FOLDER --method squish, or an image less long and thin",
    r"variant=.* loads that": "--variant NAME",
    r"loads that; to bring": "learnkit extend MODEL FOLDER --out MODEL",
    r"gets to the hub by": "--out OUT, a folder",
    r"bit_depth=": "images converted to 8 or 16 bits",
    r"\bcut=|pool=|timm\.list_models\(": "--arch NAME, another one",
    r"normalize=": "--mean R,G,B and --std R,G,B",
    r"variants=": "--out OUT, another folder",
    r"check_weights=": "--weights-check",
    r"arch_kwargs": "--arch-args NAME=VALUE",
    r"heatmap_thresh": "--size PIXELS, a larger one",
}
_PYTHON = re.compile(r"`([a-z_]+)`|(?<![\w-])([a-z_]+)=(False\b)?")
_OPTION = re.compile(r"--[a-z][a-z-]*")
_HERE = " Here: "
options_here: ContextVar[frozenset[str]] = ContextVar("options of the command", default=frozenset())


def remedy(text: str, kind: type = str) -> str:
    """What follows `text` to say what to type in the command that runs; "" for nothing.

    Args:
        text: a message that may name what to write in Python.
        kind: the error that it is of.
    """
    if _HERE in text:
        return ""
    options = options_here.get()
    found = [hint for error, hint in BY_KIND.items() if issubclass(kind, error)]
    found += [hint for words, hint in BY_WORDS.items() if re.search(words, text)]
    # another command, or one whose options the running one has
    found = [
        hint
        for hint in found
        if hint.startswith("learnkit ") or options >= set(_OPTION.findall(hint))
    ]
    found = found[:1] or [", ".join(_same_options(text, options))]
    stop = "" if text.endswith(".") else "."
    return f"{stop}{_HERE}{found[0]}." if found[0] else ""


def _same_options(text: str, options: Collection[str]) -> list[str]:
    """Options by the names of arguments in `text`, those left out that it names already."""
    said, found = set(_OPTION.findall(text)), []
    for quoted, given, is_false in _PYTHON.findall(text):
        name = (quoted or given).replace("_", "-")
        option = f"--no-{name}" if is_false else f"--{name}"
        if option in options and option not in {*said, *found}:
            found.append(option)
    return found

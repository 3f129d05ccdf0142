"""Arguments of `cnn_learner` and `dataloaders`: whose they are, and what was meant otherwise."""

import dataclasses
import difflib
import inspect
import multiprocessing.util
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from fastai.learner import Learner

from learnkit.data.arguments import check_number
from learnkit.data.preprocess import Preprocessing
from learnkit.models.arch import resolve_arch

# Names of fastai v1, of v2's vision_learner and of other libraries.
_ALSO = {
    "bn_wd": "wd_bn_bias",
    "callback_fns": "cbs",
    "callbacks": "cbs",
    "criterion": "loss_func",
    "loss": "loss_func",
    "optimizer": "opt_func",
    "pool": "concat_pool",
}
# What fastai and torch call arguments of `dataloaders`, and where what it has none of is done.
_OF_LOADERS = {
    "batch_size": "did you mean `bs`?",
    "batch_tfms": "did you mean `augment`?",
    "val_bs": "`bs` is that of validation images, too",
    "shuffle": "training images are shuffled by `seed`, others never",
    "valid_pct": "split the dataset first: dataset.split(valid=0.2)",
    "normalize": "cnn_learner normalises as the network was trained; see its `normalize`",
}
_OF_LEARNER = [*inspect.signature(Learner.__init__).parameters][3:]  # without self, dls, model


def shared_out(
    given: Mapping[str, Any], arch: Any, function: Callable
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments of the learner, arguments of the timm network) among the `given` ones.

    Raises:
        TypeError: Nobody takes one; what is named nearly so is suggested.
    """
    own = [name for name in inspect.signature(function).parameters if name != "learner_kwargs"]
    of_learner = {name: value for name, value in given.items() if name in _OF_LEARNER}
    of_network = {name: value for name, value in given.items() if name not in of_learner}
    is_timm = bool(of_network) and resolve_arch(arch).source == "timm"
    for name in of_network:
        near = difflib.get_close_matches(name, [*own, *_OF_LEARNER], 1, 0.8)
        meant = _ALSO.get(name, near[0] if near else None)
        if meant is not None or not is_timm:
            raise TypeError(_unknown(function, name, meant, arch))
    return of_learner, of_network


@contextmanager
def explained_arguments(function: Callable, arch: Any, passed: Mapping[str, Any]) -> Iterator[None]:
    """Say of an argument that went through to the network that it has none of this name.

    Raises:
        TypeError: As it is else, or of such an argument, in words.
    """
    try:
        yield
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        # of a name that nobody passed it is an error of the network's own code
        if found is None or found[1] not in passed:
            raise
        raise TypeError(_unknown(function, found[1], None, arch)) from error


def check_keywords(recipe: Mapping[str, Any]) -> None:
    """Raise TypeError where one is no argument of `ImageDataset.dataloaders`."""
    fields = [field.name for field in dataclasses.fields(Preprocessing)]
    own = [*fields, "bs", "augment", "item_tfms", "preprocessing", "balance", "store"]
    own += ["seed", "num_workers", "device"]
    for name in recipe:
        if name in fields:
            continue
        near = difflib.get_close_matches(name, own, 1, 0.6)
        guess = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(own)}"
        remedy = _OF_LOADERS.get(name, guess)
        raise TypeError(f"dataloaders has no argument `{name}`; {remedy}")


def check_order(pretrained: Any, cut: Any, split_on: Any) -> None:
    """Raise TypeError where arguments came in the order of fastai v2's `vision_learner`."""
    if isinstance(split_on, bool | str | Path | int):  # none of which parameters are grouped by
        raise TypeError(
            f"`split_on` is {split_on!r}; the third to fifth argument of cnn_learner are, as in "
            "fastai v1, pretrained, cut and split_on, in vision_learner normalize, n_out and "
            f"pretrained. Name them: normalize={pretrained!r}, n_out={cut!r}, "
            f"pretrained={split_on!r}"
        )


def _unknown(function: Callable, name: str, meant: str | None, arch: Any) -> str:
    what = arch if isinstance(arch, str) else getattr(arch, "__name__", type(arch).__name__)
    if meant is None:
        remedy = "arguments of torchvision's constructors go into `arch_kwargs`"
    else:
        remedy = f"did you mean `{meant}`?"
    return f"{function.__name__} has no argument `{name}`, nor has {what}; {remedy}"


def check_workers(n: int | None) -> None:
    """Raise DataError unless there can be so many reading processes, and let them hand over.

    They do so by sockets in a folder of temporary files, whose names are 32 bytes more and may have
    107. Where that folder lies deeper, Python 3.11 lost batches without a word, or waited for ever.
    """
    if n is not None:
        check_number("num_workers", n, least=0)
    before = tempfile.tempdir
    if n != 0 and len(os.fsencode(tempfile.gettempdir())) > 107 - 32 and os.path.isdir("/tmp"):
        try:
            tempfile.tempdir = "/tmp"
            multiprocessing.util.get_temp_dir()  # which this process and its workers keep
        finally:
            tempfile.tempdir = before

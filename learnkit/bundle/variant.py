"""Variants of a network inside its bundle: which files they are, and what describes them.

    variants/NAME.json               description: what runs it, classes, where it came from
    variants/NAME.onnx               the network; or NAME.xml and NAME.bin; or none of them where
                                     the bundle's own weights are cast when they are loaded
    variants/NAME.state.safetensors  class statistics on the variant's own features
    variants/NAME.judge.safetensors  what follows from them, for processes without torch
    variants/NAME.probe.safetensors  a few images and what the variant makes of them
    variants/NAME.report.json        what the conversion cost

NAME is backend and precision. This module needs no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from learnkit.backends.registry import BACKENDS, PRECISIONS, variant_name
from learnkit.bundle.schema import CONFIG, SECTION, are_class_ids, default_variant
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import BundleCorruptError, BundleError, DataError, ExportError, warn_user
from learnkit.evaluation.inputs import LabelThreshold, label_threshold
from learnkit.storage.formats import OPTIONAL, from_plain, parse_json, read_field, to_json, to_plain
from learnkit.storage.read_folder import VARIANTS

FLOAT32 = "float32"  # the bundle's own weights, which are no variant
NETWORK_FILES = {"onnxruntime": ({"onnx"},), "openvino": ({"onnx"}, {"xml", "bin"}), "torch": ((),)}
PARTS = ("state.safetensors", "judge.safetensors", "probe.safetensors", "report.json")
MAX_DESCRIPTION_BYTES = 16_000_000
_NAME = re.compile(r"[a-z0-9]+-[a-z0-9]+")


@dataclass(frozen=True)
class Variant:
    """One variant as its description says.

    Attributes:
        backend: "onnxruntime", "openvino" or "torch".
        precision: "float32", "float16", "bfloat16" or "int8".
        params: further settings of the backend.
        files: endings of the network's files, such as "onnx".
        classes: class names by output; they may be more than the bundle's own, once it has learned.
        multi_label: whether an image may have several labels.
        threshold: a label counts above this probability, if `multi_label`; one, or one per class.
        n_features: width of the features.
        weights: SHA-256 (hex) over the float32 weights it was made from.
        preprocessing: as in the bundle's own description.
        versions: of the packages it was made with.
        continual: what describes the head's state; None for a trained head.
        ood: what describes the detector beside a trained head, if there is one.
        class_ids: see `Model`.
    """

    backend: str
    precision: str
    params: dict[str, Any]
    files: tuple[str, ...]
    classes: tuple[str, ...]
    multi_label: bool
    threshold: LabelThreshold
    n_features: int
    weights: str
    preprocessing: dict[str, Any]
    versions: dict[str, str]
    continual: dict[str, Any] | None
    ood: dict[str, Any] | None = None
    class_ids: tuple[int, ...] = field(default=(), metadata=OPTIONAL)

    @property
    def name(self) -> str:
        """Backend and precision."""
        return variant_name(self.backend, self.precision)

    def to_bytes(self) -> bytes:
        """The description as JSON."""
        return to_json(to_plain(self))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Variant:
        """The variant that the description of `name` is about.

        Raises:
            BundleCorruptError: a field is missing, unknown, of another type, or breaks a rule.
        """
        where = path_of(name, "json")
        if len(data) > MAX_DESCRIPTION_BYTES:
            raise BundleCorruptError(
                f"{where} has {len(data)} bytes; at most {MAX_DESCRIPTION_BYTES} are read"
            )
        variant = from_plain(cls, parse_json(data, where), where)
        _check(variant, name, where)
        return variant

    def recipe(self) -> Preprocessing:
        """From an image to the network's input."""
        return Preprocessing.from_dict(self.preprocessing)

    def network_files(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Those of a bundle's `files` that are the network, by ending.

        Raises:
            BundleCorruptError: one is missing.
        """
        names = {ending: path_of(self.name, ending) for ending in self.files}
        if missing := [name for name in names.values() if name not in files]:
            raise BundleCorruptError(f"the variant {self.name!r} lacks its file {missing[0]}")
        return {ending: files[name] for ending, name in names.items()}


def path_of(name: str, ending: str) -> str:
    """The file of variant `name` with this ending.

    >>> path_of("torch-bfloat16", "report.json")
    'variants/torch-bfloat16.report.json'
    """
    return f"{VARIANTS}/{name}.{ending}"


def variant_names(files: Iterable[str]) -> list[str]:
    """The variants described among a bundle's files, by name.

    >>> variant_names(["config.json", "variants/a-b.json", "variants/a-b.report.json"])
    ['a-b']
    """
    found = re.compile(rf"{VARIANTS}/({_NAME.pattern})\.json")
    return sorted(match[1] for name in files if (match := found.fullmatch(name)))


def files_of(name: str, files: Iterable[str]) -> set[str]:
    """Those of a bundle's files that belong to variant `name`."""
    # with the dot: a name may be the beginning of another one
    return {file for file in files if file.startswith(f"{VARIANTS}/{name}.")}


def check_variant(name: str, files: Collection[str]) -> None:
    """Raise BundleError unless the bundle has this variant."""
    if name not in (names := variant_names(files)):
        there = ", ".join(map(repr, [*names, FLOAT32]))
        raise BundleError(f"the bundle has no variant {name!r}; it has {there}")


def _known(variant: Variant) -> bool:
    """Whether its settings are its backend's, and of their types; numbers may be None."""
    known = BACKENDS[variant.backend].parameters
    types = {
        name: {int, type(None)} if value is None else {type(value)} for name, value in known.items()
    }
    # not by isinstance, for which True is an int
    return all(type(value) in types.get(name, ()) for name, value in variant.params.items())


def _check(variant: Variant, name: str, where: str) -> None:
    if variant.backend not in BACKENDS or variant.precision not in PRECISIONS:
        raise BundleCorruptError(f"{where}: {variant.name!r} is nothing this learnkit can run")
    allowed = NETWORK_FILES[variant.backend]
    n_classes = len(variant.classes)
    rules = {
        f"it describes {variant.name!r}": variant.name == name,
        f"its files are {list(variant.files)}": set(variant.files) in [set(a) for a in allowed],
        "class names are missing or twice there": 0 < n_classes == len(set(variant.classes)),
        "a class name is empty": all(variant.classes),
        "`class_ids` are no ids of its classes": are_class_ids(variant.class_ids, n_classes),
        f"`params` are {variant.params}": _known(variant),
        f"`n_features` is {variant.n_features}": variant.n_features > 0,
        "several labels do not go with class statistics": not (
            variant.multi_label and (variant.continual or variant.ood)
        ),
        "a head in the continual state needs no `ood`": not (variant.continual and variant.ood),
    }
    if broken := [rule for rule, kept in rules.items() if not kept]:
        raise BundleCorruptError(f"{where}: {broken[0]}")
    name = f"{where}: `threshold`"
    label_threshold(variant.threshold, n_classes, name=name, error=BundleCorruptError)
    try:
        variant.recipe()
    except (DataError, TypeError) as error:
        raise BundleCorruptError(f"{where}: {error}") from error


_DEFAULT, _SINCE = "default_variant", "learned_since"


def learned_since(section: Mapping[str, Any]) -> tuple[str, ...]:
    """The variants that have learned or been renamed since they were made; the rest have not.

    >>> learned_since({"critical": ["default_variant"], "default_variant": "torch-bfloat16"})
    ('torch-bfloat16',)
    """
    if _SINCE not in section:  # so written before variants travelled
        default = default_variant(section)
        return (default,) if default is not None and _DEFAULT in section["critical"] else ()
    return read_field(section, _SINCE, tuple[str, ...], CONFIG)


def with_variants(
    config: bytes,
    *,
    learned: Iterable[str],
    default: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """A config.json of a bundle with variants.

    Args:
        config: with others, or none.
        learned: the variants that know what the weights beside them do not. If the default one
            does, readers who know no variants refuse the bundle.
        default: the variant that opens unless another is asked for; None for the weights.
        metadata: takes the place of that in `config`, but for the model card's data.

    Raises:
        ExportError: `metadata` is no JSON.
    """
    whole = parse_json(config, CONFIG)
    section, learned = whole[SECTION], sorted(set(learned))
    section["critical"] = [key for key in section["critical"] if key != _DEFAULT]
    for key in (_DEFAULT, _SINCE):
        section.pop(key, None)
    if default is not None:
        section[_DEFAULT] = default
        # older readers would open float32, which knows less, and not say so
        section["critical"] += [_DEFAULT] * (default in learned)
    if learned:
        section[_SINCE] = learned
    if metadata is not None:
        section["metadata"] = {**metadata, "card": section["metadata"].get("card", {})}
    try:
        return to_json(whole)
    except (TypeError, ValueError) as error:
        raise ExportError(f"`metadata` is no JSON: {error}") from error


def warn_behind(path: str | os.PathLike, section: Mapping[str, Any], name: str) -> None:
    """Warn if another variant of the bundle at `path` has learned what `name` does not know."""
    since = learned_since(section)
    if since and name not in since:
        have = "has" if len(since) == 1 else "have"
        warn_user(
            f"{name!r} in {os.fspath(path)!r} is the model as it was when variants were made of "
            f"it; {' and '.join(map(repr, since))} beside it {have} learned more, or other names, "
            f"since. variant={since[0]!r} loads that; to bring {name!r} up to date, extend it with "
            "the same images"
        )

"""The schema of config.json: the fields timm reads, and under `learnkit` all that a predictor is.

The format has a version: the same major one is read for ever; unknown keys are ignored unless the
writer lists them under `critical`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from learnkit._version import __version__
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import (
    BundleCorruptError,
    BundleError,
    BundleVersionError,
    ExportError,
    LearnkitError,
)
from learnkit.evaluation.inputs import LabelThreshold, label_threshold
from learnkit.storage.formats import parse_json, read_field, to_json

if TYPE_CHECKING:
    from learnkit.models.spec import ModelSpec

SCHEMA = {"major": 1, "minor": 3}
CONFIG = "config.json"
PACKAGES = ("torch", "timm", "torchvision", "pillow", "safetensors")  # whose versions it tells
MAX_CONFIG_BYTES = 16_000_000
SECTION = "learnkit"
_MAX_PLACES = 16  # of weights in files; a bundle has three
_KNOWN = frozenset(
    {
        "schema",
        "critical",
        "model",
        "layout",
        "preprocessing",
        "classes",
        "multi_label",
        "threshold",
        "thresholds",
        "versions",
        "metadata",
        "continual",
        "ood",
        "default_variant",
        "learned_since",
    }
)


@dataclass(frozen=True)
class Contents:
    """A predictor without its weights; `layout` says which file holds which of them.

    `continual` describes the head's state in the continual state, None otherwise; `ood` the OOD
    detector beside a trained head. `default_variant` names what runs unless another is asked for;
    None means the weights themselves. `class_ids` are as of a `Model`.
    """

    spec: ModelSpec
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    multi_label: bool
    threshold: LabelThreshold
    layout: Mapping[str, Mapping[str, str]]
    versions: Mapping[str, str]
    metadata: Mapping[str, Any]
    continual: Mapping[str, Any] | None = None
    ood: Mapping[str, Any] | None = None
    default_variant: str | None = None
    class_ids: tuple[int, ...] = ()

    def to_bytes(self, timm_config: Mapping[str, Any]) -> bytes:
        """config.json, with timm's own fields.

        Raises:
            ExportError: something in it is no JSON.
        """
        own = {"continual": self.continual, "ood": self.ood}
        own = {name: value for name, value in own.items() if value is not None}
        ids = {"class_ids": list(self.class_ids)} if self.class_ids else {}
        section = {
            "schema": SCHEMA,
            # older readers refuse what they would get wrong
            "critical": [*own, *["thresholds"] * isinstance(self.threshold, tuple)],
            "model": self.spec.to_dict(),
            "layout": self.layout,
            "preprocessing": self.preprocessing.to_dict(),
            "classes": list(self.classes),
            "multi_label": self.multi_label,
            "threshold": self.threshold,
            "versions": self.versions,
            "metadata": self.metadata,
            **ids,
            **own,
        }
        try:
            return to_json({**timm_config, SECTION: section})
        except (TypeError, ValueError) as error:
            raise ExportError(f"`metadata`, `card` or a class name is no JSON: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> Contents:
        """What a config.json says.

        Raises:
            BundleCorruptError: a key is missing, of another type, or breaks a rule.
            BundleVersionError: the format is newer than this learnkit reads.
        """
        section = read_section(data)
        spec, preprocessing = _described(section)
        return cls(
            spec=spec,
            preprocessing=preprocessing,
            classes=_classes(section, spec),
            multi_label=_get(section, "multi_label", bool),
            threshold=_threshold(section),
            layout=_layout(section),
            versions=_get(section, "versions", dict),
            metadata=_get(section, "metadata", dict),
            continual=_continual(section, spec),
            default_variant=default_variant(section),
            ood=_ood(section),
            class_ids=class_ids_in(section, spec.n_out),
        )


def read_section(data: bytes) -> dict[str, Any]:
    """What a config.json says under `learnkit`, if this learnkit reads its format.

    No torch is needed: what describes the network is not looked at.

    Raises:
        BundleCorruptError: no strict JSON, or without that section.
        BundleVersionError: the format is newer than this learnkit reads.
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise BundleCorruptError(
            f"{CONFIG} has {len(data)} bytes; at most {MAX_CONFIG_BYTES} are read"
        )
    section = _get(parse_json(data, CONFIG), SECTION, dict)
    check_schema(section, CONFIG)
    _check_critical(section)
    return section


def default_variant(section: Mapping[str, Any]) -> str | None:
    """The variant that `section` says runs unless another is asked for; None for the weights."""
    return _get(section, "default_variant", str) if "default_variant" in section else None


def check_schema(holder: Mapping[str, Any], where: str) -> None:
    """Raise unless this learnkit reads the format `holder` (of the file `where`) is written in."""
    schema = _get(holder, "schema", dict, where)
    major, minor = _get(schema, "major", int, where), _get(schema, "minor", int, where)
    if major > SCHEMA["major"]:
        raise BundleVersionError(
            f"{where} is in format {major}.{minor}; learnkit {__version__} reads up to "
            f"{SCHEMA['major']}.x: upgrade learnkit, or export the model again with this version"
        )
    if major < 1 or minor < 0:
        raise BundleCorruptError(f"{where} claims to be in format {major}.{minor}; 1.0 was first")


@contextmanager
def newer_is_told(section: Mapping[str, Any]) -> Iterator[None]:
    """Call what is refused in the block newer, not damaged, in a bundle of a newer minor format.

    Raises:
        BundleVersionError: the bundle is newer, and something in it was refused.
    """
    try:
        yield
    except BundleCorruptError as error:
        # what a newer minor format added to a field looks like damage to this reader
        if section["schema"]["minor"] <= SCHEMA["minor"]:
            raise
        raise BundleVersionError(
            f"the bundle was written by a newer learnkit (its format is {_number(section)}, and "
            f"{__version__} knows {SCHEMA['major']}.{SCHEMA['minor']}) and needs it: {error}. "
            "Upgrade learnkit"
        ) from error


def _number(section: Mapping[str, Any]) -> str:
    return f"{section['schema']['major']}.{section['schema']['minor']}"


def _check_critical(section: Mapping[str, Any]) -> None:
    if unknown := [key for key in _get(section, "critical", list) if key not in _KNOWN]:
        raise BundleVersionError(
            f"the bundle needs {unknown}, which learnkit {__version__} does not know: upgrade "
            "learnkit"
        )


def _get(holder: Mapping[str, Any], key: str, kind: Any, where: str = CONFIG) -> Any:
    # by its type, for the value may be a whole section
    return read_field(holder, key, kind, where, shown=lambda value: f"a {type(value).__name__}")


def _described(section: Mapping[str, Any]) -> tuple[ModelSpec, Preprocessing]:
    from learnkit.models.spec import ModelSpec  # here, because it brings torch

    try:
        spec = ModelSpec.from_dict(_get(section, "model", dict))
        preprocessing = Preprocessing.from_dict(_get(section, "preprocessing", dict))
    except BundleError:
        raise
    except (LearnkitError, TypeError) as error:
        raise BundleCorruptError(f"{CONFIG}: {error}") from error
    return spec, preprocessing


def _layout(section: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Which file holds which weights."""
    layout = _get(section, "layout", dict[str, dict[str, str]])
    # each is tried on each weight, which with a long list would not end
    if sum(map(len, layout.values())) > _MAX_PLACES or len(layout) > _MAX_PLACES:
        raise BundleCorruptError(f"{CONFIG}: `layout` has more than {_MAX_PLACES} places")
    return layout


def _classes(section: Mapping[str, Any], spec: ModelSpec) -> tuple[str, ...]:
    classes = _get(section, "classes", list)
    if not all(isinstance(name, str) and name for name in classes):
        raise BundleCorruptError(f"{CONFIG}: `classes` holds something that is no name")
    # what has learned nothing yet has no class, over a network that has an output all the same
    n_out = len(classes) or int("continual" in section)
    if n_out != spec.n_out or len(set(classes)) != len(classes):
        raise BundleCorruptError(
            f"{CONFIG}: {len(set(classes))} different `classes` for {spec.n_out} outputs"
        )
    return tuple(classes)


def class_ids_in(section: Mapping[str, Any], n_classes: int) -> tuple[int, ...]:
    """The ids of the first classes; none where these are their places.

    Raises:
        BundleCorruptError: they are no ids of so many classes.
    """
    ids = _get(section, "class_ids", tuple[int, ...]) if "class_ids" in section else ()
    if not are_class_ids(ids, n_classes):
        raise BundleCorruptError(f"{CONFIG}: `class_ids` are no ids of the {n_classes} classes")
    return ids


def are_class_ids(ids: tuple[int, ...], n_classes: int) -> bool:
    """Whether these can be ids of the first of so many classes."""
    return len({*ids}) == len(ids) <= n_classes and all(one >= 0 for one in ids)


def _continual(section: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any] | None:
    """What describes the head's state; there exactly if the head is of the kind that has one."""
    if (spec.head.get("kind") == "continual") != ("continual" in section):
        raise BundleCorruptError(f"{CONFIG}: `model` and `continual` disagree about the head")
    if "continual" not in section:
        return None
    if section["multi_label"]:
        raise BundleCorruptError(f"{CONFIG}: a head with class statistics gives one label")
    return _get(section, "continual", dict)


def _ood(section: Mapping[str, Any]) -> dict[str, Any] | None:
    """What describes the detector beside a trained head, if there is one."""
    if "ood" not in section:
        return None
    if section["multi_label"] or "continual" in section:
        raise BundleCorruptError(f"{CONFIG}: `ood` goes with a trained head that gives one label")
    return _get(section, "ood", dict)


def _threshold(section: Mapping[str, Any]) -> LabelThreshold:
    threshold = _get(section, "threshold", LabelThreshold)
    name, n_classes = f"{CONFIG}: `threshold`", len(_get(section, "classes", list))
    return label_threshold(threshold, n_classes, name=name, error=BundleCorruptError)

"""The knowledge of a continual classifier as JSON and tensors, and back."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from learnkit.continual.knowledge import VALIDATION_SIZE, Knowledge
from learnkit.continual.serialization import MEMORY_TYPES, check_types, memory_tensors, read_memory
from learnkit.continual.settings import Settings
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import OodInsufficientDataError, StatisticsError

FORMAT = 1
_KEYS = {"format", "settings", "class_names", "forgotten_names", "threshold"}
_VALIDATION = {name.replace("memory", "validation"): kind for name, kind in MEMORY_TYPES.items()}


def pack(knowledge: Knowledge) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(configuration for JSON, tensors) of what cannot be derived."""
    config = {
        "format": FORMAT,
        "settings": knowledge.settings.to_dict(),
        "class_names": list(knowledge.statistics.class_names),
        "forgotten_names": [one.name for one in knowledge.statistics.forgotten],
        "threshold": knowledge.manual_threshold,
    }
    tensors = knowledge.statistics.to_tensors()
    return config, {**tensors, **memory_tensors(knowledge.validation, "validation")}


def unpack(config: Any, tensors: Mapping[str, Tensor]) -> Knowledge:
    """The knowledge `pack` was given, nothing derived yet.

    Raises:
        StatisticsError: Keys, shapes, types or values cannot have come from `pack`.
    """
    _check_config(config)
    if missing := sorted(set(_VALIDATION) - set(tensors)):
        raise StatisticsError(f"tensors missing: {missing}; the state is damaged")
    check_types(tensors, _VALIDATION)
    settings = _read_settings(config["settings"])
    statistics = _read_statistics(config, tensors, settings)
    validation = read_memory(
        tensors,
        statistics.class_names,
        settings.n_features,
        VALIDATION_SIZE,
        prefix="validation",
    )
    return Knowledge(settings, statistics, validation, _read_threshold(config["threshold"]))


def _check_config(config: Any) -> None:
    if not isinstance(config, Mapping) or set(config) != _KEYS:
        seen = sorted(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
        raise StatisticsError(f"the configuration has {seen}; it must have {sorted(_KEYS)}")
    if config["format"] != FORMAT or isinstance(config["format"], bool):
        raise StatisticsError(
            f"the state is of format {config['format']!r}; this learnkit reads {FORMAT}: use a "
            "newer learnkit"
        )


def _read_settings(values: Any) -> Settings:
    try:
        return Settings.from_dict(values)
    except OodInsufficientDataError as error:
        raise StatisticsError(str(error)) from error


def _read_statistics(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], settings: Settings
) -> ClassStatistics:
    statistics = ClassStatistics.from_tensors(
        {name: tensor for name, tensor in tensors.items() if name not in _VALIDATION},
        config["class_names"],
        root=settings.root,
        memory_size=settings.memory,
        forgotten_names=config["forgotten_names"],
    )
    if statistics.n_features != settings.n_features:
        raise StatisticsError(
            f"`gram` is {statistics.n_features} wide and the settings say {settings.n_features}; "
            "the state is damaged"
        )
    return statistics


def _read_threshold(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise StatisticsError(f"`threshold` is {value!r}; it is a finite number or null")
    return float(value)

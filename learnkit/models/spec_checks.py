"""What the fields of a `ModelSpec` may hold: JSON values within bounds, nothing that is code."""

import math
from collections.abc import Mapping
from typing import Any

from learnkit.errors import ModelSpecError, UnknownArchitectureError
from learnkit.models.arch import resolve_arch

# Arguments that make timm or torchvision read files or reach for the network, or that have a field.
FORBIDDEN = frozenset(
    [
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_filter_fn",
        "pretrained_model_args",
        "pretrained_strict",
        "checkpoint_path",
        "cache_dir",
        "weights",
        "weights_backbone",
        "progress",
        "features_only",
        "feature_cfg",
        "feature_cls",
        "out_indices",
        "model_cfg",
        "model_name",
        "num_classes",
        "in_chans",
        "img_size",
        "kwargs_filter",
        "device",
        "dtype",
    ]
)
HEAD_KEYS = ("lin_ftrs", "ps", "concat_pool", "pool", "first_bn", "bn_final", "lin_first")
HEAD_KEYS += ("y_range", "lin_bias")
HEAD_KINDS = ("continual",)
_LIMITS = {"n_in": 1024, "n_out": 1_000_000}
_MAX_SIDE, _MAX_WIDTH, _MAX_LAYERS = 16_384, 65_536, 16


def check_arch(source: Any, arch: Any) -> None:
    """Raise ModelSpecError unless `arch` is registered in the library `source`."""
    if source not in ("timm", "torchvision"):
        raise ModelSpecError(
            f"`source`={source!r}: only 'timm' and 'torchvision' networks can be rebuilt by name;"
            " a home-made one travels with its own code"
        )
    if not isinstance(arch, str):
        raise ModelSpecError(f"`arch`={arch!r} is not an architecture's name")
    try:
        resolve_arch(f"{source}:{arch}")
    except UnknownArchitectureError as error:
        raise ModelSpecError(str(error)) from error


def check_numbers(n_in: Any, n_out: Any, cut: Any, img_size: Any) -> None:
    """Raise ModelSpecError unless counts, cut and image size are ints within bounds."""
    for name, value in (("n_in", n_in), ("n_out", n_out)):
        if not is_int(value) or not 1 <= value <= _LIMITS[name]:
            raise ModelSpecError(f"`{name}`={value!r}: expected an int from 1 to {_LIMITS[name]}")
    if cut is not None and not is_int(cut):
        raise ModelSpecError(f"`cut`={cut!r}: only an int (or None) can be written down")
    sides = () if img_size is None else img_size
    if img_size is not None and (len(sides) != 2 or not all(map(is_int, sides))):
        raise ModelSpecError(f"`img_size`={img_size!r}: expected (height, width) or None")
    if not all(1 <= side <= _MAX_SIDE for side in sides):
        raise ModelSpecError(f"`img_size`={img_size!r}: sides lie between 1 and {_MAX_SIDE}")


def check_arch_kwargs(arch_kwargs: Any) -> None:
    """Raise ModelSpecError unless the extra arguments are JSON scalars and lists, and harmless."""
    if not isinstance(arch_kwargs, Mapping):
        raise ModelSpecError(
            f"`arch_kwargs` is {type(arch_kwargs).__name__}, expected a dictionary"
        )
    for name, value in arch_kwargs.items():
        if not isinstance(name, str) or not name.isidentifier() or name in FORBIDDEN:
            raise ModelSpecError(f"`arch_kwargs` has {name!r}, which a saved network may not set")
        if not _is_plain(value):
            raise ModelSpecError(
                f"`arch_kwargs[{name!r}]` is {type(value).__name__}: only numbers, strings, None"
                " and lists of them can be written down"
            )


def check_head(head: Any) -> None:
    """Raise ModelSpecError unless the head's arguments are known and of the right type."""
    if isinstance(head, Mapping) and "kind" in head:
        _check_kind(head)
        return
    unknown = sorted(set(map(str, head)) - set(HEAD_KEYS)) if isinstance(head, Mapping) else [head]
    if unknown:
        raise ModelSpecError(f"`head` has unknown {unknown[:3]}; it takes {', '.join(HEAD_KEYS)}")
    for name in ("concat_pool", "pool", "first_bn", "bn_final", "lin_first", "lin_bias"):
        if not isinstance(head.get(name, True), bool):
            raise ModelSpecError(f"`head[{name!r}]`={head[name]!r}: expected true or false")
    widths = head.get("lin_ftrs")
    if widths is not None and not _is_list(widths, is_int, _MAX_LAYERS, 1, _MAX_WIDTH):
        raise ModelSpecError(f"`head['lin_ftrs']`={widths!r}: expected None or a list of widths")
    ps = head.get("ps", 0.5)
    if not _is_list(ps if isinstance(ps, list) else [ps], _is_number, _MAX_LAYERS + 1, 0, 1):
        raise ModelSpecError(f"`head['ps']`={ps!r}: expected dropout probabilities")
    bounds = head.get("y_range")
    if bounds is not None and not (_is_list(bounds, _is_number, 2) and len(bounds) == 2):
        raise ModelSpecError(f"`head['y_range']`={bounds!r}: expected None or two numbers")


def _check_kind(head: Mapping[str, Any]) -> None:
    """Raise ModelSpecError unless a head of a named kind has scalars for options."""
    if head["kind"] not in HEAD_KINDS:
        raise ModelSpecError(f"`head['kind']`={head['kind']!r}: expected one of {HEAD_KINDS}")
    for name, value in head.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ModelSpecError(f"`head` has {name!r}, which is no option's name")
        if not _is_plain(value, depth=0):
            raise ModelSpecError(
                f"`head[{name!r}]` is {type(value).__name__}: only numbers, strings and None can"
                " be written down"
            )


def check_stats(name: str, values: Any) -> None:
    """Raise ModelSpecError unless `values` is None or one finite number per channel."""
    if values is None:
        return
    if not _is_list(list(values), _is_number, _LIMITS["n_in"]):
        raise ModelSpecError(f"`{name}`={values!r}: expected finite numbers, one per channel")
    if name == "std" and min(values, default=0) <= 0:
        raise ModelSpecError(f"`std`={values!r}: standard deviations are positive")


def is_int(value: Any) -> bool:
    """True for an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (is_int(value) or isinstance(value, float)) and math.isfinite(value)


def _is_list(
    values: Any, kind: Any, longest: int, low: float = -math.inf, high: float = math.inf
) -> bool:
    """True for a list of at most `longest` values of one kind within bounds."""
    return (
        isinstance(values, list)
        and len(values) <= longest
        and all(kind(value) and low <= value <= high for value in values)
    )


def _is_plain(value: Any, depth: int = 4) -> bool:
    """True for JSON scalars and (nested) lists of them."""
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, bool | str) or _is_number(value)

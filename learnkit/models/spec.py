"""`ModelSpec`: a classifier's network as data, names and numbers it is rebuilt from."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from sys import float_info
from typing import Any

from torch import nn

from learnkit.errors import ModelSpecError, UnknownArchitectureError
from learnkit.models.arch import resolve_arch
from learnkit.models.eval_mode import is_channels_last


@dataclass(frozen=True)
class ModelSpec:
    """What rebuilds a network `Sequential(body, head)`, weights aside; plain JSON values only.

    The fields are checked when a spec is made, whatever it is made from, so that one read from a
    file of unknown origin can name registered architectures and nothing else.

    Attributes:
        source: "timm" or "torchvision".
        arch: Name in that library.
        n_in: Number of input channels.
        n_out: Number of classes.
        cut: How many children the body keeps; None for the architecture's own cut.
        img_size: (H,W) the body was built for; None if its structure does not depend on it.
        arch_kwargs: Extra arguments of the architecture.
        head: Arguments of `create_head`; or `kind`, the name of another sort of head ("continual"),
            and its options.
        mean: Normalisation per channel, for pixels in [0, 1]; None if there is none.
        std: See `mean`.
        pooled: Whether the body ends with timm's own pooling, (N,D,1,1), as fastai takes networks
            that compute tokens.
        channels_last: Whether the body measures in that memory layout on processors, which decides
            the last bits of its features; see `set_channels_last`.

    Raises:
        ModelSpecError: A field holds something a saved network may not have.
    """

    source: str
    arch: str
    n_in: int
    n_out: int
    cut: int | None = None
    img_size: tuple[int, int] | None = None
    arch_kwargs: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    pooled: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        for name in ("img_size", "mean", "std"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, list | tuple):
                raise ModelSpecError(f"`{name}`={value!r}: expected a list of numbers or None")
            object.__setattr__(self, name, None if value is None else tuple(value))
        check_arch(self.source, self.arch)
        check_numbers(self.n_in, self.n_out, self.cut, self.img_size)
        check_arch_kwargs(self.arch_kwargs)
        check_head(self.head)
        check_stats("mean", self.mean)
        check_stats("std", self.std)
        if self.pooled is not False and (self.pooled, self.source, self.cut) != (
            True,
            "timm",
            None,
        ):
            raise ModelSpecError(
                f"`pooled`={self.pooled!r}: only a whole network of timm can end with its pooling"
            )
        if not isinstance(self.channels_last, bool):
            raise ModelSpecError(f"`channels_last`={self.channels_last!r}: expected true or false")
        # copies: what was checked must not change in the caller's hands
        object.__setattr__(self, "arch_kwargs", _as_json(self.arch_kwargs))
        object.__setattr__(self, "head", _as_json(self.head))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; `from_dict` gives an equal spec back."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("pooled", "channels_last"):
            if not values[name]:
                del values[name]  # which an older learnkit does not know
        return _as_json(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Return the spec that `to_dict` wrote.

        Raises:
            ModelSpecError: A key is unknown or missing, or a value is not allowed.
        """
        if not isinstance(values, Mapping):
            raise ModelSpecError(f"a spec is {type(values).__name__}, expected a dictionary")
        names = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(map(str, values)) - set(names))
        missing = [name for name in ("source", "arch", "n_in", "n_out") if name not in values]
        if unknown or missing:
            raise ModelSpecError(
                f"a spec has unknown keys {unknown[:5]} and lacks {missing}; it may hold"
                f" {', '.join(names)}"
            )
        return cls(**values)


def describe_body(
    body: nn.Module, n_in: int, n_out: int, head: dict[str, Any]
) -> tuple[ModelSpec | None, str | None]:
    """Return the spec of a body of `create_body` below a head, or None and why there is none."""
    if not hasattr(body, "arch_kwargs"):
        return None, "its body was not made by create_body"
    # the tag of published weights is left out: it says nothing about the structure
    arch = body.arch.partition(".")[0]
    more = {"mean": body.mean, "std": body.std, "pooled": body.pooled}
    more["channels_last"] = is_channels_last(body)
    known = (body.cut, body.img_size, body.arch_kwargs, head)
    try:
        return ModelSpec(body.source, arch, n_in, n_out, *known, **more), None
    except ModelSpecError as error:
        return None, str(error)


def _as_json(value: Any) -> Any:
    """Return a copy of JSON values in which tuples are lists."""
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


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
# No network needs more of its arguments; numbers beyond these are loops and tables without an end.
_MAX_ARGUMENTS, _MAX_TEXT, _MAX_FLOAT = 1000, 1000, 1e4


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
    if sum(map(_n_values, arch_kwargs.values())) > _MAX_ARGUMENTS:
        raise ModelSpecError(f"`arch_kwargs` has more than {_MAX_ARGUMENTS} values, as no network")
    for name, value in arch_kwargs.items():
        if not isinstance(name, str) or not name.isidentifier() or name in FORBIDDEN:
            raise ModelSpecError(f"`arch_kwargs` has {name!r}, which a saved network may not set")
        if not _is_plain(value):
            raise ModelSpecError(
                f"`arch_kwargs[{name!r}]` is {type(value).__name__}: only numbers, strings, None"
                " and lists of them can be written down"
            )
        if not _is_bounded(value):
            raise ModelSpecError(
                f"`arch_kwargs[{name!r}]` is {value!r:.80}: whole numbers go to {_MAX_WIDTH:,}, "
                f"others to {_MAX_FLOAT:,.0f}, and texts have {_MAX_TEXT} characters at most"
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
    # NaN is not; `isfinite` raises for a huge int
    return (is_int(value) or isinstance(value, float)) and abs(value) <= float_info.max


def _is_list(
    values: Any, kind: Any, longest: int, low: float = -math.inf, high: float = math.inf
) -> bool:
    """True for a list of at most `longest` values of one kind within bounds."""
    return (
        isinstance(values, list)
        and len(values) <= longest
        and all(kind(value) and low <= value <= high for value in values)
    )


def _n_values(value: Any) -> int:
    return sum(map(_n_values, value)) + 1 if isinstance(value, list | tuple) else 1


def _is_bounded(value: Any) -> bool:
    """True for JSON values as an architecture can need them."""
    if isinstance(value, list | tuple):
        return all(map(_is_bounded, value))
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT
    return value is None or abs(value) <= (_MAX_WIDTH if is_int(value) else _MAX_FLOAT)


def _is_plain(value: Any, depth: int = 4) -> bool:
    """True for JSON scalars and (nested) lists of them."""
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, bool | str) or _is_number(value)

"""A classifier's network as data: what names and numbers it is built from. `rebuilt` builds it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from learnkit.errors import ModelSpecError
from learnkit.models.spec_checks import (
    check_arch,
    check_arch_kwargs,
    check_head,
    check_numbers,
    check_stats,
)


@dataclass(frozen=True)
class ModelSpec:
    """What rebuilds a network `Sequential(body, head)`, weights aside; plain JSON values only.

    The fields are checked when a spec is made, whatever it is made from, so that one read from a
    stranger's file can name registered architectures and nothing else.

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
        object.__setattr__(self, "arch_kwargs", _as_json(self.arch_kwargs))
        object.__setattr__(self, "head", _as_json(self.head))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; `from_dict` gives an equal spec back."""
        return _as_json({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

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
    stats = {"mean": body.mean, "std": body.std}
    known = (body.cut, body.img_size, body.arch_kwargs, head)
    try:
        return ModelSpec(body.source, arch, n_in, n_out, *known, **stats), None
    except ModelSpecError as error:
        return None, str(error)


def _as_json(value: Any) -> Any:
    """Return a copy of JSON values in which tuples are lists."""
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value

"""A classifier's network as data: what names and numbers it is built from. `rebuilt` builds it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from learnkit.errors import CutError, ModelSpecError
from learnkit.models.body import create_body
from learnkit.models.head import create_head, init_head
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


def create_cnn_model(
    arch: Any,
    n_out: int | None = None,
    *,
    nc: int | None = None,
    pretrained: Any = True,
    cut: Any = None,
    n_in: int = 3,
    img_size: int | Sequence[int] | None = None,
    weights: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    custom_head: nn.Module | Callable[[int, int], nn.Module] | None = None,
    init: Callable[[Tensor], object] | None = nn.init.kaiming_normal_,
    lin_ftrs: Sequence[int] | None = None,
    ps: float | Sequence[float] = 0.5,
    concat_pool: bool = True,
    pool: bool = True,
    first_bn: bool = True,
    bn_final: bool = False,
    lin_first: bool = False,
    y_range: tuple[float, float] | None = None,
    lin_bias: bool = True,
    arch_kwargs: dict[str, Any] | None = None,
) -> nn.Sequential:
    """Return `Sequential(body, head)`, giving logits (N,n_out) for images (N,n_in,H,W).

    The result carries `spec`, the `ModelSpec` that rebuilds it, or None and then the reason in
    `spec_problem`.

    Args:
        arch: See `create_body`.
        n_out: Number of classes.
        nc: The same, as fastai v1 calls it.
        pretrained: See `create_body`.
        cut: See `create_body`.
        n_in: See `create_body`.
        img_size: See `create_body`.
        weights: See `create_body`.
        mean: See `create_body`.
        std: See `create_body`.
        custom_head: A head to use instead, or a function of (number of features, n_out) that
            returns one.
        init: Initialisation of the head's weights (biases become 0, norms are skipped); None leaves
            torch's own.
        lin_ftrs: Widths of the head's hidden layers; see `create_head`, as for all that follow.
        ps: Dropout of the head.
        concat_pool: Whether the head pools maximum and mean, or the mean alone.
        pool: Whether the head pools at all.
        first_bn: Whether the head's first linear layer has a batch norm.
        bn_final: Whether the head ends with a batch norm.
        lin_first: Whether the head's linear layers come before their norms.
        y_range: Open interval of the outputs.
        lin_bias: Whether the head's linear layers have biases.
        arch_kwargs: Extra arguments of the architecture.
    """
    if (n_out is None) == (nc is None):
        raise TypeError(f"`n_out`={n_out} and `nc`={nc}: give the number of classes once")
    n_out = nc if n_out is None else n_out
    body = create_body(
        arch,
        pretrained,
        cut,
        n_in,
        img_size=img_size,
        weights=weights,
        mean=mean,
        std=std,
        **(arch_kwargs or {}),
    )
    head_kwargs = {
        "lin_ftrs": lin_ftrs if lin_ftrs is None else list(lin_ftrs),
        "ps": list(ps) if isinstance(ps, Sequence) else ps,
        "concat_pool": concat_pool,
        "pool": pool,
        "first_bn": first_bn,
        "bn_final": bn_final,
        "lin_first": lin_first,
        "y_range": y_range if y_range is None else list(y_range),
        "lin_bias": lin_bias,
    }
    if custom_head is None and pool and body.reduction is None:
        raise CutError(
            f"what `cut` leaves of {body.arch} gives features (N,D), and the head pools a feature"
            " map; cut earlier, or pass `pool=False`"
        )
    head = _head(body.n_features, n_out, custom_head, head_kwargs)
    model = nn.Sequential(body, init_head(head, init))
    model.spec, model.spec_problem = _spec(body, n_in, n_out, custom_head, head_kwargs)
    return model


def _head(n_features: int, n_out: int, custom_head: Any, options: dict[str, Any]) -> nn.Module:
    """Return the caller's head, or the default one."""
    if custom_head is None:
        return create_head(n_features, n_out=n_out, **options)
    return custom_head if isinstance(custom_head, nn.Module) else custom_head(n_features, n_out)


def _spec(
    body: nn.Module, n_in: int, n_out: int, custom_head: Any, head_kwargs: dict[str, Any]
) -> tuple[ModelSpec | None, str | None]:
    """Return the spec of a network, or None and why it has none."""
    if custom_head is not None:
        return None, "`custom_head` is code: only heads of `create_head` can be rebuilt from data"
    return describe_body(body, n_in, n_out, head_kwargs)


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

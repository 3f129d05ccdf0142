"""Heads: what stands between a feature map (N,D,H,W) and the logits (N,C).

The layout is fastai v1's, biases included, so that v1 checkpoints load and new classes can be added
to the last layer: pool, flatten, then (batch norm, dropout, linear, ReLU) per hidden layer and
(batch norm, dropout, linear) at the end.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from learnkit.errors import ModelSpecError, number_of

NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
NORMS += (nn.LayerNorm, nn.GroupNorm)


class AdaptiveConcatPool2d(nn.Module):
    """Maximum and mean over space, one after the other: (N,D,H,W) -> (N,2D,1,1)."""

    def __init__(self, size: int = 1):
        super().__init__()
        self.ap = nn.AdaptiveAvgPool2d(size)
        self.mp = nn.AdaptiveMaxPool2d(size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled map; the first D channels are maxima, as in fastai."""
        return torch.cat([self.mp(x), self.ap(x)], 1)


class SigmoidRange(nn.Module):
    """Squash outputs into the open interval (low, high)."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.low, self.high = float(low), float(high)

    def forward(self, x: Tensor) -> Tensor:
        """Return `low + sigmoid(x) * (high - low)`."""
        return torch.sigmoid(x) * (self.high - self.low) + self.low


def create_head(
    nf: int,
    nc: int | None = None,
    lin_ftrs: Sequence[int] | None = None,
    ps: float | Sequence[float] = 0.5,
    concat_pool: bool = True,
    bn_final: bool = False,
    *,
    n_out: int | None = None,
    pool: bool = True,
    first_bn: bool = True,
    lin_first: bool = False,
    y_range: tuple[float, float] | None = None,
    lin_bias: bool = True,
) -> nn.Sequential:
    """Return a head giving logits (N, number of classes) from a feature map (N,D,H,W).

    The two generations of fastai disagree about `nf`. Positionally or as `nc=` the number of
    classes is v1's, and `nf` is then the width *after* pooling (twice D for concat pooling). As
    `n_out=` it is v2's, and `nf` is the width D of the feature map.

    A plain classifier (mean pool, flatten, one linear layer) is
    `create_head(D, n_out=C, lin_ftrs=[], ps=0, concat_pool=False, first_bn=False)`.

    Args:
        nf: Number of features; see above.
        nc: Number of classes, v1 meaning of `nf`.
        lin_ftrs: Widths of the hidden layers; None means one of 512, empty means none.
        ps: Dropout probabilities, one per linear layer; a single number is used for the last layer
            and its half for the others. A layer with probability 0 gets no dropout module.
        concat_pool: Concatenate maximum and mean instead of the mean alone.
        bn_final: End with a batch norm (momentum 0.01).
        n_out: Number of classes, v2 meaning of `nf`.
        pool: Whether the head pools; without, it expects features (N,D).
        first_bn: Whether the first linear layer has a batch norm.
        lin_first: Linear layers before their batch norm and dropout.
        y_range: Squash the outputs into this open interval.
        lin_bias: Whether linear layers have a bias.

    Raises:
        ValueError: Number of classes given twice or not at all; wrong number of `ps`.

    Example:
        >>> head = create_head(512, n_out=3)
        >>> [type(layer).__name__ for layer in head][:3], head[-1].out_features
        (['AdaptiveConcatPool2d', 'Flatten', 'BatchNorm1d'], 3)
    """
    width, n_classes = _resolve_width(nf, nc, n_out, doubled=pool and concat_pool)
    hidden = [512] if lin_ftrs is None else list(lin_ftrs)
    sizes = [width, *hidden, n_classes]
    dropouts = _dropouts(ps, len(sizes) - 1)
    layers: list[nn.Module] = []
    if pool:
        layers += [AdaptiveConcatPool2d() if concat_pool else nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    build = _linear_first if lin_first else _norm_first
    layers += build(sizes, dropouts, first_bn, lin_bias)
    if bn_final:
        layers.append(nn.BatchNorm1d(n_classes, momentum=0.01))
    if y_range is not None:
        layers.append(SigmoidRange(*y_range))
    return nn.Sequential(*layers)


def init_head(head: nn.Module, init: Callable[[Tensor], object] | None) -> nn.Module:
    """Return `head`, weights set by `init`, biases to 0; norms and frozen ones left alone."""
    if init is None:
        return head
    for module in head.modules():
        if isinstance(module, NORMS):
            continue
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        # torch's kaiming and xavier raise ValueError for fewer than two dimensions
        if isinstance(weight, nn.Parameter) and weight.requires_grad and weight.ndim > 1:
            init(weight)
        if isinstance(bias, nn.Parameter) and bias.requires_grad:
            nn.init.zeros_(bias)
    return head


def _resolve_width(nf: int, nc: int | None, n_out: int | None, *, doubled: bool) -> tuple[int, int]:
    """Return (width after pooling, number of classes) from either generation's arguments."""
    if (nc is None) == (n_out is None):
        raise ValueError(
            f"`nc`={nc} and `n_out`={n_out}: give exactly one of them, `nc` (or positional) if"
            " `nf` counts features after pooling, `n_out` if it counts the channels of the map"
        )
    n_classes = nc if n_out is None else n_out
    if nf < 1 or n_classes < 1:
        raise ValueError(f"`nf`={nf} and the number of classes ({n_classes}) must be at least 1")
    return (nf * 2 if n_out is not None and doubled else nf), n_classes


def _dropouts(ps: float | Iterable[float], n_linear: int) -> list[float]:
    """Return one probability per linear layer."""
    given = [ps] if isinstance(ps, Real) else list(ps)
    if len(given) == 1:
        given = [given[0] / 2] * (n_linear - 1) + given
    if len(given) != n_linear:
        raise ValueError(
            f"`ps` has {number_of(len(given), 'value')} for {n_linear} linear layers; give one "
            "number, or one"
            " per layer (len(lin_ftrs) + 1)"
        )
    if not all(0 <= p < 1 for p in given):
        raise ValueError(f"`ps`={given}: dropout probabilities lie in [0, 1)")
    return given


def _norm_first(sizes: list[int], dropouts: list[float], first_bn: bool, bias: bool) -> list:
    """Return (batch norm, dropout, linear, ReLU) blocks, the last without ReLU."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out, p) in enumerate(zip(sizes[:-1], sizes[1:], dropouts, strict=True)):
        layers += [nn.BatchNorm1d(n_in)] if i or first_bn else []
        layers += [nn.Dropout(p)] if p else []  # as in v1: none for 0, which shifts the indices
        layers += [nn.Linear(n_in, n_out, bias=bias)]
        layers += [nn.ReLU(inplace=True)] if i < len(dropouts) - 1 else []
    return layers


def _linear_first(sizes: list[int], dropouts: list[float], first_bn: bool, bias: bool) -> list:
    """Return dropout, (linear, ReLU, batch norm, dropout) blocks, and the last linear layer."""
    layers: list[nn.Module] = [nn.Dropout(dropouts[0])] if dropouts[0] else []
    for i, (n_in, n_out, p) in enumerate(zip(sizes[:-2], sizes[1:-1], dropouts[1:], strict=True)):
        layers += [nn.Linear(n_in, n_out, bias=bias), nn.ReLU(inplace=True)]
        layers += [nn.BatchNorm1d(n_out)] if i or first_bn else []
        layers += [nn.Dropout(p)] if p else []
    return [*layers, nn.Linear(sizes[-2], sizes[-1], bias=bias)]


def layers_of(head: nn.Module) -> dict[str, nn.Module]:
    """The layers of a head by name, in their order, also where fastai puts some into one module."""
    found: dict[str, nn.Module] = {}
    for name, module in head._modules.items():  # fastai's layers share one activation
        inside = layers_of(module) if isinstance(module, nn.Sequential) else {"": module}
        found |= {f"{name}.{own}" if own else name: layer for own, layer in inside.items()}
    return found


def head_options(head: nn.Module) -> dict[str, Any]:
    """The arguments of `create_head` that give the layers of a head; fastai's own heads, too.

    A layer's weights are not compared, and a head in which one linear layer has a bias gives
    `lin_bias=True`.

    Raises:
        ModelSpecError: no arguments give these layers in this order.
    """
    layers = list(layers_of(head).values())
    kinds = [type(layer).__name__ for layer in layers]
    places = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    linears = [layers[i] for i in places]
    options = {
        "lin_ftrs": [layer.out_features for layer in linears[:-1]],
        "ps": [
            next((layer.p for layer in layers[i:j] if isinstance(layer, nn.Dropout)), 0.0)
            for i, j in zip([0, *places], places, strict=False)
        ],
        "pool": kinds[:1] in (["AdaptiveConcatPool2d"], ["AdaptiveAvgPool2d"]),
        "concat_pool": kinds[:1] == ["AdaptiveConcatPool2d"],
        "bn_final": bool(places) and "BatchNorm1d" in kinds[places[-1] :],
        "lin_bias": any(layer.bias is not None for layer in linears),
        "y_range": next(([m.low, m.high] for m in layers if hasattr(m, "low")), None),
    }
    # some give the same layers, as where there is one alone: the first of them is taken
    for order in ({}, {"first_bn": False}, {"lin_first": True}, _UNNORMED) if linears else ():
        if kinds == _kinds(linears, options | order):
            return options | order
    raise ModelSpecError(
        f"the head is none of `create_head`: its layers are {', '.join(kinds) or 'none'}"
    )


_UNNORMED = {"lin_first": True, "first_bn": False}


def _kinds(linears: Sequence[nn.Linear], options: Mapping[str, Any]) -> list[str]:
    """The types of the layers that `create_head` gives with these options."""
    width = linears[0].in_features // (2 if options["concat_pool"] else 1)
    with torch.device("meta"):
        like = create_head(width, n_out=linears[-1].out_features, **options)
    return [type(layer).__name__ for layer in like]


# Number of features and the options of a spec -> a head without any knowledge, to be filled.
HeadBuilder = Callable[..., nn.Module]


_BUILDERS: dict[str, HeadBuilder] = {}


def register_head(kind: str, build: HeadBuilder) -> None:
    """Let specs name heads of this kind; `build(n_features, **options)` makes an empty one."""
    _BUILDERS[kind] = build


def build_head(n_features: int, n_out: int, head: Mapping[str, Any]) -> nn.Module:
    """Return the head that the field `head` of a spec describes.

    Raises:
        ModelSpecError: Its kind is not registered.
    """
    if "kind" not in head:
        return create_head(n_features, n_out=n_out, **head)
    options = dict(head)
    kind = options.pop("kind")
    if kind not in _BUILDERS:
        raise ModelSpecError(
            f"`head['kind']`={kind!r}: registered are {sorted(_BUILDERS)}; import the module that"
            " defines such heads first"
        )
    return _BUILDERS[kind](n_features, **options)

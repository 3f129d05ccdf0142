"""A classifier's network as data: built from a name and numbers, and rebuilt from the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from learnkit.models.body import create_body
from learnkit.models.head import create_head, init_head


@dataclass(frozen=True)
class ModelSpec:
    """What rebuilds a network `Sequential(body, head)`, weights aside.

    Attributes:
        source: "timm" or "torchvision".
        arch: Name in that library.
        n_in: Number of input channels.
        n_out: Number of classes.
        cut: How many children the body keeps; None for the architecture's own cut.
        img_size: (H,W) the body was built for, None for the architecture's own.
        arch_kwargs: Extra arguments of the architecture.
        head: Arguments of `create_head`.
        mean: Normalisation that replaced the architecture's own, None if it was not replaced.
        std: See `mean`.
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


def create_cnn_model(
    arch: Any,
    n_out: int,
    *,
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
        lin_ftrs: See `create_head`, as everything up to `lin_bias`.
        ps: Dropout.
        concat_pool: Pooling.
        pool: Pooling.
        first_bn: Norms.
        bn_final: Norms.
        lin_first: Order.
        y_range: Outputs.
        lin_bias: Biases.
        arch_kwargs: Extra arguments of the architecture.
    """
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
        "lin_ftrs": None if lin_ftrs is None else list(lin_ftrs),
        "ps": ps if isinstance(ps, int | float) else list(ps),
        "concat_pool": concat_pool,
        "pool": pool,
        "first_bn": first_bn,
        "bn_final": bn_final,
        "lin_first": lin_first,
        "y_range": None if y_range is None else list(y_range),
        "lin_bias": lin_bias,
    }
    if custom_head is None:
        head = create_head(body.n_features, n_out=n_out, **head_kwargs)
    else:
        head = (
            custom_head
            if isinstance(custom_head, nn.Module)
            else custom_head(body.n_features, n_out)
        )
    model = nn.Sequential(body, init_head(head, init))
    model.spec = ModelSpec(
        body.source,
        body.arch,
        n_in,
        n_out,
        cut,
        body.img_size,
        body.arch_kwargs,
        head_kwargs,
        None if mean is None else tuple(mean),
        None if std is None else tuple(std),
    )
    model.spec_problem = None
    return model


def build_model(spec: ModelSpec) -> nn.Sequential:
    """Return the network of a spec, with random weights."""
    return create_cnn_model(
        f"{spec.source}:{spec.arch}",
        spec.n_out,
        pretrained=False,
        cut=spec.cut,
        n_in=spec.n_in,
        img_size=spec.img_size,
        mean=spec.mean,
        std=spec.std,
        arch_kwargs=spec.arch_kwargs,
        **spec.head,
    )

"""A network from an architecture's name: body, head and the description that rebuilds it."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from learnkit.errors import CutError
from learnkit.models.body import create_body
from learnkit.models.head import create_head, init_head
from learnkit.models.spec import describe_body


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
    if custom_head is None:
        model.spec, model.spec_problem = describe_body(body, n_in, n_out, head_kwargs)
    else:
        problem = "`custom_head` is code: only heads of `create_head` can be rebuilt from data"
        model.spec, model.spec_problem = None, problem
    return model


def _head(n_features: int, n_out: int, custom_head: Any, options: dict[str, Any]) -> nn.Module:
    """Return the caller's head, or the default one."""
    if custom_head is None:
        return create_head(n_features, n_out=n_out, **options)
    return custom_head if isinstance(custom_head, nn.Module) else custom_head(n_features, n_out)

"""Bodies: what turns images (N,C,H,W) into a feature map (N,D,H',W'), whatever the architecture."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from learnkit.errors import (
    InputSizeError,
    UnknownArchitectureError,
    WeightsError,
    WeightsUnavailableError,
)
from learnkit.models.arch import Arch, resolve_arch
from learnkit.models.cut import check_cut
from learnkit.models.dry_run import dry_run
from learnkit.models.meta import default_meta, family_meta, meta_of
from learnkit.models.networks import BUILDERS, Request, WholeNetwork
from learnkit.models.timm_body import is_timm, timm_body
from learnkit.models.torchvision_body import children_body
from learnkit.models.weights import StatedRecipe, Wanted, stated_recipe, wanted_weights

Size = tuple[int, int]
# A map smaller than this says too little about the stride: 28 pixels to one is still stride 32.
_MIN_MAP = 4
_NOT_THE_SIZE = (WeightsError, WeightsUnavailableError, UnknownArchitectureError, TypeError)


def create_body(
    arch: Any,
    pretrained: Any = True,
    cut: Any = None,
    n_in: int = 3,
    *,
    img_size: int | Sequence[int] | None = None,
    weights: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **arch_kwargs: Any,
) -> nn.Module:
    """Return the network up to its feature map: images (N,n_in,H,W) -> map (N,D,H',W').

    Whatever comes after the map is removed, so that every parameter left has a gradient. The body
    carries what others need to know about it: `n_features` (D), `reduction` (H/H'; None if a
    function as cut left features without a map), `mean` and `std` (per channel, for pixels in
    [0, 1]; None if unknown), `arch`, `source` ("timm", "torchvision" or "custom"), `cut`,
    `img_size` and `arch_kwargs`.

    Args:
        arch: A name (timm's first, then torchvision's; "timm:" or "torchvision:" in front says
            which; "local-dir:" and "hf-hub:" as in timm), a function that builds a network, or a
            network.
        pretrained: True for the published weights, False for random ones, or the path of a
            safetensors or `weights_only` file.
        cut: Where the body ends. An int keeps that many children (negative counts from the end), a
            function receives the network and returns the body.
        n_in: Number of input channels.
        img_size: Height and width the body will see. Networks made for one size are built for it.
        weights: Which published weights (timm's tag, torchvision's name), or a path.
        mean: Normalisation to use instead of the architecture's own.
        std: See `mean`.
        **arch_kwargs: Passed on to the function that builds the network.

    Raises:
        UnknownArchitectureError: No library has this architecture.
        CutError: The cut finds no feature map, or truncates the network.
        InputSizeError: The network does not take images of this size or number of channels.
        WeightsUnavailableError: The published weights cannot be had; random ones are never used.
        WeightsError: The file does not fit the network.

    Example:
        >>> body = create_body("resnet18", pretrained=False, img_size=64)
        >>> body.source, body.n_features, body.reduction
        ('timm', 512, 32)
    """
    check_cut(cut)
    found = resolve_arch(arch)
    if cut is None:
        # What a user entered into `model_meta`; learnkit's own entry is no choice of the caller's.
        entered = meta_of(found).get("cut")
        cut = None if entered == default_meta(found).get("cut") else entered
    return assemble_body(
        found,
        wanted_weights(pretrained, weights),
        cut=cut,
        n_in=n_in,
        img_size=img_size,
        mean=mean,
        std=std,
        arch_kwargs=arch_kwargs,
    )


def assemble_body(
    arch: Arch,
    wanted: Wanted,
    *,
    cut: Any,
    n_in: int,
    img_size: int | Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    arch_kwargs: dict[str, Any],
    pooled: bool = False,
) -> nn.Module:
    """Return the body of an architecture found; see `create_body` and `ModelSpec.pooled`."""
    size, stated = as_size(img_size), StatedRecipe()
    if wanted.file is not None and wanted.file.is_file():
        stated = stated_recipe(wanted.file, arch.name, check_n_in(n_in), decided=mean is not None)
        if arch.source == "timm":
            arch_kwargs = stated.options | arch_kwargs
    mean, std = (stated.mean, stated.std) if mean is None else (mean, std)
    request = Request(wanted, check_n_in(n_in), size, dict(arch_kwargs), pooled)
    with _options_explained(stated, arch):
        network, body, feature_map = _build(arch, request, cut)
    body.n_features = int(feature_map.shape[1])
    body.reduction = _reduction(body, feature_map, network)
    body.arch, body.source, body.arch_kwargs = network.name, arch.source, network.options
    body.cut, body.img_size, body.pooled = cut, size or network.built_for, pooled
    body.mean = network.mean if mean is None else tuple(map(float, mean))
    body.std = network.std if std is None else tuple(map(float, std))
    body.recipe_source = stated.source if stated.mean is not None else ""
    body.weights_file = "" if wanted.file is None else wanted.file.name
    return body


@contextmanager
def _options_explained(stated: StatedRecipe, arch: Arch) -> Iterator[None]:
    """Say whose an option is that an architecture does not take, if a file says it."""
    try:
        yield
    except TypeError as error:
        wrong = [name for name in stated.options if f"'{name}'" in str(error)]
        if not wrong:
            raise
        raise WeightsError(
            f"weights file: {stated.source} says {wrong[0]}={stated.options[wrong[0]]!r}, which "
            f"{arch.label} does not take; mend it, or check the architecture"
        ) from error


def as_size(img_size: int | Sequence[int] | None) -> Size | None:
    """Return (H,W) from an int, a pair or None."""
    pair = (img_size, img_size) if isinstance(img_size, int) else img_size
    if pair is None:
        return None
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise InputSizeError(
            f"`img_size`={img_size!r}: expected a positive int, or (height, width)"
        )
    return tuple(pair)


def check_n_in(n_in: int) -> int:
    """Return `n_in`, or raise InputSizeError unless it is a positive int."""
    if isinstance(n_in, bool) or not isinstance(n_in, int) or n_in < 1:
        raise InputSizeError(
            f"`n_in`={n_in!r}: the number of input channels must be a positive int"
        )
    return n_in


def _build(arch: Arch, request: Request, cut: Any) -> tuple[WholeNetwork, nn.Module, Tensor]:
    """Return the network's record, its body, and the (empty) map of a dry run."""
    try:
        return _build_at(arch, request, cut)
    except _NOT_THE_SIZE:
        raise
    except Exception as error:
        native = _native_if_it_works(arch, request, cut)
        if native is None:
            raise
        raise InputSizeError(
            f"`img_size`={request.img_size}: {arch.label} does not take images of this size"
            # the cause of a CutError is what the network itself said
            f" ({error.__cause__ or error}); it takes {native}: use that size, or another"
            " architecture"
        ) from error


def _build_at(arch: Arch, request: Request, cut: Any) -> tuple[WholeNetwork, nn.Module, Tensor]:
    """Build, cut and try out the network at the size of the request."""
    network = BUILDERS[arch.source](arch, request)
    shape = (1, network.n_in, *network.size)
    if arch.source == "timm" or is_timm(network.module):
        return network, *timm_body(network.module, cut, shape, pooled=request.pooled)
    default_cut = (default_meta(arch) or family_meta(network.module)).get("cut")
    library = arch.source == "torchvision"
    return network, *children_body(network.module, cut, default_cut, shape, library=library)


def _native_if_it_works(arch: Arch, request: Request, cut: Any) -> Size | None:
    """Return the size the architecture is made for, if another was asked for and this one works."""
    if request.img_size is None or arch.source == "custom":
        return None
    # Random weights will do to find out, and need no hub.
    native = dataclasses.replace(request, img_size=None, wanted=Wanted())
    try:
        network, *_ = _build_at(arch, native, cut)
    except Exception:  # noqa: BLE001  # then the size is not to blame, and the first error stands
        return None
    return network.size if network.size != request.img_size else None


def _reduction(body: nn.Module, feature_map: Tensor, network: WholeNetwork) -> int | None:
    """Return how many input pixels one row of the map spans, None for features without a map."""
    if feature_map.ndim != 4:
        return None
    height, rows = network.size[0], feature_map.shape[2]
    if rows < _MIN_MAP and not network.fixed_size:
        height = network.native_size[0]
        shape = (1, network.n_in, *network.native_size)
        rows = dry_run(body, lambda net, x: net(x), shape).output.shape[2]
    return max(1, round(height / rows))

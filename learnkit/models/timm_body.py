"""timm networks as bodies: whatever the layout inside, an NCHW feature map comes out.

Three layouts occur. Most convolutional nets return a map (N,D,H,W) from `forward_features`; a few
(Swin, MambaOut, Hiera) return (N,H,W,D), which is permuted; transformers return tokens (N,L,D), for
which timm's `forward_intermediates` gives the map. What comes after the map is removed.
"""

import dataclasses
from typing import Any

from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from learnkit.models.cut import cut_network, require_map, require_untruncated
from learnkit.models.dry_run import DryRun, drop_unused, dry_run


class TimmBody(nn.Module):
    """A timm network up to its feature map (N,D,H,W)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map."""
        return self.model.forward_features(x)


class TimmNhwcBody(TimmBody):
    """A timm network that computes (N,H,W,D) inside."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map, permuted to (N,D,H,W)."""
        return self.model.forward_features(x).permute(0, 3, 1, 2)


class TimmMapBody(TimmBody):
    """A timm network that computes tokens inside."""

    def __init__(self, model: nn.Module, norm: bool = True):
        super().__init__(model)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Return the last block's tokens, normalised where timm can, as a map (N,D,H,W)."""
        return _last_map(self.model, x, self.norm)


class TimmTokenBody(TimmBody):
    """A timm vision transformer for one image size; unlike `TimmMapBody` it can be scripted."""

    def __init__(self, model: nn.Module, prefix: int, grid: tuple[int, int]):
        super().__init__(model)
        self.prefix, self.rows, self.columns = prefix, grid[0], grid[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised patch tokens as a map."""
        return self.to_map(self.model.forward_features(x))

    def to_map(self, tokens: Tensor) -> Tensor:
        """Return tokens (N,L,D) as a map (N,D,H,W), class and register tokens dropped."""
        patches = tokens[:, self.prefix :].transpose(1, 2)
        return patches.reshape(tokens.shape[0], -1, self.rows, self.columns)


class TimmCutBody(TimmBody):
    """The first children of a timm network, under their own names."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map."""
        return self.model(x)


class TimmNhwcCutBody(TimmBody):
    """The first children of a timm network that computes (N,H,W,D) inside."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map, permuted to (N,D,H,W)."""
        return self.model(x).permute(0, 3, 1, 2)


class TimmPooledBody(TimmBody):
    """A whole timm network, its classifier taken off."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the features that the classifier would be given, as a map (N,D,1,1)."""
        return self.model(x)[:, :, None, None]


def is_timm(module: nn.Module) -> bool:
    """True if `module` is a whole timm network."""
    return hasattr(module, "forward_features") and hasattr(module, "pretrained_cfg")


def timm_body(
    model: nn.Module, cut: Any, shape: tuple[int, ...], *, pooled: bool = False
) -> tuple[TimmBody, Tensor]:
    """Return the body of a timm network and the (empty) feature map of a dry run at `shape`.

    With `pooled` the map has one place: the features that timm itself pools.

    Raises:
        CutError: `cut` leaves no feature map.
    """
    if cut is not None:
        return _cut_body(model, cut, shape)
    stem = _stem_names(model)
    if pooled:  # the network ends with its own pooling
        seen = dry_run(model, lambda net, x: net(x), shape)
        body = TimmPooledBody(model)
        seen = dataclasses.replace(seen, output=seen.output[:, :, None, None])
    else:
        body, seen = _layout(model, shape)
    drop_unused(model, seen)
    body.stem = tuple(f"model.{name}" for name in stem)
    return body, seen.output


def _cut_body(model: nn.Module, cut: Any, shape: tuple[int, ...]) -> tuple[TimmBody, Tensor]:
    """Return the first children of a timm network as a body, under their own names."""
    # of the whole network: what is left of a cut has no `group_matcher`
    stem = _stem_names(model)
    trunk = cut_network(model, cut)
    seen = require_map(model, trunk, cut, shape)
    nhwc = getattr(model, "output_fmt", "NCHW") == "NHWC" and seen.output.ndim == 4
    feature_map = seen.output.permute(0, 3, 1, 2) if nhwc else seen.output
    if not callable(cut):
        sizes = (shape[2], feature_map.shape[2])
        require_untruncated(model, trunk, cut, sizes, automatic=False)
    drop_unused(trunk, seen)
    body = (TimmNhwcCutBody if nhwc else TimmCutBody)(trunk)
    body.stem = tuple(f"model.{name}" for name in stem)
    return body, feature_map


def _layout(model: nn.Module, shape: tuple[int, ...]) -> tuple[TimmBody, DryRun]:
    """Find out by a dry run which wrapper gives an NCHW map, and what it sees."""
    seen = dry_run(model, lambda net, x: net.forward_features(x), shape)
    # Tokens are some prefix and then one per patch of a fixed grid, row by row.
    is_plain_vit = isinstance(model, VisionTransformer) and not model.dynamic_img_size
    if is_plain_vit and isinstance(seen.output, Tensor) and seen.output.ndim == 3:
        body = TimmTokenBody(model, model.num_prefix_tokens, model.patch_embed.grid_size)
        return body, dataclasses.replace(seen, output=body.to_map(seen.output))
    if not isinstance(seen.output, Tensor) or seen.output.ndim != 4:
        return _token_layout(model, shape)
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        permuted = seen.output.permute(0, 3, 1, 2)
        return TimmNhwcBody(model), dataclasses.replace(seen, output=permuted)
    return TimmBody(model), seen


def _token_layout(model: nn.Module, shape: tuple[int, ...]) -> tuple[TimmBody, DryRun]:
    """Return the wrapper of a token network."""
    try:
        return TimmMapBody(model), dry_run(model, lambda net, x: _last_map(net, x, True), shape)
    except AssertionError:  # a few cannot apply their norm to a map (Hiera)
        seen = dry_run(model, lambda net, x: _last_map(net, x, False), shape)
        return TimmMapBody(model, norm=False), seen


def _last_map(model: nn.Module, x: Tensor, norm: bool) -> Tensor:
    """Return the last block's output as a map (N,D,H,W)."""
    options = {"indices": 1, "intermediates_only": True, "output_fmt": "NCHW", "norm": norm}
    return model.forward_intermediates(x, **options)[-1]


def _stem_names(model: nn.Module) -> list[str]:
    """Return the names of the stem's parameters: by timm's grouping, else the first child's."""
    if hasattr(model, "group_matcher"):
        layers = group_parameters(model, _matcher(model))
        if len(layers) > 1:
            return list(layers[min(layers)])
    name = next(iter(dict(model.named_parameters())), "").partition(".")[0]
    return [n for n, _ in model.named_parameters() if n.partition(".")[0] == name]


def _matcher(model: nn.Module) -> Any:
    """Return timm's rule for grouping parameters, by stage where it has one."""
    try:
        return model.group_matcher(coarse=True)
    except AssertionError:  # RDNet has no stages
        return model.group_matcher(coarse=False)

"""timm networks as bodies: whatever the layout inside, an NCHW feature map comes out.

Three layouts occur. Most convolutional nets return a map (N,D,H,W) from `forward_features`; a few
(Swin, MambaOut, Hiera) return (N,H,W,D), which is permuted; transformers return tokens (N,L,D), for
which timm's `forward_intermediates` gives the map. What comes after the map is removed.
"""

from typing import Any

from timm.models import group_parameters
from torch import Tensor, nn

from learnkit.models.cut import cut_network, require_map
from learnkit.models.probe import Probe, drop_unused, probe


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

    def forward(self, x: Tensor) -> Tensor:
        """Return the last block's tokens, normalised, as a map (N,D,H,W)."""
        return _last_map(self.model, x)


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


def timm_body(model: nn.Module, cut: Any, shape: tuple[int, ...]) -> tuple[TimmBody, Tensor]:
    """Return the body of a timm network and the (empty) feature map of a dry run at `shape`.

    Raises:
        CutError: `cut` leaves no feature map.
    """
    if cut is not None:
        return _cut_body(model, cut, shape)
    stem = _stem_names(model)
    body_class, seen = _layout(model, shape)
    drop_unused(model, seen)
    body = body_class(model)
    body.stem = tuple(f"model.{name}" for name in stem)
    return body, seen.output


def _cut_body(model: nn.Module, cut: Any, shape: tuple[int, ...]) -> tuple[TimmBody, Tensor]:
    """Return the first children of a timm network as a body, under their own names."""
    stem = _stem_names(model)
    trunk = cut_network(model, cut)
    seen = require_map(model, trunk, cut, shape)
    drop_unused(trunk, seen)
    nhwc = getattr(model, "output_fmt", "NCHW") == "NHWC"
    body = (TimmNhwcCutBody if nhwc else TimmCutBody)(trunk)
    body.stem = tuple(f"model.{name}" for name in stem)
    return body, seen.output.permute(0, 3, 1, 2) if nhwc else seen.output


def fixed_size(cfg: dict[str, Any]) -> tuple[int, int] | None:
    """Return the (H,W) a network of this timm configuration is built for, None if it takes any."""
    return tuple(cfg["input_size"][-2:]) if cfg.get("fixed_input_size") else None


def _layout(model: nn.Module, shape: tuple[int, ...]) -> tuple[type[TimmBody], Probe]:
    """Find out by a dry run which wrapper gives an NCHW map, and what it sees."""
    seen = probe(model, lambda net, x: net.forward_features(x), shape)
    if not isinstance(seen.output, Tensor) or seen.output.ndim != 4:
        return TimmMapBody, probe(model, _last_map, shape)
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        return TimmNhwcBody, Probe(seen.output.permute(0, 3, 1, 2), seen.reached, seen.called)
    return TimmBody, seen


def _last_map(model: nn.Module, x: Tensor) -> Tensor:
    """Return the last block's output as a map (N,D,H,W)."""
    options = {"indices": 1, "intermediates_only": True, "output_fmt": "NCHW", "norm": True}
    return model.forward_intermediates(x, **options)[-1]


def _stem_names(model: nn.Module) -> list[str]:
    """Return the names of the stem's parameters by timm's own grouping, empty if there is none."""
    if not hasattr(model, "group_matcher"):
        return []
    layers = group_parameters(model, model.group_matcher(coarse=True))
    return list(layers[min(layers)]) if len(layers) > 1 else []

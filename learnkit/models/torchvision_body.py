"""torchvision and home-made networks as bodies: the first children in a plain Sequential.

This is how fastai cuts, and its state-dict keys ("0.0.weight", ...) are kept, so that checkpoints
of fastai learners load.
"""

import copy
from typing import Any

import torch
import torchvision.models as tv
from torch import Tensor, nn

from learnkit.errors import InputSizeError
from learnkit.models.cut import automatic_cut, cut_network, require_map, require_untruncated
from learnkit.models.dry_run import Removed, drop_unused

_COPIED = ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


class VitBody(nn.Module):
    """A torchvision vision transformer up to its patch tokens, as a map (N,D,H,W)."""

    def __init__(self, model: tv.VisionTransformer):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the encoder's patch tokens, class token dropped, as a map."""
        n, size = x.shape[0], self.model.patch_size
        rows, columns = x.shape[-2] // size, x.shape[-1] // size
        patches = self.model._process_input(x)
        tokens = torch.cat([self.model.class_token.expand(n, -1, -1), patches], dim=1)
        tokens = self.model.encoder(tokens)[:, 1:]
        return tokens.transpose(1, 2).reshape(n, -1, rows, columns)


def children_body(
    model: nn.Module, cut: Any, default_cut: Any, shape: tuple[int, ...], *, library: bool
) -> tuple[nn.Module, Tensor]:
    """Return the body of a network by its children, and the (empty) map of a dry run at `shape`.

    Args:
        model: The whole network.
        cut: The caller's cut, or None.
        default_cut: The cut known for this architecture, or None to look for the last pool.
        shape: Shape of the dry run's images.
        library: Whether the network is torchvision's: its strides are then checked, and what the
            map does not depend on is removed. Home-made networks are left as they are.

    Raises:
        CutError: The cut finds no pool, leaves no feature map, or truncates the network.
    """
    automatic = cut is None
    cut = next((c for c in (cut, default_cut) if c is not None), None)
    if cut is None and isinstance(model, tv.VisionTransformer):
        headless = copy.copy(model)  # the caller's keeps its heads; layers are shared
        headless._modules = {**model._modules, "heads": Removed()}
        trunk = VitBody(headless)
    else:
        cut = automatic_cut(model) if cut is None else cut
        trunk = cut(model) if callable(cut) else nn.Sequential(*cut_network(model, cut))
    seen = require_map(model, trunk, cut, shape)
    if library:
        drop_unused(trunk, seen)
    if automatic or not callable(cut):
        sizes = (shape[2], seen.output.shape[2]) if library else None
        require_untruncated(model, trunk, cut, sizes, automatic=automatic)
    return trunk, seen.output


def convert_input(model: nn.Module, n_in: int, *, pretrained: bool) -> None:
    """Give the first convolution `n_in` input channels, in place, keeping its bias.

    Raises:
        InputSizeError: The network's first convolution is missing or grouped.
    """
    name = next((n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)), "")
    old = model.get_submodule(name)
    if not isinstance(old, nn.Conv2d) or old.groups != 1:
        raise InputSizeError(
            f"`n_in`={n_in}: {type(model).__name__} has no ordinary first Conv2d that could be"
            " given another number of channels; build it with that number and pass the module"
        )
    if old.in_channels == n_in:
        return
    options = {attribute: getattr(old, attribute) for attribute in _COPIED}
    new = nn.Conv2d(n_in, bias=old.bias is not None, **options)
    new = new.to(old.weight.device, old.weight.dtype)
    if pretrained:
        _carry_filters(old, new)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


@torch.no_grad()
def _carry_filters(old: nn.Conv2d, new: nn.Conv2d) -> None:
    """Copy filters and bias from `old` into `new`, which has another number of channels."""
    # Summed for one channel, two scaled by 1.5, zeros beyond three: grey images, and the first
    # three channels, give the response they gave.
    n_in, shared = new.in_channels, min(new.in_channels, old.in_channels)
    if n_in == 1:
        new.weight.copy_(old.weight.sum(dim=1, keepdim=True))
    else:
        new.weight.zero_()
        new.weight[:, :shared] = old.weight[:, :shared] * max(1, old.in_channels / n_in)
    if old.bias is not None:
        new.bias.copy_(old.bias)

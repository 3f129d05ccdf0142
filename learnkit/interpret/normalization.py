"""Normalisation of pixels: a network's own, that of any loader, and the way from one to the other.

A network knows the mean and standard deviation its pixels were normalised with, and the names of
its outputs; both go where it goes. A pass over a loader that leaves its pixels otherwise, whoever
made it, brings them into the network's form batch by batch, so that the loader stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from learnkit.errors import warn_user

# Where a network notes them: plain values, so that it pickles without learnkit.
_PIXELS, _NAMES = "input_normalization", "output_classes"
_CLOSE = 1e-4  # statistics that differ by less are the same ones, rounded


class Normalization(NamedTuple):
    """Mean and standard deviation per channel, of pixels in 0..1; None for pixels as they are."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __str__(self) -> str:
        if self.mean is None:
            return "pixels in 0..1"
        mean, std = ([round(x, 4) for x in values] for values in (self.mean, self.std))
        return f"pixels normalised with mean {mean} and std {std}"

    def is_like(self, other: Normalization) -> bool:
        """Whether both give the same pixels, up to rounding."""
        ours, theirs = ((*(n.mean or ()), *(n.std or ())) for n in (self, other))
        return len(ours) == len(theirs) and all(
            abs(a - b) < _CLOSE for a, b in zip(ours, theirs, strict=True)
        )


def normalization_of(dl: Any) -> Normalization | None:
    """The normalisation a loader's batches have; None where it does not tell, as torch's do not."""
    while _wrapped(dl) is not None:
        dl = _wrapped(dl)
    fs = getattr(getattr(dl, "after_batch", None), "fs", None)
    if fs is None:
        return None
    found = [tfm for tfm in fs if _normalizes(tfm)]
    kinds = str(getattr(dl, "_types", None) or "TensorImage")
    if not found or "TensorImage" not in kinds:  # plain tensors pass through it unchanged
        return Normalization()
    return Normalization(*(tuple(s.flatten().tolist()) for s in (found[-1].mean, found[-1].std)))


def _normalizes(tfm: Any) -> bool:
    """Whether it is a Normalize of fastai's, told by name: nothing here needs fastai."""
    kinds = (kind.__name__ for kind in type(tfm).__mro__)
    return "Normalize" in kinds and getattr(tfm, "mean", None) is not None


def _wrapped(dl: Any) -> Any:
    """The loader whose batches `dl` passes on: stored features, a part of several processes."""
    names = vars(dl) if hasattr(dl, "__dict__") else {}
    inner = names.get("source", names.get("dl"))
    return inner if hasattr(inner, "after_batch") else None


def network_normalization(model: Any) -> Normalization | None:
    """What a network's pixels were normalised with; None if it does not say."""
    noted = getattr(_part(model, 0), _PIXELS, None)
    return None if noted is None else Normalization(*noted)


def network_classes(model: Any) -> tuple[str, ...] | None:
    """The names of a network's outputs; None if it does not say."""
    return getattr(_part(model, 1), _NAMES, None)


def note_conventions(
    model: Any, normalization: Normalization | None, classes: Sequence[str] | None
) -> None:
    """Let a network say how its pixels are normalised and what its outputs are called.

    What it says already stays; None is not noted.
    """
    noted = None if normalization is None else tuple(normalization)
    names = None if classes is None else tuple(classes)
    for place, name, value in ((0, _PIXELS, noted), (1, _NAMES, names)):
        part = _part(model, place)
        if isinstance(part, nn.Module) and value is not None and not hasattr(part, name):
            setattr(part, name, value)


def _part(model: Any, place: int) -> Any:
    """Body (0) or head (1) of a network; the network where it has no two parts."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner  # wrapped for several devices
    return model[place] if isinstance(model, nn.Sequential) and len(model) == 2 else model


@dataclass(frozen=True)
class Renormalization:
    """From the pixels of a loader to those of a network.

    Attributes:
        found: normalisation of the loader; None where it does not tell and the pixels must.
        wanted: normalisation of the network.
    """

    found: Normalization | None
    wanted: Normalization

    def __call__(self, images: Any) -> Any:
        """Images (N, C, H, W) as the network takes them; anything else comes back as it is."""
        n_channels = len(self.wanted.mean or self._given.mean or ())
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != n_channels:
            return images
        found = self._seen(images)
        if not images.is_floating_point():
            images = images.float() / 255
        if found is None or found.is_like(self.wanted):
            return images
        return _normalized(plain_pixels(images, found), self.wanted)

    @property
    def _given(self) -> Normalization:
        return self.found or Normalization()

    def _seen(self, images: Tensor) -> Normalization | None:
        """The normalisation of a batch; None if it is that of the network."""
        if self.found is not None or not images.is_floating_point():
            return self._given
        # Normalised pixels nearly never lie in 0..1, all of them.
        low, high = (value.item() for value in images.detach().as_subclass(Tensor).aminmax())
        if low < 0 or high > 1:
            return None
        steps = images.detach().as_subclass(Tensor) * 255
        if not torch.allclose(steps, steps.round(), rtol=0, atol=1e-3):
            warn_user(
                "the loader does not tell whether its pixels are normalised; all of them lie in "
                f"0..1, so they are taken for plain ones and become {self.wanted}. A loader of "
                "learn.dls.test_dl(files) tells"
            )
        return self._given


def plain_pixels(images: Tensor, found: Normalization) -> Tensor:
    """Return images (N, C, H, W) as pixels in 0..1, of normalised ones."""
    if found.mean is None:
        return images
    mean, std = _columns(images, found)
    return images * std + mean


def _normalized(images: Tensor, wanted: Normalization) -> Tensor:
    if wanted.mean is None:
        return images
    mean, std = _columns(images, wanted)
    return (images - mean) / std


def _columns(images: Tensor, values: Normalization) -> tuple[Tensor, Tensor]:
    plain = images.detach().as_subclass(Tensor)
    mean, std = (plain.new_tensor(numbers).view(1, -1, 1, 1) for numbers in values)
    return mean, std


def renormalization(learn: Any, dl: Any) -> Renormalization | None:
    """What brings the pixels of `dl` into the form of the learner's; None where they have it."""
    wanted = network_normalization(learn.model)
    if wanted is None:
        wanted = normalization_of(learn.dls.loaders[:2][-1])
    if wanted is None:
        return None
    found = normalization_of(dl)
    if found is None and wanted.mean is None:
        return None
    same = found is not None and found.is_like(wanted)
    return None if same else Renormalization(found, wanted)

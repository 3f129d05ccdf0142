"""Images drawn from the fitted distribution, where there is none to be left out."""

import torch
from torch import Tensor

from learnkit.continual.closed_form.whitening import Geometry

_N_DRAWN = 512
# Spread of the squared distance of real images around its mean, beyond that of a normal one.
_SPREAD = 0.3


def draw_images(geometry: Geometry) -> tuple[Tensor, Tensor]:
    """(embedded features (R,D), places (R,)) drawn around the class means, always the same.

    They differ from the class means as images yet to come would, on average; their squared
    distances vary by at least `_SPREAD`, as those of real images do.
    """
    spectrum, n_classes = geometry.spectrum, len(geometry.counts)
    places = torch.arange(n_classes).repeat(-(-_N_DRAWN // n_classes))
    if n_classes > _N_DRAWN:
        places = places[:: n_classes // _N_DRAWN]
    generator = torch.Generator().manual_seed(0)
    shape = len(places), len(spectrum.values)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise *= _axis_spread(geometry)
    noise *= (
        (1 + _SPREAD * torch.randn(len(places), 1, generator=generator).double())
        .clamp_min(0.1)
        .sqrt()
    )
    kept, variance = _true_means(geometry)
    whitened = kept[places, None] * geometry.means[places] + noise * variance[places, None].sqrt()
    return spectrum.center + (whitened / geometry.scale) @ spectrum.axes.T, places


def _axis_spread(geometry: Geometry) -> Tensor:
    """Standard deviation of samples along the axes of the whitened space (D,)."""
    spectrum = geometry.spectrum
    if spectrum.is_flat:
        return torch.ones_like(spectrum.values)
    return (spectrum.values / spectrum.dof).sqrt() * geometry.scale


def _true_means(geometry: Geometry) -> tuple[Tensor, Tensor]:
    """(share (P,) of its distance from the center a class mean keeps, variance factor (P,)).

    Estimated means lie further out than true ones by their own noise, and the covariance fits the
    samples it was estimated from too well: images yet to come show both.
    """
    counts, n = geometry.counts, float(geometry.counts.sum())
    leverage = 0.0 if geometry.spectrum.is_flat else (1 - geometry.shrinkage) * geometry.d_eff / n
    stretch = 1 / (1 - counts / (counts - 1).clamp_min(1) * leverage).clamp_min(0.05)
    n_classes = len(counts)
    apart = geometry.means.square().sum(1).mean() * n_classes / max(n_classes - 1, 1)
    kept = (1 - geometry.d_eff * stretch / counts / apart.clamp_min(1e-12)).clamp(0.05, 1)
    return kept, stretch * (1 + kept / counts)

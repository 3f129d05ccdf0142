"""Mahalanobis scores of left-out samples where few images make the covariance.

Leaving a sample out in closed form holds the ridge that is added to the scatter. Divided by fewer
degrees of freedom, the round part of the covariance grows by that, as it does not when a
classifier is fitted to fewer images: with two degrees of freedom distances come out half as long
as those of fresh images, and a threshold from them flags most of these. Here the round part is
held instead.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from learnkit.continual.closed_form.leave_one_out import leave_one_out
from learnkit.continual.closed_form.linear import LinearClassifier
from learnkit.continual.closed_form.whitening import Geometry

_MANY = 200  # degrees of freedom from which on it makes no difference


def held_out_mahalanobis(linear: LinearClassifier) -> Tensor:
    """`linear.loo.mahalanobis` (M,), with the round part of the covariance held.

    Rows that play a class of one image stay as they are.
    """
    loo, geometry = linear.loo, linear.geometry
    spectrum, n = geometry.spectrum, loo.n_single
    if spectrum.is_flat or geometry.shrinkage == 1 or spectrum.dof > _MANY or not n:
        return loo.mahalanobis
    at = loo.rows[:n]
    labels = torch.searchsorted(spectrum.classes, loo.labels[:n])
    copies = loo.memory.copies[at].to(torch.float64)
    other, factor = _counterweight(geometry)
    left_out = leave_one_out(other, spectrum.turn(loo.memory.embedded(at)), labels, copies)
    held = replace(left_out, distances=left_out.distances * factor)
    return torch.cat([held.mahalanobis_scores(geometry.d_eff), loo.mahalanobis[n:]])


def _counterweight(geometry: Geometry) -> tuple[Geometry, float]:
    """(geometry, factor on squared distances) whose round part grows to the one that is wanted."""
    share, dof = geometry.shrinkage, geometry.spectrum.dof
    if dof < 2:  # no scatter is left, the round part alone
        return geometry.spectrum.geometry(1.0), 1 / share
    odds = share / (1 - share) * (dof - 1) / dof
    return geometry.spectrum.geometry(odds / (1 + odds)), 1 / (1 + odds) / (1 - share)

"""Every image left out of the discriminant of all: held-out logits without a second fit.

Class mean and covariance are those without the image, to rounding; how far the covariance is
shrunk, and with it the ridge, is held at what all images say.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from learnkit.continual.closed_form.linear import Basis
from learnkit.continual.closed_form.loo_samples import (
    MemoryRows,
    class_masses,
    every_row_out,
    memory_rows,
    score_left_out,
)
from learnkit.continual.closed_form.shrinkage import expected_temperature
from learnkit.continual.closed_form.temperature import temper
from learnkit.continual.closed_form.whitening import Moments


class EveryImage(NamedTuple):
    """What the discriminant says of each of its images as if it had not seen it.

    `logits (M,P)` without a prior and before the temperature, `labels (M,)` positions among the P
    classes with images, by name, `mahalanobis (M,)` distances to the nearest class, `shares (P,)`
    of the classes among the images. `memory` has the M images: those of classes that have others.
    `shrinkage` is what was chosen.
    """

    logits: Tensor
    labels: Tensor
    mahalanobis: Tensor
    shares: Tensor
    temperature: float
    shrinkage: float
    memory: MemoryRows


def leave_every_image_out(moments: Moments) -> EveryImage:
    """Held-out logits of all remembered images, each left out with its copies and its group.

    Args:
        moments: of at least two classes, of which one has two images that differ.
    """
    basis = Basis.of(moments, "training")
    shrinkage = basis.select(1.0).shrinkage
    geometry = basis.spectrum.geometry(shrinkage)
    memory = memory_rows(moments)
    samples = every_row_out(basis.spectrum, memory)
    found = score_left_out(samples, geometry, 1.0)
    shares = class_masses(basis.spectrum.counts, "training")
    tempered = temper(
        found.logits,
        samples.labels,
        samples.weights,
        log_prior=shares.log(),
        expected=expected_temperature(geometry),
    )
    return EveryImage(
        found.logits,
        samples.labels,
        found.mahalanobis,
        shares,
        tempered.temperature,
        shrinkage,
        memory,
    )

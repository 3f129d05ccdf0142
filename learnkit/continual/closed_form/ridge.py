"""Class-balanced ridge regression on class indicators, in closed form from class statistics.

Every class weighs alike, whatever its number of images: the targets of class c are divided by its
share. Logits count from the mean of the class means. Means of few images are noisy, which makes
them lose, as in the discriminant, and its remedies are taken over (`mean_noise.py`): regression is
a discriminant too, in the metric of the total scatter and without the lengths of the class means.
These are taken off, less what noise adds to them. The penalty comes from leave-one-out log loss,
or, where nothing can be left out, from generalised cross-validation, within bounds: with fewer
images than features and a penalty near nothing every sample explains itself, and neither means
anything. On photographs the discriminant (`lda.py`) is as good or better throughout, most of all in
its confidences.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from learnkit.continual.closed_form.leave_one_out import Group, downdate, woodbury_gains
from learnkit.continual.closed_form.linear import Basis, LinearClassifier, Scored
from learnkit.continual.closed_form.loo_samples import LooSamples, Prior, score_left_out
from learnkit.continual.closed_form.mean_noise import MeanNoise, weights_of
from learnkit.continual.closed_form.shrinkage import (
    GUESS_IS_TOO_HIGH,
    Selection,
    default_shrinkage,
    default_temperature,
    weigh_evidence,
)
from learnkit.continual.closed_form.temperature import Tempered, temper
from learnkit.continual.closed_form.whitening import Moments, Spectrum

# Penalties, in units of the mean eigenvalue that is not zero.
PENALTIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


def fit_ridge(
    moments: Moments,
    *,
    prior: Prior = "uniform",
    debias: float = 1.0,
    penalty: float | None = None,
) -> LinearClassifier:
    """Class-balanced ridge classifier; penalty and temperature by leave-one-out log loss.

    Args:
        moments: Of the classes.
        prior: Whether classes count alike, or as often as they came ("training").
        debias: How much of the penalty for few images to take back, in 0..1. With 0 this is
            textbook ridge regression on balanced targets.
        penalty: In units of the mean non-zero eigenvalue of the total scatter, above 0; default:
            chosen.

    Raises:
        ContinualNotInitializedError: No class has an image.
    """
    basis = Basis.of(moments, prior)
    selection = _select(basis, PENALTIES if penalty is None else (penalty,), debias)
    ridge = Ridge.fit(basis.spectrum, selection.shrinkage)
    left_out = ridge.leave_out(basis.samples)
    noise, counts = ridge.noise(left_out, basis.samples.n_single), basis.spectrum.counts
    factors = noise.reliabilities(counts, debias)
    relief = noise.debts(ridge.lengths, counts, debias) - debias * ridge.lengths
    weight = ridge.weight - debias * ridge.weight.mean(0)
    scores = basis.spectrum.geometry(basis.select(1.0).shrinkage)
    _, mahalanobis, relative, _ = score_left_out(basis.samples, scores, 1.0)
    return basis.assemble(
        "ridge",
        selection,
        factors[:, None] * weight @ basis.spectrum.axes.T,
        relief / 2 * ridge.n_images / len(counts) * factors,
        ridge.relieved(left_out, basis.samples, debias),
        Scored(scores, mahalanobis, relative),
        _expected_temperature(ridge),
    )


def _select(basis: Basis, penalties: tuple[float, ...], debias: float) -> Selection:
    """Penalty (in the place of the shrinkage) and temperature."""
    samples, spectrum = basis.searched, basis.spectrum
    alone = not len(samples) or len(spectrum.classes) == 1
    errors, losses = {}, {}
    for penalty in penalties:
        ridge = Ridge.fit(spectrum, penalty)
        errors[penalty] = ridge.generalised_cross_validation()
        if not alone:
            losses[penalty] = _temper(basis, ridge, samples, debias).log_loss
    best = min(errors, key=errors.__getitem__)
    if alone:
        temperature = _default_temperature(Ridge.fit(spectrum, best))
        return Selection(best, temperature, "generalised cross-validation", errors)
    best = weigh_evidence(losses, _expected_penalty(spectrum) or best, samples.weights, math.log)
    ridge = Ridge.fit(spectrum, best)
    temperature = _temper(basis, ridge, basis.samples, debias).temperature
    return Selection(best, temperature, "leave-one-out log loss", losses)


def _temper(basis: Basis, ridge: Ridge, samples: LooSamples, debias: float) -> Tempered:
    """Temperature and held-out log loss of one regression."""
    logits = ridge.relieved(ridge.leave_out(samples), samples, debias)
    about = {"log_prior": basis.log_prior, "expected": _expected_temperature(ridge)}
    return temper(logits, samples.labels, samples.weights, **about)


def _expected_penalty(spectrum: Spectrum) -> float:
    """The penalty that adds as much as the shrinkage to expect does; 0 where there is no scatter.

    Cross-validation would expect less: it minds squared errors of the many images, and with few of
    them in a class nothing else speaks against it.
    """
    if spectrum.is_flat:
        return 0.0
    share, counts = default_shrinkage(spectrum), spectrum.counts
    offsets = spectrum.means - counts @ spectrum.means / counts.sum()
    # as `Spectrum.geometry` adds it, then in units of the mean eigenvalue
    ridged = share / (1 - share) * spectrum.total / spectrum.n_features
    return ridged / _mean_eigenvalue(spectrum, offsets)


def _expected_temperature(ridge: Ridge) -> float:
    """Temperature to expect before any sample is seen."""
    return _default_temperature(ridge) / GUESS_IS_TOO_HIGH


def _default_temperature(ridge: Ridge) -> float:
    """Temperature where no sample can be left out."""
    spectrum, per_class = ridge.spectrum, ridge.n_images / len(ridge.offsets)
    debt = (spectrum.values / (spectrum.values + ridge.penalty)).sum() / max(spectrum.dof, 1)
    weight = ridge.weight
    apart = float((weight * spectrum.means).sum(1).mean())
    return default_temperature(spectrum, apart, weight, per_class * float(debt))


_ZERO = 1e-10


class _LeftOut(NamedTuple):
    """What the regressions without each sample say of it.

    `logits (R,P)`, of which `n_images (R,)` teach; `lengths (R,P)` squared ones of the class means,
    counted from their mean; `own (R,)` the squared distance to the mean of the own class, which
    rests on `counts (R,)` images. Lengths are in the metric of the total scatter.
    """

    logits: Tensor
    n_images: Tensor
    lengths: Tensor
    own: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, n: int, n_classes: int) -> _LeftOut:
        """Room for n samples."""
        shapes = (n, n_classes), (n,), (n, n_classes), (n,), (n,)
        return cls(*(torch.empty(shape, dtype=torch.float64) for shape in shapes))

    def put(self, rows: Tensor | slice, found: _LeftOut) -> None:
        """Take these for some rows, in place."""
        for mine, its in zip(self, found, strict=True):
            mine[rows] = its


class Ridge(NamedTuple):
    """The regression of one penalty, in the axes of the spectrum.

    `offsets (P,D)` are the class means less the mean `middle (D,)` of all images, `within (P,D)`
    the same divided by the scatter within classes plus `penalty`, `solved (P,D)` by the total one.
    `roots (P,P)` is the Cholesky factor of what the means add to the scatter within classes.
    """

    spectrum: Spectrum
    penalty: float
    middle: Tensor
    offsets: Tensor
    within: Tensor
    solved: Tensor
    roots: Tensor

    @classmethod
    def fit(cls, spectrum: Spectrum, penalty: float) -> Ridge:
        """Return the regression with `penalty`, in units of the mean non-zero eigenvalue."""
        counts = spectrum.counts
        middle = counts @ spectrum.means / counts.sum()
        offsets = spectrum.means - middle
        penalty = penalty * _mean_eigenvalue(spectrum, offsets)
        within = spectrum.solve(offsets, penalty)
        root = counts.sqrt()
        gram = root[:, None] * (within @ offsets.T) * root
        roots = torch.linalg.cholesky(gram + torch.eye(len(gram), dtype=gram.dtype))
        # (A + B B')^-1 B = A^-1 B (I + B' A^-1 B)^-1, with the root of the counts in B
        solved = torch.cholesky_solve(root[:, None] * within, roots) / root[:, None]
        return cls(spectrum, penalty, middle, offsets, within, solved, roots)

    @property
    def n_images(self) -> float:
        """Images of all classes."""
        return float(self.spectrum.counts.sum())

    @property
    def weight(self) -> Tensor:
        """Weights (P,D) for samples turned into the axes of the spectrum."""
        return self.solved * (self.n_images / len(self.offsets))

    @property
    def lengths(self) -> Tensor:
        """Squared lengths (P,) of the class means, counted from their mean."""
        away = self.offsets - self.offsets.mean(0)
        return ((self.solved - self.solved.mean(0)) * away).sum(1)

    def noise(self, left_out: _LeftOut, n_single: int) -> MeanNoise:
        """The noise of class means in the metric of the total scatter."""
        counts, spectrum = self.spectrum.counts, self.spectrum
        if n_single:
            own, n = left_out.own[:n_single], left_out.counts[:n_single]
            fresh = float((own * n / (n + 1)).mean())
        else:
            spread = spectrum.values / max(spectrum.dof, 1.0)
            if spectrum.is_flat:
                spread = torch.full_like(spread, spectrum.variance_per_axis)
            fresh = float((spread / (spectrum.values + self.penalty)).sum())
        # the images of a mean are in the scatter themselves, which makes it shorter
        variance = fresh / (1 + fresh)
        middle = weights_of(counts) @ (self.offsets - self.offsets.mean(0))
        return MeanNoise.told(
            variance, counts, self.lengths, float((self._solve(middle[None])[0] * middle).sum())
        )

    def generalised_cross_validation(self) -> float:
        """Mean squared error to expect on fresh samples, from the statistics alone."""
        # Golub, Heath and Wahba, "Generalized cross-validation", 1979.
        spectrum, n, n_classes = self.spectrum, self.n_images, len(self.offsets)
        inverse = 1 / (spectrum.values + self.penalty)
        low_rank = spectrum.counts.sqrt()[:, None] * self.within
        removed = torch.linalg.solve_triangular(self.roots, low_rank, upper=False)
        trace = float(inverse.sum() - removed.square().sum())
        # the trace of the hat matrix, and one for the mean of all images
        dof = len(inverse) - self.penalty * trace + 1
        size = float((n / n_classes) ** 2 * (1 / spectrum.counts).sum()) - n / n_classes
        fitted = float((self.weight * self.offsets).sum()) * n / n_classes
        rest = size - fitted - self.penalty * float(self.weight.square().sum())
        return n * max(rest, 0.0) / max(n - dof, _ZERO) ** 2

    def leave_out(self, samples: LooSamples) -> _LeftOut:
        """What the regression without each sample would say of it; exact.

        The penalty is held. A sample with a partner leaves alone, and that is the class mean.
        """
        found = _LeftOut.empty(len(samples), len(self.offsets))
        own_means = self.offsets @ self.solved.T
        for block in samples.blocks(len(self.offsets)):
            labels, copies = samples.labels[block], samples.copies[block]
            a, counts = (
                samples.points_of(block) - self.middle,
                self.spectrum.counts[labels] - copies,
            )
            means = a @ self.solved.T
            inner = _Inner(self._products(a, a, means), means, own_means[labels])
            if block.start < samples.n_single:
                own = self._own_mean(inner, labels, copies)
            else:
                v = samples.points[samples.partners_of(block)] - self.middle
                means = v @ self.solved.T
                own = _Own(self._products(a, v, means), means, self._products(v, v, means))
                counts = torch.ones_like(counts)
            found.put(block, self._left_out(inner, own, labels, copies, counts))
            for rows, group, partners in samples.grouped(block, with_partners=False):
                points = samples.points[samples.rows[block][rows]]
                known = None if partners is None else samples.points[partners]
                part = self._leave_group_out(points, labels[rows], group, known)
                found.put(block.start + rows, part)
        return found

    def relieved(self, left_out: _LeftOut, samples: LooSamples, debias: float) -> Tensor:
        """Logits (R,P) of left-out samples, relieved of the noise of the class means."""
        if not debias:
            return left_out.logits
        noise, n_classes = self.noise(left_out, samples.n_single), len(self.offsets)
        logits = torch.empty_like(left_out.logits)
        for block in samples.blocks(n_classes):
            plain, n_images, lengths, _, own = (part[block] for part in left_out)
            at, held = samples.labels[block][:, None], self.spectrum.counts
            counts = held.repeat(len(plain), 1).scatter_(1, at, own[:, None])
            relief = noise.debts(lengths, counts, debias) - debias * lengths
            relief *= (n_images / n_classes / 2)[:, None]
            # held but for rows that play a class of one image, as in the discriminant
            factors = noise.reliabilities(
                held if block.start < samples.n_single else counts, debias
            )
            logits[block] = (plain - debias * plain.mean(1, keepdim=True) + relief) * factors
        return logits

    def _leave_group_out(
        self, points: Tensor, labels: Tensor, group: Group, means: Tensor | None
    ) -> _LeftOut:
        """What is said of samples (R,D) as their groups leave; `means` as in `leave_group_out`."""
        n_images, n_classes = self.n_images, len(self.offsets)
        n, k, rows = self.spectrum.counts[labels], group.n_images, torch.arange(len(points))
        leaving = group.points - self.middle
        total = (group.copies[:, :, None] * leaving).sum(1)
        if means is None:
            own, counts = (n[:, None] * self.offsets[labels] - total) / (n - k)[:, None], n - k
        else:
            own, counts = means - self.middle, torch.ones_like(k)
        # from the scatter about the mean of all images, not that of the class
        removed = downdate(leaving, group.copies, torch.full_like(n, n_images))
        gains = woodbury_gains(removed, 1.0, self._solve(removed))

        def along(vectors: Tensor) -> Tensor:  # |x|^2 without the group gains |along(x)|^2
            return (gains @ vectors[:, :, None])[:, :, 0]

        right = points - self.middle - self.offsets.mean(0)
        right = right - (own - self.offsets[labels]) / n_classes
        solved = self._solve(right) + (gains.mT @ along(right)[:, :, None])[:, :, 0]
        middle = -total / (n_images - k)[:, None]  # of the images that stay, from that of all
        logits = solved @ self.offsets.T
        logits[rows, labels] = (solved * own).sum(1)
        logits = logits - (solved * middle).sum(1, keepdim=True)

        moved, away = own - self.offsets[labels], points - self.middle - own
        moved_means = self._solve(moved) @ self.offsets.T
        squared = (self._solve(moved) * moved).sum(1)
        shares = self._shares(labels)
        lengths = self._moved_lengths(shares, moved_means, squared)
        along_means = gains @ (self.offsets - self.offsets.mean(0)).T
        lengths += (along_means + shares[:, None] * along(moved)[:, :, None]).square().sum(1)
        distances = (self._solve(away) * away).sum(1) + along(away).square().sum(1)
        left = n_images - k
        return _LeftOut(logits * (left / n_classes)[:, None], left, lengths, distances, counts)

    def _shares(self, labels: Tensor) -> Tensor:
        """How far (R,P) each mean, counted from the mean of all, goes with the own one."""
        shares = torch.full((len(labels), len(self.offsets)), -1.0 / len(self.offsets)).double()
        return shares.scatter_add_(1, labels[:, None], torch.ones_like(shares[:, :1]))

    def _moved_lengths(self, shares: Tensor, moved_means: Tensor, squared: Tensor) -> Tensor:
        """Lengths (R,P) as the own mean moves; its products with the means, its squared length."""
        across = moved_means - moved_means.mean(1, keepdim=True)
        return self.lengths + 2 * shares * across + shares.square() * squared[:, None]

    def _solve(self, points: Tensor) -> Tensor:
        """Rows (...,D), counted from the middle, divided by total scatter plus penalty."""
        # (A + B B')^-1 = A^-1 - (A + B B')^-1 B B' A^-1, all from products with the means
        among = (points @ self.solved.T) * self.spectrum.counts
        return self.spectrum.solve(points, self.penalty) - among @ self.within

    def _products(self, points: Tensor, others: Tensor, means: Tensor) -> Tensor:
        """Products (R,) of rows counted from the middle; `means (R,P)` are those of `others`."""
        within = torch.linalg.vecdot(points, self.spectrum.solve(others, self.penalty))
        return within - (points @ self.within.T * means) @ self.spectrum.counts

    def _own_mean(self, inner: _Inner, labels: Tensor, copies: Tensor) -> _Own:
        """The class mean without the sample: (1 + b) mean - b sample, all from the middle."""
        b = (copies / (self.spectrum.counts[labels] - copies))[:, None]
        mean_a = inner.a_means.gather(1, labels[:, None])
        mean_mean = inner.own_means.gather(1, labels[:, None])
        aa = inner.aa[:, None]
        return _Own(
            ((1 + b) * mean_a - b * aa)[:, 0],
            (1 + b) * inner.own_means - b * inner.a_means,
            ((1 + b).square() * mean_mean - 2 * (1 + b) * b * mean_a + b.square() * aa)[:, 0],
        )

    def _left_out(
        self, inner: _Inner, own: _Own, labels: Tensor, copies: Tensor, counts: Tensor
    ) -> _LeftOut:
        """What is said of the samples a without them, the class mean of each being `own`."""
        n_images, n_classes = self.n_images, len(self.offsets)
        # k copies take k N / (N - k) a a' from the total scatter: the mean of all goes with them
        share = copies * n_images / (n_images - copies)
        gain = share / (1 - share * inner.aa).clamp_min(1e-12)
        at = labels[:, None]
        mean_a, mean_own = (rows.gather(1, at)[:, 0] for rows in (inner.a_means, own.means))

        # right is the sample counted from the mean of the class means, which moves with its class
        right_means = inner.a_means - (own.means - inner.own_means) / n_classes
        right_means = right_means - self.offsets.mean(0) @ self.solved.T
        right_a = inner.aa - inner.a_means.mean(1) - (own.a - mean_a) / n_classes
        right_own = own.a - own.means.mean(1) - (own.own - mean_own) / n_classes

        # left is each class mean counted from the mean of all images, which moves as well
        left_right = right_means.scatter(1, at, right_own[:, None])
        left_a = inner.a_means.scatter(1, at, own.a[:, None])
        moved = (copies / (n_images - copies))[:, None]
        left_right = left_right + moved * right_a[:, None]
        left_a = left_a + moved * inner.aa[:, None]
        logits = left_right + (gain * right_a)[:, None] * left_a

        mean_mean = inner.own_means.gather(1, at)[:, 0]
        squared, shares = own.own - 2 * mean_own + mean_mean, self._shares(labels)
        lengths = self._moved_lengths(shares, own.means - inner.own_means, squared)
        along = inner.a_means - inner.a_means.mean(1, keepdim=True)
        lengths += gain[:, None] * (along + shares * (own.a - mean_a)[:, None]).square()
        distances = inner.aa - 2 * own.a + own.own + gain * (inner.aa - own.a).square()
        left = n_images - copies
        return _LeftOut(logits * (left / n_classes)[:, None], left, lengths, distances, counts)


class _Inner(NamedTuple):
    """Products of samples a with themselves (R,) and the means (R,P), of own means with means."""

    aa: Tensor
    a_means: Tensor
    own_means: Tensor


class _Own(NamedTuple):
    """Products of the own mean, moved, with the sample (R,), the means (R,P) and itself (R,)."""

    a: Tensor
    means: Tensor
    own: Tensor


def _mean_eigenvalue(spectrum: Spectrum, offsets: Tensor) -> float:
    """Mean of the eigenvalues of the total scatter that are not zero; 1 if all are."""
    largest = float(spectrum.values.max())
    rank = int((spectrum.values > _ZERO * largest).sum()) if largest > 0 else 0
    rank = min(rank + len(offsets) - 1, spectrum.n_features)
    total = spectrum.total + float(spectrum.counts @ offsets.square().sum(1))
    return total / rank if rank and total > _ZERO else 1.0

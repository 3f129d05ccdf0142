"""Noise of class means: how far the mean of few images lies off its class, and what that costs.

A mean of few images is longer than that of many, by its noise alone, and would lose for it: a debt
is taken off its length. For the same reason its logits spread more than those of a known mean, and
by chance it would take images of all other classes: they are made to spread alike.

What classes of few images gain, those of many lose. 1 / 2 / 3 / 5 ants beside 120 bees, or the
reverse (`benchmarks/_promises_few.py`): balanced accuracy .77 / .84 / .86 / .87, and the many lose
.06 / .04 / .05 / .06 of their recall. No offset of the logits, were it chosen by the test images
themselves, does better than .80 / .87 / .90 / .88 where the many may lose .05, and .64 / .68 / .68
/ .74 where they may lose .01.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from learnkit.continual.closed_form.whitening import Geometry

# Share of the differences between the lengths of class means that is kept with many images; of one
# image a class two thirds of it. On photographs and digits, 1 to 500 images a class, this was best
# or near it: with 1 the accuracy is .3 to .5 points less, with 1 image a class 1 point.
_TRUST = 0.75
# Least signal, in parts of the variance: where all is noise, logits still tell classes apart.
_LEAST = 1e-3


@dataclass(frozen=True)
class MeanNoise:
    """The noise of class means in a whitened space.

    `variance` is the mean squared distance of an image not learned to the true mean of its class;
    that of the learned images is less, as the covariance fits them too well. `signal` is half the
    mean squared distance between the true means of two classes.
    """

    variance: float
    signal: float

    @classmethod
    def of(cls, geometry: Geometry, own: Tensor, counts: Tensor) -> MeanNoise:
        """Return the noise that held-out distances tell, pooled over the classes.

        Args:
            geometry: Of the statistics.
            own: Squared distances (R,) of images left out to the mean of their own class. Without
                any, the spread of the learned images stands for that of fresh ones.
            counts: Images that each of these means then rests on, (R,).
        """
        variance = geometry.d_eff
        if len(own):  # the mean of n images adds an n-th of the variance to the distance
            variance = float((own * counts / (counts + 1)).mean())
        weights = weights_of(geometry.counts)
        middle = float((weights @ geometry.spectrum.means) @ (weights @ geometry.weights))
        return cls.told(variance, geometry.counts, geometry.lengths, middle)

    @classmethod
    def told(cls, variance: float, counts: Tensor, lengths: Tensor, middle: float) -> MeanNoise:
        """Return the noise of this variance, the signal by the means of `counts` images (P,).

        Args:
            variance: Of an image.
            counts: Images of each class.
            lengths: Squared ones of the means (P,).
            middle: Squared length of the sum of the means, each times `weights_of(counts)`.
        """
        return cls(variance, max(_signal(variance, counts, lengths, middle), _LEAST * variance))

    def debts(self, lengths: Tensor, counts: Tensor, debias: float) -> Tensor:
        """Debts (..., P) to take off the squared lengths of the class means before they count.

        First what a mean of so many images is further away by noise alone, `variance / n`. What is
        left of the length is drawn towards its mean over the classes, the more, the fewer images
        there are.
        """
        noise = self.variance / counts
        # lengths count from the mean of the means, which has its own share of the noise
        n_classes = counts.shape[-1]
        in_length = noise * (1 - 2 / n_classes) + noise.mean(-1, keepdim=True) / n_classes
        # These lengths differ between classes mostly by chance, while the directions of the means
        # can be trusted. James and Stein, "Estimation with quadratic loss", 1961, shrink what is
        # noisy towards its mean; how far is measured.
        free = lengths - in_length
        trust = _TRUST * counts / (counts + 0.5)
        common = (trust * free).sum(-1, keepdim=True) / trust.sum(-1, keepdim=True)
        return debias * (noise + (1 - trust) * (free - common))

    def reliabilities(self, counts: Tensor, debias: float) -> Tensor:
        """Factors (..., P) on the logits of classes of so many images, 1 for that of the most.

        The root of the share of a mean's squared length that is signal: by so much less would the
        logits spread if the mean were known.
        """
        share = self.signal / (self.signal + self.variance / counts)
        return (share / share.amax(-1, keepdim=True)) ** (debias / 2)


def weights_of(counts: Tensor) -> Tensor:
    """Weights (P,) of classes of so many images in the mean over all pairs of them."""
    return counts / (counts + 0.5)


def _signal(variance: float, counts: Tensor, lengths: Tensor, middle: float) -> float:
    """Half the mean squared distance between the true means of two classes, noise taken off."""
    if len(counts) == 1:
        return 0.0
    # over all pairs, each weighing the product of the weights of its classes
    weights = weights_of(counts)
    total = weights.sum()
    # the sum over pairs of w_c w_d |m_c - m_d|^2 / 2, without a table of pairs
    seen = total * (weights @ lengths) - middle
    noise = variance * (weights / counts) @ (total - weights)
    return float((seen - noise) / (total.square() - weights.square().sum()))

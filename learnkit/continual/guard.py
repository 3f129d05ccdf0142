"""Guard of the threshold: whether validation images and remembered ones left out agree on it."""

import numpy as np
from scipy.special import betaln, gammaln

from learnkit.continual.held_out import HeldOut
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.conformal import first_with_little_above, sorted_together

# Two shares are looked at; of healthy changes about one in a hundred is then doubted.
_SIGNIFICANCE = 0.005


def doubt(scores: Array, held_out: HeldOut, rate: float) -> str:
    """A sentence if one kind of held-out images is flagged by the other's threshold, else "".

    What the threshold of one kind flags of the other is at most by chance more than `rate`, if
    both are drawn alike: its probability follows a beta-binomial distribution.

    Args:
        scores: OOD scores of the held-out images (R,).
        held_out: the images.
        rate: wanted share of false alarms.

    Source: Wilks, "Determination of sample sizes for setting tolerance limits", 1941.
    """
    n = held_out.n_fresh
    if not 0 < n < len(scores):
        return ""
    fresh, left = ((scores[part], held_out.weights[part]) for part in (slice(n), slice(n, None)))
    share, chance = _flagged(fresh, left, rate)
    if chance < _SIGNIFICANCE:
        return (
            f"{share:.0%} of the validation images are more unusual than {1 - rate:.0%} of the "
            "learned ones: the learned images are of another day, place or camera, or near copies "
            "of each other; learn images like the validation images too, and one of each burst"
        )
    share, chance = _flagged(left, fresh, rate)
    if chance < _SIGNIFICANCE:
        return (
            f"{share:.0%} of the learned images, left out, are more unusual than {1 - rate:.0%} of "
            "the validation images: these show less than what the classes look like; give others, "
            "drawn like the images to come"
        )
    return ""


def _flagged(
    sample: tuple[Array, Array], by: tuple[Array, Array], rate: float
) -> tuple[float, float]:
    """Share of a sample (scores, weights) above the limit of another, and its chance if alike."""
    values, weights = sorted_together(*by)
    limit = first_with_little_above(values, weights, rate * weights.sum())
    above, n, n_by = sample[0] > limit, _effective(sample[1]), _effective(by[1])
    share = float(sample[1] @ above / sample[1].sum())
    exceeding = max(1.0, rate * n_by)
    return share, _upper_tail(round(share * n), n, exceeding, n_by + 1 - exceeding)


def _effective(weights: Array) -> int:
    """How many images of equal weight say as much."""
    return max(1, round(float(weights.sum() ** 2 / (weights**2).sum())))


def _upper_tail(k: int, n: int, a: float, b: float) -> float:
    """Probability of k or more of n under a beta-binomial distribution."""
    i = np.arange(k, n + 1)
    ways = gammaln(n + 1) - gammaln(i + 1) - gammaln(n - i + 1)
    return float(np.exp(ways + betaln(i + a, n - i + b) - betaln(a, b)).sum())

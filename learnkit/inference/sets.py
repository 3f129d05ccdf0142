"""Which classes cannot be ruled out: prediction sets of one image, with numpy alone.

The rule is that of `learnkit.uncertainty.conformal`, for whoever has no torch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learnkit.errors import UncertaintyError

_ROUNDING = 1e-9  # what a share may be off by before one more value is asked for


def conformal_quantile(scores: Any, weights: Any, alpha: float) -> float:
    """Score that the next one exceeds with probability at most `alpha`, or infinity.

    Args:
        scores: nonconformity scores (n,) of images the model has not learned.
        weights: their weights (n,); the next one counts as the heaviest.
        alpha: in 0..1.

    Raises:
        UncertaintyError: `alpha` outside (0, 1).

    >>> conformal_quantile(range(9), [1] * 9, 0.1), conformal_quantile(range(8), [1] * 8, 0.1)
    (8.0, inf)
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < 1:
        raise UncertaintyError(
            f"`alpha` is {alpha!r}; give a share between 0 and 1, for example 0.05"
        )
    scores, weights = (np.asarray(values, np.float64) for values in (scores, weights))
    order = np.lexsort((weights, scores))
    scores, weights = scores[order], weights[order]
    total, heaviest = weights.sum(), weights.max(initial=0.0)
    allowed = alpha * (total + heaviest) - heaviest
    if not len(scores) or allowed < -_ROUNDING * total:
        return math.inf
    enough = total - weights.cumsum() <= allowed + _ROUNDING * total
    return float(scores[enough.argmax()])


def inside(probs: Any, quantile: float) -> np.ndarray:
    """Which classes belong to the set of an image with `probs` (C,), bool (C,).

    Those whose probability falls short of 1 by up to `quantile`, and the likeliest in any case.

    >>> inside([0.5, 0.4, 0.1], 0.65).tolist(), inside([0.4, 0.3, 0.3], 0.1).tolist()
    ([True, True, False], [True, False, False])
    """
    probs = np.asarray(probs, np.float64)
    found = 1 - probs <= quantile
    found[probs.argmax()] = True
    return found

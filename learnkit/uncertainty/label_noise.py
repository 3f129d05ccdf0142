"""Label noise: how many labels are wrong, which they probably are, and how sure that is.

A label is taken to be the class of its image, or, for a share of the images, drawn at random like
the other labels. Held-out logits tell that share and their temperature together: the odds of a
class fall without bound as its logit does, those of a random label do not.

Source: Northcutt, Jiang and Chuang, "Confident learning", 2021, for the rule of `label_suspects`;
Dawid and Skene, 1979, for the likelihood of labels that err.
"""

from dataclasses import dataclass

import numpy as np

from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.ood import softmax

# Temperatures looked at, in parts of the one that takes every label for right: with noise it is
# higher, by a factor of up to 11 seen on photographs with 30 % wrong labels.
_COLDEST, _WARMEST, _STEPS = 1 / 16, 1.25, 25
_MOST = 0.95  # share of random labels
_CHI_SQUARED = 3.841  # the 95 % quantile, of one degree of freedom


@dataclass(frozen=True, eq=False)
class LabelNoise:
    """The noise of labels.

    Attributes:
        rate: share of the labels that are drawn at random; some of those are right by chance.
        temperature: of the logits, once random labels are accounted for.
        shares: how often each class is drawn, (C,), summing to 1.
    """

    rate: float
    temperature: float
    shares: Array

    def probs(self, logits: Array) -> Array:
        """Probabilities (N, C) of the true classes, whatever the labels say."""
        return softmax(logits / self.temperature + np.log(self.shares))

    def log_odds(self, logits: Array, labels: Array) -> Array:
        """Logarithm of p / (1 - p) (N,) of the probability of each label; it has no ties at 1."""
        from scipy.special import logsumexp  # here: predicting needs no scipy

        scaled, at = logits / self.temperature + np.log(self.shares), labels[:, None]
        own = np.take_along_axis(scaled, at, 1)[:, 0]
        np.put_along_axis(scaled, at, -np.inf, 1)
        return own - logsumexp(scaled, 1)

    def wrong(self, probs: Array, labels: Array) -> Array:
        """Probability (N,) that each label is wrong, by `probs` (N, C) and the label itself."""
        own = probs[np.arange(len(labels)), labels]
        drawn = self.rate * self.shares[labels]
        # Bayes: the label was drawn at random, and the image is of another class
        return drawn * (1 - own) / np.maximum((1 - self.rate) * own + drawn, 1e-300)


def fit_label_noise(
    logits: Array, labels: Array, shares: Array, *, temperature: float
) -> LabelNoise:
    """Noise of labels under which they are the likeliest.

    Args:
        logits: held-out ones (N, C), without a prior.
        labels: class numbers (N,).
        shares: how often each class comes, (C,), all above 0 and summing to 1.
        temperature: of the logits where every label is taken for right.
    """
    from scipy.optimize import minimize_scalar

    drawn = shares[labels]

    def at(log_temperature: float) -> tuple[float, float]:  # (loss, rate)
        own = _own(logits, labels, shares, log_temperature)
        rate = _likeliest_rate(own, drawn)
        return _loss(own, drawn, rate), rate

    # scipy's search finds a local minimum; the grid says near which to look
    grid = _temperatures(temperature)
    best = grid[np.argmin([at(one)[0] for one in grid])]
    step = grid[1] - grid[0]
    found = minimize_scalar(
        lambda one: at(one)[0], bounds=(best - step, best + step), method="bounded"
    )
    return LabelNoise(at(found.x)[1], float(np.exp(found.x)), np.asarray(shares, np.float64))


def label_noise_bounds(
    noise: LabelNoise, logits: Array, labels: Array, *, temperature: float
) -> tuple[LabelNoise, LabelNoise]:
    """The least and the largest noise that the labels do not speak against, at a level of 95 %.

    By the likelihood ratio, the temperature being as it fits each rate best (profile likelihood).
    Arguments as for `fit_label_noise`, whose result `noise` is.
    """
    drawn = noise.shares[labels]
    # with the fitted one: else the estimate itself might lie outside of its bounds
    grid = [np.log(noise.temperature), *_temperatures(temperature)]
    owns = [_own(logits, labels, noise.shares, one) for one in grid]
    # Wilks: twice the log likelihood ratio, of all labels, is chi-squared
    allowed = _loss(owns[0], drawn, noise.rate) + _CHI_SQUARED / 2 / len(labels)

    def best(rate: float) -> tuple[float, int]:
        return min((_loss(own, drawn, rate), i) for i, own in enumerate(owns))

    found = []
    for end in (0.0, _MOST):
        inside, outside = noise.rate, end
        if best(end)[0] <= allowed:
            inside = end
        for _ in range(30 if inside != end else 0):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if best(middle)[0] <= allowed else (inside, middle)
        found.append(LabelNoise(inside, float(np.exp(grid[best(inside)[1]])), noise.shares))
    return found[0], found[1]


def _temperatures(temperature: float) -> Array:
    """Logarithms of the temperatures looked at."""
    return np.log(temperature) + np.linspace(np.log(_COLDEST), np.log(_WARMEST), _STEPS)


def _own(logits: Array, labels: Array, shares: Array, log_temperature: float) -> Array:
    """Probabilities (N,) of the labels at a temperature."""
    scaled = logits / np.exp(log_temperature) + np.log(shares)
    return softmax(scaled)[np.arange(len(labels)), labels]


def _loss(own: Array, drawn: Array, rate: float) -> float:
    # 1e-300: a label that cannot be costs 691 nats and not infinity
    return float(-np.log(np.maximum((1 - rate) * own + rate * drawn, 1e-300)).mean())


def _likeliest_rate(own: Array, drawn: Array) -> float:
    """The share e in 0..`_MOST` with the largest mean of `log((1 - e) own + e drawn)`."""
    low, high = 0.0, _MOST
    for _ in range(50):  # its slope falls all the way
        rate = (low + high) / 2
        slope = ((drawn - own) / np.maximum(own + rate * (drawn - own), 1e-300)).mean()
        low, high = (rate, high) if slope > 0 else (low, rate)
    return low


def label_suspects(probs: Array, labels: Array, *, most: float = 0.2) -> Array:
    """Labels that are probably wrong, bool (N,): by the rule of confident learning.

    Another class is likelier, and at least as likely as that class is, on average, for the images
    that bear its label. Of each class at most a share of `most` is named, the least likely ones.

    Args:
        probs: held-out probabilities (N, C).
        labels: class numbers (N,).
        most: largest share of the images of a class.
    """
    rows, predicted = np.arange(len(labels)), probs.argmax(1)
    own, counts = probs[rows, labels], np.bincount(labels, minlength=probs.shape[1])
    usual = np.bincount(labels, own, len(counts)) / np.maximum(counts, 1)
    found = (predicted != labels) & (probs[rows, predicted] >= usual[predicted])
    for place in np.unique(labels[found]):
        rivals = np.flatnonzero(found & (labels == place))
        rivals = rivals[np.argsort(own[rivals], kind="stable")]
        found[rivals[int(most * counts[place]) :]] = False
    return found


def false_discovery_rates(wrong: Array) -> Array:
    """Expected share (N,) of right labels among the first 1, 2, ..., N, by `wrong` (N,) of each.

    >>> false_discovery_rates(np.array([1.0, 0.5, 0.0])).round(4).tolist()
    [0.0, 0.25, 0.5]
    """
    return 1 - np.cumsum(wrong) / np.arange(1, len(wrong) + 1)


_NORMAL = 1.4826  # median absolute deviations in a standard deviation of a normal one
OUTLYING = 3.5


def robust_deviations(values: Array) -> Array:
    """Deviations (N,) from the median, in units of the spread of the middle half.

    Beyond 3.5 a value counts as an outlier: Iglewicz and Hoaglin, "How to detect and handle
    outliers", 1993. Values that do not spread deviate by 0.
    """
    away = values - np.median(values)
    spread = _NORMAL * np.median(np.abs(away))
    return away / spread if spread > 0 else np.zeros(len(values))

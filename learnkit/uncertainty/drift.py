"""Drift of unlabelled images: a conformal test martingale over their OOD scores, numpy alone.

The p-value of an image is its rank, ties broken at random, among the scores of all images before
it: those that the model was calibrated by, and those seen since. While images are drawn alike
(exchangeable), such p-values are independent and uniform, exactly, however few scores there are.
Bets that they are not multiply up; where images change, they grow.

That exactness has a price: ranks among few scores cannot tell much. Ten unusual images in the next
500 are no rarity after 250 known ones (1.7 % of all orders put them there), but are after 1,000
(.0017 %). So a new kind of image that is rare is found soon only once the test has about 1,000
scores without it; one that is there from the start, beside few calibration scores, may never be.

Sources: Vovk, Nouretdinov and Gammerman, "Testing exchangeability on-line", 2003 (p-values); Vovk
et al., "Retrain or not retrain: conformal test martingales for change-point detection", 2021
(Shiryaev-Roberts over bets); Herbster and Warmuth, "Tracking the best expert", 1998 (shared bets).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from learnkit.errors import UncertaintyError
from learnkit.uncertainty.checks import Array, check_scores, check_weights
from learnkit.uncertainty.conformal import sorted_together

MOST_SCORES = 8192  # then each new one takes the place of one drawn at random
_TRACE = 256  # points of the course of the evidence; beyond them, every two become one

# Each bet is (share, power): so many images are others, whose p-values have the density
# `k p^(k - 1)`. The first are on images of a new kind, few and far out; the next on all images
# changing a little, as where a camera goes out of focus; then on images that became too usual.
# These find most changes sooner than 26 bets on zones did, among which evidence was lost: in 25
# draws new classes at 10 % among ants and bees took 1,085 images in the place of 1,316, circuit
# boards at 2 % among CIFAR-10 527 for 530, a lamp that fades 392 for 439, a camera out of focus
# 190 for 195.
_RARE = ((0.01, 0.1), (0.03, 0.1), (0.1, 0.1))
_ALL = ((0.1, 0.6), (0.5, 0.6))
_USUAL = ((0.5, 0.6),)
# The last bet is that .4 + .6 * .7 of the images lie in the lower .4. After few scores the ranks of
# images that are all others soon spread evenly over the lower part, where no density tells much.
_ZONE, _STAKE = 0.4, 0.7
_SHARE = np.array([share for share, _ in _RARE + _ALL + _USUAL])
N_BETS = len(_SHARE) + 1
# The share of scores above each mark, when it is set. The first bets go by marks, which stay where
# they are while the images of a new kind crowd the highest ranks.
_ABOVE = np.array([0, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.12])
_TINY = 1e-12  # a zone or a p-value of no width, which no density can be told for
# Of every bet's evidence so much is shared with the others at each image, so that another bet may
# go on where one no longer gains.
_SHARED = 0.001
_FEWEST = 50  # scores from which on there are marks to lie above


def bets(p_values: Array, above: Any, before: Any) -> Array:
    """What each bet makes of one unit, (N, bets), by p-values (N,); uniform ones make 1 on average.

    Args:
        p_values: of images, in (0, 1).
        above: the share of p-values above each mark, (marks,), rising, as it is before these
            images.
        before: the same as it was when the marks were set.
    """
    densities = [
        *(_by_marks(p_values, above, before, power) for _, power in _RARE),
        *(_density(p_values, power) for _, power in _ALL),
        *(_density(1 - p_values, power) for _, power in _USUAL),
    ]
    zone = 1 - _STAKE + _STAKE / _ZONE * (p_values < _ZONE)
    return np.column_stack([1 - _SHARE + _SHARE * np.stack(densities, 1), zone])


def _density(p_values: Array, power: float) -> Array:
    return power * np.maximum(p_values, _TINY) ** (power - 1)


def _by_marks(p_values: Array, above: Any, before: Any, power: float) -> Array:
    """The same density between the marks, of the ranks that scores had when these were set."""
    edges = np.append(above, 1.0)
    widths = np.diff(edges, prepend=0.0)
    wanted = np.diff(np.append(before, 1.0) ** power, prepend=0.0)
    # between two marks that are the same score there is no image to win by
    wanted = np.where(widths > _TINY, wanted, 0.0)
    gains = wanted / wanted.sum() / np.maximum(widths, _TINY)
    return gains[np.searchsorted(above, p_values, side="right")]


def add_evidence(evidence: Array, factors: Array) -> Array:
    """Evidence (..., bets) after one more image: the Shiryaev-Roberts statistic of each bet.

    `R = (1 + R_before) * factor`: a bet of one unit begins at each image and goes on. Its mean over
    the bets, less the number of images, is a martingale while there is no drift.
    """
    grown = (1 + evidence) * factors
    # what is shared out keeps the mean over the bets, and so the martingale
    return grown + _SHARED * (grown.mean(-1, keepdims=True) - grown)


def shares_above(n: int) -> Array:
    """The share of p-values above each mark among the `n` scores that they are set by."""
    # without any, all: bets that win and lose nothing
    return (np.floor(_ABOVE * n) + 1) / (n + 1)


@dataclass(frozen=True, eq=False)
class DriftTest:
    """A running test of one stream of scores, as one unchanging value.

    `level`, the evidence, is below the number of images on average while there is no drift, so that
    it reaches a bound A within m images with a probability of at most m / A (Doob), and takes A
    images or more to reach it on average.

    Attributes:
        scores: to rank the next one among, sorted, float64 (M,), 8,192 at most.
        weights: of the scores, (M,).
        n_images: seen so far.
        evidence: of each bet, float64 (bets,).
        marks: scores with shares of all above them when they were set, falling, (marks,).
        n_marked: how many scores there were then; with twice as many they are set again.
        seed: of the ranks of ties.
        trace: the highest evidence of `stride` images each, in their order.
        stride: see there.
    """

    scores: Array = field(default_factory=lambda: np.zeros(0))
    weights: Array = field(default_factory=lambda: np.zeros(0))
    n_images: int = 0
    evidence: Array = field(default_factory=lambda: np.zeros(N_BETS))
    marks: Array = field(default_factory=lambda: np.zeros(0))
    n_marked: int = 0
    seed: int = 0
    trace: tuple[float, ...] = ()
    stride: int = 1

    @classmethod
    def of(cls, scores: Any, weights: Any = None, *, seed: int = 0) -> DriftTest:
        """The test that begins with the scores a model was calibrated by, if there are any.

        Raises:
            UncertaintyError: scores that are not finite, weights that do not fit.
        """
        scores = check_scores(scores)
        weights = check_weights(weights, len(scores))
        if len(scores):  # a new image counts as the mean of them
            weights = weights / weights.mean()
        scores, weights = sorted_together(scores, weights)
        if len(scores) > MOST_SCORES:
            # evenly spaced ranks keep the shape of the distribution
            kept = np.linspace(0, len(scores) - 1, MOST_SCORES).round().astype(int)
            scores, weights = scores[kept], weights[kept]
        return cls(scores, weights, seed=seed)._marked()

    @property
    def level(self) -> float:
        """The evidence of drift: the mean over the bets."""
        return float(self.evidence.mean())

    @property
    def sign(self) -> str:
        """What the bet with the most evidence is on, as a clause about the images."""
        best = int(self.evidence.argmax())
        if best < len(_RARE):
            return "some images are unlike those before"
        is_usual = best == len(_RARE + _ALL)
        return f"images {'are more alike' if is_usual else 'look other'} than before"

    def p_value(self, score: float) -> float:
        """The rank of a next score among all before it, in (0, 1), ties broken at random."""
        return self._rank(score, self._rng().random())

    def update(self, score: float) -> DriftTest:
        """The test after one more image.

        Raises:
            UncertaintyError: the score is not finite.
        """
        if not np.isfinite(score):
            raise UncertaintyError(f"`score` is {score}; it must be finite: look at that image")
        rng = self._rng()
        # the rank is drawn first, as in `p_value`, and among the scores without this one
        p_value = np.array([self._rank(score, rng.random())])
        factors = bets(p_value, self._above_marks(), shares_above(self.n_marked))[0]
        # evidence beyond all doubt stays a number
        evidence = np.minimum(add_evidence(self.evidence, factors), 1e12)
        scores, weights = self._with(score, rng)
        trace, stride = self._traced(float(evidence.mean()))
        changes = {"evidence": evidence, "n_images": self.n_images + 1, "trace": trace}
        changes |= {"scores": scores, "weights": weights, "stride": stride}
        return replace(self, **changes)._marked()

    def _rng(self) -> np.random.Generator:
        # by the number of the image: a test that was stopped goes on as if it had not been
        return np.random.default_rng([self.seed, self.n_images])

    def _rank(self, score: float, uniform: float) -> float:
        first, last = (np.searchsorted(self.scores, score, side) for side in ("left", "right"))
        above, tied = self.weights[last:].sum(), self.weights[first:last].sum()
        # + 1: the image itself is among its ties, and weighs as the mean
        return float((above + uniform * (tied + 1)) / (self.weights.sum() + 1))

    def _above_marks(self) -> Array:
        """The share of p-values that a next score above each mark has."""
        if not len(self.marks):
            return shares_above(0)
        firsts = np.searchsorted(self.scores, self.marks, "right")
        above = np.array([self.weights[first:].sum() for first in firsts])
        return (above + 1) / (self.weights.sum() + 1)

    def _marked(self) -> DriftTest:
        """With marks among the scores there are now, if these are twice as many as then."""
        n = len(self.scores)
        # rarely: images of a new kind must not move the marks that they are to lie above
        if n < max(2 * self.n_marked, _FEWEST):
            return self
        n_above = np.searchsorted(np.cumsum(self.weights[::-1]), _ABOVE * n, side="right")
        return replace(self, marks=self.scores[np.maximum(n - 1 - n_above, 0)], n_marked=n)

    def _with(self, score: float, rng: np.random.Generator) -> tuple[Array, Array]:
        """(scores, weights) with one more; of too many a random one goes, each alike."""
        scores, weights = self.scores, self.weights
        if len(scores) >= MOST_SCORES:
            # reservoir sampling: the n-th image comes in with a probability of about 8,192 / n
            out = rng.integers(max(self.n_images, MOST_SCORES) + 1)
            if out >= len(scores):
                return scores, weights
            scores, weights = np.delete(scores, out), np.delete(weights, out)
        place = np.searchsorted(scores, score)
        return np.insert(scores, place, score), np.insert(weights, place, 1.0)

    def _traced(self, level: float) -> tuple[tuple[float, ...], int]:
        trace, stride = self.trace, self.stride
        if self.n_images % stride:
            return (*trace[:-1], max(trace[-1], level)), stride
        if len(trace) < _TRACE:
            return (*trace, level), stride
        # the higher of two: no peak of the evidence is lost
        halved = tuple(map(max, trace[::2], trace[1::2]))
        return (*halved, level), 2 * stride

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values; `from_dict` reads it back."""
        plain = lambda value: value.tolist() if isinstance(value, np.ndarray) else value
        found = {one.name: plain(getattr(self, one.name)) for one in fields(self)}
        return found | {"trace": list(self.trace)}

    @classmethod
    def from_dict(cls, values: Any) -> DriftTest:
        """The test that `to_dict` described.

        Raises:
            UncertaintyError: keys are missing or unknown, or a value is none a test can have.
        """
        names = {one.name for one in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            odd = sorted(names ^ set(values)) if isinstance(values, dict) else type(values).__name__
            raise UncertaintyError(f"a drift test needs exactly its own keys; look at {odd}")
        scores = check_scores(values["scores"])
        weights = check_weights(values["weights"], len(scores))
        evidence = check_scores(values["evidence"], name="evidence")
        trace = check_scores(values["trace"], name="trace")
        marks = check_scores(values["marks"], name="marks")
        for name, least in (("n_images", 0), ("seed", 0), ("stride", 1), ("n_marked", 0)):
            if type(values[name]) is not int or values[name] < least:
                raise UncertaintyError(
                    f"`{name}` is {values[name]!r}; it must be a whole number from {least} on"
                )
        if (np.diff(scores) < 0).any() or len(scores) > MOST_SCORES:
            raise UncertaintyError(f"`scores` must be sorted, and {MOST_SCORES} at most")
        if evidence.shape != (N_BETS,) or (evidence < 0).any():
            raise UncertaintyError(f"`evidence` must be {N_BETS} numbers of 0 or more")
        if len(marks) != (len(_ABOVE) if values["n_marked"] else 0):
            raise UncertaintyError(f"`marks` must be {len(_ABOVE)} scores, or none yet")
        # the stride starts at 1 and only doubles: a power of two
        n_points, stride = -(-values["n_images"] // values["stride"]), values["stride"]
        if len(trace) != n_points or len(trace) > _TRACE or stride & (stride - 1):
            raise UncertaintyError("`trace` must have one number for every `stride` images")
        numbers = {name: values[name] for name in ("n_images", "seed", "stride", "n_marked")}
        own = {"evidence": evidence, "marks": marks, "trace": tuple(trace.tolist())}
        return cls(scores, weights, **own, **numbers)

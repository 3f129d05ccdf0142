"""The reading half of a continual classifier: from features to logits, scores and sets."""

import threading

import torch
from torch import Tensor, nn

from learnkit.continual.checks import check_features, what_is_not_finite
from learnkit.continual.derived import Derived
from learnkit.continual.embedding import embed
from learnkit.continual.knowledge import Knowledge
from learnkit.continual.settings import Settings
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import ContinualPredictionError, DataError
from learnkit.uncertainty.calibration import Calibration
from learnkit.uncertainty.conformal import conformal_quantile, prediction_sets
from learnkit.uncertainty.ood import mark_blank
from learnkit.uncertainty.threshold import Threshold, manual_threshold


class KnowingHead(nn.Module):
    """The head of a network that predicts from what it knows; how it learns is no matter here.

    Every method looks at `knowledge` once, so that what it returns is of one moment even while
    another thread changes it.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self._lock = threading.RLock()
        # the state now and those before it, in one object so that one assignment changes both
        self._states: tuple[Knowledge, ...] = (Knowledge.empty(settings),)

    @property
    def knowledge(self) -> Knowledge:
        """Everything known at this moment, as one unchanging object."""
        return self._states[0]

    @property
    def settings(self) -> Settings:
        """What it is set to."""
        return self.knowledge.settings

    @property
    def n_features(self) -> int:
        """Width D of the pooled features."""
        return self.settings.n_features

    @property
    def statistics(self) -> ClassStatistics:
        """What is remembered of every class."""
        return self.knowledge.statistics

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by column of the logits; forgotten ones keep theirs."""
        return self.statistics.class_names

    @property
    def n_images(self) -> dict[str, int]:
        """Images learned per class; 0 for a forgotten class."""
        return self.knowledge.n_images

    @property
    def prototypes(self) -> Tensor:
        """Mean of the embedded features of each class, float64 (C, D)."""
        return self.statistics.means()

    @property
    def temperature(self) -> float:
        """What the logits have been divided by; 1 while no class is known."""
        return self.calibration.temperature

    @property
    def calibration(self) -> Calibration:
        """The temperature, what it was fitted on, and what it did."""
        derived = self.knowledge.derived
        return derived.calibration if derived else Calibration(reason="no class is known")

    @property
    def threshold(self) -> Threshold:
        """The score above which an image is unusual; set it to a number, or to None for the fitted.

        Raises:
            ContinualPredictionError: No class is known.
        """
        return _threshold(self.knowledge)

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 (N, C) of feature maps (N, D, H, W) or pooled features (N, D).

        They are divided by the temperature already: their softmax are the probabilities. The
        column of a class without images is -inf. Differentiable in `x`.

        Raises:
            ContinualPredictionError: No class is known, or the features are of another width or
                not finite.
        """
        knowledge = self.knowledge
        _derived(knowledge)  # raises where no class is known
        features = self.pooled(x)
        _check_finite(features)
        weight, bias = knowledge.affine_on(features.device)
        embedded = embed(features, root=knowledge.settings.root)
        return (embedded @ weight.T + bias).to(torch.float32)

    def pooled(self, x: Tensor) -> Tensor:
        """Pooled features (N, D) of feature maps (N, D, H, W); pooled ones come back as they are.

        Raises:
            ContinualPredictionError: Another shape.
        """
        if x.dim() not in (2, 4) or x.shape[1] != self.n_features:
            raise ContinualPredictionError(
                f"the classifier received features of shape {tuple(x.shape)}; it takes "
                f"(N, {self.n_features}) or (N, {self.n_features}, H, W), from the network it has "
                "learned with"
            )
        return self.pool(x).flatten(1) if x.dim() == 4 else x

    def ood_scores(self, features: Tensor) -> Tensor:
        """How unusual images are, float64 (N,), higher = more unusual, from pooled features (N, D).

        A blank image, whose features are all but zero, scores above every threshold.

        Raises:
            ContinualPredictionError: No class is known, or the features are of another width or
                not finite.
        """
        return _scores(self.knowledge, features)

    def p_values(self, features: Tensor) -> Tensor:
        """Probability that an image of the known classes scores at least as high, float64 (N,)."""
        knowledge = self.knowledge
        return _threshold(knowledge).p_value(_scores(knowledge, features))

    def is_ood(self, features: Tensor) -> Tensor:
        """Which images are unusual: score above the threshold, bool (N,)."""
        knowledge = self.knowledge
        return _threshold(knowledge).is_ood(_scores(knowledge, features))

    def prediction_sets(self, features: Tensor, alpha: float = 0.1) -> Tensor:
        """Classes that hold the truth with probability `1 - alpha`, bool (N, C).

        All classes, where too few images allow no less.
        """
        knowledge = self.knowledge
        derived = _derived(knowledge)
        quantile = conformal_quantile(
            derived.nonconformity, alpha, weights=derived.nonconformity_weights
        )
        embedded = _embedded(knowledge, features)
        probs = (embedded @ derived.weight.T + derived.bias).softmax(1)
        return prediction_sets(probs, quantile) & derived.bias.isfinite()


def _derived(knowledge: Knowledge) -> Derived:
    if knowledge.derived is None:
        raise ContinualPredictionError(
            "the classifier knows no class yet; `extend` it with images and labels"
        )
    return knowledge.derived


def _threshold(knowledge: Knowledge) -> Threshold:
    fitted = _derived(knowledge).threshold
    manual = knowledge.manual_threshold
    return fitted if manual is None else manual_threshold(manual, fitted)


def _embedded(knowledge: Knowledge, features: Tensor) -> Tensor:
    return embed(_checked(knowledge, features), root=knowledge.settings.root)


def _scores(knowledge: Knowledge, features: Tensor) -> Tensor:
    derived, features = _derived(knowledge), _checked(knowledge, features)
    embedded = embed(features, root=knowledge.settings.root)
    return mark_blank(derived.scorer(embedded), features)


def _checked(knowledge: Knowledge, features: Tensor) -> Tensor:
    try:
        return check_features(features, knowledge.settings.n_features)
    except DataError as error:
        raise ContinualPredictionError(str(error)) from error


def _check_finite(features: Tensor) -> None:
    if not features.is_meta and (found := what_is_not_finite(features)):
        raise ContinualPredictionError(f"{found}: no class can be told")

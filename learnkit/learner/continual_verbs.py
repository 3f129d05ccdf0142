"""The verbs of `ImageLearner` for what comes after training, each a line to its home."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from learnkit.continual.classifier import ChangeReport, ContinualClassifier, continual_head
from learnkit.interpret.continual import detector_of
from learnkit.learner import continual as continue_learning
from learnkit.learner import uncertainty as confidence
from learnkit.learner.continual import Notes, refit
from learnkit.uncertainty.calibration import Calibration
from learnkit.uncertainty.threshold import Threshold

if TYPE_CHECKING:
    from typing_extensions import Self


class ContinualVerbs:
    """Learning on after training, telling unusual images, confidences that mean what they say."""

    continual_notes: Notes | None = None
    ood_detector: ContinualClassifier | None = None

    @property
    def continual(self) -> ContinualClassifier | None:
        """The head in the continual state, with `.classes`, `.n_images`, `.prototypes`; or None."""
        return continual_head(self.model)

    @property
    def ood(self) -> ContinualClassifier | None:
        """What tells unusual images, with a settable `.threshold`; None if nothing does."""
        return detector_of(self)

    def init_continual(
        self, data: Any = None, *, reset_class_information: bool = False, **settings: Any
    ) -> ChangeReport | None:
        """Put the learner into the continual state: what it did, or None without data.

        One pass over the images, no training. The head becomes a classifier in closed form over
        class statistics, and detection of unusual images and calibrated confidences come with it.
        From here on `extend` learns new classes from new images alone. Classes the learner knows
        keep their numbers.

        Args:
            data: the training data, as for `extend`; its validation split (else the learner's own
                validation images) decides threshold and temperature. Without data nothing is known
                until the first `extend`.
            reset_class_information: allow classes the learner knows now to be dropped.
            **settings: `memory` (features remembered of each class, 64), `classifier` ("lda",
                "ridge" or "prototype"), `false_alarm_rate` (0.05), `score` ("combined",
                "mahalanobis", "relative", "knn", "msp" or "energy"), `guarantee` ("loo", "split"
                or "pac"), `prior` ("training" or "uniform").

        Raises:
            ContinualUnsupportedError: No nn.Sequential(body, head), or several labels per image.
            ContinualAlreadyInitializedError: It is in that state already.
            DataError: Classes would be lost; the message names them.
            UnreadableImagesError: Images cannot be read; all of them are named.
        """
        return continue_learning.init_continual(
            self, data, reset_class_information=reset_class_information, **settings
        )

    def extend(self, data: Any, labels: Any = None) -> ChangeReport:
        """Learn new classes, or more of the known ones, from new images alone: what that did.

        The result is the same to the bit as if all images had been there from the beginning. After
        an exception, whichever, nothing has changed.

        Args:
            data: an ImageDataset (of a split one the training images are learnt from, the
                validation images set aside for threshold and temperature), DataLoaders, a
                DataLoader, a folder with a folder per class, a DataFrame with the columns path and
                label; or images: files, a folder of them, PIL images, arrays, tensors.
            labels: for images: a name for each, or one for all.

        Raises:
            ContinualNotInitializedError: Call `init_continual` first.
            DataError: No images, or labels missing.
            UnreadableImagesError: Images cannot be read; all of them are named.
        """
        return continue_learning.extend(self, data, labels)

    def subtract(self, data: Any, labels: Any = None) -> ChangeReport:
        """Unlearn images as if they had never been there; arguments as for `extend`."""
        return continue_learning.subtract(self, data, labels)

    def forget(self, name: str) -> ChangeReport:
        """Drop a class: it keeps its number, can never win, and may be learnt again."""
        return continue_learning.forget(self, name)

    def rename(self, names: Mapping[str, str]) -> ChangeReport:
        """Call classes otherwise, `{old: new}`; data labelled in the old way stay understood."""
        return continue_learning.rename(self, names)

    def merge_classes(self, names: Sequence[str], into: str) -> ChangeReport:
        """Make one class of several; data labelled with any of them stay understood."""
        return continue_learning.merge_classes(self, names, into)

    def undo(self) -> ChangeReport:
        """Take back the last change of the continual state."""
        return continue_learning.undo(self)

    def drop_continual(self) -> Self:
        """Leave the continual state: the trained head is back, what was learnt since is gone."""
        return continue_learning.drop_continual(self)

    def refit(self, data: Any, epochs: int = 1, **training: Any) -> ChangeReport:
        """Fine-tune on images of all classes and begin the continual state anew with them.

        Args:
            data: a split ImageDataset, or DataLoaders: old and new images together.
            epochs: for `fine_tune`, as is `training`.
            **training: further arguments of `fine_tune`.

        Raises:
            DataError: Classes known now have no training images in `data`.
        """
        return refit(self, data, epochs, **training)

    def calibrate(self, dl: Any = None, *, ds_idx: int = 1) -> Calibration:
        """Fit the temperature on images the network was not trained on: what it changed.

        The ranking of the classes never changes. A trained head takes the temperature into its last
        layer, so that it holds wherever probabilities come out, also after `save` or `export`.

        Args:
            dl: a loader, an ImageDataset or an `Outputs`; the validation images by default.
            ds_idx: which of the learner's loaders, without `dl`.

        Raises:
            UncertaintyError: The head does not end in a layer that could take it up.
        """
        return confidence.calibrate(self, dl, ds_idx=ds_idx)

    def fit_ood(self, data: Any = None, *, validation: Any = None, **settings: Any) -> Threshold:
        """Learn what is usual from training images, for a trained head: the threshold fitted.

        Predictions then carry `.is_ood`, `.ood_score` and `.p_value`. Fitting anew replaces it;
        training is refused until `clear_ood`.

        Args:
            data: the training data, as for `extend`; those of the learner by default.
            validation: images the network was not trained on, with labels; by default the
                validation split of `data`, or of the learner.
            **settings: `score`, `false_alarm_rate`, `guarantee`, `memory`; see `init_continual`.

        Raises:
            OodLockedError: In the continual state, which tells unusual images itself.
        """
        return confidence.fit_ood(self, data, validation=validation, **settings)

    def clear_ood(self) -> Self:
        """Remove what `fit_ood` made; training is allowed again."""
        return confidence.clear_ood(self)

    def plot_ood(self, ood: Any = None, *, dl: Any = None, ds_idx: int = 1, ax: Any = None) -> Any:
        """Axes with the scores of known images, the threshold, and the scores of unusual images.

        Args:
            ood: images of no known class, if there are any: a loader, a folder, files.
            dl: known images: a loader, an ImageDataset or an `Outputs`.
            ds_idx: which of the learner's loaders, without `dl`.
            ax: where to draw.
        """
        return confidence.plot_ood(self, ood, dl=dl, ds_idx=ds_idx, ax=ax)

"""The continual classifier: the head of a network that goes on learning, over class statistics."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from learnkit.continual.change_report import AuditLog, ChangeReport
from learnkit.continual.checks import check_features, what_is_not_finite
from learnkit.continual.embedding import embed
from learnkit.continual.knowledge import UNDO_LEVELS, Change, History, Knowledge
from learnkit.continual.settings import RULES, Settings
from learnkit.continual.statistics import ClassStatistics
from learnkit.continual.validation_images import Validation, fresh_images
from learnkit.errors import (
    ContinualNotInitializedError,
    ContinualPredictionError,
    ContinualStateError,
    DataError,
    LearnkitError,
    number_of,
    warn_user,
)
from learnkit.uncertainty.calibration import TemperatureFit
from learnkit.uncertainty.checks import Array
from learnkit.uncertainty.conformal import prediction_sets, set_quantiles
from learnkit.uncertainty.scoring import Scoring
from learnkit.uncertainty.threshold import Threshold

if TYPE_CHECKING:
    from typing_extensions import Self


class ContinualClassifier(nn.Module):
    """Turns feature maps or pooled features into logits, and learns in one step without gradients.

    All it knows are `statistics`; everything else follows from them. A change builds the new state
    beside the old one and puts it in place in one step: after an exception, an interrupt included,
    everything is as before, and other threads predict by the old state or by the new one.

    Threshold and temperature take images for independent of each other. Near copies (bursts,
    augmented files, files saved again) are found among the remembered features of a class, leave
    together and weigh as one image. What else belongs together is not known, nor that a whole class
    is one burst: say it by `groups`, or give `validation` images of other parts.

    Args:
        n_features: Width D of the pooled features.
        root: Whether to take square roots of the features first: for those never below zero.
        memory: Features remembered of each class; 0 for none.
        classifier: "lda", "ridge" or "prototype". They differ most where a class has few images
            beside many. Of 1 / 5 ants or bees beside 120, "ridge" finds .37 / .84 and costs the
            many .01 / .09 of their recall, "lda" .59 / .81 at .06 / .06, "prototype" .59 / .89 at
            .06 / .11. No rule that was tried has both, see `benchmarks/_promises_few.py`.
        score: How out-of-distribution (OOD) images are detected: "combined", "mahalanobis",
            "relative", "knn", "msp" or "energy".
        false_alarm_rate: Wanted share of images of known classes flagged as out of distribution.
        guarantee: What the threshold promises: "loo", "split" or "pac".
        prior: How classes weigh for the threshold: by their images in "training", or "uniform".
        per_class: Whether threshold and prediction sets keep their promise class by class, not only
            on average over all images: a rare class then is flagged no more often than others. It
            costs detections, most where a class has few images, and sets are larger.
        case_sensitive: Whether 'A' and 'a' are two classes; if not, they are refused together.
        blend: Whether "lda" tells classes of few images beside many partly by the nearest mean. A
            state from before there was this has it off, and answers as ever.
        near_copies: Whether validation images that are near copies of remembered ones of their
            class count for none, and near copies among themselves for one; likewise.
        rules: By which rules all else is derived from the statistics, the latest by default; a
            state goes on with those it began with, and answers as ever.

    Raises:
        StatisticsError: A setting is none of those allowed.
        OodInsufficientDataError: `score="knn"` without a memory.
    """

    def __init__(
        self,
        n_features: int,
        *,
        root: bool = False,
        memory: int = 64,
        classifier: str = "lda",
        score: str = "combined",
        false_alarm_rate: float = 0.05,
        guarantee: str = "loo",
        prior: str = "training",
        per_class: bool = False,
        case_sensitive: bool = False,
        blend: bool = True,
        near_copies: bool = True,
        rules: int = RULES,
    ) -> None:
        super().__init__()
        known = (n_features, root, memory, classifier, score, false_alarm_rate, guarantee, prior)
        settings = Settings(*known, per_class, case_sensitive, blend, near_copies, rules)
        self.pool = nn.AdaptiveAvgPool2d(1)
        # changes wait for each other, predictions for none
        self._lock = threading.RLock()
        # the state now and those before it, in one object so that one assignment changes both
        self.history = History((Knowledge.empty(settings),))

    @property
    def knowledge(self) -> Knowledge:
        """Everything known at this moment, as one unchanging object."""
        return self.history.states[0]

    @property
    def audit(self) -> AuditLog:
        """The log of the last 1,000 changes; it travels with bundles."""
        return self.history.audit

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The names that `restore` knows."""
        return tuple(self.history.snapshots)

    @property
    def settings(self) -> Settings:
        """The settings it was made with."""
        return self.knowledge.settings

    @property
    def n_features(self) -> int:
        """Width D of the pooled features."""
        return self.settings.n_features

    @property
    def statistics(self) -> ClassStatistics:
        """Class statistics: all that is remembered of every class."""
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
        """Divisor of the logits; 1 while no class is known."""
        return self.scoring.temperature if self.knowledge.derived else 1.0

    @property
    def calibration(self) -> TemperatureFit:
        """The temperature, what it was fitted on, and what it did."""
        derived = self.knowledge.derived
        return derived.calibration if derived else TemperatureFit(reason="no class is known")

    @property
    def scoring(self) -> Scoring:
        """Logits and OOD scores of pooled features in numpy, as they are at this moment.

        Raises:
            ContinualPredictionError: No class is known.
        """
        return self.knowledge.scoring

    @property
    def threshold(self) -> Threshold:
        """The score above which an image is flagged as out of distribution (OOD).

        Set it to a number, or to None for the fitted one.

        Raises:
            ContinualPredictionError: No class is known.
        """
        return self.scoring.threshold

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        """See `set_threshold`."""
        self.set_threshold(value)

    def forward(self, x: Tensor) -> Tensor:
        """Logits float32 (N, C) of feature maps (N, D, H, W) or pooled features (N, D).

        They are divided by the temperature already: their softmax are the probabilities. The
        column of a class without images is -inf. Differentiable in `x`.

        Raises:
            ContinualPredictionError: No class is known, or the features are of another width or
                not finite.
        """
        # read once: another thread may put the next one in place meanwhile
        knowledge = self.knowledge
        weight, bias = knowledge.affine_on(x.device)
        features = self.pooled(x)
        if not features.is_meta and (found := what_is_not_finite(features)):
            raise ContinualPredictionError(f"{found}: no class can be told")
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
        """OOD scores float64 (N,), higher = further out of distribution, of pooled features (N, D).

        A blank image, whose features are all but zero, scores above every threshold.

        Raises:
            ContinualPredictionError: No class is known, or the features are of another width or
                not finite.
        """
        return torch.from_numpy(self.scoring.ood_scores(self._rows(features)))

    def p_values(self, features: Tensor) -> Tensor:
        """Probability that an image of the known classes scores at least as high, float64 (N,)."""
        scoring = self.scoring
        scores = scoring.ood_scores(self._rows(features))
        return torch.from_numpy(scoring.threshold.p_values(scores))

    def is_ood(self, features: Tensor) -> Tensor:
        """Which images are out of distribution: score above the threshold, bool (N,)."""
        scoring = self.scoring
        return torch.from_numpy(scoring.threshold.is_ood(scoring.ood_scores(self._rows(features))))

    def prediction_sets(self, features: Tensor, alpha: float = 0.1) -> Tensor:
        """Classes that hold the truth with probability `1 - alpha`, bool (N, C).

        All classes, where too few images allow no less.
        """
        scoring = self.knowledge.scoring
        quantile = set_quantiles(scoring.nonconformity, alpha, len(scoring.bias))
        found = prediction_sets(scoring.probs(self._rows(features)), quantile)
        # an infinite quantile lets in all classes, and those without images, too
        return torch.from_numpy(found & np.isfinite(scoring.bias))

    def extend(
        self,
        features: Tensor,
        labels: Sequence[Any],
        *,
        class_names: Sequence[str] | None = None,
        validation: Validation | None = None,
        reuse_names: bool = False,
        origin: str = "",
        case_sensitive: bool = False,
        again: bool = False,
        groups: Sequence[Any] | None = None,
        what: str = "extend",
    ) -> ChangeReport:
        """Learn images of new classes, of known ones, or of both; an image counts once.

        Args:
            features: Pooled features (N, D), as the network gives them.
            labels: A class name per image, or places in `class_names`.
            class_names: In which order classes not yet known are appended; those without images
                get a place too. Default: as they first appear.
            validation: (features, labels) of images of known or new classes that are not learned:
                threshold and temperature are fitted on them. They are kept, up to 64 a class, until
                they are learned. With (features, labels, groups) those of groups of which their
                class has learned images do not count.
            reuse_names: Take a name that a class had before it was renamed or merged for the name
                of another class.
            origin: Where the last bits of the features come from; see `Session.origin`.
            case_sensitive: Tell names apart by case, 'A' and 'a', from now on; see the setting.
            again: Count images once more that their class has learned before. They are known by
                their features, where these have the same origin.
            groups: What each image belongs to (a burst, a part, a patient), None for nothing: when
                images are left out to fit threshold and temperature, the whole group of their
                class is, and it weighs as one image.
            what: What report and audit log call this: the verb that was typed.

        Returns:
            What changed.

        Raises:
            DataError: Features or labels break a rule; see `ClassStatistics.update`.
            InsufficientDiversityError: All images of a new class are blank.
            StatisticsError: The products of the features would add up to more than float64 holds
                exactly.
        """
        return self.change(
            what,
            lambda now: now.extend(
                features,
                labels,
                class_names,
                validation,
                reuse_names=reuse_names,
                case_sensitive=case_sensitive,
                origin=origin,
                again=again,
                groups=groups,
            ),
        )

    def validate(
        self, features: Tensor, labels: Sequence[Any], groups: Sequence[Any] | None = None
    ) -> ChangeReport:
        """Fit threshold and temperature on images that are not learned; they are kept.

        Those of `groups` of which their class has learned images do not count. An image that was
        kept for another class counts for the one it is given now.

        Raises:
            DataError: Features or labels break a rule, a class is not known or has no images, one
                image has two labels, or none counts.
        """
        return self.change("calibrate", lambda now: now.validate((features, labels, groups)))

    def are_fresh(
        self, features: Tensor, labels: Sequence[str], groups: Sequence[Any] | None = None
    ) -> Array:
        """Which validation images tell of fresh ones, bool (N,); see `fresh_images`."""
        return fresh_images((features, labels, groups), self.statistics, self.settings.fresh_rule)

    def subtract(
        self,
        features: Tensor | None = None,
        labels: Sequence[Any] | None = None,
        *,
        validation: Validation | None = None,
    ) -> ChangeReport:
        """Unlearn images: statistics are to the bit as if these had never been learned.

        So are those that were no longer remembered as their class was forgotten, under its name.
        Of a class with more distinct features than `memory` the remembered ones among them are not
        replaced: thresholds then rest on fewer images until others are learned. Validation images
        go with a class of which nothing is left.

        Args:
            features: Pooled features (N, D) of images that were learned; None for none.
            labels: As for `extend`.
            validation: (features, labels) of validation images, which no longer decide threshold
                and temperature.

        Raises:
            DataError: Features or labels break a rule, a class is not known, or nothing is given.
            StatisticsError: These images were not learned.
        """
        return self.change("subtract", lambda now: now.subtract(features, labels, validation))

    def forget(self, name: str | Sequence[str]) -> ChangeReport:
        """Forget a class, or several, without images: they can never win, and keep their places.

        Exact, as if it had never been learned, for a class of at most `memory` images that differ;
        of a larger one the spread of the others stays, and the report's notes say so.

        Raises:
            DataError: There is no such class, or it has no images; then none is forgotten.
        """
        return self.change("forget", lambda now: now.forget(name))

    def rename(self, names: Mapping[str, str]) -> ChangeReport:
        """Call classes otherwise, `{old: new}`.

        Raises:
            DataError: There is no such class, or a new name looks like another class's.
        """
        return self.change("rename", lambda now: now.rename(names))

    def merge_classes(self, names: Sequence[str], into: str) -> ChangeReport:
        """Count all images of `names` to class `into`, as if they had been labelled so.

        Raises:
            DataError: There is no such class, or fewer than two are joined.
        """
        return self.change("merge_classes", lambda now: now.merge_classes(names, into))

    def merge(self, other: ClassStatistics, *, reuse_names: bool = False) -> ChangeReport:
        """Learn everything another set of statistics of the same network holds.

        Args:
            other: Statistics of the same network.
            reuse_names: Let a class have a name that the other side's class had before.

        Raises:
            StatisticsError: They are of another network or collected with other settings.
            DataError: Two class names look alike; or one side has images under a name that a class
                of the other side no longer has.
        """
        return self.change("merge", lambda now: now.merge(other, reuse_names=reuse_names))

    def set_threshold(
        self,
        value: float | None = None,
        *,
        false_alarm_rate: float | None = None,
        guarantee: str | None = None,
        per_class: bool | None = None,
    ) -> ChangeReport:
        """Set the threshold by hand, or, without `value`, fit it again with other settings.

        A threshold set by hand stays through later changes until it is fitted again. Another
        `per_class` moves the scores of each class, so that a drift monitor begins anew.

        Raises:
            UncertaintyError: The value is no finite number.
            StatisticsError: A setting is none of those allowed.
        """
        return self.change(
            "set_threshold",
            lambda now: now.with_threshold(value, false_alarm_rate, guarantee, per_class),
        )

    def undo(self) -> ChangeReport:
        """Go back to the state before the last change; three changes back at most.

        Raises:
            ContinualStateError: There is nothing to undo.
        """
        with self._lock:
            started = time.perf_counter()
            if len(self.history.states) < 2:
                raise ContinualStateError(
                    f"there is no change to undo: the last {UNDO_LEVELS} changes are kept, and "
                    "none in a bundle that was saved with history=0"
                )
            now, former, *_ = self.history.states
            # a large state was kept without what follows from it
            former = former.derive(now) if former.derived is None else former
            report = former.report("undo", now, (), started)
            self.history = self.history.changed(former, report, undo=True)
            return report

    def replace_knowledge(
        self, knowledge: Knowledge, what: str, notes: Sequence[str] = ()
    ) -> ChangeReport:
        """Know this from now on, a change that can be undone; what follows from it is derived.

        Args:
            knowledge: Made from some that was known here, by its own changes.
            what: What report and audit log call the change.
            notes: For the report.
        """
        return self.change(what, lambda _: (knowledge, tuple(notes)))

    def snapshot(self, name: str) -> None:
        """Keep all that is known now under a name, for `restore`; eight names at most.

        Raises:
            ContinualStateError: A name that is none, or too many of them.
        """
        with self._lock:
            self.history = self.history.with_snapshot(name)

    def restore(self, name: str) -> ChangeReport:
        """Go back to the state kept under a name, which stays; a change that can be undone.

        Raises:
            ContinualStateError: There is no such snapshot.
        """
        return self.change("restore", lambda _: (self.history.snapshot(name), ()))

    def drop_snapshot(self, name: str) -> None:
        """Keep the state under a name no longer.

        Raises:
            ContinualStateError: There is no such snapshot.
        """
        with self._lock:
            self.history = self.history.without_snapshot(name)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(configuration for JSON, tensors): everything there is to keep."""
        return self.knowledge.to_state()

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The classifier `state` was taken from; what follows from the statistics is derived again.

        Raises:
            StatisticsError: Something cannot have come from `state`.
        """
        knowledge = Knowledge.from_state(config, tensors)
        new = cls(**knowledge.settings.to_dict())
        new.history = History((knowledge.derive(None),))
        return new

    def restore_scoring(self, stored: Scoring) -> None:
        """Score as when `stored` was taken of this very state, to the last bit.

        What follows from statistics is solved for, and another processor or another version of
        torch gives other last bits. The next change derives everything again.
        """
        knowledge, numbers = self.knowledge, ("temperature", "standards", "weight", "bias")
        own = knowledge.derived.scoring
        taken = {name: getattr(stored, name) for name in (*numbers, "distances", "neighbors")}
        if knowledge.manual_threshold is None:
            taken["threshold"] = stored.threshold
        if stored.labels:
            taken["nonconformity"] = stored.nonconformity
        derived = replace(knowledge.derived, scoring=replace(own, **taken))
        now = replace(knowledge, derived=derived, _affine={})
        self.history = replace(self.history, states=(now, *self.history.states[1:]))

    def extra_repr(self) -> str:
        """Text for `repr`."""
        images = [n for n in self.n_images.values() if n]
        learned = f"{number_of(len(images), 'class')}, {number_of(sum(images), 'image')}"
        return f"{self.n_features} features, {learned}, classifier={self.settings.classifier!r}"

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        config, tensors = self.state()
        text = json.dumps(config, sort_keys=True).encode()
        destination[f"{prefix}config"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        destination.update({f"{prefix}{name}": tensor for name, tensor in tensors.items()})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # not torch's own, which compares shapes: these grow with what is learned
        found = {k[len(prefix) :]: v.cpu() for k, v in state_dict.items() if k.startswith(prefix)}
        if "config" not in found:
            missing_keys.append(f"{prefix}config")
            return
        try:
            knowledge = Knowledge.from_state(_read_config(found.pop("config")), found)
            self._check_same_network(knowledge.settings)
            with self._lock:
                self.history = History((knowledge.derive(None),))
        except LearnkitError as error:
            # torch collects messages of all modules, and raises once
            error_msgs.append(f"{prefix or 'ContinualClassifier'}: {error}")

    def _check_same_network(self, settings: Settings) -> None:
        for name in "n_features", "root":
            if getattr(settings, name) != getattr(self.settings, name):
                raise ContinualStateError(
                    f"`{name}` is {getattr(self.settings, name)} here and "
                    f"{getattr(settings, name)} in the state: it belongs to another network"
                )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self)(**self.settings.to_dict())
        new.history = self.history  # unchanging: shared
        new.train(self.training)
        new.__dict__.update(
            {k: copy.deepcopy(v, memo) for k, v in self.__dict__.items() if k not in new.__dict__}
        )
        memo[id(self)] = new
        return new

    def __getstate__(self) -> dict[str, Any]:
        # a lock cannot be pickled
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()

    def _rows(self, features: Tensor) -> Array:
        """Pooled features (N, D) as float64, finite."""
        try:
            return check_features(features, self.n_features).numpy()
        except DataError as error:
            raise ContinualPredictionError(str(error)) from error

    def change(self, what: str, make: Callable[[Knowledge], Change]) -> ChangeReport:
        """Build the next state beside this one and put it in place, or raise and leave all be.

        One step for `undo`, whatever is made; none where the next state is the one there is.

        Args:
            what: What report and audit log call it.
            make: Gives (the next knowledge, notes) from that of the moment.
        """
        with self._lock:
            started = time.perf_counter()
            now = self.knowledge
            new, notes = make(now)
            new = now if new.same_as(now) else new.derive(now)
            report = new.report(what, now, notes, started)
            self.history = self.history.changed(new, report)
        # once, not at every change
        if new.warning and not now.warning:
            warn_user(new.warning)
        return report


def _read_config(packed: Any) -> Any:
    """The configuration from its bytes in a state dict."""
    try:
        return json.loads(bytes(packed.to(torch.uint8).flatten().tolist()).decode())
    except (AttributeError, ValueError, TypeError) as error:
        raise ContinualStateError(f"`config` cannot be read: {error}") from error


def continual_head(model: nn.Module) -> ContinualClassifier | None:
    """The head of `Sequential(body, ContinualClassifier)`, None for any other model."""
    is_pair = isinstance(model, nn.Sequential) and len(model) == 2
    return model[1] if is_pair and isinstance(model[1], ContinualClassifier) else None


def check_continual(head: ContinualClassifier | None) -> ContinualClassifier:
    """`head`, unless it is None: then the error says how to get one."""
    return _not_none(
        head,
        "this model is not in the continual state: it keeps no class statistics that could grow, "
        "and cannot detect out-of-distribution images. Call learn.init_continual(data)",
    )


def check_detects_ood(head: ContinualClassifier | None) -> ContinualClassifier:
    """`head`, unless it is None: then the error says how to detect OOD images."""
    return _not_none(
        head,
        "this model is not in the continual state, and has no detector beside its trained head: "
        "it cannot detect out-of-distribution images. Call learn.fit_ood() or "
        "learn.init_continual(data)",
    )


def _not_none(head: ContinualClassifier | None, what_to_do: str) -> ContinualClassifier:
    if head is None:
        raise ContinualNotInitializedError(f"{what_to_do} before learn.export(...), and load that")
    return head

"""The comparison of input recipes: with which mean, std and padding a network's weights were made.

Weights tell nothing of it, and a wrong recipe costs accuracy in silence: the features still look
like features. Here the features that each likely recipe gives of a few labelled images are compared
by what they are for: telling classes, each image left out in closed form. The accuracy of 200
images changes by chance as much as by a slightly wrong recipe; the log loss tells those apart, too,
and decides.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import ttest_1samp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from learnkit.continual.closed_form.lda import fit_lda
from learnkit.continual.closed_form.leave_one_out import leave_one_out
from learnkit.continual.embedding import features_on_grid
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import DataError
from learnkit.models.eval_mode import evaluating
from learnkit.models.meta import IMAGENET_STATS, SYMMETRIC_STATS
from learnkit.report.document import Document, Paragraph, Table
from learnkit.report.notebook import Shown
from learnkit.uncertainty.scoring import GRID

MOST_IMAGES = 200
_MOST_CLASSES = MOST_IMAGES // 4
_USELESS = 1e6  # log loss where features are not finite
_CHANCE = 0.05  # of taking another recipe though none is better, over all that are compared
_USUAL = {
    "ImageNet": IMAGENET_STATS,
    "-1..1": SYMMETRIC_STATS,
    "0..1": ([0.0] * 3, [1.0] * 3),
    "0..255": ([0.0] * 3, [1 / 255] * 3),
}


@dataclass(frozen=True)
class InputRecipe:
    """A way to make a network's input: `(pixels in 0..1 - mean) / std`, and how it is padded.

    `name` says it in words, `options` are arguments of the architecture.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = (", ".join(f"{x:.4g}" for x in values) for values in (self.mean, self.std))
        more = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return "mean ({}), std ({}){}".format(*shown, more)


@dataclass(frozen=True, eq=False, repr=False)
class WeightsCheck(Shown):
    """What a comparison of input recipes found.

    Attributes:
        recipes: those compared; the first is the one that was assumed or said.
        right: whether each image was told right, left out, by each recipe, bool (R, N).
        losses: minus the log of the probability of each image's class, likewise (R, N).
        labels: the class numbers of the images, (N,).
        said_by: who says the first one, in words; empty where it is an assumption, which then gives
            way to a better one.
    """

    recipes: tuple[InputRecipe, ...]
    right: np.ndarray
    losses: np.ndarray
    labels: np.ndarray
    said_by: str = ""

    @property
    def accuracies(self) -> list[float]:
        """Balanced accuracy of each recipe."""
        rows = [self.right[:, self.labels == label].mean(1) for label in np.unique(self.labels)]
        return np.mean(rows, axis=0).tolist()

    @property
    def log_losses(self) -> list[float]:
        """Mean log loss of each recipe."""
        return self.losses.mean(1).tolist()

    @property
    def best(self) -> InputRecipe:
        """The recipe of the lowest log loss; of equal ones the first."""
        return self.recipes[int(np.argmin(self.log_losses))]

    @property
    def is_better(self) -> bool:
        """Whether the best beats the first by enough to take its place, or to doubt what is said.

        An assumption stays within one standard error of the best (Breiman et al. 1984): beyond, a
        wrong one costs more than a change among equals. What is said is doubted beyond chance
        alone: by a paired t-test, its level divided by the number of others (Bonferroni).
        """
        gained = self.losses[0] - self.losses[self.recipes.index(self.best)]
        if not gained.any():
            return False
        test = ttest_1samp(gained, 0.0, alternative="greater")
        if self.said_by:
            return bool(test.pvalue * (len(self.recipes) - 1) < _CHANCE)
        return bool(test.statistic > 1)

    @property
    def chosen(self) -> InputRecipe:
        """The recipe to go on with: the best, where the first is an assumption and is worse."""
        return self.best if self.is_better and not self.said_by else self.recipes[0]

    def __str__(self) -> str:
        of_first = (
            stated(self.recipes[0], self.said_by)
            if self.said_by
            else f"{self.recipes[0]}, as was assumed"
        )
        asked = f"of {len(self.recipes)} input recipes on {len(self.labels)} images, each left out"
        best = f"{self.best}: {self._numbers(self.best)}"
        first = f"{of_first}: {self._numbers(self.recipes[0])}"
        if self.best is self.recipes[0]:
            return f"{asked}, the best is {first}"
        if not self.is_better:
            how = "beyond chance" if self.said_by else "by a standard error"
            return f"{asked}, none is better {how} than {first}; the best is {best}"
        ending = "not used: check what is said" if self.said_by else "used from here on"
        return f"{asked}, the best is {best}; it is {ending}. {first}"

    def _numbers(self, recipe: InputRecipe) -> str:
        place = self.recipes.index(recipe)
        return f"{self.accuracies[place]:.1%} right, log loss {self.log_losses[place]:.3f}"

    def __repr__(self) -> str:
        return f"WeightsCheck({self})"

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each recipe, the best first: its name, itself, accuracy and log loss."""
        columns = {
            "input": [recipe.name for recipe in self.recipes],
            "recipe": [str(recipe) for recipe in self.recipes],
            "balanced_accuracy": self.accuracies,
            "log_loss": self.log_losses,
        }
        return pd.DataFrame(columns).sort_values("log_loss", kind="stable", ignore_index=True)

    def document(self) -> Document:
        """The verdict, and the numbers of every recipe."""
        rows = self.frame.itertuples(index=False)
        table = [[row[0], row[1], f"{row[2]:.1%}", f"{row[3]:.3f}"] for row in rows]
        header = ("input", "recipe", "balanced accuracy", "log loss")
        return Document([Paragraph(str(self)), Table(table, header, "llrr")])


def stated(recipe: InputRecipe, said_by: str) -> str:
    """Return a recipe and who says it, one or several.

    >>> recipe = InputRecipe("", (0.5,), (0.5,))
    >>> stated(recipe, "its metadata"), stated(recipe, "its metadata and config.json beside it")
    ('mean (0.5), std (0.5), as its metadata says', \
'mean (0.5), std (0.5), as its metadata and config.json beside it say')
    """
    return f"{recipe}, as {said_by} {'say' if ' and ' in said_by else 'says'}"


def assumption_of(body: nn.Module) -> str:
    """Return what is assumed of a body whose weights file does not say it; "" if nothing is."""
    if not body.weights_file or body.recipe_source or body.mean is None:
        return ""
    recipe = InputRecipe("", body.mean, body.std, body.arch_kwargs)
    return (
        f"weights file {body.weights_file} does not say how its images were normalised; that of "
        f"{body.source}'s {body.arch} is assumed: {recipe}"
    )


def likely_recipes(first: InputRecipe, paddings: Iterable[Mapping[str, Any]]) -> list[InputRecipe]:
    """Return the recipe `first`, then all likely ones with each of the paddings."""
    n_channels = len(first.mean)
    found = {(first.mean, first.std, tuple(first.options.items())): first}
    for options in paddings:
        for name, stats in {first.name: (first.mean, first.std), **_USUAL}.items():
            mean, std = (channel_stats(values, n_channels) for values in stats)
            recipe = InputRecipe(name, mean, std, options)
            found.setdefault((mean, std, tuple(options.items())), recipe)
    return [*found.values()]


def channel_stats(values: Sequence[float], n_channels: int) -> tuple[float, ...]:
    """Return statistics of colour images for a network of so many channels: their mean."""
    if len(values) == n_channels:
        return tuple(values)
    return (sum(values) / len(values),) * n_channels


def stratified_draw(labels: Sequence[Any], n: int = MOST_IMAGES) -> list[int]:
    """Return positions of at most `n` images, ascending: as many of each class, always the same.

    Classes of one image cannot be left out; of more than 50 classes, 50 are drawn.

    Raises:
        DataError: Less than two classes have two images.
    """
    places = defaultdict(list)
    for place, label in enumerate(labels):
        places[label].append(place)
    kept = sorted(label for label, found in places.items() if len(found) > 1)
    if len(kept) < 2:
        raise DataError(
            f"`check_weights=True` compares input recipes by two classes or more of two images or "
            f"more; the training images have {len(kept)} such: leave it out"
        )
    draw = random.Random(0)
    kept = sorted(draw.sample(kept, _MOST_CLASSES)) if len(kept) > _MOST_CLASSES else kept
    each = n // len(kept)
    return sorted(
        place
        for label in kept
        for place in draw.sample(places[label], min(each, len(places[label])))
    )


def compare_recipes(
    recipes: Sequence[InputRecipe],
    body_of: Callable[[Mapping[str, Any]], nn.Module],
    batches: Callable[[], Iterable[Tensor]],
    labels: Sequence[Any],
    said_by: str = "",
) -> WeightsCheck:
    """Return how well a network tells labelled images when they are made by each recipe.

    Args:
        recipes: The first is the one that was assumed or said.
        body_of: Builds the body with the options of a recipe.
        batches: Gives the images anew, (N,C,H,W) in 0..1.
        labels: A class for each image.
        said_by: See `WeightsCheck`.
    """
    _, numbers = np.unique(np.asarray(labels), return_inverse=True)
    told = [_left_out(rows, numbers) for rows in _features(recipes, body_of, batches)]
    right, losses = map(np.stack, zip(*told, strict=True))
    return WeightsCheck(tuple(recipes), right, losses, numbers, said_by)


def _features(
    recipes: Sequence[InputRecipe],
    body_of: Callable[[Mapping[str, Any]], nn.Module],
    batches: Callable[[], Iterable[Tensor]],
) -> list[Tensor]:
    """Return pooled features (N,D) by recipe; images are read once for each way of padding."""
    rows: list[list[Tensor]] = [[] for _ in recipes]
    for options in {tuple(recipe.options.items()) for recipe in recipes}:
        body = body_of(dict(options))
        alike = [i for i, recipe in enumerate(recipes) if tuple(recipe.options.items()) == options]
        with evaluating(body), torch.no_grad():
            for images in batches():
                for i in alike:
                    columns = (recipes[i].mean, recipes[i].std)
                    mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in columns)
                    output = body.to(images.device)((images - mean) / std).cpu()
                    rows[i].append(output.mean((2, 3)) if output.ndim == 4 else output.flatten(1))
    return [torch.cat(found) for found in rows]


def _left_out(features: Tensor, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (right, losses) (N,) of images, each by a discriminant that has not seen it."""
    if not features.isfinite().all():
        return np.zeros(len(labels), dtype=bool), np.full(len(labels), _USELESS)
    names = [f"{label:09d}" for label in labels]  # in the order of their numbers
    empty = ClassStatistics.empty(features.shape[1], root=False, memory_size=MOST_IMAGES)
    # the discriminant alone, as its distances tell below
    fitted = fit_lda(empty.update(features, names).canonical().moments(), blend=False)
    geometry, numbers = fitted.geometry, torch.from_numpy(labels)
    points = features_on_grid(features, root=False) / GRID
    left_out = leave_one_out(geometry, geometry.spectrum.turn(points), numbers)
    debts = geometry.d_eff / left_out.counts  # by so much noise lengthens the distance to a mean
    logits = (debts - left_out.distances) / 2 / fitted.temperature
    losses = cross_entropy(logits, numbers, reduction="none")
    return (logits.argmax(1) == numbers).numpy(), losses.numpy()

"""The samples a classifier finds hardest, and their images.

`LargestLosses` is a base of `ClassificationInterpretation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from learnkit.errors import InterpretationError
from learnkit.interpret import plots
from learnkit.interpret.heatmaps import (
    SUPTITLE,
    evidence,
    explained_classes,
    loss_title,
    to_pil,
)
from learnkit.interpret.outputs import Outputs
from learnkit.interpret.source import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_NO_LOSSES = "There are no losses to sort by; pass `losses`, or make the pass over labelled samples"


class LargestLosses:
    """What sorts samples by their loss, and draws them."""

    learn: Any
    outputs: Outputs
    _images_from: Any  # a Source, or what one is made of

    def top_losses(
        self, k: int | None = None, largest: bool = True, items: bool = False
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, list]:
        """The `k` largest (or smallest) losses and their positions; all of them if `k` is None.

        With `items` also the files, None where they are not known.
        """
        if self.outputs.losses is None:
            raise InterpretationError(_NO_LOSSES)
        n = len(self.outputs)
        if k is not None and k < 1:
            raise InterpretationError(f"`k` is {k}; ask for at least one loss, or None for all")
        losses, positions = self.outputs.losses.topk(n if k is None else min(k, n), largest=largest)
        if not items:
            return losses, positions
        files = self.outputs.items
        return losses, positions, [files[i] if files else None for i in positions.tolist()]

    def plot_top_losses(
        self,
        k: int | Sequence[int],
        largest: bool = True,
        figsize: tuple[float, float] | None = None,
        heatmap: bool = False,
        heatmap_thresh: int = 16,
        alpha: float = 0.6,
        cmap: str = "magma",
        show_text: bool = True,
        return_fig: bool | None = None,
        *,
        explain: str = "predicted",
    ) -> np.ndarray | Figure:
        """Draw the images with the largest (or smallest) losses.

        Over each image: prediction / actual, and below loss / probability of the actual class.

        Args:
            k: how many, or which ranks (a list or range, 0 the first).
            largest: begin with the largest loss.
            figsize: in inches.
            heatmap: lay the Grad-CAM evidence over each image.
            heatmap_thresh: fewest cells of a feature map worth drawing; below, a warning says so.
            alpha: opacity of the heatmaps.
            cmap: their colours.
            show_text: write the titles.
            return_fig: return the Figure instead of the Axes.
            explain: "predicted" or "actual" (as in fastai v1): whose evidence the heatmaps
                show. The actual class of a bad mistake often has none, and then no map.

        Returns:
            The Axes (k,).
        """
        order = self.top_losses(None, largest)[1].tolist()
        positions = order[: max(1, k)] if isinstance(k, int) else [order[i] for i in k]
        inputs, images = self._source.read(positions)
        heatmaps = None
        if heatmap:
            classes = explained_classes(self.outputs, positions, explain)
            heatmaps = evidence(self.learn.model, inputs, classes, min_cells=heatmap_thresh)
        titles = [loss_title(self.outputs, i) for i in positions] if show_text else None
        options = {"heatmaps": heatmaps, "alpha": alpha, "cmap": cmap, "figsize": figsize}
        suptitle = SUPTITLE if show_text else None
        axes = plots.plot_image_grid(images, titles, suptitle=suptitle, **options)
        return axes[0].figure if return_fig else axes

    def plot_multi_top_losses(
        self,
        samples: int = 3,
        figsize: tuple[float, float] | None = None,
        save_misclassified: bool = False,
    ) -> np.ndarray | list[Image]:
        """Draw the misclassified images with the largest losses.

        An image is misclassified if its predicted set of labels is not exactly the true one; its
        loss is the mean over the classes.

        Returns:
            The Axes, at most `samples`; with `save_misclassified` instead the pictures of *all*
            misclassified images, largest loss first.
        """
        order = self.top_losses()[1]
        wrong = order[~self.outputs.correct[order]].tolist()
        drawn = wrong if save_misclassified else wrong[:samples]
        images = self._source.read(drawn)[1] if drawn else []
        titles = [loss_title(self.outputs, i) for i in wrong[:samples]]
        axes = plots.plot_image_grid(images[:samples], titles, suptitle=SUPTITLE, figsize=figsize)
        return [to_pil(image) for image in images] if save_misclassified else axes

    @cached_property
    def _source(self) -> Source:
        """Where the images are read from, checked against the number of predictions."""
        if self.learn is None:
            raise InterpretationError("`learn` is None, so there are no images to draw")
        source = self._images_from
        if not isinstance(source, Source):
            source = Source.of(self.learn, source)
        source.check_length(len(self.outputs))
        return source

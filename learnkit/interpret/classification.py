"""ClassificationInterpretation: confusions, errors and largest losses, as numbers and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from learnkit.errors import InterpretationError, number_of
from learnkit.evaluation.confusion import confusion_matrix, multilabel_confusion
from learnkit.evaluation.evaluate import Evaluation
from learnkit.evaluation.measures import CalibrationBins, calibration_bins
from learnkit.interpret import plots
from learnkit.interpret.heatmaps import (
    SUPTITLE,
    evidence,
    explained_classes,
    file_at,
    heat_titles,
    loss_titles,
    mistakes_among,
)
from learnkit.interpret.learner_state import class_names, names_of, ood_limit
from learnkit.interpret.losses import check_count, loss_threshold, ranks_among
from learnkit.interpret.normalization import renormalization
from learnkit.interpret.outputs import Outputs, collect_from
from learnkit.interpret.source import Source, loader_number
from learnkit.interpret.tables import errors_table, mistakes_of, report_text, samples_table
from learnkit.interpret.uncertainty_plots import plot_calibration
from learnkit.report.document import Document, Section, Table
from learnkit.report.notebook import Shown

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

_NO_LOSSES = "There are no losses to sort by; pass `losses`, or make the pass over labelled samples"


class ClassificationInterpretation(Shown):
    """Confusion, losses and heatmaps of one set of predictions.

    The model runs once, when the object is made; images are read again only to be drawn.

    Args:
        learn: the learner; None if no image is ever drawn.
        preds: probabilities (N, C) as in fastai v1, or an `Outputs`, or a loader to run over.
        y: class numbers (N,), or flags (N, C) where a sample may have several labels.
        losses: one per sample (N,).
        dl: where the images come from; the learner's validation loader if None.
        classes: C names; the learner's if None.

    Raises:
        InterpretationError: segmentation, regression, or samples without labels.
    """

    def __init__(
        self,
        learn: Any,
        preds: Any,
        y: Any = None,
        losses: Any = None,
        *,
        dl: Any = None,
        classes: Sequence[str] | None = None,
    ):
        self.learn = learn
        if isinstance(preds, Outputs):
            self.outputs = preds
        elif isinstance(preds, Tensor | np.ndarray):
            if y is None:
                raise InterpretationError("`y` is missing; give the true label of every sample")
            names = classes or (class_names(learn) if learn is not None else None)
            self.outputs = Outputs.from_probs(preds, y, losses, names)
            if self.outputs.multi_label:
                threshold = loss_threshold(getattr(learn, "loss_func", None), preds.shape[1])
                self.outputs = replace(self.outputs, threshold=threshold)
        else:
            dl = Source.of(learn, preds)
            self.outputs = collect_from(learn, dl)
        self.outputs.require_targets()
        self._images_from = dl

    @classmethod
    def from_learner(
        cls,
        learn: Any,
        ds_idx: int = 1,
        dl: Any = None,
        data: Any = None,
        *,
        ds_type: Any = None,
        tta: bool = False,
        act: Callable[[Tensor], Tensor] | None = None,
        progress: bool | None = None,
    ) -> ClassificationInterpretation:
        """Run the learner once over one of its loaders, over `dl`, or over an ImageDataset.

        Args:
            learn: a fastai Learner of a classifier.
            ds_idx: 0 for the training images, 1 for validation, 2 for test.
            dl: any other loader; read in dataset order.
            data: an ImageDataset whose labels the learner knows.
            ds_type: "train", "valid" or "test", which fastai v1 says for `ds_idx`.
            tta: probabilities averaged over augmented images, `learn.tta()`; losses are of these.
            act: makes probabilities of logits, in place of what the loss function says.
            progress: show a bar; None does so if the learner shows bars.

        Raises:
            InterpretationError: another `ds_type`; or `tta` where it cannot be.
        """
        ds_idx = ds_idx if ds_type is None else loader_number(ds_type)
        source = Source.of(learn, dl, ds_idx=ds_idx, data=data)
        outputs = collect_from(learn, source, progress=progress)
        if act is not None:
            outputs = outputs.with_probs(act(outputs.logits))
        if tta:
            if data is not None or list(outputs.classes) != list(names_of(learn.dls) or ()):
                raise InterpretationError(
                    "`tta` averages over one of the learner's loaders, with the classes it was "
                    "trained on; leave `data` out, and interpret learned classes without `tta`"
                )
            outputs = outputs.with_probs(learn.tta(ds_idx=ds_idx, dl=dl)[0])
        return cls(learn, outputs, dl=source)

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of the class numbers."""
        return list(self.outputs.classes)

    @property
    def vocab(self) -> list[str]:
        """`classes`, by the name they have in fastai v2."""
        return self.classes

    @property
    def preds(self) -> Tensor:
        """Probabilities (N, C), in dataset order; fastai v1 calls them `probs`, too."""
        return self.outputs.probs

    probs = preds

    @property
    def y_true(self) -> Tensor:
        """True class numbers (N,), or flags (N, C)."""
        return self.outputs.require_targets()

    @property
    def pred_class(self) -> Tensor:
        """Predicted class numbers (N,), or flags (N, C)."""
        return self.outputs.pred_labels

    @property
    def losses(self) -> Tensor | None:
        """Loss of each sample (N,); None where it is not known."""
        return self.outputs.losses

    @property
    def dl(self) -> Any:
        """The loader the images come from; fastai v1 calls it `data`, too."""
        return self._source.dl

    data = dl

    def __getitem__(self, positions: Any) -> tuple[Tensor, ...]:
        """(inputs, probabilities, truth, predictions, losses) of some samples, as in fastai v2.

        Args:
            positions: a number, a slice, or a list of numbers, in dataset order.
        """
        chosen = torch.arange(len(self.outputs))[positions].reshape(-1)
        inputs = self._source.read(chosen.tolist())[0]
        losses = None if self.losses is None else self.losses[chosen]
        return inputs, self.preds[chosen], self.y_true[chosen], self.pred_class[chosen], losses

    def show_results(self, idxs: Sequence[int], **options: Any) -> np.ndarray:
        """Draw some samples with what is said of them, and their truth; returns the Axes.

        Args:
            idxs: their positions, in dataset order.
            **options: for the grid, such as `figsize`.
        """
        images = self._source.read(list(idxs))[1]
        titles, _, style = loss_titles(self.outputs, list(idxs))
        return plots.plot_image_grid(images, titles, suptitle=SUPTITLE, style=style, **options)

    @cached_property
    def evaluation(self) -> Evaluation:
        """All measures: `.summary`, `.per_class`, `.confusion`."""
        return self.outputs.evaluate()

    def confusion_matrix(self, slice_size: int | None = None) -> np.ndarray:
        """Counts int64 (C, C), rows the truth; (C, 2, 2) where a sample may have several labels.

        `slice_size` was fastai v1's way to save memory; counting needs none.
        """
        targets, preds = self.outputs.targets, self.outputs.pred_labels
        if self.outputs.multi_label:
            return multilabel_confusion(targets, preds)
        return confusion_matrix(targets, preds, len(self.classes))

    def most_confused(
        self, min_val: int = 1, slice_size: int | None = None
    ) -> list[tuple[str, str, int]]:
        """The mistakes made at least `min_val` times: (actual, predicted, n), commonest first.

        Raises:
            InterpretationError: `min_val` is no number, or an image may have several labels.
        """
        if isinstance(min_val, bool) or not isinstance(min_val, int | float | np.number):
            raise InterpretationError(
                f"`min_val` is {min_val!r}; give how often a mistake was made at least, such as 2"
            )
        if self.outputs.multi_label:
            raise InterpretationError(
                "A sample may have several labels, so none is taken for another;"
                " `confusion_matrix()` counts misses and false alarms of each label"
            )
        return mistakes_of(self.confusion_matrix(), self.classes, min_val)

    def plot_confusion_matrix(
        self,
        normalize: bool = False,
        title: str | None = None,
        cmap: str = "Blues",
        slice_size: int | None = None,
        norm_dec: int = 2,
        plot_txt: bool = True,
        return_fig: bool | None = None,
        *,
        ax: Axes | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
    ) -> Axes | np.ndarray | Figure:
        """Draw the confusion matrix; see `learnkit.interpret.plots.plot_confusion`.

        `dpi` are the dots per inch of its figure; None are matplotlib's.

        Returns:
            The Axes (one per label where a sample may have several); the Figure if `return_fig`.
        """
        options = {"normalize": normalize, "cmap": cmap, "norm_dec": norm_dec}
        options |= {"plot_txt": plot_txt, "figsize": figsize} | ({"title": title} if title else {})
        matrix = self.confusion_matrix()
        if not self.outputs.multi_label:
            axes = plots.plot_confusion(matrix, self.classes, ax=ax, **options)
            _set_dpi(axes.figure, dpi)
            return axes.figure if return_fig else axes
        if ax is not None:
            raise InterpretationError(
                f"One `ax` cannot hold the {len(self.classes)} matrices of {len(self.classes)}"
                " labels; leave it out"
            )
        axes = plots.plot_label_confusions(matrix, self.classes, **options)
        _set_dpi(axes[0].figure, dpi)
        return axes[0].figure if return_fig else axes

    def plot_reliability(
        self,
        *,
        before: ClassificationInterpretation | None = None,
        n_bins: int = 15,
        ax: Axes | None = None,
    ) -> Axes:
        """Axes of accuracy over confidence per bin: how far confidences mean what they say.

        Args:
            before: the same images interpreted earlier, as before `learn.calibrate()`; both are
                drawn, each with its calibration error.
            n_bins: bins of confidence, of equal width.
            ax: where to draw; a new figure if None.
        """
        bins = self._calibration_bins(n_bins)
        if before is None:
            return plots.plot_reliability(bins, ax=ax)
        return plot_calibration(before._calibration_bins(n_bins), bins, ax=ax)

    def errors(self) -> pd.DataFrame:
        """Table of the misclassified samples, largest loss first, indexed by position.

        Columns: path (None if unknown), actual, predicted, prob (of the prediction), prob_actual,
        loss. Where a sample may have several labels, both probabilities are of the whole set.
        """
        return errors_table(self.outputs)

    def top_losses(
        self, k: int | None = None, largest: bool = True, items: bool = False
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, list]:
        """The `k` largest (or smallest) losses and their positions; all of them if `k` is None.

        With `items` also the files, None where they are not known.
        """
        if self.outputs.losses is None:
            raise InterpretationError(_NO_LOSSES)
        n = len(self.outputs)
        if k is not None:
            check_count(k, "None for all")
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
        nrows: int | None = None,
        ncols: int | None = None,
    ) -> np.ndarray | Figure:
        """Draw the images with the largest (or smallest) losses.

        Over each image: prediction / actual, below loss / probability of the actual class, the
        file, and whose evidence the heatmap shows. A large loss need not be a mistake: the text
        above the images says how many are; `plot_multi_top_losses` draws mistakes alone.

        Args:
            k: how many, or which ranks (a list or range, 0 the first).
            largest: begin with the largest loss.
            figsize: in inches.
            heatmap: lay the Grad-CAM evidence over each image, beside the image alone.
            heatmap_thresh: fewest cells of a feature map worth drawing; below, a warning says so.
            alpha: opacity of the heatmaps.
            cmap: their colours.
            show_text: write the titles.
            return_fig: return the Figure instead of the Axes.
            explain: "predicted" or "actual" (as in fastai v1): whose evidence the heatmaps
                show. The actual class of a bad mistake often has none, and then no map.
            nrows: rows of the grid, nearly square by default; `ncols` decides if both are given.
            ncols: columns of the grid.

        Returns:
            The Axes (k,).
        """
        order = self.top_losses(None, largest)[1].tolist()
        positions = [order[rank] for rank in ranks_among(k, len(order))]
        for name, number in {"nrows": nrows, "ncols": ncols}.items():
            if number is not None and (not isinstance(number, int) or number < 1):
                raise InterpretationError(f"`{name}` is {number!r}; give a whole number from 1 on")
        n_cols = ncols or (None if nrows is None else -(-len(positions) // nrows))
        how = {"figsize": figsize, "alpha": alpha, "cmap": cmap, "n_cols": n_cols}
        said = mistakes_among(self.outputs, positions) if show_text else None
        explained = (explain, heatmap_thresh) if heatmap else None
        axes = self._draw(positions, said, explained, **how)
        return axes[0].figure if return_fig else axes

    def _draw(
        self,
        positions: Sequence[int],
        said: str | None,
        explained: tuple[str, int] | None,
        **how: Any,
    ) -> np.ndarray:
        """Draw samples; returns the Axes.

        Args:
            positions: theirs, in dataset order.
            said: of all of them, above; None for no text at all.
            explained: whose evidence heatmaps show, and their fewest cells; None for none.
            **how: options of the grid.
        """
        inputs, images = self._inputs(positions)
        titles, names, style = loss_titles(self.outputs, positions)
        if explained is not None:
            classes = explained_classes(self.outputs, positions, explained[0])
            maps = evidence(self.learn.model, inputs, classes, min_cells=explained[1])
            if maps is not None:
                told = heat_titles([names[i] for i in classes.tolist()], maps)
                titles = [f"{title}\n{line}" for title, line in zip(titles, told, strict=True)]
                how["heatmaps"] = maps
        if said is None:
            return plots.plot_image_grid(images, **how)
        suptitle = f"{SUPTITLE}\n{said}" if said else SUPTITLE
        return plots.plot_image_grid(images, titles, suptitle=suptitle, style=style, **how)

    def plot_multi_top_losses(
        self,
        samples: int = 3,
        figsize: tuple[float, float] | None = None,
        save_misclassified: bool = False,
        *,
        heatmap: bool = False,
        heatmap_thresh: int = 16,
        alpha: float = 0.6,
    ) -> np.ndarray | list[Image]:
        """Draw the misclassified images with the largest losses.

        An image is misclassified if its predicted set of labels is not exactly the true one; its
        loss is the mean over the classes.

        Where fewer than `samples` are, the text above the images says so.

        Args:
            samples: how many to draw at most.
            figsize: in inches.
            save_misclassified: see below; nothing is drawn then.
            heatmap: lay the Grad-CAM evidence for the predicted class over each, beside the image.
            heatmap_thresh: fewest cells of a feature map worth drawing; below, a warning says so.
            alpha: opacity of the heatmaps.

        Returns:
            The Axes, at most `samples`; with `save_misclassified` instead the pictures of *all*
            misclassified images, largest loss first.
        """
        order = self.top_losses()[1]
        wrong = order[~self.outputs.correct[order]].tolist()
        if save_misclassified:
            from PIL import Image

            images = self._source.read(wrong)[1] if wrong else []
            return [Image.fromarray((image * 255).round().astype(np.uint8)) for image in images]
        if not wrong[:samples]:
            return plots.plot_image_grid([])
        few = len(wrong) < samples
        said = f"only {len(wrong)} of {number_of(len(order), 'image')} are wrong" if few else ""
        explained = ("predicted", heatmap_thresh) if heatmap else None
        return self._draw(wrong[:samples], said, explained, figsize=figsize, alpha=alpha)

    def samples(self, **which: Any) -> pd.DataFrame:
        """Table of the samples that all conditions hold for, indexed by position.

        Columns as of `errors`, and where the learner detects OOD `ood_score` and `is_ood`.

        Args:
            **which: any of `pred` and `true`, the name of a class or several; `confidence`, bounds
                of the largest probability; `ood`, whether it is flagged; `correct`.

        Raises:
            InterpretationError: an unknown class, no bounds, or `ood` where nothing is flagged.
        """
        return samples_table(self.outputs, ood_limit(self.learn), **which)

    def plot_samples(self, n: int = 24, **which: Any) -> np.ndarray:
        """Draw the samples that `samples` finds, the largest losses first; returns the Axes.

        Args:
            n: how many to draw at most.
            **which: as of `samples`.
        """
        check_count(n, "more than one")
        found = self.samples(**which)
        if self.losses is not None:
            found = found.sort_values("loss", ascending=False, kind="stable")
        positions = found.index[:n].tolist()
        if not positions:
            return plots.plot_image_grid([])
        few = f"{len(positions)} of {number_of(len(found), 'sample')}" if n < len(found) else ""
        return self._draw(positions, few, None)

    def save_html(self, path: Any, *, ood: Any = None, **options: Any) -> Path:
        """Write a page with the verdict, the matrix and the pictures; return its path.

        Args:
            path: the file, see `Evaluation.save_html`.
            ood: images of no class: are they noticed? See `ImageLearner.evaluate`.
            **options: see `Evaluation.save_html`.
        """
        return self._learner.evaluate(self, ood=ood).save_html(path, **options)

    def picture(self, place: int) -> Image:
        """The picture of a sample as the network sees it."""
        from PIL import Image

        (image,) = self._source.read([place])[1]
        return Image.fromarray((image * 255).round().astype(np.uint8))

    def heat(self, places: Sequence[int], numbers: Sequence[int]) -> list[np.ndarray] | None:
        """Grad-CAM maps (h, w) of samples, each for the class of a number; None without any."""
        try:
            return evidence(
                self.learn.model, self._inputs(places)[0], torch.tensor(numbers), min_cells=1
            )
        except InterpretationError:
            return None

    def _inputs(self, places: Sequence[int]) -> tuple[Tensor, list[np.ndarray]]:
        """(inputs of the network, pictures) of samples."""
        inputs, images = self._source.read(places)
        pixels = renormalization(self.learn, self._source.template)
        return inputs if pixels is None else pixels(inputs), images

    def print_classification_report(self) -> None:
        """Print scikit-learn's report; classes without samples count as zeros there."""
        print(report_text(self.outputs))  # noqa: T201  # printing is what it is for

    def __repr__(self) -> str:
        wrong = int((~self.outputs.correct).sum())
        share = self.evaluation.summary["accuracy"]
        return (
            f"ClassificationInterpretation({number_of(len(self.outputs), 'sample')},"
            f" {number_of(len(self.classes), 'class')}, accuracy {share:.4f}, {wrong} wrong)"
        )

    def plot_history(self, ax: Any = None) -> Any:
        """Axes of losses and metrics per epoch of the learner's training."""
        return self._learner.plot_history(ax)

    def plot_ood(self, ood: Any = None, *, ax: Any = None) -> Any:
        """Axes with the OOD scores of these images; see `ImageLearner.plot_ood`."""
        return self._learner.plot_ood(ood, dl=self.outputs, ax=ax)

    def heatmap(self, image: Any, method: str = "gradcam", **options: Any) -> Any:
        """The part of an image that speaks for a class: see `Predictor.heatmap`.

        Args:
            image: the place of one of these images, in dataset order; or any that `predict` takes.
            method: see there.
            **options: see there.

        Raises:
            InterpretationError: There is no image at this place, or its file is not known.
        """
        return self._learner.heatmap(file_at(self.outputs, image), method, **options)

    @property
    def _learner(self) -> Any:
        """The learner, where there is one that knows its history and its threshold."""
        if not hasattr(self.learn, "plot_ood"):
            raise InterpretationError(
                f"`learn` is {self.learn!r}, which keeps neither history nor OOD scores; interpret "
                "an ImageLearner"
            )
        return self.learn

    def document(self) -> Document:
        """The evaluation, and the classes that are confused most."""
        mistakes = [] if self.outputs.multi_label else self.most_confused()[:10]
        confused = Table(mistakes, ("actual", "predicted", "n"))
        return Document([*self.evaluation.document().content, Section("Most confused", [confused])])

    def _calibration_bins(self, n_bins: int) -> CalibrationBins:
        return calibration_bins(self.outputs.probs, self.outputs.targets, n_bins=n_bins)

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


def _set_dpi(figure: Figure, dpi: float | None) -> None:
    if dpi is not None:
        figure.set_dpi(dpi)

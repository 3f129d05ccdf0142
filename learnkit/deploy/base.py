"""The verbs every predictor has: one image, batches, folders and tables, with torch or without."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.continual.fingerprints import Learned
from learnkit.data.image import find_images
from learnkit.data.labelled_images import all_labelled, files_or_images, is_array_of_items
from learnkit.data.labels import ids_of_classes
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.home import Home, take_home_of
from learnkit.deploy.settable import check_assigned
from learnkit.errors import PredictionError, number_of
from learnkit.evaluation.inputs import LabelThreshold
from learnkit.inference.batch import BATCH, predict_stream, prediction_table
from learnkit.inference.class_names import checked_metadata
from learnkit.inference.evaluation import evaluate_predictor
from learnkit.inference.files import FilesReport, predict_to_file
from learnkit.inference.heatmap import Heatmap, explain
from learnkit.inference.model import Model, same_state
from learnkit.inference.monitor import Monitor
from learnkit.inference.prediction import Prediction, Result, knowledge_of, predictions, raised
from learnkit.inference.suggestion import Suggestions, suggest
from learnkit.inference.tta import KEY, VIEWS
from learnkit.report.document import Document, Lines, Paragraph, Span
from learnkit.report.notebook import Shown
from learnkit.report.progress import watched

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Self

    from learnkit.continual.label_issues import LabelErrors
    from learnkit.evaluation.evaluate import Evaluation


_OWN = ("_home", "_monitor")  # what a deep copy does not take along

# What fastai's users type at a learner that came from `load_learner`, and what does that here.
_TRAINS = "a predictor does not train: `ImageLearner.from_bundle(path, data)` does"
_AS_LOADED = "the device is chosen on loading: `load_learner(path, device='cuda')`"
_SHOWS = "`evaluate(images)` measures; pictures of results are in `learn.interpret()`"
_ELSEWHERE = {
    "dls": "a predictor has no loaders: it takes files, `predict_batch(files)`",
    "test_dl": "give the files themselves: `predict_batch(files)` or `get_preds(files)`",
    "export": "`save(path)` writes the bundle",
    "no_bar": "verbs with a progress bar take `progress=False`",
    "eval": "a predictor always predicts as in evaluation",
    **dict.fromkeys(("to", "cpu", "cuda"), _AS_LOADED),
    **dict.fromkeys(("show_results", "interpret", "validate", "summary"), _SHOWS),
    **dict.fromkeys(
        ("fit", "fit_one_cycle", "fit_flat_cos", "fine_tune", "lr_find", "freeze", "unfreeze"),
        _TRAINS,
    ),
    **dict.fromkeys(("loss_func", "opt", "metrics", "recorder", "cbs", "add_cb"), _TRAINS),
}
_ELSEWHERE["data"] = _ELSEWHERE["dls"]


def _images(items: Any) -> Iterable[Any]:
    """`items` one by one; of a single path, a folder or a dictionary the images it stands for."""
    single = isinstance(items, str | bytes | os.PathLike | Mapping)
    return files_or_images(items) if single or is_array_of_items(items) else items


class BasePredictor(Shown):
    """Verbs over a `Model`: images in, predictions out.

    Predicting changes nothing but what its `monitor` has seen, so threads may share a predictor. It
    pickles as the path of the bundle it was loaded from or saved to, for worker processes: it must
    be as it was then. Unpickling opens that bundle, which takes as long as loading it does: hand a
    predictor to each worker once, as an argument of its initializer, rather than with every task.
    What `undo` can take back is what it can in that bundle.

    Attributes:
        record: the model, replaced as a whole by whatever is set.
    """

    needs_torch = True
    _wrap = staticmethod(np.asarray)  # what probabilities are given as
    _home: Home | None = None
    _as_loaded: tuple[Any, ...] = ()
    _monitor: Monitor | None = None

    def __init__(self, record: Model):
        self.record = record

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return self.record.classes

    @property
    def vocab(self) -> tuple[str, ...]:
        """The `classes`, by fastai's name for them."""
        return self.classes

    @property
    def class_ids(self) -> tuple[int, ...]:
        """The id of each class, in the order of `classes`; their places, unless it was given ids.

        A class keeps its id, whatever it is called and whichever others come and go. A new one gets
        the smallest free id above the largest.
        """
        return ids_of_classes(self.record.class_ids, len(self.classes))

    @property
    def preprocessing(self) -> Preprocessing:
        """From a file to the network's input."""
        return self.record.preprocessing

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.record.multi_label

    @property
    def threshold(self) -> LabelThreshold:
        """Probability above which a label counts (multi-label only)."""
        return self.record.threshold

    @property
    def knows_classes(self) -> bool:
        """Whether there is a class to answer with: not before the first images are learned."""
        return self.record.knows_classes

    @property
    def detects_ood(self) -> bool:
        """Whether predictions say how far out of distribution an image is."""
        return self.record.detects_ood

    @property
    def tells_unusual(self) -> bool:
        """The former name of `detects_ood`."""
        warnings.warn(
            "`tells_unusual` is called `detects_ood` now", DeprecationWarning, stacklevel=2
        )
        return self.detects_ood

    @property
    def variant(self) -> str | None:
        """Backend and precision of a converted network; None for the weights as trained."""
        return self.record.variant

    @property
    def metadata(self) -> dict[str, Any]:
        """What travels in the bundle beside the model; anything JSON can hold."""
        return self.record.metadata

    @metadata.setter
    def metadata(self, value: Mapping[str, Any]) -> None:
        self.record = self.record.replace(metadata=checked_metadata(value))

    @property
    def state(self) -> tuple[Any, ...]:
        """What every change replaces, for `is_changed`."""
        return self.record.state

    @property
    def digest(self) -> str | None:
        """SHA-256 (hex) of the bundle it was loaded from, None if it was made otherwise."""
        return self.record.digest

    @digest.setter
    def digest(self, value: str | None) -> None:
        self.record = self.record.replace(digest=value)
        self._as_loaded = () if value is None else self.state

    @property
    def is_changed(self) -> bool:
        """Whether it has learned, or was set otherwise, since `digest` was noted."""
        return self.digest is not None and not same_state(self, self._as_loaded)

    def load(self, source: Any) -> np.ndarray:
        """An image as the network takes it, uint8 (H, W, channels).

        Raises:
            ImageReadError: the image cannot be read; the message names it.
        """
        return self.preprocessing.pixels(source)

    @property
    def tta(self) -> int:
        """From how many views an image is predicted (test-time augmentation); see `set`."""
        n = self.record.metadata.get(KEY, 1)
        return n if type(n) is int and 1 <= n <= VIEWS else 1  # a bundle may say anything

    def try_loaded(self, images: Sequence[np.ndarray], tta: int | None = None) -> list[Result]:
        """For each image that `load` gave its prediction, or a PredictionError.

        `tta` is as in `predict_batch`.
        """
        n_views = self.tta if tta is None else tta
        return predictions(self.record, np.stack(list(images)), self._wrap, n_views)

    def observe(self, results: Sequence[Result]) -> None:
        """Show predictions to the monitor, if there is one; `predict` and its kin have done so."""
        if self._monitor is not None and (scoring := knowledge_of(self.record)[0]) is not None:
            self._monitor.observe(results, scoring)

    def predict(self, source: Any) -> Prediction:
        """The prediction for one image: path, bytes, PIL image, array (H, W[, C]).

        Where there is torch, a tensor (C, H, W) will do, too. It is computed alone, which is the
        fastest; in the batches of `predict_files` the numbers have other last bits.

        Raises:
            ImageReadError: the image cannot be read; the message names it.
            PredictionError: the network's output is not finite.
        """
        (result,) = self.try_loaded([self.load(source)])
        self.observe([result])
        return raised(result)

    __call__ = predict

    def predict_batch(
        self, items: Iterable[Any], bs: int = BATCH, *, n_workers: int = 2, tta: int | None = None
    ) -> list[Prediction]:
        """One prediction per item, in order, as `predict_files`; no items, no predictions.

        With `tta` (test-time augmentation) probabilities are the mean over so many views of each
        image, at most 10: itself, mirrored, and crops of 7/8 of its sides, mirrored in turn. OOD
        scores and p-values are those of the image itself, for whose like their threshold was
        fitted; prediction sets were calibrated without, too. Default is what `set(tta=)` has set.

        Raises like `predict`, and PredictionError for another number of views.
        """
        stream = predict_stream(self, _images(items), bs=bs, n_workers=n_workers, tta=tta)
        return [raised(result) for _, result in stream]

    def get_preds(
        self, items: Iterable[Any], bs: int = BATCH, *, n_workers: int = 2, tta: int | None = None
    ) -> tuple[np.ndarray, None]:
        """(probabilities (N, C) of `predict_batch`, None for targets), as fastai's for `test_dl`.

        A tensor where there is torch. Raises like `predict`.
        """
        found = self.predict_batch(items, bs, n_workers=n_workers, tta=tta)
        rows = [np.asarray(one.probs) for one in found]
        return self._wrap(
            np.stack(rows) if rows else np.empty((0, len(self.classes)), np.float32)
        ), None

    def predict_folder(
        self,
        folder: str | os.PathLike,
        recursive: bool = True,
        bs: int = BATCH,
        n_workers: int = 2,
        progress: bool = True,
        *,
        probs: bool = True,
        tta: int | None = None,
    ) -> pd.DataFrame:
        """`predict_files` of the images in `folder`, sorted by path.

        Raises:
            DataError: there is no such folder.
        """
        found = find_images(folder)
        if not recursive:
            found = [path for path in found if path.parent == Path(folder)]
        how = {"bs": bs, "n_workers": n_workers, "progress": progress, "probs": probs, "tta": tta}
        return self.predict_files(found, **how)

    def predict_files(
        self,
        paths: Iterable[Any],
        *,
        bs: int = BATCH,
        n_workers: int = 2,
        progress: bool = True,
        probs: bool = True,
        out: str | os.PathLike | None = None,
        resume: bool = True,
        tta: int | None = None,
    ) -> pd.DataFrame | FilesReport:
        """One row per file: path, verdict, label, confidence, error, then `p(NAME)` per class.

        The verdict is the label, or UNKNOWN where the image is out of distribution. A file that
        cannot be read has its reason in `error`, no label and NaN for numbers; the rest are
        predicted. Memory holds two batches of images, whatever the number of files. In the
        continual state is_ood, ood_score and p_value stand between error and probabilities.

        A row is the same to the bit whatever files are beside it, how many, in which order, and
        which of them cannot be read: every forward pass has `bs` images, the last one being filled
        up. Another `bs`, machine or version of the backend may give other last bits, as `predict`
        and the server do, which compute as many images as there are at the moment.

        Args:
            paths: files, or whatever else `predict` takes.
            bs: images per forward pass.
            n_workers: decoding threads; 0 decodes between the passes.
            progress: show a progress bar.
            probs: add a column per class.
            out: write the rows to this .parquet, .csv or .jsonl file instead, each with the model's
                digest, and return a report: for any number of files, see `predict_to_file`.
            resume: with `out`, go on where an interrupted call was.
            tta: views of each image over which probabilities are averaged, see `predict_batch`.

        Raises:
            PredictionError: `out` with other work in it than this, or images that are no files.
            PredictionFileError: `out` cannot be written.
        """
        paths = _images(paths)
        if out is not None:
            return predict_to_file(
                self,
                paths,
                out,
                resume=resume,
                bs=bs,
                n_workers=n_workers,
                progress=progress,
                probs=probs,
                tta=tta,
            )
        paths = list(paths)
        stream = predict_stream(self, paths, bs=bs, n_workers=n_workers, tta=tta)
        return prediction_table(
            watched(stream, len(paths), progress),
            self.classes,
            probs=probs,
            ood=self.detects_ood,
        )

    def suggest(
        self, images: Any, n: int = 20, *, n_workers: int = 2, progress: bool = True
    ) -> Suggestions:
        """Up to `n` of `images` to label next, the most valuable first, each with a reason.

        An image is worth its label if many images the model is in doubt about are like it, and none
        is that it has learned, or that was suggested before it: uncertainty, novelty and diversity
        in one number, see `uncertainty.coverage`. A model that knows no class yet suggests images
        that stand for many. Nothing is changed; label them, and `extend`.

        Args:
            images: unlabelled images of any kind `predict` takes, a folder, or a dataset.
            n: how many to suggest at most; all, if there are fewer images.
            n_workers: decoding threads; 0 decodes between the passes.
            progress: show progress bars.

        Returns:
            A sequence with `items` for `extend`, `table()`, `plot()`, and the `failures` of images
            that cannot be read, which are left out.

        Raises:
            DataError: no images, or `n` is no whole number of 1 or more.
            UnreadableImagesError: none of the images can be read.
            PredictionError: the network gives no features.
        """
        return suggest(self.record, images, n, n_workers=n_workers, progress=progress)

    def label_errors(
        self,
        data: Any,
        labels: Any = None,
        *,
        group: Any = None,
        bs: int = BATCH,
        n_workers: int = 2,
        progress: bool = True,
    ) -> LabelErrors:
        """Labels of images that are probably wrong, the most suspicious first; needs torch.

        Each image is compared with the class statistics of all others, exactly: nothing is trained,
        and what the model itself has learned plays no part, its network alone does. A network that
        was trained on these very images, wrong labels included, believes them more than it should.

        Args:
            data: labelled images of any kind `extend` takes; of a dataset all splits.
            labels: as for `extend`.
            group: what belongs together, bursts or views of a part, and is left out together.
            bs: images per forward pass.
            n_workers: decoding threads; 0 decodes between the passes.
            progress: show a progress bar.

        Returns:
            `LabelErrors`: a `frame` in that order, its `suspects`, its `outliers`, and how many
            right labels to expect among the first so many.

        Raises:
            DataError: labels are missing, or all of one class, or no class has two images.
            UnreadableImagesError: images cannot be read; all of them are named.
            PredictionError: the network gives no features.
        """
        from learnkit.inference.features import find_label_errors

        images = all_labelled(data, labels, group=group)
        run = {"bs": bs, "n_workers": n_workers, "progress": progress}
        return find_label_errors(self.record, images, **run)

    def heatmap(
        self,
        image: Any,
        method: str = "gradcam",
        target: str | Sequence[str] | None = None,
        *,
        layer: Any = None,
        progress: bool = True,
        **options: int,
    ) -> Heatmap:
        """The part of an image that speaks for a class: a `Heatmap` with `maps`, `plot`, `share`.

        Args:
            image: of any kind `predict` takes.
            method: "gradcam"; "gradcam++", for several objects of a class; "guided", Grad-CAM down
                to the pixels; or "occlusion", what confidence is lost where a disc covers the
                image, for any network, converted ones too: some thousand images long.
            target: name of the class, or several; default what is predicted.
            layer: module whose feature map to explain, itself or its name in the network; default
                what the body gives.
            progress: show a progress bar, for occlusion.
            options: of occlusion, `feature_size=30`, diameter of the discs in pixels, and
                `sampling_size=7`, pixels from one to the next.

        Raises:
            ImageReadError: the image cannot be read.
            InterpretationError: an unknown method, option, class or layer; gradients of a converted
                network; a network without a feature map.
            PredictionError: the network's output is not finite.
        """
        how = {"method": method, "target": target, "layer": layer, "progress": progress}
        return explain(self.record, self.load(image), **how, **options)

    def evaluate(
        self,
        dataset: Any,
        *,
        ood: Any = None,
        measures: Sequence[str] | None = None,
        good: Sequence[str] | None = None,
        learned: Any = None,
        bs: int = BATCH,
        n_workers: int = 2,
        progress: bool = True,
    ) -> Evaluation:
        """How good the predictions for all images of `dataset` are; one pass.

        Where the model detects images out of distribution, the summary holds `false_alarm_rate`,
        the share of `dataset` flagged as unknown. Its notes say how many of the images the model is
        known to have learned, by features of the same `bs` and backend, and where many are near
        copies of each other.

        Args:
            dataset: labelled images: an ImageDataset, a folder with a folder per class, a table
                with the columns path and label, or HALCON's DLDataset.
            ood: images that are of no class the model knows: a folder, files, or a dataset. The
                summary then tells how well they are told apart: `detection_rate` is the share of
                them flagged, `auroc` the area under the ROC curve, `fpr_at_95_tpr` the share of
                `dataset` that a threshold would flag which finds 95 % of them.
            measures: names of the measures wanted; default all. See `evaluate`.
            good: names of the classes that mean a part is good, for `escape_rate` and
                `false_reject_rate`; a part that is flagged goes to a person and is not passed.
                Default what the model's card says, if anything.
            learned: the images it was trained on, as `dataset` is given: the page of `save_html`
                shows beside a mistake those that are most alike. Without them it names the classes
                of the remembered features that are; a model remembers no pictures.
            bs: images per forward pass.
            n_workers: decoding threads; 0 decodes between the passes.
            progress: show a progress bar.

        Raises:
            DataError: `dataset` has no labels, or some this model does not know.
            EvaluationError: an unknown measure or class, said before any image is read.
            UnreadableImagesError: images cannot be read; all of them are named, and the error's
                `evaluation` is that of the others.
            ContinualNotInitializedError: `ood`, and the model detects none such.
        """
        unwatched = copy.copy(self)  # the monitor is for images as they come
        run = {"bs": bs, "n_workers": n_workers, "progress": progress}
        wanted = {"ood": ood, "measures": measures, "good": good, "learned": learned}
        return evaluate_predictor(unwatched, dataset, **wanted, **run)

    def _learned(self) -> Learned | None:
        """What images that come again are known by; None where nobody knows."""
        return None if self.record.ood is None else Learned.of(self.record.ood.knowledge)

    @property
    def is_monitored(self) -> bool:
        """Whether `monitor` was asked for, and sees what is predicted."""
        return self._monitor is not None

    def monitor(
        self,
        *,
        images_per_false_alarm: int | None = None,
        file: str | os.PathLike | None = None,
    ) -> Monitor:
        """The monitor of drift, which sees every image predicted from the first call on.

        It says whether the images, all of them or those taken for a class, are still like those the
        model knows. It sees what `predict`, `predict_batch`, `predict_files`, `predict_folder` and
        a server predict; not what `evaluate`, `suggest`, `try_tensors` or a copy do. It begins anew
        when the model learns, or promises class by class from now on (`per_class`) or no longer.

        Args:
            images_per_false_alarm: without drift, the probability of an alarm within m images is at
                most m by this number; default 10,000.
            file: where it keeps what it saw, to go on from there after a restart; default nowhere.
                With either of these a new monitor takes the place of the one there was.

        Raises:
            PredictionError: the model does not detect images out of distribution; a number below
                100, or another than `file` was made with; `file` is no path.
            BundleCorruptError: `file` was not written by a monitor.
            PredictionFileError: `file` cannot be read, or its folder is not there.
        """
        scoring = knowledge_of(self.record)[0]
        if scoring is None:
            raise PredictionError(
                "drift shows in OOD scores, and this model detects no images out of distribution; "
                "export one after init_continual() or fit_ood()"
            )
        if self._monitor is None or images_per_false_alarm is not None or file is not None:
            n = 10_000 if images_per_false_alarm is None else images_per_false_alarm
            now = lambda: knowledge_of(self.record) if self.record.knows_classes else (None, ())
            self._monitor = Monitor(scoring, images_per_false_alarm=n, file=file, now=now)
        return self._monitor

    def __setattr__(self, name: str, value: Any) -> None:
        # the first assignment is the record itself, by which the others are checked
        if "record" in self.__dict__:
            check_assigned(self, name)
        super().__setattr__(name, value)

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._monitor = None
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        # before the parts are copied: what leads back here is to get this copy
        memo[id(self)] = new
        own = {name: value for name, value in self.__dict__.items() if name not in _OWN}
        new.__dict__.update(copy.deepcopy(own, memo))
        take_home_of(new, self)
        return new

    def __getattr__(self, name: str) -> Any:
        own = getattr(type(self), name, None)
        if isinstance(own, property):  # one that refused with an AttributeError of its own
            return own.__get__(self)
        where = f"; {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{where}")

    def _about(self) -> str:
        """Size of images and names of classes that are an answer, for `repr`."""
        height, width = self.preprocessing.size
        known = self._answers()
        names = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
        counted = number_of(len(known), "label" if self.multi_label else "class")
        return f"{height}x{width} px, {counted}{f': {names}' if names else ''}"

    def _answers(self) -> list[str]:
        """Classes that can be an answer: one forgotten or merged away keeps its place alone."""
        head, stored = self.record.head, self.record.stored
        if head is not None:
            return [name for name, n in head.n_images.items() if n]
        if stored is None or not stored.labels:
            return list(self.classes)
        return [self.classes[place] for place in np.flatnonzero(np.isfinite(stored.bias))]

    def document(self) -> Document:
        """Its `repr`, and its digest if it is of a bundle."""
        digest = [Span(f"sha256 {self.digest}", "faint")] if self.digest else []
        return Document([Paragraph(Lines((Span(repr(self), "code"), *digest)))])

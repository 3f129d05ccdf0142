"""A predictor's verbs: one image, batches, folders, tables; with torch or without."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnkit.data.image import find_images
from learnkit.data.read_images import watched
from learnkit.inference.batch import Result, predict_stream, prediction_table
from learnkit.inference.files import FilesReport, predict_to_file
from learnkit.inference.prediction import Prediction

if TYPE_CHECKING:
    import pandas as pd


class Predicting:
    """What a predictor says of images, one or many; see `bulk.Predicts` for what it needs."""

    def predict(self, source: Any) -> Prediction:
        """The prediction for one image: path, bytes, PIL image, array (H, W[, C]).

        Where there is torch, a tensor (C, H, W) will do, too.

        Raises:
            ImageReadError: the image cannot be read; the message names it.
            PredictionError: the network's output is not finite.
        """
        (result,) = self.try_loaded([self.load(source)])
        return raised(result)

    __call__ = predict

    def predict_batch(
        self, items: Iterable[Any], bs: int = 64, *, n_workers: int = 2
    ) -> list[Prediction]:
        """One prediction per item, in order; no items, no predictions. Raises like `predict`."""
        stream = predict_stream(self, items, bs=bs, n_workers=n_workers)
        return [raised(result) for _, result in stream]

    def predict_folder(
        self,
        folder: str | os.PathLike,
        recursive: bool = True,
        bs: int = 64,
        n_workers: int = 2,
        progress: bool = True,
        *,
        probs: bool = True,
    ) -> pd.DataFrame:
        """`predict_files` of the images in `folder`, sorted by path.

        Raises:
            DataError: there is no such folder.
        """
        found = find_images(folder)
        if not recursive:
            found = [path for path in found if path.parent == Path(folder)]
        return self.predict_files(found, bs=bs, n_workers=n_workers, progress=progress, probs=probs)

    def predict_files(
        self,
        paths: Iterable[Any],
        *,
        bs: int = 64,
        n_workers: int = 2,
        progress: bool = True,
        probs: bool = True,
        out: str | os.PathLike | None = None,
        resume: bool = True,
    ) -> pd.DataFrame | FilesReport:
        """One row per file, in order: path, label, confidence, error, then `p(NAME)` per class.

        A file that cannot be read has its reason in `error`, no label and NaN for numbers; the rest
        are predicted. Memory holds two batches of images, whatever the number of files. In the
        continual state is_ood, ood_score and p_value stand between error and probabilities.

        Args:
            paths: files, or whatever else `predict` takes.
            bs: images per forward pass.
            n_workers: decoding threads; 0 decodes between the passes.
            progress: show a progress bar.
            probs: add a column per class.
            out: write the rows to this .parquet, .csv or .jsonl file instead, each with the model's
                digest, and return a report: for any number of files, see `predict_to_file`.
            resume: with `out`, go on where an interrupted call was.

        Raises:
            PredictionError: `out` with other work in it than this, or images that are no files.
            PredictionFileError: `out` cannot be written.
        """
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
            )
        paths = list(paths)
        stream = predict_stream(self, paths, bs=bs, n_workers=n_workers)
        return prediction_table(
            watched(stream, len(paths), progress),
            self.classes,
            probs=probs,
            ood=self.detects_ood,
        )

    def _about(self) -> str:
        """Size of images and class names, for `repr`."""
        height, width = self.preprocessing.size
        names = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        kind = "labels" if self.multi_label else "classes"
        return f"{height}x{width} px, {len(self.classes)} {kind}: {names}"


def raised(result: Result) -> Prediction:
    """The prediction; an error that stands in its place is raised."""
    if isinstance(result, Prediction):
        return result
    raise result

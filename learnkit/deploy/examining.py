"""A predictor's verbs that find out rather than predict: features, and how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learnkit.continual.classifier import check_detects_ood
from learnkit.data.labelled_images import files_or_images, image_paths
from learnkit.data.read_images import watched
from learnkit.deploy.many import raised
from learnkit.inference.batch import predict_stream
from learnkit.inference.evaluation import encoded_labels, with_ood_measures
from learnkit.inference.features import BATCH, feature_rows
from learnkit.inference.prediction import Prediction

if TYPE_CHECKING:
    from learnkit.data.dataset import ImageDataset
    from learnkit.evaluation.evaluate import Evaluation


class Examining:
    """What `Predictor` finds out about many images, and about itself from them."""

    def features(
        self, items: Any, *, bs: int = BATCH, n_workers: int = 2, progress: bool = True
    ) -> Tensor:
        """Pooled features float32 (N, D) of the network's body, one row per item, in order.

        An image's features do not depend, to the bit, on the images beside it: every forward pass
        has `bs` images. Another `bs`, machine or number of threads may change the last bits.

        Args:
            items: images of any kind `predict` takes, a folder, or a dataset.
            bs: images per forward pass.
            n_workers: decoding threads; 0 decodes between the passes.
            progress: show a progress bar.

        Raises:
            UnreadableImagesError: images cannot be read; all of them are named.
            PredictionError: the network has no feature map, or gives features that are not finite.
        """
        items = files_or_images(items)
        return feature_rows(self.network, items, bs=bs, n_workers=n_workers, progress=progress)

    def evaluate(
        self,
        dataset: ImageDataset,
        *,
        ood: Any = None,
        bs: int = 64,
        n_workers: int = 2,
        progress: bool = True,
    ) -> Evaluation:
        """How good the predictions for all images of `dataset` are; one pass.

        Where the model tells unusual images, the summary also holds `false_alarm_rate`, the share
        of `dataset` flagged as unknown.

        Args:
            dataset: labelled images.
            ood: images that are of no class the model knows: a folder, files, or a dataset. The
                summary then tells how well they are told apart: `detection_rate` is the share of
                them flagged, `auroc` the area under the ROC curve, `fpr_at_95_tpr` the share of
                `dataset` that a threshold would flag which finds 95 % of them.
            bs: images per forward pass.
            n_workers: decoding threads; 0 decodes between the passes.
            progress: show a progress bar.

        Raises:
            DataError: `dataset` has labels this model does not know.
            ImageReadError: an image cannot be read; the message names it.
            ContinualNotInitializedError: `ood`, and the model cannot tell unusual images.
        """
        from learnkit.evaluation.evaluate import evaluate

        targets = encoded_labels(dataset, self.classes, self.multi_label)
        strange = [] if ood is None else image_paths(ood)
        if ood is not None:
            check_detects_ood(self.ood)
        run = {"bs": bs, "n_workers": n_workers, "progress": progress}
        found = self._predicted(dataset.paths, **run)
        rows = [prediction.probs for prediction in found]
        evaluation = evaluate(
            torch.stack(rows) if rows else torch.empty(0, len(self.classes)),
            targets,
            self.classes,
            multi_label=self.multi_label,
            threshold=self.threshold,
        )
        if not self.detects_ood:
            return evaluation
        return with_ood_measures(evaluation, found, self._predicted(strange, **run))

    def _predicted(
        self, paths: Sequence[Any], *, bs: int, n_workers: int, progress: bool
    ) -> list[Prediction]:
        stream = predict_stream(self, paths, bs=bs, n_workers=n_workers)
        return [raised(result) for _, result in watched(stream, len(paths), progress)]

"""The predictor: verbs over a model that answers, learns on, and becomes a faster one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from learnkit.backends.ort_session import ONNX_DEVICES
from learnkit.backends.torch_session import Network, channels_last, checked_device
from learnkit.bundle.read import read
from learnkit.bundle.siblings import at_hand
from learnkit.bundle.variant import FLOAT32
from learnkit.bundle.write import base_files, write
from learnkit.continual.change_report import AuditLog, ChangeReport, with_notes
from learnkit.continual.classifier import (
    ContinualClassifier,
    check_continual,
    check_detects_ood,
    continual_head,
)
from learnkit.continual.knowledge import UNDO_LEVELS
from learnkit.continual.ood_detector import OodDetector, checked_detector
from learnkit.data.labelled_images import (
    Labelled,
    files_or_images,
    labelled_images,
    parted,
    with_features,
)
from learnkit.data.preprocess import Preprocessing, check_batch, note_on_cut
from learnkit.deploy.base import BasePredictor
from learnkit.deploy.fastai_export import load_pickle, pickle_at
from learnkit.deploy.home import home_of, last_seen, pickled, take_home_of
from learnkit.deploy.hub_bundle import located, publish
from learnkit.deploy.settable import checked_reading, set_fields
from learnkit.errors import OptimizedModelError, OptimizeError
from learnkit.inference.batch import BATCH
from learnkit.inference.calibration import calibrate_detector
from learnkit.inference.class_names import (
    checked_class_ids,
    checked_metadata,
    checked_threshold,
    head_classes,
)
from learnkit.inference.features import check_same_features, feature_rows, learning_model
from learnkit.inference.model import Model
from learnkit.inference.prediction import Result, logits_of, predictions
from learnkit.report.document import Document
from learnkit.storage.archive import packed, unpack

if TYPE_CHECKING:
    from learnkit.optimize.conversion_report import ConversionReport
    from learnkit.optimize.gates import Gates


@overload
def load_learner(
    path: str | os.PathLike | bytes,
    file: str | None = None,
    *,
    sha256: str | None = None,
    device: str | torch.device = "cpu",
    allow_pickle: Literal[False] = False,
    variant: str | None = None,
    threads: int | None = None,
    revision: str | None = None,
) -> Predictor: ...
@overload
def load_learner(
    path: str | os.PathLike, file: str | None = None, *, allow_pickle: bool, **how: Any
) -> Any: ...
def load_learner(
    path: str | os.PathLike | bytes,
    file: str | None = None,
    *,
    sha256: str | None = None,
    device: str | torch.device = "cpu",
    allow_pickle: bool = False,
    variant: str | None = None,
    threads: int | None = None,
    revision: str | None = None,
) -> Any:
    """The `Predictor` in the bundle at `path`, checked before use: hashes, tensors, probe images.

    Args:
        path: folder written by `learn.export` or `Predictor.save`; or "hf-hub:OWNER/NAME", which
            is fetched into the cache of the Hugging Face hub; or what `to_bytes` returned.
        file: its name in `path`, as in fastai v1; default `path` itself.
        sha256: what `save` returned (`Predictor.digest`): nothing else is accepted.
        device: where the network runs.
        allow_pickle: also open fastai's `export.pkl`. That RUNS whatever code its author put in;
            fastai is imported, and its Learner is returned.
        variant: what of the bundle to run, such as "onnxruntime-int8", or "float32" for the weights
            as they were trained; default what it was saved from. Each knows what it has learned
            itself: a warning says if another one beside it has learned since.
        threads: processor threads one prediction of an optimised variant may use; default all this
            process may use.
        revision: branch, tag or commit on the hub, also as "hf-hub:OWNER/NAME@REVISION"; default
            main. With `sha256` nothing but that bundle is accepted, whatever stands there.

    Raises:
        BundleNotFoundError: no bundle there, or no way to the hub.
        BundleCorruptError: damaged, altered, or not the one pinned by `sha256`.
        BundleVersionError: written in a format newer than this learnkit reads.
        BundleProbeError: the network does not give the recorded logits here.
        BundleError: a pickle, and `allow_pickle` is not set; or no such variant.
        BackendUnavailableError: nothing here runs it on `device`.
        MissingExtraError: the variant's backend is not installed; the message has the pip line.
    """
    if isinstance(path, bytes):
        how = {"variant": variant, "sha256": sha256, "device": str(device), "threads": threads}
        return _of_bytes(path, how)
    path = located(path, file, revision=revision, sha256=sha256)
    if pickle_file := pickle_at(Path(path)):
        return load_pickle(pickle_file, sha256, device, allow_pickle)
    record = read(path, variant=variant, sha256=sha256, device=str(device), threads=threads)
    predictor = Predictor.of(record)
    # set again, as the setter notes the state that `is_changed` compares with
    predictor.digest = record.digest
    predictor._home = home_of(predictor, path, str(record.digest))
    return predictor


def _of_bytes(data: bytes, how: dict[str, Any]) -> Predictor:
    """The predictor in a bundle that is bytes; it is in no folder then."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(data, Path(folder))
        record = read(folder, **how)
        # their files into memory, while the folder is there
        predictor = Predictor.of(record.replace(siblings=at_hand(record.siblings)))
    predictor.digest = record.digest
    return predictor


def opened_learner(
    path: str, digest: str, variant: str | None, threads: int | None, device: str
) -> Predictor:
    """What a pickle of a `Predictor` calls."""
    given: dict[str, Any] = {"sha256": digest, "threads": threads, "device": device}
    # with None the bundle's default would open, which may be a variant
    return load_learner(path, variant=variant or FLOAT32, **given)


class Predictor(BasePredictor):
    """Verbs over a network with its preprocessing and class names: it predicts and learns.

    Predicting changes nothing, so threads may share a predictor. A model that belongs to the
    predictor alone (`owns_model`, as after `load_learner`) is put into eval mode once and runs
    without locks. A model shared with a learner may be in training mode: it is put into eval mode
    for each forward pass, one pass at a time, and left as it was found.

    What it learns in the continual state is learned whole or not at all: after an exception,
    whichever, the model is as before. While a change is made, other threads go on predicting with
    what was known before it; several threads may make changes, one takes place after the other.

    After `optimize` it runs a converted network. It predicts, tells images out of distribution,
    learns and unlearns as before; only `device`, `threads`, `metadata`, `class_names` and
    `ood_threshold` may be set.

    Args:
        model: gives logits (N, C) for normalised float32 images (N, channels, H, W).
        preprocessing: from a file to the network's input.
        classes: the C class names, all different. A head in the continual state knows its own.
        multi_label: an image may have several labels, or none.
        threshold: a label counts above this probability, if `multi_label`; one, or one per class.
        device: where the model is moved to and runs; None leaves it where it is.
        metadata: anything JSON can hold; travels in the bundle.
        owns_model: nobody else uses `model`.
        detector: tells images out of distribution beside a trained head, as `learn.fit_ood` makes
            it.
        class_ids: an id for each of the first classes; later ones follow the largest. None takes
            their places.

    Raises:
        PredictionError: class names that are empty, twice there, no strings or not the head's own;
            `threshold` outside (0, 1); a `detector` beside a head that needs none; `class_ids` that
            are no different whole numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        classes: Sequence[str] | None = None,
        *,
        multi_label: bool = False,
        threshold: float | Sequence[float] = 0.5,
        device: str | torch.device | None = None,
        metadata: Mapping[str, Any] | None = None,
        owns_model: bool = False,
        detector: OodDetector | None = None,
        class_ids: Sequence[int] | None = None,
    ):
        model = model if device is None else model.to(checked_device(device))
        head = continual_head(model)
        names = head_classes(head, classes, multi_label)
        super().__init__(
            Model(
                Network(model, preprocessing, owned=owns_model, continual=head is not None),
                preprocessing,
                names,
                multi_label=multi_label,
                threshold=checked_threshold(threshold, len(names)),
                head=head,
                detector=checked_detector(detector, head, multi_label),
                metadata=checked_metadata(metadata),
                class_ids=checked_class_ids(class_ids),
            )
        )

    _report: ConversionReport | None = None
    _wrap = staticmethod(torch.from_numpy)

    @classmethod
    def of(cls, record: Model) -> Predictor:
        """The predictor over a record."""
        predictor = cls.__new__(cls)
        BasePredictor.__init__(predictor, record)
        return predictor

    @property
    def network(self) -> Any:
        """The session that runs the network."""
        return self.record.network

    @property
    def model(self) -> nn.Module:
        """The network itself.

        Raises:
            OptimizedModelError: a converted one, which is no module of torch.
        """
        if self.variant is not None:
            raise OptimizedModelError(
                "an optimised model has no network of torch to look into; for that take the "
                "float32 model: load_learner(path, variant='float32')"
            )
        return self.network.model

    @property
    def continual(self) -> ContinualClassifier | None:
        """The head that keeps class statistics; None if the model is not in the continual state."""
        return self.record.head

    @property
    def audit(self) -> AuditLog:
        """What was changed, when, how many images and what it led to; the last 1,000 changes."""
        return check_continual(self.continual).audit

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The names that `restore` knows."""
        return check_continual(self.continual).snapshots

    @property
    def detector(self) -> OodDetector | None:
        """What tells images out of distribution beside a trained head, if there is one."""
        return self.record.detector

    @detector.setter
    def detector(self, value: OodDetector | None) -> None:
        detector = checked_detector(value, self.continual, self.multi_label)
        self.record = self.record.replace(detector=detector)

    @property
    def ood(self) -> ContinualClassifier | None:
        """What tells images out of distribution: the continual head, or the detector."""
        return self.record.ood

    @property
    def probes(self) -> Tensor | None:
        """Preprocessed images uint8 (n, channels, H, W) that travel with the model."""
        return self.record.probes

    @probes.setter
    def probes(self, value: Tensor | None) -> None:
        self.record = self.record.replace(probes=value)

    @property
    def device(self) -> Any:
        """Where the network runs: torch's device, or the name of one that torch does not know."""
        return name if (name := self.network.device) in ONNX_DEVICES else torch.device(name)

    @property
    def threads(self) -> int:
        """Processor threads one prediction may use."""
        return self.network.threads

    @property
    def report(self) -> ConversionReport | None:
        """What the conversion cost; None for weights as trained, or if it was lost."""
        if self._report is None and self.record.report is not None:
            from learnkit.optimize.conversion_report import ConversionReport

            self._report = ConversionReport.from_dict(dict(self.record.report), "`report`")
        return self._report

    @property
    def has_learned(self) -> bool:
        """Whether it knows other things, or other names, than the float32 weights' own head."""
        return self.record.has_learned

    def logits(self, images: Tensor) -> Tensor:
        """The outputs float32 (N, C), before softmax or sigmoid.

        Args:
            images: uint8 (N, channels, H, W), as `preprocessing.load` gives them; N may be 0.

        Raises:
            PredictionError: the network gives no (N, C).
        """
        return logits_of(self.record, self._pixels(images))

    def try_tensors(self, images: Tensor) -> list[Result]:
        """For each of `images` uint8 (N, channels, H, W) its prediction, or a PredictionError."""
        return predictions(self.record, self._pixels(images), self._wrap, self.tta)

    def features(
        self, items: Any, *, bs: int = BATCH, n_workers: int = 2, progress: bool = True
    ) -> Tensor:
        """Pooled features float32 (N, D) of the network's body, one row per item, in order.

        An image's features do not depend, to the bit, on the images beside it: every forward pass
        has `bs` images. Another `bs`, machine or version of torch may change the last bits.

        Args:
            items: images of any kind `predict` takes, a folder, or a dataset.
            bs: images per forward pass.
            n_workers: decoding threads; 0 decodes between the passes.
            progress: show a progress bar.

        Raises:
            UnreadableImagesError: images cannot be read; all of them are named.
            PredictionError: the network has no feature map, or gives features that are not finite.
        """
        run = {"bs": bs, "n_workers": n_workers, "progress": progress}
        return feature_rows(self.network, self.preprocessing, files_or_images(items), **run)

    def extend(
        self,
        data: Any,
        labels: Any = None,
        *,
        reuse_names: bool = False,
        again: bool = False,
        group: Any = None,
        **reading: Any,
    ) -> ChangeReport:
        """Learn new classes, or more of known ones, from new images alone; return what changed.

        An image counts once, however often it comes; the report says how many were learned already.

        Args:
            data: an ImageDataset, of which the training images (all, if it is not split) are
                learned and the validation images decide threshold and confidence; a folder with
                one folder per class; a DataFrame with the columns path and label; or images of any
                kind `predict` takes.
            labels: one name per image, `{file: name}`, or one for all; datasets have their own.
            reuse_names: take a name that a class had before `rename` or `merge_classes` for the
                name of another class.
            again: count images once more that their class has learned before. They are known by
                their features, as long as these are computed by the same backend, device and `bs`.
            group: what each image belongs to (a burst, one part, one patient), as in
                `ImageDataset.split`: a column, a regular expression for its path, `{file: group}`,
                or one value per image. Threshold and confidence then rest on whole groups left out,
                and on validation images of other groups.
            **reading: `bs`, `n_workers` and `progress`, see `features`.

        Raises:
            ContinualNotInitializedError: the model is not in the continual state.
            DataError: no images; labels missing, of another number, or several per image; one
                file under two labels; a name that a class no longer has.
            UnreadableImagesError: images cannot be read; all of them are named.
        """
        reading, head = checked_reading("extend", reading), check_continual(self.continual)
        found = self._found(head, data, labels, group)
        by = Predictor.of(learning_model(self.record))
        features, names, groups = with_features(found, by.features, reading)
        held_out = with_features(found.validation, by.features, reading)
        given = {"reuse_names": reuse_names, "again": again, "groups": groups}
        told, origin = found.case_sensitive, by.network.origin(reading.get("bs", BATCH))
        about = {"validation": held_out, "case_sensitive": told, "origin": origin}
        report = head.extend(features, names, **given, **about)
        return with_notes(report, note_on_cut(found.items, self.preprocessing))

    def calibrate(
        self, data: Any, labels: Any = None, *, group: Any = None, **reading: Any
    ) -> ChangeReport:
        """Fit threshold and temperature to fresh images, not learned; return what changed.

        They join the validation images there are, up to 64 a class. Give images taken as those the
        model is used on; those it has learned do not count, and the report tells of them. Beside a
        trained head with a detector it is the threshold and the prediction sets: the temperature is
        in the head's weights, which stay. An image that comes again under another label counts for
        the one given last.

        Args:
            data: see `extend`; of a split dataset the validation images, if it has any.
            labels: see `extend`; classes that are known.
            group: see `extend`; images of groups of which their class has learned others do not
                count.
            **reading: see `extend`.

        Raises:
            ContinualNotInitializedError: the model detects no images out of distribution.
            DataError: as `extend`; a class is not known, or has no images; one image has two
                labels; or none counts: all were learned, or are near copies of such.
            UnreadableImagesError: images cannot be read; all of them are named.
        """
        reading, head = checked_reading("calibrate", reading), check_detects_ood(self.ood)
        _, held_out = parted(self._found(head, data, labels, group), validation=True)
        if self.detector is not None:
            return calibrate_detector(self.record, held_out, **reading)
        by = Predictor.of(learning_model(self.record))
        return head.validate(*with_features(held_out, by.features, reading))

    def subtract(
        self, data: Any, labels: Any = None, *, validation: bool = False, **reading: Any
    ) -> ChangeReport:
        """Unlearn images as if they had never been learned: takes back an `extend` of them.

        That is so whoever taught them: of images that an `extend` found learned already, as its
        report says, `subtract` takes out those, too, and `undo` only what that `extend` brought.

        Exact if they are read as they were then: on the same machine, with the same `bs`. Images of
        a forgotten class that it still has in what all classes share can be given under its name.
        Of a class with more distinct images than are remembered (`memory`, 64 by default), the
        remembered ones among these are not replaced: thresholds and OOD scores then rest on fewer
        images, and are others, until more are learned; counts and means are exact.

        Args:
            data: see `extend`; of a split dataset the training images are unlearned, and the
                validation images no longer decide threshold and confidence.
            labels: see `extend`.
            validation: whether all images given were validation images; of a split dataset only
                the validation images are then taken out.
            **reading: see `extend`.

        Raises:
            ContinualNotInitializedError: the model is not in the continual state.
            DataError: no images, labels missing, or a class that is not known.
            StatisticsError: images were not learned.
            UnreadableImagesError: images cannot be read; all of them are named.
        """
        reading, head = checked_reading("subtract", reading), check_continual(self.continual)
        found = self._found(head, data, labels)
        by, parts = Predictor.of(learning_model(self.record)), parted(found, validation)
        learned, held_out = (with_features(part, by.features, reading) for part in parts)
        return head.subtract(*(learned or ())[:2], validation=held_out)

    def forget(self, name: str | Sequence[str]) -> ChangeReport:
        """Drop a class, or several at once, which keep their numbers and can never win.

        Returns what changed; of several all are forgotten or none, and one `undo` takes it back.
        """
        return check_continual(self.continual).forget(name)

    def rename(self, names: Mapping[str, str]) -> ChangeReport:
        """Give classes other names, `{old: new}`; return what changed.

        Data are understood by the present names: former ones are refused, but those that classes
        swapped cannot be told, so rename the folders, too.
        """
        return check_continual(self.continual).rename(names)

    def merge_classes(self, names: Sequence[str], into: str) -> ChangeReport:
        """Make one class of several; return what changed."""
        return check_continual(self.continual).merge_classes(names, into)

    def merge(self, other: Any, *, reuse_names: bool = False) -> ChangeReport:
        """Learn all that another copy of this model has learned elsewhere; return what changed.

        Args:
            other: a predictor over the same network in the same variant, or its class statistics.
                What both have learned counts twice; the report says how many images that are.
            reuse_names: let a class have a name that the other side's class had before it was
                renamed or merged: they are two classes.

        Raises:
            ContinualNotInitializedError: either is not in the continual state.
            PredictionError: `other` is of another network, whose features do not compare.
            StatisticsError: statistics of another network, or collected with other settings.
        """
        head = check_continual(self.continual)
        if isinstance(other, Predictor):
            theirs = check_continual(other.continual).statistics
            check_same_features(self.record, other.record)
            other = theirs
        return head.merge(other, reuse_names=reuse_names)

    def undo(self) -> ChangeReport:
        """Take back the last change, three at most, also after `save` and `load_learner`.

        A model that was deployed without images is empty again then; what `init_continual` of a
        learner began with is no change.

        Beside a trained head that is `calibrate` of its detector, while the predictor lives.

        Raises:
            ContinualStateError: there is nothing to take back.
        """
        return (self.detector or check_continual(self.continual)).undo()

    def snapshot(self, name: str) -> None:
        """Keep all that is known now under a name for `restore`; it travels in the bundle.

        Eight names at most; one that is there already is given to what is known now.

        Raises:
            ContinualStateError: a name that is none, or too many of them.
        """
        check_continual(self.continual).snapshot(name)

    def restore(self, name: str) -> ChangeReport:
        """Go back to what was known at `snapshot(name)`; return what changed. `undo` takes it back.

        Raises:
            ContinualStateError: there is no such snapshot; the message lists those there are.
        """
        return check_continual(self.continual).restore(name)

    def drop_snapshot(self, name: str) -> None:
        """Keep a snapshot no longer.

        Raises:
            ContinualStateError: there is no such snapshot.
        """
        check_continual(self.continual).drop_snapshot(name)

    def set(
        self,
        *,
        class_names: Sequence[str] | Mapping[str, str] | None = None,
        threshold: float | Sequence[float] | None = None,
        ood_threshold: float | None = None,
        false_alarm_rate: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        threads: int | None = None,
        tta: int | None = None,
        **unknown: Any,
    ) -> Predictor:
        """This predictor with something set; predictions under way end as they began.

        Args:
            class_names: all new names, or `{old: new}`.
            threshold: a label of a multi-label model counts above it; one, or one per class.
            ood_threshold: an image is flagged if its score is above it; it stays through later
                changes. Only where `detects_ood`, as is the next.
            false_alarm_rate: wanted share of known images flagged; the threshold is fitted to it
                from what the model knows, now and after every change.
            metadata: takes the place of the metadata.
            device: where a converted network runs: "cpu", or another that `devices` lists.
            threads: processor threads one prediction of a converted network may use.
            tta: views of an image from which all verbs predict, see `predict_batch`; 1 is itself
                alone. It is kept in the metadata, and so travels in bundles.
            **unknown: anything else is refused.

        Raises:
            PredictionError: another number of names, an unknown old name, a name twice; a threshold
                outside (0, 1) or for a model that is not multi-label; both
                `ood_threshold` and `false_alarm_rate`.
            ContinualNotInitializedError: one of these for a model that detects no such images.
            OptimizedModelError: something that is fixed after optimisation.
            TypeError: something unknown; `device` or `threads` of weights as trained.
            BackendUnavailableError: the backend has nothing for `device`.
        """
        promised = {"ood_threshold": ood_threshold, "false_alarm_rate": false_alarm_rate}
        names = {"class_names": class_names, "threshold": threshold, "metadata": metadata}
        runs = {"device": device, "threads": threads, "tta": tta}
        set_fields(self, unknown, **names, **promised, **runs)
        return self

    def optimize(
        self,
        precision: str = "float32",
        samples: Any = None,
        *,
        backend: str = "auto",
        device: str = "cpu",
        test: Any = None,
        ood: Any = None,
        learned: Any = None,
        force: bool = False,
        fallback: bool = False,
        threads: int | None = None,
        gates: Gates | None = None,
        batch_size: int | None = None,
        progress: bool = True,
        **backend_params: Any,
    ) -> tuple[Predictor, ConversionReport]:
        """(a faster predictor, the report of what it gained and cost); this one is unchanged.

        The converted network is held against this one on images that had no part in the conversion,
        and timed side by side with it. If it fails a gate it is refused: by default 99 % of the
        labels stay, accuracy drops by 0.5 points at most, and it is 1.1 times as fast.

        What the model knows of its classes is learned again from the converted network's features,
        if the images it has learned from are at hand (`learned`, or all of them in `samples`);
        otherwise it is carried over, and the report says how far the features moved.

        Args:
            precision: "float32", "float16" (smaller files), "bfloat16" or "int8".
            samples: images that int8 takes its ranges from: 10 to 20 of each class as they come in
                use. A dataset (its training images), a folder with one folder per class or with
                images, or images of any kind `predict` takes. Other precisions need none.
            backend: "onnxruntime", "openvino" or "torch"; "auto" tries all that are possible here
                and takes the fastest that passes. `learnkit.devices()` lists them.
            device: "cpu", or another that `learnkit.devices()` lists for the backend.
            test: images to compare it on, 500 or more, best with labels; as `samples`, but of a
                dataset the test images, else the validation images. Without it a third of
                `samples` is set apart.
            ood: images of no class the model knows: are they still told apart?
            learned: the images this model has learned, all of them: a dataset, or a folder.
            force: take it even if it fails a gate.
            fallback: take the fastest other precision that passes if this one does not.
            threads: processor threads one prediction may use; default all this process may use.
            gates: other limits; see `Gates`.
            batch_size: the batch that is timed beside a single image, default 16; where a backend
                can be made for one size of batch, it is made for the one given.
            progress: show progress bars.
            **backend_params: the backend's own, see `learnkit.devices()`; for int8 also `max_error`
                (0.12: how far features may move, relative to their spread over the samples),
                `target` (0.99: labels of samples that stay, under a trained head) and `keep` (names
                of layers that stay in float32, instead of a search for them).

        Raises:
            ConversionRefusedError: it fails a gate; the error's `report` has the details.
            OptimizeError: samples that are missing, of unknown classes, or all the same; optimised
                already.
            BackendUnavailableError: this machine cannot do that; the message names what it can.
            MissingExtraError: the backend is not installed; the message has the pip line.
            ExportError: the network has operators that ONNX has not, or no body.
            UnreadableImagesError: images cannot be read; all of them are named.
        """
        from learnkit.optimize.optimize import candidates, optimize

        if self.variant is not None:
            raise OptimizeError(
                f"this model is optimised already ({self.variant}); to convert it otherwise, take "
                "the float32 model: load_learner(path, variant='float32').optimize(...)"
            )
        candidates(backend, precision, device, backend_params)  # refused before files are made
        base = base_files(self.record)  # as it is now: it may learn on before the other is saved
        about = {"backend": backend, "device": device, "threads": threads, "batch_size": batch_size}
        images = {"test": test, "ood": ood, "learned": learned}
        rules = {"force": force, "fallback": fallback, "gates": gates, "progress": progress}
        record, report = optimize(
            self.record, precision, samples, **about, **images, **rules, **backend_params
        )
        faster = Predictor.of(record.replace(siblings=base))
        take_home_of(faster, self)
        faster._report = report  # with the pictures that a record of JSON has not
        return faster, report

    def to_onnx(self, path: str | os.PathLike) -> dict[str, Any]:
        """What stands beside the numbers in the one ONNX file written to `path`: its metadata.

        For programs that have no Python: C++, C#, browsers. Images uint8 (N, H, W, C) of the
        recipe's size go in as `image`; out come `probabilities` (N, C), `features` (N, D) and,
        where the model detects images out of distribution, `ood_score` (N,), all float32, equal to
        this predictor's up to 1e-4. Reading and resizing stay outside, by `preprocessing` in the
        metadata: ONNX's resizing is not Pillow's. The file is in opset 20, without operators of
        any maker's own; what is learned later is not in it.

        Raises:
            ExportError: the model knows no class yet; it was converted to what is no plain ONNX;
                the network cannot be exported, or gives other numbers in ONNX.
            BundleWriteError: `path` is inside a bundle.
            MissingExtraError: onnx or onnxscript is not installed.
        """
        from learnkit.optimize.plain_onnx import write_onnx

        return write_onnx(Path(path), self.record)

    def save(
        self,
        path: str | os.PathLike,
        *,
        card: Mapping[str, Any] | None = None,
        probes: Tensor | None = None,
        others: Sequence[Predictor] = (),
        variants: bool = True,
        history: int = UNDO_LEVELS,
    ) -> str:
        """SHA-256 (hex) that pins the bundle written to `path`; see `load_learner(sha256=)`.

        The bundle opens as this model. Variants in the bundle it came from go along byte for byte
        if the float32 weights and all they know are as they were then. If not (it has learned, was
        renamed, a threshold was set), they are of a model that is no more: they are left out, with
        a warning. Beside an optimised model the float32 weights are written, with what they knew
        when it was made of them: if it has learned since, a warning says so when they are loaded.

        Args:
            path: absent, an empty folder or an earlier bundle, which is replaced as a whole. A
                bundle that this model was loaded from or saved to is replaced as long as nothing
                else has written it since.
            card: for the model card of float32 weights; default the one they were loaded with.
            probes: a few preprocessed images uint8 (n, channels, H, W) that travel with float32
                weights: at load their logits must come out again. Default those they were loaded
                with, or noise.
            others: further variants of the same model that go into the bundle.
            variants: False leaves out those that were in the bundle it came from, without a
                warning.
            history: how many states before the last changes go along, for `undo`; 0 leaves them
                out: what was forgotten or unlearned is then in the bundle no more, but for
                snapshots. Each takes about half the space of the model's own class statistics.

        Raises:
            ExportError: the float32 network or the card cannot travel as data, or a weight is not
                finite; `others` are of another model; `history` is not from 0 to 3.
            BundleError: an optimised model was loaded from a bundle that is there no more.
            BundleWriteError: the folder could not be written, or something else has written the
                bundle since; what stood there still does.
        """
        home = home_of(self, path, "")  # before it is written: it may learn meanwhile
        given = {"card": card, "probes": probes, "variants": variants, "history": history}
        found = {"others": [one.record for one in others], "replaces": last_seen(self, path)}
        digest, siblings = write(path, self.record, **given, **found)
        self._home = home.saved(digest)
        self.record = self.record.replace(siblings=siblings)
        return digest

    def to_bytes(self) -> bytes:
        """The bundle that `save` would write, as bytes: for databases, messages, pickles.

        `load_learner(bytes)` opens it, with the checks of a folder. A predictor that was opened so
        stands in no folder until it is saved. Raises like `save`.
        """
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "model", self.record)
            return packed(Path(folder) / "model")

    def push_to_hub(self, repository: str, *, private: bool = True, **saved: Any) -> str:
        """SHA-256 (hex) that pins the bundle put into a repository of the Hugging Face hub.

        `load_learner("hf-hub:OWNER/NAME", sha256=...)` opens it. The model card is the repository's
        README. What an earlier bundle left there is taken away in the same commit. It is written as
        whoever is logged in (`hf auth login`), or has the token in $HF_TOKEN.

        Args:
            repository: OWNER/NAME, or OWNER/NAME@BRANCH; made if it is not there.
            private: whether a repository that is made is seen by its owner alone.
            **saved: as of `save`: `card`, `probes`, `others`, `variants` and `history`.

        Raises:
            BundleWriteError: the hub refuses or does not answer, or the repository holds what is no
                bundle's.
            MissingExtraError: huggingface_hub is not installed.
        """
        saved["others"] = [other.record for other in saved.get("others", ())]
        return publish(repository, partial(write, model=self.record, **saved), private=private)

    @staticmethod
    def _found(head: ContinualClassifier, data: Any, labels: Any, group: Any = None) -> Labelled:
        """Images and labels, names told apart as the head does."""
        told = head.settings.case_sensitive
        return labelled_images(data, labels, case_sensitive=told, group=group)

    def _pixels(self, images: Tensor) -> np.ndarray:
        check_batch(images, self.preprocessing.channels)
        return channels_last(images)

    def __reduce__(self) -> tuple[Any, ...]:
        return opened_learner, pickled(self)

    def document(self) -> Document:
        """Its `repr`, its digest if it is of a bundle, and the last changes."""
        log = self.continual.audit.document().content if self.continual else ()
        return Document([*super().document().content, *log])

    def __repr__(self) -> str:
        name = self.variant or getattr(getattr(self.model, "spec", None), "arch", None)
        return f"Predictor({name or type(self.model).__name__}, {self._about()})"

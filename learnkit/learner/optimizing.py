"""A learner's way to a faster predictor, with the images it knows best."""

from __future__ import annotations

from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from learnkit.data.labelled_images import Labelled
from learnkit.learner.adopt import spec_of
from learnkit.learner.export import predictor_of, probe_images
from learnkit.learner.training_data import own_data
from learnkit.optimize.conversion_report import ConversionReport
from learnkit.optimize.optimized import OptimizedPredictor
from learnkit.optimize.samples import PER_CLASS, evenly


class OptimizingVerb:
    """How an `ImageLearner` becomes a faster predictor."""

    def optimize(
        self,
        precision: str = "float32",
        samples: Any = None,
        *,
        backend: str = "auto",
        test: Any = None,
        **settings: Any,
    ) -> tuple[OptimizedPredictor, ConversionReport]:
        """(a faster predictor, the report that proves what it cost); this learner goes on as is.

        What it knows of its classes is learned again, by all its training images, from the features
        of the converted network.

        Args:
            precision: "float32", "float16", "bfloat16" or "int8".
            samples: images that int8 takes its ranges from; default 20 training images per class.
            backend: "onnxruntime", "openvino", "torch", or "auto" for the fastest that passes.
            test: images to judge it by; default the validation images.
            **settings: All else `Predictor.optimize` takes: `device`, `ood`, `force`, `fallback`,
                `threads`, `gates`, ...

        Raises:
            ConversionRefusedError: It fails a gate; the error's `report` has the details.
            OptimizeError: It cannot be converted with these samples or settings.
            ExportError: The network has operators that ONNX has not, or no body.
        """
        return optimize_learner(self, precision, samples, backend=backend, test=test, **settings)


def optimize_learner(
    learn: Any,
    precision: str = "float32",
    samples: Any = None,
    *,
    test: Any = None,
    learned: Any = None,
    **settings: Any,
) -> tuple[OptimizedPredictor, ConversionReport]:
    """Return (faster predictor, report); see `ImageLearner.optimize`."""
    predictor = predictor_of(learn)
    learn.model.spec = spec_of(learn)
    predictor.probes = probe_images(learn, predictor.preprocessing)
    if predictor.multi_label:
        train, valid = _multi_label(learn)
    else:
        train, valid = _of_training(learn)
    samples = _drawn(train) if samples is None and precision == "int8" else samples
    test = valid if test is None else test
    learned = train._replace(validation=valid) if learned is None and train else learned
    return predictor.optimize(precision, samples, test=test, learned=learned, **settings)


def _of_training(learn: Any) -> tuple[Labelled | None, Labelled | None]:
    """(training images, validation images) by the names the learner has for their classes now."""
    own = own_data(learn)
    if own is None or not isinstance(own.items, list):
        return None, None
    notes = getattr(learn, "continual_notes", None)
    former = {} if notes is None else notes.former_names
    valid = own.validation
    if valid is not None and isinstance(valid.items, list):
        valid = _renamed(valid, former)
    else:
        valid = None
    return _renamed(own, former)._replace(validation=None), valid


def _multi_label(learn: Any) -> tuple[Labelled | None, Labelled | None]:
    """The same where an image has several labels, as far as the dataset tells."""
    data = getattr(learn.dls, "image_dataset", None)
    if data is None or "train" not in data.splits:
        return None, None
    pairs = [data.train, data.valid if "valid" in data.splits else None]
    train, valid = (part and Labelled(part.paths, part.labels) for part in pairs)
    return train, valid


def _renamed(images: Labelled, names: dict[str, str]) -> Labelled:
    return images._replace(labels=[names.get(label, label) for label in images.labels])


def _drawn(images: Labelled | None) -> Labelled | None:
    """The same few images of each class every time."""
    if images is None:
        return None
    places = evenly(images.labels, PER_CLASS)
    return Labelled([images.items[i] for i in places], [images.labels[i] for i in places])

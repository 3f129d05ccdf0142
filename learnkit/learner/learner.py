"""ImageLearner: a fastai Learner with learnkit's verbs, each documented here, done in its home."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import learnkit._torchvision  # noqa: F401  # before fastai

import pandas as pd
from fastai.callback.training import BnFreeze
from fastai.data.core import DataLoaders
from fastai.data.transforms import get_c
from fastai.vision.all import Learner  # with fit_one_cycle, lr_find, ... attached to it
from fastcore.basics import listify
from torch import nn

from learnkit.callback.class_weights import weighted_loss
from learnkit.callback.history import TrainingHistory
from learnkit.callback.stop_on_non_finite import (
    StopOnNonFinite,
    check_has_batches,
    explained_monitors,
)
from learnkit.callback.training_precision import (
    TrainingPrecision,
    autocast_model,
    check_precision,
    precision_of,
)
from learnkit.continual.change_report import AuditLog, ChangeReport
from learnkit.continual.classifier import ContinualClassifier, check_continual, continual_head
from learnkit.continual.label_issues import LabelErrors
from learnkit.continual.names import name_list, new_names
from learnkit.data.arguments import check_number
from learnkit.data.dataset import ImageDataset
from learnkit.deploy.predictor import Predictor
from learnkit.deploy.settable import check_assigned_to_learner
from learnkit.errors import DataError
from learnkit.evaluation.evaluate import Evaluation
from learnkit.inference.batch import BATCH
from learnkit.inference.files import FilesReport
from learnkit.inference.prediction import Prediction
from learnkit.inference.suggestion import Suggestions
from learnkit.inference.weights_check import WeightsCheck
from learnkit.interpret.classification import ClassificationInterpretation
from learnkit.interpret.learner_state import (
    LearnerState,
    class_names,
    detector_of,
    learner_facts,
)
from learnkit.interpret.outputs import Outputs, collect_outputs
from learnkit.interpret.plots import plot_history
from learnkit.interpret.uncertainty_plots import plot_ood
from learnkit.learner import continual, uncertainty
from learnkit.learner.adopt import adopted_arguments, go_on_from
from learnkit.learner.augmentation import augmented_loader
from learnkit.learner.dataloaders import agreeing_loaders, note_loaders
from learnkit.learner.export import (
    export_learner,
    learner_from,
    optimize_learner,
    own_predictor_of,
    predictor_of,
)
from learnkit.learner.saving import (
    explained_batches,
    explained_divergence,
    explained_mismatch,
    load_with_state,
    save_with_state,
)
from learnkit.learner.trained_head import check_trainable, train_batch, training
from learnkit.learner.validation import (
    comparable_loss,
    loader_of,
    loss_of_outputs,
    metrics_of_loss,
    network_batch,
    no_training_events,
    predictions_of,
    show_results,
    suggestions_of,
    told_of_forgotten,
    whole_loader,
)
from learnkit.report.document import Document, Paragraph, Span, pairs
from learnkit.report.notebook import Shown
from learnkit.uncertainty.calibration import TemperatureFit
from learnkit.uncertainty.threshold import Threshold

if TYPE_CHECKING:
    from typing_extensions import Self

    from learnkit.inference.heatmap import Heatmap
    from learnkit.optimize.conversion_report import ConversionReport


class ImageLearner(Learner, Shown):
    """A fastai Learner that also interprets, evaluates, exports and predicts.

    Everything of fastai's Learner works as before. Two callbacks come with it: `TrainingHistory`
    (`learn.history`) and `StopOnNonFinite` (training stops at the first NaN, good weights stay).

    Args:
        dls: Image DataLoaders, from `ImageDataset.dataloaders` or any of fastai's factories.
        model: `nn.Sequential(body, head)` for all of learnkit's verbs.
        *args: As for fastai's Learner.
        train_bn: What trains in frozen groups: True the batch norms (as in fastai v1), "all" every
            kind of norm (as in fastai v2), False nothing, and running statistics stay as they are.
        precision: Of training steps: "float32", "bfloat16", "float16" or "auto"; see `cnn_learner`.
        cbs: Callbacks, as for fastai's Learner.
        **kwargs: As for fastai's Learner.

    Attributes:
        state: All it adds to what fastai's Learner keeps, as one unchanging `LearnerState`; also of
            a learner that was copied, unpickled, or made without `__init__`.
        weights_check: What `cnn_learner(check_weights=True)` found, else None.
    """

    state = LearnerState()
    weights_check: WeightsCheck | None = None

    def __init__(
        self,
        dls: DataLoaders,
        model: nn.Module,
        *args: Any,
        train_bn: bool | str = True,
        precision: str = "float32",
        cbs: Any = None,
        **kwargs: Any,
    ):
        cbs = [cb() if isinstance(cb, type) else cb for cb in listify(cbs)]
        # With train_bn=False alone, fastai keeps weights of frozen batch norms and goes on moving
        # their running statistics; BnFreeze stops these, too.
        for kind in (TrainingHistory, StopOnNonFinite, BnFreeze):
            wanted = kind is not BnFreeze or not train_bn
            if wanted and not any(isinstance(cb, kind) for cb in cbs):
                cbs.append(kind())
        has_precision = any(isinstance(cb, TrainingPrecision) for cb in cbs)
        if check_precision(precision) != "float32" and not has_precision:
            cbs.append(TrainingPrecision(precision))
        dls = agreeing_loaders(model, dls)
        super().__init__(dls, model, *args, train_bn=train_bn, cbs=cbs, **kwargs)
        note_loaders(model, dls)
        self.loss_func = comparable_loss(self.loss_func)
        self.metrics = metrics_of_loss(self.metrics, self.loss_func, get_c(dls) or None)
        precision_of(self)  # what this device cannot do is refused now

    @property
    def dls(self) -> DataLoaders:
        """The DataLoaders it trains on: those given, or a copy of them that normalises.

        Pixels of new loaders are normalised as the network was trained, also where only a pass runs
        over them; classes go by their names, so that their order may be another one.

        Raises:
            DataError: New loaders normalise otherwise than the network was trained, or have classes
                it has no output for.
        """
        if "dls" not in vars(self):
            raise AttributeError("dls")
        return vars(self)["dls"]

    @dls.setter
    def dls(self, dls: DataLoaders) -> None:
        if "model" in vars(self):  # fastai sets the loaders first
            dls = agreeing_loaders(self.model, dls)
            note_loaders(self.model, dls)
        vars(self)["dls"] = dls

    def __setattr__(self, name: str, value: Any) -> None:
        check_assigned_to_learner(self, name)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        facts = learner_facts(self)
        shown = [facts[name] for name in ("network", "classes", "state") if name in facts]
        return f"{type(self).__name__}({'; '.join(shown)})"

    def document(self) -> Document:
        """What it is and knows: network, classes, images, state, thresholds; nothing is run."""
        name = Paragraph(Span(type(self).__name__, "strong"))
        return Document([name, pairs(learner_facts(self))])

    @property
    def classes(self) -> list[str]:
        """What its outputs are called, in their order; in the continual state those known now."""
        return class_names(self) or []

    @property
    def data(self) -> DataLoaders:
        """The loaders, by the name that fastai v1 had for `dls`."""
        return self.dls

    @classmethod
    def from_learner(cls, learn: Learner) -> ImageLearner:
        """An ImageLearner over the same data, model and optimizer; `learn` stays usable."""
        return go_on_from(learn, cls(**adopted_arguments(learn)))

    @classmethod
    def from_bundle(
        cls, path: str | Path | bytes, data: Any = None, *, sha256: str | None = None, **kwargs: Any
    ) -> ImageLearner:
        """A learner that goes on where a bundle stopped; `load_learner` only predicts and extends.

        It gives the bundle's answers, and trains, learns classes and is exported as the learner
        was that wrote it. Weights, classes, recipe, history, continual state with its steps to
        undo, OOD detector and metadata come along; a trained head that the continual state took the
        place of does not: `refit` makes a new one.

        Args:
            path: Folder that `export` or `Predictor.save` wrote, or the bytes of
                `Predictor.to_bytes`; the float32 weights are read.
            data: Images to train and validate on: a split ImageDataset, whose files are read by the
                bundle's recipe, or DataLoaders. Without, it has no images, and extends as it is.
            sha256: As in `load_learner`.
            **kwargs: For fastai's Learner: `metrics`, `loss_func`, `cbs`, ...

        Raises:
            BundleError: As in `load_learner`.
            DataError: `data` has classes the network has no output for, normalises otherwise, or
                has several labels per image and the network one.
        """
        return learner_from(cls, path, data, sha256=sha256, **kwargs)

    def _bn_bias_state(self, with_bias: bool) -> Sequence[dict]:
        """Optimizer states of the norms: fastai asks here which of them train though frozen."""
        if with_bias or self.train_bn == "all":
            return super()._bn_bias_state(with_bias)
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        return [self.opt.state[p] for norm in norms for p in norm.parameters()]

    def freeze_to(self, n: int) -> None:
        """Freeze parameter groups up to `n` for good: no step moves any of them."""
        super().freeze_to(n)
        # fastai zeroes gradients and leaves them in place; with a gradient of zero, weight decay
        # and momentum go on moving a parameter that is meant to be frozen.
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                parameter.grad = None

    def _do_one_batch(self) -> None:
        """One batch; of a training, in its precision and with its class weights."""
        if not self.training:
            return super()._do_one_batch()
        with autocast_model(self), weighted_loss(self):
            return super()._do_one_batch()

    def all_batches(self) -> None:
        """Run the batches of the current loader."""
        with explained_batches(self):
            super().all_batches()

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Train, as in fastai.

        Raises:
            ContinualStateError: The learner is in the continual state; the message names ways out.
            OodLockedError: `fit_ood` has derived something from the present network.
            DataError: No batches to train on, or a callback watches what nothing measures.
        """
        # fastai's `fit` takes n_epoch, lr, wd and cbs in this order
        cbs = kwargs.get("cbs", args[3] if len(args) > 3 else None)
        with training(self), explained_monitors(self, cbs):
            super().fit(*args, **kwargs)

    def fine_tune(self, *args: Any, **kwargs: Any) -> None:
        """Train the head, then everything, as in fastai. Raises like `fit`."""
        with training(self, n_fits=2):
            super().fine_tune(*args, **kwargs)

    def train_batch(self, images: Any, labels: Any = None) -> dict[str, float]:
        """One training step outside of a fit: {"total_loss": the loss before it}.

        The step is that of a fit over this one batch, at the optimizer's present rate
        (`learn.opt.set_hypers(lr=1e-3)`); callbacks and the history are not told.

        Args:
            images: of any kind `predict` takes, read as validation images are: without
                augmentation; or a batch of a loader, (images, targets) as tensors.
            labels: a class name or number for each image, one name for all, or a list of names per
                image where it may have several.

        Raises:
            DataError: Labels are missing or no classes, or one image where a batch norm trains.
            NonFiniteLossError: Of the loss or the gradients; no step was made.
            ContinualStateError: As for `fit`, as is OodLockedError.
        """
        return train_batch(self, images, labels)

    def lr_find(
        self, start_lr: Any = 1e-7, end_lr: Any = 10, num_it: int = 100, *args: Any, **kwargs: Any
    ) -> Any:
        """Learning rates suggested by a mock training, as in fastai; nothing is changed.

        Raises:
            DataError: The training loader has no batches, an argument is no rate or count, or the
                loss diverged before anything could be suggested.
        """
        check_trainable(self)
        check_has_batches(self.dls.train)
        # the third behind `num_it`, after stop_div and show_plot
        suggests = kwargs.get("suggest_funcs", args[2] if len(args) > 2 else True) is not None
        # fastai leaves the first tenth of the losses out, and the last 5
        check_number("num_it", num_it, least=6 if suggests else 1)
        if not isinstance(start_lr, Iterable) and not start_lr > 0:
            raise DataError(f"`start_lr` is {start_lr!r}; give a rate above 0, such as 1e-7")
        with explained_divergence(self, num_it):
            return super().lr_find(start_lr, end_lr, num_it, *args, **kwargs)

    def summary(self) -> str:
        """The network layer by layer for one batch of the training images, as in fastai.

        Raises:
            DataError: The training loader has no batches.
        """
        check_has_batches(self.dls.train)
        return super().summary()

    def save(self, file: Any, **kwargs: Any) -> Path:
        """The file written: weights, optimizer state, and in the continual state what was learned.

        What `fit_ood` made goes into a second file of the same name.
        """
        return save_with_state(self, file, super().save, **kwargs)

    def load(self, file: Any, device: Any = None, **kwargs: Any) -> Self:
        """This learner with the weights (and optimizer state) that `save` wrote to `file`.

        It is then in the state in which it was saved, the continual one included.

        Raises:
            WeightsError: They belong to another network.
        """
        with explained_mismatch(self.model, file):
            return load_with_state(self, file, super().load, device=device, **kwargs)

    def _split(self, b: Any) -> None:
        """Inputs and targets of a batch; fastai's passes, fits and metrics all ask here."""
        super()._split(b)
        self.xb, self.yb = network_batch(self, self.xb, self.yb)

    def validate(self, ds_idx: int = 1, dl: Any = None, cbs: Any = None) -> Any:
        """The loss and all metrics over a loader, as in fastai.

        Labels of a loader are compared by the names of their classes, whatever their order, so that
        accuracy is that of `evaluate`. In the continual state the loss is cross-entropy.

        Raises:
            InterpretationError: There are no samples, or labels the learner does not know.
        """
        dl = loader_of(self, dl, ds_idx)
        with loss_of_outputs(self):
            return told_of_forgotten(self, super().validate(ds_idx, dl, cbs))

    def get_preds(self, ds_idx: int = 1, dl: Any = None, **kwargs: Any) -> tuple:
        """(probabilities, class numbers, ...) of a loader, as in fastai.

        Class numbers, the decoded ones too, are those of the probabilities' columns: in the
        continual state places in `learn.continual.classes`, else in `learn.dls.vocab`.

        Raises:
            InterpretationError: There are no samples, or labels the learner does not know.
        """
        dl = whole_loader(self, dl, ds_idx)
        with loss_of_outputs(self):
            return super().get_preds(ds_idx, dl, **kwargs)

    def tta(
        self,
        ds_idx: int = 1,
        dl: Any = None,
        n: int = 4,
        item_tfms: Any = None,
        batch_tfms: Any = None,
        beta: float | None = 0.25,
        use_max: bool = False,
    ) -> tuple:
        """(probabilities, class numbers) averaged over augmented images, as in fastai.

        Class numbers are those of `get_preds`. Callbacks that concern a training do not run.

        Args:
            ds_idx: which of the learner's loaders, without `dl`.
            dl: any other loader.
            n: passes over augmented images.
            item_tfms: augmentation of single images in place of that of the training.
            batch_tfms: augmentation of batches in place of that of the training.
            beta: weight of the images as they are beside the mean of those passes; None returns
                (mean of the passes, as they are) instead of their mean.
            use_max: the largest probabilities instead of their mean.

        Raises:
            InterpretationError: There are no samples, or labels the learner does not know.
        """
        # not left to fastai, whose `tta` misspells `shuffle`
        dl = augmented_loader(self, whole_loader(self, dl, ds_idx), item_tfms, batch_tfms)
        with no_training_events(self):
            return super().tta(dl=dl, n=n, beta=beta, use_max=use_max)

    def show_results(
        self, ds_idx: int = 1, dl: Any = None, max_n: int = 9, shuffle: bool = True, **kwargs: Any
    ) -> None:
        """Draw images with their class and the predicted one, as in fastai.

        Raises:
            InterpretationError: Samples have labels the learner does not know, or there are none.
        """
        dl = loader_of(self, dl, ds_idx, shuffle=shuffle, drop_last=False)
        show_results(self, dl, max_n=max_n, **kwargs)

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch over all fits: losses, metrics, learning rate, seconds."""
        return self.training_history.frame

    def plot_history(self, ax: Any = None) -> Any:
        """Axes of losses, errors and metrics per epoch: see `plot_history`."""
        return plot_history(self.history, ax=ax)

    def outputs(
        self,
        ds_idx: int = 1,
        *,
        dl: Any = None,
        data: ImageDataset | None = None,
        with_features: bool = False,
    ) -> Outputs:
        """Logits, probabilities, targets and losses of one pass, in dataset order."""
        return collect_outputs(self, dl, ds_idx=ds_idx, data=data, with_features=with_features)

    def interpret(
        self, ds_idx: int = 1, *, dl: Any = None, data: ImageDataset | None = None
    ) -> ClassificationInterpretation:
        """Confusion matrices, top losses and heatmaps; one pass now, arithmetic afterwards."""
        return ClassificationInterpretation.from_learner(self, ds_idx=ds_idx, dl=dl, data=data)

    def heatmap(self, image: Any, method: str = "gradcam", **options: Any) -> Heatmap:
        """The part of an image that speaks for a class: see `Predictor.heatmap`."""
        return self.predictor().heatmap(image, method, **options)

    def plot_confusion_matrix(
        self, ds_idx: int = 1, *, dl: Any = None, data: Any = None, **options: Any
    ) -> Any:
        """Axes of the confusion matrix after one pass; `interpret()` is for more than one picture.

        The images are chosen as in `interpret`, `options` are those of its method of this name.
        """
        return self.interpret(ds_idx, dl=dl, data=data).plot_confusion_matrix(**options)

    def plot_top_losses(
        self, k: int = 9, ds_idx: int = 1, *, dl: Any = None, data: Any = None, **options: Any
    ) -> Any:
        """Axes with the images of the largest losses; see `plot_confusion_matrix`."""
        return self.interpret(ds_idx, dl=dl, data=data).plot_top_losses(k, **options)

    def most_confused(
        self, min_val: int = 1, ds_idx: int = 1, *, dl: Any = None, data: Any = None
    ) -> list[tuple[str, str, int]]:
        """The mistakes made at least `min_val` times; see `plot_confusion_matrix`."""
        return self.interpret(ds_idx, dl=dl, data=data).most_confused(min_val)

    def evaluate(
        self,
        dl: Any = None,
        *,
        ds_idx: int = 1,
        data: ImageDataset | None = None,
        ood: Any = None,
        measures: Sequence[str] | None = None,
        good: Sequence[str] | None = None,
    ) -> Evaluation:
        """`.summary`, `.per_class` and `.confusion` of a loader, a dataset or a split by index.

        A dataset is an ImageDataset, a folder with a folder per class, a table with the columns
        path and label, or HALCON's DLDataset; as `dl` or as `data`. An interpretation as `dl` is
        evaluated without another pass. `save_html` of the result writes a page with its pictures.

        Where the learner detects OOD, the summary has the `false_alarm_rate` on these images;
        with images of no known class (`ood`: a loader, a folder, files) also `detection_rate`,
        `auroc` and `fpr_at_95_tpr`, out-of-distribution images being the positive class. Names of
        `measures` and of `good` classes are as in `evaluate`.

        Raises:
            UnreadableImagesError: Images of a dataset cannot be read; all of them are named, and
                the error's `evaluation` is that of the others.
            InterpretationError: There are no images, or the learner does not know their labels.
        """
        wanted = {"ood": ood, "measures": measures, "good": good}
        return uncertainty.evaluate_learner(self, dl, ds_idx, data, **wanted)

    def predictor(self) -> Predictor:
        """A Predictor over this learner's network that reads images as validation does.

        It knows what the learner knows now. What either learns, sets or renames from here on the
        other does not notice; training moves the network they share.

        Raises:
            ExportError: A validation transform is code; the message names it.
        """
        return own_predictor_of(self)

    @overload
    def predict(
        self, item: Any, rm_type_tfms: Any = None, with_input: Literal[False] = False
    ) -> Prediction: ...
    @overload
    def predict(self, item: Any, rm_type_tfms: Any = None, *, with_input: bool) -> Any: ...
    def predict(self, item: Any, rm_type_tfms: Any = None, with_input: bool = False) -> Any:
        """A Prediction, which unpacks as (label, index, probs), of a path, picture, array...

        Rows of the table that the loaders were made of are taken, too. Where the loaders read by
        code that no recipe can say, the item is read by them.
        """
        (prediction,) = predictions_of(self, [item])
        if not with_input:
            return prediction
        return (predictor_of(self).preprocessing.read(item), *prediction)

    def predict_batch(self, items: Iterable[Any], bs: int = BATCH) -> list[Prediction]:
        """One Prediction per item, by forward passes of `bs` images; see `predict_files`."""
        return predictions_of(self, items, bs)

    def predict_folder(self, folder: str | Path, *args: Any, **options: Any) -> pd.DataFrame:
        """One row per image in a folder; see `Predictor.predict_folder`."""
        return predictor_of(self).predict_folder(folder, *args, **options)

    def predict_files(self, paths: Iterable[Any], **options: Any) -> pd.DataFrame | FilesReport:
        """One row per file; see `Predictor.predict_files`."""
        return predictor_of(self).predict_files(paths, **options)

    def suggest(self, images: Any, n: int = 20, **reading: Any) -> Suggestions:
        """Up to `n` of `images` to label next, the most valuable first; see `Predictor.suggest`."""
        reading.setdefault("progress", hasattr(self, "progress"))
        return suggestions_of(self, images, n, **reading)

    def export(self, path: str | Path | None = None, *, evaluate: bool = True) -> Path:
        """The folder of the bundle written: data only, loads with `load_learner`.

        Args:
            path: Folder to create, or an earlier bundle to replace; relative to where Python runs.
                Default `model` in the learner's own `path`. A bundle that this learner was made
                from or exported to is replaced as long as nothing else has changed it since;
                conversions in it are of the former weights and go.
            evaluate: Measure the validation images (one pass) for the model card.

        Raises:
            ExportError: Something about the learner cannot travel as data; the message names it.
            BundleWriteError: The folder could not be written, or something else has changed the
                bundle since; what stood there still does.
        """
        path = Path(self.path) / "model" if path is None else path
        return export_learner(self, path, evaluate=evaluate)

    def optimize(
        self,
        precision: str = "float32",
        samples: Any = None,
        *,
        backend: str = "auto",
        test: Any = None,
        **settings: Any,
    ) -> tuple[Predictor, ConversionReport]:
        """(a faster predictor, the report of what it gained and cost); this learner goes on as is.

        What it knows of its classes is learned again, by all its training images, from the features
        of the converted network.

        Args:
            precision: "float32", "float16", "bfloat16" or "int8".
            samples: images that int8 takes its ranges from; default 20 training images per class.
            backend: "onnxruntime", "openvino", "torch", or "auto" for the fastest that passes.
            test: images to compare both by; default the validation images.
            **settings: All else `Predictor.optimize` takes: `device`, `ood`, `force`, `fallback`,
                `threads`, `gates`, ...

        Raises:
            ConversionRefusedError: It fails a gate; the error's `report` has the details.
            OptimizeError: It cannot be converted with these samples or settings.
            ExportError: The network has operators that ONNX has not, or no body.
        """
        return optimize_learner(self, precision, samples, backend=backend, test=test, **settings)

    @property
    def continual(self) -> ContinualClassifier | None:
        """The head in the continual state, with `.classes`, `.n_images`, `.prototypes`; or None."""
        return continual_head(self.model)

    @property
    def ood(self) -> ContinualClassifier | None:
        """The out-of-distribution detector, with a settable `.threshold`; None without one."""
        return detector_of(self)

    def init_continual(
        self,
        data: Any = None,
        *,
        reset_class_information: bool = False,
        group: Any = None,
        **settings: Any,
    ) -> ChangeReport | None:
        """Put the learner into the continual state: what it did, or None without data.

        One pass over the images, no training. The head becomes a classifier in closed form over
        class statistics; out-of-distribution (OOD) detection and calibrated confidences come with
        it. From here on `extend` learns new classes from new images alone. Classes the learner
        knows keep their numbers.

        Args:
            data: the training data, as for `extend`; with its validation split (else the learner's
                own validation images) threshold and temperature are fitted, beside learned images
                that are left out one by one. Without data nothing is known until the first
                `extend`.
            reset_class_information: allow classes the learner knows now to be dropped.
            group: what each image belongs to, see `extend`.
            **settings: `engine` ("torch"; "onnxruntime" reads thousands of files several times as
                fast, features being the same to 1e-5, which is checked; whatever is learned
                later, here or where the model is deployed, is read by the same engine),
                `memory` (features remembered of each class, 64), `classifier` ("lda",
                "ridge" or "prototype"), `false_alarm_rate` (0.05), `score` ("combined",
                "mahalanobis", "relative", "knn", "msp" or "energy"), `guarantee` ("loo", "split"
                or "pac"), `prior` ("training" or "uniform"), `per_class` (False: the false alarms
                are promised on average over all images; True: for every class by itself, so that
                rare classes are flagged no more often; fewer images out of distribution are found),
                `blend` (True: "lda" tells classes of few images beside many partly by the nearest
                mean).

        Raises:
            ContinualUnsupportedError: No nn.Sequential(body, head), or several labels per image.
            ContinualAlreadyInitializedError: It is in that state already.
            DataError: Classes would be lost, and are named; or `engine` cannot read `data`.
            ExportError: The network gives other features in `engine`.
            UnreadableImagesError: Images cannot be read; all of them are named.
        """
        return continual.init_continual(
            self,
            data,
            reset_class_information=reset_class_information,
            group=group,
            **settings,
        )

    def extend(
        self,
        data: Any,
        labels: Any = None,
        *,
        reuse_names: bool = False,
        again: bool = False,
        group: Any = None,
    ) -> ChangeReport:
        """Learn new classes, or more of the known ones, from new images alone: what that did.

        The result is the same to the bit as if all images had been there from the beginning. An
        image counts once, however often it comes; the report says how many were learned already.
        After an exception, whichever, nothing has changed.

        Args:
            data: an ImageDataset (of a split one the training images are learned from, the
                validation images set aside for threshold and temperature), DataLoaders, a
                DataLoader, a folder with a folder per class, a DataFrame with the columns path and
                label; or images: files, a folder of them, PIL images, arrays, tensors.
            labels: for images: a name for each, or one for all.
            reuse_names: take a name that a class had before `rename` or `merge_classes` for the
                name of another class.
            again: count images once more that their class has learned before.
            group: what each image belongs to (a burst, one part, one patient), as in
                `ImageDataset.split`: a column, a regular expression for its path, `{file: group}`,
                or one value per image. Threshold and temperature rest on whole groups left out, and
                on validation images of other groups.

        Raises:
            ContinualNotInitializedError: Call `init_continual` first.
            DataError: No images, labels missing, or a name that a class no longer has.
            UnreadableImagesError: Images cannot be read; all of them are named.
        """
        how = {"reuse_names": reuse_names, "again": again, "group": group}
        return continual.extend(self, data, labels, **how)

    def subtract(self, data: Any, labels: Any = None, *, validation: bool = False) -> ChangeReport:
        """Unlearn images as if they had never been there: takes back an `extend` of the same data.

        That is so whoever taught them: of images that an `extend` found learned already, as its
        report says, `subtract` takes out those, too, and `undo` only what that `extend` brought.

        Args:
            data: as for `extend`; of a split dataset, or DataLoaders, the training images are
                unlearned and the validation images no longer decide threshold and temperature.
            labels: as for `extend`.
            validation: whether all images given were validation images; of split ones, only
                the validation images are then taken out.

        Raises:
            ContinualNotInitializedError: Call `init_continual` first.
            DataError: No images, labels missing, or a class that is not known.
            StatisticsError: Images were not learned.
            UnreadableImagesError: Images cannot be read; all of them are named.
        """
        return continual.subtract(self, data, labels, validation=validation)

    def forget(self, name: str | Sequence[str]) -> ChangeReport:
        """Drop a class, or several at once: each keeps its number and may be learned again.

        None can win then. Of several all are forgotten or none, and one `undo` takes it back.

        Exact for a class of at most `memory` images; of a larger one the spread of the others stays
        in what all classes share, until they are learned again or subtracted; the notes of the
        report say so.
        """
        return continual.change(self, lambda head: head.forget(name))

    def rename(self, names: Mapping[str, str]) -> ChangeReport:
        """Call classes otherwise, `{old: new}`.

        Loaders and data labelled in the old way are still understood by `evaluate`, `validate` and
        the like; `extend` and `subtract` refuse former names, and say the present ones. Names that
        classes swapped tell nothing apart: the learner's own loaders are understood as in training,
        all other data, also beside `from_bundle`, by the present names.
        """
        names = new_names(names)
        return continual.change(self, lambda head: head.rename(names), renamed=names)

    def merge_classes(self, names: Sequence[str], into: str) -> ChangeReport:
        """Make one class of several; former names go on as after `rename`."""
        names = name_list("names", names)
        renamed = {name: into for name in names if name != into}
        return continual.change(self, lambda head: head.merge_classes(names, into), renamed=renamed)

    def merge(self, other: Any, *, reuse_names: bool = False) -> ChangeReport:
        """Learn all that another copy of this model has learned elsewhere: see `Predictor.merge`.

        Args:
            other: a learner or predictor over the same network, or its class statistics.
            reuse_names: see there.
        """
        return continual.merge(self, other, reuse_names=reuse_names)

    def undo(self) -> ChangeReport:
        """Take back the last change of the continual state, `calibrate` and `fit_ood` among them.

        Of a trained head nothing is taken back: its temperature is in its weights, and calibrating
        again fits it anew.
        """
        return continual.undo(self)

    @property
    def audit(self) -> AuditLog:
        """What was changed, when, how many images and what it led to; the last 1,000 changes."""
        return check_continual(self.continual).audit

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The names that `restore` knows."""
        return check_continual(self.continual).snapshots

    def snapshot(self, name: str) -> None:
        """Keep all that is known now under a name for `restore`; it travels with `export`.

        Eight names at most; one that is there already is given to what is known now.

        Raises:
            ContinualStateError: A name that is none, or too many of them.
        """
        continual.snapshot(self, name)

    def restore(self, name: str) -> ChangeReport:
        """Go back to what was known at `snapshot(name)`: what that did. `undo` takes it back.

        Raises:
            ContinualStateError: There is no such snapshot; the message lists those there are.
        """
        return continual.restore(self, name)

    def drop_snapshot(self, name: str) -> None:
        """Keep a snapshot no longer.

        Raises:
            ContinualStateError: There is no such snapshot.
        """
        check_continual(self.continual).drop_snapshot(name)

    def drop_continual(self) -> Self:
        """Leave the continual state: the trained head is back, what was learned since is gone."""
        return continual.drop_continual(self)

    def refit(
        self, data: Any, epochs: int = 1, *, group: Any = None, **training: Any
    ) -> ChangeReport:
        """Fine-tune on images of all classes and begin a new continual state with them.

        Args:
            data: a split ImageDataset, or DataLoaders: old and new images together.
            epochs: for `fine_tune`, as is `training`.
            group: what each image of `data` belongs to, see `extend`; with `ContinualLearning` as a
                callback it is that one's.
            **training: further arguments of `fine_tune`.

        Raises:
            DataError: Classes known now have no training images in `data`.
        """
        return continual.refit(self, data, epochs, group=group, **training)

    def calibrate(self, dl: Any = None, *, ds_idx: int = 1, group: Any = None) -> TemperatureFit:
        """Fit the temperature on images the network was not trained on: what it changed.

        The ranking of the classes never changes. A trained head takes the temperature into its last
        layer, so that it holds wherever probabilities come out, also after `save` or `export`.

        Args:
            dl: a loader, an ImageDataset (of a split one the validation images, if it has any) or
                an `Outputs`; the validation images by default.
            ds_idx: which of the learner's loaders, without `dl`.
            group: what each of these images belongs to, see `extend`; those of groups of which
                their class has learned others do not count.

        Raises:
            DataError: In the continual state, no image counts; or no group for an image.
            UncertaintyError: The head does not end in a layer that could take it up.
        """
        return uncertainty.calibrate(self, dl, ds_idx=ds_idx, group=group)

    def fit_ood(
        self, data: Any = None, *, validation: Any = None, group: Any = None, **settings: Any
    ) -> Threshold:
        """Fit an out-of-distribution (OOD) detector for a trained head: its threshold.

        Predictions then carry `.is_ood`, `.ood_score` and `.p_value`. Fitting again replaces it;
        training is refused until `clear_ood`.

        Args:
            data: the training data, as for `extend`; those of the learner by default.
            validation: images the network was not trained on, with labels, see `calibrate`; by
                default the validation split of `data`, or of the learner.
            group: what each image of `data` belongs to, see `extend`.
            **settings: `score`, `false_alarm_rate`, `guarantee`, `per_class`, `memory`; see
                `init_continual`.

        Raises:
            OodLockedError: In the continual state, which detects out-of-distribution images itself.
        """
        return uncertainty.fit_ood(self, data, validation=validation, group=group, **settings)

    def label_errors(
        self, data: Any = None, labels: Any = None, *, group: Any = None
    ) -> LabelErrors:
        """Labels that are probably wrong, the most suspicious first: see `Predictor.label_errors`.

        Ask before the network is trained on the images: afterwards it believes their labels.

        Args:
            data: Labelled images of any kind `extend` takes, all splits; default: the learner's.
            labels: As for `extend`.
            group: What belongs together and is left out together.
        """
        return uncertainty.label_errors_of(self, data, labels, group=group)

    def clear_ood(self) -> Self:
        """Remove what `fit_ood` made; training is allowed again."""
        self.state = replace(self.state, ood_detector=None)
        return self

    def plot_ood(self, ood: Any = None, *, dl: Any = None, ds_idx: int = 1, ax: Any = None) -> Any:
        """Axes with the OOD scores of known images, the threshold, and the scores of other images.

        Args:
            ood: images of no known class, if there are any: a loader, a folder, files.
            dl: known images: a loader, an ImageDataset or an `Outputs`.
            ds_idx: which of the learner's loaders, without `dl`.
            ax: where to draw.
        """
        known, threshold, unknown = uncertainty.scores_to_plot(self, ood, dl=dl, ds_idx=ds_idx)
        return plot_ood(known, threshold, unknown, ax=ax)

"""A learner's way out: the Predictor over its model, and the bundle with its card and probes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.learner import Learner

from learnkit.bundle.write import save_bundle
from learnkit.continual.classifier import continual_head
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor
from learnkit.inference.prediction import Prediction
from learnkit.interpret.outputs import collect_outputs
from learnkit.interpret.source import class_names
from learnkit.learner.adopt import spec_of
from learnkit.learner.dataloaders import is_multi_label
from learnkit.learner.transforms import preprocessing_of

N_PROBES = 4


def predictor_of(learn: Learner) -> Predictor:
    """Return a Predictor that shares the learner's model and reads images as its validation does.

    Raises:
        ExportError: A validation transform is code; the message names it.
    """
    classes = class_names(learn)
    recipe = preprocessing_of(learn.dls)
    continual = continual_head(learn.model) is not None
    return Predictor(
        learn.model,
        recipe,
        classes,
        multi_label=is_multi_label(learn.dls),
        detector=None if continual else getattr(learn, "ood_detector", None),
    )


def predict_one(learn: Learner, item: Any, *, with_input: bool = False) -> Any:
    """Return the Prediction of one item; with `with_input`, (input image, label, index, probs)."""
    predictor = predictor_of(learn)
    prediction = predictor.predict(item)
    return (predictor.preprocessing.read(item), *prediction) if with_input else prediction


def predict_items(learn: Learner, items: Iterable[Any], *, bs: int = 64) -> list[Prediction]:
    """Return one Prediction per item, in order."""
    return predictor_of(learn).predict_batch(items, bs=bs)


def export_learner(learn: Learner, path: str | Path, *, evaluate: bool = True) -> Path:
    """Return the folder of the bundle written; the learner goes on as before.

    Raises:
        ExportError: Something about the learner cannot travel as data; the message names it.
        BundleWriteError: The folder could not be written; what stood there still does.
    """
    predictor = predictor_of(learn)
    learn.model.spec = spec_of(learn)
    probes = probe_images(learn, predictor.preprocessing)
    save_bundle(path, predictor, card=_card(learn, evaluate=evaluate), probes=probes)
    return Path(path)


def probe_images(learn: Learner, recipe: Preprocessing) -> torch.Tensor | None:
    """Return a few validation images uint8 (n, C, H, W); None if they are not files."""
    files = [item for item in learn.dls.valid_ds.items if isinstance(item, str | Path)]
    if not files:
        return None
    chosen = np.linspace(0, len(files) - 1, min(N_PROBES, len(files))).astype(int)
    return torch.stack([recipe.load(files[i]) for i in chosen])


def _card(learn: Learner, *, evaluate: bool) -> dict[str, Any]:
    """Return what the model card says of data, training and measures."""
    card = {"data": _data_facts(learn), "training": _training_facts(learn)}
    if evaluate:
        evaluation = collect_outputs(learn).evaluate()
        card["measures"] = evaluation.summary.to_dict()
        table = evaluation.per_class.rename_axis("class").reset_index()
        card["per_class"] = table.to_dict("records")
    return card


def _data_facts(learn: Learner) -> dict[str, Any]:
    """Return the number of images per split and the dataset's fingerprint, where known."""
    names = ("training images", "validation images", "test images")
    facts = {name: len(dl.dataset) for name, dl in zip(names, learn.dls.loaders, strict=False)}
    dataset = getattr(learn.dls, "image_dataset", None)
    return facts if dataset is None else facts | {"fingerprint": dataset.fingerprint()}


def _training_facts(learn: Learner) -> dict[str, Any]:
    """Return what the history knows of the training: epochs and the last row's numbers."""
    history = learn.training_history.frame
    if history.empty:
        return {"epochs": 0}
    last = history.iloc[-1]
    return {"epochs": len(history), **{f"last {k}": last[k] for k in ("train_loss", "valid_loss")}}

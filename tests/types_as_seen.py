"""What mypy and pyright see of learnkit's names: `make types` checks it, and nothing runs it."""

from pathlib import Path

import pandas as pd
from PIL.Image import Image
from typing_extensions import assert_type

import learnkit
from learnkit import Evaluation, ImageDataset, ImageLearner, Prediction, Predictor
from learnkit.all import (
    Checkpoint,
    ClassificationInterpretation,
    ConversionReport,
    DataLoaders,
    FrozenFeatures,
    Learner,
    Outputs,
    RuntimePredictor,
    accuracy,
    cnn_learner,
    load_learner,
    load_runtime,
    read_image,
)


def data() -> None:
    images = ImageDataset.from_folder("parts").split(train=0.8, valid=0.2, seed=1)
    assert_type(images, ImageDataset)
    assert_type(images.train, ImageDataset)
    assert_type(images.classes, list[str])
    assert_type(images.check(), pd.DataFrame)
    assert_type(images.dataloaders(size=224), DataLoaders)
    assert_type(read_image("part.png"), Image)


def learning(loaders: DataLoaders) -> None:
    learn = cnn_learner(
        loaders, "resnet18", metrics=accuracy, cbs=[FrozenFeatures(), Checkpoint("run")]
    )
    assert_type(learn, ImageLearner)
    assert isinstance(learn, Learner)
    assert_type(learn.interpret(), ClassificationInterpretation)
    assert_type(learn.outputs(), Outputs)
    assert_type(learn.evaluate(), Evaluation)
    assert_type(learn.predict("part.png"), Prediction)
    assert_type(learn.export("model"), Path)
    assert_type(ImageLearner.from_bundle("model"), ImageLearner)


def deployment(allowed: bool) -> None:
    model = load_learner("model")
    assert_type(model, Predictor)
    assert_type(learnkit.load_learner("model", variant="float32"), Predictor)
    assert_type(load_learner("model", allow_pickle=False), Predictor)
    pickled = load_learner("export.pkl", allow_pickle=allowed)
    pickled.show_results()  # a Learner of fastai's: anything goes
    assert_type(load_runtime("model"), RuntimePredictor)
    assert_type(model.predict("part.png"), Prediction)
    assert_type(model.predict_folder("parts"), pd.DataFrame)
    assert_type(model.optimize("int8"), tuple[Predictor, ConversionReport])
    assert_type(model.predict("part.png").is_ood, bool | None)
    assert_type(model.predict("part.png").prediction_set(0.1), tuple[str, ...])

"""Equal bits: rows in bulk whatever stands beside them, and what is derived with more threads.

The networks have random weights: how sums are rounded does not depend on what they are of.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import learnkit._torchvision  # noqa: F401  # before timm

import numpy as np
import torch
from _features import Split

from learnkit.continual.classifier import ContinualClassifier
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor
from learnkit.deploy.runtime_predictor import RuntimePredictor
from learnkit.models.create import create_cnn_model
from learnkit.optimize.convert import Converter

NETWORKS = {"mobilenetv2_100": 112, "vit_tiny_patch16_224": 224}
PLACES = (0, 9, 16)  # of 17 images: these are predicted alone, too
QUIET = {"n_workers": 0, "progress": False}


def rows(features_by_name: Mapping[str, Mapping[str, Split]], draws: int) -> Iterator[dict]:
    """Rows of the table: bits that differ are to be none."""
    for draw in range(draws):
        for name, splits in features_by_name.items():
            yield from _derived(name, splits["train"], draw)
        for network in NETWORKS:
            for made_by in (_with_torch, _without_torch):
                yield from _bulk(network, made_by, draw)


def _derived(name: str, split: Split, draw: int) -> Iterator[dict]:
    """Threshold and temperature with more threads beside those with one."""
    chosen = np.random.default_rng(draw).permutation(len(split.labels))[:300]
    images = split.features[chosen].float(), split.labels[chosen].tolist()
    before, found = torch.get_num_threads(), {}
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        head = ContinualClassifier(images[0].shape[1])
        head.extend(*images)
        found[threads] = head.threshold.value, head.temperature
    torch.set_num_threads(before)
    for threads in (2, 4):
        for metric, value, one in zip(
            ("threshold off", "temperature off"), found[threads], found[1], strict=True
        ):
            about = {"promise": "same bits with any threads", "case": f"{threads} threads"}
            yield {**about, "data": name, "metric": metric, "value": abs(value - one), "draw": draw}


def _bulk(network: str, made_by: Any, draw: int) -> Iterator[dict]:
    """Rows of images alone, and beside a file that cannot be read, against those among others."""
    images = list(np.random.default_rng(draw).integers(0, 256, (48, 64, 64, 3), np.uint8))
    predictor = made_by(network)
    ways = {
        "17 images": predictor.predict_files(images[:17], **QUIET),
        "beside a broken file": predictor.predict_files([b"", *images[:17]], **QUIET)[1:],
        "48 images": predictor.predict_files(images, **QUIET),
    }
    for place in PLACES:
        alone = predictor.predict_files(images[place : place + 1], **QUIET).iloc[0]
        for case, table in ways.items():
            for metric in ("confidence", "ood_score"):
                yield {
                    "promise": f"same bits as alone ({made_by.__name__.strip('_')})",
                    "data": network,
                    "case": case,
                    "metric": f"{metric} off",
                    "value": abs(float(table.iloc[place][metric]) - float(alone[metric])),
                    "draw": draw,
                }


@functools.cache
def _with_torch(network: str) -> Predictor:
    """A network in the continual state that has learned noise of three brightnesses."""
    size, rng = NETWORKS[network], np.random.default_rng(0)
    torch.manual_seed(0)
    trained = create_cnn_model(network, 3, pretrained=False, img_size=size)
    head = ContinualClassifier(trained[0].n_features)
    model, model_spec = torch.nn.Sequential(trained[0], head), trained.spec
    model.spec = model_spec
    scale = Preprocessing(size, mean=[0.5] * 3, std=[0.5] * 3)
    predictor = Predictor(model, scale, owns_model=True)
    images = [rng.integers(20 * k, 256 - 20 * k, (64, 64, 3), np.uint8) for k in (0, 2, 4) * 8]
    predictor.extend(images, [f"class {k}" for k in (0, 2, 4) * 8], **QUIET)
    return predictor


@functools.cache
def _without_torch(network: str) -> RuntimePredictor:
    """The same in onnxruntime."""
    float32 = _with_torch(network).record
    samples = np.zeros((0, *float32.network.shape), np.uint8)
    converted = Converter(float32, samples, progress=False).convert("onnxruntime", "float32", {})
    changes = {
        "network": converted.open(float32.preprocessing, threads=1),
        "names": float32.classes,
        "head": None,
        "stored": float32.head.scoring,
        "variant": converted.name,
    }
    return RuntimePredictor(float32.replace(**changes))

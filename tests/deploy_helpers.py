"""A tiny network with random weights, the predictor over it, and ways to damage a bundle."""

import contextlib
import hashlib
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from learnkit.continual.classifier import ContinualClassifier
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor
from learnkit.errors import BundleNotFoundError
from learnkit.models.create import create_cnn_model
from learnkit.optimize import trials
from learnkit.optimize.timing import Times
from learnkit.storage.read_folder import read_folder

CLASSES = ["ok", "NO", "ß/<b>"]
PLAIN_HEAD = {"lin_ftrs": [], "ps": 0.0, "concat_pool": False, "first_bn": False}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


OLD = {"config.json": b'{"v": 1}', "model.safetensors": b"old" * 1000}
NEW = {"config.json": b'{"v": 2}', "model.safetensors": b"new!" * 1000, "variants/m.onnx": b"x"}


def make_model(arch="test_efficientnet", n_out=3, *, seed=0, size=32, **kwargs):
    """A network with random weights whose logits differ visibly between images."""
    torch.manual_seed(seed)
    model = create_cnn_model(arch, n_out, pretrained=False, img_size=size, **kwargs)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        model.eval()
        noise = torch.rand(16, kwargs.get("n_in", 3), size, size) * torch.rand(16, 1, 1, 1)
        logits = model(noise)
        model[1][-1].weight.mul_(0.3 / logits.std(0, keepdim=True).T)
        model[1][-1].bias.copy_(-(model(noise) - model[1][-1].bias).mean(0))
    return model


def make_predictor(model=None, *, size=32, classes=CLASSES, **kwargs):
    model = make_model(**PLAIN_HEAD) if model is None else model
    return Predictor(model, Preprocessing(size, **IMAGENET), classes, **kwargs)


def rewrite(path, name, change):
    """Replace a file of a bundle by `change(its bytes)`, and make the manifest say so.

    What is left to protect the reader is everything but the hashes: a stranger's bundle.
    """
    data = change((path / name).read_bytes())
    (path / name).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def edit_config(path, change):
    """Let `change` edit what config.json says under `learnkit`."""

    def edited(data):
        config = json.loads(data)
        change(config["learnkit"])
        return json.dumps(config).encode()

    rewrite(path, "config.json", edited)


def edit_tensors(path, change, name="model.safetensors"):
    """Let `change` edit the tensors of one file."""

    def edited(data):
        tensors = safetensors.torch.load(data)
        change(tensors)
        return safetensors.torch.save(tensors)

    rewrite(path, name, edited)


def section(path):
    """What config.json says under `learnkit`."""
    return json.loads((path / "config.json").read_text(encoding="utf-8"))["learnkit"]


def content(path):
    """What a reader finds: the files' bytes, or None where there is no bundle."""
    try:
        return read_folder(path, wanted={*OLD, *NEW}).files
    except BundleNotFoundError:
        return None


def shades(name, n, *, seed=0, size=32):
    """`n` noisy one-colour images uint8 (size, size, 3); the colour follows from the name."""
    rng = np.random.default_rng([seed, *name.encode()])
    base = np.frombuffer(hashlib.sha256(name.encode()).digest()[:3], np.uint8).astype(int)
    noise = rng.integers(-40, 40, (n, size, size, 3)) + rng.integers(-15, 15, (n, 1, 1, 3))
    return list((base + noise).clip(0, 255).astype("uint8"))


def strange(n, *, seed=0, size=32):
    """`n` images of coarse black and white squares: nothing like `shades`."""
    rng = np.random.default_rng([99, seed])
    squares = rng.integers(0, 2, (n, 4, 4, 1)).repeat(3, 3) * 255
    return list(squares.repeat(size // 4, 1).repeat(size // 4, 2).astype("uint8"))


def make_continual(counts=None, *, arch="test_efficientnet", size=32, seed=0, **settings):
    """A predictor in the continual state that has learned `counts[name]` shades of each class."""
    model = make_model(arch, size=size, seed=seed, **PLAIN_HEAD)
    head = ContinualClassifier(model[0].n_features, **{"memory": 8, **settings})
    spec, model = model.spec, torch.nn.Sequential(model[0], head)
    model.spec = spec
    predictor = Predictor(model, Preprocessing(size, **IMAGENET), owns_model=True)
    if counts:
        predictor.extend(*labelled(counts, size=size), progress=False)
    return predictor


def renamed_as_before(predictor, names):
    """The predictor, classes called otherwise as in a state of an earlier version: by any name."""
    head = predictor.continual
    config, tensors = head.state()
    now = [names.get(name, name) for name in config["class_names"]]
    head.history = type(head).from_state(config | {"class_names": now}, tensors).history
    return predictor


def labelled(counts, *, seed=0, size=32):
    """Images and labels: `counts[name]` shades of each class."""
    images = [
        image for name, n in counts.items() for image in shades(name, n, seed=seed, size=size)
    ]
    return images, [name for name, n in counts.items() for _ in range(n)]


@contextlib.contextmanager
def without_timing():
    """Conversions are all as fast as each other, and none is run to find out."""
    times = lambda runs, pixels, *, batches, progress: {
        name: dict.fromkeys(batches, Times(1.0, 1.0)) for name in runs
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "measure", times)
        patch.setattr("learnkit.backends.registry.has_bfloat16", lambda: True)
        yield

"""Small image folders and networks that many tests need."""

from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / "shared"


def write_image_folder(root, counts, *, size=(24, 20), seed=0):
    """Write `counts[name]` noisy one-colour PNG files under `root/name/` each; return root."""
    rng = np.random.default_rng(seed)
    for index, (name, n) in enumerate(counts.items()):
        folder = Path(root) / name
        folder.mkdir(parents=True, exist_ok=True)
        base = np.array([(index * 83) % 256, (index * 151 + 60) % 256, (index * 37 + 120) % 256])
        for i in range(n):
            pixels = base + rng.integers(-20, 20, (*size, 3))
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{i:03d}.png")
    return Path(root)


def toy_learner(cbs=None, *, n=40, bs=8, seed=0, **kwargs):
    """A silent fastai learner over random vectors in two classes, the last 10 to validate on."""
    import fastai.callback.schedule  # noqa: F401  # fit_one_cycle, fine_tune, lr_find
    import torch
    from fastai.basics import DataLoaders, L, Learner, accuracy, noop
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = torch.randn(n, 4)
        layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
    items = L(list(zip(x, (x[:, 0] > 0).long(), strict=True)))
    dls = DataLoaders.from_dsets(items[:-10], items[-10:], bs=bs, num_workers=0, device="cpu")
    model = nn.Sequential(nn.Sequential(*layers[:3]), nn.Sequential(*layers[3:]))
    learn = Learner(
        dls,
        model,
        loss_func=nn.CrossEntropyLoss(),
        metrics=accuracy,
        cbs=cbs,
        splitter=_two_groups,
        **kwargs,
    )
    if hasattr(learn, "progress"):
        learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn


def _two_groups(model):
    return [list(model[0].parameters()), list(model[1].parameters())]


def tiny_cnn(n_out, *, stride=2):
    """Return a body and a head with random weights that spread predictions over the classes."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(3)
        body = nn.Sequential(nn.Conv2d(3, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU())
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, n_out)]
        nn.init.normal_(head[-1].weight, std=3.0)
    return nn.Sequential(body, nn.Sequential(*head))


def tiny_learner(data, **kwargs):
    """A silent learner over an `ImageDataset`, with the same random weights every time."""
    import torch

    from learnkit.learner.factory import cnn_learner

    with torch.random.fork_rng():
        torch.manual_seed(0)
        learn = cnn_learner(data.dataloaders(size=32, bs=6), "test_resnet", False, **kwargs)
    learn.logger = lambda *_: None
    return quiet(learn)


def quiet(learn):
    """Return the learner without its progress bars."""
    if hasattr(learn, "progress"):
        learn.remove_cb(learn.progress)
    return learn


def show_progress_at_once(monkeypatch):
    """Let a line of progress be written whenever something is done, not after seconds."""
    from learnkit.report.progress import Progress

    def advance(self, n=1):
        self.n_done += n
        self.show()

    monkeypatch.setattr(Progress, "advance", advance)

"""Fixtures every test shares: seeds, threads, a silent matplotlib, and small real images."""

import shutil
import tempfile

import learnkit._torchvision  # noqa: F401  # before anything imports torchvision

import matplotlib as mpl
import numpy as np
import pytest
import torch

mpl.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # fastai and third parties draw from the global state
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture
def short_tmp(monkeypatch, tmp_path):
    """A temporary folder near the root, for processes that talk to each other.

    Python puts their sockets there, and the path of a socket has at most 107 characters. Pytest's
    own `tmp_path` is asked for first, so that it stays where it was.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture
def predictor():
    """The tiny predictor."""
    from deploy_helpers import make_predictor

    return make_predictor()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """(path, digest) of a bundle of the tiny predictor; not to be changed."""
    from deploy_helpers import make_predictor

    path = tmp_path_factory.mktemp("bundle") / "model"
    return path, make_predictor(metadata={"note": "x"}).save(path, card={"name": "Parts"})


@pytest.fixture
def copy(bundle, tmp_path):
    """A copy of the module's `bundle`, to be damaged."""
    return shutil.copytree(bundle, tmp_path / "model")

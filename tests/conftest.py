"""Fixtures every test shares: seeds, threads, a silent matplotlib, and small real images."""

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

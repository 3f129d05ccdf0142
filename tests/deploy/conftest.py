"""The tiny predictor, and the bundle written from it once."""

import shutil

import pytest
from deploy_helpers import make_predictor


@pytest.fixture
def predictor():
    return make_predictor()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """(path, digest) of a bundle; not to be changed."""
    path = tmp_path_factory.mktemp("bundle") / "model"
    return path, make_predictor(metadata={"note": "x"}).save(path, card={"name": "Parts"})


@pytest.fixture
def copy(bundle, tmp_path):
    """A copy of the module's `bundle`, to be damaged."""
    return shutil.copytree(bundle, tmp_path / "model")

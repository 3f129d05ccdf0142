"""What the tests of the application share: a model that learns, and clients of it."""

import copy
from functools import partial

import pytest
import torch
from deploy_helpers import make_continual
from serving_helpers import check_described

from learnkit import Predictor


@pytest.fixture(scope="module")
def learned():
    return make_continual({"ok": 6, "<b>bad": 5})


@pytest.fixture
def predictor(learned):
    """A predictor of its own over the network that all share."""
    body, head = learned.model
    model = torch.nn.Sequential(body, copy.deepcopy(head))
    model.spec = learned.model.spec
    return Predictor(model, learned.preprocessing, owns_model=True)


@pytest.fixture
def serving(predictor, tmp_path):
    """A function that gives a client of an application over `predictor`, or another one."""
    from starlette.testclient import TestClient

    from learnkit.serving.app import create_app

    with_exit = []

    def start(model=predictor, *, raises=True, **options):
        app = create_app(model, **options)
        client = TestClient(app, raise_server_exceptions=raises)
        client.event_hooks["response"].append(partial(check_described, app.openapi()))
        with_exit.append(client.__enter__())
        return client

    yield start
    for client in with_exit:
        client.__exit__(None, None, None)

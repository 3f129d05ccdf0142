"""The examples that put a model to work, in other people's servers too, work as they stand."""

import asyncio
import base64
import importlib.util
from pathlib import Path

import pytest
from deploy_helpers import make_continual, shades, strange
from PIL import Image
from serving_helpers import png

from learnkit import load_learner

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("examples") / "model"
    make_continual({"ok": 6, "bad": 5}).save(path)
    return str(path)


def example(name):
    """The module in a file of the examples."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("short_tmp")
def test_litserve_answers_what_the_model_says(model, monkeypatch):
    pytest.importorskip("litserve")
    from litserve.utils import wrap_litserve_start
    from starlette.testclient import TestClient

    monkeypatch.syspath_prepend(EXAMPLES)  # the worker process imports it by its name
    import litserve_server

    images = [png(image) for image in (*shades("ok", 1), *strange(1))]
    with (
        wrap_litserve_start(litserve_server.make_server(model)) as server,
        TestClient(server.app) as client,
    ):
        for image in images:
            answer = client.post("/predict", json={"image": base64.b64encode(image).decode()})
            expected = load_learner(model).predict(image).to_dict()
            found = answer.json()
            assert (found["label"], found["is_ood"]) == (expected["label"], expected["is_ood"])
            assert found["probs"] == pytest.approx(expected["probs"], abs=1e-5)
        for wrong in ({"image": "%%"}, {}, {"image": "QUJD"}):
            answer = client.post("/predict", json=wrong)
            assert (answer.status_code, "cannot be read" in answer.json()["error"]) == (422, True)


def test_gradio_shows_what_the_model_says(model, tmp_path):
    pytest.importorskip("gradio")

    async def made():  # where no event loop runs, gradio makes some and closes none
        return example("gradio_app").make_app(model)

    app = asyncio.run(made())
    shown = next(iter(app.fns.values()))
    Image.fromarray(shades("ok", 1)[0]).save(tmp_path / "a.png")
    Image.fromarray(strange(1)[0]).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"x")
    probs, remark = shown.fn(str(tmp_path / "a.png"))
    assert probs == dict(load_learner(model).predict(tmp_path / "a.png").ranking)
    assert remark.startswith("of a known kind")
    assert shown.fn(str(tmp_path / "b.png"))[1].startswith("unlike the images it knows")
    assert shown.fn(str(tmp_path / "c.png")) == ({}, "This file cannot be read as an image.")
    assert shown.fn(None)[0] == {}
    assert [component.label for component in shown.outputs] == ["Class", "Known?"]


def test_parts_are_counted_and_what_is_none_is_listed(model, tmp_path, capsys):
    known, odd = shades("ok", 3), strange(1)
    for place, pixels in enumerate([*known, *odd]):
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = example("count_parts").count(Path(model), tmp_path)
    expected = [load_learner(model).predict(tmp_path / f"{n}.png") for n in range(4)]
    labels = [one.label for one in expected if not one.is_ood]
    assert found.classes == {name: labels.count(name) for name in set(labels)}
    assert found.unknown == [tmp_path / "3.png"]
    assert list(found.unread) == [tmp_path / "notes.txt"]

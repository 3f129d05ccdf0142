"""Metrics as Prometheus reads them: by its own client's parser."""

import os
import subprocess
import sys

import pytest
from deploy_helpers import make_predictor, shades, strange
from serving_helpers import BEARER, TOKEN, form, png

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families as families

from learnkit.serving.metrics import MOST_LABELS, Metrics


def read(client):
    """Each sample's value by name and labels."""
    text = client.get("/metrics").text
    samples = (sample for family in families(text) for sample in family.samples)
    return {(one.name, *sorted(one.labels.items())): one.value for one in samples}


def test_what_became_of_images_is_counted(serving):
    client = serving()
    images = [png(image) for image in (*shades("ok", 3), *shades("<b>bad", 2), *strange(1))]
    client.post("/predict", files=form(*images, b"no image"))
    client.post("/predict", content=b"no image")
    found = read(client)
    assert found["learnkit_predictions_total", ("label", "ok")] == 3
    assert found["learnkit_predictions_total", ("label", "<b>bad")] == 2
    assert found["learnkit_unknown_images_total",] == 1
    assert found["learnkit_failed_images_total",] == 2


def test_labels_are_counted_one_by_one_where_there_are_several(serving):
    client = serving(make_predictor(multi_label=True, threshold=1e-6))
    client.post("/predict", content=png(strange(1)[0]))
    found = read(client)
    names = ("ok", "NO", "ß/<b>")
    assert [found["learnkit_predictions_total", ("label", name)] for name in names] == [1, 1, 1]


def test_answers_and_their_time_are_counted_by_path(serving):
    client = serving()
    for path in ("/health", "/health", "/nothing", "/" + "x" * 99, "/predict"):
        client.get(path)
    found = read(client)
    answers = lambda path, status: found.get(
        ("learnkit_answers_total", ("path", path), ("status", status))
    )
    assert answers("/health", "200") == 2
    assert answers("other", "404") == 2
    assert answers("/predict", "405") == 1
    assert found["learnkit_request_seconds_count", ("path", "/health")] == 2
    assert 0 < found["learnkit_request_seconds_sum", ("path", "/health")] < 60


def test_what_was_taught_and_what_is_known_are_told(serving):
    client = serving(allow_extend=True, token=TOKEN)
    images = form(*[png(image) for image in shades("new", 3)])
    client.post("/extend?label=new", files=images, headers=BEARER)
    client.post("/extend?label=new", files=images, headers=BEARER)  # nothing new in it
    found = read(client)
    assert found["learnkit_learned_images_total",] == 3
    assert found["learnkit_class_images", ("label", "new")] == 3
    assert found["learnkit_class_images", ("label", "ok")] == 6
    client.post("/undo", headers=BEARER)
    client.post("/undo", headers=BEARER)
    found = read(client)
    assert found["learnkit_learned_images_total",] == 3
    assert ("learnkit_class_images", ("label", "new")) not in found


@pytest.mark.parametrize("name", ["a", 'say "hi"', "a\\b", "two\nlines", "ü{}", "\\n"])
def test_no_name_of_a_class_breaks_a_line(name):
    metrics = Metrics(lambda: {"class_images": [(name, 7)]})
    (sample,) = (
        one
        for family in families(metrics.text().decode())
        for one in family.samples
        if one.name == "learnkit_class_images"
    )
    assert (sample.labels, sample.value) == ({"label": name}, 7)


def test_who_makes_up_classes_makes_up_no_lines_without_end():
    gauges = {"class_images": [(f"c{number}", number) for number in range(1000)]}
    metrics = Metrics(lambda: gauges)
    for number in range(1000):
        assert metrics._bounded(f"c{number}") == (f"c{number}" if number < MOST_LABELS else "")
    assert metrics._bounded("c7") == "c7"
    lines = metrics.text().decode().splitlines()
    assert sum("class_images{" in line for line in lines) == MOST_LABELS + 1


def test_without_the_package_all_else_works(serving, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    client = serving()
    assert client.post("/predict", content=png(shades("ok", 1)[0])).status_code == 200
    answer = client.get("/metrics")
    assert answer.status_code == 501
    assert 'pip install "learnkit[serve]"' in answer.json()["error"]


def test_processes_that_share_a_folder_are_counted_together(tmp_path):
    code = """
from learnkit.serving.metrics import Metrics
metrics = Metrics(lambda: {"requests": [(None, 1)]})
metrics.learned(2)
metrics.answered("/health", 200, 0.1)
print(metrics.text().decode())
"""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for n in (1, 2):
        text = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            encoding="utf-8",
        ).stdout
        assert f"learnkit_learned_images_total {2 * n:.1f}" in text
        assert f'learnkit_request_seconds_count{{path="/health"}} {n:.1f}' in text
        assert "learnkit_requests " not in text

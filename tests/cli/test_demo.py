from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from learnkit.cli.demo import (
    MARKER,
    PLAN,
    prepare_folder,
    run_demo,
    write_digits,
    write_photographs,
)
from learnkit.cli.train import demo
from learnkit.data.image import read_image
from learnkit.deploy.predictor import load_learner
from learnkit.errors import DataError

SMALL = replace(PLAN, epochs=1, arch="test_resnet", arch_kwargs={})


def test_digits_are_written_once_with_the_pixels_of_scikit_learn(tmp_path):
    assert write_digits(tmp_path, 60) == (60, 60)
    assert write_digits(tmp_path, 60) == (0, 60)
    digits = load_digits()
    for i in (0, 17, 59):
        pixels = np.asarray(
            read_image(tmp_path / str(digits.target[i]) / f"{i:04d}.png", channels=1)
        )
        assert np.abs(pixels / 255 * 16 - digits.images[i]).max() < 0.04


def test_photographs_are_cut_into_patches_that_do_not_overlap(tmp_path):
    n = write_photographs(tmp_path)
    photograph = load_sample_images().images[0]
    assert n == len(list(tmp_path.iterdir())) == 2 * (427 // 64) * (640 // 64)
    second = np.asarray(read_image(tmp_path / "001.png"))
    assert np.array_equal(second, photograph[:64, 64:128])


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it", encoding="utf-8")
    with pytest.raises(DataError, match="is not empty and was not made by the demo"):
        prepare_folder(tmp_path)
    with pytest.raises(DataError, match="is the file"):
        prepare_folder(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_results_of_an_earlier_demo_are_removed_first_and_digits_kept(tmp_path):
    prepare_folder(tmp_path / "demo")
    write_digits(tmp_path / "demo" / "digits", 3)
    (tmp_path / "demo" / "predictions.csv").write_text("old", encoding="utf-8")
    (tmp_path / "demo" / "model").mkdir()
    prepare_folder(tmp_path / "demo")
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == [MARKER, "digits"]


def test_every_step_runs_and_every_file_listed_is_there(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "demo"
    with pytest.warns(UserWarning, match="No heatmap is drawn"):  # this network is too coarse
        run_demo(out, plan=SMALL, n_images=200)
    said = capfd.readouterr().out.replace("\n", "")
    assert all(f"{step}/10" in said for step in range(1, 11))
    assert "fastai was not imported" in said
    pictures = ["confusion_matrix.png", "top_losses.png", "training_curve.png", "unknown.png"]
    for name in ["digits", "photographs", *pictures, "predictions.csv", "model", "to-label"]:
        assert (out / name).exists()
        assert str(out / name) in said
    assert len(pd.read_csv(out / "predictions.csv")) == 200
    assert load_learner(out / "model").continual.classes == tuple("0123456789")
    assert f"learnkit label {out / 'to-label' / 'model'} {out / 'to-label' / 'inbox'}" in said
    unfinished = load_learner(out / "to-label" / "model")
    assert unfinished.continual.classes == tuple("0123456")
    waiting = sorted((out / "to-label" / "inbox").iterdir())
    assert sum(path.name.startswith("photograph") for path in waiting) == 24
    n_learned = sum(unfinished.continual.n_images.values())
    unfinished.extend([path for path in waiting if path.name.startswith("digit")], "held out")
    n_held_out = unfinished.continual.n_images["held out"]
    assert sum(unfinished.continual.n_images.values()) == n_learned + n_held_out, "none was seen"
    assert n_held_out == len(waiting) - 24 > 0
    opened = []
    monkeypatch.setattr("learnkit.cli.label.label", lambda *args, **how: opened.append((args, how)))
    demo(out, label=True)  # it is there: nothing is trained, the page opens at once
    model, inbox = out / "to-label" / "model", out / "to-label" / "inbox"
    assert opened == [((str(model), inbox), {"port": 0})]
    assert sorted(inbox.iterdir()) == waiting
    for name in pictures:
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200


def test_the_plan_leaves_the_heatmaps_a_map_to_speak_of():
    from learnkit.models.body import create_body

    body = create_body(PLAN.arch, False, n_in=1, img_size=PLAN.size, **PLAN.arch_kwargs)
    assert PLAN.size / body.reduction >= 4

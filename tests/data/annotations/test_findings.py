"""`check` finds masks and boxes that cannot be learned from as they are."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from learnkit.data.annotations.masks import write_mask
from learnkit.data.dataset import ImageDataset

NOISE = np.random.default_rng(0).integers(0, 256, (8, 40, 60), np.uint8)


def image(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(NOISE[number]).save(path)


def found(data, **options):
    table = data.check(progress=False, min_images=1, **options)
    chosen = table[table["finding"].str.contains("mask|box|anomaly")]
    return {tuple(row) for row in chosen[["finding", "severity", "path"]].to_numpy()}


BOXES = [
    [(1, 1, 9, 9), (20, 5, 30, 9)],
    [(1, 1, 9, 9), (1, 1, 9, 9)],
    [(1, 1, 9, 3.5)],
    [(50, 1, 69, 9)],
    [(50, 1, 80, 9)],
]


def test_boxes_outside_twice_or_tiny_are_found(tmp_path):
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(5)], "boxes": BOXES})
    for number, path in enumerate(frame["path"]):
        image(tmp_path / path, number)
    frame["box_labels"] = [["a"] * len(one) for one in BOXES]
    data = ImageDataset(frame, tmp_path)
    wanted = {
        ("duplicate boxes", "warning", "1.png"),
        ("tiny boxes", "info", "2.png"),
        ("boxes outside the image", "warning", "3.png"),
        ("boxes outside the image", "error", "4.png"),
    }
    assert found(data) == found(data, fast=True) == wanted
    left = data.drop(data.check(progress=False, min_images=1).query("severity == 'error'"))
    assert "4.png" not in left.frame["path"].tolist()


def test_rotated_boxes_are_outside_by_their_middle(tmp_path):
    rows = [[(5, 5, 9, 2, 1.0)], [(61, 5, 9, 2, 1.0)]]
    frame = pd.DataFrame({"path": ["0.png", "1.png"], "rotated_boxes": rows})
    frame["box_labels"] = [["a"], ["a"]]
    for number, path in enumerate(frame["path"]):
        image(tmp_path / path, number)
    assert found(ImageDataset(frame, tmp_path)) == {("boxes outside the image", "error", "1.png")}


@pytest.fixture
def screws(tmp_path):
    parts = [("train", "good"), ("train", "bent"), ("test", "good"), ("test", "bent")]
    for number, (part, kind) in enumerate(parts):
        image(tmp_path / part / kind / f"{number}.png", number)
    write_mask(tmp_path / "ground_truth" / "bent" / "3_mask.png", np.eye(40, 60, dtype=np.uint8))
    return tmp_path


def test_anomalies_that_are_learned_from_and_masks_that_say_nothing_are_found(screws):
    data = ImageDataset.from_folder(screws, good="good")
    assert found(data) == {("anomaly in train", "error", "train/bent/1.png")}
    few = data.check(progress=False, min_images=2).query("finding == 'few images'")
    assert few["class"].tolist() == ["good"]  # no bent screw is needed
    mask = screws / "ground_truth" / "bent" / "3_mask.png"
    write_mask(mask, np.zeros((40, 60), int))
    blank = ("blank mask", "warning", "test/bent/3.png")
    assert blank in found(data)
    assert blank not in found(data, fast=True)
    write_mask(mask, np.zeros((4, 6), int))
    assert ("wrong mask", "error", "test/bent/3.png") in found(data)
    frame = data.frame.assign(mask=["", "", "", ""])
    frame.loc[frame["path"] == "test/good/2.png", "mask"] = "ground_truth/bent/3_mask.png"
    write_mask(mask, np.ones((40, 60), int))
    good = ImageDataset.from_df(frame, screws, good="good")
    assert ("mask of a good image", "error", "test/good/2.png") in found(good)


def test_masks_of_no_class_are_found(tmp_path):
    for number in range(2):
        image(tmp_path / "images" / f"{number}.png", number)
        write_mask(tmp_path / "masks" / f"{number}.png", np.full((40, 60), 9 * number))
    data = ImageDataset.from_masks(tmp_path, ["a"], ignore=9)
    assert found(data) == {("blank mask", "warning", "images/1.png")}

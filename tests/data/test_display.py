"""What a notebook shows is right, escaped, and leaves matplotlib as it was."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import write_image_folder
from PIL import Image

from learnkit.data.dataset import ImageDataset
from learnkit.errors import DataError


@pytest.fixture
def data(tmp_path):
    return ImageDataset.from_folder(write_image_folder(tmp_path, {"$a_b$": 4, "ok": 4}))


def titles(axes):
    return [axis.get_title() for axis in axes.flat if axis.images or axis.texts]


def test_the_grid_holds_each_image_with_its_label(data):
    axes = data.show(4, seed=None)
    assert axes.shape == (2, 2)
    assert titles(axes) == ["$a_b$"] * 4
    shown = axes.flat[0].images[0].get_array()
    assert np.array_equal(shown, np.asarray(Image.open(data.paths[0])))


def test_it_draws_by_lot_and_at_most_all(data):
    assert titles(data.show(3, seed=1)) == data.sample(3, 1).labels
    axes = data.show(100)
    assert axes.shape == (3, 3)
    assert len(titles(axes)) == 8
    assert not axes.flat[8].axison


def test_labels_are_drawn_as_text_not_as_formulas(data):
    axes = data.show(1, seed=None)
    axes.flat[0].figure.canvas.draw()
    assert axes.flat[0].title.get_parse_math() is False


def test_given_axes_are_used_and_no_figure_is_made(data):
    _, axes = plt.subplots(1, 2)
    before = plt.get_fignums()
    assert data.show(2, axes=axes) is axes
    assert plt.get_fignums() == before


def test_unreadable_images_say_so(data):
    data.paths[0].write_bytes(b"")
    axes = data.show(1, seed=None)
    assert axes.flat[0].texts[0].get_text() == "unreadable"


def test_a_wrong_number_is_refused(data):
    with pytest.raises(DataError, match="`n` is 0; it must be a positive integer"):
        data.show(0)


def test_the_table_counts_and_escapes():
    frame = pd.DataFrame({"path": ["1", "2", "3"], "label": ["<b>x</b>", "a&b", "a&b"]})
    frame["split"] = ["train", "train", "valid"]
    shown = ImageDataset(frame, "/<root>")._repr_html_()
    assert "<b>x</b>" not in shown
    assert "<root>" not in shown
    assert "<tr><td>&lt;b&gt;x&lt;/b&gt;</td><td>1</td><td>0</td></tr>" in shown
    assert "<tr><td>a&amp;b</td><td>1</td><td>1</td></tr>" in shown
    assert "3 images, 2 classes" in shown


def test_a_table_of_many_classes_is_cut():
    frame = pd.DataFrame(
        {"path": [str(i) for i in range(50)], "label": [f"c{i}" for i in range(50)]}
    )
    shown = ImageDataset(frame, ".")._repr_html_()
    assert shown.count("<tr>") == 32
    assert "and 20 more classes" in shown

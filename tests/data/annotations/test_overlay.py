"""Masks and boxes are drawn where they are, in the colour of their class."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from learnkit.data.annotations.masks import write_mask
from learnkit.data.annotations.overlay import class_colours
from learnkit.data.dataset import ImageDataset


@pytest.fixture
def boxes(tmp_path):
    Image.new("L", (12, 9), 99).save(tmp_path / "0.png")
    frame = {"path": ["0.png"], "boxes": [[(1, 2, 5, 6), (0, 0, 3, 2)]]}
    frame["box_labels"] = [["$b$", "<a>"]]
    return ImageDataset(pd.DataFrame(frame), tmp_path)


def test_boxes_are_drawn_at_their_edges_in_the_colours_of_the_legend(boxes):
    axes = boxes.show(1, seed=None)
    (axis,) = axes.flat
    first, second = axis.lines
    # a picture's first pixel has its middle at 0
    assert first.get_xydata().min(0).tolist() == [0.5, 1.5]
    assert first.get_xydata().max(0).tolist() == [4.5, 5.5]
    colours = class_colours({"$b$": 0, "<a>": 1})
    assert first.get_color() == colours["$b$"]
    assert second.get_color() == colours["<a>"] != colours["$b$"]
    (legend,) = axis.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["$b$", "<a>"]
    faces = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
    assert faces == [colours["$b$"], colours["<a>"]]
    axis.figure.canvas.draw()
    assert not any(text.get_parse_math() for text in legend.get_texts())


def test_a_line_leads_where_a_rotated_box_points(tmp_path):
    Image.new("L", (12, 9), 99).save(tmp_path / "0.png")
    frame = {"path": ["0.png"], "rotated_boxes": [[(6, 4, 3, 1, np.pi / 2)]], "box_labels": [["a"]]}
    data = ImageDataset(pd.DataFrame(frame), tmp_path)
    _, direction = data.show(1, seed=None).flat[0].lines
    # upwards, half its length
    np.testing.assert_allclose(direction.get_xydata(), [[5.5, 3.5], [5.5, 0.5]], atol=1e-12)


def test_masks_are_drawn_over_their_pixels_and_the_background_is_not(tmp_path):
    mask = np.array([[0, 1, 2], [0, 0, 9]], np.uint8)
    (tmp_path / "images").mkdir()
    Image.new("L", (3, 2), 99).save(tmp_path / "images" / "0.png")
    write_mask(tmp_path / "masks" / "0.png", mask)
    codes = {"background": 0, "b": 1, "c": 2}
    data = ImageDataset.from_masks(tmp_path, codes=codes, ignore=9)
    picture, drawn = data.show(1, seed=None).flat[0].images
    assert picture.get_array().shape[:2] == drawn.get_array().shape[:2]
    colours, found = class_colours(codes), np.asarray(drawn.get_array())
    assert (found[..., 3] > 0).tolist() == (mask > 0).tolist()
    np.testing.assert_allclose(found[0, 1, :3], colours["b"], atol=1e-6)
    np.testing.assert_allclose(found[0, 2, :3], colours["c"], atol=1e-6)
    assert np.ptp(found[1, 2, :3]) == 0  # of no class: grey
    (tmp_path / "masks" / "0.png").write_bytes(b"")
    (text,) = data.show(1, seed=None).flat[0].texts
    assert text.get_text() == "mask unreadable"


def test_axes_of_others_get_no_legend_and_classes_alone_none_at_all(boxes):
    _, axes = plt.subplots(1, 1)
    boxes.show(1, axes=axes)
    assert axes.figure.legends == []
    plain = ImageDataset(boxes.frame[["path"]].assign(label="a"), boxes.root)
    assert plain.show(1).flat[0].figure.legends == []


def test_twenty_classes_have_twenty_colours():
    colours = class_colours({str(i): i for i in range(20)})
    assert len(set(colours.values())) == 21

"""Run lengths and polygons are pycocotools', to the pixel and to the letter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from learnkit.data.annotations.rle import (
    mask_of_segmentation,
    segmentation_of_mask,
    segmentations_of_numbers,
)
from learnkit.errors import DataError

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
places = st.floats(-6, 20) | st.integers(-40, 200).map(lambda n: n / 10) | st.just(0.5)


@st.composite
def masks(draw):
    height, width = draw(sizes)
    pixels = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    return np.array(pixels).reshape(height, width)


def runs_by_a_loop(mask):
    """Uncompressed run lengths, pixel by pixel down the columns."""
    counts, value = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if mask[row, column] != value:
                counts.append(0)
                value = not value
            counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


@given(masks())
def test_runs_are_pycocotools_to_the_letter_and_come_back(mask):
    told = segmentation_of_mask(mask)
    oracle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert told == {"size": oracle["size"], "counts": oracle["counts"].decode()}
    for one in (told, runs_by_a_loop(mask)):
        assert (mask_of_segmentation(one, mask.shape, "here") == mask).all()


def test_long_runs_need_several_letters():
    mask = np.zeros((700, 900), bool)
    mask[13:600, 401:403] = True
    told = segmentation_of_mask(mask)
    assert coco_mask.decode({**told, "counts": told["counts"].encode()}).astype(bool).tolist() == (
        mask.tolist()
    )
    assert (mask_of_segmentation(told, mask.shape, "here") == mask).all()


@given(sizes, st.lists(st.lists(places, min_size=6, max_size=12), min_size=1, max_size=3))
def test_polygons_are_pycocotools_to_the_pixel(size, polygons):
    polygons = [one[: len(one) // 2 * 2] for one in polygons]
    oracle = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size)))
    found = mask_of_segmentation(polygons, size, "here")
    assert found.tolist() == oracle.astype(bool).tolist()


def test_a_polygon_has_the_pixels_whose_middles_lie_in_it():
    """A triangle, by the half planes of its sides; no middle lies on one."""
    points = np.array([[1.2, 0.7], [17.3, 5.1], [4.9, 13.6]])
    rows, columns = np.mgrid[:16, :20] + 0.5
    inside = np.ones(rows.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        inside &= (x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0) > 0
    found = mask_of_segmentation([points.reshape(-1).tolist()], (16, 20), "here")
    # the rule looks in fifths of a pixel: only pixels that a side passes by may differ
    assert inside.sum() > 90
    assert (found != inside).sum() <= 3


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_numbered_objects_have_the_runs_of_each(numbers):
    numbers = np.array(numbers)
    wanted = [segmentation_of_mask(numbers == i) for i in (1, 2, 3)]
    assert segmentations_of_numbers(numbers, 3) == wanted


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("text", "here is 'text'; it is a list of polygons, or 'size' and 'counts'"),
        (None, "here is None; it is a list"),
        ([[1, 2, 3, 4]], r"here\[0\] is \[1, 2, 3, 4\]; a polygon is a list x, y, x, y, ... of th"),
        ([[1, 2, 3, 4, 5, 6, 7]], r"here\[0\] is .*; a polygon"),
        ([[1, 2, 3, 4, 5, "6"]], r"here\[0\] has '6'; coordinates are numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], r"here\[0\] has nan; coordinates"),
        ([[1, 2, 3, 4, 5, 10**400]], r"here\[0\] has 10{39}; coordinates"),
        ([[0, 0, 1e9, 1, 5, 5]], r"here\[0\] has 1000000000.0; coordinates"),
        ([[0, 0, 1e8, 1, 5, 5]], "here has a boundary of .* pixels in an image of 3 x 2"),
        ({"size": [2, 3]}, "here has 'counts' None; they are whole numbers from 0 on, or a text"),
        ({"size": [2, 3], "counts": [1, -1, 6]}, r"'counts' \[1, -1, 6\]; they are"),
        ({"size": [2, 3], "counts": [5]}, r"'counts' of 5 pixels; its 'size' \[2, 3\] has 6"),
        ({"size": [3, 2], "counts": [6]}, r"has 'size' \[3, 2\]; its image has \[2, 3\]"),
        ({"size": [2, True], "counts": [6]}, r"has 'size' \[2, True\]; it is \[height, width\]"),
        ({"size": [2, 3], "counts": "6 "}, "'counts' '6 ', no run lengths in COCO's text"),
        ({"size": [2, 3], "counts": "o" * 99}, "no run lengths in COCO's text"),
        ({"size": [2, 3], "counts": "P"}, "'counts' 'P', which end within a number"),
        ({"size": [2, 3], "counts": "oooo3"}, "'counts' of .* pixels; its 'size'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_segmentation_is_refused(segmentation, message):
    with pytest.raises(DataError, match=message):
        mask_of_segmentation(segmentation, (2, 3), "here")

"""Boxes are converted between HALCON's coordinates and the image's without a half pixel lost."""

import cmath
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnkit.data.annotations.boxes import (
    UPRIGHT,
    corners_of_rectangles,
    corners_of_rotated,
    edges_of_rectangles,
    outside,
    rectangles_of_corners,
    rectangles_of_edges,
    rectangles_of_rotated,
    rotated_of_rectangles,
    smallest_rectangle,
)
from learnkit.data.annotations.dl_dataset import DLDataset
from learnkit.errors import DataError

places = st.floats(-1e4, 1e4)
rotated = st.tuples(
    places, places, st.floats(-3.14, math.pi), st.floats(0.01, 1e3), st.floats(0.01, 1e3)
)


def test_edges_enclose_exactly_the_pixels_whose_middles_the_rectangle_has():
    row1, col1, row2, col2 = 1.5, 4.5, 4.5, 9.5
    rows, cols = np.mgrid[:20, :20]
    inside = (rows >= row1) & (rows <= row2) & (cols >= col1) & (cols <= col2)
    x0, y0, x1, y1 = edges_of_rectangles([[row1, col1, row2, col2]])[0].astype(int)
    mask = np.zeros((20, 20), bool)
    mask[y0:y1, x0:x1] = True  # slices begin and end at edges
    assert (mask == inside).all()
    assert (x1 - x0) * (y1 - y0) == inside.sum() == 15


@given(st.lists(st.tuples(places, places, st.floats(0, 1e3), st.floats(0, 1e3)), max_size=4))
def test_rectangles_come_back_from_edges(boxes):
    rectangles = np.array([(r, c, r + h, c + w) for r, c, h, w in boxes]).reshape(-1, 4)
    back = rectangles_of_edges(edges_of_rectangles(rectangles))
    np.testing.assert_allclose(back, rectangles, atol=1e-9)


def test_at_phi_zero_and_a_quarter_turn_corners_are_those_of_the_upright_box():
    x0, y0, x1, y1 = edges_of_rectangles([[1.5, 4.5, 4.5, 9.5]])[0]
    upright = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
    flat, turned = corners_of_rectangles([[3, 7, 0, 2.5, 1.5], [3, 7, math.pi / 2, 1.5, 2.5]])
    np.testing.assert_allclose(flat, upright, atol=1e-12)
    # its first way leads upwards
    np.testing.assert_allclose(turned, np.roll(upright, 1, axis=0), atol=1e-12)


@given(rotated)
def test_corners_are_those_of_complex_numbers_turned_by_phi(rectangle):
    row, col, phi, length1, length2 = rectangle
    wanted = []
    for a, b in ((-1, 1), (1, 1), (1, -1), (-1, -1)):
        z = complex(a * length1, b * length2) * cmath.exp(1j * phi)  # y upwards
        wanted.append([col + 0.5 + z.real, row + 0.5 - z.imag])
    found = corners_of_rectangles([rectangle])
    np.testing.assert_allclose(found, [wanted], atol=1e-8)
    x, y = found[0].T  # the shoelace formula; y downwards, so clockwise is positive
    area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    assert area == pytest.approx(4 * length1 * length2, abs=1e-4)


@given(st.lists(rotated, max_size=4))
def test_rotated_rectangles_come_back_from_corners(boxes):
    boxes = np.array(boxes).reshape(-1, 5)
    back = rectangles_of_corners(corners_of_rectangles(boxes))
    np.testing.assert_allclose(back, boxes, atol=1e-7)


@pytest.mark.parametrize(
    "rectangle", [(1, 2, 1.0, 3, 0), (1, 2, 1.0, 0, 3), (1, 2, 0, 0, 0), (1, 2, math.pi, 3, 2)]
)
def test_boxes_without_area_and_the_end_of_the_circle_come_back(rectangle):
    back = rectangles_of_corners(corners_of_rectangles([rectangle]))
    np.testing.assert_allclose(back, [rectangle], atol=1e-9)


def test_half_a_turn_is_pi_and_not_minus_pi():
    corners = [[2, 2], [0, 2], [0, 0], [2, 0]]  # the first way leads to the left, y by 0.0
    assert rectangles_of_corners([corners]).tolist() == [[0.5, 0.5, math.pi, 1, 1]]


SQUARE = [[0, 0], [2, 0], [2, 2], [0, 2]]


@pytest.mark.parametrize(
    ("call", "values", "message"),
    [
        (edges_of_rectangles, [1, 2, 3, 4], r"`rectangles` has the shape \(4,\); .* \(N, 4\)"),
        (edges_of_rectangles, [[0, 5, 1, 4]], r"`rectangles\[0\]` is .*; the first two lie before"),
        (
            rectangles_of_edges,
            [[0, 0, 1, 10**400]],
            r"`edges` is \[\[0, 0, 1, 1000.*; it must be rows of",
        ),
        (rectangles_of_edges, [[0, 0, 1, np.nan]], r"`edges\[0\]` is .*nan\]; it must be finite"),
        (corners_of_rectangles, [[0] * 4], r"`rectangles` has the shape \(1, 4\); .* \(N, 5\)"),
        (corners_of_rectangles, [[0, 0, 0, 1, -1]], r"has the lengths 1.0, -1.0; half edges are"),
        (rectangles_of_corners, [SQUARE, SQUARE[::-1]], r"`corners\[1\]` is .*, no rectangle; its"),
        (rectangles_of_corners, [[*SQUARE[:3], [1, 2]]], "no rectangle"),
        (rectangles_of_corners, SQUARE, r"`corners` has the shape \(4, 2\); .* \(N, 4, 2\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_box_is_refused(call, values, message):
    with pytest.raises(DataError, match=message):
        call(values)


def test_a_dataset_gives_its_boxes_in_the_image():
    upright = {"bbox_label_id": [0, 0], "bbox_row1": [1.5, 0], "bbox_col1": [4.5, 0]}
    upright |= {"bbox_row2": [4.5, 0], "bbox_col2": [9.5, 0]}
    turned = {"bbox_label_id": 0, "bbox_row": 3, "bbox_col": 7, "bbox_phi": 0}
    turned |= {"bbox_length1": 2.5, "bbox_length2": 1.5}
    for box, wanted in (
        (upright, [[5, 2, 10, 5], [0.5, 0.5, 0.5, 0.5]]),
        (turned, [[[5, 2], [10, 2], [10, 5], [5, 5]]]),
    ):
        samples = [{"image_file_name": "a.png"} | box, {"image_file_name": "b.png"}]
        data = DLDataset({"class_names": "nut", "class_ids": 0, "samples": samples})
        assert data.boxes(0).tolist() == wanted
        assert data.boxes(1).shape == (0, *data.boxes(0).shape[1:])


@given(st.lists(st.tuples(places, places, places, places), max_size=3))
def test_half_a_pixel_leaves_no_trace_in_what_people_write(rows):
    decimals = np.round(np.sort(np.array(rows).reshape(-1, 2, 2), 1).reshape(-1, 4), 6) + 0.0
    assert rectangles_of_edges(edges_of_rectangles(decimals)).tolist() == decimals.tolist()


@given(st.lists(rotated, max_size=3))
def test_rotated_boxes_are_rectangles_half_a_pixel_on(boxes):
    boxes = np.round(np.array(boxes).reshape(-1, 5), 6)
    found = rotated_of_rectangles(boxes)
    assert rectangles_of_rotated(found).tolist() == boxes.tolist()
    np.testing.assert_allclose(corners_of_rotated(found), corners_of_rectangles(boxes), atol=1e-9)


points = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=3, max_size=12)


_AXES = (((1, 1), [0, 1]), ((-1, 1), [1, 0]))  # along a direction, and across it


@given(points)
def test_no_turn_gives_a_smaller_box_than_the_smallest(points):
    points = np.array(points, float)
    if np.linalg.matrix_rank(points - points[0]) < 2:
        return
    x, y, length1, length2, phi = smallest_rectangle(points)
    assert length1 >= length2
    assert -math.pi / 2 < phi <= math.pi / 2 + 1e-9
    corners = corners_of_rotated([(x, y, length1, length2, phi)])[0]
    for one, other in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along, away = other - one, points - one
        assert (along[0] * away[:, 1] - along[1] * away[:, 0] > -1e-5).all()
    turns = np.linspace(0, math.pi / 2, 400)
    axes = np.stack([np.cos(turns), np.sin(turns)], 1)
    widths = [np.ptp(points @ (axes * sign)[:, order].T, axis=0) for sign, order in _AXES]
    assert 4 * length1 * length2 <= np.prod(widths, axis=0).min() + 1e-5


def test_the_share_of_a_box_outside_its_image_is_that_of_a_count_of_pixels():
    boxes = [(-2, 1, 4, 3), (8, 8, 12, 12), (0, 0, 10, 10), (20, 20, 21, 22), (-5, -5, 15, 15)]
    for (x0, y0, x1, y1), found in zip(boxes, outside(UPRIGHT, boxes, (10, 10)), strict=True):
        pixels = [(x, y) for x in range(x0, x1) for y in range(y0, y1)]
        away = [pixel for pixel in pixels if not (0 <= pixel[0] < 10 and 0 <= pixel[1] < 10)]
        assert found == pytest.approx(len(away) / len(pixels))

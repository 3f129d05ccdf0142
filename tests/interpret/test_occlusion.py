"""Occlusion against a slow loop over pixels, and against what a known model must give."""

import math

import numpy as np
import pytest

from learnkit.errors import InterpretationError
from learnkit.interpret.occlusion import occlusion_map


def brightness(images):
    """A model whose first class is as likely as the upper left quarter is bright."""
    height, width = images.shape[1] // 2, images.shape[2] // 2
    share = images[:, :height, :width].astype(np.float64).mean((1, 2, 3)) / 255
    return np.stack([share, 1 - share], 1)


def picture(height=20, width=26, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def slow(confidences, image, place, diameter, step):
    """One image at a time, one pixel at a time."""
    height, width = image.shape[:2]
    whole = confidences(image[None])[0, place]
    losses, covers = np.zeros((height, width)), np.zeros((height, width))
    for i in range(math.ceil(height / step)):
        for j in range(math.ceil(width / step)):
            y = min(i * step + step // 2, height - 1)
            x = min(j * step + step // 2, width - 1)
            inside = [
                (r, c)
                for r in range(height)
                for c in range(width)
                if math.hypot(r - y, c - x) <= diameter / 2
            ]
            copy = image.copy()
            mean = np.mean([image[at] for at in inside], 0)
            for at in inside:
                copy[at] = np.rint(mean)
            lost = whole - confidences(copy[None])[0, place]
            for at in inside:
                losses[at] += lost
                covers[at] += 1
    return losses / np.maximum(covers, 1)


@pytest.mark.parametrize(
    ("diameter", "step", "bs"), [(7, 3, 4), (8, 5, 1), (2, 1, 64), (50, 49, 3)]
)
def test_it_is_the_slow_loop(diameter, step, bs):
    image = picture()
    sizes = {"feature_size": diameter, "sampling_size": step}
    maps = occlusion_map(brightness, image, [1, 0], bs=bs, **sizes)
    assert maps.dtype == np.float32
    for place, found in zip((1, 0), maps, strict=True):
        np.testing.assert_allclose(found, slow(brightness, image, place, diameter, step), atol=1e-6)


def test_what_the_model_does_not_look_at_is_cold():
    image = picture(64, 64)
    (heat,) = occlusion_map(brightness, image, [0], feature_size=9, sampling_size=4)
    assert np.abs(heat[42:, 42:]).max() == 0
    assert np.abs(heat[:32, :32]).max() > 0


def test_where_the_evidence_is_hot_and_against_it_negative():
    image = np.zeros((40, 40, 1), np.uint8)
    image[4:16, 4:16] = 255

    def bright_spot(images):
        share = images[:, 4:16, 4:16].astype(np.float64).mean((1, 2, 3)) / 255
        return np.stack([share, 1 - share], 1)

    heat, other = occlusion_map(bright_spot, image, [0, 1], feature_size=8, sampling_size=3)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 4 <= row < 16
    assert 4 <= column < 16
    np.testing.assert_allclose(other, -heat, atol=1e-6)


def test_the_image_is_left_as_it_was_and_batches_are_bounded():
    image, seen = picture(), []

    def noting(images):
        seen.append(len(images))
        return brightness(images)

    before = image.copy()
    occlusion_map(noting, image, [0], feature_size=6, sampling_size=5, bs=7)
    assert (image == before).all()
    assert seen == [1, 7, 7, 7, 3]  # 4 x 6 discs


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"feature_size": 0}, "`feature_size` is 0; it is a whole number of pixels"),
        ({"feature_size": 3.5}, "`feature_size` is 3.5; it is a whole"),
        ({"sampling_size": True}, "`sampling_size` is True; it is a whole"),
        ({"feature_size": 7}, "`sampling_size` is 7 and `feature_size` 7; discs that far apart"),
    ],
)
def test_sizes_that_are_none_are_refused(sizes, said):
    with pytest.raises(InterpretationError, match=said.replace("(", r"\(")):
        occlusion_map(brightness, picture(), [0], **sizes)

"""Occlusion: where covering the image costs confidence, for any model that gives probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from learnkit.errors import InterpretationError

Array = np.ndarray
Disc = tuple[slice, slice, Array]


def occlusion_map(
    confidences: Callable[[Array], Array],
    image: Array,
    classes: Sequence[int],
    *,
    feature_size: int = 30,
    sampling_size: int = 7,
    bs: int = 32,
    watch: Callable[[list[list[Disc]]], Iterator[list[Disc]]] = iter,
) -> Array:
    """Mean loss of confidence by the discs that cover a pixel, float32 (K, H, W) in -1..1.

    Discs of one diameter cover the image one after the other, each filled with its own mean colour;
    a pixel gets the mean over the discs that cover it, and 0 where none does. Negative where the
    class is more likely without the pixel.

    Args:
        confidences: probabilities (N, C) of images uint8 (N, H, W, channels).
        image: uint8 (H, W, channels).
        classes: places of the K classes to explain.
        feature_size: diameter of the discs in pixels, that of what to find.
        sampling_size: pixels from one disc to the next, less than `feature_size`.
        bs: images per call of `confidences`.
        watch: passes the batches on, and may show how far they are.

    Raises:
        InterpretationError: sizes that are no whole numbers from 1 on, or not the one below the
            other.

    Source: Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014,
    section 4.2, with discs for squares.
    """
    _check_sizes(feature_size, sampling_size)
    whole = confidences(image[None])[0, list(classes)]
    discs = list(_discs(image.shape[:2], feature_size, sampling_size))
    lost = np.zeros((len(whole), *image.shape[:2]))
    covered = np.zeros(image.shape[:2])
    for batch in watch([discs[start : start + bs] for start in range(0, len(discs), bs)]):
        found = confidences(np.stack([_covered(image, disc) for disc in batch]))
        for (rows, columns, disc), row in zip(batch, found[:, list(classes)], strict=True):
            lost[:, rows, columns] += (whole - row)[:, None, None] * disc
            covered[rows, columns] += disc
    return (lost / np.maximum(covered, 1)).astype(np.float32)


def _check_sizes(feature_size: object, sampling_size: object) -> None:
    for name, size in (("feature_size", feature_size), ("sampling_size", sampling_size)):
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise InterpretationError(f"`{name}` is {size!r}; it is a whole number of pixels")
    if sampling_size >= feature_size:
        raise InterpretationError(
            f"`sampling_size` is {sampling_size} and `feature_size` {feature_size}; discs that far "
            "apart leave pixels out: `sampling_size` is the smaller one"
        )


def _discs(shape: Sequence[int], diameter: int, step: int) -> Iterator[Disc]:
    """(rows, columns, bool (h, w)) of every disc, cut off at the image's edges."""
    radius = diameter / 2
    for middle in np.ndindex(*(-(-n // step) for n in shape)):
        # pixels have their centres at whole numbers
        at = [min(place * step + step // 2, n - 1) for place, n in zip(middle, shape, strict=True)]
        reach = int(radius)
        rows, columns = (
            slice(max(0, a - reach), min(n, a + reach + 1)) for a, n in zip(at, shape, strict=True)
        )
        y, x = np.ogrid[rows, columns]
        yield rows, columns, (y - at[0]) ** 2 + (x - at[1]) ** 2 <= radius**2


def _covered(image: Array, disc: Disc) -> Array:
    """A copy of the image with its mean colour on a disc."""
    rows, columns, inside = disc
    copy = image.copy()
    pixels = copy[rows, columns]
    pixels[inside] = np.rint(pixels[inside].mean(0)).astype(image.dtype)
    return copy

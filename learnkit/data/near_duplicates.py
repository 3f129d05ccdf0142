"""Near duplicates: groups of images of one structure, by a perceptual hash with soft signs."""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageStat
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from learnkit.report.progress import watched

_SIDE, _FREQUENCIES = 64, 16
# Measured on photographs, circuit boards and textures: copies, resized, recompressed, brighter or
# shifted a little, reach .9 and mostly .99; others .3, or .85 with one part in one place on all of
# them. Blots in the middle of nothing are alike, and so are some digits.
_ALIKE = 0.88
_NOISE = 1.0  # grey levels of a coefficient that recompressing alone may bring about
_FLAT = 1.0  # grey levels of contrast below which there is no structure
_BLOCK = 2048


def structure(image: Image.Image) -> np.ndarray:
    """The structure of an image: mean - 128, then 255 coefficients from -127 to 127, int8 (256,).

    These are the signs of its lowest spatial frequencies, as in a perceptual hash (pHash), softened
    where a coefficient is no larger than noise. They tell fine textures apart whose thumbnails are
    all even, and do not change with brightness. An image without contrast has none: zeros.
    """
    grey = image.convert("L")
    stat, factor = ImageStat.Stat(grey), max(1, min(grey.size) // (3 * _SIDE))
    found = np.zeros(_FREQUENCIES**2, np.int8)
    found[0] = round(stat.mean[0]) - 128
    if stat.stddev[0] >= _FLAT:
        # In floating point: rounding is as large as what is left of a fine texture. Lanczos, since
        # a box lets frequencies through that fold into the lower ones, differently at every size.
        small = grey.reduce(factor).convert("F")
        small = small.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        waves = dctn(np.asarray(small), norm="ortho")[:_FREQUENCIES, :_FREQUENCIES].ravel()[1:]
        found[1:] = np.rint(127 * waves / np.hypot(waves, _NOISE))
    return found


def near_duplicate_groups(structures: np.ndarray, *, progress: bool = False) -> list[list[int]]:
    """Row numbers of images that look the same, in groups of two or more, each sorted.

    Two images do if the cosine of their structures is at least .88, or if both have none and their
    means differ by one grey level at most; groups are what such pairs connect.

    Args:
        structures: int8 (N, 256), one row per image, of `structure`.
        progress: Show a bar.
    """
    means, x = structures[:, 0].astype(np.float32), structures[:, 1:].astype(np.float32)
    lengths = np.linalg.norm(x, axis=1)
    x /= np.maximum(lengths, 1)[:, None]
    n_blocks, pairs = -(-len(x) // _BLOCK), _pairs(x, means, lengths == 0)
    blocks = watched(pairs, n_blocks, progress, "compare images", "blocks")
    i, j = np.concatenate([*blocks, np.empty((2, 0), int)], axis=1)
    graph = coo_array((np.ones(len(i), dtype=bool), (i, j)), shape=(len(x), len(x)))
    _, component = connected_components(graph, directed=False)
    order = np.argsort(component, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return sorted(group.tolist() for group in groups if len(group) > 1)


def _pairs(x: np.ndarray, means: np.ndarray, flat: np.ndarray) -> Iterator[np.ndarray]:
    """int64 (2, P) per block of rows: pairs that look the same."""
    for start in range(0, len(x), _BLOCK):
        rows, found = slice(start, start + _BLOCK), []
        for begin in range(start, len(x), _BLOCK):
            columns = slice(begin, begin + _BLOCK)
            near = x[rows] @ x[columns].T >= _ALIKE
            if flat[rows].any() and flat[columns].any():
                level = np.abs(means[rows, None] - means[None, columns]) <= 1
                near |= level & flat[rows, None] & flat[None, columns]
            i, j = np.nonzero(np.triu(near, k=1) if begin == start else near)
            found.append(np.stack([i + start, j + begin]))
        yield np.concatenate(found, axis=1)

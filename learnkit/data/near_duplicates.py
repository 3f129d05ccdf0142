"""Near duplicates: groups of images of one structure, by a perceptual hash with soft signs.

Of a small image one pixel is more than the hash tolerates. There a moved copy is sought by its
spectrum, which stays where the image moves, and believed only if its pixels are those of the other.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageStat
from scipy.fft import dctn, fft2
from scipy.ndimage import uniform_filter
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
_SMALL = 256**2  # pixels; in larger images two pixels change little
_WAVES = 8  # to either side; with them a spectrum is of 144 numbers
# Of copies moved by one pixel the spectra of 95 % reach .91, of two .84; of others few reach .8.
_SPECTRA_ALIKE = 0.8
_REACH = 2  # pixels that a copy may have moved, in each direction
# Of moved copies, recompressed ones included, differences reach .4 standard deviations anywhere,
# of other images at least .45, as between circuit boards that differ in one small flaw.
_SAME_PIXELS = 0.4
_RECOMPRESSED = 6.5  # grey levels of noise; JPEG of quality 85 leaves 6.1, other textures 7.3
_TRIES = 8  # per image, or even surfaces in great numbers would take hours


def structure_and_spectrum(image: Image.Image) -> dict[str, np.ndarray]:
    """What two images are compared by: "structure" int8 (256,) and "spectrum" int8 (144,).

    The structure is the mean - 128, then 255 coefficients from -127 to 127: the signs of the lowest
    spatial frequencies, as in a perceptual hash (pHash), softened where a coefficient is no larger
    than noise. They tell fine textures apart whose thumbnails are all even, and do not change with
    brightness. The spectrum is the logarithm of the amplitude of the lowest waves, from -127 to
    127, without what falls with their frequency, as in all images.

    An image without contrast has neither: zeros. One of more than 256 x 256 pixels has no spectrum.
    """
    grey = image.convert("L")
    stat = ImageStat.Stat(grey)
    structure = np.zeros(_FREQUENCIES**2, np.int8)
    spectrum = np.zeros(len(_TREND), np.int8)
    structure[0] = round(stat.mean[0]) - 128
    if stat.stddev[0] >= _FLAT:
        small = _small(grey)
        # without the first, the mean, which is all that brightness changes
        waves = dctn(small, norm="ortho")[:_FREQUENCIES, :_FREQUENCIES].ravel()[1:]
        structure[1:] = np.rint(127 * waves / np.hypot(waves, _NOISE))
        if grey.width * grey.height <= _SMALL:
            spectrum[:] = _spectrum(small)
    return {"structure": structure, "spectrum": spectrum}


def is_moved(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether grey images float32 (H, W) show the same, two pixels apart at most.

    That is whether what both show differs by .4 standard deviations at most, in the mean of any 3 x
    3 pixels, and by 6.5 grey levels in all, brightness and contrast apart. Images of other sizes,
    of less than 9 pixels a side or without contrast do not.
    """
    if a.shape != b.shape or min(a.shape) <= 4 * _REACH:
        return False
    inner = a[_REACH:-_REACH, _REACH:-_REACH]
    windows = sliding_window_view(b, inner.shape)
    every = 1 + min(inner.shape) // 60  # of large images a part tells how far they moved
    x, y = inner[::every, ::every], windows[..., ::every, ::every]
    best = np.argmax((_standardised(y) * _standardised(x)).sum((-2, -1)))
    moved = windows[np.unravel_index(best, windows.shape[:2])]
    difference = _standardised(inner) - _standardised(moved)
    local = np.abs(uniform_filter(difference, 3)).max()
    contrast = min(inner.std(), moved.std())
    noise = contrast * difference.std()
    return bool(contrast >= _FLAT and local <= _SAME_PIXELS and noise <= _RECOMPRESSED)


def near_duplicate_groups(
    structures: np.ndarray,
    spectra: np.ndarray | None = None,
    read: Callable[[int], np.ndarray] | None = None,
    *,
    progress: bool = False,
) -> list[list[int]]:
    """Row numbers of images that look the same, in groups of two or more, each sorted.

    Two images do if the cosine of their structures is at least .88, or if both have none and their
    means differ by one grey level at most, or if one `is_moved`; groups are what such pairs
    connect.

    Args:
        structures: int8 (N, 256), one row per image; see `structure_and_spectrum`.
        spectra: int8 (N, 144), one row per image; None looks for no moved copies.
        read: The grey pixels of the image of a row, float32 (H, W), for the few to be compared.
        progress: Show a bar.
    """
    means, x = structures[:, 0].astype(np.float32), structures[:, 1:].astype(np.float32)
    lengths = np.linalg.norm(x, axis=1)
    # images without contrast stay zeros
    x /= np.maximum(lengths, 1)[:, None]
    n_blocks, pairs = -(-len(x) // _BLOCK), _pairs(x, means, lengths == 0)
    blocks = watched(pairs, n_blocks, progress, "compare images", "blocks")
    found = np.concatenate([*blocks, np.empty((2, 0), int)], axis=1)
    component = _components(found, len(x))
    if spectra is not None and read is not None:
        tried = _candidates(spectra, component)
        read = functools.lru_cache(_BLOCK)(read)
        tries = watched(tried.T.tolist(), tried.shape[1], progress, "compare moved", "pairs")
        moved = [is_moved(read(i), read(j)) for i, j in tries]
        component = _components(np.concatenate([found, tried[:, moved]], axis=1), len(x))
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


def _components(pairs: np.ndarray, n: int) -> np.ndarray:
    """The number of the group of each of `n` images, of pairs (2, P)."""
    graph = coo_array((np.ones(pairs.shape[1], dtype=bool), tuple(pairs)), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def _candidates(spectra: np.ndarray, component: np.ndarray) -> np.ndarray:
    """int64 (2, P): pairs of different groups whose spectra are alike, at most 8 N, sorted."""
    x = spectra.astype(np.float32)
    x /= np.maximum(np.linalg.norm(x, axis=1), 1)[:, None]
    found, alike, most = np.empty((2, 0), int), np.empty(0, np.float32), _TRIES * len(x)
    for start in range(0, len(x), _BLOCK):
        for begin in range(start, len(x), _BLOCK):
            rows, columns = slice(start, start + _BLOCK), slice(begin, begin + _BLOCK)
            cosines = x[rows] @ x[columns].T
            near = (cosines >= _SPECTRA_ALIKE) & (component[rows, None] != component[columns])
            i, j = np.nonzero(np.triu(near, k=1) if begin == start else near)
            found = np.concatenate([found, [i + start, j + begin]], axis=1)
            alike = np.concatenate([alike, cosines[i, j]])
            best = np.argsort(-alike, kind="stable")[:most]
            found, alike = found[:, best], alike[best]
    return found[:, np.lexsort(found[::-1])]


def _small(grey: Image.Image) -> np.ndarray:
    """A grey image in 64 x 64 pixels, in floating point: rounding would hide a fine texture."""
    factor = max(1, min(grey.size) // (3 * _SIDE))
    small = grey.reduce(factor).convert("F")
    # A box lets frequencies through that fold into the lower ones, differently at every size.
    return np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))


def _spectrum(small: np.ndarray) -> np.ndarray:
    waves = fft2((small - np.vdot(small, _WINDOW) / _WINDOW.sum()) * _WINDOW)[_HALF_PLANE]
    found = np.log(np.hypot(np.abs(waves), _NOISE * np.linalg.norm(_WINDOW)))
    found -= _TREND @ (found @ _TREND)
    return np.rint(127 * found / max(np.abs(found).max(), 1e-9))


def _standardised(images: np.ndarray) -> np.ndarray:
    """Images (..., H, W) with mean 0 and standard deviation 1."""
    images = images - images.mean((-2, -1), keepdims=True)
    return images / np.maximum(images.std((-2, -1), keepdims=True), 1e-9)


_WINDOW = np.sin(np.pi * (np.arange(_SIDE) + 0.5) / _SIDE).astype(np.float32)
_WINDOW = _WINDOW[:, None] * _WINDOW  # what comes in at a border counts little
# Places in a discrete Fourier transform of waves up to `_WAVES`, each direction once.
_Y, _X = np.mgrid[: _WAVES + 1, -_WAVES : _WAVES + 1]
_HALF_PLANE = tuple(axis[(_Y > 0) | (_X > 0)] for axis in (_Y, _X))
# Orthonormal: a constant, and the logarithm of the frequency.
_TREND = np.linalg.qr(
    np.stack([np.ones(len(_HALF_PLANE[0])), np.log(np.hypot(*_HALF_PLANE))], axis=1)
)[0]

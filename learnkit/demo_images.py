"""Real images that ship with scikit-learn, as files: handwritten digits, and what is none."""

from pathlib import Path

from PIL import Image

_PATCH = 64  # pixels; the two photographs of 427 x 640 pixels give 120 of these


def write_digits(folder: Path, n_images: int | None = None) -> tuple[int, int]:
    """Numbers of files (new, in all) after writing the digits to `folder/<class>/<number>.png`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")[:n_images]
    n_new = 0
    for number, (image, label) in enumerate(zip(pixels, digits.target, strict=False)):
        path = folder / str(label) / f"{number:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            n_new += 1
    return n_new, len(pixels)


def write_photographs(folder: Path) -> int:
    """Number of patches of scikit-learn's two sample photographs in `folder`, as PNG files."""
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    n = 0
    for photograph in load_sample_images().images:
        height, width = (side // _PATCH * _PATCH for side in photograph.shape[:2])
        for y in range(0, height, _PATCH):
            for x in range(0, width, _PATCH):
                Image.fromarray(photograph[y : y + _PATCH, x : x + _PATCH]).save(
                    folder / f"{n:03d}.png"
                )
                n += 1
    return n

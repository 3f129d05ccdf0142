"""What the folders below a root say: which are splits, and which classes have no images."""

from pathlib import Path

from learnkit.data.image import IMAGE_EXTENSIONS, find_images, is_hidden
from learnkit.data.labels import nfc
from learnkit.errors import DataError

SPLIT_FOLDERS = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
}


def images_below(root: Path) -> list[Path]:
    """Every image below `root`, sorted by path; a DataError if there is none."""
    images = find_images(root)
    if not images:
        raise DataError(
            f"no images found under {str(root)!r}; looked at every depth for "
            f"{', '.join(sorted(IMAGE_EXTENSIONS))}"
        )
    return images


def are_all_splits(root: Path) -> bool:
    """Whether every folder directly in `root` is named like a split, in whatever case."""
    folders = _folders(root)
    return bool(folders) and all(path.name.lower() in SPLIT_FOLDERS for path in folders)


def empty_class_folders(root: Path, images: list[Path], labels: set[str], depth: int) -> list[str]:
    """Topmost folders without an image at any depth, unless another of that name has some.

    Args:
        root: Where to look.
        images: Every image below it, as paths relative to it.
        labels: Names of the classes that have images, NFC-normalised.
        depth: How deep class folders lie: 1 directly in `root`, 2 in its splits.
    """
    filled = {parent for path in images for parent in path.parents}
    empty, todo = [], _folders(root)
    while todo:
        folder = todo.pop(0)
        relative = folder.relative_to(root)
        if relative in filled:
            todo += _folders(folder)
        elif len(relative.parts) >= depth and nfc(folder.name) not in labels:
            empty.append(relative.as_posix())
    return empty


def _folders(folder: Path) -> list[Path]:
    """Visible folders directly in `folder`, without links back to one above it."""
    here = folder.resolve()
    found = [p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name)]
    return sorted(p for p in found if not (p.is_symlink() and here.is_relative_to(p.resolve())))

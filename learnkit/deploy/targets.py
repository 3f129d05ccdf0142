"""Where a bundle may be written: nowhere that would cost anybody anything but an earlier bundle."""

import os
import stat
from pathlib import Path

from learnkit.errors import BundleError, BundleWriteError
from learnkit.storage.read_folder import MANIFEST, VARIANTS, read_manifest

_DESKTOP_LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def check_target(target: Path) -> None:
    """Raise unless `target` is absent, an empty folder, or a bundle without foreign files."""
    check_outside(target)
    if not os.path.lexists(target):
        return
    mode = target.lstat().st_mode
    if not stat.S_ISDIR(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "a file" if stat.S_ISREG(mode) else "a device"
        raise BundleWriteError(
            f"{target} is {kind}; a bundle replaces nothing but a bundle: choose another path"
        )
    if foreign := _foreign_files(target):
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise BundleWriteError(
            f"{target} is a folder with files that no bundle put there ({shown}); a bundle "
            "replaces nothing but a bundle: choose another path, or move them away first"
        )


def check_outside(target: Path) -> None:
    """Raise if `target` is inside a bundle, which would not be one any more."""
    if around := next(filter(_is_bundle, Path(os.path.abspath(target)).parents), None):
        raise BundleWriteError(
            f"{target} is inside the bundle {around}; a bundle holds nothing but what it lists: "
            "choose another path"
        )


def _is_bundle(folder: Path) -> bool:
    """Whether there is a bundle's manifest; others may have files of that name, too."""
    if not os.path.isfile(folder / MANIFEST):
        return False
    try:
        return "schema" in read_manifest(folder, None)[0]
    except BundleError:
        return False


def _foreign_files(folder: Path) -> list[str]:
    """What is in `folder` and not in its manifest; everything, if it has no sound manifest."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*")}
    try:
        known = {MANIFEST, VARIANTS, *read_manifest(folder, None)[0]["files"]}
    except BundleError:
        known = set()
    return sorted(
        name for name, p in found.items() if name not in known and p.name not in _DESKTOP_LITTER
    )

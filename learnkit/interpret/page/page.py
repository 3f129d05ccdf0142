"""The evaluation page of evaluated images, and the file it is written to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnkit.errors import UsageError
from learnkit.interpret.page.build import page_data
from learnkit.interpret.page.evidence import add_alike
from learnkit.interpret.page.images import EvaluatedImages
from learnkit.interpret.page.thumbs import add_pictures
from learnkit.storage.filesystem import write_file

if TYPE_CHECKING:
    from learnkit.evaluation.evaluate import Evaluation

_GENERATOR = b'name="generator" content="learnkit '
_HEAD = 1024
_LARGEST_MB = 200


@dataclass(frozen=True, eq=False)
class EvaluationPage:
    """The page of one evaluation: its `data` of JSON types, or a file.

    Attributes:
        images: the evaluated images.
    """

    images: EvaluatedImages

    def data(
        self,
        evaluation: Evaluation,
        *,
        max_mb: float = 25,
        pictures: bool = True,
        progress: bool = False,
        **about: Any,
    ) -> dict[str, Any]:
        """All that the page shows, as JSON types; see `page_data` for `about`.

        Raises:
            UsageError: `max_mb` outside 0..200.
            EvaluationError: `good` names no class, or all of them.
        """
        if not 0 <= max_mb <= _LARGEST_MB:
            raise UsageError(f"`max_mb` is {max_mb}; give megabytes from 0 to {_LARGEST_MB}")
        listed, data = page_data(evaluation, self.images, **about)
        kin = add_alike(data, self.images, listed)
        if pictures:
            read = lambda row: self.images.open(listed[row])
            read_kin = lambda place: self.images.open_learned(kin[place])
            add_pictures(data, read, read_kin, max_mb=max_mb, progress=progress)
        return data

    def save_html(
        self, evaluation: Evaluation, path: str | os.PathLike, *, force: bool = False, **about: Any
    ) -> Path:
        """Write the page to a file and return its path; see `Evaluation.save_html`.

        Raises:
            UsageError: the name does not end in .html, or another file stands there.
        """
        # before the pictures are read, which takes longest
        path = page_target(path, force=force)
        return write_page(path, self.data(evaluation, **about))


def page_target(path: str | os.PathLike, *, force: bool = False) -> Path:
    """The path that a page is to be written to, which may be there if it is a page of learnkit's.

    Raises:
        UsageError: the name does not end in .html, its folder is not there, or something else
            stands there.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"the page is to be {str(path)!r}; name a file that ends in .html")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {str(path.parent)!r} for the page; make it first")
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder; name a file that ends in .html")
    if path.exists() and not force:
        with open(path, "rb") as file:
            is_page = _GENERATOR in file.read(_HEAD)
        if not is_page:
            raise UsageError(
                f"{str(path)!r} is there already and is no page of learnkit's; name another file, "
                "or replace it with `force=True`"
            )
    return path


def write_page(path: Path, data: dict[str, Any]) -> Path:
    """Write the page of `data` to a file, whole or not at all; return its path."""
    from learnkit.report.page import page_html  # here: predicting needs no templates

    html = page_html(data)
    write_file(path, lambda file: file.write(html.encode("utf-8")))
    return path

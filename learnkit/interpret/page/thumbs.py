"""Pictures of the evaluation page: small ones of what matters first, as far as the budget goes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from learnkit.data.read_images import load_ahead
from learnkit.errors import ImageReadError
from learnkit.report.progress import watched

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SMALL, BIG, LEARNED = 160, 512, 112
_QUALITY, _MAX_BIG, _PER_CLASS = 70, 200, 6
_BYTES_PER_MB = 1_000_000
_N_WORKERS = 2
Rows = Sequence[dict[str, Any]]


def add_pictures(
    data: dict[str, Any],
    open_picture: Callable[[int], Picture],
    open_learned: Callable[[int], Picture] | None = None,
    *,
    max_mb: float,
    progress: bool = False,
) -> None:
    """Fill `thumbs`, `bigs` and each row's `th` and `big` of a page's data, up to `max_mb` in all.

    The budget goes to errors by loss, what is flagged, strange images that were missed, suspects,
    12 right ones of each class (those of most and of least confidence), then to the rest. The
    remarkable ones have a large picture too, 200 of them at most, and beside them are the learned
    images that they are most alike.

    Args:
        data: of the page; its numbers count towards the budget.
        open_picture: the picture of an image by its row, or an ImageReadError.
        open_learned: likewise of a learned image by its place in `kin`.
        max_mb: megabytes of 1,000,000 bytes.
        progress: show a bar.
    """
    room = max_mb * _BYTES_PER_MB - len(json.dumps(data, separators=(",", ":")))
    first, rest = picture_order(data["images"])
    rows = data["images"]
    room = _fill(rows, "th", data["thumbs"], _urls(first, open_picture, SMALL, progress), room)
    big = _urls(first[:_MAX_BIG], open_picture, BIG, progress)
    room = _fill(rows, "big", data["bigs"], big, room)
    if open_learned is not None:
        kin = _urls(range(len(data["kin"])), open_learned, LEARNED, progress)
        room = _fill(data["kin"], "th", data["thumbs"], kin, room)
    _fill(rows, "th", data["thumbs"], _urls(rest, open_picture, SMALL, progress), room)
    data["pictures_left_out"] = sum("th" not in row for row in data["images"])


def picture_order(rows: Rows) -> tuple[list[int], list[int]]:
    """(remarkable rows, all others), each in the order in which pictures are taken."""
    wrong = [i for i, row in enumerate(rows) if not row.get("o") and row["a"] != row["y"]]
    groups = [
        sorted(wrong, key=lambda i: -_loss(rows[i])),
        [i for i, row in enumerate(rows) if row.get("u")],
        [i for i, row in enumerate(rows) if row.get("o") and not row.get("u")],
        sorted(
            (i for i, row in enumerate(rows) if row.get("w")), key=lambda i: -rows[i].get("w", 0)
        ),
    ]
    first = list(dict.fromkeys(i for group in groups for i in group))
    taken = set(first)
    rest = [i for i in range(len(rows)) if i not in taken]
    return first, list(dict.fromkeys([*_ends_of_classes(rows, rest), *rest]))


def _loss(row: dict[str, Any]) -> float:
    """The loss of a row, or minus the truth's probability, which orders alike."""
    own = (prob for number, prob in row["t"] if number == row["a"])
    return row["l"] if "l" in row else -(row.get("pa") or next(own, 0.0))


def _ends_of_classes(rows: Rows, places: Iterable[int]) -> list[int]:
    """Of each class the surest and the least sure of right answers; the first of each class first.

    So that a small budget shows something of every class.
    """
    by_class: dict[str, list[int]] = {}
    for i in sorted(places, key=lambda i: -rows[i]["t"][0][1]):
        # as text: several labels of an image are a list, which is no key
        by_class.setdefault(str(rows[i]["a"]), []).append(i)
    chosen = [
        list(dict.fromkeys([*own[:_PER_CLASS], *own[: -_PER_CLASS - 1 : -1]]))
        for _, own in sorted(by_class.items())
    ]
    longest = max(map(len, chosen), default=0)
    return [own[rank] for rank in range(longest) for own in chosen if rank < len(own)]


def _urls(
    places: Sequence[int], open_picture: Callable[[int], Picture], side: int, progress: bool
) -> Iterable[tuple[int, str | None]]:
    """Each row with its picture as a data URL, None where it cannot be read any more."""
    loaded = load_ahead(
        lambda i: data_url(open_picture(i), side), places, n_ahead=8, n_workers=_N_WORKERS
    )
    for i, url in watched(loaded, len(places), progress, "pictures"):
        yield i, None if isinstance(url, ImageReadError) else url


def _fill(
    rows: Rows, key: str, pictures: list[str], urls: Iterable[tuple[int, str | None]], room: float
) -> float:
    """Add pictures until one does not fit any more; the room that is left then."""
    for i, url in urls:
        if url is None:
            continue
        size = len(url) + len(f'"{key}":{len(pictures)},"",')
        if size > room:
            return 0.0
        room -= size
        rows[i][key] = len(pictures)
        pictures.append(url)
    return room


def data_url(picture: Picture, side: int) -> str:
    """A picture as WebP in a data URL, its longer side `side` pixels at most; pixels alone."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    small.info.clear()  # neither EXIF nor a colour profile goes along
    file = io.BytesIO()
    small.save(file, "WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")

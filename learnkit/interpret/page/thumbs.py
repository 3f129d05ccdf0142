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

SMALL, BIG = 160, 512
_QUALITY, _MAX_BIG, _PER_CLASS = 70, 200, 6
_BYTES_PER_MB = 1_000_000
_N_WORKERS = 2
Rows = Sequence[dict[str, Any]]


def add_pictures(
    data: dict[str, Any],
    open_picture: Callable[[int], Picture],
    *,
    max_mb: float,
    progress: bool = False,
) -> None:
    """Fill `thumbs`, `bigs` and each row's `th` and `big` of a page's data, up to `max_mb` in all.

    The budget goes to errors by loss, what is flagged, strange images that were missed, suspects,
    12 right ones of each class (those of most and of least confidence), then to the rest. The
    remarkable ones have a large picture too, 200 of them at most.

    Args:
        data: of the page; its numbers count towards the budget.
        open_picture: the picture of an image by its row, or an ImageReadError.
        max_mb: megabytes of 1,000,000 bytes.
        progress: show a bar.
    """
    room = max_mb * _BYTES_PER_MB - len(json.dumps(data, separators=(",", ":")))
    first, rest = picture_order(data["images"])
    room = _fill(data, "th", "thumbs", _urls(first, open_picture, SMALL, progress), room)
    room = _fill(data, "big", "bigs", _urls(first[:_MAX_BIG], open_picture, BIG, progress), room)
    _fill(data, "th", "thumbs", _urls(rest, open_picture, SMALL, progress), room)
    data["pictures_left_out"] = sum("th" not in row for row in data["images"])


def picture_order(rows: Rows) -> tuple[list[int], list[int]]:
    """(remarkable rows, all others), each in the order in which pictures are taken."""
    wrong = [i for i, row in enumerate(rows) if not row.get("o") and row["a"] != row["y"]]
    groups = [
        sorted(wrong, key=lambda i: -(rows[i].get("l") or 0)),
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


def _ends_of_classes(rows: Rows, places: Iterable[int]) -> list[int]:
    """Of each class the surest and the least sure of right answers; the first of each class first.

    So that a small budget shows something of every class.
    """
    by_class: dict[str, list[int]] = {}
    for i in sorted(places, key=lambda i: -rows[i]["t"][0][1]):
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
    data: dict[str, Any], key: str, name: str, urls: Iterable[tuple[int, str | None]], room: float
) -> float:
    """Add pictures until one does not fit any more; the room that is left then."""
    for i, url in urls:
        if url is None:
            continue
        size = len(url) + len(f'"{key}":{len(data[name])},"",')
        if size > room:
            return 0.0
        room -= size
        data["images"][i][key] = len(data[name])
        data[name].append(url)
    return room


def data_url(picture: Picture, side: int) -> str:
    """A picture as WebP in a data URL, its longer side `side` pixels at most; pixels alone."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    small.info.clear()  # neither EXIF nor a colour profile goes along
    file = io.BytesIO()
    small.save(file, "WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")

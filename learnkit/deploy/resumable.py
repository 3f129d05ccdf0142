"""Predictions of any number of files, written shard by shard: a killed run goes on where it was.

Beside the target `preds.csv` stands the folder `preds.csv.parts` while the work is under way. When
all shards are there they become the target, in one rename. Work that is not the same, of another
model or on other files, is refused rather than mixed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from learnkit.errors import LearnkitError, PredictionError, PredictionFileError
from learnkit.inference.files import FilesReport, Work
from learnkit.inference.prediction_table import table_kind
from learnkit.inference.shards import Shards

SHARD = 512  # files; a kill costs at most the work on one shard


def predict_to_file(
    predictor: Any,
    paths: Iterable[str | os.PathLike],
    out: str | os.PathLike,
    *,
    resume: bool = True,
    bs: int = 64,
    n_workers: int = 2,
    progress: bool = True,
    probs: bool = True,
    shard: int = SHARD,
) -> FilesReport:
    """Predict `paths` into the table `out`, going on where an interrupted call was.

    The table is the same, whatever the interruptions. Files are recognised by their names: whoever
    exchanges one of them on the way says `resume=False`.

    Args:
        predictor: has `load` and `try_loaded`, as every predictor of learnkit.
        paths: image files, in the order of the rows.
        out: a file that ends in .parquet, .csv or .jsonl; it appears, whole, at the end.
        resume: go on with what a call that did not end has done; the work of one that did is not
            repeated. Otherwise start anew, and replace `out`.
        bs: images per forward pass.
        n_workers: decoding threads.
        progress: show a progress bar.
        probs: add the probability of every class.
        shard: files whose rows are written together, rounded up to whole batches.

    Raises:
        PredictionError: `out` names no table; something in `paths` is no path; `resume`, and what
            stands there is of another model or other files; the model is changed on the way.
        PredictionFileError: the disk refuses, or another process writes the same table.
        MissingExtraError: Parquet without pyarrow.
    """
    if bs < 1:
        raise PredictionError(f"`bs`={bs}; a batch has at least one image")
    target, files = Path(out), [_checked_path(path) for path in paths]
    kind, parts = table_kind(target), parts_of(target)
    _check_target(target)
    work = Work(predictor, files, target, probs=probs, shard=-(-shard // bs) * bs)
    if resume and target.exists() and not parts.folder.exists():
        return work.already_done(kind)
    try:
        with parts.alone():
            missing = work.begin(parts, resume)
            run = {"bs": bs, "n_workers": n_workers, "progress": progress}
            n_resumed = work.predict(parts, missing, **run)
            return work.finish(parts, kind, n_resumed)
    except LearnkitError:
        raise
    except OSError as error:
        raise PredictionFileError(
            f"predictions could not be written to {str(target)!r}: {error.strerror or error}. What "
            f"was predicted before is kept in {str(parts.folder)!r}: make room, and call again"
        ) from error


def parts_of(target: Path) -> Shards:
    """What is done of the table `target` until all of it is."""
    return Shards(target.with_name(f"{target.name}.parts"))


def _checked_path(path: Any) -> str:
    """`path` as text; PredictionError unless it is one."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise PredictionError(
            f"`paths` holds a {type(path).__name__}; a table on disk is about files, so give their "
            "paths, or leave `out` away to predict other images"
        )
    return os.fspath(path)


def _check_target(target: Path) -> None:
    """Raise unless `target` is a file or nothing, in a folder."""
    if not target.parent.is_dir():
        raise PredictionFileError(f"there is no folder {str(target.parent)!r} to write to; make it")
    if os.path.lexists(target) and (target.is_symlink() or not target.is_file()):
        raise PredictionFileError(f"{str(target)!r} is no file; choose another name")

"""Certain files to be predicted by a certain model, shard by shard, and what became of them."""

from __future__ import annotations

import hashlib
import html
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from learnkit.errors import LearnkitError, PredictionError, PredictionFileError
from learnkit.inference.batch import predict_stream
from learnkit.inference.digest import model_digest, same_state, state_of
from learnkit.inference.prediction_table import (
    Layout,
    Row,
    as_written,
    read_marks,
    row_of,
    table_kind,
    write_table,
)
from learnkit.inference.shards import Shards

_FORMAT = 1
_PARTS_OF_A_JOB = {
    "format": "of another version of learnkit",
    "model": "of another model",
    "files": "of other files",
    "probs": "with other columns",
}
_ANEW = "`resume=False` starts anew and replaces it, another `out` leaves it"


@dataclass(frozen=True)
class FilesReport:
    """What became of the files whose predictions stand in a table.

    Attributes:
        path: the table.
        n_files: its rows.
        n_failed: rows with an error instead of a label.
        n_resumed: rows that an earlier call had predicted.
        model: digest of the model, the same in every row.
    """

    path: Path
    n_files: int
    n_failed: int
    n_resumed: int
    model: str

    def __str__(self) -> str:
        resumed = f", {self.n_resumed} of them from an earlier call" * bool(self.n_resumed)
        failed = f"; {self.n_failed} could not be read" * bool(self.n_failed)
        return f"{self.path}: {self.n_files} files{resumed}{failed}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(str(self))}<br><small>model {html.escape(self.model)}</small></p>"


class Work:
    """Certain files, to be predicted by a certain model."""

    def __init__(
        self, predictor: Any, files: Sequence[str], target: Path, *, probs: bool, shard: int
    ):
        self.predictor, self.files, self.target, self.shard = predictor, files, target, shard
        self.state, self.probs = state_of(predictor), probs
        self.layout = Layout(
            tuple(predictor.classes) if probs else (),
            model_digest(predictor),
            bool(getattr(predictor, "multi_label", False)),
        )

    def already_done(self, kind: str) -> FilesReport:
        """The report on the finished table at the target, if it is of this work."""
        n_failed, expected = 0, iter(self.files)
        for path, model, failed in read_marks(self.target, kind):
            if model != self.layout.model:
                raise self._refusal(str(self.target), "of another model", model)
            if path != as_written(next(expected, "\0")):
                raise self._refusal(str(self.target), "of other files", path)
            n_failed += failed
        if (missing := next(expected, None)) is not None:
            raise self._refusal(str(self.target), "of other files", f"without {missing}")
        n_files = len(self.files)
        return FilesReport(self.target, n_files, n_failed, n_files, self.layout.model)

    def begin(self, parts: Shards, resume: bool) -> list[int]:
        """Begin the work in `parts`, or take it up; the numbers of the shards that are missing."""
        job, found = self._job(), parts.job()
        if found is None or not resume:
            parts.begin(job)
            return list(self._numbers())
        for name, what in _PARTS_OF_A_JOB.items():
            if found.get(name) != job[name]:
                raise self._refusal(str(parts.folder), what, found.get(name))
        self.shard = found["shard"]
        return [n for n in self._numbers() if not self._is_done(parts, n)]

    def predict(
        self, parts: Shards, missing: Sequence[int], *, bs: int, n_workers: int, progress: bool
    ) -> int:
        """Predict the missing shards; the number of files that were predicted before."""
        items = (path for number in missing for path in self._files_of(number))
        n_before = len(self.files) - sum(len(self._files_of(number)) for number in missing)
        stream = predict_stream(self.predictor, items, bs=bs, n_workers=n_workers)
        rows = iter(_watched(stream, n_before, len(self.files), progress))
        for number in missing:
            found = islice(rows, len(self._files_of(number)))
            written = [row_of(path, result, probs=self.probs) for path, result in found]
            self._check_unchanged()
            parts.add(number, written)
        return n_before

    def finish(self, parts: Shards, kind: str, n_resumed: int) -> FilesReport:
        """Make the target of all shards."""
        made, n_failed = parts.folder / f"all.{kind}", 0

        def groups() -> Iterator[list[Row]]:
            nonlocal n_failed
            for number in self._numbers():
                rows = parts.rows(number) or []
                n_failed += sum(row["error"] is not None for row in rows)
                yield rows

        made.unlink(missing_ok=True)
        write_table(made, kind, self.layout, groups())
        parts.finish(made, self.target)
        return FilesReport(self.target, len(self.files), n_failed, n_resumed, self.layout.model)

    def _job(self) -> dict[str, Any]:
        names = hashlib.sha256("\0".join(self.files).encode("utf-8", "surrogatepass"))
        return {
            "format": _FORMAT,
            "model": self.layout.model,
            "files": names.hexdigest(),
            "n_files": len(self.files),
            "probs": self.probs,
            "shard": self.shard,
        }

    def _numbers(self) -> range:
        return range(-(-len(self.files) // self.shard))

    def _files_of(self, number: int) -> Sequence[str]:
        return self.files[number * self.shard : (number + 1) * self.shard]

    def _is_done(self, parts: Shards, number: int) -> bool:
        return len(parts.rows(number) or ()) == len(self._files_of(number))

    def _check_unchanged(self) -> None:
        if not same_state(self.predictor, self.state):
            raise PredictionError(
                "the model was changed while it predicted files, so that their rows would be of "
                "two models; change it before or afterwards. Start anew with `resume=False`"
            )

    def _refusal(self, place: str, what: str, found: Any) -> PredictionError:
        return PredictionError(
            f"{place!r} holds predictions {what} ({found!r:.80}) than is asked for now; {_ANEW}"
        )


def _watched(stream: Iterable[Any], n_before: int, n: int, progress: bool) -> Iterable[Any]:
    """`stream` behind a progress bar that begins at `n_before`, if wanted."""
    if not progress:
        return stream
    from tqdm.auto import tqdm

    return tqdm(stream, total=n, initial=n_before, desc="predict", unit="img")


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

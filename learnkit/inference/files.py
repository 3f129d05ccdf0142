"""Predictions of any number of files as a table on disk, gone on with after an interruption."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from learnkit.data.arguments import check_number
from learnkit.errors import LearnkitError, PredictionError, PredictionFileError, number_of
from learnkit.inference.batch import BATCH, check_batch_size, predict_stream
from learnkit.inference.model import model_digest, same_state, state_of
from learnkit.inference.prediction_log import PredictionLog, opened_log, refusal
from learnkit.inference.prediction_table import (
    Layout,
    Row,
    as_written,
    read_marks,
    row_of,
    table_kind,
    write_table,
)
from learnkit.inference.tta import checked_views
from learnkit.report.document import Document, Lines, Paragraph, Span
from learnkit.report.notebook import Shown
from learnkit.report.progress import watched
from learnkit.storage.filesystem import write_file
from learnkit.storage.write_folder import check_outside


@dataclass(frozen=True)
class FilesReport(Shown):
    """The files of a table of predictions, counted by what became of them.

    Attributes:
        path: the table.
        n_files: its rows.
        n_failed: rows with an error instead of a label.
        n_resumed: rows that an earlier call had predicted.
        model: digest of the model, the same in every row.
        counts: images of each verdict, the most frequent first.
    """

    path: Path
    n_files: int
    n_failed: int
    n_resumed: int
    model: str
    counts: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        resumed = f", {self.n_resumed} of them from an earlier call" if self.n_resumed else ""
        failed = f"; {self.n_failed} could not be read" if self.n_failed else ""
        return f"{self.path}: {number_of(self.n_files, 'file')}{resumed}{failed}"

    def document(self) -> Document:
        """The sentence, and the model's digest."""
        return Document([Paragraph(Lines((str(self), Span(f"model {self.model}", "faint"))))])


def predict_to_file(
    predictor: Any,
    paths: Iterable[str | os.PathLike],
    out: str | os.PathLike,
    *,
    resume: bool = True,
    bs: int = BATCH,
    n_workers: int = 2,
    progress: bool = True,
    probs: bool = True,
    tta: int | None = None,
) -> FilesReport:
    """Predict `paths` into the table `out`, going on where an interrupted call was.

    The table is the same, whatever the interruptions: until it is whole, every batch is on the disk
    in `OUT.parts` before the next one is predicted. Files are recognised by their names: if one of
    them is exchanged on the way, say `resume=False`.

    Args:
        predictor: has `load` and `try_loaded`, as every predictor of learnkit.
        paths: image files, in the order of the rows.
        out: a file that ends in .parquet, .csv or .jsonl; it appears, whole, at the end.
        resume: go on with what a call that did not end has done; the work of one that did is not
            repeated. Otherwise start over, and replace `out`.
        bs: images per forward pass, see `predict_files`.
        n_workers: decoding threads.
        progress: show a progress bar.
        probs: add the probability of every class.
        tta: views of each image, see `predict_files`; with more than one their number stands behind
            the digest.

    Raises:
        PredictionError: `out` names no table; something in `paths` is no path; `resume`, and what
            stands there is of another model or other files; the model is changed on the way.
        PredictionFileError: the disk refuses, or another process writes the same table.
        BundleWriteError: `out` is inside a bundle, which holds nothing but what it lists.
        MissingExtraError: Parquet without pyarrow.
    """
    check_batch_size(bs)
    check_number("n_workers", n_workers, least=0)
    n_views = getattr(predictor, "tta", 1) if tta is None else checked_views(tta)
    target, files = Path(out), [_checked_path(path) for path in paths]
    kind, place = table_kind(target), log_path(target)
    _check_target(target)
    state = state_of(predictor)  # before the digest, so that no change falls between them
    layout = Layout(
        tuple(predictor.classes) if probs else (),
        model_digest(predictor) + (f" tta={n_views}" if n_views > 1 else ""),
        bool(getattr(predictor, "multi_label", False)),
    )
    # a log beside a table is of a call that did not end; it goes on from there
    if resume and target.exists() and not place.exists():
        return _report_on(target, kind, files, layout.model)
    job = {"model": layout.model, "files": _digest(files), "probs": probs}
    run = {"bs": bs, "n_workers": n_workers, "progress": progress, "probs": probs}
    run |= {"tta": tta}
    try:
        with opened_log(place) as log:
            log.begin(job, resume=resume)
            n_resumed = _predict_missing(predictor, state, files, log, **run)
            verdicts: Counter[str | None] = Counter()
            rows = _counted(log.rows(), verdicts)
            write_file(target, lambda file: write_table(file, kind, layout, rows))
            # last: where the table cannot be written, its rows are still in the log
            log.remove()
            return _report(target, verdicts, n_resumed, layout.model)
    except LearnkitError:
        raise
    except OSError as error:
        raise PredictionFileError(
            f"predictions could not be written to {str(target)!r}: {error.strerror or error}. What "
            f"was predicted before is kept in {str(place)!r}: make room, and call again"
        ) from error


def log_path(target: Path) -> Path:
    """Where predictions are kept until they become the table `target`."""
    return target.with_name(f"{target.name}.parts")


def _predict_missing(
    predictor: Any,
    state: tuple[Any, ...],
    files: Sequence[str],
    log: PredictionLog,
    *,
    bs: int,
    n_workers: int,
    progress: bool,
    probs: bool,
    tta: int | None,
) -> int:
    """Predict what `log` lacks, batch by batch; the number of files it had."""
    gaps = log.missing(len(files))
    batches = [gap[i : i + bs] for gap in gaps for i in range(0, len(gap), bs)]
    n_before = len(files) - sum(map(len, batches))
    items = (files[number] for batch in batches for number in batch)
    stream = predict_stream(predictor, items, bs=bs, n_workers=n_workers, tta=tta)
    results = iter(watched(stream, len(files), progress, n_before=n_before))
    for batch in batches:
        found = islice(results, len(batch))
        rows = [row_of(path, result, probs=probs) for path, result in found]
        if not same_state(predictor, state):
            raise PredictionError(
                "the model was changed while it predicted files, so that their rows would be of "
                "two models; change it before or afterwards. Start anew with `resume=False`"
            )
        log.append(batch.start, rows)
    return n_before


def _report_on(target: Path, kind: str, files: Sequence[str], model: str) -> FilesReport:
    """The report on the finished table at `target`; PredictionError if it is of another job."""
    verdicts, expected = Counter(), iter(files)
    for path, found, verdict in read_marks(target, kind):
        if found != model:
            raise refusal(str(target), "of another model", found)
        if path != as_written(next(expected, "\0")):
            raise refusal(str(target), "of other files", path)
        verdicts[verdict] += 1
    if (missing := next(expected, None)) is not None:
        raise refusal(str(target), "of other files", f"without {missing}")
    return _report(target, verdicts, len(files), model)


def _counted(rows: Iterable[Row], verdicts: Counter[str | None]) -> Iterator[Row]:
    """The rows, which are counted by their verdicts as they pass."""
    for row in rows:
        verdicts[row["verdict"]] += 1
        yield row


def _report(target: Path, verdicts: Counter[str | None], n_resumed: int, model: str) -> FilesReport:
    """The report on a table whose rows have these verdicts, None for an error."""
    counts = {name: n for name, n in verdicts.most_common() if name is not None}
    return FilesReport(target, verdicts.total(), verdicts[None], n_resumed, model, counts)


def _digest(files: Sequence[str]) -> str:
    digest = hashlib.sha256(str(len(files)).encode())
    for path in files:
        # no path holds a zero byte, so no two lists are the same bytes; surrogates are bytes of
        # names that are no UTF-8
        digest.update(b"\0" + path.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _checked_path(path: Any) -> str:
    """`path` as text; PredictionError unless it is one."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise PredictionError(
            f"`paths` holds a {type(path).__name__}; a table on disk is about files, so give their "
            "paths, or leave `out` away to predict other images"
        )
    return os.fspath(path)


def _check_target(target: Path) -> None:
    """Raise unless `target` is a file or nothing, in a folder that is no bundle."""
    check_outside(target)
    if not target.parent.is_dir():
        raise PredictionFileError(f"there is no folder {str(target.parent)!r} to write to; make it")
    # `exists` is false for a link that leads nowhere
    if os.path.lexists(target) and (target.is_symlink() or not target.is_file()):
        raise PredictionFileError(f"{str(target)!r} is no file; choose another name")

"""The commands that use images or an exported model: extend, evaluate, predict, report.

Whatever is slow to import is imported inside the functions.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from csv import QUOTE_MINIMAL, QUOTE_NONNUMERIC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from learnkit.cli.arguments import (
    CaseOption,
    FolderArgument,
    GoodOption,
    GroupOption,
    Interrupted,
    ModelArgument,
    OutOption,
    PathsArgument,
    RateOption,
    ThresholdOption,
)
from learnkit.cli.console import FittedTable, Report, fail
from learnkit.cli.remedies import remedy
from learnkit.errors import (
    PredictionError,
    UnreadableImagesError,
    UsageError,
    number_of,
    warned_after,
)

if TYPE_CHECKING:
    import pandas as pd

    from learnkit.deploy.predictor import Predictor
    from learnkit.evaluation.evaluate import Evaluation
    from learnkit.inference.files import FilesReport
    from learnkit.inference.prediction_table import Row

_SHOWN_ROWS = 20
_TABLES = (".csv", ".jsonl", ".parquet")


@warned_after
def extend(
    model: ModelArgument,
    folder: FolderArgument,
    out: OutOption = None,
    false_alarm_rate: RateOption = None,
    ood_threshold: ThresholdOption = None,
    reuse_names: Annotated[
        bool,
        typer.Option("--reuse-names", help="Names that classes had before are of new classes."),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Count images once more that were learned before.")
    ] = False,
    group: GroupOption = None,
    case_sensitive: CaseOption = False,
) -> None:
    """Teach an exported model new classes, or more of the old, from new images alone.

    No training and no old images: seconds. Of a FOLDER split into train/ and valid/ the training
    images are learned, and the validation images decide when an image counts as unknown. An image
    counts once, however often it comes. With --group 'part[0-9]+' threshold and confidence rest on
    all images of a part left out together. The model must be in the continual state. `learnkit
    undo MODEL` takes it back.
    """
    from learnkit.continual.classifier import check_continual
    from learnkit.data.dataset import ImageDataset
    from learnkit.deploy.predictor import load_learner
    from learnkit.storage.write_folder import check_local, check_target

    _check_flagging(false_alarm_rate, ood_threshold)
    out, report = model if out is None else out, Report()
    check_local(out)  # before a download
    predictor = load_learner(model)  # what is no model has no place to be written to
    check_target(out)
    told = check_continual(predictor.continual).settings.case_sensitive
    _set_flagging(predictor, false_alarm_rate, ood_threshold)
    # a model that once told A from a goes on with it, unasked
    data = ImageDataset.from_folder(folder, case_sensitive=case_sensitive or told)
    how = {"reuse_names": reuse_names, "again": again, "group": group}
    change = predictor.extend(data, **how)
    predictor.save(out)
    report.change(change)
    report.files("Written", [(out, f"the model with {number_of(change.n_classes, 'class')}")])
    report.command("Next", ["predict", out, "IMAGES"], ["evaluate", out, "FOLDER"])


def _check_flagging(rate: float | None, threshold: float | None) -> None:
    if rate is not None and threshold is not None:
        raise UsageError(
            f"--false-alarm-rate {rate:g} and --ood-threshold {threshold:g} both say when an image "
            "is flagged as unknown; give one of them"
        )
    if rate is not None and not 0 < rate < 1:
        raise UsageError(f"--false-alarm-rate is {rate}; between 0 and 1, such as 0.05")
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"--ood-threshold is {threshold}; a finite score, such as 1.2")


def _set_flagging(predictor: Any, rate: float | None, threshold: float | None) -> None:
    """Flag images as unknown by another false-alarm rate or threshold, where one is given."""
    if threshold is not None:
        predictor.set(ood_threshold=threshold)
    if rate is None:
        return
    if not predictor.needs_torch:
        raise UsageError(
            "--false-alarm-rate needs the scores that a model keeps, and this variant runs without "
            "torch and has its threshold alone; leave it out, or install torch"
        )
    predictor.set(false_alarm_rate=rate)


def evaluate(
    model: ModelArgument,
    folder: FolderArgument,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the pictures, too.")
    ] = None,
    ood: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Images of none of the classes: are they noticed?"),
    ] = None,
    good: GoodOption = None,
    learned: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Images it learned, to show beside mistakes."),
    ] = None,
    false_alarm_rate: RateOption = None,
    ood_threshold: ThresholdOption = None,
    max_mb: Annotated[
        float, typer.Option(min=0, max=200, help="Megabytes that the page may have.")
    ] = 25,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Put the pictures into the page.")
    ] = True,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace FILE even if it is no page of learnkit's.")
    ] = False,
) -> None:
    """Evaluate an exported model on labelled images; --html shows where it errs.

    Of a FOLDER split into train/, valid/ and test/ the test images are taken, else the valid ones.
    Images that cannot be read are listed with the reason, and the exit code is then 1.
    """
    from learnkit.cli import workflow
    from learnkit.serving.server import open_model

    about = {"--open": open_page, "--force": force, "--no-images": not images}
    _check_page(html, force=force, about={**about, "--learned": learned is not None})
    _check_flagging(false_alarm_rate, ood_threshold)
    report, predictor = Report(), open_model(model)  # with torch or, where there is none, without
    _set_flagging(predictor, false_alarm_rate, ood_threshold)
    name, data = workflow.held_out(workflow.images_for(predictor, folder))
    unknown = None if ood is None else workflow.images_at([ood])
    evaluation, unread = evaluated(predictor, data, unknown, good, learned)
    title = f"{number_of(len(data), 'image')} of {folder} ({name})"
    title += "" if unknown is None else f", {len(unknown)} unknown ones of {ood}"
    report.evaluation(evaluation, title if unread is None else f"{title}, as far as readable")
    if html is not None:
        command = ["learnkit", "evaluate", model.name, folder.name, "--html", html.name]
        command += [] if ood is None else ["--ood", ood.name]
        command += [] if learned is None else ["--learned", learned.name]
        rate, limit = false_alarm_rate, ood_threshold
        command += [] if rate is None else ["--false-alarm-rate", f"{rate:g}"]
        command += [] if limit is None else ["--ood-threshold", f"{limit}"]
        command += [part for one in evaluation.good for part in ("--good", one)]
        about = {"max_mb": max_mb, "pictures": images, "command": shlex.join(command)}
        evaluation.save_html(html, force=force, progress=True, **about)
        _say_page(report, html, open_page)
    if unread is not None:
        fail(unread)
        raise typer.Exit(1)


def _check_page(html: Path | None, *, force: bool, about: Mapping[str, bool]) -> None:
    """Raise UsageError unless the page can be written; said before any work.

    Options `about` the page are for one that is.
    """
    from learnkit.interpret.page.page import page_target
    from learnkit.storage.write_folder import check_outside

    if html is not None:
        page_target(html, force=force)
        check_outside(html)
        return
    for option, given in about.items():
        if given:
            raise UsageError(f"{option} is about the page of --html; name its file, --html FILE")


def _say_page(report: Report, html: Path, open_page: bool) -> None:
    report.files("Written", [(html, "the pictures behind the numbers")])
    if open_page:
        import webbrowser

        webbrowser.open(html.absolute().as_uri())
        return
    report.say(f"Open {html} in a browser")


def evaluated(
    predictor: Predictor,
    images: Any,
    unknown: Any,
    good: Sequence[str] | None = None,
    learned: Any = None,
) -> tuple[Evaluation, str | None]:
    """How good a model is on the images that can be read, and what to say of the others."""
    try:
        wanted = {"ood": unknown, "good": good or None, "learned": learned}
        return predictor.evaluate(images, **wanted), None
    except UnreadableImagesError as error:
        text = " ".join(str(error).split())
        return error.evaluation, text + remedy(text, type(error))


def predict(
    model: ModelArgument,
    paths: PathsArgument,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a table there.")] = None,
    to_json: Annotated[
        Path | None,
        typer.Option("--json", metavar="[FILE]", help="Write JSON there, or to the screen."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write .csv, .jsonl or .parquet for any number."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out after an interruption.")
    ] = False,
    false_alarm_rate: RateOption = None,
    ood_threshold: ThresholdOption = None,
) -> None:
    """Predict images with an exported model.

    An image like none of the classes has the verdict UNKNOWN, where the model detects such images.
    Images that cannot be read are listed with the reason, and the exit code is then 1. With --out
    rows are kept on disk as they are predicted, in FILE.parts, and become FILE at the end.
    """
    from learnkit.cli.workflow import images_at
    from learnkit.serving.server import open_model

    check_targets(csv, to_json, out, resume=resume)
    files = images_at(paths)
    _check_flagging(false_alarm_rate, ood_threshold)
    predictor = open_model(model)  # with torch, or where there is none without
    _set_flagging(predictor, false_alarm_rate, ood_threshold)
    if out is not None:
        found = _predict_into(out, predictor, files, resume=resume)
        counts, n_failed = found.counts, found.n_failed
    else:
        rows = _predicted(predictor, files)
        _write(rows, predictor, csv, to_json)
        counts = Counter(row["verdict"] for row in rows if row["error"] is None)
        counts, n_failed = dict(counts.most_common()), len(rows) - counts.total()
    if str(to_json) != "-":  # else the screen shows data, and nothing else
        _say_counts(counts, n_failed, [path for path in (csv, to_json, out) if path])
    if n_failed:
        why = "; the table says why" if csv or to_json or out else ""
        fail(f"{number_of(n_failed, 'image')} could not be read{why}")
        raise typer.Exit(1)


def report(
    model: ModelArgument,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there as a page, too.")
    ] = None,
) -> None:
    """Show an exported model: its classes, its variants, and what optimising cost."""
    from learnkit.cli.report import report_model

    report_model(model, html)


def check_targets(
    csv: Path | None, to_json: Path | None, out: Path | None, *, resume: bool
) -> None:
    """Raise UsageError unless predictions can be written to these together.

    A target such as `--json photo.jpg` would be overwritten; one inside a bundle is refused, too.
    """
    for option, path, suffix in (("--csv", csv, ".csv"), ("--json", to_json, ".json")):
        if path is not None and str(path) != "-" and path.suffix.lower() != suffix:
            raise UsageError(f"{option} is {str(path)!r}; name a file that ends in {suffix}")
        if path is not None and not path.parent.is_dir():  # else told after all the work
            raise UsageError(
                f"{option} is {str(path)!r}, in a non-existent directory; make it first"
            )
    from learnkit.inference.files import log_path
    from learnkit.storage.write_folder import check_outside

    for path in (csv, to_json, out):
        if path is not None:
            check_outside(path)
    if out is None:
        if resume:
            raise UsageError("--resume goes on with the file of --out; name that")
        return
    if csv is not None or to_json is not None:
        raise UsageError("--out takes the place of --csv and --json; leave those out")
    if out.suffix.lower() not in _TABLES:
        raise UsageError(f"--out is {str(out)!r}; name a file that ends in {', '.join(_TABLES)}")
    if not resume and log_path(out).exists():
        raise UsageError(
            f"unfinished predictions stand in {str(log_path(out))!r}; go on with --resume, or "
            "remove them to start anew"
        )
    if not resume and out.exists():
        raise UsageError(f"{str(out)!r} is there already; name another file, or remove it first")


def _predicted(predictor: Any, files: Sequence[Path]) -> list[Row]:
    """A row for each image, or for the reason why it cannot be read; without pandas."""
    from learnkit.inference.batch import BATCH, predict_stream
    from learnkit.inference.prediction_table import row_of
    from learnkit.report.progress import watched

    stream = predict_stream(predictor, files, bs=BATCH, n_workers=2)
    return [
        row_of(str(path), result, probs=True) for path, result in watched(stream, len(files), True)
    ]


def _predict_into(
    out: Path, predictor: Predictor, files: Sequence[Path], *, resume: bool
) -> FilesReport:
    """Predict all images into `out`; what became of them."""
    from learnkit.inference.files import log_path

    try:
        found = predictor.predict_files(files, out=out, resume=resume)
    except PredictionError as error:
        raise UsageError(f"{error}. Here: remove it, or name another --out") from error
    except KeyboardInterrupt:
        nothing = "before anything was predicted; start again"
        raise Interrupted(log_path(out), nothing) from None
    Report().say(str(found))
    return found


def _say_counts(counts: Mapping[str, int], n_failed: int, written: Sequence[Path]) -> None:
    """End with how many images there are of each verdict, and where it is written."""
    from learnkit.inference.prediction import UNKNOWN

    report, n = Report(), sum(counts.values())
    rows = [[name, str(count)] for name, count in [*counts.items()][:_SHOWN_ROWS]]
    if rows:
        table = FittedTable(["verdict", "images"], rows, frozenset({"images"}))
        report.table(table, n_left_out=len(counts) - len(rows))
    parts = [number_of(n, "image")]
    if UNKNOWN in counts:
        parts.append(f"{counts[UNKNOWN]} of them {UNKNOWN}, like none of the classes")
    if n_failed:
        parts.append(f"{n_failed} {'more ' if n else ''}could not be read")
    report.say(", ".join(parts))
    if written:
        report.files("Written", [(path, number_of(n + n_failed, "row")) for path in written])


def _write(rows: Sequence[Row], predictor: Any, csv: Path | None, to_json: Path | None) -> None:
    """Write predictions where they were asked for, `-` being standard output, or show them."""
    if csv is not None:
        from learnkit.inference.model import model_digest
        from learnkit.inference.prediction_table import Layout, write_table

        layout = Layout(predictor.classes, model_digest(predictor), predictor.multi_label)
        with csv.open("wb") as file:
            write_table(file, "csv", layout, rows)
    if to_json is not None:
        found = records(rows, predictor.classes, ood=predictor.detects_ood)
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        # names may be no text, or steer a terminal: as JSON escapes it
        text = "".join(
            one if one.isprintable() or one in " \n" else json.dumps(one)[1:-1] for one in text
        )
        sys.stdout.write(text) if str(to_json) == "-" else to_json.write_text(text, "utf-8")
    if csv is None and to_json is None:
        _show(rows, ood=predictor.detects_ood)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table that pandas and spreadsheets read, whatever the names of files are.

    What UTF-8 cannot hold is written as an escape. A name that spreadsheets would compute (=, +, -
    or @ in front) stays as it is: open such a table with its columns as text.
    """
    from learnkit.inference.prediction_table import as_written

    def cell(value: Any) -> str:
        return (
            "" if value is None or value != value else as_written(str(value))
        )  # NaN is not itself

    texts = [name for name in table if table[name].dtype.kind not in "biuf"]
    cells = {name: [cell(value) for value in table[name]] for name in texts}
    returns = any("\r" in cell for name in texts for cell in cells[name])
    quoting = QUOTE_NONNUMERIC if returns else QUOTE_MINIMAL  # pandas leaves a CR unquoted
    table.assign(**cells).to_csv(path, index=False, quoting=quoting)


def _show(rows: Sequence[Row], *, ood: bool) -> None:
    """Write the columns worth a look in a terminal, then what is wrong with unreadable images."""
    report = Report()
    columns = ["path", "verdict", "confidence"]
    if ood:
        columns = ["path", "verdict", "label", "confidence", "ood_score"]
    read = [row for row in rows if row["error"] is None]
    failed = [row["error"] for row in rows if row["error"] is not None]
    if read:
        report.rows(columns, [[row[name] for name in columns] for row in read], _SHOWN_ROWS)
    report.some(failed, _SHOWN_ROWS)


def records(rows: Sequence[Row], classes: Sequence[str], *, ood: bool) -> list[dict[str, Any]]:
    """Predictions for JSON: path, and an error or what is predicted.

    That is verdict, label, confidence and probs. Of models that detect out-of-distribution images
    also is_ood, ood_score and p_value.
    """
    from learnkit.storage.formats import finite_or_none

    found = []
    for row in rows:
        if row["error"] is not None:
            found.append({"path": row["path"], "error": row["error"]})
            continue
        one = {k: row[k] for k in ("path", "verdict", "label")}
        one |= {"confidence": finite_or_none(row["confidence"])}
        if ood:
            one |= {"is_ood": row["is_ood"]}
            one |= {k: finite_or_none(row[k]) for k in ("ood_score", "p_value")}
        found.append(one | {"probs": dict(zip(classes, row["probs"], strict=True))})
    return found

"""The commands that use an exported model: extend, evaluate, predict, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from learnkit.cli.arguments import FolderArgument, Interrupted, ModelArgument, PathsArgument
from learnkit.cli.console import fail
from learnkit.errors import UsageError


def extend(
    model: ModelArgument,
    folder: FolderArgument,
    out: Annotated[Path, typer.Option(help="Folder of the extended model; may be MODEL itself.")],
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Wanted share of known images flagged as unknown."),
    ] = None,
) -> None:
    """Teach an exported model new classes, or more of the old, from new images alone.

    No training and no old images: seconds. Of a FOLDER split into train/ and valid/ the training
    images are learned, and the validation images decide when an image counts as unknown. The model
    must be in the continual state.
    """
    from learnkit.cli.use import extend_model

    if false_alarm_rate is not None and not 0 < false_alarm_rate < 1:
        raise UsageError(f"--false-alarm-rate is {false_alarm_rate}; between 0 and 1, such as 0.05")
    extend_model(model, folder, out, false_alarm_rate=false_alarm_rate)


def evaluate(
    model: ModelArgument,
    folder: FolderArgument,
    ood: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Images of none of the classes: are they noticed?"),
    ] = None,
) -> None:
    """Judge an exported model by labelled images.

    Of a FOLDER split into train/, valid/ and test/ the test images are taken, else the valid ones.
    """
    from learnkit.cli.use import evaluate_folder

    evaluate_folder(model, folder, ood)


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
) -> None:
    """Predict images with an exported model.

    Images that cannot be read are listed with the reason, and the exit code is then 1. With --out
    rows are kept on disk as they are predicted, in FILE.parts, and become FILE at the end.
    """
    from learnkit.cli.use import check_targets, predict_into, predict_paths
    from learnkit.inference.files import log_path

    check_targets(csv, to_json, out, resume=resume)
    if out is None:
        n_failed = predict_paths(model, paths, csv, to_json)
    else:
        try:
            n_failed = predict_into(model, paths, out, resume=resume)
        except KeyboardInterrupt:
            nothing = "before anything was predicted; start again"
            raise Interrupted(log_path(out), nothing) from None
    if n_failed:
        fail(f"{n_failed} images could not be read; their rows say why")
        raise typer.Exit(1)


def report(
    model: ModelArgument,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there as a page, too.")
    ] = None,
) -> None:
    """Say what an exported model is: its classes, its variants, and what optimising cost."""
    from learnkit.cli.report import report_model

    report_model(model, html)

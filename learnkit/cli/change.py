"""The commands that change a model and learn nothing: undo, forget, rename, calibrate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from learnkit.cli.arguments import FolderArgument, GroupOption, ModelArgument, OutOption
from learnkit.cli.console import Report
from learnkit.errors import UsageError, number_of, warned_after

if TYPE_CHECKING:
    from learnkit.continual.change_report import ChangeReport
    from learnkit.deploy.predictor import Predictor


@warned_after
def undo(model: ModelArgument, out: OutOption = None) -> None:
    """Take back the last change: what was learned, forgotten or renamed; three times at most."""
    _changed(model, out, lambda predictor: predictor.undo())


@warned_after
def forget(
    model: ModelArgument,
    names: Annotated[list[str], typer.Argument(metavar="CLASS", help="Classes to forget.")],
    out: OutOption = None,
) -> None:
    """Forget classes: no image is put into them any more. `learnkit undo MODEL` takes it back."""
    _changed(model, out, lambda predictor: predictor.forget(names))


@warned_after
def rename(
    model: ModelArgument,
    names: Annotated[list[str], typer.Argument(metavar="OLD=NEW", help="Names to change.")],
    out: OutOption = None,
) -> None:
    """Give classes other names. `learnkit undo MODEL` takes it back."""
    pairs = dict(_pair(text) for text in names)
    if len(pairs) < len(names):
        raise UsageError("OLD=NEW gives one class two names; write each class once")
    _changed(model, out, lambda predictor: predictor.rename(pairs))


@warned_after
def calibrate(
    model: ModelArgument,
    folder: FolderArgument,
    out: OutOption = None,
    group: GroupOption = None,
) -> None:
    """Let fresh labelled images decide when an image counts as unknown, and on confidences.

    They are not learned: give images taken as those the model is used on, 20 or more a class. Of a
    FOLDER split into train/ and valid/ the valid ones are taken. Images the model has learned do
    not count; with --group 'part[0-9]+' neither do those of parts of which it was told, by the same
    option, as it learned others. `learnkit undo MODEL` takes it back.
    """
    _changed(model, out, lambda predictor: _calibrated(predictor, folder, group))


def _calibrated(predictor: Predictor, folder: Path, group: str | None) -> ChangeReport:
    from learnkit.cli.workflow import images_for

    return predictor.calibrate(images_for(predictor, folder), group=group)


def _pair(text: str) -> tuple[str, str]:
    """(old, new) of OLD=NEW.

    >>> _pair("nok=not ok")
    ('nok', 'not ok')
    """
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise UsageError(f"OLD=NEW is {text!r}; write a class and its new name, such as nok=broken")
    return old, new


def _changed(model: Path, out: Path | None, change: Callable[[Predictor], ChangeReport]) -> None:
    """Write the model after the change."""
    from learnkit.deploy.predictor import load_learner
    from learnkit.storage.write_folder import check_local, check_target

    out, report = model if out is None else out, Report()
    check_local(out)  # before a download
    predictor = load_learner(model)  # what is no model has no place to be written to
    check_target(out)
    found = change(predictor)
    predictor.save(out)
    report.change(found)
    report.files("Written", [(out, f"the model with {number_of(found.n_classes, 'class')}")])
    back = [["undo", out]] if _can_be_undone(predictor) else []
    onward = ["evaluate" if found.n_classes else "extend", out, "FOLDER"]
    report.command("Next", *back, onward)


def _can_be_undone(predictor: Predictor) -> bool:
    """Whether there is a change to take back once it is loaded again."""
    return predictor.continual is not None and len(predictor.continual.history.states) > 1

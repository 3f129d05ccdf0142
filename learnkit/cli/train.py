"""What `learnkit train` does, said step by step as it does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from learnkit.cli import workflow
from learnkit.cli.console import Report, change_lines
from learnkit.storage.write_folder import check_target

_SHOWN_ROWS = 20


def training_folder(out: Path) -> Path:
    """Where everything about the training of the model `out` is kept.

    >>> training_folder(Path("models/parts")).as_posix()
    'models/parts-training'
    """
    return out.with_name(f"{out.name}-training")


def checkpoint_file(out: Path) -> Path:
    """The checkpoint of the training of the model `out`."""
    return training_folder(out) / "checkpoint.ckpt"


def train_folder(
    folder: Path,
    out: Path,
    plan: workflow.TrainingPlan,
    *,
    resume: bool,
    continual: bool = False,
) -> None:
    """Train on the images below `folder`, judge the model, export it to `out`.

    With `continual` the model ends in the state in which `extend` can add classes.

    Raises:
        LearnkitError: the folder, an option or the target will not do; said before any training.
    """
    report, beside = Report(n_steps=5 + continual), training_folder(out)
    check_target(out)
    checkpoint = workflow.checkpoint_of(checkpoint_file(out), plan, resume=resume)
    report.step(f"Read the images in {folder}")
    data = workflow.read_dataset(folder, seed=plan.seed)
    report.frame(data.counts().reset_index(), max_rows=_SHOWN_ROWS)
    what = f"the head of {plan.arch}" if plan.head_only else plan.arch
    report.step(f"Train {what}{_origin(plan)} at {plan.size} x {plan.size} pixels")
    learn = workflow.build_learner(data, plan)
    if checkpoint.progress:
        report.say(f"going on from {checkpoint.file}")
    workflow.train(learn, plan, cbs=[*workflow.watch(learn, plan, report.say), checkpoint])
    if continual:
        report.step("Make it a continual learner: one pass over the images, no training")
        for line in change_lines(learn.init_continual(data)):
            report.say(line)
    name, images = workflow.held_out(data)
    report.step(f"Evaluate on the {name} images")
    interp = workflow.interpret(learn, images)
    report.evaluation(interp.evaluation, f"{len(images)} {name} images")
    report.step(f"Draw pictures into {beside}")
    pictures = workflow.save_pictures(interp, beside)
    data.frame.to_csv(beside / "split.csv", index=False, errors="surrogateescape")
    learn.history.to_csv(beside / "history.csv", index=False)
    report.step(f"Export to {out}")
    learn.export(out)
    checkpoint.file.unlink(missing_ok=True)  # the training is complete, its result is safe
    _say_what_is_there(report, out, [*pictures, beside / "split.csv", beside / "history.csv"])
    report.command("Next", f"learnkit predict {out} IMAGES", f"learnkit evaluate {out} FOLDER")


def _origin(plan: workflow.TrainingPlan) -> str:
    """Where the network's first weights come from, in words."""
    if plan.pretrained is False:
        return " from random weights"
    return " from its published weights" if plan.pretrained is True else f" from {plan.pretrained}"


def _say_what_is_there(report: Report, out: Path, files: Sequence[Path]) -> None:
    what = {
        "confusion_matrix.png": "how often each class was taken for which",
        "top_losses.png": "the worst mistakes and where the network looked",
        "training_curve.png": "loss, error and accuracy per epoch",
        "split.csv": "which image was used for what",
        "history.csv": "the numbers of every epoch",
    }
    rows = [(path, what[path.name]) for path in files]
    report.say()
    report.files("Written", [(out, "the exported model; open its README.md"), *rows])

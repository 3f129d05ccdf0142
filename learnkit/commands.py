"""What `learnkit train`, `extend`, `evaluate` and `predict` do, said step by step as they do it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnkit import workflow
from learnkit.console import Report, change_lines, change_table, evaluation_tables, frame_table
from learnkit.deploy.atomic import check_target
from learnkit.deploy.heads import check_continual
from learnkit.deploy.loading import load_learner
from learnkit.errors import UsageError
from learnkit.evaluation.evaluate import plain

if TYPE_CHECKING:
    import pandas as pd

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
    report.table(frame_table(data.counts().reset_index(), max_rows=_SHOWN_ROWS))
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
    for table in evaluation_tables(interp.evaluation, f"{len(images)} {name} images"):
        report.table(table)
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


def extend_model(model: Path, folder: Path, out: Path, *, false_alarm_rate: float | None) -> None:
    """Teach the exported `model` the images below `folder`, and export it to `out`.

    Raises:
        LearnkitError: no such model or folder, a model that cannot learn, images that cannot be
            read, or a target that is no bundle; nothing is written then.
    """
    report = Report()
    check_target(out)
    predictor = load_learner(model)
    check_continual(predictor.continual)
    if false_alarm_rate is not None:
        predictor.set(false_alarm_rate=false_alarm_rate)
    change = predictor.extend(folder, progress=sys.stderr.isatty())
    predictor.save(out)
    report.table(change_table(change))
    for line in change_lines(change):
        report.say(line)
    report.files("Written", [(out, f"the model with {len(predictor.classes)} classes")])
    report.command("Next", f"learnkit predict {out} IMAGES", f"learnkit evaluate {out} FOLDER")


def evaluate_folder(model: Path, folder: Path, ood: Path | None = None) -> None:
    """Judge an exported model by the images below `folder`, one folder per class.

    Args:
        model: folder of an exported model.
        folder: images of its classes.
        ood: folder of images of none of its classes, which it should notice.

    Raises:
        LearnkitError: no such model or folder, or labels the model does not know; `ood` for a model
            that cannot tell.
    """
    from learnkit.data.dataset import ImageDataset

    report, predictor = Report(), load_learner(model)
    name, images = workflow.held_out(ImageDataset.from_folder(folder))
    strange = None if ood is None else workflow.images_at([ood])
    evaluation = predictor.evaluate(images, ood=strange, progress=sys.stderr.isatty())
    title = f"{len(images)} images of {folder} ({name})"
    title += "" if strange is None else f", {len(strange)} unknown ones of {ood}"
    for table in evaluation_tables(evaluation, title):
        report.table(table)


def predict_paths(
    model: Path, paths: Sequence[Path], csv: Path | None, to_json: Path | None
) -> int:
    """Number of images that could not be read, after predicting all the others.

    Args:
        model: folder of an exported model.
        paths: image files, and folders of them.
        csv: write the table there.
        to_json: write a list of objects there; `-` for standard output.

    Raises:
        LearnkitError: no such model, file or folder, or a target that is no CSV or JSON file.
    """
    _check_suffix("--csv", csv, ".csv")
    _check_suffix("--json", to_json, ".json")
    files = workflow.images_at(paths)
    table = load_learner(model).predict_files(files, progress=sys.stderr.isatty())
    if csv is not None:
        table.to_csv(csv, index=False, errors="surrogateescape")
    if to_json is not None:
        text = json.dumps(records(table), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        text = text.encode("utf-8", "backslashreplace").decode()  # names that are no text
        sys.stdout.write(text) if str(to_json) == "-" else to_json.write_text(text, "utf-8")
    if csv is None and to_json is None:
        Report().table(frame_table(_short(table), max_rows=_SHOWN_ROWS))
    return int(table["error"].notna().sum())


def _check_suffix(option: str, path: Path | None, suffix: str) -> None:
    """Raise for a target such as `--json photo.jpg`, which would be overwritten."""
    if path is not None and str(path) != "-" and path.suffix.lower() != suffix:
        raise UsageError(f"{option} is {str(path)!r}; name a file that ends in {suffix}")


def _short(table: pd.DataFrame) -> pd.DataFrame:
    """The columns worth a look in a terminal."""
    columns = ["path", "label", "confidence"]
    if "is_ood" in table:
        table = table.assign(unknown=table["is_ood"].map({True: "yes", False: ""}).astype(object))
        columns += ["unknown", "ood_score"]
    return table[columns + ["error"] * bool(table["error"].notna().any())]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table of predictions for JSON: path, label, confidence and probs, or error.

    Of models that can tell unusual images also is_ood, ood_score and p_value.
    """
    names = [c for c in table.columns if c.startswith("p(")]
    own = ["path", "label", "confidence"]
    own += [c for c in ("is_ood", "ood_score", "p_value") if c in table.columns]
    found = []
    for row in table.to_dict("records"):
        if row["error"] is not None:
            found.append({"path": row["path"], "error": row["error"]})
            continue
        probs = {name[2:-1]: row[name] for name in names}
        found.append({k: plain(row[k]) for k in own} | {"probs": probs})
    return found

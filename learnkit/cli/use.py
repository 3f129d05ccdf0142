"""What `learnkit extend`, `evaluate` and `predict` do, and say."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnkit.cli import workflow
from learnkit.cli.console import Report, change_lines
from learnkit.continual.classifier import check_continual
from learnkit.deploy.loading import load_learner
from learnkit.errors import PredictionError, UsageError
from learnkit.evaluation.evaluate import json_value
from learnkit.inference.files import log_path
from learnkit.storage.write_folder import check_target

if TYPE_CHECKING:
    import pandas as pd

_SHOWN_ROWS = 20
_TABLES = (".csv", ".jsonl", ".parquet")


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
    report.change(change)
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
    report.evaluation(evaluation, title)


def check_targets(
    csv: Path | None, to_json: Path | None, out: Path | None, *, resume: bool
) -> None:
    """Raise UsageError unless predictions can be written to these together.

    A target such as `--json photo.jpg` would be overwritten.
    """
    for option, path, suffix in (("--csv", csv, ".csv"), ("--json", to_json, ".json")):
        if path is not None and str(path) != "-" and path.suffix.lower() != suffix:
            raise UsageError(f"{option} is {str(path)!r}; name a file that ends in {suffix}")
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


def predict_into(model: Path, paths: Sequence[Path], out: Path, *, resume: bool) -> int:
    """Number of images that could not be read, after predicting all the others into `out`.

    Args:
        model: folder of an exported model.
        paths: image files, and folders of them.
        out: a table that ends in .csv, .jsonl or .parquet; it appears, whole, at the end.
        resume: go on where an interrupted call was.

    Raises:
        LearnkitError: no such model, file or folder; what stands there is of other work.
    """
    files = workflow.images_at(paths)
    predictor, progress = load_learner(model), sys.stderr.isatty()
    try:
        found = predictor.predict_files(files, out=out, resume=resume, progress=progress)
    except PredictionError as error:
        raise UsageError(f"{error}. Here: remove it, or name another --out") from error
    Report().say(str(found))
    return found.n_failed


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
        LearnkitError: no such model, file or folder.
    """
    files = workflow.images_at(paths)
    table = load_learner(model).predict_files(files, progress=sys.stderr.isatty())
    if csv is not None:
        table.to_csv(csv, index=False, errors="surrogateescape")
    if to_json is not None:
        text = json.dumps(records(table), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        text = text.encode("utf-8", "backslashreplace").decode()  # names that are no text
        sys.stdout.write(text) if str(to_json) == "-" else to_json.write_text(text, "utf-8")
    if csv is None and to_json is None:
        _show(table)
    return int(table["error"].notna().sum())


def _show(table: pd.DataFrame) -> None:
    """Write the columns worth a look in a terminal, then what is wrong with unreadable images."""
    report, columns = Report(), ["path", "label", "confidence"]
    read, failed = table[table["error"].isna()], table["error"].dropna()
    if "is_ood" in table:
        read = read.assign(unknown=read["is_ood"].map({True: "yes", False: ""}).astype(object))
        columns += ["unknown", "ood_score"]
    if len(read):
        report.frame(read[columns], max_rows=_SHOWN_ROWS)
    for error in failed.head(_SHOWN_ROWS):
        report.say(error)
    if len(failed) > _SHOWN_ROWS:
        report.say(f"and {len(failed) - _SHOWN_ROWS} more")


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
        found.append({k: json_value(row[k]) for k in own} | {"probs": probs})
    return found

"""The whole path on 1,797 real handwritten digits: files, training, evaluation, export, prediction.

The digits are those of scikit-learn (8 x 8 pixels, from the UCI repository), so nothing is
downloaded. Every step calls what a user would call on a folder of their own.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from learnkit import workflow
from learnkit.console import Report, evaluation_tables
from learnkit.errors import DataError

MARKER = ".learnkit-demo"
_MARK = "This folder was made by `learnkit demo`, which may replace what is in it.\n"
_OURS = ("confusion_matrix.png", "top_losses.png", "training_curve.png", "predictions.csv")
# At 32 pixels a ResNet of stride 32 ends in a map of one cell, where no heatmap has a place; with
# `output_stride=8` (dilated convolutions) it ends in 4 x 4.
PLAN = workflow.TrainingPlan(
    arch="resnet18",
    pretrained=False,
    size=32,
    epochs=5,
    bs=32,
    lr=0.01,
    channels=1,
    arch_kwargs={"output_stride": 8},
)

_FRESH_PROCESS = """
import sys, time
start = time.perf_counter()
from learnkit import load_learner
model = load_learner(sys.argv[1])
print(f"loaded in {time.perf_counter() - start:.1f} s:", model)
label, index, probs = model.predict(sys.argv[2])
print(f"{sys.argv[2]} is a {label} with probability {probs[index]:.4f}")
assert "fastai" not in sys.modules, "fastai was imported"
table = model.predict_folder(sys.argv[3], progress=sys.stderr.isatty())
table.to_csv(sys.argv[4], index=False)
right = (table["path"].map(lambda p: p.replace("\\\\", "/").split("/")[-2]) == table["label"]).sum()
print(f"{len(table)} files of {sys.argv[3]} predicted, {right} as their folder says")
assert "fastai" not in sys.modules, "fastai was imported"
print("fastai was not imported")
"""


def run_demo(out: Path, *, plan: workflow.TrainingPlan = PLAN, n_images: int | None = None) -> None:
    """Run every step into the folder `out` and say what was done.

    Args:
        out: new, empty, or of an earlier demo.
        plan: of the training.
        n_images: only so many digits.

    Raises:
        DataError: `out` holds something else.
    """
    report = Report(n_steps=7)
    prepare_folder(out)
    report.step(f"Write scikit-learn's handwritten digits as image files into {out / 'digits'}")
    n_written, n = write_digits(out / "digits", n_images)
    report.say(f"{n} PNG files of 8 x 8 pixels in 10 class folders, {n_written} of them new")
    report.step("Read the folder: class folders are labels; split 70/15/15 within each class")
    data = workflow.read_dataset(out / "digits", seed=plan.seed)
    report.say(", ".join(f"{len(getattr(data, s))} {s}" for s in data.splits))
    report.step(f"Train {plan.arch} from random weights, {plan.epochs} times over the images")
    learn = workflow.build_learner(data, plan)
    workflow.train(learn, plan, cbs=workflow.watch(learn, plan, report.say))
    report.step("Evaluate on the test images, which training never saw")
    interp = workflow.interpret(learn, data.test)
    for table in evaluation_tables(interp.evaluation, f"{len(data.test)} test images"):
        report.table(table)
    report.step("Draw the confusion matrix, the worst mistakes with Grad-CAM, the training curve")
    pictures = workflow.save_pictures(interp, out)
    report.say(", ".join(path.name for path in pictures))
    report.step(f"Export to {out / 'model'}: a folder of data, nothing in it is executable")
    learn.export(out / "model")
    report.step("Load the export in a fresh process and predict one file, then a folder")
    example = out / "digits" / data.test.frame["path"].iloc[0]
    predict_in_fresh_process(out, example, report)
    _say_what_is_there(report, out, example)


def prepare_folder(out: Path) -> None:
    """Make `out`, or empty it of what an earlier demo left; its digits stay.

    Raises:
        DataError: `out` holds files that no demo wrote.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"`out` is the file {str(out)!r}; give a folder that is new or empty")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise DataError(
            f"the folder {str(out)!r} is not empty and was not made by the demo; give one that is "
            "new or empty with --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(_MARK, encoding="utf-8")
    for name in _OURS:
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "model", ignore_errors=True)


def write_digits(folder: Path, n_images: int | None = None) -> tuple[int, int]:
    """Numbers of files (new, in all) after writing the digits to `folder/<class>/<number>.png`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")[:n_images]
    n_new = 0
    for number, (image, label) in enumerate(zip(pixels, digits.target, strict=False)):
        path = folder / str(label) / f"{number:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            n_new += 1
    return n_new, len(pixels)


def predict_in_fresh_process(out: Path, example: Path, report: Report) -> None:
    """Let a new Python load the export and predict; what it says is passed on as it comes.

    Raises:
        RuntimeError: the process failed; its own message stands above.
    """
    arguments = [out / "model", example, out / "digits", out / "predictions.csv"]
    command = [sys.executable, "-c", _FRESH_PROCESS, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        for line in process.stdout or ():
            report.say(line.rstrip())
    if process.returncode:
        raise RuntimeError(f"the fresh process failed with exit code {process.returncode}")


def _say_what_is_there(report: Report, out: Path, example: Path) -> None:
    what = (
        "how often each digit was taken for which",
        "the nine worst mistakes and where the network looked",
        "loss, error and accuracy per epoch",
        "a prediction for every file",
    )
    written = [(out / name, text) for name, text in zip(_OURS, what, strict=True)]
    report.say()
    report.files(
        "Written",
        [
            (out / "digits", "the images, one folder per class"),
            *written,
            (out / "model", "the exported model; open its README.md"),
        ],
    )
    report.command(
        "Next",
        f"learnkit predict {out / 'model'} {example}",
        "learnkit train FOLDER --out my-model      # your images, one folder per class",
    )

"""The demo on 1,797 real handwritten digits: train, learn on, interpret, export, predict.

The digits are those of scikit-learn (8 x 8 pixels, from the UCI repository), so nothing is
downloaded. Every step calls what a user would call on a folder of their own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from learnkit.cli import workflow
from learnkit.cli.console import Report
from learnkit.data.dataset import ImageDataset
from learnkit.errors import DataError
from learnkit.storage.write_folder import check_outside

if TYPE_CHECKING:
    from learnkit.learner.learner import ImageLearner

MARKER = ".learnkit-demo"
_MARK = "This folder was made by `learnkit demo`, which may replace what is in it.\n"
LATE_CLASSES = ("7", "8", "9")  # not trained on, learned afterwards
_OURS = (
    "confusion_matrix.png",
    "top_losses.png",
    "training_curve.png",
    "unknown.png",
    "predictions.csv",
)
TO_LABEL = "to-label"  # a model that has not seen the late classes, and pictures to name
_PHOTOGRAPHS_TO_LABEL = 24
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
table = model.predict_folder(sys.argv[3])
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
    report = Report(n_steps=10)
    prepare_folder(out)
    data, known, new = _read(out, plan, n_images, report)
    learn = _trained(known, plan, report)
    _remember(learn, data, known, out, report)
    _learn_on(learn, data, new, report)
    _tell_the_unknown(learn, data, out, report)
    report.step("See what calibration did to the confidences")
    report.frame(learn.continual.calibration.table().rename_axis("measure").reset_index())
    report.step("Draw the confusion matrix, the worst mistakes with Grad-CAM, the training curve")
    pictures = workflow.save_pictures(workflow.interpret(learn, data.test), out)
    report.say(", ".join(path.name for path in pictures))
    report.step(f"Export to {out / 'model'}: a folder of data, nothing in it is executable")
    learn.export(out / "model")
    report.step("Load the export in a fresh process and predict one file, then a folder")
    example = out / "digits" / data.test.frame["path"].iloc[0]
    predict_in_fresh_process(out, example, report)
    _say_what_is_there(report, out, example)


def _read(
    out: Path, plan: workflow.TrainingPlan, n_images: int | None, report: Report
) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """All digits, those of the classes to train on, and those of the classes to come later."""
    report.step(f"Write scikit-learn's handwritten digits as image files into {out / 'digits'}")
    n_written, n = write_digits(out / "digits", n_images)
    report.say(f"{n} PNG files of 8 x 8 pixels in 10 class folders, {n_written} of them new")
    report.step("Read the folder: class folders are labels; split 70/15/15 within each class")
    data = workflow.read_dataset(out / "digits", seed=plan.seed)
    report.say(", ".join(f"{len(getattr(data, s))} {s}" for s in data.splits))
    late = data.frame["label"].isin(LATE_CLASSES)
    known, new = (ImageDataset(data.frame[mask], data.root) for mask in (~late, late))
    report.say(f"the digits {', '.join(LATE_CLASSES)} are put aside for later")
    return data, known, new


def _trained(known: ImageDataset, plan: workflow.TrainingPlan, report: Report) -> ImageLearner:
    report.step(
        f"Train {plan.arch} from random weights on the digits {', '.join(known.classes)}, "
        f"{plan.epochs} times over the images"
    )
    learn = workflow.build_learner(known, plan)
    with workflow.watch(learn, plan, report.say):
        workflow.train(learn, plan)
    accuracy = workflow.interpret(learn, known.test).evaluation.summary["accuracy"]
    report.say(f"{accuracy:.1%} of their {len(known.test)} test images are right")
    return learn


def _remember(
    learn: ImageLearner, data: ImageDataset, known: ImageDataset, out: Path, report: Report
) -> None:
    """Make the trained network one that learns, and put it aside as it is now, to be taught."""
    report.step("Make it a continual learner: one pass over its images, no training")
    change = learn.init_continual(known)
    report.say(f"{change.n_classes} classes in {change.seconds:.1f} s")
    learn.export(out / TO_LABEL / "model")
    n = write_inbox(out, data.test)
    report.say(f"as it is now it is in {out / TO_LABEL}, with {n} pictures for you to name")


def write_inbox(out: Path, held_out: ImageDataset) -> int:
    """Number of pictures put where `learnkit label` looks: digits held out, and photographs."""
    inbox = out / TO_LABEL / "inbox"
    inbox.mkdir(parents=True)
    for path in held_out.paths:
        shutil.copyfile(path, inbox / f"digit_{path.name}")  # whose name does not tell its class
    photographs = out / "photographs"
    write_photographs(photographs)
    # every fifth of 120, so of both photographs
    chosen = sorted(photographs.iterdir())[::5][:_PHOTOGRAPHS_TO_LABEL]
    for path in chosen:
        shutil.copyfile(path, inbox / f"photograph_{path.name}")
    return len(held_out.paths) + len(chosen)


def _learn_on(learn: ImageLearner, data: ImageDataset, new: ImageDataset, report: Report) -> None:
    """Extend the trained network by the classes put aside, from their images alone."""
    report.step(f"Extend it by {', '.join(LATE_CLASSES)} from their images alone, no training")
    change = learn.extend(new)
    report.consequences(change)
    evaluation = workflow.interpret(learn, data.test).evaluation
    report.evaluation(evaluation, f"all {len(data.test)} test images")
    recall = evaluation.per_class["recall"]
    report.say(
        f"{evaluation.summary['accuracy']:.1%} right over all ten digits, "
        f"{recall[list(LATE_CLASSES)].mean():.1%} of the new ones"
    )


def _tell_the_unknown(learn: ImageLearner, data: ImageDataset, out: Path, report: Report) -> None:
    """Show the threshold on pictures that are no digits."""
    n = write_photographs(out / "photographs")
    report.step(f"Show it what is no digit: {n} patches of two photographs")
    unknown = learn.predict_batch(sorted((out / "photographs").iterdir()))
    known = learn.predict_batch(data.test.paths)
    shares = [sum(p.is_ood for p in group) / len(group) for group in (unknown, known)]
    report.say(f"flagged as unknown: {shares[0]:.1%} of them, and {shares[1]:.1%} of the digits")
    report.say(f"(score above {learn.ood.threshold.value:.3f}, made for 5 % of known images)")
    workflow.save_figure(learn.plot_ood(out / "photographs"), out / "unknown.png")


def prepare_folder(out: Path) -> None:
    """Make `out`, or empty it of what an earlier demo left; its digits stay.

    Raises:
        DataError: `out` holds files that no demo wrote.
        BundleWriteError: `out` is inside a bundle.
    """
    check_outside(out)
    if out.exists() and not out.is_dir():
        raise DataError(f"`out` is the file {str(out)!r}; give a folder that is new or empty")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise DataError(
            f"the folder {str(out)!r} is not empty and was not made by the demo; give one that is "
            "new or empty with --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    # first: a demo that was interrupted can be begun again
    (out / MARKER).write_text(_MARK, encoding="utf-8")
    for name in _OURS:
        (out / name).unlink(missing_ok=True)
    for name in ("model", "photographs", TO_LABEL):
        shutil.rmtree(out / name, ignore_errors=True)


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
        "the worst mistakes and where the network looked",
        "loss, error and accuracy per epoch",
        "scores of digits and of photographs, and the threshold",
        "a prediction for every file",
    )
    written = [(out / name, text) for name, text in zip(_OURS, what, strict=True)]
    report.say()
    report.files(
        "Written",
        [
            (out / "digits", "the images, one folder per class"),
            (out / "photographs", "what is no digit"),
            *written,
            (out / "model", "the exported model; open its README.md"),
            (out / TO_LABEL, "a model that knows seven digits, and what it does not know"),
        ],
    )
    report.command(
        "Next",
        ["predict", out / "model", example],
        ["label", out / TO_LABEL / "model", out / TO_LABEL / "inbox"],
        ["train", "FOLDER", "--out", "my-model"],
        say="      # your images, one folder per class",
    )


_PATCH = 64  # pixels; the two photographs of 427 x 640 pixels give 120 of these


def write_digits(folder: Path, n_images: int | None = None) -> tuple[int, int]:
    """Numbers of files (new, in all) after writing the digits to `folder/<class>/<number>.png`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # each value counts the dark dots of a block of 4 x 4: 0..16
    pixels = (digits.images * (255 / 16)).round().astype("uint8")[:n_images]
    n_new = 0
    for number, (image, label) in enumerate(zip(pixels, digits.target, strict=False)):
        path = folder / str(label) / f"{number:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            n_new += 1
    return n_new, len(pixels)


def write_photographs(folder: Path) -> int:
    """Number of patches of scikit-learn's two sample photographs in `folder`, as PNG files."""
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    n = 0
    for photograph in load_sample_images().images:
        height, width = (side // _PATCH * _PATCH for side in photograph.shape[:2])
        for y in range(0, height, _PATCH):
            for x in range(0, width, _PATCH):
                Image.fromarray(photograph[y : y + _PATCH, x : x + _PATCH]).save(
                    folder / f"{n:03d}.png"
                )
                n += 1
    return n

"""The commands that train a classifier: demo, train.

Whatever is slow to import is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from learnkit.cli.arguments import (
    BALANCES,
    CaseOption,
    FolderArgument,
    GoodOption,
    GroupOption,
    Interrupted,
    check_start,
    named_value,
    numbers,
)
from learnkit.cli.console import Report
from learnkit.errors import UsageError, number_of

if TYPE_CHECKING:
    from learnkit.cli.workflow import TrainingPlan

_SHOWN_ROWS = 20


def demo(
    out: Annotated[Path, typer.Option(help="Folder to work in: new, empty or of a demo.")] = Path(
        "digits-demo"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 5,
    label: Annotated[
        bool, typer.Option("--label", help="Then open the page where you name what it cannot.")
    ] = False,
) -> None:
    """Train, interpret, export and predict on 1,797 real handwritten digits.

    With --label the page of `learnkit label` opens in the end, over digits and photographs that a
    model of seven digits has not seen; where an earlier demo was, at once, as you left it.
    """
    from dataclasses import replace

    _quiet_plots()
    from learnkit.cli.demo import MARKER, PLAN, TO_LABEL, run_demo

    # an earlier demo may have left a model and pictures to name
    left = [out / TO_LABEL / name for name in ("model", "inbox")]
    if not (label and (out / MARKER).is_file() and all(map(Path.is_dir, left))):
        run_demo(out, plan=replace(PLAN, epochs=epochs))
    if label:
        from learnkit.cli.label import label as open_page

        open_page(str(out / TO_LABEL / "model"), out / TO_LABEL / "inbox", port=0)


def train(
    folder: FolderArgument,
    arch: Annotated[str, typer.Option(help="A timm or torchvision name.")] = "resnet18",
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Height and width in pixels; the weights file's, else 224."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs over the whole network.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the exported model.")] = Path("model"),
    pretrained: Annotated[bool, typer.Option(help="Start from published weights.")] = True,
    weights: Annotated[Path | None, typer.Option(help="Start from this weights file.")] = None,
    weights_check: Annotated[
        bool,
        typer.Option("--weights-check", help="Compare what mean, std and padding they may need."),
    ] = False,
    head_only: Annotated[
        bool, typer.Option("--head-only", help="Leave the pretrained body as it is: fast.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    bs: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; 0.002 pretrained, else 0.01.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of training steps: auto, float32, bfloat16 or float16 (GPUs).")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 42,
    augment: Annotated[bool, typer.Option(help="Flip, turn, zoom training images.")] = False,
    method: Annotated[
        str | None, typer.Option(help="crop, squish or pad images that are not square.")
    ] = None,
    channels: Annotated[
        int,
        typer.Option(
            min=1, max=16, help="3 (RGB), 1 (grey), or what .npy and TIFF files have, up to 16."
        ),
    ] = 3,
    balance: Annotated[
        str,
        typer.Option(
            metavar="[equal|sqrt]", help="Draw training images so that classes come alike often."
        ),
    ] = "no",
    class_weights: Annotated[
        bool, typer.Option("--class-weights", help="Let rare classes weigh more in training.")
    ] = False,
    store: Annotated[
        Path | None, typer.Option(help="Folder to keep decoded images in, for the next epochs.")
    ] = None,
    continual: Annotated[
        bool, typer.Option("--continual", help="End ready to learn more classes by `extend`.")
    ] = False,
    arch_args: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="For the architecture; repeat."),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Of pixels in 0..1, if not the weights'.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="See --mean.")] = None,
    group: GroupOption = None,
    good: GoodOption = None,
    case_sensitive: CaseOption = False,
) -> None:
    """Train a classifier on a folder of images, evaluate it, and export it.

    FOLDER has one folder of images per class, or train/, valid/ and test/ with those in them; else
    70/15/15 of each class are taken. With --group 'part[0-9]+' all images of a part stay together:
    bursts must, or images as good as learned are evaluated. Beside OUT, the folder OUT-training
    holds the checkpoint that --resume goes on from, the split, the pictures, and report.html,
    which shows where it errs.
    """
    _quiet_plots()
    from learnkit.cli.workflow import TrainingPlan, size_of_weights

    check_start(pretrained, weights, lr, head_only, precision, balance)
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std belong together; give both or neither")
    plan = TrainingPlan(
        arch=arch,
        pretrained=str(weights) if weights else pretrained,
        size=size or size_of_weights(arch, weights),
        epochs=epochs,
        head_only=head_only,
        bs=bs,
        lr=lr,
        seed=seed,
        augment=augment,
        method=method,
        channels=channels,
        arch_kwargs=dict(map(named_value, arch_args or [])),
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
        check_weights=weights_check,
        precision=precision,
        balance=BALANCES[balance],
        class_weights=class_weights,
        group=group,
        store=store,
    )
    try:
        how = {"continual": continual, "case_sensitive": case_sensitive, "good": good or ()}
        train_folder(folder, out, plan, resume=resume, **how)
    except KeyboardInterrupt:
        nothing = "before the first epoch was complete; nothing is saved, train again"
        raise Interrupted(checkpoint_file(out), nothing) from None


def train_folder(
    folder: Path,
    out: Path,
    plan: TrainingPlan,
    *,
    resume: bool,
    continual: bool = False,
    case_sensitive: bool = False,
    good: Sequence[str] = (),
) -> None:
    """Train on the images below `folder`, evaluate the model, export it to `out`.

    With `continual` the model ends in the state in which `extend` can add classes. The classes in
    `good` mean that a part is good; the model's card says so.

    Raises:
        LearnkitError: the folder, an option or the target will not do; said before any training.
    """
    from learnkit.cli import workflow
    from learnkit.evaluation.measures import good_classes
    from learnkit.interpret.page.page import page_target
    from learnkit.learner.export import note_good
    from learnkit.storage.write_folder import check_target

    report, beside = Report(n_steps=5 + continual), training_folder(out)
    check_target(out)
    page = beside / "report.html"
    if page.exists():
        page_target(page)  # said before the training
    checkpoint = workflow.checkpoint_of(checkpoint_file(out), plan, resume=resume)
    report.step(f"Read the images in {folder}")
    how = {"group": plan.group, "case_sensitive": case_sensitive}
    data = workflow.read_dataset(folder, seed=plan.seed, **how)
    good_classes(good, data.classes)
    report.frame(data.counts().reset_index(), max_rows=_SHOWN_ROWS)
    what = f"the head of {plan.arch}" if plan.head_only else plan.arch
    report.step(f"Train {what}{_origin(plan)} at {plan.size} x {plan.size} pixels")
    learn = workflow.build_learner(data, plan)
    if said := workflow.input_said(learn, plan):
        report.say(said)
    if plan.class_weights:
        report.say("train_loss is weighted by class; valid_loss and all measures are not")
    if learn.weights_check is not None:
        report.frame(learn.weights_check.frame)
    if checkpoint.progress:
        report.say(f"going on from {checkpoint.file}")
    if said := workflow.precision_said(learn, checkpoint):
        report.say(said)
    with workflow.watch(learn, plan, report.say):
        workflow.train(learn, plan, cbs=checkpoint)
    # before the evaluation: what is measured is what is exported
    if continual:
        report.step("Make it a continual learner: one pass over the images, no training")
        report.consequences(learn.init_continual(data, group=plan.group))
    name, images = workflow.held_out(data)
    report.step(f"Evaluate on the {name} images")
    note_good(learn, good)
    interp = workflow.interpret(learn, images)
    # of the outputs it has: no second pass
    evaluation, title = interp.learn.evaluate(interp), number_of(len(images), f"{name} image")
    report.evaluation(evaluation, title)
    report.step(f"Draw pictures into {beside}")
    pictures = workflow.save_pictures(interp, beside)
    # names of files may be no text: their bytes are written as they are
    data.frame.to_csv(beside / "split.csv", index=False, errors="surrogateescape")
    learn.history.to_csv(beside / "history.csv", index=False)
    report.step(f"Export to {out}")
    learn.export(out)
    checkpoint.file.unlink(missing_ok=True)  # the training is complete, its result is safe
    evaluation.save_html(page, title=f"{out.name} on {title} of {folder.name}")
    _say_what_is_there(report, out, [page, *pictures, beside / "split.csv", beside / "history.csv"])
    report.verdict(evaluation, title)
    report.command("Next", ["predict", out, "IMAGES"], ["evaluate", out, "FOLDER"])


def _origin(plan: TrainingPlan) -> str:
    """Where the network's first weights come from, in words."""
    if plan.pretrained is False:
        return " from random weights"
    return " from its published weights" if plan.pretrained is True else f" from {plan.pretrained}"


def _say_what_is_there(report: Report, out: Path, files: Sequence[Path]) -> None:
    what = {
        "report.html": "how good it is and where it errs; open it in a browser",
        "confusion_matrix.png": "how often each class was taken for which",
        "top_losses.png": "the worst mistakes and where the network looked",
        "training_curve.png": "loss, error and accuracy per epoch",
        "split.csv": "which image was used for what",
        "history.csv": "the numbers of every epoch",
    }
    rows = [(path, what[path.name]) for path in files]
    report.say()
    page, *others = rows
    report.files("Written", [page, (out, "the exported model; open its README.md"), *others])


def training_folder(out: Path) -> Path:
    """Where everything about the training of the model `out` is kept.

    >>> training_folder(Path("models/parts")).as_posix()
    'models/parts-training'
    """
    return out.with_name(f"{out.name}-training")


def checkpoint_file(out: Path) -> Path:
    """The checkpoint of the training of the model `out`."""
    return training_folder(out) / "checkpoint.ckpt"


def _quiet_plots() -> None:
    """Draw into files only, whatever the display."""
    import matplotlib as mpl

    mpl.use("Agg")

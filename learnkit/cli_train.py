"""The commands that train a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from learnkit.cli.arguments import FolderArgument, Interrupted, check_start, named_value, numbers
from learnkit.errors import UsageError


def demo(
    out: Annotated[Path, typer.Option(help="Folder to work in: new, empty or of a demo.")] = Path(
        "digits-demo"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 5,
) -> None:
    """Train, interpret, export and predict on 1,797 real handwritten digits."""
    from dataclasses import replace

    _quiet_plots()
    from learnkit.cli.demo import PLAN, run_demo

    run_demo(out, plan=replace(PLAN, epochs=epochs))


def train(
    folder: FolderArgument,
    arch: Annotated[str, typer.Option(help="A timm or torchvision name.")] = "resnet18",
    size: Annotated[int, typer.Option(min=1, help="Height and width in pixels.")] = 224,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs over the whole network.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the exported model.")] = Path("model"),
    pretrained: Annotated[bool, typer.Option(help="Start from published weights.")] = True,
    weights: Annotated[Path | None, typer.Option(help="Start from this weights file.")] = None,
    head_only: Annotated[
        bool, typer.Option("--head-only", help="Leave the pretrained body as it is: fast.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    bs: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; 0.002 pretrained, else 0.01.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 42,
    augment: Annotated[bool, typer.Option(help="Flip, turn, zoom training images.")] = False,
    continual: Annotated[
        bool, typer.Option("--continual", help="End ready to learn more classes by `extend`.")
    ] = False,
    arch_args: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the architecture; repeat.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Of pixels in 0..1, if not the weights'.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="See --mean.")] = None,
) -> None:
    """Train a classifier on a folder of images, judge it, and export it.

    FOLDER has one folder of images per class, or train/, valid/ and test/ with those in them; else
    70/15/15 of each class are taken. Beside OUT, the folder OUT-training holds the checkpoint that
    --resume goes on from, the split, and the pictures.
    """
    _quiet_plots()
    from learnkit.cli.train import checkpoint_file, train_folder
    from learnkit.cli.workflow import TrainingPlan

    check_start(pretrained, weights, lr, head_only)
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std belong together; give both or neither")
    plan = TrainingPlan(
        arch=arch,
        pretrained=str(weights) if weights else pretrained,
        size=size,
        epochs=epochs,
        head_only=head_only,
        bs=bs,
        lr=lr,
        seed=seed,
        augment=augment,
        arch_kwargs=dict(map(named_value, arch_args or [])),
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
    )
    try:
        train_folder(folder, out, plan, resume=resume, continual=continual)
    except KeyboardInterrupt:
        nothing = "before the first epoch was complete; nothing is saved, train again"
        raise Interrupted(checkpoint_file(out), nothing) from None


def _quiet_plots() -> None:
    """Draw into files only, whatever the display."""
    import matplotlib as mpl

    mpl.use("Agg")

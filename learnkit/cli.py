"""The command `learnkit`: demo, train, extend, evaluate, predict, serve, optimize, devices.

Exit codes: 0 done, 1 done but some images could not be read, 2 a mistake of the user in one
sentence, 130 interrupted. Whatever is slow to import is imported inside the commands.
"""

from __future__ import annotations

import functools
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from learnkit import cli_deploy
from learnkit.arguments import DEBUG, check_start, named_value, numbers, tidy_arguments
from learnkit.console import fail
from learnkit.errors import LearnkitError, UsageError, WeightsUnavailableError

app = typer.Typer(
    name="learnkit",
    help="Image classifiers from the command line: train, extend, evaluate, predict, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # paragraphs of the docstrings are wrapped anew
    context_settings={"help_option_names": ["-h", "--help"]},
)
FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Images in one folder per class.")
]
ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder of an exported model.")
]
PathsArgument = Annotated[
    list[Path], typer.Argument(metavar="PATHS", help="Image files, and folders of them.")
]
_state: dict[str, Any] = {"debug": False, "argv": []}


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")] = False,
) -> None:
    _state["debug"] = debug


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    _state["argv"] = sys.argv[1:] if argv is None else list(argv)
    with warnings.catch_warnings():
        if DEBUG not in _state["argv"]:
            _soften_warnings()
        app(args=tidy_arguments(_state["argv"]), prog_name="learnkit")


def _soften_warnings() -> None:
    """Say warnings meant for the user in a line, keep those for programmers to --debug."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("default", UserWarning)
    warnings.showwarning = lambda message, *_: fail(f"note: {_one_line(message)}")


def _command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the errors a user can mend into one sentence and an exit code."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            fail("interrupted")
            raise typer.Exit(130) from None
        except (LearnkitError, OSError, ModuleNotFoundError) as error:
            if _state["debug"]:
                raise
            fail(_sentence(error))
            raise typer.Exit(2) from None

    return app.command()(run)


def _sentence(error: Exception) -> str:
    """What an error says, in one line."""
    if not isinstance(error, LearnkitError) and isinstance(error, ModuleNotFoundError):
        return (
            f"this command needs {error.name}, which is not installed: `pip install learnkit` "
            "brings it, where only what serving needs was installed"
        )
    if not isinstance(error, LearnkitError) and getattr(error, "filename", None):
        return f"{error.filename}: {error.strerror}"
    hint = " Here: --weights FILE, or --no-pretrained."
    return _one_line(error) + hint * isinstance(error, WeightsUnavailableError)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


@_command
def demo(
    out: Annotated[Path, typer.Option(help="Folder to work in: new, empty or of a demo.")] = Path(
        "digits-demo"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 5,
) -> None:
    """Train, interpret, export and predict on 1,797 real handwritten digits."""
    from dataclasses import replace

    _quiet_plots()
    from learnkit.demo import PLAN, run_demo

    run_demo(out, plan=replace(PLAN, epochs=epochs))


@_command
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
    from learnkit.commands import checkpoint_file, train_folder
    from learnkit.workflow import TrainingPlan

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
        fail(_how_to_go_on(checkpoint_file(out)))
        raise typer.Exit(130) from None


@_command
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
    from learnkit.commands import extend_model

    if false_alarm_rate is not None and not 0 < false_alarm_rate < 1:
        raise UsageError(f"--false-alarm-rate is {false_alarm_rate}; between 0 and 1, such as 0.05")
    extend_model(model, folder, out, false_alarm_rate=false_alarm_rate)


@_command
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
    from learnkit.commands import evaluate_folder

    evaluate_folder(model, folder, ood)


@_command
def predict(
    model: ModelArgument,
    paths: PathsArgument,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a table there.")] = None,
    to_json: Annotated[
        Path | None,
        typer.Option("--json", metavar="[FILE]", help="Write JSON there, or to the screen."),
    ] = None,
) -> None:
    """Predict images with an exported model.

    Images that cannot be read are listed with the reason, and the exit code is then 1.
    """
    from learnkit.commands import predict_paths

    if n_failed := predict_paths(model, paths, csv, to_json):
        fail(f"{n_failed} images could not be read; their rows say why")
        raise typer.Exit(1)


@_command
def serve(
    model: ModelArgument,
    host: Annotated[str, typer.Option(help="Address; others than this reach beyond here.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    allow_extend: Annotated[
        bool, typer.Option("--allow-extend", help="Learn images of whoever has the token.")
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the token; else $LEARNKIT_TOKEN does."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for what was learned; MODEL itself if left out.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Such as onnxruntime-int8.")
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Images that may wait; beyond that requests get a 503.")
    ] = 256,
    max_images: Annotated[int, typer.Option(min=1, help="Images in one request.")] = 64,
    max_mb: Annotated[int, typer.Option(min=1, help="Megabytes of one request.")] = 32,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of one image.")] = 50_000_000,
    batch: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 16,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of a forward pass; all cores if left out.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode images.")] = 2,
) -> None:
    """Answer over HTTP what an exported model says of images: /predict, /model, /health.

    Send one image as the body, or several as a form: `curl -F image=@a.jpg URL/predict`. With
    --allow-extend, `/extend` learns new images; Ctrl-C or SIGTERM ends the server and saves that.
    """
    from learnkit.serving.access import read_token
    from learnkit.serving.limits import Limits
    from learnkit.serving.running import serve as run_server

    limits = Limits(
        request_bytes=max_mb * 1_000_000,
        images=min(max_images, max_queue),
        pixels=max_pixels,
        queue=max_queue,
        queue_bytes=8 * max_mb * 1_000_000,
        batch=batch,
    )
    run_server(
        model,
        host=host,
        port=port,
        allow_extend=allow_extend,
        token=read_token(token_file) if allow_extend else None,
        save_to=out,
        limits=limits,
        variant=variant,
        threads=threads,
        n_workers=workers,
        say=lambda line: print(line, flush=True),  # noqa: T201  # it is what the command says
    )


_command(cli_deploy.optimize)
_command(cli_deploy.devices)


def _quiet_plots() -> None:
    """Draw into files only, whatever the display."""
    import matplotlib as mpl

    mpl.use("Agg")


def _how_to_go_on(checkpoint: Path) -> str:
    """What to do after Ctrl-C."""
    if not checkpoint.is_file():
        return "interrupted before the first epoch was complete; nothing is saved, train again"
    arguments = [arg for arg in _state["argv"] if arg != "--resume"]
    return f"interrupted; go on with: {shlex.join(['learnkit', *arguments, '--resume'])}"

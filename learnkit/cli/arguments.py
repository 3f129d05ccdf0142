"""Arguments of the command line: their types, and checks of their values."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from learnkit.backends.registry import TRAINING_PRECISIONS
from learnkit.errors import UsageError

DEBUG = "--debug"
FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Images in one folder per class.")
]
ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder of an exported model, or hf-hub:OWNER/NAME.")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder of the changed model; MODEL itself if left out.")
]
PathsArgument = Annotated[
    list[Path], typer.Argument(metavar="PATHS", help="Image files, and folders of them.")
]
BALANCES = {"no": False, "equal": True, "sqrt": "sqrt"}
CaseOption = Annotated[
    bool, typer.Option("--case-sensitive", help="A and a are two classes, as letters are.")
]


GroupOption = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="What it finds in a path belongs together: bursts, parts."),
]
GoodOption = Annotated[
    list[str] | None,
    typer.Option(metavar="CLASS", help="A class that means the part is good; repeat."),
]
RateOption = Annotated[
    float | None,
    typer.Option(metavar="RATE", help="Wanted share of known images flagged as unknown."),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--ood-threshold", metavar="SCORE", help="Flag images as unknown above this OOD score."
    ),
]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C on the way; the same command with `--resume` goes on, if `kept` is there."""

    def __init__(self, kept: Path, nothing: str):
        super().__init__()
        self.kept, self.nothing = kept, nothing


def tidy_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments with `--debug` in front, `-` after a bare `--json`, `equal` after `--balance`.

    >>> tidy_arguments(["predict", "model", "a.png", "--json", "--debug"])
    ['--debug', 'predict', 'model', 'a.png', '--json', '-']
    >>> tidy_arguments(["train", "--balance", "parts", "--balance", "sqrt"])
    ['train', '--balance', 'equal', 'parts', '--balance', 'sqrt']
    >>> tidy_arguments([]), tidy_arguments(["--debug"])
    ([], [])
    """
    rest = [arg for arg in argv if arg != DEBUG]
    tidy = [DEBUG] if DEBUG in argv else []
    for arg, after in zip(rest, [*rest, "--"][1:], strict=True):
        # an option of click's takes a value always or never
        tidy += [arg, "-"] if arg == "--json" and after.startswith("--") else [arg]
        tidy += ["equal"] if arg == "--balance" and after not in BALANCES else []
    return tidy if rest else []  # the help, as without any


def named_value(text: str) -> tuple[str, Any]:
    """Name and value of `name=value`; the value is JSON where it can be, else a string.

    >>> named_value("output_stride=8"), named_value("pad_type=same")
    (('output_stride', 8), ('pad_type', 'same'))
    """
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UsageError(f"--arch-args is {text!r}; write NAME=VALUE, such as output_stride=8")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers of `0.5,0.5,0.5`; one number counts for every channel.

    >>> numbers("--mean", "0.5")
    (0.5, 0.5, 0.5)
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} is {text!r}; write numbers such as 0.5,0.5,0.5") from None
    return values * 3 if len(values) == 1 else values


def check_start(
    pretrained: bool,
    weights: Path | None,
    lr: float | None,
    head_only: bool,
    precision: str,
    balance: str = "no",
) -> None:
    """Raise UsageError if what is to be trained cannot start from what is asked for."""
    if weights is not None and not pretrained:
        raise UsageError("--weights and --no-pretrained exclude each other; leave one out")
    if head_only and not pretrained:
        raise UsageError("--head-only needs a pretrained body; leave --no-pretrained out")
    # so written that NaN is refused
    if lr is not None and not 0 < lr < math.inf:
        raise UsageError(f"--lr is {lr}; it must be above 0 and finite, such as 0.001")
    if balance not in BALANCES:
        raise UsageError(f"--balance is {balance!r}; it must be one of {', '.join(BALANCES)}")
    if precision not in TRAINING_PRECISIONS:
        raise UsageError(
            f"--precision is {precision!r}; it must be one of {', '.join(TRAINING_PRECISIONS)}"
        )

"""The commands that make an exported model faster, and say what this machine can do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from learnkit.console import Report
from learnkit.errors import ConversionRefusedError

ImagesOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Images as they come in use, 10 to 20 of each class."),
]
TestOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Images to judge by, 500 or more, in class folders."),
]
OodOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Images of none of the classes: still noticed?"),
]


def optimize(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of an exported model.")],
    out: Annotated[Path, typer.Option(help="Folder of the faster model; may be MODEL itself.")],
    precision: Annotated[str, typer.Option(help="float32, float16, bfloat16 or int8.")] = "float32",
    samples: ImagesOption = None,
    test: TestOption = None,
    ood: OodOption = None,
    backend: Annotated[
        str, typer.Option(help="onnxruntime, openvino or torch; auto takes the fastest.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of a prediction; all cores if left out.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Take it whatever it fails.")] = False,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Take the best other precision if it fails a gate.")
    ] = False,
) -> None:
    """Make an exported model faster, and prove what that costs.

    int8 needs --samples. The faster model is held against MODEL on the images of --test, or on a
    third of the samples, and is refused if labels change, accuracy drops, or it is no faster. OUT
    holds MODEL's float32 weights, too, and opens as the faster model; it learns on like MODEL.
    """
    from learnkit.deploy.atomic import check_target
    from learnkit.deploy.loading import load_learner

    report = Report()
    check_target(out)
    predictor = load_learner(model, variant="float32")
    try:
        faster, found = predictor.optimize(
            precision,
            samples,
            backend=backend,
            test=test,
            ood=ood,
            threads=threads,
            force=force,
            fallback=fallback,
            progress=sys.stderr.isatty(),
        )
    except ConversionRefusedError as error:
        report.console.print(str(error.report), markup=False)
        raise
    report.console.print(str(found), markup=False)
    faster.save(out)
    report.files("Written", [(out, f"opens as {found.variant}; learnkit.load_learner reads it")])
    report.command("Next", f"learnkit predict {out} IMAGES", f"learnkit evaluate {out} FOLDER")


def devices() -> None:
    """List what this machine can run: backends, precisions, processor, parameters, defaults."""
    from learnkit.deploy.backends.devices import devices as found

    Report().console.print(repr(found()), markup=False)

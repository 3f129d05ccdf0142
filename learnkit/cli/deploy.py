"""The commands for deployment: serve, optimize, convert, devices."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from learnkit.cli.arguments import ModelArgument
from learnkit.cli.console import Report, printable
from learnkit.errors import ConversionRefusedError, UsageError
from learnkit.report.text import print_document

ImagesOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Images as they come in use, 10 to 20 of each class."),
]
TestOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Images to measure by, 500 or more, in class folders."),
]
OodOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Images of none of the classes: still noticed?"),
]


def serve(
    model: ModelArgument,
    host: Annotated[str, typer.Option(help="Address; any other is reachable from outside.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    allow_extend: Annotated[
        bool, typer.Option("--allow-extend", help="Learn images from whoever has the token.")
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of the token to teach and reload; else $LEARNKIT_TOKEN."
        ),
    ] = None,
    predict_token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Predict for this token only; else for $LEARNKIT_PREDICT_TOKEN"
        ),
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
    device: Annotated[
        str, typer.Option(metavar="NAME", help="cpu, or another of `learnkit devices`.")
    ] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a forward pass; all cores if left out.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes at one address, where nobody teaches.")
    ] = 1,
    decoders: Annotated[int, typer.Option(min=1, help="Threads that decode images.")] = 2,
    keep_unknown: Annotated[
        Path | None,
        typer.Option(metavar="INBOX", help="Keep unknown images here, for `learnkit label`."),
    ] = None,
    keep_at_most: Annotated[
        int, typer.Option(min=1, help="Images in INBOX, beyond which none come in.")
    ] = 5000,
) -> None:
    """Serve predictions of an exported model over HTTP; a browser at / is told all that it does.

    Send one image as the body, several as a form, or base64 as JSON: `curl -F image=@a.jpg
    URL/predict`. With --allow-extend, `/extend` learns new images and `/undo` takes that back;
    Ctrl-C or SIGTERM ends the server and saves it. SIGHUP or `/reload` opens MODEL again, the
    former one answering until the new one is ready. Each request is a line of output. Where the
    model detects unknown images, /health and /metrics tell of drift; what was seen is kept beside
    the model, in NAME.drift.json.
    """
    from learnkit.serving.auth import PREDICT_TOKEN_VARIABLE, read_token
    from learnkit.serving.limits import Limits
    from learnkit.serving.server import serve as run_server

    limits = Limits(
        request_bytes=max_mb * 1_000_000,
        # `Limits` wants a request to fit into the queue; a small --max-queue alone is no mistake
        images=min(max_images, max_queue),
        pixels=max_pixels,
        queue=max_queue,
        # the proportion that `Limits` has by default
        queue_bytes=8 * max_mb * 1_000_000,
        batch=batch,
    )
    run_server(
        model,
        host=host,
        port=port,
        allow_extend=allow_extend,
        token=read_token(token_file),
        predict_token=read_token(predict_token_file, variable=PREDICT_TOKEN_VARIABLE),
        save_to=out,
        limits=limits,
        variant=variant,
        device=device,
        threads=threads,
        n_workers=decoders,
        processes=workers,
        keep_unknown=keep_unknown,
        keep_at_most=keep_at_most,
        say=lambda line: print(printable(line), flush=True),  # noqa: T201  # it is what the command says
    )


def optimize(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Folder of the faster model; may be MODEL itself.")],
    precision: Annotated[str, typer.Option(help="float32, float16, bfloat16 or int8.")] = "float32",
    samples: ImagesOption = None,
    test: TestOption = None,
    ood: OodOption = None,
    backend: Annotated[
        str, typer.Option(help="onnxruntime, openvino or torch; auto takes the fastest.")
    ] = "auto",
    device: Annotated[
        str, typer.Option(metavar="NAME", help="cpu, or another of `learnkit devices`.")
    ] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a prediction; all cores if left out.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Take it whatever gate it fails.")] = False,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Take the best other precision if it fails a gate.")
    ] = False,
) -> None:
    """Make an exported model faster, and prove what that costs.

    int8 needs --samples. The faster model is held against MODEL on the images of --test, or on a
    third of the samples, and is refused if labels change, accuracy drops, or it is no faster. OUT
    holds MODEL's float32 weights, too, and opens as the faster model; it learns on like MODEL.
    """
    from learnkit.deploy.predictor import load_learner
    from learnkit.storage.write_folder import check_target

    for option, folder in (("--samples", samples), ("--test", test), ("--ood", ood)):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{option} is {str(folder)!r}, which is no folder; check the spelling")
    report = Report()
    check_target(out)
    # what opens by default may be an optimised variant
    predictor = load_learner(model, variant="float32")
    try:
        faster, found = predictor.optimize(
            precision,
            samples,
            backend=backend,
            test=test,
            ood=ood,
            device=device,
            threads=threads,
            force=force,
            fallback=fallback,
        )
    except ConversionRefusedError as error:
        print_document(error.report.document(), report.console)
        raise
    print_document(found.document(), report.console)
    faster.save(out)
    report.files("Written", [(out, f"opens as {found.variant}; learnkit.load_learner reads it")])
    report.command("Next", ["predict", out, "IMAGES"], ["evaluate", out, "FOLDER"])


def convert(
    export: Annotated[Path, typer.Argument(metavar="EXPORT.PKL", help="What fastai exported.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the model.")],
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Run the code in the file: I trust its author.")
    ] = False,
) -> None:
    """Turn the export.pkl of fastai's vision_learner into a model that holds no code.

    The network is built anew by the name of its architecture, takes the weights, and must give the
    same logits as fastai's; images are read as fastai's validation reads them. A pickle runs
    whatever its author put in as soon as it is read, hence --allow-pickle.
    """
    if not export.is_file():
        raise UsageError(
            f"EXPORT.PKL is {str(export)!r}, which is no file; give what fastai's learn.export "
            "wrote"
        )
    if not allow_pickle:
        raise UsageError(
            f"{export} may be a pickle, which runs whatever code its author put in as soon as it "
            "is read; if you trust who wrote it, add --allow-pickle"
        )
    from learnkit.deploy.predictor import load_learner
    from learnkit.learner.learner import ImageLearner
    from learnkit.storage.write_folder import check_target

    check_target(out)
    with warnings.catch_warnings():  # fastai's, of pickles, which were allowed
        warnings.simplefilter("ignore", UserWarning)
        learn = ImageLearner.from_learner(load_learner(export, allow_pickle=True))
    with learn.no_bar():
        learn.export(out)
    report = Report()
    report.files("Written", [(out, "gives the logits of fastai's; it holds no code")])
    report.command("Next", ["predict", out, "IMAGES"], ["evaluate", out, "FOLDER"])


def onnx(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT.ONNX", help="The file to write.")],
    about: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write its metadata there, too, for what reads none."),
    ] = None,
    variant: Annotated[
        str, typer.Option(metavar="NAME", help="Such as onnxruntime-float16.")
    ] = "float32",
) -> None:
    """Write a model as one plain ONNX file, for C++, C# and browsers: no Python needed to run it.

    Pixels go in, resized to the size the model takes; probabilities, features and the OOD score
    come out, as `learnkit predict` gives them. Classes, thresholds and how images are to be
    resized stand in the metadata of the file; --about writes them as JSON beside it, since browsers
    cannot read them off.
    """
    from learnkit.deploy.predictor import load_learner
    from learnkit.storage.filesystem import write_file
    from learnkit.storage.formats import to_json
    from learnkit.storage.write_folder import check_outside

    for file in (out, about):
        if file is not None and not file.absolute().parent.is_dir():
            raise UsageError(f"the folder of {str(file)!r} does not exist; create it first")
        if file is not None:
            check_outside(file)
    if out.is_dir():
        raise UsageError(f"OUT.ONNX is the folder {str(out)!r}; give the name of a file in it")
    predictor = load_learner(model, variant=variant)
    found = predictor.to_onnx(out)
    height, width = predictor.preprocessing.size
    channels = predictor.preprocessing.channels
    report = Report()
    written = [(out, f"image uint8 (N, {height}, {width}, {channels}) in, probabilities out")]
    if about is not None:
        write_file(about, lambda file: file.write(to_json(found)))
        written.append((about, "classes, thresholds, how images are resized"))
    report.files("Written", written)
    if "ood_threshold" in found:
        report.say(f"ood_score above {found['ood_threshold']:.4g}: of no known class")


def devices() -> None:
    """List what this machine can run: backends, precisions, processor, parameters, defaults."""
    from learnkit.backends.devices import devices as found

    print_document(found().document(), Report().console)

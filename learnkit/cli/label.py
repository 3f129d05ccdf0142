"""The commands for people who name images: suggest, label."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from learnkit.cli.arguments import ModelArgument, PathsArgument
from learnkit.cli.console import Report, fail, printable
from learnkit.errors import number_of

_SHOWN_ROWS = 20


def suggest(
    model: ModelArgument,
    paths: PathsArgument,
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 20,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a table there.")] = None,
) -> None:
    """Say which images to label next: those whose labels teach the model most, and why.

    They are in doubt, unlike those it knows, and not twice the same. Put them into one folder per
    class and `extend` the model. Images that cannot be read are named, and the exit code is then 1.
    """
    from learnkit.cli.use import check_targets, write_csv
    from learnkit.cli.workflow import images_at
    from learnkit.serving.server import open_model

    check_targets(csv, None, None, resume=False)
    files, report = images_at(paths), Report()
    found = open_model(model).suggest(files, min(n, len(files)))
    rows = [[str(one.item), one.reason] for one in found]
    report.rows(["path", "reason"], rows, _SHOWN_ROWS)
    report.say(str(found))
    report.some([*found.failures.values()], _SHOWN_ROWS)
    if csv is not None:
        write_csv(found.table(), csv)
        report.files("Written", [(csv, "the table, the most valuable image first")])
    report.command("Next", ["extend", model, "FOLDER", "--out", model])
    if found.failures:
        fail(f"{number_of(len(found.failures), 'image')} could not be read")
        raise typer.Exit(1)


def label(
    model: ModelArgument,
    inbox: Annotated[Path, typer.Argument(metavar="INBOX", help="Folder that images come into.")],
    labelled: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where named ones go; `labelled` beside INBOX."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for what was learned; MODEL itself if left out.")
    ] = None,
    show: Annotated[str, typer.Option(help="unknown, unsure or all.")] = "unknown",
    good: Annotated[
        str | None, typer.Option(metavar="CLASS", help="The class of sound parts, set apart.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address; any other needs --token-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8080,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of the token that opens the page.")
    ] = None,
    behind_proxy: Annotated[
        str | None, typer.Option(metavar="URL", help="The page's address at a proxy with TLS.")
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser.")] = False,
    lock_classes: Annotated[
        bool, typer.Option("--lock-classes", help="No new classes can be made.")
    ] = False,
    no_names: Annotated[
        bool, typer.Option("--no-names", help="Keep no names of people in the journal.")
    ] = False,
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Such as onnxruntime-int8.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a forward pass; all cores if left out.")
    ] = None,
) -> None:
    """Open the page where a person names what the model does not know; it learns at once.

    Each image of INBOX that MODEL flags as unknown is shown; a key names it, the model learns it in
    the same second and judges the rest anew. Named images go to a folder per class, which `train`
    and `evaluate` read. Everything can be taken back, and a crash loses no label: the journal is in
    INBOX/.learnkit. Ctrl-C or SIGTERM ends it. Others at the line need --host and --token-file.
    """
    from learnkit.serving.auth import read_token
    from learnkit.serving.labelling.label_server import serve_labelling

    # without one webbrowser may start a text browser in this terminal, and wait for its end
    has_desktop = sys.platform in ("darwin", "win32") or any(
        name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    serve_labelling(
        model,
        inbox,
        labelled=labelled,
        out=out,
        show=show,
        good=good,
        host=host,
        port=port,
        # of the file alone: the variable is for `serve`
        token=read_token(token_file, environ={}),
        behind_proxy=behind_proxy,
        lock_classes=lock_classes,
        names=not no_names,
        variant=variant,
        threads=threads,
        say=lambda line: print(printable(line), flush=True),  # noqa: T201  # it is what the command says
        ready=lambda link: webbrowser.open(link) if not no_open and has_desktop else None,
    )

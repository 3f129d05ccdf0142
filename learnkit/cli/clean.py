"""The commands `check` and `clean`: what is wrong with a folder of images, and putting it right.

Whatever is slow to import is imported inside the functions.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from learnkit.cli.arguments import CaseOption, FolderArgument, named_value
from learnkit.cli.console import Report, fail
from learnkit.cli.use import check_targets, write_csv
from learnkit.errors import UsageError, number_of

if TYPE_CHECKING:
    from learnkit.deploy.clean import FolderReport

_SHOWN_ROWS, _SHOWN_OUTLIERS = 20, 5
CsvOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a table there.")]
HtmlOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a page with the pictures there.")
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="dark=55, bright=200, blank=1, blurred=0.12, shape=2.5, aspect=20 or side=8.",
    ),
]


def check(
    folder: FolderArgument,
    csv: CsvOption = None,
    html: HtmlOption = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Look at headers only: neither damage nor near copies.")
    ] = False,
    limit: LimitOption = None,
    case_sensitive: CaseOption = False,
) -> None:
    """Check the images of a folder before they are learned: damage, copies, leaks, small classes.

    Of each finding the first images are shown; --csv writes all, --html their pictures, copies side
    by side with the difference. The exit code is 1 if training would fail or its numbers would lie.
    """
    from learnkit.data.dataset import ImageDataset
    from learnkit.data.display import findings_document
    from learnkit.report.html import as_page

    check_targets(csv, None, None, resume=False)
    _check_html(html)
    report, data = Report(), ImageDataset.from_folder(folder, case_sensitive=case_sensitive)
    found = data.check(fast, limits=_limits(limit))
    report.frame(data.counts().rename_axis("class").reset_index())
    if csv is not None:
        write_csv(found, csv)
    report.findings(found)
    if html is not None:
        about = {"": data.document(), "Findings": findings_document(found, data.root)}
        page = as_page(f"{data.root.name}: what a check found", about)
        html.write_text(page, encoding="utf-8")
        report.files("Written", [(html, "the findings with their pictures")])
    if (found["severity"] == "error").any():
        raise typer.Exit(1)


def clean(
    folder: FolderArgument,
    model: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Exported model whose features tell images apart."),
    ] = None,
    csv: CsvOption = None,
    html: HtmlOption = None,
    apply: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table of corrections to carry out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER2", help="New folder that is corrected.")
    ] = None,
    limit: LimitOption = None,
    max_mb: Annotated[
        float, typer.Option(min=0, max=200, help="Megabytes that the page may have.")
    ] = 25,
    force: Annotated[
        bool, typer.Option("--force", help="Replace FILE even if it is no page of learnkit's.")
    ] = False,
    case_sensitive: CaseOption = False,
) -> None:
    """Find labels that are probably wrong, and all that `check` finds; or apply corrections.

    Each image is compared with the class statistics of all others: nothing is trained. --csv writes
    all images, the most suspicious first; --html a page to mark them on. Write relabel or drop into
    the column action, and the new class into new; then --apply FILE --out FOLDER2 writes a new
    folder and puts what is dropped into _removed/ of it. Nothing is ever deleted.
    """
    if (model is None) == (apply is None):
        raise UsageError("give --model MODEL to look through the folder, or --apply FILE")
    if apply is not None:
        _apply(folder, apply, out)
        return
    from learnkit.data.dataset import ImageDataset
    from learnkit.deploy.clean import look_through
    from learnkit.deploy.predictor import load_learner
    from learnkit.interpret.page.page import page_target

    if out is not None:
        raise UsageError("--out is where --apply writes; leave it out, or give --apply FILE")
    check_targets(csv, None, None, resume=False)
    _check_html(html)
    if html is not None:
        page_target(html, force=force)
    data = ImageDataset.from_folder(folder, case_sensitive=case_sensitive)
    found = look_through(load_learner(model), data, limits=_limits(limit))
    name = _say(found, csv)
    if html is not None:
        command = shlex.join(["learnkit", "clean", folder.name, "--model", model.name])
        found.save_html(html, force=force, max_mb=max_mb, command=command)
        Report().files("Page", [(html, "to look at them and to mark them")])
    Report().command("Next", ["clean", folder, "--apply", name, "--out", f"{folder.name}-clean"])
    if found.unreadable:
        fail(f"{number_of(len(found.unreadable), 'image')} could not be read; the table says why")
        raise typer.Exit(1)


def _say(found: FolderReport, csv: Path | None) -> Path:
    """Write what was found to the screen, and to a table; where corrections are to stand."""
    report, errors = Report(), found.errors
    report.findings(found.findings)
    suspects = found.table[found.table["why"].str.startswith("looks like ")]
    columns = ["path", "old", "new", "p_label", "p_wrong", "false_discovery"]
    report.say()
    report.say(str(errors))
    if len(suspects):
        report.rows(columns, suspects[columns].to_numpy().tolist(), _SHOWN_ROWS, columns[3:])
        report.say(
            "p_wrong: that the label is wrong; false_discovery: the share of right labels to "
            "expect in the list down to this row"
        )
    for row in errors.outliers.head(_SHOWN_OUTLIERS).itertuples():
        report.say(f"{found.images.names[row.place]}: unlike all others ({row.ood_score:.1f})")
    if csv is not None:
        write_csv(found.quoted_table(), csv)
        what = f"{number_of(len(found.table), 'image')}, to be marked in the column action"
        report.files("Written", [(csv, what)])
    return csv or Path("corrections.csv")


def _apply(folder: Path, table: Path, out: Path | None) -> None:
    """Carry out corrections; the exit code is 1 if a row was refused."""
    from learnkit.deploy.corrections import apply_corrections, read_corrections

    if out is None:
        raise UsageError("--apply needs --out FOLDER2; the folder itself is never changed")
    report = Report()
    done = apply_corrections(folder, read_corrections(table), out)
    report.say(str(done))
    for where, why in done.refused.items():
        report.say(f"refused: {where}: {why}")
    report.files("Written", [(done.out, "the corrected folder")])
    if done.refused:
        fail(f"rows refused: {len(done.refused)}; their files are as they were")
        raise typer.Exit(1)


def _check_html(html: Path | None) -> None:
    from learnkit.storage.write_folder import check_outside

    if html is None:
        return
    if html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html is {str(html)!r}; name a file that ends in .html")
    if not html.parent.is_dir():
        raise UsageError(f"--html is {str(html)!r}, in a non-existent directory; make it first")
    check_outside(html)


def _limits(texts: list[str] | None) -> dict[str, Any]:
    """The limits of `--limit`."""
    return dict(named_value(text) for text in texts or ())

"""The command `learnkit report`: an exported model, its variants, and what each cost.

Only descriptions and counts are read, and neither torch nor pandas is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from learnkit.bundle.card import measures_table
from learnkit.bundle.overview import Listed, is_listed_from, listing
from learnkit.bundle.schema import CONFIG, check_schema, read_section
from learnkit.bundle.variant import FLOAT32
from learnkit.cli.console import FittedTable, Report
from learnkit.data.labels import ids_of_classes
from learnkit.deploy.hub_bundle import located
from learnkit.errors import BundleCorruptError, UsageError, number_of
from learnkit.inference.monitor import drift_file, read_drift_report
from learnkit.report.document import Document, Section, Table, pairs, value_text
from learnkit.report.html import as_page
from learnkit.report.text import print_document
from learnkit.storage.read_folder import MANIFEST, read_folder
from learnkit.storage.write_folder import check_outside

_SHOWN_CLASSES = 40


@dataclass(frozen=True)
class Overview:
    """What a bundle says of itself.

    Attributes:
        title: the name on its card, or its architecture.
        facts: what it is, in pairs.
        card: what its card says, how good it was above all.
        variants: what it can be run as; float32 first.
        drift: what its monitor saw where it was served, if that is beside the bundle.
    """

    title: str
    facts: Mapping[str, str]
    card: Mapping[str, Any]
    variants: Sequence[Listed]
    drift: Document | None = None

    @property
    def opened(self) -> Listed:
        """What opens by default."""
        return next((one for one in self.variants if one.opens), self.variants[0])

    def tables(self) -> dict[str, Table]:
        """Its facts, its measures, its classes and its variants, by title."""
        found = {
            self.title: pairs(self.facts),
            f"Measures of {FLOAT32}": measures_table(self.card),
            f"Classes of {self.opened.name}": _class_table(self.opened),
            "What it can be run as": _variants_table(self.variants),
        }
        return {title: table for title, table in found.items() if table.content}

    def changes(self) -> dict[str, Document]:
        """The last changes of what opens by default, below their heading, if there were any."""
        log = self.opened.history.log
        return {f"Last changes of {self.opened.name}": log.document()} if log else {}

    def costs(self) -> dict[str, Document]:
        """What the drift monitor saw, and the conversion reports, each below its heading."""
        reports = {one.name: one.report for one in self.variants if one.report is not None}
        drift = {} if self.drift is None else {"Drift of the images it was served": self.drift}
        return drift | {f"Optimised: {name}": one.document() for name, one in reports.items()}


def read_overview(path: Path) -> Overview:
    """What the bundle at `path` says of itself; what is read is compared with its hashes first.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    path = Path(located(path))
    # alone at first: it says which files are descriptions, and no weights are read
    manifest = read_folder(path, wanted=()).manifest
    found = read_folder(path, wanted=[*filter(is_listed_from, manifest["files"])])
    check_schema(found.manifest, MANIFEST)
    section = read_section(found.bytes(CONFIG))
    sizes = {name: entry["size"] for name, entry in found.manifest["files"].items()}
    try:
        variants = listing(found.files, sizes)
        overview = _overview(section, variants, found.digest)
    # JSON, but of another shape
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleCorruptError(f"{CONFIG} is no description of a model: {error!r}") from error
    seen = drift_file(path)
    return replace(overview, drift=read_drift_report(seen)) if seen.exists() else overview


def report_model(model: Path, html: Path | None) -> None:
    """Say what the exported `model` is and what its variants cost, and write it to `html`.

    Raises:
        LearnkitError: no such model, or a target that is no HTML file or inside a bundle.
    """
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html is {str(html)!r}; name a file that ends in .html")
    if html is not None:
        check_outside(html)
    found, report = read_overview(model), Report()
    for title, table in found.tables().items():
        _print_table(report, title, table)
    for title, log in found.changes().items():
        report.console.print()
        print_document(Document([Section(title, log.content)]), report.console)
    for cost in found.costs().values():
        report.console.print()
        print_document(cost, report.console)
    if html is not None:
        (_, facts), *tables = found.tables().items()
        about = Document([facts, *(Section(title, [table]) for title, table in tables)])
        page = as_page(found.title, {"": about, **found.changes(), **found.costs()})
        html.write_text(page, encoding="utf-8")
        report.files("Written", [(html, "the same as a page")])


def _print_table(report: Report, title: str, table: Table) -> None:
    rows = [[value_text(cell) for cell in row] for row in table.content]
    sides = zip(table.header, table.alignment, strict=False)
    numeric = frozenset(name for name, side in sides if side == "r")
    names = table.header or [""] * len(rows[0])
    report.table(FittedTable(names, rows, numeric, show_header=bool(table.header)), title)
    if table.more:
        report.say(table.more)


def _overview(section: Mapping[str, Any], variants: Sequence[Listed], digest: str) -> Overview:
    card = section["metadata"].get("card") or {}
    recipe, arch = section["preprocessing"], str(section["model"]["arch"])
    height, width = recipe["size"]
    colour = {1: "grey", 3: "RGB"}.get(recipe["channels"], f"{recipe['channels']}-channel")
    kind = "labels, several an image" if section["multi_label"] else "classes"
    opened = next((one for one in variants if one.opens), variants[0])
    facts = {
        "network": f"{arch}, {colour} images of {height} x {width} pixels",
        "knows": f"{len(opened.classes)} {kind}",
        "has learned": "" if opened.n_images is None else number_of(opened.n_images, "image"),
        "snapshots": ", ".join(opened.history.names),
        "opens as": opened.name,
        "made with": ", ".join(
            f"{name} {version}" for name, version in section["versions"].items()
        ),
        "sha256": digest,
    }
    return Overview(
        str(card.get("name") or f"{arch} classifier"),
        {name: value for name, value in facts.items() if value},
        card,
        variants,
    )


def _class_table(one: Listed) -> Table:
    """Its classes, with their ids if they have any, and the images where they are counted."""
    shown, rest = one.classes[:_SHOWN_CLASSES], len(one.classes) - _SHOWN_CLASSES
    columns = {"class": shown}
    if one.class_ids:
        columns["id"] = ids_of_classes(one.class_ids, len(shown))
    if one.images is not None:
        columns["images learned"] = tuple(one.images.get(name, 0) for name in shown)
    more = f"and {rest} more" if rest > 0 else ""
    return Table([*zip(*columns.values(), strict=True)], tuple(columns), more=more)


def _variants_table(variants: Sequence[Listed]) -> Table:
    rows = [
        (one.name, len(one.classes), one.n_images, f"{one.n_bytes / 1e6:.2f}", one.remark)
        for one in variants
    ]
    return Table(rows, ("variant", "classes", "images", "MB", ""), "lrrrl")

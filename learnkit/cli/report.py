"""What `learnkit report` says of an exported model: what it is, its variants, what each cost.

Only descriptions and counts are read, and neither torch nor pandas is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from learnkit.bundle.schema import CONFIG, check_schema, read_section
from learnkit.bundle.variant import FLOAT32
from learnkit.bundle.variants.overview import Listed, is_listed_from, listing
from learnkit.cli.console import Report
from learnkit.cli.table import FittedTable
from learnkit.errors import BundleCorruptError, UsageError
from learnkit.storage.read_folder import MANIFEST, read_folder

_SHOWN_CLASSES = 40
_NUMBERS = frozenset({"classes", "images", "images learned", "MB"})
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.4 system-ui, sans-serif; max-width: 64em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: .4em 0 1em; }}
td, th {{ text-align: left; padding: .2em 1em .2em .2em; vertical-align: top; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


@dataclass(frozen=True)
class Overview:
    """What a bundle says of itself.

    Attributes:
        title: the name on its card, or its architecture.
        facts: what it is, in pairs.
        measures: how good it was, as far as its card says.
        variants: what it can be run as; float32 first.
    """

    title: str
    facts: Mapping[str, str]
    measures: Mapping[str, str]
    variants: Sequence[Listed]

    @property
    def opened(self) -> Listed:
        """What opens by default."""
        return next((one for one in self.variants if one.opens), self.variants[0])

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """(title, header, rows) of what it is, its measures, its classes and its variants."""
        header, classes = _class_rows(self.opened)
        return [
            (self.title, [], [list(pair) for pair in self.facts.items()]),
            (f"Measures of {FLOAT32}", [], [list(pair) for pair in self.measures.items()]),
            (f"Classes of {self.opened.name}", header, classes),
            (
                "What it can be run as",
                ["variant", "classes", "images", "MB", ""],
                [_row(one) for one in self.variants],
            ),
        ]


def read_overview(path: Path) -> Overview:
    """What the bundle at `path` says of itself; what is read is compared with its hashes first.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    manifest = read_folder(path, wanted=()).manifest
    found = read_folder(path, wanted=[*filter(is_listed_from, manifest["files"])])
    check_schema(found.manifest, MANIFEST)
    section = read_section(found.bytes(CONFIG))
    sizes = {name: entry["size"] for name, entry in found.manifest["files"].items()}
    try:
        variants = listing(found.files, sizes)
        return _overview(section, variants, found.digest)
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleCorruptError(f"{CONFIG} is no description of a model: {error!r}") from error


def report_model(model: Path, html: Path | None) -> None:
    """Say what the exported `model` is and what its variants cost, and write it to `html`.

    Raises:
        LearnkitError: no such model, or a target that is no HTML file.
    """
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html is {str(html)!r}; name a file that ends in .html")
    found, report = read_overview(model), Report()
    for title, header, rows in found.tables():
        if rows:
            names = header or [""] * len(rows[0])
            report.table(FittedTable(names, rows, _NUMBERS, show_header=bool(header)), title)
    for one in found.variants:
        if one.report is not None:
            report.console.print(f"\n{one.report}", markup=False)
    if html is not None:
        html.write_text(as_page(found), encoding="utf-8", errors="backslashreplace")
        report.files("Written", [(html, "the same as a page")])


def as_page(found: Overview) -> str:
    """An HTML page; everything from outside is escaped."""
    parts = [
        f"<h2>{escape(title)}</h2>" * (i > 0) + _html_table(header, rows)
        for i, (title, header, rows) in enumerate(found.tables())
        if rows
    ]
    parts += [
        f"<h2>Optimised: {escape(one.name)}</h2>{one.report._repr_html_()}"
        for one in found.variants
        if one.report is not None
    ]
    return _PAGE.format(title=escape(found.title), body="\n".join(parts))


def _overview(section: Mapping[str, Any], variants: Sequence[Listed], digest: str) -> Overview:
    card = section["metadata"].get("card") or {}
    recipe, arch = section["preprocessing"], str(section["model"]["arch"])
    height, width = recipe["size"]
    colour = "grey" if recipe["channels"] == 1 else "RGB"
    kind = "labels, several an image" if section["multi_label"] else "classes"
    opened = next((one for one in variants if one.opens), variants[0])
    facts = {
        "network": f"{arch}, {colour} images of {height} x {width} pixels",
        "knows": f"{len(opened.classes)} {kind}",
        "has learned": "" if opened.n_images is None else f"{opened.n_images} images",
        "opens as": opened.name,
        "made with": ", ".join(
            f"{name} {version}" for name, version in section["versions"].items()
        ),
        "sha256": digest,
    }
    return Overview(
        str(card.get("name") or f"{arch} classifier"),
        {name: value for name, value in facts.items() if value},
        {str(name): _shown(value) for name, value in (card.get("measures") or {}).items()},
        variants,
    )


def _class_rows(one: Listed) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of its classes, with the number of images where they are counted."""
    shown = one.classes[:_SHOWN_CLASSES]
    rest = [f"and {len(one.classes) - len(shown)} more"] * (len(one.classes) > len(shown))
    if one.images is None:
        return ["class"], [[name] for name in (*shown, *rest)]
    rows = [[name, str(one.images.get(name, 0))] for name in shown]
    return ["class", "images learned"], rows + [[line, ""] for line in rest]


def _row(one: Listed) -> list[str]:
    images = "" if one.n_images is None else str(one.n_images)
    return [one.name, str(len(one.classes)), images, f"{one.n_bytes / 1e6:.2f}", one.remark]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(name)}</th>" for name in header)] if header else []
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"

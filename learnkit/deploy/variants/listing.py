"""What a bundle can be run as: its float32 weights and its variants, in a few numbers each.

This module needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from learnkit.deploy.card import table
from learnkit.deploy.conversion.report import ConversionReport
from learnkit.deploy.formats import parse_arrays, parse_json
from learnkit.deploy.schema import CONFIG, default_variant, read_section
from learnkit.deploy.variants.description import (
    FLOAT32,
    Variant,
    files_of,
    path_of,
    variant_names,
)
from learnkit.deploy.variants.knowing import learned_since

_HEADING = "\n## Variants\n"
_COST = "\n## Optimised: "
_STATES = ("state.safetensors", "ood.safetensors")


@dataclass(frozen=True)
class Listed:
    """One way to run a bundle's model.

    Attributes:
        name: "float32", or of the variant.
        classes: it knows.
        n_images: it has learned; None where nothing counts them.
        n_bytes: of its files.
        opens: whether it is what opens by default.
        has_learned: whether it knows more than the float32 model beside it.
        report: what its conversion cost.
    """

    name: str
    classes: tuple[str, ...]
    n_images: int | None
    n_bytes: int
    opens: bool
    has_learned: bool = False
    report: ConversionReport | None = None

    @property
    def remark(self) -> str:
        """What there is to know beside the numbers."""
        told = ["opens by default"] * self.opens
        return ", ".join(told + ["has learned since it was made"] * self.has_learned)


def listing(files: Mapping[str, bytes]) -> list[Listed]:
    """What a bundle with these files can be run as; the float32 model comes first.

    Raises:
        BundleCorruptError: a file is no sound one.
    """
    section, names = read_section(files[CONFIG]), variant_names(files)
    default, since = default_variant(section) or FLOAT32, learned_since(section)
    own = [*section["layout"], *_STATES]
    state = next((name for name in _STATES if name in files), "")
    found = [
        Listed(
            FLOAT32,
            tuple(section["classes"]),
            _n_images(files, state),
            sum(len(files.get(name, b"")) for name in own),
            default == FLOAT32,
        )
    ]
    for name in names:
        variant = Variant.from_bytes(files[path_of(name, "json")], name)
        found.append(
            Listed(
                name,
                variant.classes,
                _n_images(files, path_of(name, "state.safetensors")),
                sum(len(files[file]) for file in files_of(name, files)),
                default == name,
                name in since,
                _report(files, path_of(name, "report.json")),
            )
        )
    return found


def with_variants_listed(card: str, files: Mapping[str, bytes]) -> str:
    """A model card that ends in a table of the variants and what each conversion cost."""
    text = card.split(_HEADING)[0].split(_COST)[0]
    found = listing(files)
    if len(found) == 1:
        return text
    rows = [
        {
            "variant": one.name,
            "classes": len(one.classes),
            "images learned": one.n_images,
            "MB": f"{one.n_bytes / 1e6:.2f}",
            "": one.remark,
        }
        for one in found
    ]
    text += f"{_HEADING}\n{table(rows)}\n"
    if any(one.has_learned for one in found):
        text += (
            "\nA variant that has learned since it was made knows what float32 and the others do "
            "not; `load_learner(path, variant=NAME)` opens each of them as it is.\n"
        )
    reports = [one for one in found if one.report is not None]
    return text + "".join(f"{_COST}{one.name}\n\n{_fenced(str(one.report))}" for one in reports)


def _n_images(files: Mapping[str, bytes], name: str) -> int | None:
    if name not in files:
        return None
    counts = parse_arrays(files[name], name).get("counts")
    return None if counts is None else int(counts.sum())


def _report(files: Mapping[str, bytes], name: str) -> ConversionReport | None:
    return (
        ConversionReport.from_dict(parse_json(files[name], name), name) if name in files else None
    )


def _fenced(text: str) -> str:
    """Markdown that shows `text` as it is, whatever is in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}\n"

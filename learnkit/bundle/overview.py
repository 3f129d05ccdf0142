"""The overview of a bundle: its float32 weights and its variants, in a few numbers each.

This module needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from learnkit.bundle.audit import HISTORY, NO_HISTORY, HistoryFacts, history_facts
from learnkit.bundle.schema import (
    CONFIG,
    class_ids_in,
    default_variant,
    newer_is_told,
    read_section,
)
from learnkit.bundle.variant import (
    FLOAT32,
    Variant,
    files_of,
    learned_since,
    path_of,
    variant_names,
)
from learnkit.errors import BundleCorruptError
from learnkit.optimize.conversion_report import ConversionReport
from learnkit.optimize.gates import ratio_text
from learnkit.optimize.report_rows import percent
from learnkit.report.document import Code, Document, Paragraph, Section, Span, records
from learnkit.report.markdown import as_markdown
from learnkit.storage.formats import parse_arrays, parse_json
from learnkit.storage.read_folder import VARIANTS

_HEADING = "\n## Variants\n"
_COST = "\n## Optimised: "
_ABOUT = (
    "The same network in other forms, beside the float32 weights. Milliseconds were measured where "
    "each was made (see below), those of float32 in torch; in brackets, times as fast as that."
)
_LEARNED = (
    "A variant that has learned since it was made knows what float32 and the others do not; ",
    Span("load_learner(path, variant=NAME)", "code"),
    " opens each of them.",
)
_PATH = "path/to/this/folder"
_FREE_OF_TORCH = ("onnxruntime", "openvino")
_STATES = ("state.safetensors", "ood.safetensors")


@dataclass(frozen=True)
class Listed:
    """One way to run a bundle's model.

    Attributes:
        name: "float32", or of the variant.
        classes: it knows.
        images: how many it has learned of each class; None where nothing counts them.
        n_bytes: of its files on disk.
        opens: whether it is what opens by default.
        has_learned: whether it knows more than the float32 model beside it.
        report: what its conversion cost.
        history: the log of its changes, and the names of its snapshots.
        class_ids: ids of its first classes, as of a `Model`.
    """

    name: str
    classes: tuple[str, ...]
    images: dict[str, int] | None
    n_bytes: int
    opens: bool
    has_learned: bool = False
    report: ConversionReport | None = None
    history: HistoryFacts = NO_HISTORY
    class_ids: tuple[int, ...] = ()

    @property
    def n_images(self) -> int | None:
        """Images it has learned."""
        return None if self.images is None else sum(self.images.values())

    @property
    def remark(self) -> str:
        """A word on it behind the numbers."""
        told = {"opens by default": self.opens, "has learned since it was made": self.has_learned}
        return ", ".join(text for text, holds in told.items() if holds)


def is_listed_from(name: str) -> bool:
    """Whether `listing` looks into the file of this name; of the others it wants the size.

    >>> [is_listed_from(name) for name in ("config.json", "variants/a-b.json", "variants/a-b.onnx")]
    [True, True, False]
    """
    described = name.startswith(VARIANTS) and name.endswith(".json")
    return name == CONFIG or described or name.endswith((*_STATES, HISTORY))


def listing(files: Mapping[str, bytes], sizes: Mapping[str, int]) -> list[Listed]:
    """What a bundle can be run as; the float32 model comes first.

    Args:
        files: those that `is_listed_from` names.
        sizes: of all files, in bytes.

    Raises:
        BundleCorruptError: a file is no sound one.
    """
    section = read_section(files[CONFIG])
    with newer_is_told(section):
        return _listed(section, files, sizes)


def _listed(
    section: Mapping[str, Any], files: Mapping[str, bytes], sizes: Mapping[str, int]
) -> list[Listed]:
    default, since = default_variant(section) or FLOAT32, learned_since(section)
    # one of them at most: a head in the continual state has no detector beside it
    state = next((name for name in _STATES if name in files), "")
    classes = tuple(section["classes"])
    plain = Listed(
        FLOAT32,
        classes,
        _images(files, state, section.get("continual") or section.get("ood")),
        sum(sizes.get(name, 0) for name in (*section["layout"], *_STATES, HISTORY)),
        default == FLOAT32,
        history=_history(files, HISTORY),
        class_ids=class_ids_in(section, len(classes)),
    )
    return [plain, *(_variant(name, files, sizes, default, since) for name in variant_names(sizes))]


def _variant(
    name: str,
    files: Mapping[str, bytes],
    sizes: Mapping[str, int],
    default: str,
    since: Collection[str],
) -> Listed:
    variant = Variant.from_bytes(files[path_of(name, "json")], name)
    state = path_of(name, "state.safetensors")
    return Listed(
        name,
        variant.classes,
        _images(files, state, variant.continual or variant.ood),
        sum(sizes[file] for file in files_of(name, sizes)),
        default == name,
        name in since,
        _report(files, path_of(name, "report.json")),
        _history(files, path_of(name, HISTORY)),
        variant.class_ids,
    )


def with_variants_listed(card: str, files: Mapping[str, bytes]) -> str:
    """A model card that ends in a table of the variants, how to open them, and what each cost."""
    # what an earlier save appended; before there was a table of variants, their reports alone
    text = card.split(_HEADING)[0].split(_COST)[0]
    found = listing(files, {name: len(data) for name, data in files.items()})
    if len(found) == 1:
        return text
    reports = {one.name: one.report for one in found if one.report is not None}
    reference = [*reports.values()][-1] if reports else None
    learned = _LEARNED if any(one.has_learned for one in found) else ()
    sections = [
        Section(
            "Variants",
            [
                Paragraph(_ABOUT),
                records([_row(one, reference) for one in found]),
                Paragraph(learned),
                Code(_how_to_open(found), "python"),
            ],
        ),
        *(
            Section(f"Last changes of {one.name}", one.history.log.document().content)
            for one in found
            if one.has_learned
        ),
        *(Section(f"Optimised: {name}", one.document().content) for name, one in reports.items()),
    ]
    return f"{text}\n{as_markdown(Document(sections))}\n"


def _row(one: Listed, reference: ConversionReport | None) -> dict[str, Any]:
    """A row of the card's table; `reference` is a report that measured float32, too."""
    row = {
        "variant": one.name,
        "classes": len(one.classes),
        "images learned": one.n_images,
        "MB": f"{one.n_bytes / 1e6:.2f}",
    }
    if reference is not None:
        row |= _base_costs(reference) if one.name == FLOAT32 else _costs(one.report, reference)
    return {**row, "": one.remark}


def _base_costs(reference: ConversionReport) -> dict[str, str | None]:
    times = {f"ms, batch {one.batch}": f"{one.eager_best:.3g}" for one in reference.latency}
    right = percent(reference.quality.accuracy_before)
    return {**times, "labels kept": None, "accuracy": right, "gates": None}


def _costs(report: ConversionReport | None, reference: ConversionReport) -> dict[str, str | None]:
    """The costs of a conversion in the columns of `reference`; None where nothing is known."""
    found = dict.fromkeys(_base_costs(reference))
    if report is None:
        return found
    for one in report.latency:
        # reports may have timed other batch sizes than the one the columns are of
        if (name := f"ms, batch {one.batch}") in found:
            ratio = "disturbed" if report.is_disturbed else ratio_text(one.vs_eager)
            found[name] = f"{one.best:.3g} ({ratio})"
    return found | {
        "labels kept": percent(report.quality.agreement),
        "accuracy": percent(report.quality.accuracy),
        "gates": report.word,
    }


def _how_to_open(found: Sequence[Listed]) -> str:
    """Code that opens each of them."""
    default = next(one.name for one in found if one.opens)
    others = [one.name for one in found if not one.opens]
    bare = [one.name for one in found if one.name.startswith(_FREE_OF_TORCH)]
    lines = [
        "from learnkit import load_learner, load_runtime\n",
        f'model = load_learner("{_PATH}")  # {default}',
        *(f'model = load_learner("{_PATH}", variant="{name}")' for name in others),
        *(f'model = load_runtime("{_PATH}", variant="{name}")  # without torch' for name in bare),
    ]
    return "\n".join(lines)


def _images(
    files: Mapping[str, bytes], name: str, config: Mapping[str, Any] | None
) -> dict[str, int] | None:
    """Images learned by class, as the state in the file `name` counts them."""
    if name not in files or config is None:
        return None
    names, counts = config.get("class_names"), parse_arrays(files[name], name).get("counts")
    if not isinstance(names, list) or counts is None or counts.shape != (len(names),):
        raise BundleCorruptError(f"{name} does not count the images of its classes")
    return {str(one): int(n) for one, n in zip(names, counts, strict=True)}


def _report(files: Mapping[str, bytes], name: str) -> ConversionReport | None:
    if name not in files:
        return None
    return ConversionReport.from_dict(parse_json(files[name], name), name)


def _history(files: Mapping[str, bytes], name: str) -> HistoryFacts:
    return history_facts(files[name], name) if name in files else NO_HISTORY

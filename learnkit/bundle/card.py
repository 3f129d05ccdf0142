"""The model card: README.md of a bundle, in the Hugging Face hub's form.

Everything in it that came from outside (class names, file names, free text) is escaped, so that no
name can add a link, a picture, a table cell or HTML to the page.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from learnkit.continual.change_report import AuditLog
from learnkit.errors import ExportError
from learnkit.evaluation.inputs import LabelThreshold
from learnkit.report.document import (
    Code,
    Document,
    Items,
    Paragraph,
    Section,
    Span,
    Table,
    interval_text,
    records,
)
from learnkit.report.markdown import as_markdown, escape

KEYS = (
    "name",
    "description",
    "license",
    "intended_use",
    "limits",
    "data",
    "training",
    "measures",
    "intervals",
    "per_class",
    "good",
)
_MAX_CLASSES = 1000
_USE = (
    "Sorting images of the kind it was trained on into the classes below. It always answers with "
    "one of them, also for an image that shows none."
)
_USE_OOD = (
    "Sorting images of the kind it was trained on into the classes below, and flagging images that "
    "show none of them."
)
_USE_MULTI = (
    "Marking images of the kind it was trained on with the labels below, none or several per image."
)
_USE_CONTINUAL = (
    "Sorting images of the kind it has learned into the classes below, and flagging images that "
    "show none of them. New classes are learned from new images alone, where it is deployed."
)
_LIMITS = (
    "Measured on images from the same source as the training images: other cameras, lighting or "
    "classes are outside of what the table says. Probabilities are the network's own and may be "
    "overconfident. Not meant for decisions about people."
)
_LIMITS_CONTINUAL = (
    "Thresholds and probabilities were calibrated on images from the same source as the training "
    "images: other cameras or lighting are outside of what the table says, and so is what is "
    "strange in another way than those images let one expect. Not meant for decisions about people."
)
_OPENED_BY_TIMM = {
    "classifier": "The same network, bit for bit, with timm alone:",
    "body": (
        "Its body with timm alone (the head is in {head}; layers of timm's behind the feature map, "
        "which this network does not use, have random weights there):"
    ),
    "own": "timm cannot open this network; learnkit can.",
}


def checked_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """`card` as JSON knows it: numpy's numbers as Python's, NaN and infinities as None.

    Raises:
        ExportError: a key is unknown, or a value has the wrong type.
    """
    if unknown := sorted(set(card) - set(KEYS)):
        raise ExportError(f"`card` has unknown keys {unknown}; a model card knows {list(KEYS)}")
    for key in ("data", "training", "measures", "intervals"):
        if not isinstance(card.get(key, {}), Mapping):
            raise ExportError(f"`card[{key!r}]` is no mapping from names to values")
    return _plain(card)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    # JSON has neither NaN nor infinities; the tables show a dash for None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def model_card(
    card: Mapping[str, Any],
    *,
    architecture: str,
    classes: Sequence[str],
    multi_label: bool,
    threshold: LabelThreshold = 0.5,
    image: str,
    opened_by_timm: str,
    versions: Mapping[str, str],
    continual: Mapping[str, Any] | None = None,
    ood: Mapping[str, Any] | None = None,
    changes: AuditLog | None = None,
    class_ids: Sequence[int] = (),
) -> str:
    """Markdown of the card: use, classes, measures, data, limits, and how to load it.

    Args:
        card: what its writer knows; keys see `KEYS`. `per_class` is a list of one mapping per
            class, `limits` a text or a list of them; everything may be left out.
        architecture: name of the network.
        classes: class names.
        multi_label: an image may have several labels.
        threshold: a label counts above this probability, or these, one per class.
        image: how images are read, in a few words.
        opened_by_timm: kind of layout ("classifier", "body" or "own").
        versions: of the packages it was made with.
        continual: facts about a model in the continual state: its classes, threshold, temperature.
        ood: facts about the out-of-distribution detector beside a trained head.
        class_ids: an id for each class, where they have others than their places.
        changes: the log of a model in the continual state; the last ones are shown.
    """
    name = card.get("name") or f"{architecture} classifier"
    plain_use = _USE_MULTI if multi_label else _USE if ood is None else _USE_OOD
    use = card.get("intended_use") or (plain_use if continual is None else _USE_CONTINUAL)
    limits = card.get("limits") or (_LIMITS if continual is None else _LIMITS_CONTINUAL)
    limits = [limits] if isinstance(limits, str) else list(limits)
    n_left_out = len(classes) - _MAX_CLASSES
    rest = (
        (f"{n_left_out} more are in ", Span("config.json", "code"), ".") if n_left_out > 0 else ()
    )
    limit = (
        f"{threshold:g}"
        if isinstance(threshold, float)
        else ", ".join(f"{label}: {own:g}" for label, own in zip(classes, threshold, strict=True))
    )
    above = f" A label counts above a probability of {limit}."
    listed = Items(classes[:_MAX_CLASSES], start=0)
    if class_ids:
        rows = zip(class_ids, classes[:_MAX_CLASSES], strict=False)
        listed = Table([*rows], ("id", "class"))
    blocks = [
        Paragraph(card.get("description", "")),
        Paragraph(
            f"{architecture}, {image}, {len(classes)} {'labels' if multi_label else 'classes'}."
            + (above if multi_label else "")
        ),
        Section("Intended use", [Paragraph(use)]),
        Section("Limits", [Items(limits)]),
        Section("Classes", [listed, Paragraph(rest)]),
        Section("Good parts", [Items([str(name) for name in card.get("good") or ()])]),
        Section("What it has learned", [_pairs(continual or {})]),
        Section("Last changes", [] if changes is None else changes.document().content),
        Section("How it detects out-of-distribution images", [_pairs(ood or {})]),
        Section("Measures", [measures_table(card)]),
        Section("Measures per class", [records(card.get("per_class", []))]),
        Section("Data", [_pairs(card.get("data", {}))]),
        Section("Training", [_pairs(card.get("training", {}))]),
        Section("Made with", [_pairs(versions)]),
        Section("How to load", _how_to_load(opened_by_timm, continual is not None)),
    ]
    header = f"{_front_matter(card, opened_by_timm)}\n\n# {escape(name)}"
    return f"{header}\n\n{as_markdown(Document(blocks))}\n"


def _front_matter(card: Mapping[str, Any], opened_by_timm: str) -> str:
    """The hub's metadata."""
    tags = ["image-classification", "learnkit"] + ["timm"] * (opened_by_timm != "own")
    library = "timm" if opened_by_timm == "classifier" else "learnkit"
    fields = {"library_name": library, "pipeline_tag": "image-classification", "tags": tags}
    if card.get("license"):
        fields["license"] = str(card["license"])
    # a JSON string is a YAML string, whatever is in it: no license can end the front matter
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def measures_table(card: Mapping[str, Any]) -> Table:
    """The measures of a card, and the 95 % interval of each that has one."""
    bounds = card.get("intervals") or {}
    measures = card.get("measures") or {}
    if not bounds:
        return _pairs(measures)
    rows = []
    for name, value in measures.items():
        low, high = bounds.get(name) or (None, None)
        known = low is not None and high is not None
        rows.append((name, value, interval_text(low, high) if known else ""))
    return Table(rows, ("", "value", "95 % interval"), "lrl")


def _pairs(values: Mapping[str, Any]) -> Table:
    return Table([*values.items()], ("", "value"))


def _how_to_load(opened_by_timm: str, continual: bool) -> list[Code | Paragraph]:
    own = (
        "from learnkit import load_learner\n\n"
        'model = load_learner("path/to/this/folder")\n'
        'label, index, probs = model.predict("image.png")'
    )
    if continual:
        own += '\nmodel.extend("folder with a folder per class")'
    before, _, after = _OPENED_BY_TIMM[opened_by_timm].partition("{head}")
    head = Span("state.safetensors" if continual else "head.safetensors", "code")
    blocks = [Code(own, "python"), Paragraph((before, head, after) if after else before)]
    if opened_by_timm != "own":
        call = 'timm.create_model("local-dir:path/to/this/folder", pretrained=True).eval()'
        blocks.append(Code(f"import timm\n\nbackbone = {call}", "python"))
    return blocks

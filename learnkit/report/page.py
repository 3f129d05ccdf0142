"""The evaluation page: one self-contained HTML file of an evaluation, or of what cleaning found.

All that can be read is HTML; a script adds pictures, filters and marks from the same numbers.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from learnkit.report.charts import HEIGHT, WIDTH, reliability_diagram, score_histogram
from learnkit.report.html import templates
from learnkit.report.matrix import dense_counts, short_names, shown_matrix

# what an evaluation without them leaves out
_EMPTY = {
    "kind": "evaluation",
    "summary": [],
    "confusion": [],
    "rows": [],
    "ood": None,
    "bins": None,
}
_EMPTY |= {"multi_label": False, "label_tables": [], "unreadable": [], "images": [], "measured": []}
_EMPTY |= {
    "command": "",
    "pictures_left_out": 0,
    "rows_left_out": 0,
    "duplicates": [],
    "findings": [],
    "kin": [],
    "n_kin": [0, 0],
    "measures": {},
    "intervals": {},
    "meanings": {},
}
_EMPTY_OOD = {"threshold": None, "auroc": None, "missed": None, "n_strange": 0}
_MAX_SUSPECTS = 200
_CLEANING = "// cleaning.js\n"  # where the script of cleaning goes into that of evaluation
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def page_html(data: Mapping[str, Any]) -> str:
    """The page of `data`, as a whole HTML document that loads nothing.

    Its content security policy allows this very style sheet and script, pictures that are in it,
    and nothing else. The same data give the same bytes.

    Args:
        data: what `learnkit.interpret.page` builds, of plain types; it is in the page as JSON.

    Raises:
        ValueError: it holds NaN or an infinite number, which JSON does not have.
    """
    shown = {**_EMPTY, **data}
    shown["ood"] = shown["ood"] and {**_EMPTY_OOD, **shown["ood"]}
    css, js = (_asset(f"evaluation.{kind}") for kind in ("css", "js"))
    has_findings = shown["kind"] == "cleaning" or shown["findings"]
    js = js.replace(_CLEANING, _asset("cleaning.js") if has_findings else "")
    classes = [one["name"] for one in data["classes"]]
    name = shlex.quote(shown["model"]["name"] or "MODEL")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(css)}; script-src {_source(js)};"
        # of these two default-src says nothing
        " base-uri 'none'; form-action 'none'"
    )
    has_matrix = shown["confusion"] and not shown["multi_label"]
    bins = shown["bins"]
    return (
        templates()
        .get_template("evaluation.html")
        .render(
            data=shown,
            policy=policy,
            css=Markup(css),
            js=Markup(js),
            json=Markup(_json(data)),
            created=_date(data["created"]),
            classes=classes,
            labels=short_names(classes),
            matrix=shown_matrix(dense_counts(shown["confusion"])) if has_matrix else None,
            histogram=_histogram(shown),
            reliability=reliability_diagram(bins, len(classes)) if bins else None,
            n_suspects=min(sum(one.get("w", 0) > 0 for one in shown["images"]), _MAX_SUSPECTS),
            flag_command=f"learnkit predict {name} IMAGES --ood-threshold ",
            own_command=f"learnkit predict {name} IMAGES{_own_option(shown)}",
            width=WIDTH,
            height=HEIGHT,
            address=_address,
            filter_of=_filter,
        )
    )


def _own_option(data: Mapping[str, Any]) -> str:
    """The option that gives the threshold of an evaluation which the saved model has not."""
    options = set(data["command"].split()) & {"--false-alarm-rate", "--ood-threshold"}
    return f" --ood-threshold {data['ood']['threshold']}" if data["ood"] and options else ""


def _asset(name: str) -> str:
    return files("learnkit.report").joinpath("templates", name).read_text(encoding="utf-8")


def _source(text: str) -> Markup:
    """What a content security policy calls an inline style or script."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(f"'sha256-{digest}'")


def _json(data: Mapping[str, Any]) -> str:
    """JSON that ends no script, starts no comment and breaks no line, and is ASCII."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _date(moment: str) -> str:
    """A moment of ISO 8601 for reading, whatever the language of the machine.

    >>> _date("2026-11-25T22:50Z")
    '25 Nov 2026 22:50 UTC'
    """
    day, _, time = moment.rstrip("Z").partition("T")
    year, month, date = day.split("-")
    return f"{int(date)} {_MONTHS[int(month) - 1]} {year} {time[:5]} UTC"


def _histogram(data: Mapping[str, Any]) -> Any:
    known, strange = [], []
    for one in data["images"]:
        if one.get("s") is not None:
            (strange if one.get("o") else known).append(one["s"])
    return score_histogram(known, strange, (data["ood"] or _EMPTY_OOD)["threshold"])


def _address(value: str) -> str:
    """The fragment that shows what `value` names: a filter, or a set by its name alone."""
    return f"#{value}" if "=" in value else f"#set={value}"


def _filter(kind: str, *indices: int) -> str:
    return f"{kind}={'.'.join(map(str, indices))}"

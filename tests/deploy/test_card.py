import json
import re

import numpy as np
import pytest

from learnkit.deploy.card import checked_card, escape, model_card
from learnkit.errors import ExportError

HOSTILE = [
    "<script>alert(1)</script>",
    "![x](http://evil.example/p.png)",
    "[click](javascript:alert(1))",
    "a | b",
    "`code` **bold** _it_ ~no~",
    "# heading",
    "- item",
    "http://evil.example",
    "www.evil.example",
    "me@evil.example",
    "line\nbreak\r\u2028and\x00nul",
    "\\",
]


def card(kind="classifier", classes=("a", "b"), multi_label=False, **fields):
    return model_card(
        fields,
        architecture="resnet18",
        classes=classes,
        multi_label=multi_label,
        image="RGB images",
        opened_by_timm=kind,
        versions={"torch": "2.0"},
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_outside_text_is_inert_wherever_it_stands(text):
    plain = card(
        name="N", description="N", license="N", limits="N", intended_use="N", data={"N": 1}
    )
    hostile = card(
        name=text, description=text, license=text, limits=text, intended_use=text, data={text: text}
    )
    assert len(hostile.splitlines()) == len(plain.splitlines())
    body = re.sub(r"\\.", "", hostile.split("---\n", 2)[2])  # what is escaped is only text
    prose = body.split("```")[0]
    for forbidden in ("<script", "[", "](", "`c", "://", "www.evil", "me@", "**b", "_i", "~n"):
        assert forbidden not in prose
    assert escape(text)[:1] not in {"#", "-"}


def test_front_matter_holds_strings_that_no_value_can_leave():
    text = card(license='mit"\nevil: true')
    header = text.split("---\n")[1]
    values = {
        line.split(": ", 1)[0]: json.loads(line.split(": ", 1)[1]) for line in header.splitlines()
    }
    assert values["license"] == 'mit"\nevil: true'
    assert values["library_name"] == "timm"
    assert "evil" not in values


def test_measures_are_a_table_with_a_dash_for_what_has_no_answer():
    text = card(
        measures={"accuracy": 0.98765, "n": 12, "ece": None},
        per_class=[{"class": "a|b", "recall": 0.5}, {"class": "c", "recall": None}],
    )
    for row in (
        "| accuracy | 0.9877 |",
        "| n | 12 |",
        "| ece | – |",
        r"| a\|b | 0.5 |",
        "| c | – |",
    ):
        assert row in text


def test_the_loading_lines_run_and_name_what_timm_can_do():
    for kind, claim in [
        ("classifier", "bit for bit"),
        ("body", "head.safetensors"),
        ("own", "cannot"),
    ]:
        text = card(kind)
        code = text.split("```python\n")[1].split("```")[0]
        compile(code, "card", "exec")
        assert len(code.strip().splitlines()) == 4
        assert claim in text
        assert ('timm.create_model("local-dir:' in text) == (kind != "own")


def test_many_classes_are_cut_and_the_rest_counted():
    text = card(classes=[f"c{i}" for i in range(1005)])
    assert "999. c999" in text
    assert "c1000" not in text
    assert "5 more are in" in text


def test_numbers_become_jsons_own():
    found = checked_card({"measures": {"a": np.float64(0.5), "n": np.int64(3), "x": float("nan")}})
    assert json.dumps(found, allow_nan=False) == '{"measures": {"a": 0.5, "n": 3, "x": null}}'


def test_unknown_keys_and_wrong_types_are_named():
    with pytest.raises(ExportError, match=r"unknown keys \['acuracy'\]"):
        checked_card({"acuracy": 1})
    with pytest.raises(ExportError, match=r"'measures'.*no mapping"):
        checked_card({"measures": [1]})

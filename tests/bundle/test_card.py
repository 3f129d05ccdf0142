import json
import re
from pathlib import Path

import numpy as np
import pytest

from learnkit.bundle.card import checked_card, measures_table, model_card
from learnkit.bundle.overview import with_variants_listed
from learnkit.errors import ExportError
from learnkit.optimize.gates import BUSY
from learnkit.report.markdown import escape

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


ABOUT = {
    "architecture": "resnet18",
    "classes": ("a", "b"),
    "multi_label": False,
    "image": "RGB images",
    "opened_by_timm": "classifier",
    "versions": {"torch": "2.0"},
}


def card(kind="classifier", classes=("a", "b"), multi_label=False, **fields):
    about = {"classes": classes, "multi_label": multi_label, "opened_by_timm": kind}
    return model_card(fields, **ABOUT | about)


def limits_of(text):
    """The items below the heading "Limits"."""
    section = text.split("\n## Limits\n")[1].split("\n## ")[0]
    return [line.removeprefix("* ") for line in section.splitlines() if line]


@pytest.mark.parametrize("threshold", [0.5, (0.25, 0.75)])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("continual", [None, {"images learned": 3}])
def test_limits_are_those_given_and_else_say_what_it_is_not_for(threshold, multi_label, continual):
    about = {"threshold": threshold, "multi_label": multi_label, "continual": continual}
    assert limits_of(model_card({"limits": "day only"}, **ABOUT | about)) == ["day only"]
    given = {"limits": ["day only", "one camera"]}
    assert limits_of(model_card(given, **ABOUT | about)) == ["day only", "one camera"]
    (line,) = limits_of(model_card({}, **ABOUT | about))
    assert line.endswith("Not meant for decisions about people.")


@pytest.mark.parametrize(("threshold", "said"), [(0.5, "0.5"), ((0.25, 0.75), "a: 0.25, b: 0.75")])
def test_the_card_of_several_labels_says_above_what_a_label_counts(threshold, said):
    text = model_card({}, **ABOUT | {"threshold": threshold, "multi_label": True})
    assert f"A label counts above a probability of {said}." in text


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


def test_variants_are_listed_with_what_they_cost_and_how_to_open_each():
    root = Path(__file__).parent / "golden" / "v1.2-variants"
    files = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    card = with_variants_listed(files["README.md"].decode(), files).split("## Variants")[1]
    text, *costs = card.split("## Optimised: ")
    assert [cost.splitlines()[0] for cost in costs] == ["onnxruntime-float16", "torch-bfloat16"]
    report = json.loads(files["variants/onnxruntime-float16.report.json"])
    first = report["latency"][0]
    ratio = first["eager_median"] / first["median"]
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("|")}
    assert f"| {first['median']:.3g} ({ratio:.1f}x) |" in lines["| onnxruntime-float16"]
    assert "| 100.00% | 100.00% | passed | opens by default" in lines["| onnxruntime-float16"]
    for verdict in report["verdicts"]:
        if verdict["gate"] == "speed":
            verdict |= {"passed": None, "note": f"{BUSY} (it waited)"}
    busy = {"variants/onnxruntime-float16.report.json": json.dumps(report).encode()}
    listed = with_variants_listed(files["README.md"].decode(), files | busy)
    assert f"| {first['median']:.3g} (disturbed) |" in listed.split("## Variants")[1]
    assert "| forced |" in lines["| torch-bfloat16"]
    assert len({line.count(" | ") for line in lines.values()}) == 1
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert re.findall(r'(\w+)\("path/to/this/folder"(?:, variant="(\S+)")?\)', code) == [
        ("load_learner", ""),
        ("load_learner", "float32"),
        ("load_learner", "torch-bfloat16"),
        ("load_runtime", "onnxruntime-float16"),
    ]


def test_measures_have_their_intervals_beside_them():
    card = {
        "measures": {"accuracy": 0.9, "ece": 0.03},
        "intervals": {"accuracy": [0.84, 0.941], "macro_f1": [None, None]},
    }
    table = measures_table(checked_card(card))
    assert table.header == ("", "value", "95 % interval")
    assert table.content == [("accuracy", 0.9, "0.840 - 0.941"), ("ece", 0.03, "")]

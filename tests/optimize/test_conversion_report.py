import base64
import json
import math
import re
import unicodedata
from dataclasses import replace

import pytest

from learnkit.errors import BundleCorruptError, OptimizeError
from learnkit.optimize.conversion_report import ConversionReport, speeds_of
from learnkit.optimize.gates import Gates, Verdict, speed_verdict
from learnkit.optimize.quality import (
    Candidate,
    ChangedClass,
    ChangedImage,
    Images,
    Latency,
    Quality,
)

EVIL = "<img src=x onerror=alert(1)>"
QUALITY = Quality(
    n=200,
    n_same=197,
    n_broken=0,
    logit_rms=0.12,
    logit_rms_share=0.03,
    logit_max=0.5,
    prob_mean=0.01,
    prob_max=0.3,
    feature_cosine=0.98,
    feature_cosine_min=0.9,
    n_labelled=200,
    n_right=180,
    n_lost=3,
    n_gained=1,
    ece_before=0.04,
    ece=0.05,
    n_strange=50,
    auroc_before=0.97,
    auroc=0.96,
    false_alarms_before=0.05,
    false_alarms=0.06,
    worst_class=ChangedClass(EVIL, 20, 0.9, 0.7),
    worst_images=(ChangedImage(EVIL, "a", "a", "b", 0.6, 0.55, 0.3),),
)
REPORT = ConversionReport(
    variant="onnxruntime-int8",
    backend="onnxruntime",
    precision="int8",
    device="cpu",
    threads=2,
    params={"spinning": True},
    versions={"learnkit": "1", "onnxruntime": "1.31"},
    processor={"name": "a processor", "flags": "avx512_vnni"},
    samples=Images("images", 40, {"a": 20, EVIL: 20}, ("a/1.png",), "0" * 64),
    test=Images("images", 200, {}, (), "f" * 64),
    n_bytes=2_500_000,
    n_bytes_float32=10_000_000,
    latency=(Latency(1, 2.0, 2.5, 4.0, 12.0), Latency(16, 20.0, 22.0, 50.0, 140.0)),
    quality=QUALITY,
    verdicts=(
        Verdict("speed", True, "2.00x", "at least 1.1x"),
        Verdict("agreement", False, "98.50%", "at least 99.0%"),
    ),
    state="carried over",
    notes=(EVIL,),
    candidates=(Candidate("openvino-int8", {}, math.nan, EVIL),),
)


def test_shares_changes_and_ratios_follow_from_the_counts():
    assert QUALITY.agreement == 0.985
    assert (QUALITY.accuracy_before, QUALITY.accuracy) == (0.9, pytest.approx(0.89))
    assert QUALITY.accuracy_change == pytest.approx(-0.01)
    low, high = QUALITY.accuracy_interval
    assert low < -0.01 < high
    low, high = QUALITY.agreement_interval
    assert low < 0.985 < high
    assert REPORT.latency[0].vs_float32 == 2.0
    assert REPORT.latency[1].vs_eager == 7.0
    assert not REPORT.passed
    assert REPORT.failures.startswith("agreement: FAILED")


def test_a_report_survives_json_with_what_was_not_measured():
    report = replace(REPORT, quality=replace(QUALITY, auroc=math.nan), samples=None)
    text = json.dumps(report.to_dict(), allow_nan=False)
    again = ConversionReport.from_dict(json.loads(text))
    assert math.isnan(again.quality.auroc)
    assert again.samples is None
    assert json.dumps(again.to_dict()) == text
    assert str(again) == str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("verdicts"), "has the fields"),
        (lambda d: d.update(colour="blue"), "has the fields"),
        (lambda d: d.update(threads="2"), "`threads` is '2'; it must be a int"),
        (lambda d: d.update(threads=True), "`threads` is True"),
        (lambda d: d["quality"].update(n=1.5), "`n` is 1.5"),
        (lambda d: d.update(latency={}), "`latency`"),
        (lambda d: d["latency"][0].update(best="fast"), "`best` is 'fast'"),
        (lambda d: d["verdicts"][0].update(passed="yes"), "`passed` is 'yes'"),
        (lambda d: d.update(versions={"torch": 2}), "`versions` is 2"),
        (lambda d: d.update(quality=None), "Quality"),
    ],
)
def test_a_report_that_was_tampered_with_is_refused(change, message):
    values = REPORT.to_dict()
    change(values)
    with pytest.raises(BundleCorruptError, match=message):
        ConversionReport.from_dict(values, "variants/x.report.json")


def test_a_report_of_the_time_when_medians_were_compared_is_read():
    values, former = REPORT.to_dict(), {"best": "median", "float32_best": "float32_median"}
    former["eager_best"] = "eager_median"
    values["latency"] = [
        {former.get(name, name): value for name, value in one.items()} for one in values["latency"]
    ]
    for one in values["candidates"]:
        one["medians"] = one.pop("times")
    assert ConversionReport.from_dict(values).to_dict() == REPORT.to_dict()


TRIED = replace(
    REPORT,
    candidates=(
        Candidate("openvino-int8", {"1": 3.0, "16": 14.0}, math.nan, "slower, not judged"),
        Candidate("torch-int8", {}, math.nan, "the network has operators that ONNX has not"),
        Candidate("onnxruntime-int8", {"1": 2.0, "16": 20.0}, 0.985, f"agreement: FAILED {EVIL}"),
    ),
)
PASSED = replace(REPORT, verdicts=(Verdict("agreement", True, "99.50%", "at least 99.0%"),))


def test_the_printed_report_says_what_is_asked_of_it():
    text = str(REPORT)
    for part in (
        "onnxruntime-int8 is refused: agreement 98.50% (asked: at least 99.0%)",
        "FAILED     agreement",
        "2.50 MB  25% of the float32 weights",
        "avx512_vnni",
        "onnxruntime 1.31",
        "-1.00 points",
        "40 images (20 a",
        "carried over",
        "12.00 ms   2.00 ms  6.0x as fast, p95 2.50 ms; 2.0x of",
    ):
        assert part in text, part
    assert text.index("FAILED") < text.index("passed ")


def test_the_first_line_is_the_verdict_and_what_speaks_for_it():
    first = " ".join(str(PASSED).split("\n\n")[0].split())
    assert first == (
        "onnxruntime-int8 passes its gates: 6.0x / 7.0x as fast as eager torch (batch 1 / 16), "
        "25% of the size, 98.50% of labels kept"
    )
    busy = speed_verdict({1: 1777.0}, "eager torch", Gates(), "it waited")
    disturbed = str(replace(PASSED, verdicts=(*PASSED.verdicts, busy)))
    assert (
        "6.0x / 7.0x as fast as eager torch (batch 1 / 16) while others used the machine, so not "
        "judged by speed, 25% of the size"
    ) in " ".join(disturbed.split("\n\n")[0].split())
    assert "not decided" in disturbed.split("\n\n")[1]
    unasked = speed_verdict({1: 1777.0}, "eager torch", Gates(speed=None), "it waited")
    headline = str(replace(PASSED, verdicts=(unasked,))).split("\n\n")[0]
    assert "used the machine, so not judged by speed" in " ".join(headline.split())
    unjudged = replace(PASSED, verdicts=(Verdict("agreement", None, "no images", "nothing"),))
    assert "25% of the size, labels not judged" in " ".join(str(unjudged).split())
    forced = str(replace(REPORT, forced=True)).splitlines()[0]
    assert forced.startswith("onnxruntime-int8 fails a gate and was made all the same: agreement")


def test_the_printed_report_fits_a_terminal_and_does_not_steer_it():
    name = "folder/\x1b[31m\x07red\n\n## heading\u2028.png"
    images = (replace(QUALITY.worst_images[0], name=name),) * 3
    text = str(replace(TRIED, quality=replace(QUALITY, worst_images=images), state="word " * 60))
    assert max(map(len, text.splitlines())) <= 80
    assert {c for c in text if unicodedata.category(c) in {"Cc", "Zl"}} == {"\n"}
    assert "folder/?[31m?red??## heading?.png" in text


def test_long_times_and_outcomes_wrap_in_the_printed_table():
    slow = {"1": 123456.78, "16": 1234567.89}
    tried = tuple(Candidate(f"openvino-{name}", slow, 0.99, "slower, not judged") for name in "ab")
    text = str(replace(TRIED, candidates=(*tried, *TRIED.candidates)))
    assert max(map(len, text.splitlines())) <= 80
    assert " ".join(text.split()).count(" slower ") == 3


@pytest.mark.parametrize(
    ("truth", "before", "after", "said"),
    [
        ("a", "a", "a", "still right: a 0.60 -> 0.55"),
        ("a", "a", "b", "now wrong: a 0.60 -> b 0.55"),
        ("b", "a", "b", "now right: a 0.60 -> b 0.55"),
        ("c", "a", "b", "still wrong: a 0.60 -> b 0.55; it is c"),
        (None, "a", "b", "label changed: a 0.60 -> b 0.55"),
        (None, "a", "a", "label kept: a 0.60 -> 0.55"),
    ],
)
def test_what_became_of_an_image_is_said_in_words(truth, before, after, said):
    one = ChangedImage("x.png", truth, before, after, 0.6, 0.55, 0.3)
    report = replace(REPORT, quality=replace(QUALITY, worst_images=(one,)))
    assert f"  x.png  {said}\n" in str(report)
    fate, told = said.replace(" -> ", " → ").replace("; ", "").split(": ")
    shown = re.sub("<[^>]+>", "", report._repr_html_())
    assert f"{fate}{told}x.png" in shown


def test_speeds_are_set_against_eager_torch_and_the_slowest_comes_first():
    found = {one.name: one for one in speeds_of(TRIED)}
    assert [*found] == [
        "eager torch",
        "onnxruntime-float32",
        "openvino-int8",
        "onnxruntime-int8",
        "torch-int8",
    ]
    assert found["eager torch"].ratios == {1: 1.0, 16: 1.0}
    assert found["onnxruntime-float32"].ratios == {1: 3.0, 16: 2.8}
    assert found["openvino-int8"].ratios == {1: 4.0, 16: 10.0}
    assert [one.is_chosen for one in found.values()] == [False, False, False, True, False]
    assert (found["torch-int8"].ratios, found["torch-int8"].outcome) == ({}, "not possible")
    assert found["onnxruntime-int8"].outcome == "failed"
    alone = speeds_of(replace(REPORT, candidates=()))[-1]
    assert (alone.name, alone.ratios, alone.outcome) == (
        "onnxruntime-int8",
        {1: 6.0, 16: 7.0},
        "refused",
    )


def test_the_bars_of_the_plot_are_as_long_as_variants_are_fast():
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert TRIED.plot(ax) is ax
    bars = sorted(ax.patches, key=lambda bar: bar.get_y())  # as they stand, from the top down
    found = speeds_of(TRIED)
    assert [bar.get_width() for bar in bars] == [r for one in found for r in one.ratios.values()]
    colours = [len({bar.get_facecolor() for bar in bars[i:j]}) for i, j in ((0, 6), (6, 8), (0, 8))]
    assert colours == [2, 2, 4]
    names = [label.get_text().splitlines()[0] for label in ax.get_yticklabels()]
    assert names == ["eager torch", "onnxruntime-float32", "openvino-int8", "onnxruntime-int8"]
    assert "98.5% kept, failed" in ax.get_yticklabels()[-1].get_text()
    assert ax.get_title() == "onnxruntime-int8 refused"
    with pytest.raises(OptimizeError, match="nothing was timed"):
        replace(REPORT, latency=()).plot(ax)


def test_html_begins_with_the_verdict_and_no_colour_stands_alone():
    assert re.sub("<[^>]+>", "", PASSED._repr_html_()).startswith("✓ passed onnxruntime-int8: 6.0x")
    html = REPORT._repr_html_()
    assert re.sub("<[^>]+>", "", html).startswith("✗ refused onnxruntime-int8: agreement")
    said = re.findall(r"background:#[0-9a-f]{6};color[^>]*>(\S) (\w[^<]*)</span>", html)
    assert said == [("✗", "refused"), ("✗", "FAILED"), ("✓", "passed"), ("✗", "now wrong")]


def test_pictures_are_shown_and_never_written():
    picture = replace(QUALITY.worst_images[0], thumbnail=b"a small picture")
    report = replace(REPORT, quality=replace(QUALITY, worst_images=(picture,)))
    data = base64.b64encode(b"a small picture").decode()
    assert f'<img src="data:image/jpeg;base64,{data}"' in report._repr_html_()
    text = json.dumps(report.to_dict())
    assert "thumbnail" not in text
    again = ConversionReport.from_dict(json.loads(text))
    assert again.quality.worst_images[0] == picture
    assert "<img" not in again._repr_html_()
    text = text.replace('"change": 0.3', '"change": 0.3, "thumbnail": ""')
    with pytest.raises(BundleCorruptError, match="has the fields"):
        ConversionReport.from_dict(json.loads(text))


def test_html_escapes_every_name_from_outside():
    html = TRIED._repr_html_()
    assert "<img" not in html
    assert html.count("&lt;img") >= 5
    for name in ('"><b>x', '"><b>' + 30 * "x"):  # short, and so long that it is cut
        one = ChangedImage(name, name, name, f"{name}y", 0.6, 0.5, 0.1)
        images = (one, replace(one, truth="other"))
        html = replace(REPORT, quality=replace(QUALITY, worst_images=images))._repr_html_()
        assert '"><b>x' not in html
        assert "&quot;&gt;&lt;b&gt;x" in html
    assert html.count("<table") == html.count("</table>")


def test_what_was_not_measured_has_no_row():
    bare = replace(QUALITY, auroc=math.nan, n_labelled=0, worst_class=None)
    text = str(replace(REPORT, quality=bare))
    assert "AUROC" not in text
    assert "worst class" not in text
    assert "nan" not in text.lower()

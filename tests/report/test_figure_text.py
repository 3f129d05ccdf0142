import unicodedata
import warnings

import matplotlib.pyplot as plt
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib import font_manager

from learnkit.report import figure_text
from learnkit.report.figure_text import distinct_names, figure_names

BOLT = "螺丝"


@pytest.fixture
def font_of_bolts(tmp_path):
    """An installed font that has the two letters of BOLT and nothing else, while a test runs."""
    pen = TTGlyphPen(None)
    for corner in ((0, 0), (0, 700), (700, 700), (700, 0)):
        (pen.lineTo if pen.points else pen.moveTo)(corner)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "bolt"])
    font.setupCharacterMap(dict.fromkeys(map(ord, BOLT), "bolt"))
    font.setupGlyf(dict.fromkeys([".notdef", "bolt"], pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys([".notdef", "bolt"], (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Bolts", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "bolts.ttf")
    manager = font_manager.fontManager
    before = list(manager.ttflist)
    manager.addfont(tmp_path / "bolts.ttf")
    yield "Bolts"
    manager.ttflist[:] = before
    manager._findfont_cached.cache_clear()


@given(
    st.lists(st.text("ab2…# _\n\u0301e\x1b", max_size=40), unique=True, max_size=30),
    st.sampled_from([5, 8, 20]),
)
@example(["a" * 30 + "b" + "c" * 30, "a" * 30 + "c" * 31], 20)
@example(["a", "a ", "a\n"], 20)  # nothing that is seen differs
@example(["é", "e\u0301"], 20)
def test_different_names_stay_different(names, width):
    short = distinct_names(names, width)
    assert len(set(short)) == len(names)
    assert all(text.isprintable() for text in short)
    assert distinct_names([*names, *names], width) == [*short, *short]


@pytest.mark.parametrize("place", [0, 12, 30, 49])
def test_names_are_cut_where_they_differ(place):
    names = ["x" * place + letter + "x" * (49 - place) for letter in "abc"]
    short = distinct_names(names, 12)
    assert [next(c for c in text if c in "abc") for text in short] == list("abc")
    assert all(len(text) <= 12 for text in short)


def test_names_that_fit_stay_as_they_are():
    names = ["a_b", "$x$", "no longer than this"]
    assert distinct_names(names) == names
    assert figure_names(names) == (names, {"parse_math": False})


def test_letters_the_font_lacks_come_from_an_installed_one(font_of_bolts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names, style = figure_names([BOLT, "nut"])
        assert names == [BOLT, "nut"]
        figure = plt.figure()
        figure.text(0.5, 0.5, names[0], **style)
        figure.canvas.draw()  # matplotlib warns of glyphs it lacks
    assert style["fontfamily"] == [*plt.rcParams["font.family"], font_of_bolts]


def test_letters_no_font_has_become_numbers_with_a_legend(monkeypatch):
    monkeypatch.setattr(figure_text, "_upright", dict)
    with pytest.warns(UserWarning, match=f"shows #1 = {BOLT}, #2 bolt = {BOLT} bolt.*Noto") as seen:
        names, style = figure_names(["nut", BOLT, f"{BOLT} bolt", "#1"])
    assert len(seen) == 1
    assert names[:3] == ["nut", "#1", "#2 bolt"]
    assert len(set(names)) == 4  # though a class is called #1
    assert style == {"parse_math": False}


def test_letters_are_joined_and_turned_where_matplotlib_does_so(monkeypatch):
    arabic = "".join(unicodedata.lookup(f"ARABIC LETTER {c}") for c in ("SEEN", "LAM", "ALEF"))
    monkeypatch.setattr("matplotlib.__version_info__", (3, 11, 0, "final", 0))
    assert figure_names([arabic])[0] == [arabic]
    monkeypatch.setattr("matplotlib.__version_info__", (3, 10, 9, "final", 0))
    with pytest.warns(UserWarning, match="#0 = "):
        assert figure_names([arabic])[0] == ["#0"]

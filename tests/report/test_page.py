"""The evaluation page as a file: what it may load, what its data become, counts and names."""

import base64
import hashlib
import json
import re
from importlib.resources import files
from itertools import pairwise

import numpy as np
import page_helpers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnkit.report.charts import reliability_diagram, score_histogram
from learnkit.report.matrix import short_names, shown_matrix
from learnkit.report.page import page_html

TEMPLATES = files("learnkit.report") / "templates"


@pytest.fixture(scope="module")
def parts():
    return page_helpers.parts_page()


@pytest.fixture(scope="module")
def page(parts):
    return page_html(parts)


def data_of(page):
    return re.search(r'<script type="application/json" id="data">(.*?)</script>', page).group(1)


class TestFile:
    def test_says_in_its_first_kilobyte_who_wrote_it(self, page):
        assert '<meta name="generator" content="learnkit 0.9">' in page[:1000]

    def test_allows_its_own_style_and_script_and_pictures_in_it_and_nothing_else(self, page):
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
        policy = policy.replace("&#x27;", "'")
        found = dict(rule.split(" ", 1) for rule in policy.split("; "))
        (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
        (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
        digest = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert found == {
            "default-src": "'none'",
            "img-src": "data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "style-src": f"'sha256-{digest(style)}'",
            "script-src": f"'sha256-{digest(script)}'",
        }

    def test_has_no_handler_style_or_address_in_its_markup(self, page):
        markup = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.S)
        assert not re.search(r"\s(on\w+|style)=", markup)
        assert not re.search(r"(src|href)=\"(?!#)", markup)

    def test_is_the_same_for_the_same_data(self, parts, page):
        assert page_html(json.loads(json.dumps(parts))) == page

    def test_leaves_its_data_as_they_were(self, parts):
        before = json.dumps(parts)
        page_html(parts)
        assert json.dumps(parts) == before

    def test_holds_its_data_whole(self, parts, page):
        assert json.loads(data_of(page)) == parts

    @pytest.mark.parametrize(
        "hostile", ["</script><script>", "<!--", "]]>", "\u2028\u2029", "\udcff", "&amp;", "é🦊"]
    )
    def test_no_text_ends_the_data(self, parts, hostile):
        data = {**parts, "title": hostile}
        text = data_of(page_html(data))
        assert json.loads(text)["title"] == hostile
        assert text.isascii()
        assert not set("<>&") & set(text)

    def test_is_written_as_utf8_whatever_a_file_is_called(self, parts):
        data = {**parts, "unreadable": [{"path": "\udcff.png", "why": "\udcff"}]}
        assert "\ufffd.png" in page_html(data).encode().decode()

    def test_numbers_that_json_does_not_have_are_refused(self, parts):
        with pytest.raises(ValueError, match="not JSON compliant"):
            page_html({**parts, "measures": {"f1": float("nan")}})


class TestScript:
    own = (TEMPLATES / "evaluation.js").read_text(encoding="utf-8")
    source = own + (TEMPLATES / "cleaning.js").read_text(encoding="utf-8")

    def test_stays_small(self):
        assert len(self.own.encode()) < 30_000

    def test_of_cleaning_is_on_its_page_alone(self, parts, page):
        assert "findings()" not in page
        assert "findings();" in page_html({**parts, "kind": "cleaning"})

    @pytest.mark.parametrize(
        "way", ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("]
    )
    def test_makes_no_markup_and_no_code_of_text(self, way):
        assert way not in self.source

    @pytest.mark.parametrize("way", ["fetch(", "XMLHttp", "WebSocket", "sendBeacon", "import("])
    def test_asks_for_nothing(self, way):
        assert way not in self.source


class TestMatrix:
    @given(st.integers(1, 12), st.randoms(use_true_random=False))
    def test_holds_every_count_once(self, n, random):
        confusion = [[random.choice([0, 0, 1, 7]) for _ in range(n)] for _ in range(n)]
        found = shown_matrix(confusion)
        assert [[cell.n for cell in row] for row in found.rows] == confusion
        for row in found.rows:
            total = sum(cell.n for cell in row)
            assert sum(cell.share for cell in row) == pytest.approx(1 if total else 0)
            assert all((cell.level == 0) == (cell.n == 0) for cell in row)
        assert sorted(found.by_errors) == sorted(found.by_similarity) == [*range(n)]

    def test_is_as_dark_as_the_share_of_the_row_not_of_the_images(self):
        rare, frequent = shown_matrix([[1, 3], [300, 100]]).rows
        assert rare[1].level == frequent[0].level == 8
        assert rare[0].level == frequent[1].level == 3

    def test_of_many_classes_shows_those_with_mistakes_most_first(self):
        confusion = np.eye(104, dtype=int) * 9
        confusion[5, 7], confusion[7, 9] = 2, 1
        found = shown_matrix(confusion.tolist())
        assert found.shown == [7, 5, 9]  # 3, 2 and 1 mistakes in row and column
        assert found.n_faultless == 101

    def test_of_very_many_is_a_list_of_the_largest_confusions(self):
        confusion = np.eye(70, dtype=int) * 9 + np.roll(np.eye(70, dtype=int), 1, axis=1)
        confusion[3, 60] = 8
        found = shown_matrix(confusion.tolist())
        assert found.rows == []
        assert (found.pairs[0].actual, found.pairs[0].predicted, found.pairs[0].n) == (3, 60, 8)
        assert len(found.pairs) == 50

    def test_without_mistakes_lists_none(self):
        found = shown_matrix((np.eye(40, dtype=int) * 3).tolist())
        assert (found.rows, found.pairs) == ([], [])

    def test_puts_what_is_confused_beside_each_other(self):
        confusion = np.eye(6, dtype=int) * 20
        for a, y in ((0, 3), (3, 5), (1, 4), (4, 2)):
            confusion[a, y] = confusion[y, a] = 6
        order = shown_matrix(confusion.tolist()).by_similarity
        steps = [abs(order.index(a) - order.index(y)) for a, y in ((0, 3), (3, 5), (1, 4), (4, 2))]
        assert steps == [1, 1, 1, 1]


class TestNames:
    @given(st.lists(st.text(max_size=60), max_size=40, unique=True))
    def test_stay_distinct(self, names):
        assert len(set(short_names(names))) == len(names)

    @given(st.lists(st.text("ab", max_size=4), min_size=1, max_size=20, unique=True))
    def test_that_share_most_stay_distinct_and_short(self, cores):
        names = [f"{'long' * 20}{core}{'tail' * 20}" for core in cores]
        labels = short_names(names)
        assert len(set(labels)) == len(names)
        assert len(cores) == 1 or max(map(len, labels)) <= 32

    def test_that_are_short_are_whole(self):
        names = ["ants", "bees", "a name of 22 character"]
        assert short_names(names) == names

    def test_that_differ_late_show_where(self):
        assert short_names([f"{'x' * 50}{k}" for k in range(12)])[10:] == ["…10", "…11"]

    def test_that_are_equal_stay_equal(self):
        assert short_names(["a" * 40] * 2) == [short_names(["a" * 40])[0]] * 2


class TestHistogram:
    def test_bars_hold_every_score_once(self):
        rng = np.random.default_rng(0)
        known, strange = rng.normal(size=300), rng.normal(3, 1, size=50)
        found = score_histogram(known, strange, 2.0)
        counted = lambda bars: sum(int(bar.text.split()[0]) for bar in bars)
        assert counted(found.known) == 300
        assert counted(found.strange) == 50

    def test_of_a_far_outlier_keeps_the_others_apart(self):
        scores = [*np.linspace(0, 1, 200), 1e9]
        assert len(score_histogram(scores, [], 0.9).known) > 20

    @pytest.mark.parametrize("scores", [[0.0], [1.0, 1.0], [-3.0]])
    @pytest.mark.parametrize("threshold", [None, 0.5])
    def test_of_one_value_has_one_bar(self, scores, threshold):
        found = score_histogram(scores, [], threshold)
        assert len(found.known) == 1
        assert found.low < found.high
        assert threshold is None or 0 <= found.x(threshold) <= 560

    def test_reaches_a_threshold_of_zero_and_says_what_is_cut(self):
        assert score_histogram([1.0, 2.0], [], 0.0).low == 0
        assert not score_histogram([1.0, 2.0], [], 0.0).cut
        assert score_histogram([*np.linspace(0, 1, 200), 1e9], [], 0.9).cut

    def test_of_nothing_is_none(self):
        assert score_histogram([], [], 1.0) is None


class TestReliability:
    def test_bars_are_as_high_as_the_share_that_is_right(self):
        bins = {"edges": [0, 0.5, 0.75, 1], "n": [0, 4, 100]}
        bins |= {"confidence": [None, 0.6, 0.9], "accuracy": [None, 0.25, 0.84]}
        found = reliability_diagram(bins, 2)
        assert [bar.height for bar in found.bars] == [50, 168]
        assert [bar.is_sure for bar in found.bars] == [False, True]
        assert found.bars[0].x == 1  # the axis begins at one half
        assert found.sentence == "Where it says 90 %, it is right in 84 of 100 (100 images)."

    def test_bars_lie_beside_each_other(self):
        n = 15
        bins = {"edges": [k / n for k in range(n + 1)], "n": [20] * n}
        bins |= {"confidence": [0.5] * n, "accuracy": [0.5] * n}
        bars = reliability_diagram(bins, 10).bars
        assert all(a.x + a.width <= b.x for a, b in pairwise(bars))
        assert bars[-1].x + bars[-1].width <= 560

    def test_of_nothing_is_none(self):
        bins = {"edges": [0, 1], "n": [0], "confidence": [None], "accuracy": [None]}
        assert reliability_diagram(bins, 2) is None

"""The labelling page as files: its texts in every language, and nothing that its policy forbids."""

import configparser
import fnmatch
import re
from pathlib import Path

import pytest

import learnkit

ROOT = Path(learnkit.__file__).parent
PAGE = ROOT / "serving" / "labelling" / "page"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGE.iterdir())}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
# An entry of a table: its name, and its text between double quotes.
ENTRY = re.compile(r'^    (\w+): "((?:[^"\\]|\\.)*)",$', re.MULTILINE)


def tables():
    """The texts by language."""
    parts = re.split(r"^  (\w\w): \{$", SCRIPTS["texts.js"], flags=re.MULTILINE)[1:]
    return {code: ENTRY.findall(body) for code, body in zip(parts[::2], parts[1::2], strict=True)}


def words(text):
    return sorted(set(re.findall(r"\{(\w+)\}", text)))


class TestTexts:
    def test_of_every_language_are_the_same_names_each_once(self):
        names = {code: [name for name, _ in entries] for code, entries in tables().items()}
        assert {"en", "de"} <= names.keys()
        for code, given in names.items():
            assert sorted(set(given)) == sorted(given), f"{code} says something twice"
            assert sorted(given) == sorted(names["en"]), code
        assert len(names["en"]) > 100

    def test_are_filled_in_with_the_same_words_in_every_language(self):
        english = dict(tables()["en"])
        for code, entries in tables().items():
            assert {n: words(t) for n, t in entries} == {n: words(t) for n, t in english.items()}, (
                code
            )

    def test_for_one_stand_beside_those_for_many(self):
        names = dict(tables()["en"])
        assert {name.removesuffix("_one") for name in names if name.endswith("_one")} <= set(names)

    def test_that_the_page_asks_for_are_there(self):
        names = dict(tables()["en"])
        asked = set(re.findall(r'data-(?:text|name)="(\w+)"', FILES["index.html"]))
        for script in SCRIPTS.values():
            asked |= set(re.findall(r'\btext\("(\w+)"', script))
        assert len(asked) > 80
        assert sorted(asked - names.keys()) == []

    @pytest.mark.parametrize(
        ("stem", "ends"),
        [
            ("moved_", ["skip", "unusable", "ask"]),
            (
                "do_",
                ["skip", "unusable", "ask", "undo", "rename", "merge", "forget", "create", "label"],
            ),
            ("state_", ["learned", "refused", "undone", "moved", "queued"]),
            ("name_", ["empty", "long", "signs", "ends", "reserved", "same", "forgotten"]),
            ("learned", ["", "_already"]),
            (
                "",
                [
                    "sending",
                    "held",
                    "learning",
                    "queued",
                    "failed",
                    "taking_back",
                    "cannot_take_back",
                ],
            ),
            ("", ["taken_back", "nothing_to_take_back", "refused", "flagged", "unsure", "sure"]),
            ("theme_", ["auto", "light", "dark"]),
            ("show_", ["unknown", "unsure", "all"]),
        ],
    )
    def test_whose_names_are_put_together_are_there(self, stem, ends):
        assert {stem + end for end in ends} <= set(dict(tables()["en"]))


class TestPage:
    def test_builds_nothing_from_text(self):
        for name, script in SCRIPTS.items():
            for door in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
                assert door not in script, f"{name}: {door}"

    def test_has_no_script_or_style_of_its_own_lines(self):
        html = FILES["index.html"]
        assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", html) == []

    def test_loads_only_files_that_lie_beside_it(self):
        loaded = re.findall(r'(?:src|href)="([^"]+)"', FILES["index.html"])
        assert loaded
        assert {one.removeprefix("/label/static/") for one in loaded} <= FILES.keys()
        for name, script in SCRIPTS.items():
            imported = re.findall(r'from "([^"]+)"', script)
            assert {one.removeprefix("./") for one in imported} <= FILES.keys(), name
        everything = "".join(FILES.values()).replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"https?://|//cdn|@import|url\(", everything) == []

    def test_is_installed_with_the_package(self):
        setup = ROOT.parent / "setup.cfg"
        if not setup.is_file():
            pytest.skip("learnkit is installed without its repository")
        config = configparser.ConfigParser()
        config.read(setup, encoding="utf-8")
        patterns = [one.strip() for one in config["options.package_data"]["learnkit"].split(",")]
        for path in PAGE.iterdir():
            name = path.relative_to(ROOT).as_posix()
            assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


def contrast(one, other):
    """The contrast of two colours as WCAG defines it."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_and_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


class TestLooks:
    LETTERS = {
        "ink": ["ground", "card", "fill", "cap", "warn-ground", "away-ground"],
        "soft": ["ground", "card", "well"],
        "accent": ["card", "ground"],
        "on-accent": ["accent"],
        "good": ["card"],
        "bad": ["card", "bad-ground"],
        "flag": ["flag-ground"],
    }

    @pytest.fixture(params=["light", "dark"])
    def colours(self, request):
        blocks = re.findall(r":root[^{]*\{([^{}]*--ground[^{}]*)\}", FILES["label.css"])
        assert len(blocks) == 3
        assert blocks[1].split() == blocks[2].split(), "dark by choice is dark by the machine"
        return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[request.param == "dark"]))

    def test_every_text_has_a_contrast_of_7_or_more(self, colours):
        low = {
            (ink, ground): round(contrast(colours[ink], colours[ground]), 2)
            for ink, grounds in self.LETTERS.items()
            for ground in grounds
            if contrast(colours[ink], colours[ground]) < 7
        }
        assert low == {}

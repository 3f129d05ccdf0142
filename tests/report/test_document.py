"""One document, three forms: each says the same, and none is led astray by a name."""

import base64
import io
import math
import re
import unicodedata
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from rich.cells import cell_len
from rich.console import Console
from test_house import ROOT, eager_imports, modules_of

from learnkit.report.document import (
    ARROW,
    Bar,
    BarRow,
    Bars,
    Code,
    Document,
    Gallery,
    Headline,
    Items,
    Lines,
    Mark,
    Paragraph,
    Picture,
    Section,
    Span,
    Table,
    frame_table,
    pairs,
    records,
)
from learnkit.report.html import as_html, as_page
from learnkit.report.markdown import as_markdown
from learnkit.report.text import as_text, print_document

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!-- & &lt; ]]> -->",
    "![x](http://evil.example/p.png)",
    "[click](javascript:alert(1)) [a]: b",
    "a | b || c",
    "`code` ```fence **bold** __it__ ~~no~~",
    "# heading",
    "  # heading behind spaces",
    "\t- item behind a tab",
    "12. numbered",
    "1) numbered",
    "> quoted",
    "=== underlined",
    "+ added",
    "https://evil.example www.evil.example me@evil.example",
    "{{ 7 * 7 }} {% raw %} {# no #}",
    "\x1b[31mred\x07\x9b2J",
    "line\nbreak\r\u2028and\x00nul",
    "\u202egnp.exe\u2066",
    "unpaired\udcff",
    "\\",
]


def everything(name):
    """A document in which `name` stands wherever a name can stand."""
    return Document(
        [
            Headline(name, Mark(name, False), "is refused", name),
            Paragraph(name),
            Paragraph((Span(name, "strong"), " and ", Span(name, "faint"), Span(name, "name"))),
            Paragraph(("seen ", Span(name, "code"))),
            Items([name, (name, ": why")]),
            Items([name], start=0),
            Section(name, [Table([(name, 1.5), (Mark(name), None)], (name, "n"), more=name)]),
            Bars([BarRow(name, [Bar(1.0, name), None], (name,))], (name, "b"), (name,), "l"),
            Gallery([Picture(name, Mark(name, True), Lines((name, (name, ARROW, name))))]),
        ]
    )


class Parsed(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html.partition("<style>")[0])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs if name != "title")))

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")

    def handle_comment(self, data):
        self.tags.append("comment")

    def handle_data(self, data):
        self.text.append(data)


def seen(name, instead):
    steering = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return "".join(instead if unicodedata.category(c) in steering else c for c in name)


def markdown_tokens(text):
    """(type, tag) of all tokens, and the text between them."""
    found, said = [], []
    for block in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        for token in (block, *(block.children or [])):
            if token.type in ("text", "text_special", "code_inline"):
                said.append(token.content)
                if token.type == "code_inline":
                    found.append("code")
            else:
                found.append((token.type, token.tag))
    return found, "".join(said)


@pytest.mark.parametrize("name", HOSTILE)
def test_html_shows_a_name_as_text_and_nothing_else(name):
    found, plain = Parsed(as_html(everything(name))), Parsed(as_html(everything("N")))
    assert found.tags == plain.tags
    shown = seen(name, "\ufffd")
    assert "".join(found.text).count(shown) >= "".join(plain.text).count("N") - 2  # two are cut
    assert not set("".join(found.text)) & (set(name) - set(shown) - {"\n"})


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_a_name_as_text_and_nothing_else(name):
    found, said = markdown_tokens(as_markdown(everything(name)))
    plain, _ = markdown_tokens(as_markdown(everything("N")))
    if set(name) & set("`|"):  # they cannot stand in code: such names are plain text there
        plain.remove("code")
    assert found == plain
    breaks = "".join(" " if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in name)
    assert "".join(said.split()).count("".join(seen(breaks, "\ufffd").split())) >= 15


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("width", [80, 40])
def test_no_name_steers_a_terminal_or_leaves_its_width(name, width):
    text = as_text(everything(name), width)
    assert {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}} <= {"\n"}
    assert max(map(cell_len, text.split("\n"))) <= width
    together = "".join(text.split())
    assert together.count("".join(seen(name, "?").split())) >= 5


@pytest.mark.parametrize("name", ["x" * 300, "wort " * 60, "裂纹" * 50])
def test_long_names_are_broken_and_whole(name):
    text = as_text(Document([pairs({name: name}), Items([name]), Paragraph(name)]))
    assert max(map(cell_len, text.split("\n"))) <= 80
    assert text.count(name[0]) == 4 * name.count(name[0])


def test_a_terminal_gets_the_same_words_in_colours():
    document = everything("N")
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system="standard")
    print_document(document, console)
    printed = console.file.getvalue()
    assert "\x1b[1;31mis refused" in printed
    plain = re.sub(r"\x1b\[[\d;]*m", "", printed)
    assert [line.rstrip() for line in plain.rstrip().split("\n")] == as_text(document).split("\n")


def test_a_pipe_gets_plain_text_of_eighty_columns_whatever_its_width(monkeypatch):
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        console = Console(file=io.StringIO())
        print_document(everything("N"), console)
        assert console.file.getvalue() == as_text(everything("N")) + "\n"


def test_sections_without_content_are_left_out():
    bare = [Section("A", [Table([]), Items(())]), Section("B", [Section("C", [Gallery([])])])]
    document = Document([*bare, Paragraph("")])
    assert (as_text(document), as_markdown(document)) == ("", "")
    assert not [text for text in Parsed(as_html(document)).text if text.strip()]


def test_tables_align_numbers_and_show_what_has_no_value_as_a_dash():
    table = Table([("a", 12000.0, 0.123456), ("b", None, math.nan)], ("", "n", "share"))
    assert as_text(Document([table])).split("\n") == [
        "       n   share",
        "a  12000  0.1235",
        "b      –       –",
    ]
    assert as_markdown(Document([table])).split("\n") == [
        "|  | n | share |",
        "| --- | ---: | ---: |",
        "| a | 12000 | 0.1235 |",
        "| b | – | – |",
    ]
    assert '<table class=" r2 r3">' in as_html(Document([table]))


def test_frames_and_records_become_tables():
    frame = pd.DataFrame({"n": [1, 2, 3]}, index=["a", "b", "c"])
    table = frame_table(frame, "class", max_rows=2, rest="classes")
    assert (table.header, table.content) == (("class", "n"), [["a", 1], ["b", 2]])
    assert table.more == "and 1 more classes"
    assert records([{"a": 1, "b": 2}, {"b": 3}]).content == [[1, 2], [None, 3]]


def test_bars_are_as_long_as_their_values_and_a_line_stands_at_the_reference():
    rows = [BarRow("slow", [Bar(1.0, "1x")]), BarRow("fast", [Bar(4.0, "4x")], is_chosen=True)]
    html = as_html(Document([Bars(rows, reference=1.0)]))
    assert re.findall(r"height:.7em;width:(\d+)%", html) == ["25", "100"]
    assert re.findall(r"left:(\d+)%", html) == ["25", "25"]
    assert "<b>fast</b>" in html
    half = as_html(Document([Bars([BarRow("p", [Bar(0.5, "50%")])], top=1.0)]))
    assert re.findall(r"height:.7em;width:(\d+)%", half) == ["50"]
    for value, length in ((math.nan, "1"), (0.0, "1"), (-1.0, "1"), (math.inf, "100")):
        odd = as_html(Document([Bars([BarRow("p", [Bar(value, "x")])])]))
        assert re.findall(r"height:.7em;width:(\d+)%", odd) == [length]


def test_pictures_are_carried_in_the_page():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    html = as_html(Document([Gallery([Picture("a.png", image=pixels)])]))
    data = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', html)[1])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    again = as_html(Document([Gallery([Picture("a.png", image=data)])]))
    assert again == html
    assert "<img" not in as_html(Document([Gallery([Picture("a.png")])]))


def test_code_keeps_its_lines():
    document = Document([Code("if a < b:\n    ```\n", "python")])
    assert as_markdown(document) == "````python\nif a < b:\n    ```\n\n````"
    assert "<pre>if a &lt; b:\n    ```\n" in as_html(document)
    assert as_text(document) == "if a < b:\n    ```"


def test_a_page_holds_each_fragment_below_its_heading():
    documents = {"": Document([Paragraph("one")]), "<b>": Document([Paragraph("two")])}
    page = as_page("<i>", documents)
    assert page.startswith("<!DOCTYPE html>")
    assert "<title>&lt;i&gt;</title>" in page
    assert page.count("<h2>") == 1
    assert "<h2>&lt;b&gt;</h2>" in page
    assert all(as_html(one) in page for one in documents.values())
    assert "prefers-color-scheme:dark" in page
    assert "<script" not in page


def test_the_style_of_a_fragment_touches_nothing_else_on_the_page():
    style = re.search("<style>(.*)</style>", as_html(everything("N")), re.DOTALL)[1]
    flat = re.sub(r"@media[^{]*\{((?:[^{}]*\{[^}]*\})*)\}", r"\1", style)
    selectors = [one for rule in re.findall(r"([^{}]+)\{", flat) for one in rule.split(",")]
    assert len(selectors) > 20
    assert all(one.strip().startswith(".lk") for one in selectors)
    assert "prefers-color-scheme" not in style  # a notebook has colours of its own


def test_only_commands_import_rich_and_jinja2_before_something_is_shown():
    modules = modules_of(ROOT)
    heavy = {"rich", "jinja2", "learnkit.report.html", "learnkit.report.text"}
    found = {
        module.top
        for name, module in modules.items()
        for other in eager_imports(module, modules)
        if (other in heavy or other.split(".")[0] in heavy)
        and not name.startswith("learnkit.report")
    }
    assert found == {"cli"}

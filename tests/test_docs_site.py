"""The site of docs/ is built without a warning, holds every public name, and needs no network."""

import inspect
import re
import sys
import zlib
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from docs_helpers import ROOT

import learnkit
import learnkit.halcon
from learnkit import errors

main = pytest.importorskip("sphinx.cmd.build", reason="Sphinx 9 needs Python 3.11").build_main
# what the pinned Sphinx tells its own extensions: napoleon and MyST
pytestmark = pytest.mark.filterwarnings("ignore::sphinx.deprecation.RemovedInSphinx11Warning")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as `make docs` does."""
    folder, before = tmp_path_factory.mktemp("site"), list(sys.path)
    doctrees = str(tmp_path_factory.mktemp("doctrees"))
    try:
        code = main(["-E", "-W", "-q", "-d", doctrees, str(ROOT / "docs"), str(folder)])
    finally:
        sys.path[:] = before
    assert code == 0
    return folder


@pytest.fixture(scope="module")
def objects(site):
    """Dotted name -> page of all that the reference describes, from the inventory."""
    data = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    rows = [line.split(" ") for line in zlib.decompress(data).decode().splitlines()]
    return {row[0]: row[3] for row in rows if row[1].startswith("py:")}


def test_every_public_name_has_its_place_in_the_reference(objects):
    assert {f"learnkit.{name}" for name in learnkit.PUBLIC_NAMES} <= objects.keys()


def test_every_verb_of_a_public_class_of_learnkit_is_described(objects):
    for name, module in learnkit.PUBLIC_NAMES.items():
        value = getattr(learnkit, name)
        if inspect.isclass(value) and not module.startswith("learnkit.callback"):
            verbs = {n for n, v in vars(value).items() if n[0] != "_" and inspect.isfunction(v)}
            assert {f"learnkit.{name}.{verb}" for verb in verbs} <= objects.keys()
    assert "learnkit.Predictor.predict" in objects  # it inherits that


def test_every_name_of_halcon_and_every_error_is_described(objects):
    names = learnkit.halcon.__all__
    called = [name for name in names if callable(getattr(learnkit.halcon, name))]
    assert {f"learnkit.halcon.{name}" for name in called} <= objects.keys()
    found = {n for n, v in vars(errors).items() if inspect.isclass(v) and issubclass(v, Exception)}
    assert {f"learnkit.errors.{name}" for name in found - {"LearnkitError"}} <= objects.keys()


def test_every_command_and_option_has_its_place(site):
    import typer

    from learnkit.cli.app import app

    page = (site / "generated" / "commands.html").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():
        assert f'id="learnkit-{name}"' in page
        options = {option for one in command.params for option in one.opts if option[0] == "-"}
        assert {option for option in options if option not in page} == set()


def test_every_notebook_is_a_page_with_its_pictures(site):
    for path in (ROOT / "nbs").glob("*.ipynb"):
        page = (site / "generated" / "nbs" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert page.count('<div class="highlight-python') > 5
    assert "data:image" not in page
    assert "<img" in (site / "generated" / "nbs" / "01_interpretation.html").read_text("utf-8")


class Fetched(HTMLParser):
    """Addresses a page fetches by itself, and those it leads to."""

    def __init__(self):
        super().__init__()
        self.fetched, self.links = [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.fetched += [attrs["src"]] if attrs.get("src") else []
        if attrs.get("href"):
            (self.links if tag == "a" else self.fetched).append(attrs["href"])


def test_nothing_is_fetched_from_elsewhere_and_every_link_leads_to_a_file(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert [url for url in parser.fetched if re.match(r"(https?:)?//", url)] == []
        local = [url for url in parser.links + parser.fetched if not re.match(r"\w+:|#", url)]
        for url in local:
            target = unquote(url.partition("#")[0].partition("?")[0])
            assert (page.parent / target).exists(), f"{page.name} leads to {url}"
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", text), style


def test_code_in_prose_leads_to_the_reference(site):
    page = (site / "from_fastai.html").read_text(encoding="utf-8")
    assert 'href="generated/api/ImageLearner.html#learnkit.ImageLearner.fit_one_cycle"' not in page
    assert 'href="generated/api/cnn_learner.html#learnkit.cnn_learner"' in page
    assert 'href="generated/api/ImageLearner.html#learnkit.ImageLearner.predict"' in page
    assert 'href="generated/commands.html#learnkit-convert"' in page

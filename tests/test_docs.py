"""What README and guides show works as it stands: every block, every command, every link."""

import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import docs_helpers
import matplotlib.pyplot as plt
import pytest
import typer
from docs_helpers import PAGES, PYTHON, ROOT, SHELL, SHOWN, Run, blocks_of, write_factory

from learnkit.cli.app import app
from learnkit.optimize.timing import measure

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN = [block for block in BLOCKS if block.kind in PYTHON | SHELL and block.reason is None]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
COMMANDS = typer.main.get_command(app).commands


@pytest.fixture(scope="session")
def factory(tmp_path_factory):
    """The folder that every page starts with a copy of."""
    folder = tmp_path_factory.mktemp("factory")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_factory(folder)
    return folder


@pytest.fixture
def run(factory, tmp_path, monkeypatch):
    """A page's run, in a copy of the factory."""
    shutil.copytree(factory, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    # no speed is measured here, so none is for long
    monkeypatch.setattr(
        "learnkit.optimize.trials.measure", partial(measure, seconds=0.1, settled=0)
    )
    run = Run()
    yield run
    run.stop()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", sorted({block.page for block in RUN}), ids=str)
def test_every_block_of_a_page_runs(page, run):
    with plt.rc_context({"figure.max_open_warning": 0}):
        for block in RUN:
            if block.page == page:
                run.block(block)
                if page == Path("README.md") and "fast.save(" in block.code:
                    assert_tour(run.names)


def assert_tour(names):
    """What the README's tour says of what it does."""
    assert names["label"] in {"good", "bad", "ugly"}
    assert Path("predictions.csv").read_text(encoding="utf-8").count(".png") == 3
    assert names["model"].continual.classes == ("bad", "good", "ugly", "odd")
    assert names["prediction"].p_value is not None
    assert names["fast"].classes == (*names["model"].continual.classes, "even")
    assert Path("parts-fast/variants/onnxruntime-int8.onnx").exists()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.reason], ids=str)
def test_a_block_that_cannot_run_says_why(block):
    pytest.skip(block.reason)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_of_a_kind_that_is_run_or_only_shown(block):
    assert block.kind in PYTHON | SHELL | SHOWN or block.kind.startswith("{")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", TEXTS[page])
    missing = [target for target in targets if not (ROOT / page.parent / target).exists()]
    assert [target for target in missing if "generated/" not in target] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_named_in_a_sentence_is_there_with_its_options(page):
    for code in re.findall(r"(?<!`)`(learnkit [a-z][^`]*)`(?!`)", TEXTS[page]):
        name, *words = shlex.split(code.replace("\n", " "))[1:]
        known = {option for one in COMMANDS[name].params for option in one.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known, code


def test_every_target_of_make_that_is_named_is_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pages = [*TEXTS.values(), (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")]
    named = {name for text in pages for name in re.findall(r"`make ([a-z-]+)`", text)}
    assert {"docs", "test"} <= named <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


class TestBlocks:
    """The reading of pages itself, on a page of its own."""

    def read(self, monkeypatch, tmp_path, text):
        monkeypatch.setattr(docs_helpers, "ROOT", tmp_path)
        (tmp_path / "page.md").write_text(text, encoding="utf-8")
        return blocks_of("page.md")

    def test_have_their_line_language_and_reason(self, monkeypatch, tmp_path):
        text = "a\n\n```python\n1\n```\n<!-- not run: no printer -->\n````sh\n```\n````\n"
        one, other = self.read(monkeypatch, tmp_path, text)
        assert (one.line, one.kind, one.code, one.reason) == (3, "python", "1\n", None)
        assert (other.line, other.kind, other.code, other.reason) == (
            7,
            "sh",
            "```\n",
            "no printer",
        )

    @pytest.mark.parametrize(
        "block",
        ["```python\n1/0\n```\n", "```sh\nfalse\n```\n", "```sh\nlearnkit undo none\n```\n"],
    )
    def test_that_do_not_run_are_named_by_page_and_line(self, monkeypatch, tmp_path, block):
        (block,) = self.read(monkeypatch, tmp_path, "# A page\n\n" + block)
        with pytest.raises(AssertionError, match=r"the block at page\.md:3 does not run"):
            Run().block(block)

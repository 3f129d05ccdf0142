"""Every notebook runs from top to bottom; its own assertions check what its prose claims."""

import asyncio
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "nbs").glob("*.ipynb"))


@pytest.fixture(scope="module")
def loop():
    """An event loop that is closed; the one behind the synchronous calls of jupyter never is."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def kernel(loop):
    """One process for all notebooks: its imports take longer than many a section."""
    manager = AsyncKernelManager()
    yield manager
    if manager.has_kernel:
        loop.run_until_complete(manager.shutdown_kernel(now=True))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path, loop, kernel):
    notebook = nbformat.read(path, as_version=4)
    clean = f"%reset -f\nimport os\nos.chdir({str(tmp_path)!r})\ndel os"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(clean))
    client = NotebookClient(notebook, km=kernel, timeout=150)
    try:
        loop.run_until_complete(client.async_execute())
    finally:
        client.kc.stop_channels()


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_section_ends_in_an_assertion(path):
    notebook = nbformat.read(path, as_version=4)
    sections, code = [], []
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            sections.append([])
        elif cell.cell_type == "code" and sections:
            sections[-1].append(cell.source)
    code = [section[-1] for section in sections if section]
    assert code
    assert all("assert " in last for last in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_learnkit_is_imported_before_what_it_mends(path):
    notebook = nbformat.read(path, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    found = re.findall(r"^\s*(?:from|import) (learnkit|fastai|timm|torchvision)\b", code, re.M)
    assert found[0] == "learnkit"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_small(path):
    assert path.stat().st_size < 500_000

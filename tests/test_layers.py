"""A lower floor never imports a higher one; nothing under the line imports fastai."""

import ast
from pathlib import Path

import pytest

import learnkit

ROOT = Path(learnkit.__file__).parent
# Lowest first. Everything up to and including "serving" lives under the fastai line.
FLOORS = [
    ("errors", "_torchvision", "_version"),
    ("data",),
    ("models",),
    ("evaluation",),
    ("uncertainty",),
    ("continual",),
    ("deploy",),
    ("serving",),
    ("transforms",),
    ("loaders",),
    ("interpret",),
    ("callback",),
    ("verbs",),
    ("learner",),
    ("all",),
    ("workflow", "console", "arguments"),
    (
        "commands",
        "commands_train",
        "commands_report",
        "demo",
        "demo_images",
        "cli_train",
        "cli_use",
        "cli_deploy",
    ),
    ("halcon", "cli"),
    ("__main__",),
]
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}
LINE = HEIGHT["serving"]
# The one door through the line: called, never imported with the module.
DOORS = {("data/dataset.py", "learnkit.loaders")}

MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def floor_of(path):
    """Return the floor name of a file below `learnkit/`."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_names(path):
    """Yield every absolute module name the file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_floor_imports_a_higher_one(path):
    relative = path.relative_to(ROOT).as_posix()
    for name in imported_names(path):
        if name.startswith("learnkit.") and (relative, name) not in DOORS:
            assert HEIGHT[name.split(".")[1]] <= HEIGHT[floor_of(path)], (
                f"{relative} imports {name}"
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_under_the_line_imports_fastai(path):
    if HEIGHT[floor_of(path)] <= LINE:
        foreign = {name.split(".")[0] for name in imported_names(path)}
        assert not foreign & {"fastai", "fastcore", "fasttransform"}


def test_every_file_has_a_floor():
    assert {floor_of(path) for path in MODULES} <= set(HEIGHT)

"""The front door: light, complete, and without collisions that would surprise a fastai user."""

import ast
import inspect
import pickle
import subprocess
import sys

import numpy
import pytest
from fastai.callback.core import Callback
from fastai.learner import Learner

import learnkit
from learnkit._version import listed, versions
from learnkit.deploy.predictor import load_learner
from learnkit.learner.learner import ImageLearner

CALLBACKS = [
    getattr(learnkit, name)
    for name, module in learnkit.PUBLIC_NAMES.items()
    if module.startswith("learnkit.callback")
]


@pytest.mark.parametrize("name", learnkit.PUBLIC_NAMES)
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(learnkit, name)
    assert value.__doc__ or isinstance(value, dict)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'cnn_leaner'"):
        learnkit.cnn_leaner  # noqa: B018


def test_import_learnkit_loads_neither_torch_nor_pandas():
    heavy = "{'torch', 'pandas', 'numpy', 'fastai', 'timm', 'matplotlib'}"
    code = f"import sys, learnkit; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert run.stdout.strip() == "[]"


def test_star_import_gives_our_names_and_fastais():
    names = {}
    exec("from learnkit.all import *", names)
    assert names["cnn_learner"] is learnkit.cnn_learner
    assert names["load_learner"] is learnkit.load_learner
    assert names["aug_transforms"].__module__.startswith("fastai")
    assert callable(names["accuracy"])


@pytest.mark.parametrize("callback", CALLBACKS, ids=lambda c: c.__name__)
class TestEveryCallback:
    def test_is_a_fastai_callback_whose_name_is_free_on_the_learner(self, callback):
        assert issubclass(callback, Callback)
        name = callback.__name__
        snake = "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
        assert not hasattr(Learner, snake)

    def test_pickles(self, callback, tmp_path):
        made = callback(tmp_path) if callback.__name__ == "Checkpoint" else callback()
        assert isinstance(pickle.loads(pickle.dumps(made)), callback)


def test_a_name_that_needs_torch_says_so_where_there_is_none(monkeypatch):
    def without_torch(name):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.delitem(vars(learnkit), "load_learner", raising=False)
    monkeypatch.setattr(learnkit.importlib, "import_module", without_torch)
    missing = "torch"
    with pytest.raises(ImportError, match=r"learnkit\.load_learner needs torch, .* `load_runtime`"):
        _ = learnkit.load_learner
    missing = "timm"
    with pytest.raises(ModuleNotFoundError, match="No module named 'timm'"):
        _ = learnkit.load_learner


def test_versions_of_what_is_installed_are_told_and_learnkits_first():
    found = versions("numpy", "no-such-package")
    assert list(found) == ["learnkit", "numpy"]
    assert listed(found, "numpy", "no-such-package") == (
        f"learnkit {learnkit.__version__}, numpy {numpy.__version__}, no-such-package unknown"
    )


def test_type_checkers_are_told_of_every_public_name_and_its_home():
    tree = ast.parse(inspect.getsource(learnkit))
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    told = {alias.asname: one.module for one in block.body for alias in one.names}
    assert told == learnkit.PUBLIC_NAMES


def overloads(function):
    """The parameters of a function and those of its overloads, name and default by name."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(function)))
    found = [
        node.args
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__
    ]
    return [
        {
            **{arg.arg: None for arg in args.args},
            **{
                arg.arg: ast.unparse(default) if default else None
                for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
            },
        }
        for args in found
    ]


@pytest.mark.parametrize("function", [load_learner, ImageLearner.predict])
def test_the_first_overload_takes_all_that_the_function_takes(function):
    first, second, real = overloads(function)
    assert first == real
    assert second.keys() <= real.keys()


def test_bars_without_widgets_or_without_batches_are_not_told_of():
    code = (
        "import warnings; warnings.simplefilter('error'); import learnkit, tqdm;"
        "warnings.warn('IProgress not found. Please update jupyter', tqdm.TqdmWarning);"
        "from fastprogress import progress_bar; progress_bar([]).update(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

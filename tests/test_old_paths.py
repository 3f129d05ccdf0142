"""Old module paths lead to the modules in their place, and say so once."""

import importlib
import json
import pickle
import subprocess
import sys

import pytest
from deploy_helpers import make_predictor, strange

from learnkit import MOVED
from learnkit.deploy.pickling import opened_again


def run(code, *flags):
    """What a fresh Python prints."""
    command = [sys.executable, *flags, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_old_path_is_the_new_module_and_warns_once_where_it_is_imported():
    code = f"""
import importlib, json, sys, warnings
found = {{}}
for old, new in {MOVED}.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same = [importlib.import_module(old) is importlib.import_module(new) for _ in range(2)]
    said = [str(w.message) for w in caught if w.category is DeprecationWarning and old in str(w)]
    found[old] = [same, said, old in sys.modules]
print(json.dumps(found))
"""
    found = json.loads(run(code))
    for old, new in MOVED.items():
        said = f"{old} is now {new}; the old path goes with the next version"
        assert found[old] == [[True, True], [said], True]


def test_names_of_old_modules_can_be_imported():
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from learnkit.demo import write_digits
    import learnkit.deploy.backends.devices
    from learnkit.deploy.conversion import gates
    import learnkit.deploy.runtime.predictor as old
    import learnkit.deploy.runtime.predictor as again
caught = [w for w in caught if "is now" in str(w.message)]
assert {w.filename for w in caught} == {"<string>"}, caught
import learnkit
assert learnkit.deploy.backends.devices.devices is learnkit.devices
assert gates.Gates is learnkit.Gates and old.load_runtime is again.load_runtime
print(len(caught), write_digits.__module__)
"""
    assert run(code) == "4 learnkit.cli.demo"


def test_what_is_nowhere_stays_nowhere():
    for name in ("learnkit.nowhere", "learnkit.deploy.runtime.nowhere"):
        with pytest.raises(ModuleNotFoundError, match=name.rsplit(".", 1)[1]):
            importlib.import_module(name)


def test_names_that_were_modules_and_are_packages_do_not_warn():
    code = """
from learnkit.cli import main
from learnkit.learner import ImageLearner, cnn_learner
import learnkit
assert (ImageLearner, cnn_learner) == (learnkit.ImageLearner, learnkit.cnn_learner)
print(main.__module__)
"""
    assert run(code, "-W", "error::DeprecationWarning:__main__") == "learnkit.cli.app"
    with pytest.raises(ImportError, match="cannot import name 'mian'"):
        exec("from learnkit.cli import mian")


class Pickled:
    """What predictors were in pickles: a function by its name, and what it is called with."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return opened_again, self.arguments


def test_pickles_of_predictors_made_before_the_moves_open(tmp_path):
    predictor = make_predictor()
    digest = predictor.save(tmp_path / "model")
    data = pickle.dumps(Pickled(str(tmp_path / "model"), digest, None, None, "cpu", True), 2)
    old = data.replace(b"clearnkit.deploy.pickling\n", b"clearnkit.deploy.by_path\n")
    assert b"clearnkit.deploy.by_path\nopened_again\n" in old
    sys.modules.pop("learnkit.deploy.by_path", None)
    with pytest.warns(DeprecationWarning, match="by_path is now"):
        opened = pickle.loads(old)
    (image,) = strange(1)
    assert opened.predict(image).probs.tolist() == predictor.predict(image).probs.tolist()


def test_looking_for_old_paths_is_cheap():
    code = "import sys, learnkit; print([n for n in sys.modules if n.startswith('learnkit')])"
    assert run(code) == "['learnkit._version', 'learnkit']"

"""Old module paths, as documentation and pickles may name them: each warns, for one version.

A path that is found nowhere else leads to the module that is in its place now.
"""

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "learnkit.callback.guard": "learnkit.callback.stop_on_non_finite",
    "learnkit.demo": "learnkit.cli.demo",
    "learnkit.deploy.backends.devices": "learnkit.backends.devices",
    "learnkit.deploy.bulk": "learnkit.inference.batch",
    "learnkit.deploy.by_path": "learnkit.deploy.pickling",
    "learnkit.deploy.conversion.gates": "learnkit.optimize.gates",
    "learnkit.deploy.conversion.report": "learnkit.optimize.conversion_report",
    "learnkit.deploy.loading": "learnkit.deploy.predictor",
    "learnkit.deploy.prediction": "learnkit.inference.prediction",
    "learnkit.deploy.runtime.predictor": "learnkit.deploy.runtime_predictor",
    "learnkit.loaders": "learnkit.learner.dataloaders",
    "learnkit.transforms": "learnkit.learner.transforms",
}
_FOLDERS = {"learnkit.deploy.backends", "learnkit.deploy.conversion", "learnkit.deploy.runtime"}


class OldPaths:
    """The finder and loader of old module paths."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """How to import `name`, if it is an old path or a folder on the way to one."""
        if name in MOVED or name in _FOLDERS:
            return ModuleSpec(name, self, is_package=name in _FOLDERS)
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """None, for a plain new module."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of the one of old, with a warning."""
        name = module.__name__
        if name in MOVED:
            said = f"{name} is now {MOVED[name]}; the old path goes with the next version"
            warnings.warn(said, DeprecationWarning, stacklevel=2)
            # The import system hands out what it finds here afterwards: one module, not a copy.
            sys.modules[name] = importlib.import_module(MOVED[name])


def find_old_paths() -> None:
    """Let the import system ask for old paths, after everybody else."""
    if not any(isinstance(finder, OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(OldPaths())

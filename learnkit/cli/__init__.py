"""The command line: `learnkit demo`, `train`, `extend`, `evaluate`, `predict`, `report`, ..."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "main":
        raise AttributeError(f"module 'learnkit.cli' has no attribute {name!r}")
    return importlib.import_module("learnkit.cli.app").main

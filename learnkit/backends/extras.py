"""Packages that only some installations have: imported when needed, or named with a pip line."""

import importlib
from types import ModuleType

from learnkit.errors import MissingExtraError

_EXTRAS = {"openvino": "openvino"}  # all others come with "onnx"
_ALONE = {"huggingface_hub"}  # or are installed by their own name


def extra(name: str) -> ModuleType:
    """The package called `name`, imported.

    Raises:
        MissingExtraError: it is not installed, or cannot be imported; the message has the pip line.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        wanted = f'"learnkit[{_EXTRAS.get(package, "onnx")}]"'
        raise MissingExtraError(
            f"{package} cannot be imported ({error}); install it with: "
            f"pip install {package if package in _ALONE else wanted}",
            name=package,
        ) from error

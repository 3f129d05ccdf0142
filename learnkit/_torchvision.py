"""Make `import torchvision` work beside a CPU-only torch.

The registry's torchvision is built against a CUDA torch. Beside a CPU build its compiled library
cannot be loaded, and torchvision then fails at import because it registers meta functions for
operators (`nms`, `qnms`, ...) that nobody has declared. Declaring their schemas is enough: nothing
here calls them. When the compiled library loads, nothing is touched.

Importing this module is the fix; whatever of ours needs torchvision, fastai or timm imports it
first.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _compiled_library_loads() -> bool:
    """True if torchvision's compiled operators can be loaded beside the torch installed here."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # not installed: nothing to mend, the import will say so by itself
    libraries = [p for p in Path(spec.origin).parent.glob("_C*") if p.suffix in {".so", ".pyd"}]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return bool(libraries)


def _declare_missing_operators() -> "torch.library.Library":
    """Return the library holding the schemas it declared; it must stay referenced to stay alive."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    return library


_LIBRARY = None if _compiled_library_loads() else _declare_missing_operators()

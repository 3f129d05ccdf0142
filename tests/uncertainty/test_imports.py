"""The room needs numpy alone: processes that only predict have neither torch nor scipy."""

import subprocess
import sys
from pathlib import Path

import learnkit.uncertainty


def test_no_module_imports_torch_or_scipy():
    names = sorted(path.stem for path in Path(learnkit.uncertainty.__file__).parent.glob("*.py"))
    imports = "; ".join(f"import learnkit.uncertainty.{name}" for name in names)
    code = (
        f"import sys; {imports}; print(sorted({{'torch', 'scipy', 'pandas'}} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

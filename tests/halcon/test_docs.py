"""The table of operators names all there are, and nothing else."""

import re
from pathlib import Path

import learnkit.halcon as ha
from learnkit.halcon.operators import CALLABLES

TABLE = Path(__file__).parents[2] / "docs" / "from_halcon.md"


def test_the_table_names_every_operator_once():
    rows = re.findall(r"^\| (`[^|]+) \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(set(named))
    assert set(named) == {*CALLABLES, "as_python_dict_s", "from_python_dict"}
    assert all(hasattr(ha, name) for name in named)

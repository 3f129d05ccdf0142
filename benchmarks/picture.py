"""docs/optimize.png: how fast the variants of one network are, from results/optimize.csv.

Run: python benchmarks/picture.py [NETWORK]
"""

import sys
from pathlib import Path

import matplotlib
import pandas as pd

from learnkit.optimize.conversion_report import plot_speeds
from learnkit.optimize.quality import Speed

HERE = Path(__file__).parent
EAGER = "eager torch"


def speeds_in(table: pd.DataFrame) -> list[Speed]:
    """A bar per variant and batch size, the slowest first; eager torch on top."""
    table = table[table["agreement"].notna()]
    eager = {int(b): float(rows["eager_ms"].iloc[0]) for b, rows in table.groupby("batch")}
    found = [Speed(EAGER, eager, dict.fromkeys(eager, 1.0))]
    ranked = table.groupby("variant")["times_as_fast"].prod().sort_values().index
    for name in ranked:
        rows = table[table["variant"] == name].set_index("batch")
        verdict = rows["verdict"].iloc[0]
        found.append(
            Speed(
                name,
                rows["median_ms"].to_dict(),
                rows["times_as_fast"].to_dict(),
                agreement=rows["agreement"].iloc[0],
                outcome="passed" if verdict == "passes" else "refused",
                is_chosen=name.endswith("int8"),
            )
        )
    return found


def main() -> None:
    """Draw and save."""
    matplotlib.use("Agg")
    network = sys.argv[1] if len(sys.argv) > 1 else "mobilenetv2_100"
    table = pd.read_csv(HERE / "results" / "optimize.csv", comment="#")
    rows = table[table["network"] == network]
    title = f"{network}, {rows['weights'].iloc[0]} weights, 224 pixels, two threads"
    path = HERE.parent / "docs" / "optimize.png"
    plot_speeds(speeds_in(rows), title).figure.savefig(path, dpi=100)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

"""What the package promises of thresholds, confidences and new classes, on fresh images.

Each `_promises_*.py` beside this file holds one kind and yields rows of paired draws: the
same draw is the same images in every case. The features are those of a network, extracted once; see
`_features.py` for the file. Those kept are of images of 224 pixels (ants and bees) and 112 (the
others); `pcb` are squares around the boxes of `deeppcb_small`, of 1.5 times the longer side and
32 pixels at least.

Run: python benchmarks/promises.py ants=ants.npz cifar=cifar.npz pcb=pcb.npz
"""

import importlib
import warnings
from argparse import ArgumentParser
from pathlib import Path

import pandas as pd
import torch
from _bench import write_csv
from _features import Split, load

TOPICS = sorted(path.stem[10:] for path in Path(__file__).parent.glob("_promises_*.py"))


def main() -> None:
    """Measure, print the means over the draws, write the CSV."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+", help="name=FILE.npz")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--topics", nargs="+", default=TOPICS, choices=TOPICS)
    parser.add_argument("--out", default="promises", help="name of the CSV among the results")
    options = parser.parse_args()
    features = {}
    for given in options.data:
        name, _, path = given.partition("=")
        features[name] = _read(Path(path))
    warnings.simplefilter("ignore")  # what a change warns of is no part of the numbers
    for topic in options.topics:
        rows = list(importlib.import_module(f"_promises_{topic}").rows(features, options.draws))
        if not rows:
            print(f"\n{topic}: needs more than these features, see _promises_{topic}.py")
            continue
        _show(topic, rows)
        write_csv(f"{options.out}_{topic}", rows)


def _read(path: Path) -> dict[str, Split]:
    """The two splits of a file of features."""
    parser = ArgumentParser()
    parser.add_argument("--features", type=Path)
    return load(parser.parse_args(["--features", str(path)]))


def _show(topic: str, rows: list[dict]) -> None:
    """Print the mean over the draws of every case and measure."""
    table = pd.DataFrame(rows).pivot_table(
        index=["promise", "data", "case"], columns="metric", values="value", sort=False
    )
    print(f"\n{topic}, means of {len({row['draw'] for row in rows})} draws")
    print(table.round(3).to_string(na_rep=""), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

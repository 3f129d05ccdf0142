"""What every benchmark shares: interleaved timing, and a CSV that says what it was measured on.

A benchmark first asserts that its candidates compute the same thing, then calls
`interleaved_times`, prints `report(...)` and saves its rows with `write_csv`. Run it as
`python benchmarks/<name>.py`.
"""

import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path

import learnkit._torchvision  # noqa: F401  # before a benchmark imports timm or fastai

import torch

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("learnkit", "torch", "torchvision", "timm", "fastai", "numpy", "pillow")


def interleaved_times(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 15,
    warmup: int = 2,
    settle: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` per candidate; one call of each per round.

    Rounds, not blocks, so that a slow minute of the machine meets every candidate alike; each round
    starts with another candidate, so that none always runs on the other's warm caches. A candidate
    whose threads must find out that the last one's are done is called `settle` times before.
    """
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(warmup + repeats):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            for _ in range(settle):
                candidates[name]()
            start = clock()
            candidates[name]()
            elapsed = clock() - start
            if round_ >= warmup:
                times[name].append(elapsed)
    return times


def median(times: Mapping[str, list[float]], name: str) -> float:
    """Median seconds of one candidate."""
    return statistics.median(times[name])


def ratio(times: Mapping[str, list[float]], name: str, reference: str) -> float:
    """Median over the rounds of time(name) / time(reference); below 1 = `name` is faster."""
    return statistics.median(a / b for a, b in zip(times[name], times[reference], strict=True))


def spread(times: Mapping[str, list[float]], name: str) -> float:
    """Interquartile range of one candidate's times as a share of its median; 0 for a single one."""
    if len(times[name]) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times[name], n=4)
    return (high - low) / median(times, name)


def timing_row(
    times: Mapping[str, list[float]], name: str, reference: str, **about: object
) -> dict[str, object]:
    """One CSV row: what was timed (`about`), medians in milliseconds, spread and ratio."""
    return {
        **about,
        "candidate": name,
        "reference": reference,
        "median_ms": round(1e3 * median(times, name), 3),
        "reference_median_ms": round(1e3 * median(times, reference), 3),
        "ratio": round(ratio(times, name, reference), 3),
        "spread": round(spread(times, name), 3),
        "rounds": len(times[name]),
    }


def environment(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of Python and packages, system, CPU model, cores and torch threads."""
    versions = {name: _version(name) for name in (*_PACKAGES, *packages)}
    return {
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
    }


def write_csv(name: str, rows: list[dict[str, object]], *, packages: Iterable[str] = ()) -> Path:
    """Write `results/<name>.csv` and return its path.

    The environment stands in `# key: value` lines above the table:
    `pandas.read_csv(path, comment="#")` reads the rest.
    """
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in environment(packages).items())
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def promise_row(
    promise: str, data: str, case: str, metric: str, value: float, draw: int
) -> dict[str, object]:
    """A row of `promises.py`: one measure of one case in one draw."""
    keys = "promise", "data", "case", "metric", "value", "draw"
    return dict(zip(keys, (promise, data, case, metric, float(value), draw), strict=True))


def report(rows: list[dict[str, object]]) -> str:
    """The rows as an aligned text table."""
    cells = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def _version(package: str) -> str | None:
    """Installed version of a package, None if it is absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """Marketing name of the processor where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

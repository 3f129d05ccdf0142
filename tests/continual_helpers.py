"""Features of classes drawn around centres, the statistics of them, and how often to try."""

import torch
from hypothesis import HealthCheck, settings

from learnkit.continual.embedding import to_grid
from learnkit.continual.statistics import ClassStatistics
from learnkit.uncertainty.scoring import GRID, unit_rows


def draw(counts, *, width=12, seed=0, noise=0.7, center_seed=0):
    """Features (N, D) and labels: `counts[name]` of each class around a centre of its own."""
    generator = torch.Generator().manual_seed(center_seed)
    centers = {name: torch.randn(width, generator=generator) + 1 for name in sorted(counts)}
    generator.manual_seed(100 + seed)
    labels = [name for name, n in counts.items() for _ in range(n)]
    spread = noise * torch.randn(len(labels), width, generator=generator)
    return (torch.stack([centers[label] for label in labels]) + spread).double(), labels


def bursts(counts, *, width=128, versions=3, seed=0, apart=0.1):
    """Features (N, D) and labels of photographs taken several times, version after version."""
    features, labels = draw(counts, width=width, seed=seed)
    generator = torch.Generator().manual_seed(200 + seed)
    noise = apart * torch.randn(versions - 1, *features.shape, generator=generator).double()
    return torch.cat([features, *(features + noise)]), labels * versions


def keep_every_row(monkeypatch):
    """Take no rows for near copies: among a few features of few dimensions chance makes some."""
    nearest = "learnkit.continual.closed_form.near_copies._copy_distance"
    monkeypatch.setattr(nearest, lambda *_: 0.0)


def gather(features, labels, *, memory_size=64):
    """The statistics of these features, without the square root."""
    empty = ClassStatistics.empty(features.shape[1], root=False, memory_size=memory_size)
    return empty.update(features, labels)


def embedded(features, *, root=False):
    """The features as statistics and scores take them, float64 (N, D)."""
    return torch.from_numpy(unit_rows(features, root=root))


def on_grid(features):
    """What the statistics hold of each feature: embedded and rounded."""
    return to_grid(embedded(features)) / GRID


def examples(n):
    """Settings of a property tried on `n` examples, the same ones every time."""
    slow_is_fine = {"deadline": None, "suppress_health_check": list(HealthCheck)}
    return settings(max_examples=n, derandomize=True, **slow_is_fine)

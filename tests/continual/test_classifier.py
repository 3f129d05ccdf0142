"""The continual classifier: what it learns, in whatever order, and what it says of strangers."""

import torch

from learnkit.continual.classifier import ContinualClassifier

NAMES = "abcde"


def images(n, seed=0, d=64, n_classes=5):
    centers = torch.rand(n_classes, d, generator=torch.Generator().manual_seed(99)) * 1.5
    noise = torch.randn(n_classes, n, d, generator=torch.Generator().manual_seed(seed)) * 0.5
    features = (centers[:, None] + noise).clamp_min(0).flatten(0, 1)
    return features, [name for name in NAMES[:n_classes] for _ in range(n)]


def test_what_is_learned_is_told_apart():
    head = ContinualClassifier(64, root=True)
    head.extend(*images(20))
    features, labels = images(50, seed=1)
    told = [head.classes[i] for i in head(features).argmax(1).tolist()]
    assert sum(a == b for a, b in zip(told, labels, strict=True)) >= 0.97 * len(labels)

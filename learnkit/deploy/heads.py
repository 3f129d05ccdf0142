"""Heads that keep class statistics: how to find one, and what to say where there is none."""

from typing import Any

from torch import nn

from learnkit.errors import ContinualNotInitializedError


def continual_head(model: nn.Module) -> Any:
    """The head of `Sequential(body, ContinualClassifier)`, None for any other model."""
    is_pair = isinstance(model, nn.Sequential) and len(model) == 2
    return model[1] if is_pair and hasattr(model[1], "ood_scores") else None


def check_continual(head: Any) -> Any:
    """`head`, unless it is None: then the error says how to get one."""
    if head is None:
        raise ContinualNotInitializedError(
            "this model is not in the continual state: it keeps no class statistics that could "
            "grow, and cannot tell unusual images. Call learn.init_continual(data) before "
            "learn.export(...), and load that"
        )
    return head

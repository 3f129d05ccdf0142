"""Pickles of predictors written by learnkit 0.1 before its files moved: they name this function."""

from __future__ import annotations

from typing import Any

__all__ = ["opened_again"]  # what they call


def opened_again(
    path: str,
    digest: str,
    variant: str | None,
    threads: int | None,
    device: str,
    needs_torch: bool,
) -> Any:
    """The predictor of a pickle, from its bundle.

    Raises:
        BundleError: the bundle is gone, or another one by now.
    """
    if needs_torch:
        from learnkit.deploy.predictor import opened_learner

        return opened_learner(path, digest, variant, threads, device)
    from learnkit.deploy.runtime_predictor import opened_runtime

    return opened_runtime(path, digest, variant, threads, device)

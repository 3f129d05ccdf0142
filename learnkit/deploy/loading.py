"""From a bundle on disk to a Predictor that may be trusted to be what was exported."""

import os
from pathlib import Path
from typing import Any

import torch

from learnkit.bundle.read import read_bundle
from learnkit.bundle.variant import FLOAT32, warn_behind
from learnkit.bundle.variants.read_variant import load_variant, which_variant
from learnkit.deploy.fastai_export import load_pickle, pickle_at
from learnkit.deploy.pickling import home_of
from learnkit.deploy.predictor import Predictor


def load_learner(
    path: str | os.PathLike,
    *,
    sha256: str | None = None,
    device: str | torch.device = "cpu",
    allow_pickle: bool = False,
    variant: str | None = None,
    threads: int | None = None,
) -> Any:
    """The `Predictor` in the bundle at `path`, checked before use: hashes, tensors, probe images.

    Args:
        path: folder written by `learn.export` or `Predictor.save`.
        sha256: what `save` returned (`Predictor.digest`): nothing else is accepted.
        device: where the network runs.
        allow_pickle: also open fastai's `export.pkl`. That RUNS whatever code its author put in;
            fastai is imported, and its Learner is returned.
        variant: what of the bundle to run, such as "onnxruntime-int8", or "float32" for the weights
            as they were trained; default what it was saved from. Each knows what it has learned
            itself: a warning says if another one beside it has learned since.
        threads: processor threads one prediction of an optimised variant may use; default all this
            process may use.

    Raises:
        BundleNotFoundError: no bundle there.
        BundleCorruptError: damaged, altered, or not the one pinned by `sha256`.
        BundleVersionError: written in a format newer than this learnkit reads.
        BundleProbeError: the network does not give the recorded logits here.
        BundleError: a pickle, and `allow_pickle` is not set; or no such variant.
        MissingExtraError: the variant's backend is not installed; the message has the pip line.
    """
    if pickle_file := pickle_at(Path(path)):
        return load_pickle(pickle_file, sha256, device, allow_pickle)
    opened = which_variant(path, variant, sha256)
    warn_behind(path, opened.section, opened.name)
    if opened.name != FLOAT32:
        return load_variant(path, opened, device=str(device), threads=threads)
    bundle = read_bundle(path, sha256=sha256)
    contents = bundle.contents
    predictor = Predictor(
        bundle.model,
        contents.preprocessing,
        contents.classes,
        multi_label=contents.multi_label,
        threshold=contents.threshold,
        device=device,
        metadata=contents.metadata,
        owns_model=True,
        detector=bundle.detector,
    )
    bundle.check_probes(predictor)
    predictor.digest, predictor.probes = bundle.digest, bundle.probes.images
    predictor.measured = predictor.continual and predictor.continual.statistics
    predictor._home = home_of(predictor, path, bundle.digest)
    predictor._companions = bundle.companions
    return predictor

"""A bundle's files as a network and all that belongs to it, without trusting any of them.

Reading is strict both ways: names, shapes, types, finiteness; then the probe images must give the
recorded logits.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from learnkit.deploy.files import MANIFEST, Folder, read_folder
from learnkit.deploy.formats import parse_tensors
from learnkit.deploy.heads import STATE, read_head
from learnkit.deploy.probes import PROBE, comparable, read_probes
from learnkit.deploy.rebuild import rebuild
from learnkit.deploy.schema import CONFIG, Contents, check_schema
from learnkit.deploy.timm_layout import from_files
from learnkit.deploy.versions import listed, versions
from learnkit.errors import BundleCorruptError, BundleError, BundleProbeError, LearnkitError
from learnkit.models.spec import ModelSpec


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds, read and checked; `check_probes` is left to whoever runs the model."""

    contents: Contents
    model: nn.Module
    probes: Tensor
    probe_logits: Tensor
    tolerance: float
    digest: str

    def check_probes(self, logits: Callable[[Tensor], Tensor]) -> None:
        """Raise BundleProbeError unless `logits(probes)` are those recorded at export."""
        try:
            found = comparable(logits(self.probes))
            difference = (found - self.probe_logits).abs().max().item()
        except (RuntimeError, LearnkitError) as error:
            raise BundleProbeError(f"the network does not run here: {error}") from error
        if not difference <= self.tolerance:  # so written that NaN fails
            raise BundleProbeError(
                f"the network gives other logits here than where it was exported: they differ by "
                f"{difference:.3g}, {self.tolerance:.3g} is allowed. Exported with "
                f"{listed(self.contents.versions)}; here {listed(versions())}: install those "
                "versions, or export the model again with these"
            )


def read_bundle(path: str | os.PathLike, *, sha256: str | None = None) -> Bundle:
    """The bundle at `path`: its files, names, shapes, types and values are checked.

    Raises:
        BundleNotFoundError: there is none.
        BundleCorruptError: damaged, altered, or not the one pinned by `sha256`.
        BundleVersionError: written in a format newer than this learnkit reads.
        BundleError: the versions of torch and timm here cannot build the network.
    """
    folder = read_folder(path, sha256=sha256)
    check_schema(folder.manifest, MANIFEST)
    contents = Contents.from_bytes(_file(folder, CONFIG))
    probe = parse_tensors(_file(folder, PROBE), PROBE)
    probe = read_probes(probe, contents.preprocessing, len(contents.classes))
    files = {name: parse_tensors(_file(folder, name), name) for name in contents.layout}
    model = _model(contents.spec, from_files(files, contents.layout))
    if contents.continual is not None:
        tensors = parse_tensors(_file(folder, STATE), STATE)
        width, classes = model[0].n_features, contents.classes
        model.append(read_head(contents.continual, tensors, contents.spec, width, classes))
    return Bundle(contents, model, *probe, folder.digest)


def _file(folder: Folder, name: str) -> bytes:
    if name not in folder.files:
        raise BundleCorruptError(f"{MANIFEST} does not list {name}")
    return folder.files[name]


def _model(spec: ModelSpec, state: Mapping[str, Tensor]) -> nn.Module:
    try:
        return rebuild(spec, state)
    except BundleCorruptError:
        raise
    except Exception as error:  # the libraries raise nearly anything for arguments they do not take
        raise BundleError(
            f"{spec.source}:{spec.arch} cannot be built here ({listed(versions())}): {error}"
        ) from error

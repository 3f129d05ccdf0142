"""How a predictor becomes a bundle, and what of the bundle it came from goes along."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from learnkit.bundle.write import bundle_files, write_bundle
from learnkit.deploy.pickling import Home, home_of

if TYPE_CHECKING:
    from torch import Tensor

    from learnkit.bundle.siblings import BaseFiles, Companions
    from learnkit.continual.classifier import ContinualClassifier


class Saving:
    """What `Predictor` can do about keeping itself."""

    continual: ContinualClassifier | None
    metadata: dict[str, Any]
    measured: Any
    probes: Tensor | None
    _home: Home | None
    _companions: Companions | None = None

    def save(
        self,
        path: str | os.PathLike,
        *,
        card: Mapping[str, Any] | None = None,
        probes: Tensor | None = None,
        variants: bool = True,
    ) -> str:
        """SHA-256 (hex) that pins the bundle written to `path`; see `load_learner(sha256=)`.

        Variants in the bundle this predictor was loaded from go along byte for byte if its weights
        and all it knows are as they were then. If not (it has learned, was renamed, a threshold was
        set), they are of a model that is no more: they are left out, with a warning. The new bundle
        opens as float32.

        Args:
            path: absent, an empty folder or an earlier bundle, which is replaced as a whole.
            card: for the model card; default the one this predictor was loaded with.
            probes: a few preprocessed images uint8 (n, channels, H, W) that travel with the bundle:
                at load their logits must come out again. Default those it was loaded with, or
                noise.
            variants: False leaves variants out, without a warning.

        Raises:
            ExportError: the network or the card cannot travel as data, or a weight is not finite.
            BundleWriteError: the folder could not be written; what stood there still does.
        """
        from learnkit.bundle.siblings import companions_in
        from learnkit.bundle.variants.write_variant import finished

        base, as_written = self._as_files(card=card, probes=probes), home_of(self, path, "")
        files = base.read(variants=variants)
        if self._companions is not None:
            files = finished(files, base.learned)
        digest = write_bundle(path, files)
        self._home = as_written._replace(digest=digest)
        self._companions = companions_in(path, files)
        return digest

    def _as_files(
        self, *, card: Mapping[str, Any] | None = None, probes: Tensor | None = None
    ) -> BaseFiles:
        """What `save` writes; variants stay where they are until then.

        Raises:
            ExportError: see `save`.
        """
        from learnkit.bundle.siblings import with_companions

        card = self._own_card() if card is None else card
        probes = self.probes if probes is None else probes
        return with_companions(bundle_files(self, card=card, probes=probes), self._companions)

    def _own_card(self) -> dict[str, Any]:
        """The card it was loaded with, without what was measured on another state of knowledge."""
        card = dict(self.metadata.get("card", {}))
        if self.continual is not None and self.continual.statistics is not self.measured:
            card = {k: v for k, v in card.items() if k not in {"measures", "per_class"}}
        return card

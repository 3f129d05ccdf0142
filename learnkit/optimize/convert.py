"""From a live network to what a backend runs: exported once, then converted."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from learnkit.backends.conversion import Converted
from learnkit.backends.extras import extra
from learnkit.backends.openvino_session import openvino_files
from learnkit.backends.registry import BACKENDS, check_backend
from learnkit.backends.torch_session import channels_last
from learnkit.inference.prediction import logits_of
from learnkit.optimize.quantize.sensitivity import Criterion, Tolerance
from learnkit.report.progress import counted

if TYPE_CHECKING:
    from learnkit.inference.model import Model
    from learnkit.optimize.quantize.sensitivity import Quantized
    from learnkit.optimize.samples import Pictures


QUANTIZING = ("target", "max_error", "keep")  # what `optimize` passes on for int8


class Converter:
    """Converts one model's network, which it leaves as it is.

    Args:
        source: in float32.
        samples: what int8 takes its ranges from.
        progress: show progress bars.
    """

    def __init__(self, source: Model, samples: Pictures | None, *, progress: bool):
        self.source, self.samples, self.progress = source, samples, progress
        self._made: dict[Tolerance, Quantized] = {}

    @cached_property
    def model(self) -> nn.Module:
        """A copy of the network as it is now, in eval mode on the CPU."""
        return copy.deepcopy(self.source.network.model).cpu().eval().requires_grad_(False)

    @cached_property
    def onnx(self) -> bytes:
        """The network as an ONNX file in float32."""
        from learnkit.backends.onnx_export import export_onnx

        recipe, is_open = self.source.preprocessing, self.source.head is not None
        with counted("export to ONNX", 1, self.progress, "networks") as update:
            data = export_onnx(self.model, recipe, continual=is_open)
            update(1)
        return data

    def convert(
        self, backend: str, precision: str, params: Mapping[str, Any], *, device: str = "cpu"
    ) -> Converted:
        """The network for one backend in one precision.

        Raises:
            BackendUnavailableError: that is impossible here.
            ExportError: the network has operators that ONNX has not.
            MissingExtraError: a package is not installed.
        """
        known = BACKENDS[backend].parameters if backend in BACKENDS else {}
        own = {**known, **{name: value for name, value in params.items() if name in known}}
        check_backend(backend, precision, device, own)
        for package in BACKENDS[backend].packages:
            extra(package)
        if backend == "torch":
            is_open = self.source.head is not None
            return Converted(backend, precision, own, model=self.model, continual=is_open)
        if precision == "int8":
            files, notes = self._quantized(backend, params)
        else:
            files, notes = {"onnx": self._onnx(backend, precision)}, ()
        return Converted(backend, precision, own, self._labelled(files, precision), notes=notes)

    def _onnx(self, backend: str, precision: str) -> bytes:
        if precision == "float16":
            from learnkit.backends.onnx_file import stored_float16

            return stored_float16(self.onnx)
        return self.onnx

    def _quantized(
        self, backend: str, params: Mapping[str, Any]
    ) -> tuple[dict[str, bytes], tuple[str, ...]]:
        """The network in 8 bits, and what is to be said of it."""
        settings = {name: params[name] for name in QUANTIZING if name in params}
        if settings.get("keep") is not None:
            # hashable, as the limits are the key of what was made
            settings["keep"] = tuple(settings["keep"])
        found = self._int8(Tolerance(**settings, criterion=self._criterion))
        if backend != "openvino":
            return {"onnx": found.onnx}, _notes(found)
        return openvino_files(found.onnx), _notes(found)

    def _int8(self, limits: Tolerance) -> Quantized:
        """The network in 8 bits; made once for all backends."""
        from learnkit.optimize.quantize.quantize import quantize_onnx

        if limits not in self._made:
            self._made[limits] = quantize_onnx(
                self.onnx, self._images, limits, progress=self.progress
            )
        return self._made[limits]

    @cached_property
    def _images(self) -> np.ndarray:
        """The samples as networks take them, uint8 (n, H, W, C)."""
        assert self.samples is not None
        return self.samples.pixels.permute(0, 2, 3, 1).contiguous().numpy()

    # cached: it is a part of that key, too, and a new function would be another key
    @cached_property
    def _criterion(self) -> Criterion | None:
        """Share of the samples used that keep their label; None for a head learned again."""
        # Under a head that is learned again from what the converted network gives, labels of
        # samples left out in turn, under heads learned from the samples alone, are no measure: with
        # 20 images a class of two classes all of them stayed in a network that kept 98.0 % of test
        # labels, and in ten classes 89 to 95 % of them stayed whatever was left in float32, while
        # of test labels it was 93 to 98 %. The error of the features tells more.
        if self.source.head is not None:
            return None
        from learnkit.optimize.quantize.ranges import spread

        batches = self.samples.pixels.split(16)
        labels = torch.cat([logits_of(self.source, channels_last(one)) for one in batches])
        kind = (lambda x: x > 0) if self.source.multi_label else (lambda x: x.argmax(1))
        was = kind(labels.numpy())
        return lambda _, logits: float((kind(logits) == was[spread(len(was), len(logits))]).mean())

    def _labelled(self, files: Mapping[str, bytes], precision: str) -> dict[str, bytes]:
        """The files, the ONNX one with class names and precision: quantising drops metadata."""
        if "onnx" not in files:
            return dict(files)
        from learnkit._version import __version__
        from learnkit.backends.onnx_file import write_metadata

        about = {
            "learnkit": __version__,
            "classes": list(self.source.classes),
            "preprocessing": self.source.preprocessing.to_dict(),
            "precision": precision,
        }
        return {**files, "onnx": write_metadata(files["onnx"], about)}


def _notes(found: Any) -> tuple[str, ...]:
    """What was said of a quantised network, and the layers left in float32 by name."""
    kept = (f"in float32: {', '.join(found.kept)}",) if found.kept else ()
    return (*found.notes, *kept)

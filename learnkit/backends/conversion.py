"""A converted network: what a backend runs in one precision, and the way to a session of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from learnkit.backends.registry import open_session, variant_name

if TYPE_CHECKING:
    from torch import nn

    from learnkit.backends.session import Session
    from learnkit.data.preprocess import Preprocessing


@dataclass(frozen=True, eq=False)
class Converted:
    """A network for one backend in one precision.

    Attributes:
        backend: what runs it.
        precision: of its numbers.
        params: settings of the backend.
        files: by ending; none for torch.
        model: the float32 network, for torch only, which casts it.
        continual: whether the head lives outside.
        notes: what a person should know about how it came.
    """

    backend: str
    precision: str
    params: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    model: nn.Module | None = field(default=None, repr=False)
    continual: bool = False
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the variant."""
        return variant_name(self.backend, self.precision)

    @property
    def n_bytes(self) -> int:
        """What its files take on disk."""
        return sum(map(len, self.files.values()))

    def open(
        self, recipe: Preprocessing, *, threads: int | None = None, device: str = "cpu"
    ) -> Session:
        """A session of it, ready to run.

        Raises:
            BackendUnavailableError: it cannot run here.
            BundleCorruptError: its files are damaged or refused.
        """
        given = {"threads": threads, "device": device, **self.params}
        if self.model is None:
            return open_session(self.backend, self.precision, self.files, **given)
        from learnkit.backends.torch_session import TorchSession

        return TorchSession(self.model, self.precision, recipe, continual=self.continual, **given)

"""Weights from files: read without executing anything, checked both ways before they are used."""

import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from learnkit.errors import WeightsError, WeightsUnavailableError

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Wanted:
    """Which weights are asked for: none, the published ones (`tag` says which), or a file's."""

    hub: bool = False
    tag: Any = None
    file: Path | None = None

    @property
    def pretrained(self) -> bool:
        """True if the network will not be random."""
        return self.hub or self.file is not None


def wanted_weights(pretrained: Any, weights: Any = None) -> Wanted:
    """Return what `pretrained` and `weights` ask for together; `weights`, when given, decides.

    Raises:
        WeightsError: `pretrained` is neither a bool nor a path, or the two contradict each other.
    """
    if not isinstance(pretrained, bool | str | Path | None):
        raise WeightsError(
            f"`pretrained`={pretrained!r}: expected True, False or the path of a file"
        )
    if weights is not None and not isinstance(pretrained, bool | None):
        raise WeightsError(f"`pretrained`={str(pretrained)!r} and `weights`={weights!r}: give one")
    if weights is not None and pretrained is False:
        raise WeightsError(f"`weights`={weights!r} with `pretrained=False`: leave one of them out")
    if isinstance(pretrained, str | Path):
        return Wanted(file=Path(pretrained).expanduser())
    # No tag of timm's and no name of torchvision's weights looks like a file.
    if isinstance(weights, str) and (weights.endswith(_SUFFIXES) or {*weights} & {"/", "\\"}):
        weights = Path(weights)
    if isinstance(weights, Path):
        return Wanted(file=weights.expanduser())
    return Wanted(hub=bool(pretrained) or weights is not None, tag=weights)


def load_weights_file(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by name, floating-point ones as float32 on the CPU.

    Reads safetensors, and torch files of tensors alone (`weights_only`). Wrappers such as
    `{"state_dict": ...}` and the prefixes of DataParallel and torch.compile are removed.

    Raises:
        WeightsUnavailableError: There is no such file.
        WeightsError: The file is damaged, holds more than tensors, or values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsUnavailableError(
            f"weights file {str(path)!r} "
            + ("is a folder, a file is needed" if path.is_dir() else "does not exist")
        )
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    tensors = _without_prefixes(_without_wrappers(read(path), path))
    cast = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    spoilt = [k for k, v in cast.items() if v.is_floating_point() and not v.isfinite().all()]
    if spoilt:
        raise WeightsError(f"weights file {path.name}: {_listed(spoilt)} hold NaN or infinity")
    return cast


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"weights file {path.name} is no intact safetensors file: {error}"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"weights file {path.name} is damaged, or holds more than tensors (which could execute"
            f" code and is refused): {first}; save `model.state_dict()` alone"
        ) from error


def _without_wrappers(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict inside a checkpoint."""
    while isinstance(content, Mapping):
        inner = next((k for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"weights file {path.name} holds no tensors by name")
    others = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if others:
        raise WeightsError(f"weights file {path.name}: {_listed(others)} are not tensors")
    return dict(content)


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove prefixes that every name has."""
    for prefix in _PREFIXES * 2:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


@dataclass(frozen=True)
class WeightMismatch:
    """How given weights differ from a network: names missing, unexpected, and of another shape."""

    missing: list[str]
    unexpected: list[str]
    wrong: list[str]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.wrong)

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "wrong shape": self.wrong}
        return "; ".join(f"{len(v)} {kind} ({_listed(v)})" for kind, v in kinds.items() if v)


def weight_mismatch(
    module: nn.Module, given: Mapping[str, Tensor], optional: Iterable[str] = ()
) -> WeightMismatch:
    """Return how `given` differs from the state of `module`, `optional` prefixes left out.

    The counters of batch norms (`num_batches_tracked`) may be missing: they affect nothing.
    """
    state, optional = module.state_dict(), tuple(optional)
    counted = [name for name in state if not name.startswith(optional)]
    missing = [n for n in counted if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in given if n not in state and not n.startswith(optional)]
    wrong = [
        f"{n} {tuple(given[n].shape)} instead of {tuple(state[n].shape)}"
        for n in counted
        if n in given and given[n].shape != state[n].shape
    ]
    return WeightMismatch(missing, unexpected, wrong)


def require_fit(path: Path, label: str, found: WeightMismatch) -> None:
    """Raise WeightsError if weights do not fit the network `label`."""
    if found:
        raise WeightsError(
            f"weights file {path.name} does not fit {label}: {found}; check the architecture, its"
            " extra arguments, `n_in` and `img_size`"
        )


def load_into(module: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Copy those of the `given` weights that `module` has, in place; call after `require_fit`."""
    state = module.state_dict()
    fitting = {n: v for n, v in given.items() if n in state and v.shape == state[n].shape}
    module.load_state_dict(fitting, strict=False)


def load_file_into(
    module: nn.Module, path: Path, label: str, optional: Callable[[str], bool] | Iterable[str] = ()
) -> None:
    """Load a weights file into `module`, strict both ways but for `optional` prefixes."""
    given = load_weights_file(path)
    require_fit(path, label, weight_mismatch(module, given, optional))
    load_into(module, given)


def _listed(names: list[str], limit: int = 3) -> str:
    """Return the first names and how many more there are."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

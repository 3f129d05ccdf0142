"""Weights from files: read without executing anything, checked both ways before they are used.

A file may say how the images were made that its network was trained on; `stated_recipe` reads it.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import float_info
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from learnkit.errors import (
    ModelSpecError,
    WeightsError,
    WeightsNotFoundError,
    WeightsUnavailableError,
)
from learnkit.models.arch import architectures_of
from learnkit.models.spec import check_arch_kwargs, is_int

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
# the first that is there counts: averaged weights go before those of the last step
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
        WeightsNotFoundError: There is no such file.
        WeightsUnavailableError: It is a folder.
        WeightsError: The file is damaged, holds more than tensors, or values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        if path.is_dir():
            raise WeightsUnavailableError(
                f"weights file {str(path)!r} is a folder, a file is needed"
            )
        raise WeightsNotFoundError(f"weights file {str(path)!r} does not exist")
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


def _read_torch(path: Path, *, mapped: bool = False) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
    # twice: a compiled network may be inside DataParallel, and the other way round
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


def require_fit(path: Path, label: str, found: WeightMismatch, given: Mapping[str, Tensor]) -> None:
    """Raise WeightsError if weights do not fit the network `label`.

    Where they are those of other architectures, these are named.
    """
    if not found:
        return
    # what fits but for a few tensors is this architecture, with other arguments
    shapes = {name: tuple(value.shape) for name, value in given.items()}
    others = architectures_of(shapes, path.name) if 10 * len(found) > len(shapes) else []
    if others:
        more = f" (or {', '.join(others[1:])}, which have the same)" if others[1:] else ""
        remedy = f"these keys are those of {others[0]}{more}: pass `arch={others[0]!r}`"
    else:
        remedy = "check the architecture, its extra arguments, `n_in` and `img_size`"
    raise WeightsError(f"weights file {path.name} does not fit {label}: {found}; {remedy}")


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
    require_fit(path, label, weight_mismatch(module, given, optional), given)
    load_into(module, given)


@dataclass(frozen=True)
class StatedRecipe:
    """What a weights file, or a configuration beside it, says of the images it was trained on.

    Attributes:
        mean: Per channel, of pixels in 0..1; None if nothing is said.
        std: See `mean`.
        size: (H,W), None if nothing is said.
        options: Arguments its architecture was built with, such as `pad_type`.
        source: Where it stands, in words; empty if nothing is said.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    source: str = ""


# Entries that hold what is said, and the files beside the weights: timm's, that of transformers.
_NESTED = ("pretrained_cfg", "default_cfg", "data_config", "config", "args")
_CONFIGS = ("config.json", "preprocessor_config.json")
_MAX_CONFIG = 1_000_000
# Arguments in a configuration that learnkit sets itself.
_SET_ELSEWHERE = {"num_classes", "in_chans", "img_size", "global_pool"}


def stated_recipe(path: Path, arch: str, n_in: int = 3, *, decided: bool = False) -> StatedRecipe:
    """Return what the weights file `path` says of the images its network was trained on.

    It is read from the metadata of a safetensors file, entries beside the tensors of a checkpoint,
    and `config.json` (timm's layout) or `preprocessor_config.json` (that of transformers) in the
    same folder; a configuration of another architecture is not about this file.

    Args:
        path: The weights file.
        arch: Name of the architecture it is loaded into.
        n_in: Number of input channels of the network.
        decided: Whether mean and std are given otherwise, so that none are needed.

    Raises:
        WeightsError: A configuration is no JSON, too large or self-contradictory, or a value is
            none that images can be normalised with.
    """
    said: dict[str, tuple[Any, str]] = {}
    for source, entries in _statements(path, arch):
        label = f"weights file {path.name}: {source}"
        for name, value in _recipe_fields(label, entries, n_in).items():
            if decided and name in ("mean", "std"):
                continue
            before, where = said.setdefault(name, (value, source))
            if before != value:
                raise WeightsError(
                    f"weights file {path.name}: {where} says {name} {before}, {source} says "
                    f"{value}; remove one of them, or pass `normalize=(mean, std)`"
                )
    if ("mean" in said) != ("std" in said):
        has, lacks = ("mean", "std") if "mean" in said else ("std", "mean")
        raise WeightsError(
            f"weights file {path.name}: {said[has][1]} says {has} and no {lacks}; add it, or pass "
            "`normalize=(mean, std)`"
        )
    values = {name: value for name, (value, _) in said.items()}
    where = dict.fromkeys(source.rpartition(" in ")[2] for _, source in said.values())
    return StatedRecipe(**values, source=" and ".join(where))


def _statements(path: Path, arch: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where, entries) of all that may say something, each mapping by itself."""
    for source, entries in _own_entries(path):
        yield from _nested(source, entries)
    for name in _CONFIGS:
        beside = path.parent / name
        if beside.is_file():
            config = _read_config(beside)
            named = config.get("architecture")
            if not isinstance(named, str) or named.partition(".")[0] == arch.partition(".")[0]:
                yield from _nested(f"{name} beside it", config)


def _nested(source: str, entries: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield source, entries
    for name in _NESTED:
        if isinstance(entries.get(name), Mapping):
            yield f"{name} in {source}", entries[name]


def _own_entries(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (where, entries) of the file itself: its metadata, or what is not a tensor by name."""
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, "pt") as opened:
                metadata = opened.metadata() or {}
        except (safetensors.SafetensorError, OSError):
            return  # loading it says why
        yield "its metadata", {name: _value(text) for name, text in metadata.items()}
        return
    # torch can map its zip format only; mapped, tensors are not read to look beside them
    content = _read_torch(path, mapped=zipfile.is_zipfile(path))
    while isinstance(content, Mapping):
        inner = next((k for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            return
        yield "its own entries", {k: v for k, v in content.items() if k != inner}
        content = content[inner]


def _value(text: str) -> Any:
    """Return the value of an entry of safetensors' metadata, which are strings."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read_config(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of bounded size."""
    size = path.stat().st_size
    if size > _MAX_CONFIG:
        raise WeightsError(
            f"{path.name} beside the weights file has {size:,} bytes, more than {_MAX_CONFIG:,}: "
            "no configuration of a network; move it to another folder"
        )
    try:
        # bytes that are no UTF-8 give a ValueError, too
        content = json.loads(path.read_bytes())
        found = f"holds a JSON {type(content).__name__}, not an object"
    except (ValueError, RecursionError) as error:
        content, found = None, f"is not strict JSON: {error}"
    if not isinstance(content, dict):
        raise WeightsError(
            f"beside the weights file, {path.name} {found}; mend it, or move it to another folder"
        )
    return content


def _recipe_fields(source: str, entries: Mapping[str, Any], n_in: int) -> dict[str, Any]:
    """Return the fields of StatedRecipe that one mapping says, checked."""
    found: dict[str, Any] = {}
    for name in ("mean", "std"):
        value = entries.get(name, entries.get(f"image_{name}"))
        if value is not None:
            found[name] = _channel_values(source, name, value, n_in)
    _rescale(entries, found)
    size = entries.get("input_size")
    if isinstance(size, Sequence) and len(size) == 3 and all(map(is_int, size)):
        found["size"] = tuple(size[1:])
    given = entries.get("model_args")
    options = dict(given) if isinstance(given, Mapping) else {}
    if isinstance(entries.get("pad_type"), str):
        options["pad_type"] = entries["pad_type"]
    if options := {name: value for name, value in options.items() if name not in _SET_ELSEWHERE}:
        _check_options(source, options)
        found["options"] = options
    return found


def _check_options(source: str, options: Mapping[str, Any]) -> None:
    """Raise WeightsError if an argument could make a library read files, or is no plain value."""
    try:
        check_arch_kwargs(options)
    except ModelSpecError as error:
        raise WeightsError(f"{source} cannot be followed: {error}") from error


def _channel_values(source: str, name: str, value: Any, n_in: int) -> tuple[float, ...]:
    """Return one finite number per channel, or raise WeightsError."""
    values = value.tolist() if isinstance(value, Tensor) else value
    values = [values] if isinstance(values, int | float) else values
    good = isinstance(values, list | tuple) and all(
        isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= float_info.max
        for x in values
    )
    if not good or (name == "std" and min(values, default=0) <= 0):
        rule = "positive numbers" if name == "std" else "finite numbers"
        raise WeightsError(f"{source} says {name} {value!r:.80}: expected {rule}")
    if len(values) not in (1, 3, n_in):
        raise WeightsError(
            f"{source} says {name} {value!r}, {len(values)} numbers for {n_in} "
            "channels; mend it, or pass `normalize=(mean, std)`"
        )
    return tuple(map(float, values)) * (n_in if len(values) == 1 else 1)


def _rescale(entries: Mapping[str, Any], found: dict[str, Any]) -> None:
    """Turn mean and std into those of pixels in 0..1, in place."""
    if entries.get("do_normalize") is False and "image_mean" in entries:
        found |= {"mean": (0.0,) * len(found["mean"]), "std": (1.0,) * len(found["mean"])}
    # transformers multiplies pixels by this before it normalises; 1 / 255 is its default
    factor = entries.get("rescale_factor", 1 / 255)
    scale = 255 * factor if isinstance(factor, float) and factor > 0 else 1.0
    # means above 1 are of pixels in 0..255, as are all where transformers leaves pixels as they are
    if entries.get("do_rescale") is False or max(found.get("mean", (0,))) > 1:
        scale = 255.0
    if abs(scale - 1) > 1e-6:
        found |= {k: tuple(x / scale for x in found[k]) for k in ("mean", "std") if k in found}


def _listed(names: list[str], limit: int = 3) -> str:
    """Return the first names and how many more there are."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

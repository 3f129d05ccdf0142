"""Whole networks, classifier included, with the weights asked for; `body` cuts them afterwards."""

import copy
import inspect
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision.models as tv
from timm.models import get_pretrained_cfg, list_pretrained, load_model_config_from_hf
from timm.models._hub import load_model_config_from_path
from torch import nn

from learnkit.errors import WeightsUnavailableError
from learnkit.models.arch import LOCATED, TV_CLASSIFIERS, Arch
from learnkit.models.hub import cached_on_hub, fetching, require_hub, require_url, unavailable
from learnkit.models.meta import IMAGENET_STATS, family_meta, meta_of
from learnkit.models.timm_body import is_timm
from learnkit.models.torchvision_body import convert_input
from learnkit.models.weights import (
    Wanted,
    load_file_into,
    load_into,
    load_weights_file,
    require_fit,
    weight_mismatch,
)

Size = tuple[int, int]
DEFAULT_SIZE: Size = (224, 224)
# torchvision's networks for one input size, and the argument that sets it.
_SIZE_ARGUMENT = {"vit": "image_size", "maxvit": "input_size"}
# Arguments saved with a timm network that learnkit sets itself.
_ARGUMENTS = ("num_classes", "in_chans", "img_size", "global_pool")


@dataclass(frozen=True)
class Request:
    """What a caller wants of an architecture: weights, channels, size, arguments, its pooling."""

    wanted: Wanted
    n_in: int
    img_size: Size | None
    options: dict[str, Any]
    pooled: bool = False


@dataclass(frozen=True)
class WholeNetwork:
    """A whole network and what is known about it.

    Attributes:
        module: The network.
        name: Its name in its library.
        options: The extra arguments it was built with.
        size: The (H,W) it is to be tried out with.
        native_size: The (H,W) it was published for.
        fixed_size: Whether it takes images of `size` only.
        n_in: Number of channels it takes.
        mean: Normalisation per channel for pixels in [0, 1], None if unknown.
        std: See `mean`.
        built_for: The (H,W) its structure depends on, None if on no size.
    """

    module: nn.Module
    name: str
    options: dict[str, Any]
    size: Size
    native_size: Size
    fixed_size: bool
    n_in: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    built_for: Size | None = None


def _timm(arch: Arch, request: Request) -> WholeNetwork:
    """Build a timm network, for the requested size where it is made for one size."""
    config = timm_config(arch.name, request.wanted.tag)
    native, fixed = tuple(config.fields["input_size"][-2:]), config.fields.get("fixed_input_size")
    size, options = request.img_size or native, config.options | request.options
    extra = dict(options)
    if fixed and size != native:
        extra.setdefault("img_size", size)
    if request.n_in != 3:
        extra["in_chans"] = request.n_in
    module = timm_module(config, request.wanted, extra)
    stats = tuple(config.fields["mean"]), tuple(config.fields["std"])
    known = (module, config.name, options, size, native, bool(fixed), request.n_in)
    return WholeNetwork(*known, *stats, built_for=size if fixed else None)


@dataclass(frozen=True)
class TimmConfig:
    """What timm knows about a network: its name, published settings and saved extra arguments."""

    name: str
    fields: dict[str, Any]
    options: dict[str, Any]
    located: str | None = None


def timm_config(name: str, tag: str | None = None) -> TimmConfig:
    """Return the settings published for `name` (for its weights `tag`), or saved at a location.

    Raises:
        WeightsUnavailableError: timm has no weights of this tag, or the location is unreachable.
    """
    if name.startswith(LOCATED):
        return _located_config(name)
    if tag is not None:
        base = name.partition(".")[0]
        if f"{base}.{tag}" not in list_pretrained(f"{base}.*"):
            known = ", ".join(n.partition(".")[2] for n in list_pretrained(f"{base}.*")) or "none"
            raise WeightsUnavailableError(f"`weights`={tag!r}: timm's weights for {base}: {known}")
        name = f"{base}.{tag}"
    return TimmConfig(name, get_pretrained_cfg(name).to_dict(), {})


def timm_module(config: TimmConfig, wanted: Wanted, extra: dict[str, Any]) -> nn.Module:
    """Return the network with the weights wanted, its classifier taken off."""
    if wanted.file is not None:
        module = _from_file(config, wanted.file, extra)
    elif wanted.hub:
        module = _published(config, extra)
    else:
        return timm.create_model(config.name, num_classes=0, **extra)
    # not before: what is loaded has a classifier
    module.reset_classifier(0)
    return module


def _located_config(name: str) -> TimmConfig:
    """Read the settings of a folder or hub repository in timm's layout."""
    kind, _, place = name.partition(":")
    if kind == "local-dir":
        with fetching(name):
            fields, arch, options = load_model_config_from_path(place)
    else:
        if cached_on_hub(place, "config.json") is None:
            require_hub(name)
        with fetching(name):
            fields, arch, options = load_model_config_from_hf(place)
    published = get_pretrained_cfg(arch).to_dict()
    kept = {k: v for k, v in (options or {}).items() if k not in _ARGUMENTS}
    return TimmConfig(arch, published | fields, kept, located=name)


def _published(config: TimmConfig, extra: dict[str, Any]) -> nn.Module:
    """Build with published weights: from the cache if they are there, else from the hub."""
    if config.located is not None:
        with fetching(config.located):
            return timm.create_model(config.located, pretrained=True, **extra)
    fields = config.fields
    if not any(fields.get(key) for key in ("hf_hub_id", "url", "file")):
        raise unavailable(config.name, "timm publishes none for it")
    overlay: dict[str, Any] = {}
    repo = fields.get("hf_hub_id")
    cached = cached_on_hub(repo, fields.get("hf_hub_filename")) if repo else None
    if cached is not None:
        # as a file, so that timm does not ask the hub whether the cache is fresh
        overlay = {"file": str(cached), "custom_load": bool(fields.get("custom_load"))}
    else:
        require_hub(config.name)
    with fetching(config.name):
        return timm.create_model(
            config.name, pretrained=True, pretrained_cfg_overlay=overlay, **extra
        )


def _from_file(config: TimmConfig, path: Path, extra: dict[str, Any]) -> nn.Module:
    """Build with the weights of a file, strict both ways but for the classifier.

    A file made for three channels or another image size is adapted by timm, as published weights
    are, once it is known to fit the network as published.
    """
    given = load_weights_file(path)
    names = config.fields.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    module = timm.create_model(config.name, **extra)
    found = weight_mismatch(module, given, heads)
    if found:
        # What the file was made for: three channels at the published size; only shapes are needed.
        own = {k: v for k, v in extra.items() if k not in ("in_chans", "img_size")}
        with torch.device("meta"):
            published = timm.create_model(config.name, **own)
        as_published = weight_mismatch(published, given, heads)
        # the one it nearly fits is what the file was meant for
        require_fit(path, config.name, min(found, as_published, key=len), given)
        module = _adapted(config, given, extra)
    else:
        load_into(module, given)
    _mention_classifier(config, path, given, heads)
    return module


def _adapted(config: TimmConfig, given: dict[str, Any], extra: dict[str, Any]) -> nn.Module:
    """Let timm convert weights to other channels and image sizes while it builds the network."""
    classes = config.fields.get("num_classes", 1000)
    # another number of classes at the source: timm then leaves the classifier out
    overlay = {"state_dict": given, "num_classes": classes + 1, "custom_load": False}
    module = timm.create_model(
        config.name,
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        num_classes=classes,
        **extra,
    )
    # timm keeps the overlay with the network, which would hold these weights beside its own
    module.pretrained_cfg.pop("state_dict", None)
    return module


def _mention_classifier(
    config: TimmConfig, path: Path, given: dict[str, Any], heads: tuple[str, ...]
) -> None:
    """Warn if the file's classifier is another than the published one; the body does without."""
    sizes = {given[f"{h}weight"].shape[0] for h in heads if f"{h}weight" in given}
    if heads and sizes != {config.fields.get("num_classes")}:
        kind = f"has {max(sizes)} classes" if sizes else "is missing"
        warnings.warn(
            f"the classifier in {path.name} {kind}; it is not used, the body gets a new head",
            stacklevel=2,
        )


def _torchvision(arch: Arch, request: Request) -> WholeNetwork:
    """Build a torchvision network without its auxiliary classifiers."""
    wanted, extra = request.wanted, dict(request.options)
    native = (299, 299) if arch.name.startswith("inception") else DEFAULT_SIZE
    size = request.img_size or native
    argument = next((a for f, a in _SIZE_ARGUMENT.items() if arch.name.startswith(f)), None)
    if argument and size != native:
        # torchvision's ViT takes one number, for squares
        extra.setdefault(argument, size if argument == "input_size" else size[0])
    if arch.name.startswith(("googlenet", "inception")):
        # torchvision's published weights include the auxiliary classifiers; it drops them itself
        # where `init_weights` is not said it warns of a default that will change
        extra |= {} if wanted.hub else {"aux_logits": False, "init_weights": True}
    module = _torchvision_module(arch, wanted, extra)
    convert_input(module, request.n_in, pretrained=wanted.pretrained)
    mean, std = meta_of(arch).get("stats", IMAGENET_STATS)
    known = (module, arch.name, request.options, size, native, argument is not None, request.n_in)
    return WholeNetwork(*known, tuple(mean), tuple(std), built_for=size if argument else None)


def _torchvision_module(arch: Arch, wanted: Wanted, extra: dict[str, Any]) -> nn.Module:
    """Build a torchvision network and fill it with the weights wanted."""
    if wanted.hub:
        weights = _torchvision_weights(arch, wanted.tag)
        require_url(arch.label, weights.url)
        with fetching(arch.label):
            return arch.build(weights=weights, **extra)
    module = arch.build(weights=None, **extra)
    if wanted.file is not None:
        load_file_into(module, wanted.file, arch.label, optional=TV_CLASSIFIERS)
    return module


def _torchvision_weights(arch: Arch, tag: Any) -> tv.WeightsEnum:
    """Return torchvision's entry for the weights called `tag`, its default for None."""
    entries = tv.get_model_weights(arch.build)
    if isinstance(tag, entries):
        return tag
    kind, _, name = str("DEFAULT" if tag is None else tag).rpartition(".")
    if isinstance(tag, tv.WeightsEnum) or kind not in ("", entries.__name__):
        # entries of different networks share their last names
        raise WeightsUnavailableError(
            f"`weights`={tag!s}: these are not weights of {arch.label}, whose entries are in "
            f"{entries.__name__}: {', '.join(entries.__members__)}"
        )
    if name not in entries.__members__:
        known = ", ".join(entries.__members__)
        raise WeightsUnavailableError(f"`weights`={tag!r}: {arch.label} has {known}")
    return entries[name]


def _custom(arch: Arch, request: Request) -> WholeNetwork:
    """Take a module as it is, or build one; load a weights file if there is one."""
    wanted = request.wanted
    is_module = isinstance(arch.build, nn.Module)
    module = arch.build if is_module else _call(arch, wanted, request.options)
    if is_module and (request.n_in != 3 or is_timm(module)):
        module = copy.deepcopy(module)  # it will be changed
    if wanted.file is not None:
        load_file_into(module, wanted.file, arch.label)
    if request.n_in != 3:
        convert_input(module, request.n_in, pretrained=is_module or wanted.pretrained)
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    n_in = request.n_in if first is None else first.in_channels
    native, stats = _known_of(arch, module)
    size = request.img_size or native
    return WholeNetwork(module, arch.name, request.options, size, native, True, n_in, *stats)


def _known_of(arch: Arch, module: nn.Module) -> tuple[Size, tuple]:
    """Return image size and (mean, std) of a network passed in, as far as anyone knows them."""
    cfg = module.pretrained_cfg if is_timm(module) else {}
    native = tuple(cfg["input_size"][-2:]) if cfg else DEFAULT_SIZE
    known = (cfg["mean"], cfg["std"]) if cfg else family_meta(module).get("stats", (None, None))
    stats = meta_of(arch).get("stats", known)
    return native, tuple(None if values is None else tuple(values) for values in stats)


def _call(arch: Arch, wanted: Wanted, options: dict[str, Any]) -> nn.Module:
    """Call a function that builds a network, passing the weights wanted as it names them."""
    names = inspect.signature(arch.build).parameters
    if "weights" in names:
        chosen = {"weights": (wanted.tag or "DEFAULT") if wanted.hub else None}
    elif "pretrained" in names:
        chosen = {"pretrained": wanted.hub}
    elif wanted.hub:
        reason = "it takes neither `pretrained=` nor `weights=`"
        raise unavailable(arch.label, reason)
    else:
        chosen = {}
    with fetching(arch.label):
        return arch.build(**chosen | options)


# the whole network as its library builds it, by the source of its architecture
BUILDERS = {"timm": _timm, "torchvision": _torchvision, "custom": _custom}

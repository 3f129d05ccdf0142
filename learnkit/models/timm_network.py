"""Whole timm networks with random, published or a file's weights."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg, list_pretrained, load_model_config_from_hf
from timm.models._hub import load_model_config_from_path
from torch import nn

from learnkit.errors import WeightsUnavailableError
from learnkit.models.arch import LOCATED
from learnkit.models.hub import cached_on_hub, fetching, require_hub, unavailable
from learnkit.models.weights import (
    Wanted,
    load_into,
    load_weights_file,
    require_fit,
    weight_mismatch,
)

# Saved arguments that learnkit sets itself.
_ARGUMENTS = ("num_classes", "in_chans", "img_size", "global_pool")


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

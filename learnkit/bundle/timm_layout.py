"""A bundle in timm's own layout, as far as timm can open the network.

Three kinds, tried in this order on export and decided by what timm really does with the tensors:

* "classifier": the head is timm's own (mean pool, one linear layer). timm opens the bundle as it is
  and gives the same logits, bit for bit.
* "body": timm opens the body, every tensor under timm's name. Its own classifier is left out
  (`num_classes` 0); the head lies beside it in `head.safetensors`.
* "own": learnkit alone opens the bundle (torchvision's networks, and what timm renames on loading).

A head that keeps class statistics is no part of the layout: it has a file of its own.
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import learnkit._torchvision  # noqa: F401  # before timm

import timm
import torch
from timm.models import get_pretrained_cfg, split_model_name_tag
from torch import Tensor, nn

from learnkit.data.preprocess import Preprocessing
from learnkit.errors import BundleCorruptError
from learnkit.models.spec import ModelSpec

MODEL_FILE, HEAD_FILE = "model.safetensors", "head.safetensors"
_BODY = "0.model."
_CROP_MODES = {"crop": "center", "squish": "squash", "pad": "border"}
_CROP_MODES |= {"keep": "center", "grid": "squash"}  # the nearest that timm has

# file -> {prefix of a tensor's name in it: prefix of its name in the model}; the longest one counts
Layout = Mapping[str, Mapping[str, str]]


class Packed(NamedTuple):
    """How a model travels: what timm can do with it, the layout, tensors by file, timm's config."""

    kind: str
    layout: Layout
    files: dict[str, dict[str, Tensor]]
    config: dict[str, Any]


def pack(
    model: nn.Module,
    spec: ModelSpec,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    images: Tensor,
) -> Packed:
    """The most open of the three kinds that holds for `model` (in eval mode) on `images`."""
    state, own = model.state_dict(), {MODEL_FILE: {"": ""}}
    if "kind" in spec.head:
        state = {name: tensor for name, tensor in state.items() if name.startswith("0.")}
        own = {MODEL_FILE: {"": "0."}}
    config = _config(spec, preprocessing, classes)
    for kind, layout in _candidates(model, spec):
        files = to_files(state, layout)
        args = config["model_args"] | ({"num_classes": 0} if kind == "body" else {})
        candidate = Packed(kind, layout, files, {**config, "model_args": args})
        opened = _open(candidate)
        if opened is not None and _is_same(opened, candidate, model, images):
            return candidate
    return Packed("own", own, to_files(state, own), config)


def _candidates(model: nn.Module, spec: ModelSpec) -> list[tuple[str, Layout]]:
    if spec.source != "timm":
        return []
    if "kind" in spec.head:
        return [("body", {MODEL_FILE: {"": _BODY}})]
    body = ("body", {MODEL_FILE: {"": _BODY}, HEAD_FILE: {"": "1."}})
    name = _timm_cfg(spec.arch).get("classifier")
    # dropout does nothing in evaluation, so timm's head without it is the same
    head = [(i, m) for i, m in enumerate(model[1]) if not isinstance(m, nn.Dropout)]
    plain = [type(m) for _, m in head] == [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    # timm has a tuple of names for networks with several classifiers, as distilled ones
    if not plain or not isinstance(name, str):
        return [body]
    return [("classifier", {MODEL_FILE: {"": _BODY, f"{name}.": f"1.{head[-1][0]}."}}), body]


def to_files(state: Mapping[str, Tensor], layout: Layout) -> dict[str, dict[str, Tensor]]:
    """The tensors of `state` by file, under the names they have there.

    >>> to_files({"0.a": 1, "1.b": 2}, {"x": {"": "0."}, "y": {"head.": "1."}})
    {'x': {'a': 1}, 'y': {'head.b': 2}}
    """
    files: dict[str, dict[str, Tensor]] = {file: {} for file in layout}
    rules = [(own, file, there) for file, names in layout.items() for there, own in names.items()]
    for name, tensor in state.items():
        # all are beginnings of one name, of which the greatest is the longest
        own, file, there = max(rule for rule in rules if name.startswith(rule[0]))
        files[file][there + name[len(own) :]] = tensor
    return files


def from_files(files: Mapping[str, Mapping[str, Tensor]], layout: Layout) -> dict[str, Tensor]:
    """The opposite of `to_files`.

    Raises:
        BundleCorruptError: two tensors get the same name, or one gets none.
    """
    state: dict[str, Tensor] = {}
    for file, names in layout.items():
        for name, tensor in files[file].items():
            there = max((p for p in names if name.startswith(p)), key=len, default=None)
            own = None if there is None else names[there] + name[len(there) :]
            if own is None or own in state:
                raise BundleCorruptError(f"{file}: the tensor {name!r} has no place in the model")
            state[own] = tensor
    return state


def _timm_cfg(arch: str) -> dict[str, Any]:
    found = get_pretrained_cfg(arch)
    return {} if found is None else found.to_dict()


def _config(
    spec: ModelSpec, preprocessing: Preprocessing, classes: tuple[str, ...]
) -> dict[str, Any]:
    """The fields timm reads from config.json."""
    cfg = _timm_cfg(spec.arch) if spec.source == "timm" else {}
    fixed = bool(cfg.get("fixed_input_size"))
    args = dict(spec.arch_kwargs)
    if spec.n_in != 3:
        args["in_chans"] = spec.n_in
    if fixed and spec.img_size:
        args.setdefault("img_size", list(spec.img_size))
    size = spec.img_size if fixed and spec.img_size else preprocessing.size
    return {
        "architecture": split_model_name_tag(spec.arch)[0],
        "num_classes": len(classes),
        "label_names": list(classes),
        "model_args": args,
        "pretrained_cfg": {
            # some of timm's own files are .npz, for which it calls the network's own loader
            "custom_load": False,
            "input_size": [spec.n_in, *size],
            "fixed_input_size": fixed,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop,
            "crop_mode": _CROP_MODES[preprocessing.method],
            "mean": list(preprocessing.mean or [0.0] * spec.n_in),
            "std": list(preprocessing.std or [1.0] * spec.n_in),
            "num_classes": len(classes),
            "first_conv": cfg.get("first_conv"),
            "classifier": cfg.get("classifier"),
        },
    }


def _open(packed: Packed) -> nn.Module | None:
    """What `timm.create_model("local-dir:...", pretrained=True)` would give, None if it fails."""
    config = packed.config
    # a copy: timm takes tensors out of the dictionary that it loads
    cfg = {**config["pretrained_cfg"], "state_dict": dict(packed.files[MODEL_FILE])}
    # timm draws weights before it loads: the caller's random numbers go on as they would have
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = timm.create_model(
                config["architecture"], pretrained=True, pretrained_cfg=cfg, **config["model_args"]
            )
        except Exception:  # noqa: BLE001  # timm's loaders raise anything: then it does not open it
            return None
    return model.eval()


def _is_same(opened: nn.Module, packed: Packed, model: nn.Module, images: Tensor) -> bool:
    """Whether every tensor arrived under its name and a classifier's logits are the same."""
    state, tensors = opened.state_dict(), packed.files[MODEL_FILE]
    if not all(n in state and torch.equal(state[n], t) for n, t in tensors.items()):
        return False
    # behind the feature map timm may have layers with random weights: no output compares
    if packed.kind == "body":
        return True
    with torch.no_grad():
        return torch.equal(opened(images), model(images))

"""A trained network as one ONNX file: pixels in, pooled features and logits out."""

import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from learnkit._version import __version__
from learnkit.backends.extras import extra
from learnkit.backends.onnx_file import tidied, write_metadata
from learnkit.backends.registry import BACKENDS, open_session
from learnkit.backends.session import Session
from learnkit.backends.torch_session import Network, channels_last, default_probes
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import ExportError, PredictionError
from learnkit.models.eval_mode import set_channels_last

INPUT, FEATURES, LOGITS = "image", "features", "logits"
_LIMIT = 2**31 - 2**20  # what one protobuf message can hold
_INSTEAD = 'optimise it with backend="torch", which runs any network'
_TOLERANCE = 1e-3
_ONE_NUMBER = f"the network takes one number of images at a time only; {_INSTEAD}"
_OPERATOR = re.compile(r"translating node .*target=torch\.ops\.([\w.]+)\.\w+\]")
_NOISY = ("torch", "onnxscript", "onnx_ir", "onnx")


class Pixels(nn.Module):
    """A network that takes images as they are read and gives features, and logits if it has a head.

    Args:
        body: gives a feature map (N, D, H', W') for normalised images.
        head: gives logits for that map; None if the head lives outside.
        preprocessing: says how pixels are normalised.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, body: nn.Module, head: nn.Module | None, preprocessing: Preprocessing):
        super().__init__()
        self.body, self.head = body, head
        mean, std = preprocessing.mean or (0.0,), preprocessing.std or (1.0,)
        # in float64, so that scale and shift are rounded once, at the end
        mean, std = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))
        # one multiplication and one addition per pixel instead of three operations, with numbers
        # for a whole line of pixels: where the channels come last, backends are slow to repeat
        # three of them. Where networks are fast, each of these is a tenth of their time
        line = (1, preprocessing.channels, 1, preprocessing.size[1])
        self.register_buffer("scale", (1 / (255 * std)).float().expand(line).contiguous())
        self.register_buffer("shift", (-mean / std).float().expand(line).contiguous())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features float32 (N, D), then logits, of `image` uint8 (N, H, W, C)."""
        # contiguous: what is traced in another memory layout is full of operators for strides
        x = image.permute(0, 3, 1, 2).contiguous().to(torch.float32)
        feature_map = self.body(x * self.scale + self.shift)
        features = feature_map.mean((2, 3))
        return (features,) if self.head is None else (features, self.head(feature_map))


def export_onnx(model: nn.Module, preprocessing: Preprocessing, *, continual: bool) -> bytes:
    """ONNX file of `model`: input `image` uint8 (N, H, W, C), outputs `features` and `logits`.

    Normalisation is part of the graph, any number of images can be asked for, weights are inside.
    Nodes are called by the module they come from. `model` is left as it is.

    Args:
        model: `Sequential(body, head)` whose body gives a feature map (N, D, H', W').
        preprocessing: size, channels and normalisation of the images.
        continual: leave the head out: it lives outside, so that it can grow.

    Raises:
        ExportError: the network has no body, uses operators ONNX lacks, gives other features as
            ONNX, or is over 2 GiB.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    for name in ("onnx", "onnxscript"):
        extra(name)
    pixels = _standing_alone(model, preprocessing, continual)
    names = [FEATURES] if continual else [FEATURES, LOGITS]
    data = tidied(_converted(pixels, preprocessing, names))
    _check_alike(data, pixels, preprocessing)
    recipe = {"learnkit": __version__, "preprocessing": preprocessing.to_dict()}
    return write_metadata(data, recipe)


_TWINS: WeakKeyDictionary[nn.Module, Session] = WeakKeyDictionary()
_SAME = 1e-5  # of the largest feature


def same_in_onnxruntime(network: Network) -> Session:
    """A session of onnxruntime that gives a live network's features, to 1e-5 of the largest one.

    It is kept as long as the network's body, and made anew where it gives others than that.

    Raises:
        ExportError: the network cannot be exported, or gives other features there.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
    """
    extra("onnxruntime")
    images, body = channels_last(default_probes(network.preprocessing)), network.model[0]
    expected = network.features(images)
    largest, off = float(np.abs(expected).max()), np.inf
    # the kept one is compared anew: the body may have been trained since
    for session in (_TWINS.get(body), None):
        if session is None:
            # for the export only: `features` takes the same lock, and no thread can take it twice
            with network.alone() as model:
                data = export_onnx(model, network.preprocessing, continual=True)
            session = open_session(
                "onnxruntime", "float32", {"onnx": data}, threads=network.threads
            )
        if session.shape == network.shape:
            off = float(np.abs(session.features(images) - expected).max())
        if off <= _SAME * largest:
            _TWINS[body] = session
            return session
    raise ExportError(
        f"`engine`='onnxruntime' gives features that are off by {off:.2g} where the largest is "
        f"{largest:.2g}; leave `engine` out: torch reads them then"
    )


def _standing_alone(model: nn.Module, recipe: Preprocessing, continual: bool) -> Pixels:
    """A copy of `model` in float32 on the processor and in eval mode, from pixels to outputs."""
    if not isinstance(model, nn.Sequential) or len(model) != 2:
        raise ExportError(
            f"the network is a {type(model).__name__} without a body to read features from; build "
            "it with cnn_learner or create_cnn_model"
        )
    body, head = copy.deepcopy(model[0]), None if continual else copy.deepcopy(model[1])
    set_channels_last(body, False)  # what is traced in it is full of operators for strides
    pixels = Pixels(body, head, recipe).to("cpu", torch.float32).eval().requires_grad_(False)
    for module in pixels.modules():
        if getattr(module, "fused_attn", False):  # timm's: ONNX has it for one of its shapes only
            module.fused_attn = False
    size = sum(t.numel() * t.element_size() for t in pixels.state_dict().values())
    if size > _LIMIT:
        raise ExportError(
            f"the network's weights have {size:,} bytes; one ONNX file holds {_LIMIT:,}: {_INSTEAD}"
        )
    with torch.no_grad():
        feature_map = body(torch.zeros(2, recipe.channels, *recipe.size))
    if feature_map.ndim != 4:
        raise ExportError(
            f"the body gives {tuple(feature_map.shape)}; features are read off a map (N,D,H,W)"
        )
    return pixels


def _converted(pixels: Pixels, recipe: Preprocessing, names: list[str]) -> bytes:
    image = torch.zeros(2, *recipe.size, recipe.channels, dtype=torch.uint8)
    try:
        # two images: what is traced with one holds for one only
        with _silence(), torch.random.fork_rng(devices=[]), torch.no_grad():
            program = torch.onnx.export(
                pixels,
                (image,),
                dynamo=True,
                input_names=[INPUT],
                output_names=names,
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                external_data=False,
                verbose=False,
            )
            return program.model_proto.SerializeToString(deterministic=True)
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(_explained(error)) from error


def _check_alike(data: bytes, pixels: Pixels, recipe: Preprocessing) -> None:
    """Raise ExportError unless the file gives the network's features for three images of noise."""
    backend = next((name for name in ("onnxruntime", "openvino") if not BACKENDS[name].missing), "")
    if not backend:
        return
    images = default_probes(recipe, 3).permute(0, 2, 3, 1).contiguous()
    session = open_session(backend, "float32", {"onnx": data}, threads=1)
    try:
        found, _ = session.run(images.numpy())
    except PredictionError as error:  # traced with two images, and not for three
        raise ExportError(_ONE_NUMBER) from error
    with torch.no_grad():
        expected = pixels(images)[0]
    off, largest = (torch.from_numpy(found) - expected).abs().max(), expected.abs().max()
    # so written that NaN is refused
    if not off <= _TOLERANCE * max(largest, 1e-6):
        raise ExportError(
            f"the exported network gives features that are off by {off:.2g} where the largest is "
            f"{largest:.2g}: it depends on more than its images, or the exporter is wrong; "
            f"{_INSTEAD}"
        )


def _explained(error: BaseException) -> str:
    """What the exporter could not do, in one sentence, and what to do instead."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    text = "\n".join(map(str, causes))
    if operators := sorted(set(_OPERATOR.findall(text))):
        return f"ONNX has nothing for {', '.join(operators)} as the network uses it; {_INSTEAD}"
    if "Constraints violated" in text:
        return _ONE_NUMBER
    reason = next((line for line in str(causes[-1]).splitlines() if line.strip()), "no reason")
    return f"the network cannot be captured as a graph ({reason.strip():.200}); {_INSTEAD}"


@contextmanager
def _silence() -> Iterator[None]:
    """What the exporter says to its developers is not said to its users."""
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.partition(".")[0] in _NOISY
        and isinstance(logger, logging.Logger)
        and not logger.disabled
    ]
    # torch prints graphs it cannot capture to stderr, whole ones
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.disabled = True
            yield
        finally:
            for logger in loggers:
                logger.disabled = False

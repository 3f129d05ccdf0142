"""Precision of a training: its steps in 16 bits, mixed with 32, where the machine has them.

Weights, gradients, optimizer, losses and the weights and statistics of norm layers stay float32;
what flows between the layers of a training step is rounded. All that measures stays float32 as a
whole: validation, predictions, class statistics, calibration, export.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import torch
from fastai.callback.fp16 import MixedPrecision, NonNativeMixedPrecision
from fastai.torch_core import to_float
from fastcore.foundation import L
from torch import Tensor, nn

from learnkit.backends.processor import has_bfloat16
from learnkit.backends.registry import TRAINING_PRECISIONS
from learnkit.callback.base import own_words
from learnkit.errors import BackendUnavailableError, DataError

_TYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FEWEST_PIXELS, _WIDE = 64 * 64, 5


class TrainingPrecision(MixedPrecision):
    """Training steps in `precision`; found as `learn.training_precision`, taken away by `to_fp32`.

    Beside a `MixedPrecision` of fastai's (`learn.to_fp16()`) it does nothing.

    Args:
        precision: "float32", "bfloat16", "float16" (GPUs only), or "auto": bfloat16 where the
            device multiplies it itself, else float32.

    Attributes:
        asked: the precision asked for.
        resumed: what "auto" was in the training of the checkpoint that this one goes on from.

    Raises:
        DataError: there is no such precision.
    """

    run_valid = False
    _stateattrs = ("scales",)
    scales: L | None = None  # those of float16 in a fit

    def __init__(self, precision: str = "auto"):
        super().__init__()
        self.asked = check_precision(precision)
        self.resumed: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.asked!r})"

    def __call__(self, event_name: str) -> Any:
        """Run the event; its errors keep their own words."""
        with own_words():
            return super().__call__(event_name)

    def before_fit(self) -> None:
        """Find out, before the first batch, whether the device can do it."""
        self.scales = None
        if precision_of(self.learn) == "float16":
            self.learn.scaler, self.scales = torch.amp.GradScaler(_device(self.learn)), L()

    def before_batch(self) -> None:
        """Leave the batch: `autocast_model` is around the call of the model alone."""

    def after_pred(self) -> None:
        """Leave the outputs: they are float32 already."""

    def after_loss(self) -> None:
        """Leave the loss, which is computed in float32."""

    def before_backward(self) -> None:
        """Lift small gradients above what float16 rounds to zero."""
        if self.scales is not None:
            super().before_backward()

    def before_step(self) -> None:
        """Take the scale off again; skip a step whose gradients were too large for float16."""
        if self.scales is not None:
            super().before_step()

    def after_step(self) -> None:
        """Find the next scale."""
        if self.scales is not None:
            super().after_step()

    def after_fit(self) -> None:
        """Drop the scale."""
        if self.scales is not None:
            self.scales = self.learn.scaler = None


def check_precision(precision: Any) -> str:
    """The name of a precision of training; DataError if it is none."""
    if precision not in TRAINING_PRECISIONS:
        raise DataError(
            f"`precision` is {precision!r}; it must be one of {', '.join(TRAINING_PRECISIONS)}"
        )
    return precision


def training_precision(asked: str, device: str, *, bfloat16: bool) -> str:
    """The precision of training steps: "float32", "bfloat16" or "float16".

    Args:
        asked: one of them, or "auto" for bfloat16 where it is faster.
        device: "cpu", "cuda", ...
        bfloat16: whether the device multiplies bfloat16 itself.

    Raises:
        BackendUnavailableError: float16 on a processor.

    >>> training_precision("auto", "cpu", bfloat16=True)
    'bfloat16'
    >>> training_precision("auto", "cpu", bfloat16=False)
    'float32'
    """
    if asked == "auto":
        return "bfloat16" if bfloat16 else "float32"
    # measured with avx512_fp16: the gradient of a convolution takes 200 times as long
    if asked == "float16" and device == "cpu":
        raise BackendUnavailableError(
            "`precision` is 'float16', which torch trains many times slower than float32 on "
            "processors; use 'auto', which takes bfloat16 where the processor has it"
        )
    return asked


def precision_of(learn: Any) -> str:
    """The precision of a learner's training steps, "float32" where another callback decides it.

    Raises:
        BackendUnavailableError: The learner's device cannot do what was asked for.
    """
    own, device = _own(learn), _device(learn)
    if own is None:
        return "float32"
    if own.asked == "auto" and own.resumed is not None:
        return own.resumed
    return training_precision(own.asked, device, bfloat16=multiplies_bfloat16(device))


def precision_said(learn: Any) -> str:
    """Which precision the "auto" of a learner's training is, and why; "" where it was asked for."""
    own, device = _own(learn), _device(learn)
    if own is None or own.asked != "auto":
        return ""
    kind = "this processor" if device == "cpu" else f"this {device} device"
    if own.resumed is not None:
        return f"training steps in {own.resumed}, as before the interruption"
    if precision_of(learn) == "float32":
        return f"training steps in float32: {kind} does not multiply bfloat16 itself"
    size = getattr(getattr(learn.dls, "preprocessing", None), "size", None)
    if size is not None and math.prod(size) < _FEWEST_PIXELS:
        return (
            f"training steps in float32: images of {size[0]} x {size[1]} pixels are too small to "
            "gain by bfloat16"
        )
    return f"training steps in bfloat16, which {kind} multiplies itself; weights stay float32"


def resume_precision(learn: Any, precision: str) -> None:
    """Let a learner whose precision is "auto" go on in the one that a checkpoint tells of."""
    own = _own(learn)
    if own is not None and own.asked == "auto":
        own.resumed = check_precision(precision)


def multiplies_bfloat16(device: str) -> bool:
    """Whether a kind of device trains faster in bfloat16."""
    if device == "cuda":
        # False: not where torch emulates it
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(False)
    return device == "cpu" and has_bfloat16(training=True)


def autocast_of(learn: Any, images: Any) -> AbstractContextManager:
    """A context in which layers compute as a training step of the learner over these images.

    With "auto", images of fewer than 64 x 64 pixels are computed in float32, which is faster then.
    """
    own, dtype = _own(learn), _TYPES[precision_of(learn)]
    # Rounding the weights takes as long for a small image as for a large one.
    shape = getattr(images, "shape", ())
    small = len(shape) != 4 or shape[2] * shape[3] < _FEWEST_PIXELS
    if dtype is None or (small and own is not None and own.asked == "auto"):
        return nullcontext()
    return torch.autocast(_device(learn), dtype)


def step_of(learn: Any, images: Any) -> AbstractContextManager:
    """A context in which a frozen body gives what a training step of the learner gets from it."""
    context = autocast_of(learn, images)
    # Steps in float32 leave images in torch's own layout, as bodies do where gradients count.
    return torch.enable_grad() if isinstance(context, nullcontext) else context


@contextmanager
def autocast_model(learn: Any) -> Iterator[None]:
    """Let calls of the learner's model, and nothing else, run in its training precision.

    Images come in the layout that convolutions of 16 bits are fastest with; outputs are float32.
    Nothing of it is left afterwards, also after Ctrl-C inside a layer.
    """
    if precision_of(learn) == "float32":
        yield
        return
    inside = ExitStack()

    def enter(module: nn.Module, inputs: Any) -> Any:
        context = autocast_of(learn, inputs[0])
        inside.enter_context(context)
        # Stored features in the place of images are known by their identity.
        is_plain = isinstance(context, nullcontext) or "forward" in vars(module)
        return inputs if is_plain else tuple(map(_channels_last, inputs))

    def leave(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        inside.close()
        return to_float(outputs)

    with inside, ExitStack() as hooks:
        hooks.callback(learn.model.register_forward_pre_hook(enter).remove)
        hooks.callback(learn.model.register_forward_hook(leave).remove)
        for layer in filter(_is_faster_in_float32, learn.model.modules()):
            hooks.enter_context(_float32_gradients(layer))
        yield


@contextmanager
def _float32_gradients(layer: nn.Module) -> Iterator[None]:
    """Let a layer compute in float32 inside of autocast where its gradients are asked for."""
    inside = ExitStack()

    def enter(module: nn.Module, inputs: Any) -> Any:
        images = inputs[0]
        needed = images.requires_grad or module.weight.requires_grad
        if not (needed and torch.is_autocast_enabled(images.device.type)):
            return inputs
        inside.enter_context(torch.autocast(images.device.type, enabled=False))
        return (_channels_last(images.float()),)

    def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
        inside.close()

    with inside, ExitStack() as hooks:
        hooks.callback(layer.register_forward_pre_hook(enter).remove)
        hooks.callback(layer.register_forward_hook(leave).remove)
        yield


def _is_faster_in_float32(layer: nn.Module) -> bool:
    """True for convolutions whose gradients take a processor longer in bfloat16 than in float32.

    They are depthwise ones with a wide kernel (twice as long in a ConvNeXt) or a stride (four times
    in a MobileNetV2); plain 3 x 3 ones are no slower.
    """
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == layer.in_channels > 1
        and (min(layer.kernel_size) >= _WIDE or max(layer.stride) > 1)
        and layer.weight.device.type == "cpu"
    )


def _channels_last(images: Any) -> Any:
    """Images (N, C, H, W) with the channels of a pixel side by side in memory; others as given."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        return images
    # Weights are laid out as ever, and so are files of them: convolutions go by their input.
    return images.contiguous(memory_format=torch.channels_last)


def _own(learn: Any) -> TrainingPrecision | None:
    """The learner's own callback of precision, unless there is one of fastai's."""
    kinds = MixedPrecision | NonNativeMixedPrecision
    found = [cb for cb in learn.cbs if isinstance(cb, kinds)]
    return found[0] if len(found) == 1 and isinstance(found[0], TrainingPrecision) else None


def _device(learn: Any) -> str:
    """The kind of device a learner trains on: "cpu", "cuda", ..."""
    device = getattr(learn.dls, "device", None) or next(learn.model.parameters()).device
    return torch.device(device).type

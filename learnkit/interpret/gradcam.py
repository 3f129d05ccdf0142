"""Grad-CAM: where in the image the evidence for a class lies.

Torch only, tensors in, tensors out; `learnkit.interpret.plots` paints the result. The network is
split at a feature map: what lies before it runs without a graph, what lies behind it is
differentiated with `torch.autograd.grad`. So a frozen body makes no difference, the backward pass
covers the head only, and neither gradients, modes, hooks nor random numbers of the caller change.
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from learnkit.errors import InterpretationError
from learnkit.models.eval_mode import evaluating

# "elu" is found in relu, gelu, selu and celu, too
_ACTIVATION = re.compile("elu|silu|swish|mish")
_CHANNELS_FIRST = (nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
_NOT_BODY_AND_HEAD = (
    "`heatmap=True` requires a model like `cnn_learner` produces. {found}; the rule is "
    "`nn.Sequential(body, head)` whose body gives a feature map (N, D, H, W) and whose head pools "
    "it. For any other model pass `layer=`, the module whose output is the feature map."
)


def grad_cam(
    model: nn.Module,
    x: Tensor,
    class_idx: int | Sequence[int] | Tensor | None = None,
    *,
    layer: nn.Module | None = None,
    relu: bool = True,
    plus_plus: bool = False,
) -> Tensor:
    """Class activation maps, float32 (N, H, W) at the feature map's size; higher = more evidence.

    With feature map A and the logit y of the chosen class, the map is
    `relu(sum_k w_k A_k)`, `w_k = mean_ij dy / dA_kij`.

    Args:
        model: `nn.Sequential(body, head)`, or any classifier if `layer` is given. Runs in eval
            mode whatever mode it is in, and is left as it was found.
        x: normalised images (N, C, H, W) on the model's device.
        class_idx: the class to explain, one for all images or one per image (N,); None = the
            predicted class of each image.
        layer: module of `model` whose output replaces the body's as the feature map. Channels-last
            maps and tokens (N, L, D) are recognised by the proportions of `x`; prefix tokens
            (class token, registers) are dropped.
        relu: False keeps the negative evidence too.
        plus_plus: Grad-CAM++, whose weights find all of several objects of a class: each cell
            counts by how much of the class's evidence it alone can explain.

    Raises:
        InterpretationError: the model has no feature map to explain, a class does not exist, or
            the layout of `layer`'s output cannot be told.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017, eq. 1 and 2; Chattopadhay et al., Grad-CAM++,
    WACV 2018, eq. 5 and 19, for the exponential of the logit.

    >>> model = nn.Sequential(nn.Identity(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    >>> grad_cam(model, torch.tensor([[[[0., 4.]], [[8., 4.]]]]), 1)
    tensor([[[4., 2.]]])
    """
    if x.ndim != 4:
        raise InterpretationError(
            f"`x` has shape {tuple(x.shape)}; a batch of images (N, C, H, W) is needed: "
            "for a single image pass `x[None]`."
        )
    # both: in a caller's inference mode `enable_grad` alone records no graph
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        x = x.detach().as_subclass(Tensor)
        x = x.clone() if x.is_inference() else x  # inference tensors refuse in-place layers
        if layer is None:
            feature_map, logits = _through_head(model, x)
        else:
            feature_map, logits = _through_layer(model, x, layer)
        gradient = _class_gradient(logits, class_idx, feature_map)
    feature_map = feature_map.detach()
    if layer is not None:
        declared = {getattr(m, "num_prefix_tokens", None) for m in model.modules()} - {None}
        prefix_counts = {0, *(declared or {1})}  # what timm's networks say, or at most one
        to_nchw = _layout(feature_map, x, layer, prefix_counts)
        gradient, feature_map = to_nchw(gradient), to_nchw(feature_map)
    gradient, feature_map = gradient.float(), feature_map.float()
    weights = _plus_plus(gradient, feature_map) if plus_plus else gradient.mean((2, 3))
    cam = torch.einsum("nk,nkhw->nhw", weights, feature_map)
    return cam.relu() if relu else cam


def guided_backprop(
    model: nn.Module, x: Tensor, class_idx: int | Sequence[int] | Tensor | None = None
) -> Tensor:
    """Guided backpropagation, float32 like `x`: which input pixels raise the logit.

    The gradient of the chosen logit, of which every activation lets back only what is positive.
    Activations are modules such as ReLU, GELU and SiLU; where a network calls them as functions
    they let back all of the gradient.

    Args:
        model: any classifier; runs in eval mode, and is left as it was found.
        x: normalised images (N, C, H, W) on the model's device.
        class_idx: the class to explain, one for all images or one per image (N,); None = the
            predicted class of each image.

    Raises:
        InterpretationError: a class does not exist, or the logits have no gradient.

    Source: Springenberg et al., "Striving for simplicity", 2015, section 3.4.
    """
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        x = x.detach().as_subclass(Tensor).clone().requires_grad_()
        handles = [
            module.register_forward_hook(_only_positive)
            for module in model.modules()
            if _ACTIVATION.search(type(module).__name__.lower()) and not [*module.children()]
        ]
        try:
            # the first layer may work in place, which a leaf of the graph refuses
            return _class_gradient(model(x.clone()), class_idx, x).float()
        finally:
            for handle in handles:
                handle.remove()


def _only_positive(module: nn.Module, args: object, output: object) -> None:
    if isinstance(output, Tensor) and output.requires_grad:
        output.register_hook(lambda gradient: gradient.clamp_min(0))


def _plus_plus(gradient: Tensor, feature_map: Tensor) -> Tensor:
    """The weights (N, K) of Grad-CAM++."""
    squares, cubes = gradient.square(), gradient.pow(3)
    among = 2 * squares + cubes * feature_map.sum((2, 3), keepdim=True)
    share = torch.where(among == 0, 0.0, squares / torch.where(among == 0, 1.0, among))
    return (share * gradient.relu()).sum((2, 3))


def _through_head(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The body's feature map as a leaf of the graph, and the logits computed from it."""
    if not isinstance(model, nn.Sequential) or len(model) != 2:
        found = f"This one is a {type(model).__name__}"
        found += f" of {len(model)} modules" if isinstance(model, nn.Sequential) else ""
        raise InterpretationError(_NOT_BODY_AND_HEAD.format(found=found))
    body, head = model
    if not any("pool" in type(module).__name__.lower() for module in head.modules()):
        raise InterpretationError(_NOT_BODY_AND_HEAD.format(found="This one's head has no pool"))
    with torch.no_grad():
        feature_map = body(x)
    if not isinstance(feature_map, Tensor) or feature_map.ndim != 4:
        found = f"This one's body gives {_describe(feature_map)}"
        raise InterpretationError(_NOT_BODY_AND_HEAD.format(found=found))
    feature_map = feature_map.detach().as_subclass(Tensor).requires_grad_()
    return feature_map, head(feature_map.clone())  # a head may begin with an in-place layer


def _through_layer(model: nn.Module, x: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The output of `layer` as a leaf of the graph, and the logits computed from it."""
    if not any(module is layer for module in model.modules()):
        raise InterpretationError(
            f"`layer` ({type(layer).__name__}) is no module of `model`; "
            "pass one of `model.modules()`, not a copy."
        )
    outputs: list[Tensor] = []

    def restart_graph(module: nn.Module, args: object, output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise InterpretationError(
                f"`layer` ({type(layer).__name__}) returns {_describe(output)}; "
                "choose a module that returns one tensor."
            )
        torch.set_grad_enabled(True)  # ends with the no_grad block around the forward pass
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()

    handle = layer.register_forward_hook(restart_graph)
    try:
        with torch.no_grad():
            logits = model(x)
    finally:
        handle.remove()
    if len(outputs) != 1:
        raise InterpretationError(
            f"`layer` ({type(layer).__name__}) runs {len(outputs)} times in one forward pass; "
            "choose a module that runs exactly once."
        )
    return outputs[0], logits


def _class_gradient(logits: Tensor, class_idx: object, feature_map: Tensor) -> Tensor:
    """Gradient of each image's chosen logit at its own feature map, shaped like the map."""
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise InterpretationError(
            f"`model` returns {_describe(logits)}; Grad-CAM explains class logits (N, C)."
        )
    index = _class_indices(class_idx, logits)
    # One sum for the whole batch: in eval mode no layer mixes images (batch norm uses its running
    # statistics), so its gradient at image n is the gradient of n's own logit.
    chosen = logits.gather(1, index[:, None]).sum()
    gradient = None
    if chosen.requires_grad:
        gradient = torch.autograd.grad(chosen, feature_map, allow_unused=True)[0]
    if gradient is None:
        raise InterpretationError(
            "The logits do not depend on the feature map through differentiable operations, "
            "so there is no gradient to explain them by; choose another `layer`."
        )
    return gradient


def _class_indices(class_idx: object, logits: Tensor) -> Tensor:
    """One class index per image, int64 (N,)."""
    n, n_classes = logits.shape
    if class_idx is None:
        return logits.detach().argmax(1)
    index = torch.as_tensor(class_idx, device=logits.device).detach().as_subclass(Tensor)
    if index.is_floating_point() or index.dtype == torch.bool or index.shape not in ((), (n,)):
        raise InterpretationError(
            f"`class_idx` is {index.dtype} of shape {tuple(index.shape)}; "
            f"pass one integer, or one per image ({n})."
        )
    outside = index[(index < 0) | (index >= n_classes)]
    if outside.numel():
        raise InterpretationError(
            f"`class_idx` {outside.flatten()[0].item()} does not exist: the model has "
            f"{n_classes} classes, 0 to {n_classes - 1}."
        )
    return index.long().expand(n)


def _layout(
    output: Tensor, x: Tensor, layer: nn.Module, prefix_counts: set[int]
) -> Callable[[Tensor], Tensor]:
    """What brings `layer`'s output to (N, D, H, W): a map of either layout or tokens (N, L, D)."""
    size, shape = x.shape[-2:], output.shape
    readings: list[Callable[[Tensor], Tensor]] = []
    if shape[0] == len(x) and output.ndim == 4:
        if isinstance(layer, _CHANNELS_FIRST) or _is_map_of(shape[2:], size):
            readings.append(lambda t: t)
        if not isinstance(layer, _CHANNELS_FIRST) and _is_map_of(shape[1:3], size):
            readings.append(lambda t: t.permute(0, 3, 1, 2))
    if shape[0] == len(x) and output.ndim == 3:
        for n in prefix_counts:
            cells = shape[1] - n
            pairs = [(h, cells // h) for h in range(1, cells + 1) if cells % h == 0]
            readings += [
                lambda t, n=n, grid=grid: t[:, n:].transpose(1, 2).unflatten(2, grid)
                for grid in pairs
                if _is_map_of(grid, size)
            ]
    if len(readings) != 1:
        state = "could be several maps" if readings else "is no map"
        raise InterpretationError(
            f"`layer` ({type(layer).__name__}) returns {_describe(output)}, which {state} of "
            f"images of {size[0]} x {size[1]}; choose a layer that returns (N, D, H, W), or leave "
            "`layer` out."
        )
    return readings[0]


def _is_map_of(grid: Sequence[int], image_size: Sequence[int]) -> bool:
    """True if a grid (h, w) has the image's proportions to within one row and one column."""
    (h, w), (height, width) = grid, image_size
    return abs(h - w * height / width) < 1 and abs(w - h * width / height) < 1


def _describe(value: object) -> str:
    """A tensor's shape, or the type of anything else, for a message."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

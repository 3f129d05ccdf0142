"""Networks from their descriptions, checked before anything is allocated."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from learnkit.errors import BundleCorruptError, LearnkitError, ModelSpecError, first_few
from learnkit.models.arch import resolve_arch
from learnkit.models.body import assemble_body
from learnkit.models.eval_mode import set_channels_last
from learnkit.models.head import build_head
from learnkit.models.spec import ModelSpec
from learnkit.models.weights import Wanted


def build_model(spec: ModelSpec) -> nn.Sequential:
    """Return the network of a spec with random weights; same state-dict keys and shapes.

    Entries of `model_meta` play no part, so a spec means the same in every process. Under
    `torch.device("meta")` nothing is allocated.

    Raises:
        ModelSpecError: The library cannot build the network from these arguments.
        CutError: The cut does not fit the network.
        InputSizeError: The size or number of channels does not.
    """
    body = build_body(spec)
    with _named(spec):
        head = build_head(body.n_features, spec.n_out, spec.head)
    model = nn.Sequential(body, head)
    model.spec, model.spec_problem = spec, None
    return model


def build_body(spec: ModelSpec) -> nn.Module:
    """Return the body of a spec with random weights. Raises like `build_model`."""
    with _named(spec):
        body = assemble_body(
            resolve_arch(f"{spec.source}:{spec.arch}"),
            Wanted(),
            cut=spec.cut,
            n_in=spec.n_in,
            img_size=spec.img_size,
            mean=spec.mean,
            std=spec.std,
            arch_kwargs=spec.arch_kwargs,
            pooled=spec.pooled,
        )
    return set_channels_last(body, spec.channels_last)


@contextmanager
def _named(spec: ModelSpec) -> Iterator[None]:
    """Turn whatever a description's arguments make a constructor raise into ModelSpecError."""
    try:
        yield
    except LearnkitError:
        raise
    except Exception as error:
        raise ModelSpecError(f"{spec.source}:{spec.arch} cannot be built: {error}") from error


# What the libraries build of their own accord is made of 2,600 modules and parameters at most.
_MOST_PARTS = 4000
# values that may be allocated while one of the few is built that cannot be built without memory
_MOST_VALUES = 500_000_000
_MAKERS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye}
_MAKERS |= {torch.arange, torch.linspace, torch.randint}


def skeleton(spec: ModelSpec, weights: Mapping[str, Tensor]) -> nn.Module | None:
    """The network of `spec` without memory, if `weights` fit it; they may be without values.

    None for the few that compute while they are built.

    Raises:
        BundleCorruptError: a name, shape or type differs; or the arguments of the architecture make
            a network of far more parts than there are weights.
        ModelSpecError: the library cannot build the network from these arguments.
    """
    most = _MOST_PARTS + 3 * len(weights)
    # initialising draws random numbers: the caller's are to go on as they would have
    with torch.random.fork_rng(devices=[]), _at_most(most, spec), torch.device("meta"):
        try:
            model = _built(spec)
        except ModelSpecError:
            if spec.arch_kwargs and _is_built(replace(spec, arch_kwargs={})):
                raise  # it is the arguments
            return None
    _check_state(model, weights)
    return model


def rebuild(
    spec: ModelSpec, state: Mapping[str, Tensor], model: nn.Module | None = None
) -> nn.Module:
    """The network of `spec` with the weights `state`, in eval mode, on the CPU.

    Of a network with a head of another kind than layers it is `Sequential(body)`: such a head is
    read from a state of its own, and appended.

    Args:
        spec: the description.
        state: every weight, by name.
        model: the `skeleton` of these, if it was made before.

    Raises:
        BundleCorruptError: a name, shape or type differs.
    """
    # Without memory first: a description that does not fit the weights is refused before
    # anything of the size it names is allocated.
    model = skeleton(spec, state) if model is None else model
    if model is not None:
        _check_state(model, state)
        # Buffers that are computed, not stored (position indices, masks), would stay empty.
        stored = model.state_dict().keys()
        computed = any(name not in stored for name, _ in model.named_buffers())
        model = None if computed else model.to_empty(device="cpu")
    if model is None:
        n_values = sum(tensor.numel() for tensor in state.values())
        most = _MOST_PARTS + 3 * len(state), max(_MOST_VALUES, 2 * n_values)
        with torch.random.fork_rng(devices=[]), _at_most(most[0], spec), _Allocations(most[1]):
            model = _built(spec)
        _check_state(model, state)
    model.load_state_dict(state)
    model.spec, model.spec_problem = spec, None
    return model.eval()


def _built(spec: ModelSpec) -> nn.Module:
    return nn.Sequential(build_body(spec)) if "kind" in spec.head else build_model(spec)


def _is_built(spec: ModelSpec) -> bool:
    try:
        _built(spec)
    except LearnkitError:
        return False
    return True


class _Allocations(TorchFunctionMode):
    """Refuses tensors of more than `most` values in all before they are allocated."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.n_values = most, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What `func` returns, if it does not make too much."""
        given = dict(kwargs or {})
        if func in _MAKERS:
            # on the meta device first, which tells the size and allocates nothing
            self.n_values += func(*args, **(given | {"device": "meta"})).numel()
            if self.n_values > self.most:
                raise BundleCorruptError(
                    f"the description makes a network of more than {self.most:,} values, and it "
                    "has far fewer weights"
                )
        return func(*args, **given)


@contextmanager
def _at_most(n_parts: int, spec: ModelSpec) -> Iterator[None]:
    """Raise BundleCorruptError when this thread has made so many modules and parameters inside."""
    if not spec.arch_kwargs:  # the size is the library's own
        yield
        return
    # torch's hooks are of the whole process, in which other threads may build networks, too
    here, left = threading.get_ident(), iter(range(n_parts))

    def count(*_: Any) -> None:
        if threading.get_ident() == here and next(left, None) is None:
            raise BundleCorruptError(
                f"`arch_kwargs`={spec.arch_kwargs!r:.200} make a network of more than {n_parts} "
                f"parts of {spec.arch}, and it has far fewer weights"
            )

    hooks = [
        register_module_module_registration_hook(count),
        register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    expected = model.state_dict()
    if missing := sorted(expected.keys() - state.keys()):
        raise BundleCorruptError(
            f"the weights lack {first_few(map(repr, missing), 3)}, which the network has"
        )
    if extra := sorted(state.keys() - expected.keys()):
        raise BundleCorruptError(
            f"the weights hold {first_few(map(repr, extra), 3)}, which the network does not have"
        )
    for name, tensor in expected.items():
        found = state[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise BundleCorruptError(
                f"the weight {name!r} is {found.dtype} {tuple(found.shape)}; the network has "
                f"{tensor.dtype} {tuple(tensor.shape)}"
            )

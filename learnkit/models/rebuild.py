"""Networks from their descriptions, checked before anything is allocated."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from learnkit.errors import BundleCorruptError, LearnkitError, ModelSpecError, first_few
from learnkit.models.arch import resolve_arch
from learnkit.models.body import assemble_body
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
        return assemble_body(
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


@contextmanager
def _named(spec: ModelSpec) -> Iterator[None]:
    """Turn whatever a description's arguments make a constructor raise into ModelSpecError."""
    try:
        yield
    except LearnkitError:
        raise
    except Exception as error:
        raise ModelSpecError(f"{spec.source}:{spec.arch} cannot be built: {error}") from error


def rebuild(spec: ModelSpec, state: Mapping[str, Tensor]) -> nn.Module:
    """The network of `spec` with the weights `state`, in eval mode, on the CPU.

    Of a network with a head of another kind than layers it is `Sequential(body)`: such a head is
    read from a state of its own, and appended.

    Raises:
        BundleCorruptError: a name, shape or type differs.
    """
    with torch.random.fork_rng(devices=[]):
        # Without memory first: a description that does not fit the weights is refused before
        # anything of the size it names is allocated.
        model = _skeleton(spec)
        if model is not None:
            _check_state(model, state)
            # Buffers that are computed, not stored (position indices, masks), would stay empty.
            stored = model.state_dict().keys()
            computed = any(name not in stored for name, _ in model.named_buffers())
            model = None if computed else model.to_empty(device="cpu")
        if model is None:
            model = _built(spec)
            _check_state(model, state)
    model.load_state_dict(state)
    model.spec, model.spec_problem = spec, None
    return model.eval()


def _built(spec: ModelSpec) -> nn.Module:
    return nn.Sequential(build_body(spec)) if "kind" in spec.head else build_model(spec)


def _skeleton(spec: ModelSpec) -> nn.Module | None:
    """The network without memory; None for the few that compute while they are built."""
    try:
        with torch.device("meta"):
            return _built(spec)
    except ModelSpecError:
        return None


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

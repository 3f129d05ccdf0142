"""A network from its description, with random weights, whoever wrote the description."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from learnkit.errors import LearnkitError, ModelSpecError
from learnkit.models.arch import resolve_arch
from learnkit.models.body import assemble_body
from learnkit.models.head_kinds import build_head
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
        )


@contextmanager
def _named(spec: ModelSpec) -> Iterator[None]:
    """Turn whatever a stranger's arguments make a constructor raise into ModelSpecError."""
    try:
        yield
    except LearnkitError:
        raise
    except Exception as error:
        raise ModelSpecError(f"{spec.source}:{spec.arch} cannot be built: {error}") from error

"""Dry runs: what a network does with an image, found out without spending memory or arithmetic.

The network is copied onto torch's meta device, where tensors have shapes and no data, so a dry run
costs the same for 32 and for 1024 pixels. The few networks that cannot run there run for real.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learnkit.models.eval_mode import evaluating

Run = Callable[[nn.Module, Tensor], Tensor]


class Removed(nn.Module):
    """Where a module was that the feature map does not need; takes a classifier's arguments."""

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the input."""
        return x


@dataclass(frozen=True)
class DryRun:
    """What one dry run showed: the output, the parameters it depends on, the modules called."""

    output: Tensor
    reached: frozenset[str]
    called: frozenset[str]


def dry_run(model: nn.Module, run: Run, shape: tuple[int, ...]) -> DryRun:
    """Return what `run(model, images)` does with images of `shape`; the model is left as found.

    Raises:
        Exception: Whatever the network itself raises for such images.
    """
    shadow = meta_copy(model)
    try:
        return _run(shadow, run, torch.empty(shape, device="meta"))
    except Exception as error:  # any failure may be the meta device's own
        if any(p.device.type == "meta" for p in model.parameters()):
            raise
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        try:
            return _run(model, run, torch.zeros(shape, device=device))
        except Exception as real_error:
            raise real_error from error


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the network's structure whose parameters and buffers hold no data."""
    # deepcopy takes what is in its memo for copied already: no weight is ever held twice
    memo: dict[int, object] = {}
    for p in model.parameters():
        # frozen ones too: whether the output depends on them is what a dry run is to tell
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.is_floating_point())
    for b in model.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(model, memo)


def drop_unused(model: nn.Module, seen: DryRun) -> list[str]:
    """Remove what the output of a dry run does not depend on; return the names removed, in place.

    Modules that were never called and hold only parameters without influence become `Removed`
    (classifiers, convolutions after the pool). A remaining parameter without influence, such as a
    class token that only the classifier reads, becomes a buffer: same key, no gradient expected.
    """
    dropped: list[str] = []
    _drop_modules(model, "", seen, dropped)
    # a list: the loop takes parameters out of what it goes through
    for name, _ in list(model.named_parameters()):
        if name not in seen.reached:
            _freeze_into_buffer(model, name)
            dropped.append(name)
    return dropped


def _drop_modules(module: nn.Module, prefix: str, seen: DryRun, dropped: list[str]) -> None:
    """Replace the unused children of `module`, descending into those that are used."""
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        owned = [f"{path}.{p}" for p, _ in child.named_parameters(remove_duplicate=False)]
        used = any(p in seen.reached for p in owned)
        called = path in seen.called or any(c.startswith(f"{path}.") for c in seen.called)
        if owned and not used and not called:
            setattr(module, name, Removed())
            dropped.append(path)
        elif owned:
            _drop_modules(child, f"{path}.", seen, dropped)


def _freeze_into_buffer(model: nn.Module, name: str) -> None:
    """Turn the parameter `name` into a buffer of the same name."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    value = owner._parameters.pop(leaf)
    owner.register_buffer(leaf, value.detach())


def _run(model: nn.Module, run: Run, images: Tensor) -> DryRun:
    """Run once in eval mode with gradients on, noting calls and following the graph back."""
    called: set[str] = set()
    # also where the caller has gradients off: influence is read off the graph
    with _observed(model, called), torch.enable_grad():
        output = run(model, images)
    reached = _reached(output)
    # remove_duplicate: a tied parameter is reached under each of its names
    names = {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in reached}
    # a real run leaves no trace of frozen parameters: they get the benefit of the doubt
    names |= {n for n, p in model.named_parameters() if not p.requires_grad}
    output = output.detach() if isinstance(output, Tensor) else output
    return DryRun(output, frozenset(names), frozenset(called))


@contextmanager
def _observed(model: nn.Module, called: set[str]) -> Iterator[None]:
    """Note the names of modules called inside; eval mode, restored with all hooks removed."""
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, module in model.named_modules()
    ]
    try:
        with evaluating(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _reached(output: Tensor) -> set[int]:
    """Return the ids of the leaf tensors that `output` depends on, read off the autograd graph."""
    if not isinstance(output, Tensor):
        return set()
    todo, visited, leaves = [output.grad_fn], set(), set()
    while todo:
        node = todo.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        # autograd's AccumulateGrad, where a path ends in a leaf
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        todo += [parent for parent, _ in node.next_functions]
    return leaves

"""The head that keeps class statistics: how to find one, describe it, write it and read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from learnkit.bundle.audit import FACTS, NO_HISTORY, HistoryFacts, KeptState, read_facts
from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.knowledge import (
    MAX_SNAPSHOTS,
    UNDO_LEVELS,
    History,
    Knowledge,
    is_snapshot_name,
)
from learnkit.continual.ood_detector import OodDetector
from learnkit.errors import (
    BundleCorruptError,
    BundleVersionError,
    ExportError,
    LearnkitError,
    NewerStateError,
)
from learnkit.models.head import build_head, register_head
from learnkit.models.spec import ModelSpec, describe_body
from learnkit.storage.formats import (
    finite_or_none,
    parse_tensors,
    tensors_to_bytes,
    to_json,
    to_plain,
)

STATE = "state.safetensors"
KIND = "continual"

register_head(KIND, ContinualClassifier)


def described(model: nn.Module, head: ContinualClassifier | None, n_in: int) -> ModelSpec:
    """The description of `model`; that of its head is of `head`, if it is continual.

    Raises:
        ExportError: the model has none.
    """
    spec, problem = getattr(model, "spec", None), getattr(model, "spec_problem", None)
    if head is not None:
        # a head that knows no class yet has no outputs, but the network under it is as it is
        own = {"n_out": len(head.classes) or 1, "head": {"kind": KIND, "root": head.settings.root}}
        if spec is not None:
            return replace(spec, **own)
        spec, problem = describe_body(model[0], n_in, **own)
    if spec is None:
        raise ExportError(
            f"the network cannot travel as data: {problem or 'it was not built by learnkit'}. "
            "Build it with cnn_learner from an architecture's name, or keep its weights with "
            "learn.save"
        )
    return spec


@contextmanager
def reading_state(where: str) -> Iterator[None]:
    """Refuse the bundle if the state in its file `where` is refused in the block.

    Raises:
        BundleVersionError: the state is in a newer format.
        BundleCorruptError: it is no sound one.
    """
    try:
        yield
    # first: it is a LearnkitError, too, and would pass for damage
    except NewerStateError as error:
        raise BundleVersionError(f"{where}: {error}") from error
    except (LearnkitError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        # numbers that no images give can make the solvers raise whatever they have
        raise BundleCorruptError(
            f"{where} and its description are no sound state: {error}"
        ) from error


def read_head(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    spec: ModelSpec,
    width: int,
    classes: tuple[str, ...],
) -> ContinualClassifier:
    """The head of `spec`, written as `config` and `tensors`, on a body that gives `width` features.

    Raises:
        BundleCorruptError: they are not a head's, or not of these classes and this network.
        BundleVersionError: they are in a newer format.
    """
    with reading_state(STATE):
        empty = build_head(width, len(classes), spec.head)
        head = ContinualClassifier.from_state(config, tensors)
    if head.classes != classes:
        raise BundleCorruptError(
            f"the state's classes {list(head.classes)[:5]} are not `classes`, {list(classes)[:5]}"
        )
    for name in ("n_features", "root"):
        found, expected = (getattr(one.settings, name) for one in (head, empty))
        if found != expected:
            raise BundleCorruptError(
                f"the state's `{name}` is {found}; the network's is {expected}"
            )
    return head.eval()


def head_facts(head: ContinualClassifier) -> dict[str, Any]:
    """What the model card says of a head: images, threshold, temperature, and how they came."""
    if head.knowledge.derived is None:
        return {"images learned": 0, "classes known": 0}
    threshold, calibration = head.threshold, head.calibration
    return {
        "images learned": sum(head.n_images.values()),
        "classes known": sum(n > 0 for n in head.n_images.values()),
        "features remembered": len(head.statistics.memory),
        "flagged above a score of": threshold.value,
        "threshold fitted on": threshold.source,
        "what that promises": threshold.statement,
        "temperature": head.temperature,
        "expected calibration error": finite_or_none(calibration.ece_after),
    }


OOD = "ood.safetensors"


def detector_facts(detector: OodDetector) -> dict[str, Any]:
    """What the model card says of a detector: images, threshold, and how it came."""
    facts = head_facts(detector)
    told = [name for name in facts if name.startswith(("flagged", "threshold", "what that"))]
    return {
        "images it takes for usual": sum(detector.n_images.values()),
        **{name: facts[name] for name in told},
        "images behind prediction sets": len(detector.head_nonconformity),
    }


def read_detector(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], width: int
) -> OodDetector:
    """The detector written as `config` and `tensors`, for a body that gives `width` features.

    Raises:
        BundleCorruptError: they are not a detector's, or not of this network.
        BundleVersionError: they are in a newer format.
    """
    with reading_state(OOD):
        detector = OodDetector.from_state(config, tensors)
    if detector.n_features != width or detector.knowledge.derived is None:
        raise BundleCorruptError(
            f"{OOD} is of {detector.n_features} features and {len(detector.classes)} classes; the "
            f"network has {width} features"
        )
    return detector.eval()


def history_bytes(head: ContinualClassifier, levels: int) -> bytes | None:
    """The file of snapshots, the last `levels` states and the log of a head; None without any.

    A tensor that two states have in common is held once, and of a symmetric one a half: each state
    takes about half of what the state now takes where its products are most of it, as they are with
    few classes and little memory, and no more than that state.
    """
    history = head.history
    kept = [*history.snapshots.values(), *history.states[1 : 1 + levels]]
    if not kept and not history.audit:
        return None
    states, known = [], [head.knowledge.to_state()[1]]
    for knowledge in kept:
        config, tensors = knowledge.to_state()
        states.append(
            KeptState(config, {name: _place(name, tensors[name], known) for name in tensors})
        )
        known.append(tensors)
    facts = HistoryFacts(
        NO_HISTORY.format, history.audit.entries, tuple(history.snapshots), tuple(states)
    )
    return _packed(facts, {i: tensors for i, tensors in enumerate(known) if i})


def _place(name: str, tensor: Tensor, known: list[dict[str, Tensor]]) -> int:
    """Which of the `known` states holds this very tensor; the next one if none does."""
    same = (i for i, one in enumerate(known) if name in one and torch.equal(one[name], tensor))
    return next(same, len(known))


def _packed(facts: HistoryFacts, tensors: Mapping[int, Mapping[str, Tensor]]) -> bytes:
    """The file of a history; of the tensors, those that the facts say are held there."""
    text = torch.frombuffer(bytearray(to_json(to_plain(facts))), dtype=torch.uint8)
    held = {}
    for number, state in enumerate(facts.states, 1):
        for name in (name for name, place in state.at.items() if place == number):
            tensor = tensors[number][name]
            if name == "gram":  # symmetric: its upper triangle, row by row
                tensor = tensor[tuple(torch.triu_indices(*tensor.shape))]
            held[f"{number}.{name}"] = tensor
    return tensors_to_bytes({FACTS: text, **held})


def read_history(data: bytes, where: str, head: ContinualClassifier) -> History:
    """The history in the file `where`, of a head that knows already what it knows now.

    Raises:
        BundleCorruptError: it is none, or not of this head.
        BundleVersionError: it is in a newer format.
    """
    tensors = parse_tensors(data, where)
    facts = _read_facts(tensors.pop(FACTS, None), where)
    known = [head.knowledge.to_state()[1]]
    for number, state in enumerate(facts.states, 1):
        known.append(_read_tensors(number, state, tensors, known, where))
    # each state has taken its own out
    if tensors:
        raise BundleCorruptError(f"{where}: tensors nobody knows: {sorted(tensors)[:5]}")
    pairs = zip(facts.states, known[1:], strict=True)
    found = [_read_knowledge(state.config, own, head, where) for state, own in pairs]
    n = len(facts.names)
    snapshots = dict(zip(facts.names, found[:n], strict=True))
    former = found[n:-1] if _holds_beginning(facts) else found[n:]
    return History((head.knowledge, *former), snapshots, facts.log)


def _holds_beginning(facts: HistoryFacts) -> bool:
    """Whether the oldest state is that before `init_continual`, which earlier versions kept."""
    made = [entry.what for entry in facts.audit]
    n_left = len(made) - 2 * made.count("undo")  # changes that were not taken back
    return made[:1] == ["init_continual"] and len(facts.states) - len(facts.names) == n_left


def _read_facts(packed: Tensor | None, where: str) -> HistoryFacts:
    facts = read_facts(None if packed is None else packed.numpy(), where)
    n_former = len(facts.states) - len(facts.names)
    sound = (
        len({*facts.names}) == len(facts.names) <= MAX_SNAPSHOTS
        and all(map(is_snapshot_name, facts.names))
        and 0 <= n_former <= UNDO_LEVELS
    )
    if not sound:
        raise BundleCorruptError(f"{where} is no history that learnkit has written")
    return facts


def _read_tensors(
    number: int,
    state: KeptState,
    tensors: dict[str, Tensor],
    known: list[dict[str, Tensor]],
    where: str,
) -> dict[str, Tensor]:
    """The tensors of one state, those of its own taken out of `tensors`."""
    found = {}
    for name, place in state.at.items():
        own = place == number
        held = tensors.pop(f"{number}.{name}", None) if own else None
        # only back to states that are whole by now: no two can lead to each other
        if not own and 0 <= place < number:
            held = known[place].get(name)
        if held is None:
            raise BundleCorruptError(f"{where}: `{name}` of state {number} is not there")
        found[name] = _whole(held, where) if own and name == "gram" else held
    return found


def _read_knowledge(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], head: ContinualClassifier, where: str
) -> Knowledge:
    with reading_state(where):
        found = Knowledge.from_state(config, tensors)
    for name in ("n_features", "root"):
        if getattr(found.settings, name) != getattr(head.settings, name):
            raise BundleCorruptError(f"{where} holds a state of another network (`{name}`)")
    return found


def trimmed_history(data: bytes, where: str, levels: int) -> bytes:
    """The same file with the last `levels` states at most.

    Raises:
        BundleCorruptError: it is no such file.
    """
    tensors = parse_tensors(data, where)
    facts = _read_facts(tensors.pop(FACTS, None), where)
    # the last ones go: states share tensors of earlier ones, never of later ones
    kept = replace(facts, states=facts.states[: len(facts.names) + levels])
    text = torch.frombuffer(bytearray(to_json(to_plain(kept))), dtype=torch.uint8)
    numbers = {str(number) for number in range(1, len(kept.states) + 1)}
    held = {name: one for name, one in tensors.items() if name.partition(".")[0] in numbers}
    return tensors_to_bytes({FACTS: text, **held})


def _whole(half: Tensor, where: str) -> Tensor:
    """The symmetric tensor (D,D) of its upper triangle, row by row."""
    # n = D (D + 1) / 2, so that D is the root of 2 n, rounded down
    width = int((2 * half.numel()) ** 0.5)
    if half.dim() != 1 or not width or width * (width + 1) // 2 != half.numel():
        raise BundleCorruptError(f"{where}: `gram` has shape {tuple(half.shape)}, no triangle's")
    rows, columns = torch.triu_indices(width, width)
    square = half.new_zeros(width, width)
    square[rows, columns] = half
    square[columns, rows] = half
    return square

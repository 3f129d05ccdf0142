"""Files of a learner: saving and loading, also with another head than it was built with.

fastai's file holds the state of the model, which in the continual state is all the head knows. What
is not in the model goes into a second file of the same name: a detector from `fit_ood`, and
what renamed classes were called in training.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from learnkit.continual.classifier import ContinualClassifier, continual_head
from learnkit.continual.ood_detector import OodDetector
from learnkit.errors import DataError, WeightsError, WeightsNotFoundError, WorkerError
from learnkit.interpret.learner_state import ContinualRecord, names_of
from learnkit.learner.trained_head import untrained_head

_EXTRA = ".learnkit.safetensors"
_SKIPPED, _WINDOW = 5, 16  # losses that fastai leaves out, and those it compares at once
_CONFIG = "1.config"  # what only the state of a continual head has


def save_with_state(learn: Any, file: Any, save: Callable[..., Path], **kwargs: Any) -> Path:
    """The file that `save` wrote; what is not in the model goes into a file of the same name."""
    path = Path(save(file, **kwargs))
    detector, record = learn.state.ood_detector, learn.state.record
    extra = path.with_suffix(_EXTRA)
    former_names = {} if record is None else dict(record.former_names)
    class_ids = () if record is None else record.class_ids
    if detector is None and not former_names and not class_ids:
        # one of an earlier `save` would be read with these weights
        extra.unlink(missing_ok=True)
        return path
    config, tensors = (None, {}) if detector is None else detector.state()
    facts = {"ood": config, "former_names": former_names, "class_ids": list(class_ids)}
    # safetensors refuses others
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, extra, metadata={"learnkit": json.dumps(facts)})
    return path


def load_with_state(learn: Any, file: Any, load: Callable[..., Any], **kwargs: Any) -> Any:
    """The learner, after `load`, with the kind of head and the detector it was saved with."""
    name = Path(str(file)).with_suffix(_EXTRA) if Path(str(file)).suffix == ".pth" else None
    extra = learn.path / learn.model_dir / (name or f"{file}{_EXTRA}")
    # before the weights are: a damaged file leaves the learner as it is
    facts, tensors = _read_extra(extra)
    detector = OodDetector.from_state(facts["ood"], tensors) if facts["ood"] else None
    with _fitting_head(learn):
        try:
            load(file, **kwargs)
        except FileNotFoundError as error:
            raise WeightsNotFoundError(
                f"weights file {str(error.filename)!r} does not exist; `learn.save(name)` writes "
                "it there, `learn.path` and `learn.model_dir` are where"
            ) from error
    is_continual = continual_head(learn.model) is not None
    noted = {"former_names": facts["former_names"], "class_ids": tuple(facts["class_ids"])}
    record = ContinualRecord(**noted) if is_continual else None
    learn.state = replace(learn.state, record=record, ood_detector=detector)
    return learn


@contextmanager
def _fitting_head(learn: Any) -> Iterator[None]:
    """Exchange the head, while a state is loaded, for one of the kind the state is of."""
    model = learn.model
    if not hasattr(model, "__len__") or len(model) != 2:
        yield
        return
    head = model[1]

    # In a hook: only the state tells its kind of head, and fastai reads it far inside `load`.
    def exchange(module: Any, state: Mapping[str, Tensor], *_: Any) -> None:
        if (_CONFIG in state) != (continual_head(model) is not None):
            model[1] = _head_for(learn, state)

    handle = model.register_load_state_dict_pre_hook(exchange)
    try:
        yield
    except BaseException:
        model[1] = head
        raise
    finally:
        handle.remove()


def _head_for(learn: Any, state: Mapping[str, Tensor]) -> Any:
    """An empty head that takes this state."""
    if _CONFIG not in state:
        known = None if learn.state.record is None else learn.state.record.trained_head
        if known is not None:
            return known
        return untrained_head(learn, len(names_of(learn.dls) or ()))
    try:
        settings = json.loads(bytes(state[_CONFIG].tolist()).decode())["settings"]
        return ContinualClassifier(**settings)
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"the state of the continual head cannot be read: {error}") from error


def _read_extra(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of the extra file of a saved state; empty ones without one."""
    empty: dict[str, Any] = {"ood": None, "former_names": {}, "class_ids": []}
    if not path.is_file():
        return empty, {}
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        try:
            return empty | json.loads((file.metadata() or {})["learnkit"]), tensors
        except (KeyError, ValueError) as error:
            raise WeightsError(f"{str(path)!r} is damaged: {error}") from error


@contextmanager
def explained_batches(learn: Any) -> Iterator[None]:
    """Explain what may stop a pass: a reading process that died, a batch of one image.

    Raises:
        WorkerError: The process; the message names the ways out.
        DataError: A batch norm that trains cannot normalise by one image.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if "Expected more than 1 value per channel when training" in str(error):
            raise DataError(
                f"a training batch holds one image ({len(learn.dl)} batches, `bs` is "
                f"{getattr(learn.dl, 'bs', None)}), and a batch norm needs two to normalise by: "
                "use a `bs` of at least 2, and drop_last=True where one image is left for the last "
                "batch"
            ) from error
        if not re.search(r"DataLoader worker .*(exited unexpectedly|killed by signal)", str(error)):
            raise
        raise WorkerError(
            f"a reading process died in a pass of {len(learn.dl)} batches: {error}. Usually "
            "memory ran out, or the shared memory in /dev/shm: use a smaller `bs` or fewer "
            "`num_workers`; with num_workers=0 an unreadable image is named"
        ) from error


@contextmanager
def explained_divergence(learn: Any, num_it: int) -> Iterator[None]:
    """Explain a search for learning rates whose losses are too few to suggest one.

    Raises:
        DataError: The loss grew at once, or was no number; the message has the rate.
    """
    try:
        yield
    except IndexError as error:
        losses = [float(loss) for loss in learn.recorder.losses]
        finite = sum(map(math.isfinite, losses))
        if not losses or finite > num_it // 10 + _SKIPPED + _WINDOW:
            raise
        raise DataError(
            f"lr_find has {finite} finite losses of {num_it} wanted, too few to suggest a rate: "
            f"the last one is {losses[-1]:.3g} at the rate {float(learn.recorder.lrs[-1]):.3g}. "
            "Start lower, as by start_lr=1e-7, look at the network's weights if it is so from the "
            "start, or take more steps with `num_it`"
        ) from error


@contextmanager
def explained_mismatch(model: nn.Module, file: Any) -> Iterator[None]:
    """Raise WeightsError with the first difference when a state dict does not fit `model`."""
    try:
        yield
    except RuntimeError as error:
        if "Error(s) in loading state_dict" not in str(error):
            raise
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        lacking = re.findall(r'"1\.\d+\.bias"', lines[0])
        v2 = ", lin_bias=False if fastai v2 built it" if lacking else ""
        raise WeightsError(
            f"{str(file)!r} does not fit this network ({len(lines)} kinds of differences, first: "
            f"{lines[0][:200]}); build the learner with the architecture, head and number of "
            f"classes that were saved{v2}"
        ) from error

"""Checkpoints of a training: after Ctrl-C, a crash or a kill it goes on as if nothing happened.

At the end of every epoch one file takes the place of the last one: weights, optimizer, where in
which fit the training stands, history, seeds, and what the run is made of. On a CPU a resumed
training gives the same weights to the bit. The file is written atomically, and read without
executing anything in it.
"""

import hashlib
import os
import random
import textwrap
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import learnkit._torchvision  # noqa: F401  # before fastai

import numpy as np
import torch
from fastai.callback.core import CancelEpochException
from fastai.learner import SkipToEpoch
from fastai.optimizer import Optimizer
from fastai.torch_core import to_device
from fastcore.foundation import L

from learnkit.callback.base import TrainingCallback
from learnkit.callback.callback_state import (
    callback_marks,
    callback_state,
    plain_tree,
    restore_callbacks,
    switch_off_others,
)
from learnkit.callback.training_precision import precision_of, resume_precision
from learnkit.errors import CheckpointError
from learnkit.storage.filesystem import write_file

_CURVES = ("lrs", "losses", "iters")  # of fastai's recorder
_FIRST = -1_000_000  # of all callbacks
FORMAT = 1
ENTRIES = frozenset(
    ["format", "seed", "every", "phase", "epoch", "n_epochs", "run", "train_iter"]
    + ["model", "optimizer", "records", "recorder", "history"]
)


class Checkpoint(TrainingCallback):
    """Saves the training to `file` after each epoch; `Checkpoint.resume(file)` goes on from there.

        learn.fine_tune(5, cbs=Checkpoint("run.ckpt"))         # interrupted in its fourth epoch
        learn.fine_tune(5, cbs=Checkpoint.resume("run.ckpt"))  # same call, learner built the same
        way

    One object accompanies one training, however many fits that takes: a resumed training repeats
    the same calls, and what is already done is skipped (fastai's table shows the skipped epochs
    with the numbers they had). Other callbacks are told nothing of skipped epochs: they get back
    the numbers they had kept, and lists and dictionaries of numbers. Curves go on at the step they
    had come to where fastai's callback for TensorBoard gets the folder of before, and that for
    Weights & Biases the run of before. While a checkpoint is active, every epoch sets the global
    random seeds.

    Args:
        file: where to save; its folder is made. Replaced atomically: a kill leaves the last one.
        every: epochs between two saves; the last epoch of a fit is always saved.
        seed: with the number of the fit and of the epoch, the source of all randomness.
        config: further settings that must be the same when resumed.
    """

    order = SkipToEpoch.order + 5  # after Recorder and TrainingHistory have closed the epoch
    _stateattrs = ("_saved",)

    def __init__(
        self,
        file: str | os.PathLike,
        *,
        every: int = 1,
        seed: int = 42,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.file, self.every, self.seed = Path(file), every, seed
        self.config = {name: str(value) for name, value in (config or {}).items()}
        self.order = _FIRST
        self.phase, self.n_epochs, self.records, self.seconds = -1, [], [], []
        self._begun: dict[str, dict[str, Any]] = {}
        self._silenced: list[tuple[Any, bool]] = []
        self.run_is: dict[str, str] | None = None
        self._saved: dict[str, Any] | None = None

    def _init_state(self) -> None:
        super()._init_state()
        self._saved = None  # what was read is not pickled along

    @classmethod
    def resume(
        cls,
        file: str | os.PathLike,
        *,
        config: Mapping[str, Any] | None = None,
        unsaid: Mapping[str, Any] | None = None,
    ) -> "Checkpoint":
        """A checkpoint that takes the training up where `file` left it, and goes on saving there.

        Args:
            file: what was saved.
            config: as it was then.
            unsaid: of settings in `config` that `file` may not name yet, what they were then.

        Raises:
            CheckpointError: there is no such file, or it is damaged. That it belongs to another run
                is found when the fit starts, before anything is changed.
        """
        saved = read_checkpoint(file)
        checkpoint = cls(file, every=saved["every"], seed=saved["seed"], config=config)
        checkpoint._saved = saved
        before = {name: str(value) for name, value in (unsaid or {}).items()}
        # what the file says itself goes before it
        saved["run"] = {n: before[n] for n in checkpoint.config if n in before} | saved["run"]
        return checkpoint

    @property
    def progress(self) -> tuple[int, int] | None:
        """(fit, from 0; epochs done in it) of the file resumed from, None for a new training."""
        return None if self._saved is None else (self._saved["phase"], self._saved["epoch"] + 1)

    @property
    def _run_there(self) -> dict[str, str]:
        """What the run was that wrote the file."""
        return {"precision": "float32"} | self._saved["run"]  # which old files do not name

    def resume_precision(self, learn: Any) -> None:
        """Let a learner whose precision is "auto" go on in that of the file resumed from."""
        if self._saved is not None:
            resume_precision(learn, self._run_there["precision"])

    # fastai sorts the callbacks anew for every event. Where an epoch may be skipped this one comes
    # first, so that none has acted on it; where an epoch ends it comes last, when all have.

    def before_fit(self) -> None:
        """Count the fit; of one that is done nobody else hears."""
        if self.run_is is None:
            self._begin()
        self.phase += 1
        self.n_epochs.append(self.n_epoch)
        self.records.append([])
        self.seconds.append([])
        if self._saved is not None and self.phase <= self._saved["phase"]:
            name, before = f"number of epochs of fit {self.phase}", self._saved["n_epochs"]
            there, here = str(before[self.phase]), str(self.n_epoch)
            check_same_run(self.file, {name: there}, {name: here})
            if self.phase < self._saved["phase"]:
                self._silence()

    def before_epoch(self) -> None:
        """Load the file if it was written in this fit; seed an epoch that is not done."""
        if self.epoch == 0:  # every callback has begun the fit
            self._begun = callback_marks(self.learn, self._begun)
            if self._saved is not None and self.phase == self._saved["phase"]:
                self._load()
        if not self._is_done():
            self._end_silence()
            seed_epoch(self.dls, self.seed, self.phase, self.epoch)
        elif self.phase == self._saved["phase"] and not self._silenced:
            self._silence()

    def before_train(self) -> None:
        """Skip an epoch that is done."""
        self.order = type(self).order
        if self._is_done():
            self.recorder.log = L(self.epoch, *self._saved["records"][self.phase][self.epoch])
            seconds = self._saved.get("seconds")  # a file of an earlier version has none
            took = seconds[self.phase][self.epoch] if seconds else 0
            # from which fastai's Recorder counts the time in its table
            self.recorder.start_epoch = time.time() - took
            raise CancelEpochException

    def after_epoch(self) -> None:
        """Note the epoch's numbers; save, unless it was skipped."""
        self.order = _FIRST
        self.records[-1].append(plain_tree(self.recorder.values[-1]))
        self.seconds[-1].append(time.time() - getattr(self.recorder, "start_epoch", time.time()))
        if self._is_done():
            self._draw_on()
        elif (self.epoch + 1) % self.every == 0 or self.epoch + 1 == self.n_epoch:
            write_checkpoint(self.file, self._state())

    def after_cancel_fit(self) -> None:
        """Come first at the end of the fit, too."""
        self.order = _FIRST

    def after_fit(self) -> None:
        """Let all others end the fit, unless they have not begun it."""
        if self._saved is not None and self.phase >= self._saved["phase"]:
            self._end_silence()
        self._silenced = []  # at the end of a fit, fastai switches all on

    def _silence(self) -> None:
        self._silenced = switch_off_others(self.learn, self, self._saved.get("callbacks", {}))

    def _end_silence(self) -> None:
        for cb, run in self._silenced:
            cb.run = run
        self._silenced = []

    def _draw_on(self) -> None:
        """Let smoothed losses and plots go on without a seam after the last epoch that is done."""
        if (self.phase, self.epoch) == (self._saved["phase"], self._saved["epoch"]):
            for name in _CURVES:
                setattr(self.recorder, name, list(self._saved["recorder"][name]))
            smooth = self.recorder.smooth_loss
            smooth.val, smooth.count = self._saved["recorder"]["smooth"]

    def _begin(self) -> None:
        """Check, before any training, that the file can be written and belongs to this run."""
        self.resume_precision(self.learn)
        self.run_is = describe_run(self.learn) | self.config
        check_writable(self.file)
        if self._saved is not None:
            check_same_run(self.file, self._run_there, self.run_is)
            shapes = [_shapes(self._saved["model"]), _shapes(self.model.state_dict())]
            check_same_run(self.file, *shapes)

    def _is_done(self) -> bool:
        """True for an epoch that was trained before the file was written."""
        saved = self._saved
        return saved is not None and (self.phase, self.epoch) <= (saved["phase"], saved["epoch"])

    def _state(self) -> dict[str, Any]:
        history, smooth = vars(self.learn).get("training_history"), self.recorder.smooth_loss
        curves = {name: list(getattr(self.recorder, name)) for name in _CURVES}
        scaler = vars(self.learn).get("scaler")  # of gradients in float16
        named = ((name, one.grad) for name, one in self.model.named_parameters())
        # those that wait for their step, as where they are accumulated over batches
        waiting = {name: grad for name, grad in named if grad is not None and grad.any()}
        return {
            "seed": self.seed,
            "every": self.every,
            "phase": self.phase,
            "epoch": self.epoch,
            "n_epochs": self.n_epochs,
            "run": self.run_is,
            "train_iter": self.train_iter,
            "model": self.model.state_dict(),
            "optimizer": self.opt.state_dict(),
            "gradients": waiting,
            "scaler": None if scaler is None else scaler.state_dict(),
            "callbacks": callback_state(self.learn, self._begun),
            "records": self.records,
            "seconds": self.seconds,
            "recorder": curves | {"smooth": (smooth.val, smooth.count)},
            "history": None if history is None else history.state(),
        }

    def _load(self) -> None:
        """Put the learner where it was when the file was written."""
        saved, history = self._saved, vars(self.learn).get("training_history")
        self.model.load_state_dict(saved["model"])
        device = next(self.model.parameters()).device
        # fastai's optimizers keep the tensors they are given, which were read onto the CPU
        self.opt.load_state_dict(to_device(saved["optimizer"], device))
        if isinstance(self.opt, Optimizer):
            self.opt.hypers = L(self.opt.hypers, use_list=None)
        for name, gradient in saved.get("gradients", {}).items():
            self.model.get_parameter(name).grad = gradient.to(device)
        if saved.get("scaler") and vars(self.learn).get("scaler") is not None:
            self.learn.scaler.load_state_dict(saved["scaler"])
        restore_callbacks(self.learn, saved.get("callbacks", {}))
        # fastai set it to 0 as the fit began; its TensorBoardCallback counts steps by it
        self.learn.train_iter = saved["train_iter"]
        if saved["history"] is not None and history is not None:
            history.load_state(saved["history"])
        saved["model"] = saved["optimizer"] = None  # half a gigabyte for a large network


def seed_epoch(dls: Any, seed: int, phase: int, epoch: int) -> None:
    """Seed torch, numpy, `random` and fastai's loaders from (seed, phase, epoch)."""
    # Randomness is made, not stored: an epoch must not depend on how it was reached.
    digest = hashlib.sha256(f"{seed} {phase} {epoch}".encode()).digest()
    # 7 bytes and 4: a seed of torch's has 64 bits at most, one of numpy's 32
    torch.manual_seed(int.from_bytes(digest[:7], "big"))
    np.random.seed(int.from_bytes(digest[8:12], "big"))  # noqa: NPY002  # fastai draws from it
    random.seed(digest)
    for i, dl in enumerate(dls.loaders):
        if hasattr(dl, "rng"):
            # fastai seeds it once, from the global generator, when the loader is made
            dl.rng = random.Random(digest + bytes([i]))


def describe_run(learn: Any) -> dict[str, str]:
    """What must be the same for a training to be continued, in words to compare."""
    dls, spec = learn.dls, getattr(learn.model, "spec", None)
    described = {"architecture": spec.arch if spec is not None else type(learn.model).__name__}
    if getattr(dls, "vocab", None) is not None:
        described["classes"] = ", ".join(map(str, dls.vocab))
    described["images"] = " + ".join(str(len(dl.dataset)) for dl in dls.loaders)
    described["precision"] = precision_of(learn)
    described["batch size"] = str(getattr(dls.train, "bs", None))
    if (images := getattr(dls, "image_dataset", None)) is not None:
        described["data"] = images.fingerprint()
    return described


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {f"weight {name}": str(tuple(value.shape)) for name, value in state.items()}


def read_checkpoint(file: str | os.PathLike) -> dict[str, Any]:
    """Content of a checkpoint, with its tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or of a newer format.
    """
    path = Path(file)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {str(path)!r}; train without resuming first")
    try:
        _check_checksums(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, LookupError, EOFError, UnpicklingError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    return _checked(path, saved)


def _check_checksums(path: Path) -> None:
    """Raise unless every record has its checksum, which `torch.load` does not check."""
    try:
        with zipfile.ZipFile(path) as archive:
            flipped = archive.testzip()
    # NotImplementedError: a flipped bit may name a compression or a version that zipfile lacks
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(str(error)) from error
    if flipped is not None:
        raise ValueError(f"wrong checksum of {flipped!r}")


def _checked(path: Path, saved: Any) -> dict[str, Any]:
    """`saved`, if it is what `write_checkpoint` writes."""
    if not isinstance(saved, dict) or not isinstance(saved.get("format"), int):
        raise CheckpointError(
            f"{str(path)!r} is not a checkpoint of a learnkit training; choose another file"
        )
    if saved["format"] > FORMAT:
        raise CheckpointError(
            f"checkpoint {str(path)!r} has format {saved['format']}, this learnkit reads up to "
            f"{FORMAT}; update learnkit"
        )
    if missing := sorted(ENTRIES - set(saved)):
        raise _damaged(path, f"{', '.join(missing)} missing")
    return saved


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {str(path)!r} is damaged ({why}); remove it and train without resuming"
    )


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Replace `path` by a file of `state`, or raise and leave it as it was.

    Raises:
        CheckpointError: the disk refused.
    """
    try:
        write_file(path, lambda file: torch.save(plain_tree({"format": FORMAT, **state}), file))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(
            f"checkpoint {str(path)!r} could not be written ({_reason(error)}); the one before it "
            "is intact: free space, then resume"
        ) from error


def check_writable(path: Path) -> None:
    """Make the folder of `path` and raise unless files can be written into it."""
    trial = path.with_name(f".{path.name}.trial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(trial, lambda file: file.write(b"learnkit"))
        trial.unlink()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be written ({_reason(error)}); choose another folder"
        ) from error


def check_same_run(path: Path, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise with the first difference between the run that wrote `path` and this one."""
    for name in [*there, *(n for n in here if n not in there)]:
        if there.get(name) != here.get(name):
            raise CheckpointError(
                f"checkpoint {str(path)!r} belongs to another run: {name} is "
                f"{_short(there.get(name))} there and {_short(here.get(name))} here; repeat the "
                "run it came from, or start again with another file"
            )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]


def _short(text: str | None) -> str:
    return "absent" if text is None else repr(textwrap.shorten(text, 60, placeholder=" ..."))

import os
import pickle
import random
import re
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.basics import Callback, DataLoaders, OptimWrapper, to_detach
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.schedule import ParamScheduler, SchedLin
from fastai.callback.tracker import (
    EarlyStoppingCallback,
    ReduceLROnPlateau,
    SaveModelCallback,
    TrackerCallback,
)
from fastai.callback.training import GradientAccumulation
from helpers import toy_learner

from learnkit.callback.checkpoint import ENTRIES, Checkpoint, check_writable, read_checkpoint
from learnkit.callback.history import TrainingHistory
from learnkit.errors import CheckpointError


class CtrlC(Callback):
    """Interrupt the n-th training batch, counted over all fits."""

    def __init__(self, n):
        self.left = n

    def before_batch(self):
        if self.training:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


class Noise(Callback):
    """An augmentation that draws from all three sources of randomness."""

    def before_batch(self):
        if self.training:
            noise = torch.randn_like(self.x) + np.random.rand() + random.random()  # noqa: NPY002
            self.learn.xb = (self.x + 0.1 * noise,)


def train(cbs, *, plan="fine_tune", seed=0, **kwargs):
    """A learner trained by `plan` from the weights and in the random state of `seed`."""
    torch.manual_seed(seed)
    learn = toy_learner([TrainingHistory(0.5), Noise()], seed=0, **kwargs)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in learn.model.parameters():
            parameter.normal_()
    PLANS[plan](learn, cbs)
    return learn


PLANS = {
    "fine_tune": lambda learn, cbs: learn.fine_tune(3, 1e-2, cbs=cbs),
    "one_cycle": lambda learn, cbs: learn.fit_one_cycle(4, 1e-2, cbs=cbs),
    "flat": lambda learn, cbs: learn.fit(4, 1e-2, cbs=cbs),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Learners whose training was never interrupted, by plan."""
    file = tmp_path_factory.mktemp("whole") / "run.ckpt"
    return {plan: train(Checkpoint(file), plan=plan) for plan in PLANS}


def assert_same_training(one, other):
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    frames = [learn.training_history.frame.drop(columns="seconds") for learn in (one, other)]
    assert frames[0].equals(frames[1])
    assert [float(v) for v in one.recorder.losses] == [float(v) for v in other.recorder.losses]
    assert list(one.recorder.iters) == list(other.recorder.iters)


# 3 batches an epoch: interrupted in the 2nd, 3rd and 4th epoch, and exactly between two epochs
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("batch", [3, 4, 8, 11])
def test_resumed_training_gives_the_same_weights_to_the_bit(tmp_path, whole, plan, batch):
    file = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        train([Checkpoint(file), CtrlC(batch)], plan=plan)
    random.seed(batch)
    resumed = train(Checkpoint.resume(file), plan=plan, seed=99)
    assert_same_training(whole[plan], resumed)


def test_a_training_may_be_interrupted_twice(tmp_path, whole):
    file = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        train([Checkpoint(file), CtrlC(4)])
    with pytest.raises(KeyboardInterrupt):
        train([Checkpoint.resume(file), CtrlC(4)], seed=98)
    assert_same_training(whole["fine_tune"], train(Checkpoint.resume(file), seed=99))


def test_a_finished_training_is_only_loaded(tmp_path, whole):
    file = tmp_path / "run.ckpt"
    train(Checkpoint(file))
    again = train([Checkpoint.resume(file), CtrlC(0)], seed=99)  # not one batch is trained
    for name, value in whole["fine_tune"].model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_torch_optimizers_resume_too(tmp_path):
    def sgd(params, **kwargs):
        return OptimWrapper(params, torch.optim.SGD, **kwargs)

    file = tmp_path / "run.ckpt"
    whole = train(Checkpoint(tmp_path / "whole.ckpt"), opt_func=sgd)
    with pytest.raises(KeyboardInterrupt):
        train([Checkpoint(file), CtrlC(8)], opt_func=sgd)
    assert_same_training(whole, train(Checkpoint.resume(file), opt_func=sgd, seed=99))


def test_epochs_are_seeded_by_seed_fit_and_epoch(tmp_path):
    def first_batches(seed):
        seen = []

        class See(Callback):
            def before_batch(self):
                if self.training and self.iter == 0:
                    seen.append(
                        (self.x.clone(), torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
                    )

        learn = toy_learner(See())
        learn.fine_tune(2, cbs=Checkpoint(tmp_path / "run.ckpt", seed=seed))
        return seen

    one, same, other = first_batches(1), first_batches(1), first_batches(2)
    assert [s[1:] for s in one] == [s[1:] for s in same]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, same, strict=True))
    assert len({s[1:] for s in one + other}) == 6
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))


def test_every_second_epoch_and_the_last_are_saved(tmp_path):
    saved = []

    class See(Callback):
        order = Checkpoint.order + 1

        def after_epoch(self):
            saved.append(read_checkpoint(tmp_path / "run.ckpt")["epoch"] if self.epoch else None)

    toy_learner().fit(5, cbs=[Checkpoint(tmp_path / "run.ckpt", every=2), See()])
    assert saved == [None, 1, 1, 3, 4]


def test_lr_find_get_preds_and_validate_save_nothing(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run.ckpt")
    learn = toy_learner(checkpoint, path=tmp_path)
    learn.lr_find(num_it=8, show_plot=False)
    learn.get_preds()
    learn.validate()
    assert not checkpoint.file.exists()
    assert checkpoint.phase == -1


def test_early_stopping_counts_the_skipped_epochs(tmp_path):
    file = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        train([Checkpoint(file), CtrlC(8)], plan="flat")  # in its third epoch
    never_better = EarlyStoppingCallback(monitor="train_loss", min_delta=1e3, patience=2)
    resumed = train([Checkpoint.resume(file), never_better], plan="flat")
    assert len(resumed.training_history.frame) == 3


# -- other callbacks: as in the training that was never interrupted -------------------------------


class BestOfAll(Callback):
    """A user's callback: counts, keeps the best, and writes a file after each epoch."""

    order = TrackerCallback.order

    def before_fit(self):
        self.n, self.best, self.seen = 0, None, {}

    def after_epoch(self):
        loss = self.recorder.values[-1][0]
        self.n, self.seen[f"epoch {self.epoch}"] = self.n + 1, loss
        self.best = loss if self.best is None else min(loss, self.best)
        folder = self.learn.path / "models"
        folder.mkdir(exist_ok=True)
        weight = self.learn.model[0][0].weight.sum().item()
        (folder / f"seen_{self.epoch}.txt").write_text(f"{self.n} {weight}", encoding="utf-8")


class Mixed(MixedPrecision):
    """fastai's, on the CPU: its scale doubles every three steps."""

    def before_fit(self):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
        self.learn.scaler, self.scales = scaler, []

    def before_batch(self):
        pass

    def after_loss(self):
        pass

    def after_fit(self):
        self.learn.ended_with = self.learn.scaler.state_dict()


class Graph(ShowGraphCallback):
    """fastai's, with its bar in place of a picture."""

    def after_epoch(self):
        bar, self.learn.progress.mbar = self.learn.progress.mbar, self
        super().after_epoch()
        self.learn.progress.mbar = bar

    def update_graph(self, graphs, x_bounds, y_bounds):
        numbers = [[list(map(float, axis)) for axis in graph] for graph in graphs]
        self.learn.graph = numbers, tuple(map(float, (*x_bounds, *y_bounds)))


NEVER = {"monitor": "train_loss", "min_delta": 1e3}  # better at its first epoch, then never again
OTHERS = {
    "best": lambda: SaveModelCallback(monitor="accuracy"),
    "best, with optimizer": lambda: SaveModelCallback(with_opt=True, min_delta=0.2),
    "best of all fits": lambda: SaveModelCallback(monitor="accuracy", reset_on_fit=False),
    "every epoch": lambda: SaveModelCallback(every_epoch=True),
    "at the end": lambda: SaveModelCallback(at_end=True),
    "plateau": lambda: ReduceLROnPlateau(**NEVER, patience=2),
    "plateau, impatient": lambda: ReduceLROnPlateau(**NEVER),
    "early stopping": lambda: EarlyStoppingCallback(**NEVER, patience=3),
    "tracker": lambda: TrackerCallback(monitor="accuracy"),
    "table": CSVLogger,
    "longer table": lambda: CSVLogger(append=True),
    "graph": Graph,
    "schedule": lambda: ParamScheduler({"lr": SchedLin(1e-2, 1e-3)}),
    "accumulation": lambda: GradientAccumulation(20),
    "of the user": BestOfAll,
    "mixed precision": Mixed,
}


def followed(folder, other, checkpoint, *cbs, plan):
    """A learner trained in `folder` with one more callback, and that callback."""
    cb = OTHERS[other]()
    folder.mkdir(exist_ok=True)
    if not (folder / "history.csv").exists():  # an earlier training's
        (folder / "history.csv").write_text("one,two\n", encoding="utf-8")

    def plus(learn, cbs):
        if other == "graph":
            learn.add_cb(ProgressCallback())
        PLANS[plan](learn, [*cbs, cb])

    PLANS["plus"] = plus
    try:
        learn = train([checkpoint, *cbs], plan="plus", path=folder, seed=7)
    finally:
        del PLANS["plus"]
        if hasattr(cb, "file"):  # as at the end of a process
            cb.file.close()
    return learn, cb


def left_behind(folder):
    """What a training left in a folder; times of a table in whole seconds."""
    read = {".pth": lambda f: torch.load(f, weights_only=False), ".csv": lambda f: f.read_text()}
    files = [f for f in sorted(folder.rglob("*.*")) if f.suffix != ".ckpt"]
    return {f.name: repr(read.get(f.suffix, lambda f: f.read_bytes())(f)) for f in files}


OVER_FITS = ["best of all fits", "every epoch", "at the end", "longer table", "of the user"]


@pytest.mark.parametrize(
    ("other", "plan"), [(o, "flat") for o in OTHERS] + [(o, "fine_tune") for o in OVER_FITS]
)
def test_other_callbacks_end_as_in_the_uninterrupted_training(tmp_path, other, plan):
    whole, cb = followed(tmp_path / "a", other, Checkpoint(tmp_path / "a.ckpt"), plan=plan)
    file, folder = tmp_path / "b.ckpt", tmp_path / "b"
    stop = CtrlC(7 if plan == "flat" else 10)
    with pytest.raises(KeyboardInterrupt):
        followed(folder, other, Checkpoint(file), stop, plan=plan)
    resumed, again = followed(folder, other, Checkpoint.resume(file), plan=plan)
    assert_same_training(whole, resumed)
    assert left_behind(folder) == left_behind(tmp_path / "a")
    assert repr(resumed.opt.hypers) == repr(whole.opt.hypers)
    assert getattr(resumed, "graph", None) == getattr(whole, "graph", None)
    assert getattr(resumed, "ended_with", None) == getattr(whole, "ended_with", None)
    if hasattr(whole.recorder, "hps"):
        assert resumed.recorder.hps == whole.recorder.hps
    plain = {n: v for n, v in vars(cb).items() if isinstance(v, int | float | list | dict)}
    plain.pop("scheds", None)  # functions
    assert {n: getattr(again, n) for n in plain} == plain


def tensorboard(monkeypatch, board):
    """fastai's callback for TensorBoard; what it writes goes to `board`: (tag, step) -> number."""

    class SummaryWriter:
        def __init__(self, log_dir):
            self.close = lambda: None

        def add_scalar(self, tag, value, step):
            board[tag, step] = float(value)

    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.delitem(sys.modules, "fastai.callback.tensorboard", raising=False)
    callback = import_module("fastai.callback.tensorboard").TensorBoardCallback
    return lambda: callback(trace_model=False, log_preds=False)


def wandb(monkeypatch, board):
    """fastai's callback for Weights & Biases, whose runs take no step twice once it is left."""
    fake = ModuleType("wandb")
    fake.run = SimpleNamespace(step=0, summary={})
    fake.config = SimpleNamespace(update=lambda *_, **__: None)

    def log(numbers, step=None):
        fake.run.step += step is None
        if step is not None and step >= fake.run.step:
            fake.run.step = step
            fake.run.summary |= numbers
            board.update({(tag, step): float(to_detach(v)) for tag, v in numbers.items()})

    fake.log = log
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delitem(sys.modules, "fastai.callback.wandb", raising=False)
    module = import_module("fastai.callback.wandb")
    # fastai itself fails there: `init_args` of its fastcore wants objects with a `__dict__`.
    monkeypatch.setattr(module, "_format_config", lambda config: None)
    return lambda: module.WandbCallback(log_preds=False)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("tracker", [tensorboard, wandb])
def test_a_tracker_shows_the_curves_of_the_uninterrupted_training(
    tmp_path, monkeypatch, tracker, plan
):
    curves = []
    for stops in ([], [10], [7, 7]):
        board, file = {}, tmp_path / f"{len(curves)}.ckpt"
        make = tracker(monkeypatch, board)
        for n in stops:
            way = Checkpoint.resume if file.exists() else Checkpoint
            with pytest.raises(KeyboardInterrupt):
                train([way(file), make(), CtrlC(n)], plan=plan)
        way = Checkpoint.resume if stops else Checkpoint
        train([way(file), make()], plan=plan)
        curves.append({at: v for at, v in board.items() if "per_sec" not in at[0]})
    assert {"train_loss", "accuracy", "lr_0"} <= {tag for tag, _ in curves[0]}
    assert curves[1] == curves[0]
    assert curves[2] == curves[0]


def test_a_skipped_epoch_is_told_to_nobody(tmp_path):
    heard = []

    class Hear(Callback):
        def before_fit(self):
            heard.append("fit")

        def before_epoch(self):
            heard.append(self.epoch)

        def after_cancel_epoch(self):
            heard.append("cancelled")

        def after_epoch(self):
            heard.append(self.epoch)

        def after_fit(self):
            heard.append("end")

    class HearLast(Hear):
        order = Checkpoint.order + 10

    file = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        train([Checkpoint(file), CtrlC(10)])
    train([Checkpoint.resume(file), Hear()], seed=1)  # head: 1 epoch, done; all: 3, 2 of them done
    assert heard == ["fit", 2, 2, "end"]
    heard.clear()
    with pytest.raises(KeyboardInterrupt):
        train([Checkpoint(file), CtrlC(10)])
    train([Checkpoint.resume(file), HearLast()], seed=1)
    assert heard == ["fit", 2, 2, "end"]


def test_arguments_of_the_resumed_call_hold(tmp_path):
    file = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        train([Checkpoint(file), CtrlC(7), ReduceLROnPlateau(**NEVER, patience=3)], plan="flat")
    other = ReduceLROnPlateau(**NEVER, patience=2, factor=4)
    resumed = train([Checkpoint.resume(file), other], plan="flat")
    assert other.patience == 2
    assert float(resumed.opt.hypers[-1]["lr"]) == pytest.approx(1e-2 / 4)


def test_a_checkpoint_cannot_choose_the_file_that_a_callback_writes(tmp_path):
    file = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        train([Checkpoint(file), CtrlC(7), SaveModelCallback()], plan="flat", path=tmp_path)
    values = read_checkpoint(file)["callbacks"]["SaveModelCallback 0"]["values"]
    assert sorted(values) == ["best", "new_best"]


def test_the_table_shows_skipped_epochs_with_the_time_they_took(tmp_path):
    file, lines = tmp_path / "run.ckpt", []
    with pytest.raises(KeyboardInterrupt):
        train([Checkpoint(file), CtrlC(7)], plan="flat")
    saved = read_checkpoint(file)
    torch.save(saved | {"seconds": [[61.2, 125.9]]}, file)

    def logged(learn, cbs):
        learn.logger = lines.append
        PLANS["flat"](learn, cbs)

    PLANS["logged"] = logged
    try:
        train(Checkpoint.resume(file), plan="logged")
    finally:
        del PLANS["logged"]
    assert [line[0] for line in lines] == [0, 1, 2, 3]
    assert [line[-1] for line in lines[:2]] == ["01:01", "02:05"]
    assert list(lines[1][1:-1]) == saved["records"][0][1]


def test_a_file_without_the_state_of_callbacks_still_resumes(tmp_path, whole):
    file = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        train([Checkpoint(file), CtrlC(8)])
    saved = read_checkpoint(file)
    torch.save({k: saved[k] for k in ENTRIES}, file)
    assert_same_training(whole["fine_tune"], train(Checkpoint.resume(file), seed=99))


# -- the wrong file -----------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    toy_learner().fit(2, cbs=Checkpoint(tmp_path / "run.ckpt", config={"lr": 0.001}))
    return tmp_path / "run.ckpt"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no checkpoint '.*none\.ckpt'; train without resuming"
    ):
        Checkpoint.resume(tmp_path / "none.ckpt")


@pytest.mark.parametrize("n", [0, 10, 300, -200, -1])
def test_a_truncated_file_is_named(file, n):
    file.write_bytes(file.read_bytes()[:n])
    with pytest.raises(
        CheckpointError, match=r"run\.ckpt' is damaged .*; remove it and train without"
    ):
        Checkpoint.resume(file)


def test_any_flipped_byte_is_noticed_or_harmless(file):
    content = file.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(content), 40):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        file.write_bytes(damaged)
        try:
            state = read_checkpoint(file)
        except CheckpointError:
            continue
        reference = torch.load(_rewritten(file, content), weights_only=True)
        assert all(torch.equal(state["model"][k], v) for k, v in reference["model"].items())


def _rewritten(file, content):
    good = file.with_name("good.ckpt")
    good.write_bytes(content)
    return good


def test_another_file_of_torch_is_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth' is not a checkpoint of a"):
        Checkpoint.resume(tmp_path / "weights.pth")


def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "hacked"), "w"))

    torch.save({"format": 1, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "hacked").exists()


def test_a_newer_format_is_refused(file):
    torch.save(torch.load(file, weights_only=True) | {"format": 2}, file)
    with pytest.raises(CheckpointError, match=r"has format 2, .* reads up to 1; update learnkit"):
        read_checkpoint(file)


def another_vocab(learn):
    learn.dls.vocab = ["good", "bad"]


def another_network(learn):
    learn.model[1][1] = torch.nn.Linear(8, 3)


def more_images(learn):
    learn.dls = DataLoaders(learn.dls.train, learn.dls.train)


def nothing(learn):
    pass


@pytest.mark.parametrize(
    ("change", "lr", "n_epoch", "difference"),
    [
        (another_vocab, 0.001, 2, "classes is absent there and 'good, bad' here"),
        (another_network, 0.001, 2, "weight 1.1.weight is '(2, 8)' there and '(3, 8)' here"),
        (more_images, 0.001, 2, "images is '30 + 10' there and '30 + 30' here"),
        (nothing, 0.01, 2, "lr is '0.001' there and '0.01' here"),
        (nothing, 0.001, 3, "number of epochs of fit 0 is '2' there and '3' here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(file, change, lr, n_epoch, difference):
    learn = toy_learner()
    change(learn)
    before = [p.clone() for p in learn.model.parameters()]
    expected = re.escape(f"belongs to another run: {difference}; repeat")
    with pytest.raises(CheckpointError, match=rf"^checkpoint '.*run\.ckpt' {expected}"):
        learn.fit(n_epoch, cbs=Checkpoint.resume(file, config={"lr": lr}))
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters(), strict=True))


# -- the disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file(file, monkeypatch, call):
    content = file.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    checkpoint = Checkpoint(file)
    learn = toy_learner()
    check_writable(file)
    monkeypatch.setattr("learnkit.callback.checkpoint.check_writable", lambda path: None)
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError, match=r"written \(No space left on device\).* is intact"):
        learn.fit(1, cbs=checkpoint)
    assert file.read_bytes() == content
    assert [p.name for p in file.parent.iterdir()] == ["run.ckpt"]


def test_an_unwritable_folder_is_refused_before_training(tmp_path):
    (tmp_path / "blocked").write_text("a file, not a folder", encoding="utf-8")
    learn = toy_learner()
    with pytest.raises(CheckpointError, match=r"cannot be written .*choose another folder"):
        learn.fit(1, cbs=[Checkpoint(tmp_path / "blocked" / "run.ckpt"), CtrlC(0)])


def test_pickles_without_what_it_has_read(file):
    checkpoint = Checkpoint.resume(file)
    assert checkpoint.progress == (0, 2)
    assert pickle.loads(pickle.dumps(checkpoint)).progress is None

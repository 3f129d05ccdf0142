import pickle
import random
import re

import numpy as np
import pytest
import torch
from fastai.basics import Callback, DataLoaders, OptimWrapper
from fastai.callback.tracker import EarlyStoppingCallback
from helpers import toy_learner

from learnkit.callback import checkpoint_file
from learnkit.callback.checkpoint import Checkpoint
from learnkit.callback.checkpoint_file import read_checkpoint
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
    checkpoint_file.check_writable(file)
    monkeypatch.setattr(checkpoint_file, "check_writable", lambda path: None)
    monkeypatch.setattr("learnkit.callback.checkpoint.check_writable", lambda path: None)
    monkeypatch.setattr(checkpoint_file.os, call, fail)
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

import pickle

import numpy as np
import pytest
import torch
from fastai.basics import (
    Callback,
    CrossEntropyLossFlat,
    Learner,
    Metric,
    Recorder,
    Transform,
    noop,
)
from fastai.callback.training import ShortEpochCallback
from fastai.data.all import DataBlock, RandomSplitter
from helpers import toy_learner
from torch import nn

from learnkit.callback.history import TrainingHistory
from learnkit.callback.stop_on_non_finite import StopOnNonFinite
from learnkit.errors import DataError


def test_every_epoch_of_every_fit_has_one_row():
    learn = toy_learner(TrainingHistory())
    learn.fine_tune(2)
    learn.fit(1, lr=1e-3)
    frame = learn.training_history.frame
    assert list(frame["fit"]) == [1, 2, 2, 3]
    assert list(frame["epoch"]) == [1, 2, 3, 4]
    assert frame["lr"].iloc[-1] == 1e-3
    assert (frame["seconds"] > 0).all()


def test_numbers_are_those_of_the_recorder():
    learn = toy_learner(TrainingHistory())
    learn.fit_one_cycle(2)
    names = ["train_loss", "valid_loss", "accuracy"]
    assert learn.training_history.frame[names].to_numpy().tolist() == [
        list(v) for v in learn.recorder.values
    ]


class Fixed(Metric):
    """A metric of any name whose value is told."""

    def __init__(self, name, number):
        self._name, self._value = name, number

    @property
    def name(self):
        return self._name

    @property
    def value(self):
        return self._value


TAKEN = ["fit", "epoch", "lr", "seconds", "time", "train_error", "valid_error", "train_loss"]


def test_metrics_of_a_taken_name_get_a_column_of_their_own():
    metrics = [Fixed(name, i) for i, name in enumerate([*TAKEN, "a", "a", "a_2", "a"])]
    learn = toy_learner(TrainingHistory(0.5))
    learn.metrics = metrics
    learn.fit(2)
    frame = learn.training_history.frame
    columns = [name if name == "time" else f"{name}_2" for name in TAKEN]
    columns += ["a", "a_2", "a_2_2", "a_3"]
    assert frame[columns].to_numpy().tolist() == [list(range(len(metrics)))] * 2
    assert list(frame["epoch"]) == [1, 2]
    assert frame["train_loss"].tolist() == [values[0] for values in learn.recorder.values]


@pytest.mark.parametrize("add_time", [True, False])
@pytest.mark.parametrize(
    ("train_metrics", "valid_metrics"), [(False, True), (True, True), (True, False), (False, False)]
)
@pytest.mark.parametrize("cut", ["none", "train", "both"])
def test_numbers_of_a_pass_cut_short_stand_in_their_own_columns(
    add_time, train_metrics, valid_metrics, cut
):
    recorder = Recorder(add_time=add_time, train_metrics=train_metrics, valid_metrics=valid_metrics)
    learn = toy_learner(
        [TrainingHistory(), *([] if cut == "none" else [ShortEpochCallback(0, cut == "both")])]
    )
    learn.remove_cb(Recorder)
    learn.add_cb(recorder)
    learn.metrics = [*learn.metrics, Fixed("seven", 7.0)]
    learn.fit(2)
    row = dict(learn.training_history.frame.iloc[-1])
    names = recorder.metric_names[1 : -1 if add_time else None]
    measured = dict(zip(names, recorder.values[-1], strict=False))  # right where nothing is cut
    for name in names:
        split = "train" if name.startswith("train_") or not valid_metrics else "valid"
        if split == "train" and not train_metrics and name != "train_loss":
            continue  # fastai names it and measures it not
        is_cut = cut == "both" or (cut == "train" and split == "train")
        assert np.isnan(row[name]) == is_cut, name
        if not is_cut and name.endswith("seven"):
            assert row[name] == 7
        if cut == "none":
            assert row[name] == measured[name]
    if cut == "train" and valid_metrics:
        learn.model.eval()
        with torch.no_grad():
            x, y = zip(*learn.dls.valid.dataset, strict=True)
            loss = learn.loss_func(learn.model(torch.stack(x)), torch.stack(y))
        assert row["valid_loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_a_diary_never_ends_a_training():
    learn = toy_learner(TrainingHistory())
    learn.remove_cb(Recorder)
    learn.fit(2, 1e-3)
    frame = learn.training_history.frame
    assert list(frame.columns) == ["fit", "epoch", "lr", "seconds"]
    assert list(frame["lr"]) == [1e-3] * 2


def test_a_pass_before_there_is_an_optimizer_has_a_row_without_a_rate():
    learn = toy_learner([TrainingHistory(), StopOnNonFinite()])
    with learn:
        for event in ("before_train", "after_train"):
            learn(event)
    (row,) = learn.training_history.rows
    assert np.isnan(row["lr"])


def test_lr_find_get_preds_and_validate_add_no_row(tmp_path):
    learn = toy_learner(TrainingHistory(0.5), path=tmp_path)
    learn.lr_find(num_it=8, show_plot=False)
    learn.fit(1)
    before = learn.training_history.frame
    learn.get_preds()
    learn.validate()
    learn.lr_find(num_it=8, show_plot=False)
    assert learn.training_history.frame.equals(before)
    assert list(before["fit"]) == [1]


def test_an_interrupted_fit_keeps_its_finished_epochs():
    class CtrlC(Callback):
        def before_epoch(self):
            if self.epoch == 1:
                raise KeyboardInterrupt

    learn = toy_learner(TrainingHistory())
    with pytest.raises(KeyboardInterrupt):
        learn.fit(3, cbs=CtrlC())
    learn.fit(1)
    assert list(learn.training_history.frame["fit"]) == [1, 2]


@pytest.mark.parametrize(("share", "n"), [(1.0, 30), (0.4, 12), (7, 7), (100, 30)])
def test_errors_are_those_of_the_network_in_eval_mode(share, n):
    learn = toy_learner(TrainingHistory(share))
    learn.fit(1)
    row = learn.training_history.frame.iloc[-1]
    x, y = (torch.stack(t) for t in zip(*learn.dls.train_ds, strict=True))
    chosen = sorted(np.random.default_rng(42).permutation(30)[:n])
    learn.model.eval()
    with torch.no_grad():
        wrong = (learn.model(x[chosen]).argmax(1) != y[chosen]).float()
    assert row["train_error"] == pytest.approx(wrong.mean().item())
    assert row["valid_error"] == pytest.approx(1 - row["accuracy"])


def test_the_extra_pass_changes_neither_weights_nor_randomness():
    plain, watched = toy_learner(), toy_learner(TrainingHistory(0.5))
    draws = []
    for learn in (plain, watched):
        torch.manual_seed(1)
        learn.dls.train.rng.seed(1)
        learn.fit(2)
        draws.append((torch.rand(1).item(), learn.dls.train.rng.random()))
    assert draws[0] == draws[1]
    for a, b in zip(
        plain.model.state_dict().values(), watched.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_training_images_are_measured_without_augmentation():
    class Spoil(Transform):
        split_idx, order = 0, 5  # an augmentation: training items only

        def encodes(self, x: torch.Tensor):
            return x * 1000 if x.is_floating_point() else x

    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            if not self.training:
                seen.append(x.abs().max().item())
            return super().forward(x)

    block = DataBlock(
        get_x=lambda i: torch.full((3,), float(i)),
        get_y=lambda i: i % 2,
        splitter=RandomSplitter(0.5, seed=1),
        batch_tfms=[Spoil()],
    )
    dls = block.dataloaders(list(range(8)), bs=4, num_workers=0)
    learn = Learner(dls, Spy(3, 2), loss_func=CrossEntropyLossFlat(), cbs=TrainingHistory(1.0))
    learn.remove_cb(learn.progress)
    learn.logger = noop
    learn.fit(1)
    assert len(seen) == 2  # the validation pass and the extra one
    assert max(seen) < 10


def test_several_labels_count_one_by_one():
    learn = toy_learner(TrainingHistory(1.0))
    one_hot = [(x, nn.functional.one_hot(y, 2).float()) for x, y in learn.dls.train.dataset]
    learn.dls.train.dataset, learn.dls.valid.dataset = one_hot, one_hot[:10]
    learn.metrics, learn.loss_func = [], nn.BCEWithLogitsLoss()
    learn.fit(1)
    x, y = (torch.stack(t) for t in zip(*one_hot, strict=True))
    learn.model.eval()
    with torch.no_grad():
        wrong = ((learn.model(x).sigmoid() > 0.5) != (y > 0.5)).float()
    assert learn.training_history.frame["train_error"].item() == pytest.approx(wrong.mean().item())


def test_survives_pickling_and_counts_on():
    learn = toy_learner(TrainingHistory(0.5))
    learn.fit(1)
    copy = pickle.loads(pickle.dumps(learn)).training_history
    assert copy.frame.equals(learn.training_history.frame)
    copy.learn.fit(1)
    assert list(copy.frame["fit"]) == [1, 2]


@pytest.mark.parametrize("share", [0, 0.0, -1, 1.5, True, "all"])
def test_senseless_share_is_refused(share):
    with pytest.raises(DataError, match=r"`train_share` is .*; give a share of the"):
        TrainingHistory(share)


def test_comes_after_the_recorder():
    assert TrainingHistory.order > Recorder.order

import pickle

import pytest
import torch
from fastai.basics import Callback, CancelFitException, DataLoaders
from fastai.callback.tracker import (
    EarlyStoppingCallback,
    ReduceLROnPlateau,
    SaveModelCallback,
    TerminateOnNaNCallback,
)
from helpers import toy_learner

from learnkit.callback.stop_on_non_finite import StopOnNonFinite, explained_monitors
from learnkit.errors import DataError, NonFiniteLossError
from learnkit.storage.formats import first_non_finite


class At(Callback):
    """Call `act(learn)` at `event` of the batch (epoch, iter) of training."""

    def __init__(self, epoch, iteration, act, event="before_batch"):
        self.at, self.act, self.event = (epoch, iteration), act, event

    def __call__(self, event_name):
        if (
            event_name == self.event
            and self.learn.training
            and (self.learn.epoch, self.learn.iter) == self.at
        ):
            self.act(self.learn)


class Snapshots(Callback):
    """The weights at the end of each epoch."""

    order = 80

    def before_fit(self):
        self.states = []

    def after_epoch(self):
        self.states.append({k: v.clone() for k, v in self.model.state_dict().items()})


def poison_input(learn):
    xb = learn.xb[0].clone()
    xb[2] = float("nan")
    learn.xb = (xb,)


def poison_weight(learn):
    with torch.no_grad():
        learn.model[0][0].weight[0, 0] = float("inf")


def poison_buffer(learn):
    learn.model[0][1].running_mean[0] = float("nan")


def assert_same(state, model):
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_non_finite_loss_stops_and_puts_back_the_weights_of_the_last_epoch():
    learn = toy_learner([StopOnNonFinite(), Snapshots(), At(2, 1, poison_input)])
    with pytest.raises(
        NonFiniteLossError, match="training loss is nan in epoch 2, batch 1"
    ) as caught:
        learn.fit(4, lr=1e-3)
    assert len(learn.snapshots.states) == 2
    assert_same(learn.snapshots.states[-1], learn.model)
    assert (caught.value.epoch, caught.value.batch, caught.value.lr) == (2, 1, 1e-3)


def test_the_message_names_the_item_whose_input_is_not_finite():
    learn = toy_learner([StopOnNonFinite(), At(0, 1, poison_input)])
    with pytest.raises(NonFiniteLossError) as caught:
        learn.fit(1, lr=1e-3)
    order = learn.dls.train._DataLoader__idxs[8:16]
    assert caught.value.items == order
    assert (
        f"items with a non-finite input: {order[2]}). The weights of the start of the fit"
        in str(caught.value)
    )
    assert str(caught.value).endswith("remove or repair these items")


def test_the_message_names_the_files_of_the_batch():
    learn = toy_learner(
        [StopOnNonFinite(), At(0, 0, lambda learn: setattr(learn, "loss_func", _nan))]
    )
    data = learn.dls.train.dataset
    learn.dls.train.dataset = _Files(data)
    with pytest.raises(
        NonFiniteLossError, match=r"items: \d+\.png, .* and 3 more\)\. .*lower learning rate"
    ) as caught:
        learn.fit(1)
    order = learn.dls.train._DataLoader__idxs[:8]
    assert caught.value.items == [f"{i}.png" for i in order]


class _Files(list):
    @property
    def items(self):
        return [(f"{i}.png", 0) for i in range(len(self))]


def _nan(pred, y):
    return pred.sum() * float("nan")


def test_an_absurd_learning_rate_stops_at_once():
    learn = toy_learner(StopOnNonFinite())
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with pytest.raises(
        NonFiniteLossError, match=r"learning rate 1e\+30.*train with a lower learning rate"
    ):
        learn.fit(3, lr=1e30)
    assert_same(before, learn.model)


def test_a_step_that_breaks_a_weight_is_named_at_once():
    learn = toy_learner([StopOnNonFinite(), At(1, 2, poison_weight, "before_step")])
    with pytest.raises(
        NonFiniteLossError,
        match=r"step made the weight '0\.0\.weight' non-finite in epoch 1, batch 2",
    ):
        learn.fit(3)


def test_a_broken_running_statistic_is_found_at_the_end_of_the_epoch():
    learn = toy_learner([StopOnNonFinite(), At(1, 1, poison_buffer, "after_batch")])
    with pytest.raises(
        NonFiniteLossError, match=r"buffer '0\.1\.running_mean' became non-finite in epoch 1"
    ):
        learn.fit(3)
    assert first_non_finite(learn.model.state_dict()) is None


def test_weights_are_also_kept_within_an_epoch():
    good = {}
    keep = At(
        0,
        2,
        lambda learn: good.update({k: v.clone() for k, v in learn.model.state_dict().items()}),
        "before_backward",
    )
    learn = toy_learner([StopOnNonFinite(every=2), keep, At(0, 2, poison_weight, "before_step")])
    with pytest.raises(NonFiniteLossError, match="weights of epoch 0, batch 2 are back"):
        learn.fit(1)
    assert_same(good, learn.model)


def test_the_learner_can_be_trained_on_after_a_stop():
    def poison_gradient(learn):
        learn.model[0][0].weight.grad[0, 0] = float("nan")  # spoils Adam's averages, too

    learn = toy_learner([StopOnNonFinite(), Snapshots()])
    learn.fit(1)
    with pytest.raises(NonFiniteLossError):
        learn.fit(1, cbs=At(0, 1, poison_gradient, "before_step"))
    assert all(p.grad is None for p in learn.model.parameters())
    learn.fit_one_cycle(2, 1e-3)
    assert len(learn.snapshots.states) == 2
    assert first_non_finite(learn.model.state_dict()) is None


def test_other_callbacks_end_the_fit_before_the_error_is_raised():
    class Ended(Callback):
        def after_fit(self):
            self.has_ended = True

    learn = toy_learner([StopOnNonFinite(), Ended()])
    with pytest.raises(NonFiniteLossError):
        learn.fit(1, lr=1e30)
    assert learn.ended.has_ended


def test_nothing_changes_in_a_healthy_training():
    states = []
    for cbs in (None, StopOnNonFinite(every=1)):
        torch.manual_seed(0)
        learn = toy_learner(cbs)
        learn.dls.train.rng.seed(0)
        learn.fit_one_cycle(2)
        states.append(learn.model)
    assert_same(states[0].state_dict(), states[1])


def test_lr_find_may_diverge(tmp_path):
    learn = toy_learner(StopOnNonFinite(), path=tmp_path)
    suggestion = learn.lr_find(end_lr=1e30, num_it=30, stop_div=False, show_plot=False)
    assert 0 < suggestion.valley < 1e30
    assert first_non_finite(learn.model.state_dict()) is None


def test_a_cancelled_fit_is_no_error():
    def cancel(learn):
        raise CancelFitException

    learn = toy_learner([StopOnNonFinite(), At(0, 1, cancel)])
    learn.fit(1)
    assert learn.stop_on_non_finite._good is None


def test_a_loader_without_batches_is_refused():
    learn = toy_learner(StopOnNonFinite(), n=15)
    assert len(learn.dls.train) == 0
    with pytest.raises(
        DataError, match=r"0 batches: 5 images, batch size 8, .* use a batch size of at most 5"
    ):
        learn.fit(1)
    learn.validate()  # needs no training batches


def test_a_network_that_starts_non_finite_is_refused():
    learn = toy_learner(StopOnNonFinite())
    poison_weight(learn)
    with pytest.raises(
        NonFiniteLossError, match=r"'0\.0\.weight' is not finite before the training starts"
    ):
        learn.fit(1)


def test_pickles_without_the_kept_weights():
    learn = toy_learner(StopOnNonFinite(every=7))
    learn.fit(1)
    copy = pickle.loads(pickle.dumps(learn.stop_on_non_finite))
    assert copy.every == 7
    assert not hasattr(copy, "_good")


# -- beside fastai's callbacks that load at the end -----------------------------------------------


def poisoned(tmp_path, cbs, at=(0, 1)):
    """A learner to train, with a file of another training where SaveModelCallback saves."""
    learn = toy_learner([*cbs, StopOnNonFinite(), At(*at, poison_input)], path=tmp_path)
    other = toy_learner(path=tmp_path, seed=5)
    other.save("model")
    return learn, other


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("options", [{}, {"with_opt": True}, {"at_end": True}, {"every_epoch": 1}])
def test_the_weights_are_those_of_the_message_beside_a_callback_that_loads_the_best(
    tmp_path, options, epoch
):
    learn, _ = poisoned(tmp_path, [SaveModelCallback(**options)], at=(epoch, 1))
    start = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.add_cb(Snapshots())
    when = f"the end of epoch {epoch - 1}" if epoch else "the start of the fit"
    with pytest.raises(NonFiniteLossError, match=f"weights of {when} are back"):
        learn.fit(3, 0.1)
    assert_same(learn.snapshots.states[-1] if epoch else start, learn.model)


def test_without_a_file_to_load_the_error_is_the_same(tmp_path):
    learn = toy_learner(
        [SaveModelCallback(), StopOnNonFinite(), At(0, 1, poison_input)], path=tmp_path
    )
    with pytest.raises(NonFiniteLossError, match="the start of the fit are back"):
        learn.fit(2, 0.1)
    assert learn.save_model.run  # again, for the next fit


def test_a_callback_that_fails_to_end_does_not_hide_the_error():
    ended = []

    class Fails(Callback):
        def after_fit(self):
            ended.append(self.recorder.values[-1])

    class Ends(Callback):
        order = 10

        def after_fit(self):
            ended.append("ended")

    learn = toy_learner([Fails(), Ends(), StopOnNonFinite(), At(0, 1, poison_input)])
    with pytest.raises(NonFiniteLossError) as caught:
        learn.fit(2, 0.1)
    assert isinstance(caught.value.__context__, IndexError)
    assert ended == ["ended"]


def test_weights_that_another_callback_loads_at_the_end_are_replaced():
    class Swaps(Callback):
        def after_fit(self):
            torch.nn.init.zeros_(self.model[0][0].weight)

    learn = toy_learner([Swaps(), StopOnNonFinite(), At(0, 1, poison_input)])
    start = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with pytest.raises(NonFiniteLossError):
        learn.fit(2, 0.1)
    assert_same(start, learn.model)


@pytest.mark.parametrize("stopped", [True, False])
def test_a_fit_without_a_best_epoch_loads_no_older_file(tmp_path, stopped):
    def cancel(learn):
        raise CancelFitException

    def no_number(pred, target):
        return torch.tensor(float("nan"))

    learn = toy_learner([SaveModelCallback(monitor="no_number"), StopOnNonFinite()], path=tmp_path)
    learn.metrics = [no_number]
    if stopped:
        learn.add_cb(At(1, 1, cancel))
    other = toy_learner(path=tmp_path, seed=5)
    other.save("model")
    with pytest.warns(UserWarning, match="'no_number' has no best epoch. The weights stay as"):
        learn.fit(2, 0.1)
    assert not torch.equal(other.model[0][0].weight, learn.model[0][0].weight)


def test_the_best_epoch_is_still_loaded_at_the_end(tmp_path):
    learn = toy_learner([SaveModelCallback(), Snapshots(), StopOnNonFinite()], path=tmp_path)
    learn.fit(4, 0.5)
    losses = [values[1] for values in learn.recorder.values]
    assert_same(learn.snapshots.states[losses.index(min(losses))], learn.model)


@pytest.mark.parametrize("poison", [poison_input, poison_weight])
def test_beside_terminate_on_nan_the_stop_is_quiet(poison):
    learn = toy_learner([TerminateOnNaNCallback(), StopOnNonFinite(), At(1, 1, poison)])
    alone = toy_learner([TerminateOnNaNCallback(), At(1, 1, poison)])
    for learner in (learn, alone):
        torch.manual_seed(0)
        learner.dls.train.rng.seed(0)
        learner.fit(3, 0.1)
    assert learn.epoch == alone.epoch == 1
    for a, b in zip(learn.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.allclose(a, b, equal_nan=True)


def test_beside_terminate_on_nan_a_loader_without_batches_is_still_refused():
    with pytest.raises(DataError, match="0 batches"):
        toy_learner([TerminateOnNaNCallback(), StopOnNonFinite()], n=12, bs=64).fit(1)


@pytest.mark.parametrize("kind", [SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau])
@pytest.mark.parametrize("monitor", ["valid_loss", "accuracy"])
def test_a_measure_of_validation_images_is_not_watched_without_any(kind, monitor):
    learn = toy_learner(cbs=StopOnNonFinite())
    learn.dls = DataLoaders(learn.dls.train, learn.dls.valid.new(n=0))
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with pytest.raises(DataError, match=f"^{kind.__name__} watches '{monitor}', and there are no"):
        learn.fit(1, cbs=kind(monitor=monitor))
    assert_same(before, learn.model)
    learn.fit(1, cbs=kind(monitor="train_loss"))  # what there is may be watched


def test_a_measure_that_no_epoch_has_is_named_with_those_there_are():
    learn = toy_learner()
    with (
        pytest.raises(DataError, match=r"watches 'acc', which .* there are .*'accuracy', 'time'$"),
        explained_monitors(learn, SaveModelCallback(monitor="acc")),
    ):
        learn.fit(1, cbs=SaveModelCallback(monitor="acc"))
    with pytest.raises(IndexError, match=r"^mine$"), explained_monitors(learn, None):
        raise IndexError("mine")

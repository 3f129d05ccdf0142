"""Head epochs on stored features end where ordinary epochs end, and never get in the way."""

import contextlib
import copy
import pickle
import random
import re
import warnings

import numpy as np
import pytest
import torch
from fastai.callback.mixup import MixUp
from fastai.callback.training import BnFreeze
from fastai.vision.all import (
    SGD,
    Adam,
    Brightness,
    Callback,
    CancelBatchException,
    CancelTrainException,
    Categorize,
    Datasets,
    Flip,
    IntToFloatTensor,
    Learner,
    PILImage,
    Resize,
    ResizeMethod,
    SaveModelCallback,
    TensorImage,
    TfmdDL,
    ToTensor,
    Transform,
    WeightedDL,
    accuracy,
    ranger,
    set_seed,
)
from helpers import write_image_folder
from torch import nn

from learnkit.callback.frozen_features import FrozenFeatures
from learnkit.callback.stop_on_non_finite import StopOnNonFinite
from learnkit.data.dataset import ImageDataset
from learnkit.errors import NonFiniteLossError
from learnkit.learner.factory import cnn_learner
from learnkit.models.head import create_head

N_TRAIN, N_VALID, SIZE = 22, 9, 16
N = N_TRAIN + N_VALID


class Images:
    """Noisy pictures by number; counts how often one is looked at."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.labels = rng.integers(0, 3, N)
        noise = rng.integers(0, 120, (N, SIZE, SIZE + 4, 3))
        self.pixels = (noise + 60 * self.labels[:, None, None, None]).astype("uint8")
        self.n_read = 0

    def __call__(self, i):
        self.n_read += 1
        return PILImage.create(self.pixels[i])


def make_dls(*, item=(), batch=(), dl_type=TfmdDL, bs=5, **kwargs):
    images = Images()
    labels = [lambda i: int(images.labels[i]), Categorize(vocab=[0, 1, 2])]
    splits = [list(range(N_TRAIN)), list(range(N_TRAIN, N))]
    dls = Datasets(range(N), [[images], labels], splits=splits).dataloaders(
        bs=bs,
        dl_type=dl_type,
        after_item=[*item, ToTensor()],
        after_batch=[IntToFloatTensor(), *batch],
        **{"num_workers": 0, **kwargs},
    )
    dls.images = images
    return dls


def make_model(head=None, *, extra=()):
    torch.manual_seed(3)
    norm = nn.BatchNorm2d(6)
    norm.running_mean.uniform_(-0.3, 0.3)
    norm.running_var.uniform_(0.1, 0.5)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), norm, nn.ReLU(inplace=True), *extra)
    return nn.Sequential(body, head or create_head(6, n_out=3, lin_ftrs=[8], ps=0.5))


def make_learner(
    path, cbs=(), *, dls=make_dls, model=make_model, train_bn=False, freeze=True, **kwargs
):
    set_seed(7)
    learn = Learner(
        dls(),
        model(),
        splitter=lambda m: [list(m[0].parameters()), list(m[1].parameters())],
        metrics=accuracy,
        train_bn=train_bn,
        cbs=[*([] if train_bn else [BnFreeze]), *cbs],
        path=path,
        **kwargs,
    )
    learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    if freeze:
        learn.freeze()
    return learn


def fit_both(path, fit, cbs=(), *, reason=None, **kwargs):
    """The learners after `fit` with and without stored features, from one random state."""
    drawn = []
    for extra in ([FrozenFeatures()], []):
        learn = make_learner(path, [*cbs, *extra], **kwargs)
        fit(learn)
        numbers = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        drawn.append((learn, *numbers, learn.dls.train.rng.random()))
    assert drawn[0][1:] == drawn[1][1:]  # as many random numbers were drawn
    ours, plain = drawn[0][0], drawn[1][0]
    if reason is None:
        assert ours.frozen_features.reason is None
        assert ours.frozen_features.nbytes > 0
    else:
        assert reason in ours.frozen_features.reason
        assert ours.frozen_features.nbytes == 0
    return ours, plain


def assert_same_training(ours, plain, *, atol=1e-5):
    assert ours.model.state_dict().keys() == plain.model.state_dict().keys()
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, plain.model.state_dict()[name], rtol=0, atol=atol)
    for curve in (lambda r: [v for row in r.values for v in row], lambda r: r.losses):
        np.testing.assert_allclose(curve(ours.recorder), curve(plain.recorder), atol=atol)
    assert ours.recorder.lrs == plain.recorder.lrs


def assert_whole(learn, body):
    """The model is the one it was: body in place, callable on images, nothing attached to it."""
    assert learn.model[0] is body
    assert "forward" not in vars(learn.model)
    assert isinstance(learn.model[1][0], nn.Module)
    assert type(learn.model[1][0]).__name__ == "AdaptiveConcatPool2d"
    x = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        learn.model.eval()
        torch.testing.assert_close(learn.model(x), learn.model[1](body(x)))
    pickle.dumps(learn.model)


# -- the same result ------------------------------------------------------------------------------


@pytest.mark.parametrize("opt_func", [Adam, SGD, ranger], ids=["adam", "sgd", "ranger"])
def test_weights_metrics_and_curves_are_those_of_ordinary_training(tmp_path, opt_func):
    start = copy.deepcopy(make_model().state_dict())
    ours, plain = fit_both(tmp_path, lambda learn: learn.fit(3, 1e-2, wd=0.1), opt_func=opt_func)
    assert_same_training(ours, plain)
    moved = [k for k, v in start.items() if not torch.allclose(v, ours.model.state_dict()[k])]
    assert "1.8.weight" in moved
    assert all(name.startswith("1.") for name in moved)


def test_one_cycle_and_discriminative_rates_are_the_same(tmp_path):
    fit = lambda learn: learn.fit_one_cycle(3, slice(1e-3, 5e-2))
    assert_same_training(*fit_both(tmp_path, fit))


def test_unfreezing_afterwards_goes_on_as_without(tmp_path):
    def fit(learn):
        learn.fit(2, 1e-2)
        learn.unfreeze()
        learn.fit(1, 1e-2)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the phase that trains the body is nothing to complain of
        ours, plain = fit_both(tmp_path, fit, reason="the body trains (`0.weight`)")
    assert_same_training(ours, plain)


@pytest.mark.parametrize(
    ("head", "numbers_per_image"),
    [
        (lambda: create_head(6, n_out=3), 12),
        (lambda: create_head(6, n_out=3, concat_pool=False), 6),
        (
            lambda: nn.Sequential(nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            6 * 7 * 9,
        ),
    ],
    ids=["concat pool", "mean pool", "map"],
)
def test_pooled_features_are_stored_where_the_head_pools_first(tmp_path, head, numbers_per_image):
    model = lambda: make_model(head())
    ours, plain = fit_both(tmp_path, lambda learn: learn.fit(2, 1e-2), model=model)
    assert_same_training(ours, plain)
    assert ours.frozen_features.nbytes == 4 * numbers_per_image * N


def test_every_image_is_read_as_often_for_ten_epochs_as_for_one(tmp_path):
    n_read = []
    for n_epoch in (1, 10):
        learn = make_learner(tmp_path, [FrozenFeatures()])
        before = learn.dls.images.n_read
        learn.fit(n_epoch, 1e-2)
        n_read.append(learn.dls.images.n_read - before)
    assert n_read[0] == n_read[1]
    assert N <= n_read[0] < 2 * N + N_TRAIN  # each once, and a few to try the transforms on


def test_weighted_sampling_draws_the_same_images(tmp_path):
    def dls():
        loaders = make_dls(dl_type=WeightedDL)
        loaders.train.wgts = np.arange(N_TRAIN) / np.arange(N_TRAIN).sum()
        return loaders

    assert_same_training(*fit_both(tmp_path, lambda learn: learn.fit(3, 1e-2), dls=dls))


@pytest.mark.usefixtures("short_tmp")
def test_loading_workers_make_no_difference(tmp_path):
    dls = lambda: make_dls(num_workers=1)
    assert_same_training(*fit_both(tmp_path, lambda learn: learn.fit(1, 1e-2), dls=dls))


def test_transforms_without_chance_are_fine(tmp_path):
    dls = lambda: make_dls(item=[Resize(12, ResizeMethod.Squish)], drop_last=False)
    assert_same_training(*fit_both(tmp_path, lambda learn: learn.fit(2, 1e-2), dls=dls))


def test_saved_models_are_whole(tmp_path):
    learn = make_learner(tmp_path, [FrozenFeatures(), SaveModelCallback()])
    learn.fit(2, 1e-2)
    saved = torch.load(tmp_path / "models" / "model.pth", weights_only=True)
    assert saved.keys() == learn.model.state_dict().keys()


def test_it_works_as_argument_class_and_later_addition(tmp_path):
    given = FrozenFeatures()
    make_learner(tmp_path).fit(1, cbs=given)
    assert given.nbytes > 0
    learn = make_learner(tmp_path, [FrozenFeatures])
    learn.fit(1)
    assert learn.frozen_features.nbytes > 0
    learn = make_learner(tmp_path)
    learn.add_cb(FrozenFeatures()).fit(1)
    assert learn.frozen_features.nbytes > 0


def test_hooks_on_model_and_head_see_every_batch(tmp_path):
    learn, calls = make_learner(tmp_path, [FrozenFeatures()]), []
    for module in (learn.model, learn.model[1], learn.model[1][-1]):
        module.register_forward_hook(lambda m, i, o: calls.append(type(m)))
    learn.fit(1, 1e-2)
    n_batches = len(learn.dls.train) + len(learn.dls.valid)
    assert calls.count(nn.Linear) >= n_batches
    assert calls[-3:] == [nn.Linear, nn.Sequential, nn.Sequential]


def test_a_bad_batch_is_named_by_the_images_it_stands_for(tmp_path):
    def loss_func(logits, targets, **kwargs):
        loss = nn.functional.cross_entropy(logits, targets, **kwargs)
        loss_func.calls += 1
        return loss * (float("nan") if loss_func.calls == 3 else 1)

    named = []
    for extra in ([FrozenFeatures()], []):
        loss_func.calls = 0
        learn = make_learner(tmp_path, [StopOnNonFinite(), *extra], loss_func=loss_func)
        with pytest.raises(NonFiniteLossError) as caught:
            learn.fit(1)
        named.append(caught.value.items)
    assert named[0] == named[1]
    assert len(named[0]) == learn.dls.bs


def test_validation_uses_the_images_where_training_was_cancelled(tmp_path):
    class NoTraining(Callback):
        def before_train(self):
            if self.learn.epoch == 1:
                spoil(self.learn)
                raise CancelTrainException

    fit = lambda learn: learn.fit(3, 1e-2, cbs=NoTraining())
    ours, plain = fit_both(tmp_path, fit)
    assert_same_training(ours, plain)


# -- idle where it would be wrong -----------------------------------------------------------------


class RandomNoise(Transform):
    order = 50

    def encodes(self, x: TensorImage):
        return x + torch.rand(1)


class OwnDice(Transform):
    """Random without drawing from the shared generators."""

    order, n = 50, 0

    def encodes(self, x: TensorImage):
        self.n += 1
        return x + self.n


class BatchMean(Transform):
    order = 50

    def encodes(self, x: TensorImage):
        return x - x.mean(0)


class Stripes(nn.Module):
    """A layer of unknown kind that is random in training."""

    def forward(self, x):
        return x + torch.rand(1) if self.training else x


class Counter(nn.Module):
    """A layer of unknown kind with a moving buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.n += 1
        return x


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = make_model()

    def __getitem__(self, i):
        return self.inner[i]

    def forward(self, x):
        return self.inner(x)


def hooked_model():
    model = make_model()
    model[0][0].register_forward_hook(no_hook)
    return model


def no_hook(module, args, output):
    return None


with_batches_changed = lambda: Callback(before_batch=lambda self: None)

IDLE = {
    "free body": ({"freeze": False}, "the body trains (`0.weight`)"),
    "norms train": ({"train_bn": True}, "the body trains (`1.weight`)"),
    "dropout": (
        {"model": lambda: make_model(extra=[nn.Dropout2d(0.01)])},
        "`3` (Dropout2d) of the body drops at random (p=0.01)",
    ),
    "unknown layer": (
        {"model": lambda: make_model(extra=[Stripes()])},
        "computes something else in training mode",
    ),
    "unknown buffer": (
        {"model": lambda: make_model(extra=[Counter()])},
        "changes its buffers in training mode",
    ),
    "hook": ({"model": hooked_model}, "`0` (Conv2d) of the body has a forward hook"),
    "no body": ({"model": Wrapped}, "the model is a Wrapped, not nn.Sequential(body, head)"),
    "flips": ({"dls": lambda: make_dls(batch=[Flip()])}, "the transform Flip is random"),
    "light": ({"dls": lambda: make_dls(batch=[Brightness()])}, "the transform Brightness is"),
    "crops": ({"dls": lambda: make_dls(item=[Resize(12)])}, "the transform Resize is random"),
    "noise": ({"dls": lambda: make_dls(batch=[RandomNoise()])}, "draws random numbers"),
    "own dice": ({"dls": lambda: make_dls(batch=[OwnDice()])}, "differently each time"),
    "batch mean": ({"dls": lambda: make_dls(batch=[BatchMean()])}, "or by its batch"),
    "mixup": ({"cbs": [MixUp]}, "the callback MixUp works on the batches"),
    "any callback": ({"cbs": [with_batches_changed]}, "the callback Callback works on the batches"),
}


@pytest.mark.parametrize("case", IDLE)
def test_where_features_would_be_wrong_it_is_idle_and_says_why(tmp_path, case):
    kwargs, reason = IDLE[case]
    kwargs = {k: [c() for c in v] if k == "cbs" else v for k, v in kwargs.items()}
    if case == "own dice":  # looking at the images twice turns these dice
        learn = make_learner(tmp_path, [FrozenFeatures()], **kwargs)
        with pytest.warns(UserWarning, match="FrozenFeatures is idle because"):
            learn.fit(1, 1e-2)
        assert reason in learn.frozen_features.reason
        return
    with pytest.warns(UserWarning, match="FrozenFeatures is idle because"):
        ours, plain = fit_both(tmp_path, lambda learn: learn.fit(2, 1e-2), reason=reason, **kwargs)
    assert_same_training(ours, plain, atol=0)


def test_moving_batch_norms_are_named_with_their_remedy(tmp_path):
    learn = make_learner(tmp_path, [FrozenFeatures()])
    learn.remove_cb(BnFreeze)
    with pytest.warns(
        UserWarning, match=r"`1` \(BatchNorm2d\) .* batch statistics.*train_bn=False"
    ):
        learn.fit(1)


def test_gradients_left_by_earlier_training_are_noticed(tmp_path):
    """fastai steps every parameter that has a gradient, frozen or not."""
    learn = make_learner(tmp_path, [FrozenFeatures()], freeze=False)
    learn.remove_cb(FrozenFeatures)
    learn.fit(1, 1e-2)
    learn.freeze()
    learn.add_cb(FrozenFeatures())
    body = copy.deepcopy(learn.model[0].state_dict())
    with pytest.warns(UserWarning, match="`0.weight` of the frozen body keeps a gradient"):
        learn.fit(1, 1e-2, wd=0.1)
    assert not torch.equal(body["0.weight"], learn.model[0][0].weight)
    learn.model.zero_grad(set_to_none=True)
    learn.fit(1, 1e-2, wd=0.1)
    assert learn.frozen_features.reason is None


def test_too_many_features_are_not_stored(tmp_path):
    needed = 4 * 12 * N
    learn = make_learner(tmp_path, [FrozenFeatures(max_bytes=needed - 1)])
    with pytest.warns(UserWarning, match=f"{N} images would take 1,488 bytes, more than"):
        learn.fit(1)
    assert learn.frozen_features.nbytes == 0
    learn = make_learner(tmp_path, [FrozenFeatures(max_bytes=needed)])
    learn.fit(1)
    assert learn.frozen_features.nbytes == needed


def test_a_reason_is_told_once(tmp_path):
    learn = make_learner(tmp_path, [FrozenFeatures()], train_bn=True)
    with pytest.warns(UserWarning, match="idle") as told:
        learn.fit(3)
    assert len([w for w in told if "idle" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn.fit(1)
    assert "train_bn=False" in learn.frozen_features.reason


@pytest.mark.parametrize("verb", ["lr_find", "validate", "get_preds"])
def test_other_passes_use_the_images(tmp_path, verb):
    learn = make_learner(tmp_path, [FrozenFeatures()])
    learn.fit(1)
    shapes = []
    learn.model[0].register_forward_hook(lambda m, i, o: shapes.append(i[0].shape))
    before = copy.deepcopy(learn.model.state_dict())
    getattr(learn, verb)(**({"show_plot": False, "num_it": 6} if verb == "lr_find" else {}))
    assert shapes
    assert all(shape[1:] == (3, SIZE, SIZE + 4) for shape in shapes)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())


def test_other_data_validated_within_a_fit_are_looked_at(tmp_path):
    other = make_dls()

    class ValidateOther(Callback):
        def after_epoch(self):
            self.learn._do_epoch_validate(dl=other.valid)

    learn = make_learner(tmp_path, [FrozenFeatures()])
    learn.fit(2, 1e-2)
    before, losses = other.images.n_read, []
    learn.fit(2, 1e-2, cbs=[ValidateOther(), Callback(after_loss=lambda self: losses.append(1))])
    assert other.images.n_read == before + 2 * N_VALID
    assert len(losses) == 2 * (len(learn.dls.train) + 2 * len(learn.dls.valid))
    assert learn.frozen_features.reason is None


# -- interruptions --------------------------------------------------------------------------------


class Trouble(Callback):
    """Raises once, in one event of one batch."""

    def __init__(self, event, error, *, training, order):
        self.event, self.error, self.when, self.order = event, error, training, order
        setattr(self, event, self.strike)

    def strike(self):
        if self.error and self.learn.training == self.when and self.learn.iter == 1:
            error, self.error = self.error, None
            raise error


@pytest.mark.parametrize("training", [True, False], ids=["train", "valid"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("broken")], ids=["stop", "bug"]
)
@pytest.mark.parametrize("event", ["after_pred", "after_loss", "after_batch"])
def test_an_exception_in_an_event_leaves_the_model_whole(tmp_path, event, error, training):
    learn = make_learner(tmp_path, [FrozenFeatures()])
    body = learn.model[0]
    with pytest.raises(type(error)):
        learn.fit(2, cbs=Trouble(event, error, training=training, order=99))
    assert_whole(learn, body)
    learn.fit(1, 1e-2)
    assert learn.frozen_features.reason is None
    assert_whole(learn, body)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_inside_the_head_leaves_the_model_whole(tmp_path, error):
    learn = make_learner(tmp_path, [FrozenFeatures()])
    body, last = learn.model[0], learn.model[1][-1]

    def fail(*args):
        raise error

    handle = last.register_forward_pre_hook(fail)
    learn.model[1].eval()
    with contextlib.suppress(error):
        learn.fit(1)
    handle.remove()
    assert_whole(learn, body)


def test_a_batch_cancelled_before_its_call_does_no_harm(tmp_path, monkeypatch):
    """Callbacks of learnkit may have code for before_batch; one of them cancels a batch here."""
    monkeypatch.setattr(Trouble, "__module__", "learnkit.elsewhere")

    def fit(learn):
        trouble = Trouble("before_batch", CancelBatchException(), training=True, order=99)
        learn.fit(2, 1e-2, cbs=trouble)

    ours, plain = fit_both(tmp_path, fit)
    assert_same_training(ours, plain)
    trouble = Trouble("before_batch", KeyboardInterrupt(), training=True, order=99)
    body = ours.model[0]
    with pytest.raises(KeyboardInterrupt):
        ours.fit(1, cbs=trouble)
    x = torch.rand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(ours.model.eval()(x), ours.model[1](body(x)))
    assert_whole(ours, body)


def test_an_interrupted_computation_of_features_starts_again(tmp_path):
    learn = make_learner(tmp_path, [FrozenFeatures()])
    images, limit = learn.dls.images, learn.dls.images.n_read + 30

    def read(i, read=Images.__call__):
        if images.n_read == limit:
            images.n_read += 1
            raise KeyboardInterrupt
        return read(images, i)

    Images.__call__, original = (lambda self, i: read(i)), Images.__call__
    try:
        with pytest.raises(KeyboardInterrupt):
            learn.fit(1)
        assert learn.frozen_features.nbytes == 0
        learn.fit(1)
    finally:
        Images.__call__ = original
    assert learn.frozen_features.nbytes > 0


# -- what is stored stays true --------------------------------------------------------------------


def spoil(learn):
    """Change the body as fastai's optimizers do: behind the version counters."""
    learn.model[0][0].weight.data.mul_(-1.5)


def test_changed_weights_of_the_body_are_noticed_between_fits(tmp_path):
    def fit(learn):
        learn.fit(1, 1e-2)
        spoil(learn)
        learn.fit(2, 1e-2)

    assert_same_training(*fit_both(tmp_path, fit))


def test_weights_loaded_during_a_fit_are_noticed(tmp_path):
    fit = lambda learn: learn.fit(3, 1e-2, cbs=LoadConv())
    assert_same_training(*fit_both(tmp_path, fit))


class LoadConv(Callback):
    """Loads other weights of the body's convolution after the first epoch."""

    def after_epoch(self):
        if self.learn.epoch == 0:
            conv = self.learn.model[0][0]
            conv.load_state_dict({k: -v for k, v in conv.state_dict().items()})


def test_features_serve_the_next_fit(tmp_path):
    learn = make_learner(tmp_path, [FrozenFeatures()])
    learn.fit(1)
    before = learn.dls.images.n_read
    learn.fit(2)
    learn.fit_one_cycle(1)
    assert learn.dls.images.n_read == before
    learn.frozen_features.clear()
    assert learn.frozen_features.nbytes == 0
    learn.fit(1)
    assert learn.dls.images.n_read > before


def test_other_data_get_features_of_their_own(tmp_path):
    def fit(learn):
        learn.fit(1, 1e-2)
        random.seed(0)
        other = make_dls(bs=7)
        other.images.pixels[:] = 255 - other.images.pixels
        learn.dls = other
        learn.fit(2, 1e-2)

    assert_same_training(*fit_both(tmp_path, fit))


def test_another_batch_size_uses_the_features_there_are(tmp_path):
    learn = make_learner(tmp_path, [FrozenFeatures()])
    learn.fit(1)
    before = learn.dls.images.n_read
    learn.dls.loaders = [dl.new(bs=3) for dl in learn.dls.loaders]
    learn.fit(1)
    assert learn.recorder.iters == [N_TRAIN // 3]
    assert learn.dls.images.n_read == before


def test_it_pickles_without_its_features(tmp_path):
    learn = make_learner(tmp_path, [FrozenFeatures(max_bytes=10_000)])
    learn.fit(1)
    callback = learn.frozen_features
    callback.learn = None
    again = pickle.loads(pickle.dumps(callback))
    assert again.max_bytes == 10_000
    assert again.nbytes == 0
    learn = make_learner(tmp_path, [again])
    learn.fit(1)
    assert again.nbytes > 0


def test_its_name_is_free_on_a_learner():
    assert FrozenFeatures().name == "frozen_features"
    assert not hasattr(Learner, "frozen_features")


class Noticing(Callback):
    """Notes what is known when a fit begins, before any batch is made."""

    order = FrozenFeatures.order + 1

    def before_fit(self):
        self.learn.noticed = self.learn.frozen_features.reason


@pytest.mark.parametrize(
    ("augment", "frozen", "reason"),
    [
        (True, True, "the transform .* is random"),
        (False, False, "the body trains"),
        (False, True, ""),
    ],
)
def test_why_it_is_idle_is_said_before_the_first_batch(tmp_path, augment, frozen, reason):
    root = write_image_folder(tmp_path, {"a": 6, "b": 6})
    data = ImageDataset.from_folder(root).split(0.5, 0.5, seed=0)
    dls = data.dataloaders(size=32, bs=4, augment=augment)
    learn = cnn_learner(
        dls, "test_resnet", False, cbs=[FrozenFeatures(), Noticing()], train_bn=False
    )
    if frozen:
        learn.freeze()
    with warnings.catch_warnings(record=True) as caught, learn.no_bar(), learn.no_logging():
        warnings.simplefilter("always")
        learn.fit(1)
    said = [str(one.message) for one in caught if "FrozenFeatures" in str(one.message)]
    assert len(said) == bool(reason)
    assert all(re.search(f"is idle because {reason}", one) for one in said)
    assert (learn.noticed is None) == (reason == "")
    assert learn.noticed == learn.frozen_features.reason

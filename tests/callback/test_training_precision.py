import copy
import pickle

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import Learner
from fastcore.basics import noop
from helpers import quiet, tiny_learner, write_image_folder
from torch import nn

from learnkit.backends import processor
from learnkit.callback import training_precision as module
from learnkit.callback.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from learnkit.callback.frozen_features import FrozenFeatures
from learnkit.callback.training_precision import (
    TrainingPrecision,
    autocast_model,
    precision_of,
    training_precision,
)
from learnkit.data.dataset import ImageDataset
from learnkit.errors import (
    BackendUnavailableError,
    CheckpointError,
    DataError,
    NonFiniteLossError,
)
from learnkit.learner import trained_head
from learnkit.learner.factory import cnn_learner
from learnkit.learner.learner import ImageLearner

HALF, FULL = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_image_folder(tmp_path_factory.mktemp("images"), {"a": 16, "b": 16})
    return ImageDataset.from_folder(folder).split(0.75, 0.25, seed=0)


@pytest.fixture
def bfloat16(monkeypatch):
    """A processor with bfloat16, whatever this one has."""
    monkeypatch.setattr(processor, "processor_flags", lambda: frozenset({"amx_bf16"}))


@pytest.fixture
def no_bfloat16(monkeypatch):
    """A processor without bfloat16, whatever this one has."""
    monkeypatch.setattr(processor, "processor_flags", lambda: frozenset({"avx2", "avx512f"}))


def tiny(data, precision="bfloat16", *, size=64, seed=0, **kwargs):
    """An unfrozen silent learner over images of `size` pixels."""
    torch.manual_seed(seed)
    dls = data.dataloaders(size=size, bs=8, seed=seed)
    learn = cnn_learner(dls, "test_resnet", False, precision=precision, **kwargs)
    learn.logger = noop
    return quiet(learn)


def types_seen(learn):
    """A set that receives (training, type of the body's output, channels last) of each call."""
    seen = set()

    def look(body, inputs, output):
        laid_out = inputs[0].is_contiguous(memory_format=torch.channels_last)
        seen.add((learn.training, output.dtype, laid_out))

    learn.model[0].register_forward_hook(look)
    return seen


def weights_of(learn):
    return {name: value.clone() for name, value in learn.model.state_dict().items()}


def assert_equal_bits(one, other):
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("asked", "device", "has", "taken"),
    [
        ("auto", "cpu", True, "bfloat16"),
        ("auto", "cpu", False, "float32"),
        ("auto", "cuda", True, "bfloat16"),
        ("auto", "cuda", False, "float32"),
        ("auto", "mps", False, "float32"),
        ("float32", "cpu", True, "float32"),
        ("bfloat16", "cpu", False, "bfloat16"),
        ("float16", "cuda", False, "float16"),
    ],
)
def test_auto_takes_bfloat16_where_the_device_has_it(asked, device, has, taken):
    assert training_precision(asked, device, bfloat16=has) == taken


@pytest.mark.parametrize(
    ("flags", "faster"),
    [
        ({"avx512_bf16"}, True),
        ({"amx_bf16"}, True),
        ({"avx512f", "amx_int8"}, False),
        ({"bf16"}, 0),
    ],
    ids=["avx512", "amx", "neither", "arm"],
)
def test_the_flags_of_the_processor_tell_whether_it_trains_faster(monkeypatch, flags, faster):
    monkeypatch.setattr(processor, "processor_flags", lambda: frozenset(flags))
    assert module.multiplies_bfloat16("cpu") == faster
    assert not module.multiplies_bfloat16("mps")


def test_float16_is_refused_on_a_processor_before_anything_is_trained(data):
    words = (
        "`precision` is 'float16', which torch trains many times slower than float32 on "
        "processors; use 'auto', which takes bfloat16 where the processor has it"
    )
    with pytest.raises(BackendUnavailableError) as caught:
        tiny(data, "float16")
    assert str(caught.value) == words
    learn = tiny(data, "float32")
    before = weights_of(learn)
    with pytest.raises(BackendUnavailableError) as caught:  # in fastai's words it had a prefix
        learn.fit(1, cbs=TrainingPrecision("float16"))
    assert str(caught.value) == words
    assert_equal_bits(before, weights_of(learn))


def test_an_unknown_precision_is_named(data):
    words = "`precision` is 'half'; it must be one of auto, float32, bfloat16, float16"
    with pytest.raises(DataError, match=words):
        tiny(data, "half")
    with pytest.raises(DataError, match=words):
        TrainingPrecision("half")


def test_training_steps_are_bfloat16_and_all_that_measures_is_float32(data, bfloat16):
    learn = tiny(data, "auto")
    seen = types_seen(learn)
    learn.fit(1, 1e-3)
    assert seen == {(True, HALF, True), (False, FULL, True)}  # passes without gradients
    seen.clear()
    learn.validate()
    learn.get_preds()
    learn.outputs(ds_idx=0)
    learn.evaluate()
    learn.init_continual(data)
    assert {dtype for _, dtype, _ in seen} == {FULL}
    assert "float32" in str(learn.continual.statistics.origins)
    assert "bfloat16" not in str(learn.continual.statistics.origins)


def test_without_bfloat16_auto_is_float32_to_the_bit(data, no_bfloat16):
    learners = [tiny(data, precision) for precision in ("auto", "float32")]
    seen = types_seen(learners[0])
    for learn in learners:
        torch.manual_seed(1)
        learn.fit_one_cycle(2, 1e-2)
    assert seen == {(True, FULL, False), (False, FULL, True)}
    assert_equal_bits(*map(weights_of, learners))


def test_float32_is_what_fastai_trains_to_the_bit(data, bfloat16):
    learn = tiny(data, "float32")
    plain = Learner(learn.dls, copy.deepcopy(learn.model), learn.loss_func, splitter=learn.splitter)
    plain.logger = noop
    for one in (learn, quiet(plain)):
        torch.manual_seed(1)
        one.dls.train.rng.seed(1)
        one.fit_one_cycle(2, 1e-2)
    assert_equal_bits(weights_of(learn), weights_of(plain))


def test_auto_leaves_small_images_in_float32_and_bfloat16_does_not(data, bfloat16):
    for precision, size, expected in (
        ("auto", 63, FULL),
        ("auto", 64, HALF),
        ("bfloat16", 32, HALF),
    ):
        learn = tiny(data, precision, size=size)
        seen = types_seen(learn)
        learn.fit(1)
        assert {dtype for training, dtype, _ in seen if training} == {expected}


def test_weights_gradients_optimizer_and_norms_stay_float32_and_as_laid_out(data):
    learn = tiny(data)
    gradients = set()
    learn.fit(
        1, 1e-3, cbs=Look("before_step", lambda: gradients.update(_types_of_gradients(learn)))
    )
    assert gradients == {FULL}
    assert {v.dtype for v in learn.model.state_dict().values()} == {FULL, torch.int64}
    assert all(value.is_contiguous() for value in learn.model.state_dict().values())
    states = [v for state in learn.opt.state.values() for v in state.values()]
    assert {v.dtype for v in states if isinstance(v, torch.Tensor)} == {FULL}
    assert learn.pred is None
    assert not torch.is_autocast_enabled("cpu")


def _types_of_gradients(learn):
    return {p.grad.dtype for p in learn.model.parameters() if p.grad is not None}


class Look(Callback):
    """Calls a function at an event."""

    order = 99
    run_valid = False

    def __init__(self, event, function):
        setattr(self, event, function)


def test_statistics_of_a_batch_norm_are_summed_in_float32(data):
    learn, maps = tiny(data), []
    conv, norm = next(
        pair
        for pair in zip(learn.model[0].modules(), list(learn.model[0].modules())[1:], strict=False)
        if isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.modules.batchnorm._BatchNorm)
    )
    conv.register_forward_hook(lambda *args: maps.append(args[-1].detach()))
    learn.train_batch(learn.dls.train.one_batch())
    assert maps[0].dtype == HALF
    exact = maps[0].double().mean((0, 2, 3)) * norm.momentum
    assert torch.allclose(norm.running_mean.double(), exact, rtol=1e-5, atol=1e-7)
    assert not torch.equal(norm.running_mean, norm.running_mean.bfloat16().float())


@pytest.mark.parametrize(("kernel", "stride"), [(7, 1), (3, 2)], ids=["wide", "strided"])
def test_gradients_of_slow_depthwise_convolutions_are_those_of_float32(data, kernel, stride):
    torch.manual_seed(0)
    pointwise = nn.Conv2d(3, 8, 1)
    wide = nn.Conv2d(8, 8, kernel, stride, padding=kernel // 2, groups=8)
    learn = tiny(data)
    learn.model = nn.Sequential(pointwise, wide)
    images = torch.randn(2, 3, 16, 16)
    with autocast_model(learn):
        found = learn.model(images)
    found.square().sum().backward()
    mine = wide.weight.grad.clone()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = pointwise(images).detach()
    wide.zero_grad()
    expected = wide(rounded.float())
    expected.square().sum().backward()
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose(mine, wide.weight.grad, rtol=1e-5, atol=1e-5)
    wide.requires_grad_(False), pointwise.requires_grad_(False)
    with autocast_model(learn):
        found = learn.model(images)  # no gradient is asked for
    assert torch.equal(found, found.bfloat16().float())


def test_numbers_of_an_epoch_are_those_of_a_validation_afterwards(data):
    learn = tiny(data)
    learn.fit(1, 1e-3)
    assert learn.history.iloc[-1]["valid_loss"] == learn.validate()[0]


def test_a_bundle_of_it_is_float32_and_gives_the_learners_answers(data, tmp_path):
    from learnkit.deploy.predictor import load_learner

    learn = tiny(data)
    learn.fit(1, 1e-3)
    expected = learn.predict(data.valid.paths[0]).probs
    predictor = load_learner(learn.export(tmp_path / "model"))
    assert torch.equal(predictor.predict(data.valid.paths[0]).probs, expected)
    again = ImageLearner.from_bundle(tmp_path / "model", data)
    assert again.training_precision.asked == "auto"
    assert (
        ImageLearner.from_bundle(tmp_path / "model", precision="float32").cbs.filter(
            lambda cb: isinstance(cb, TrainingPrecision)
        )
        == []
    )


def resumed(data, file, *, precision="auto", again="auto"):
    """A learner that went on from where another was interrupted, in its second epoch of two."""
    learn = tiny(data, precision)
    stop = Look("before_epoch", _at(learn, 1))
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(2, 1e-2, cbs=[Checkpoint(file), stop])
    learn = tiny(data, again, seed=9)
    learn.dls = data.dataloaders(size=64, bs=8, seed=0)
    learn.fit_one_cycle(2, 1e-2, cbs=Checkpoint.resume(file))
    return learn


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_a_resumed_training_gives_the_same_bits(data, tmp_path, bfloat16, precision):
    whole = tiny(data, precision)
    whole.fit_one_cycle(2, 1e-2, cbs=Checkpoint(tmp_path / "whole.ckpt"))
    learn = resumed(data, tmp_path / "run.ckpt", precision=precision, again=precision)
    assert_equal_bits(weights_of(whole), weights_of(learn))
    state = read_checkpoint(tmp_path / "run.ckpt")
    assert state["run"]["precision"] == "bfloat16"
    assert {v.dtype for v in state["model"].values()} == {FULL, torch.int64}


def test_auto_goes_on_in_the_precision_of_the_checkpoint(data, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "processor_flags", lambda: frozenset({"amx_bf16"}))
    whole = tiny(data, "auto")
    whole.fit_one_cycle(2, 1e-2, cbs=Checkpoint(tmp_path / "whole.ckpt"))
    learn = tiny(data, "auto")
    stop = Look("before_epoch", _at(learn, 1))
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(2, 1e-2, cbs=[Checkpoint(tmp_path / "run.ckpt"), stop])
    monkeypatch.setattr(processor, "processor_flags", frozenset)  # carried to another machine
    learn = tiny(data, "auto")
    assert precision_of(learn) == "float32"
    learn.fit_one_cycle(2, 1e-2, cbs=Checkpoint.resume(tmp_path / "run.ckpt"))
    assert precision_of(learn) == "bfloat16"
    assert_equal_bits(weights_of(whole), weights_of(learn))


def _at(learn, epoch):
    def stop():
        if learn.epoch == epoch:
            raise KeyboardInterrupt

    return stop


def test_another_precision_than_that_of_the_checkpoint_is_refused(data, tmp_path):
    words = "another run: precision is 'bfloat16' there and 'float32' here"
    with pytest.raises(CheckpointError, match=words):
        resumed(data, tmp_path / "run.ckpt", precision="bfloat16", again="float32")


def test_a_checkpoint_that_tells_of_no_precision_is_float32(data, tmp_path, bfloat16):
    file = tmp_path / "run.ckpt"
    with pytest.raises(CheckpointError, match="precision is 'float32' there and 'bfloat16' here"):
        resumed(data, file, precision="float32", again="bfloat16")
    state = read_checkpoint(file)
    del state["run"]["precision"], state["scaler"]
    write_checkpoint(file, {k: v for k, v in state.items() if k != "format"})
    learn = tiny(data, "auto")
    learn.fit_one_cycle(2, 1e-2, cbs=Checkpoint.resume(file))
    assert precision_of(learn) == "float32"


def test_lr_find_goes_by_the_precision_of_the_training(data):
    learn = tiny(data)
    before, seen = weights_of(learn), types_seen(learn)
    learn.lr_find(num_it=6, show_plot=False)
    assert {dtype for training, dtype, _ in seen if training} == {HALF}
    assert_equal_bits(before, weights_of(learn))


@pytest.mark.parametrize("cb", [MixUp(), GradientClip(0.1)], ids=["mixup", "clip"])
def test_callbacks_of_fastai_go_along(data, cb):
    learn = tiny(data, metrics=[])
    seen = types_seen(learn)
    learn.fit(2, 1e-3, cbs=cb)
    assert (True, HALF, True) in seen
    assert learn.history["train_loss"].between(0, 5).all()


@pytest.mark.parametrize(("n_acc", "n_steps"), [(8, 3), (24, 1)])
def test_gradients_add_up_over_batches(data, n_acc, n_steps):
    learn, steps = tiny(data), []
    look = Look("after_step", lambda: steps.append(1))
    learn.fit(1, 1e-3, cbs=[GradientAccumulation(n_acc), look])
    assert len(steps) == n_steps


def test_a_mixed_precision_of_fastais_takes_its_place_and_to_fp32_takes_it_away(data):
    learn = tiny(data)
    assert precision_of(learn) == "bfloat16"
    learn.add_cb(MixedPrecision())
    assert precision_of(learn) == "float32"
    learn.remove_cb(learn.mixed_precision)
    assert precision_of(learn) == "bfloat16"
    learn.to_fp32()
    assert (precision_of(learn), hasattr(learn, "training_precision")) == ("float32", False)
    seen = types_seen(learn)
    learn.fit(1)
    assert {dtype for _, dtype, _ in seen} == {FULL}


def test_a_non_finite_loss_is_noticed_and_the_weights_are_put_back(data):
    learn = tiny(data)
    before = weights_of(learn)
    with pytest.raises(NonFiniteLossError):
        learn.fit(1, 1e30)
    assert_equal_bits(before, weights_of(learn))
    assert not torch.is_autocast_enabled("cpu")


def test_ctrl_c_inside_a_layer_leaves_nothing_behind(data):
    learn = tiny(data)

    def interrupt(*_):
        if learn.training:
            raise KeyboardInterrupt

    hook = learn.model[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    hook.remove()
    assert not torch.is_autocast_enabled("cpu")
    assert not learn.model._forward_hooks
    assert not learn.model._forward_pre_hooks
    pickle.loads(pickle.dumps(learn.model))
    seen = types_seen(learn)
    learn.validate()
    assert {dtype for _, dtype, _ in seen} == {FULL}


def test_stored_features_are_what_a_step_and_a_validation_would_see(data):
    learn = tiny(data, train_bn=False, cbs=FrozenFeatures())
    learn.freeze()
    learn.fit(1, 1e-3)
    assert learn.frozen_features.reason is None
    train, valid = learn.frozen_features._store.splits
    assert {train.features.dtype, valid.features.dtype} == {FULL}
    images = learn.dls.train.new(shuffle=False).one_batch()[0].as_subclass(torch.Tensor)
    pooled = nn.Sequential(learn.model[0], learn.model[1][0]).eval()
    with torch.no_grad(), torch.autocast("cpu", HALF):
        assert torch.equal(train.features[:8], pooled(images).float())
    assert torch.equal(train.features, train.features.bfloat16().float())
    assert not torch.equal(valid.features, valid.features.bfloat16().float())


def test_stored_features_of_another_precision_are_computed_anew(data, bfloat16):
    learn = tiny(data, "auto", train_bn=False, cbs=FrozenFeatures())
    learn.freeze()
    learn.fit(1, 1e-3)
    learn.to_fp32()
    learn.fit(1, 1e-3)
    features = learn.frozen_features._store.splits[0].features
    assert not torch.equal(features, features.bfloat16().float())


def test_a_single_step_is_that_of_a_fit(data):
    learn = tiny(data)
    seen = types_seen(learn)
    learn.train_batch(learn.dls.train.one_batch())
    assert {dtype for _, dtype, _ in seen} == {HALF}


def test_float16_scales_its_gradients_and_a_checkpoint_keeps_the_scale(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "training_precision", lambda asked, *_, **__: asked)
    scales = []
    learn = tiny(data, "float16", size=16)
    seen = types_seen(learn)
    look = Look("after_batch", lambda: scales.append(learn.scaler.get_scale()))
    learn.fit(1, 1e-3, cbs=[look, Checkpoint(tmp_path / "run.ckpt")])
    assert (True, torch.float16, True) in seen
    assert scales[-1] > 1
    assert read_checkpoint(tmp_path / "run.ckpt")["scaler"]["scale"] == scales[-1]
    assert learn.scaler is None


def test_models_may_take_more_than_a_batch_of_images(data, bfloat16):
    class Sum(nn.Module):
        def forward(self, pair, scale):
            return self.layer(pair[0] + pair[1]) * scale

    learn, images = tiny(data, "auto"), torch.randn(2, 3, 64, 64)
    learn.model = Sum()
    learn.model.layer = nn.Conv2d(3, 4, 1)
    with autocast_model(learn):
        found = learn.model((images, images), 2)
    assert torch.equal(found, learn.model((images, images), 2))
    learn = tiny(data, "bfloat16")
    learn.model = Sum()
    learn.model.layer = nn.Conv2d(3, 4, 1)
    with autocast_model(learn):
        found = learn.model((images, images), 2)
    assert torch.equal(found, found.bfloat16().float())


def test_learners_pickle_with_it(data):
    learn = tiny(data)
    learn.fit(1)
    again = pickle.loads(pickle.dumps(learn.training_precision))
    assert repr(again) == "TrainingPrecision('bfloat16')"


def test_a_learner_is_float32_unless_asked(data):
    learn = tiny(data)
    assert (
        ImageLearner(learn.dls, learn.model, learn.loss_func).cbs.filter(
            lambda cb: isinstance(cb, TrainingPrecision)
        )
        == []
    )
    assert precision_of(tiny_learner(data, precision="bfloat16")) == "bfloat16"


@pytest.mark.parametrize("height", [1e-5, 1e3])
def test_a_single_step_in_float16_has_the_gradients_of_float32(data, monkeypatch, height):
    # what float16 rounds to zero, or what overflows once it is scaled up
    def gradients(precision):
        for one in (module, trained_head):  # no processor is asked whether it can
            monkeypatch.setattr(one, "precision_of", lambda learn: precision)
        learn, found = tiny(data, "float32", train_bn=False), []
        learn.freeze()  # gradients of convolutions in float16 take a processor seconds
        own = learn.loss_func
        learn.loss_func = lambda outputs, y: own(outputs, y) * height
        learn.create_opt()
        parameters = [*learn.model[1].parameters()]
        look = lambda: found.append(torch.cat([p.grad.flatten() for p in parameters]))
        monkeypatch.setattr(learn.opt, "step", look)
        learn.train_batch(learn.dls.train.one_batch())
        return found[0]

    wide, half = gradients("float32"), gradients("float16")
    assert 0 < (half - wide).norm() < 0.1 * wide.norm()

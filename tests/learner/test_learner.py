"""ImageLearner is a fastai Learner with more verbs; cnn_learner fits network and data together."""

import copy
import os
import pickle
import signal
import warnings
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision.models as tv
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import SaveModelCallback
from fastai.callback.training import BnFreeze
from fastai.data.block import DataBlock, RegressionBlock
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat
from fastai.metrics import accuracy
from fastai.vision.augment import Flip, Resize
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock, PointBlock
from fastai.vision.learner import vision_learner
from fasttransform import Transform
from helpers import SHARED, tiny_learner, write_image_folder
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import nn

from learnkit.callback.frozen_features import FrozenFeatures
from learnkit.data.dataset import ImageDataset
from learnkit.deploy.predictor import load_learner
from learnkit.errors import (
    BundleError,
    ContinualStateError,
    CutError,
    DataError,
    ExportError,
    InputSizeError,
    InterpretationError,
    NonFiniteLossError,
    UnknownArchitectureError,
    UnreadableImagesError,
    WeightsError,
    WeightsUnavailableError,
    WorkerError,
)
from learnkit.inference.weights_check import WeightsCheck
from learnkit.interpret.classification import ClassificationInterpretation
from learnkit.interpret.learner_state import learner_state, names_text
from learnkit.learner.factory import cnn_learner
from learnkit.learner.learner import ImageLearner


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_image_folder(tmp_path_factory.mktemp("images"), {"a": 12, "b": 12, "c": 12})
    return ImageDataset.from_folder(root).split(0.5, 0.25, seed=0)


@pytest.fixture
def dls(data):
    return data.dataloaders(size=32, bs=6)


make = partial(cnn_learner, arch="test_resnet", pretrained=False)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    torch.manual_seed(0)
    dls = data.dataloaders(size=32, bs=6)
    learn = make(dls, metrics=accuracy, path=tmp_path_factory.mktemp("learner"))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, 1e-2)
    return learn


@pytest.fixture
def quiet(trained):
    with trained.no_bar():
        yield trained


class TestFactory:
    def test_heatmaps_are_those_of_its_predictor(self, trained, data):
        image = data.paths[0]
        ours, its = (
            one.heatmap(image, "gradcam++", target="b") for one in (trained, trained.predictor())
        )
        assert ours.confidences == its.confidences
        assert (ours.maps["b"] == its.maps["b"]).all()
        assert ours.confidences["b"] == trained.predict(image).probs[1].item()

    def test_is_a_fastai_learner_that_trains(self, trained):
        assert isinstance(trained, Learner)
        assert list(trained.history["epoch"]) == [1, 2]
        assert trained.history["accuracy"].iloc[-1] > 0.9

    @pytest.mark.parametrize(
        ("name", "meant"),
        [("pool", "concat_pool"), ("callback_fns", "cbs"), ("metric", "metrics"), ("n_inn", "n_in")]
        + [("bn_wd", "wd_bn_bias"), ("concat_pools", "concat_pool"), ("opt_fn", "opt_func")],
    )
    def test_an_unknown_argument_is_named_with_what_was_meant(self, dls, name, meant):
        for arch in ("test_resnet", tv.resnet18):
            what = arch if isinstance(arch, str) else "resnet18"
            message = (
                f"^cnn_learner has no argument `{name}`, nor has {what}; did you mean `{meant}`"
            )
            with pytest.raises(TypeError, match=message):
                cnn_learner(dls, arch, False, **{name: True})

    def test_an_argument_of_no_one_is_named(self, dls):
        message = "^cnn_learner has no argument `colour`, nor has (test_resnet|resnet18); arg"
        for arch in ("test_resnet", tv.resnet18):
            with pytest.raises(TypeError, match=message):
                cnn_learner(dls, arch, False, colour=1)
        with pytest.raises(TypeError, match=r"^ResNet.__init__\(\) got an unexpected"):
            make(dls, arch_kwargs={"colour": 1})  # said by whoever it was given to

    def test_arguments_of_timm_pass_through(self, dls):
        learn = make(dls, drop_path_rate=0.25, arch_kwargs={"drop_rate": 0.1})
        assert learn.model.spec.arch_kwargs == {"drop_path_rate": 0.25, "drop_rate": 0.1}
        rates = [m.drop_prob for m in learn.model.modules() if isinstance(m, DropPath)]
        assert max(rates) == pytest.approx(0.25)

    @pytest.mark.parametrize("given", [(False, 3, False), (True, None, True)])
    def test_the_order_of_fastai_v2_is_named(self, dls, given):
        told = "normalize={}, n_out={}, pretrained={}".format(*given)
        with pytest.raises(TypeError, match=f"`split_on` is {given[2]}; .* Name them: {told}$"):
            cnn_learner(dls, "test_resnet", *given)

    def test_v1_names_build_the_same_network(self, dls):
        torch.manual_seed(1)
        new = cnn_learner(dls, "test_resnet", pretrained=False)
        torch.manual_seed(1)
        old = cnn_learner(data=dls, base_arch="test_resnet", pretrained=False)
        for a, b in zip(new.model.parameters(), old.model.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_missing_data_is_a_type_error_that_shows_a_call(self):
        with pytest.raises(TypeError, match=r"cnn_learner\(dls, 'resnet18'\)"):
            cnn_learner(arch="test_resnet")

    def test_unknown_arch_suggests_the_nearest_names(self, dls):
        with pytest.raises(UnknownArchitectureError, match="resnet18"):
            cnn_learner(dls, "resnt18", pretrained=False)

    def test_unreachable_hub_raises_before_any_training_and_names_the_ways_out(
        self, dls, monkeypatch
    ):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(WeightsUnavailableError, match="pretrained=False"):
            cnn_learner(dls, "test_resnet.r160_in1k")

    def test_number_of_channels_must_be_that_of_the_images(self, dls):
        with pytest.raises(InputSizeError, match="`n_in` is 1, but the images have 3 channels"):
            make(dls, n_in=1)

    def test_grey_images_get_a_grey_network_and_one_mean(self, data):
        learn = make(data.dataloaders(size=32, channels=1, bs=6))
        assert next(learn.model.parameters()).shape[1] == 1
        (normalize,) = (t for t in learn.dls.valid.after_batch.fs if isinstance(t, Normalize))
        assert normalize.mean.shape == (1, 1, 1, 1)

    def test_the_given_loaders_are_not_changed(self, dls):
        before = [len(dl.after_batch.fs) for dl in dls.loaders]
        make(dls)
        assert [len(dl.after_batch.fs) for dl in dls.loaders] == before

    def test_normalization_is_never_stacked(self, dls):
        again = make(make(dls).dls)
        assert sum(isinstance(t, Normalize) for t in again.dls.valid.after_batch.fs) == 1

    def test_normalize_takes_mean_and_std_and_they_travel_in_the_spec(self, dls):
        learn = make(dls, normalize=((0.5,) * 3, (0.25,) * 3))
        (normalize,) = (t for t in learn.dls.valid.after_batch.fs if isinstance(t, Normalize))
        assert normalize.std.flatten().tolist() == [0.25] * 3
        assert learn.model.spec.std == (0.25,) * 3

    def test_normalize_false_leaves_pixels_alone(self, dls):
        assert not any(
            isinstance(t, Normalize) for t in make(dls, normalize=False).dls.valid.after_batch.fs
        )

    def test_cut_is_honoured(self, dls):
        assert make(dls, cut=-3).model[0](torch.zeros(1, 3, 32, 32)).shape[1] < 256
        with pytest.raises(CutError):
            make(dls, cut=1.0)

    def test_split_on_gives_the_groups(self, dls):
        learn = cnn_learner(dls, tv.resnet18, pretrained=False, split_on=lambda m: (m[0][6], m[1]))
        learn.create_opt()
        assert len(learn.opt.param_lists) == 3
        learn = make(dls, splitter=lambda m: [list(m.parameters())])
        learn.create_opt()
        assert len(learn.opt.param_lists) == 1

    def test_custom_head_may_be_a_function(self, dls):
        learn = make(dls, custom_head=lambda n, c: nn.Sequential(Mean(), nn.Linear(n, c)))
        assert learn.model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)

    def test_multi_label_data_get_the_multi_label_loss(self, data):
        frame = data.frame.assign(label=[(x, "all") for x in data.labels])
        learn = make(ImageDataset(frame, data.root).dataloaders(size=32, bs=6))
        assert isinstance(learn.loss_func, BCEWithLogitsLossFlat)
        assert isinstance(learn.predict(data.paths[0]).label, tuple)

    def test_no_warning_on_building(self, dls):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make(dls)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class TestFrozenNorms:
    @staticmethod
    def trainable(learn, kind):
        learn.freeze()
        body = learn.model[0]
        return {
            p.requires_grad for m in body.modules() if isinstance(m, kind) for p in m.parameters()
        }

    def test_batch_norms_train_by_default(self, dls):
        assert self.trainable(make(dls), nn.BatchNorm2d) == {True}

    def test_layer_norms_train_only_when_asked(self, dls):
        build = partial(cnn_learner, dls, "test_convnext", pretrained=False)
        assert self.trainable(build(), nn.LayerNorm) == {False}
        assert self.trainable(build(train_bn="all"), nn.LayerNorm) == {True}

    def test_without_train_bn_running_statistics_stay(self, dls):
        learn = make(dls, train_bn=False)
        assert self.trainable(learn, nn.BatchNorm2d) == {False}
        before = copy.deepcopy(dict(learn.model[0].named_buffers()))
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)
        after = dict(learn.model[0].named_buffers())
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_weights_frozen_again_after_a_fit_stay_as_they_are(self, dls):
        learn = make(dls, train_bn=False)
        with learn.no_bar(), learn.no_logging():
            learn.unfreeze()
            learn.fit(1)
            learn.freeze()
            before = copy.deepcopy(learn.model[0].state_dict())
            learn.fit(1)
        after = learn.model[0].state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


class TestVerbs:
    def test_predict_agrees_with_fastais_and_with_get_preds(self, quiet):
        paths = list(quiet.dls.valid.items)
        preds, _ = quiet.get_preds()
        ours = torch.stack([quiet.predict(path).probs for path in paths])
        batch = torch.stack([p.probs for p in quiet.predict_batch(paths, bs=4)])
        theirs = Learner.predict(quiet, paths[0])
        assert torch.allclose(ours, torch.Tensor(preds), atol=1e-6)
        assert torch.allclose(batch, ours, atol=1e-5)
        label, index, probs = quiet.predict(paths[0])
        assert (label, index) == (str(theirs[0]), int(theirs[1]))
        assert torch.allclose(probs, torch.Tensor(theirs[2]), atol=1e-6)

    def test_predict_leaves_the_modes_as_found(self, quiet):
        quiet.model.train()
        quiet.model[0].eval()
        quiet.predict(quiet.dls.valid.items[0])
        assert quiet.model[1].training
        assert not quiet.model[0].training

    def test_with_input_comes_first(self, quiet):
        image, label, *_ = quiet.predict(quiet.dls.valid.items[0], with_input=True)
        assert image.size == (32, 32)
        assert label in quiet.dls.vocab

    def test_evaluate_and_interpret_agree(self, quiet):
        evaluation = quiet.evaluate()
        assert evaluation.summary["accuracy"] == pytest.approx(
            quiet.interpret().evaluation.summary["accuracy"]
        )
        assert evaluation.confusion.to_numpy().sum() == len(quiet.dls.valid.items)

    def test_evaluate_takes_a_dataset(self, quiet, data):
        evaluation = quiet.evaluate(data=data.test)
        predicted = [quiet.predict(path).label for path in data.test.paths]
        right = sum(a == b for a, b in zip(predicted, data.test.labels, strict=True))
        assert evaluation.summary["accuracy"] == pytest.approx(right / len(data.test))

    def test_evaluate_takes_labelled_images_in_every_form(self, quiet, data, tmp_path):
        known = quiet.evaluate(data=data.test).summary
        for label, path in zip(data.test.labels, data.test.paths, strict=True):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / path.name).write_bytes(path.read_bytes())
        table = pd.DataFrame({"path": map(str, data.test.paths), "label": data.test.labels})
        whole = ImageDataset.from_folder(tmp_path)
        for form in (whole, tmp_path, str(tmp_path), table, whole.to_halcon()):
            for given in ({"dl": form}, {"data": form}):
                found = quiet.evaluate(**given).summary
                assert found["accuracy"] == known["accuracy"]
                assert found["log_loss"] == pytest.approx(known["log_loss"], abs=1e-6)
        assert (
            quiet.outputs(dl=data.test).targets.tolist()
            == quiet.outputs(data=data.test).targets.tolist()
        )

    @pytest.mark.parametrize("verb", ["evaluate", "interpret", "outputs", "calibrate"])
    def test_what_gives_no_batches_is_refused_with_what_does(self, quiet, verb):
        paths = [str(path) for path in quiet.dls.valid.items]
        given = {
            "of 3 loaders; give one of them": quiet.dls,
            "`dl` is a int; give a loader": 3,
            "`dl` gives a str where a batch": paths,
            "the images are a dictionary": {"a": 1},
        }
        for message, dl in given.items():
            with pytest.raises((InterpretationError, DataError), match=message):
                getattr(quiet, verb)(dl=dl)

    def test_evaluate_judges_the_images_it_can_read_and_names_the_others(self, quiet, tmp_path):
        root = write_image_folder(tmp_path, {"a": 3, "b": 3})
        known = quiet.evaluate(data=root).summary
        for name in ("a", "b"):
            (root / name / "x.png").write_bytes(b"no image")
        for given in ({"data": root}, {"dl": ImageDataset.from_folder(root)}):
            with pytest.raises(UnreadableImagesError, match=r"^2 of 8 .* others are judged") as e:
                quiet.evaluate(**given)
            assert sorted(map(str, e.value.failures)) == [str(root / n / "x.png") for n in "ab"]
            assert e.value.evaluation.summary["n"] == 6
            for name in ("accuracy", "log_loss"):
                assert e.value.evaluation.summary[name] == pytest.approx(known[name])
        for path in root.rglob("[0-9]*.png"):
            path.write_bytes(b"")
        with pytest.raises(UnreadableImagesError, match=r"^8 of 8") as e:
            quiet.evaluate(data=root)
        assert e.value.evaluation is None

    def test_evaluate_says_what_data_can_be(self, quiet):
        with pytest.raises(DataError, match="`data` is a list; give labelled images: an ImageD"):
            quiet.evaluate(data=[1])
        with pytest.raises(InterpretationError, match="both name the samples"):
            quiet.evaluate(quiet.dls.valid, data=[1])

    def test_rates_are_not_suggested_where_the_loss_diverges_at_once(self, dls, tmp_path):
        learn = make(dls, path=tmp_path)
        before = copy.deepcopy(learn.model.state_dict())
        with learn.no_bar():
            with pytest.raises(
                DataError, match=r"^lr_find has \d+ finite losses of 20 .* Start low"
            ):
                learn.lr_find(start_lr=1e4, end_lr=1e10, num_it=20, show_plot=False)
            for name, value in learn.model.state_dict().items():
                assert torch.equal(value, before[name])
            assert learn.lr_find(num_it=20, show_plot=False).valley > 0

    def test_a_measure_nobody_has_is_not_watched(self, dls, tmp_path):
        learn = make(dls, path=tmp_path)
        with (
            learn.no_bar(),
            pytest.raises(DataError, match="SaveModelCallback watches 'f2', which"),
        ):
            learn.fit_one_cycle(1, cbs=SaveModelCallback(monitor="f2"))

    def test_without_validation_images_a_pass_says_so(self, data, tmp_path):
        with pytest.warns(UserWarning, match="no validation images"):
            dls = data.train.dataloaders(size=32, bs=6)
        learn = make(dls, path=tmp_path)
        said = "There are no samples in the loader; .* or ds_idx=0 for the training images"
        passes = (learn.validate, learn.get_preds, learn.tta, learn.show_results)
        for verb in (*passes, learn.evaluate, learn.interpret):
            with learn.no_bar(), pytest.raises(InterpretationError, match=said):
                verb()
            with learn.no_bar(), pytest.raises(InterpretationError, match="`ds_idx` is 2"):
                (learn.outputs if verb == learn.evaluate else verb)(ds_idx=2)
            plt.close("all")
        with learn.no_bar():
            assert len(learn.tta(0, batch_tfms=Flip())[0]) == len(data.train)
            assert len(learn.validate(0)) == 1 + len(learn.metrics)
            assert "Total params" in learn.summary()

    def test_fewer_training_images_than_a_batch_are_predicted_all_the_same(self, data):
        learn = make(data.dataloaders(size=32, bs=6))
        learn.dls.train.bs, learn.dls.train.drop_last = 64, True
        with learn.no_bar():
            for one in ({"ds_idx": 0}, {"dl": learn.dls.train}):
                assert len(learn.get_preds(**one)[0]) == 18
                assert len(learn.tta(batch_tfms=Flip(), **one)[0]) == 18
            with pytest.raises(InterpretationError, match="the loader has 0 batches: 18 images"):
                learn.validate(0)

    def test_history_and_its_plot(self, quiet):
        assert {"train_loss", "valid_loss", "accuracy"} <= set(quiet.history.columns)
        assert all(axis.lines for axis in quiet.plot_history())

    def test_save_and_load_work_as_in_fastai(self, quiet, dls):
        file = quiet.save("stage1")
        other = make(dls, path=quiet.path)
        other.load("stage1")
        assert file.exists()
        for a, b in zip(quiet.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_lr_find_suggests_a_rate_and_leaves_history_and_weights_alone(self, dls, tmp_path):
        learn = make(dls, path=tmp_path)
        before = copy.deepcopy(learn.model.state_dict())
        with learn.no_bar():
            rate = learn.lr_find(show_plot=False, num_it=60)
        assert 1e-7 <= rate.valley < 10
        assert learn.history.empty
        after = learn.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_fine_tune_freezes_then_unfreezes(self, dls):
        seen = []

        class Watch(Callback):
            def before_train(self):
                seen.append(next(self.model[0].parameters()).requires_grad)

        learn = make(dls, cbs=Watch)
        with learn.no_bar(), learn.no_logging():
            learn.fine_tune(1)
        assert seen == [False, True]
        assert len(learn.history) == 2


class TestTrainBatch:
    @pytest.fixture
    def build(self, data):
        def build(**kwargs):
            torch.manual_seed(0)
            learn = make(data.dataloaders(size=32, bs=18), ps=0.0, **kwargs)
            learn.logger = lambda *_: None
            learn.remove_cb(learn.progress)
            return learn

        return build

    @pytest.mark.parametrize("given", ["batch", "files", "numbers"])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_the_step_is_that_of_a_fit_over_this_batch(self, build, data, given, frozen):
        learn, other = build(wd=0.1), build(wd=0.1)
        if frozen:
            learn.freeze()
            other.freeze()
        batch = learn.dls.train.one_batch()
        learn.create_opt()
        if frozen:
            learn.freeze()
        learn.opt.set_hypers(lr=1e-2)
        learn.model.eval()
        with torch.no_grad():
            logits = copy.deepcopy(learn.model).train()(batch[0])
            expected = float(learn.loss_func(logits, batch[1]))
        numbers = [data.classes.index(label) for label in data.train.labels]
        arguments = {
            "batch": [batch],
            "files": [data.train.paths, data.train.labels],
            "numbers": [data.train.paths, numbers],
        }[given]
        found = learn.train_batch(*arguments)
        other.fit(1, 1e-2)
        assert found == {"total_loss": pytest.approx(expected, rel=1e-4)}
        assert not any(module.training for module in learn.model.modules())
        assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())
        for name, value in learn.model.state_dict().items():
            assert torch.allclose(value, other.model.state_dict()[name], rtol=1e-3, atol=1e-5), name
        assert learn.history.empty

    def test_the_loss_falls_over_steps(self, build, data):
        learn = build()
        losses = [
            learn.train_batch(data.train.paths, data.train.labels)["total_loss"] for _ in range(8)
        ]
        assert losses[-1] < losses[0] / 2

    def test_several_labels_are_lists_of_names(self, data):
        frame = data.frame.assign(label=[[c, "z"] for c in data.frame["label"]])
        several = ImageDataset(frame, data.root)
        learn = make(several.dataloaders(size=32, bs=18), ps=0.0)
        batch = learn.dls.train.one_batch()
        expected = learn.loss_func(copy.deepcopy(learn.model).train()(batch[0]), batch[1])
        found = learn.train_batch(several.train.paths, several.train.labels)["total_loss"]
        assert found == pytest.approx(float(expected.detach()), rel=1e-4)

    @pytest.mark.parametrize(
        ("n", "labels", "message"),
        [
            (2, None, "`labels` is missing; give one for each image, or a batch of a loader"),
            (2, ["a"], "1 `labels` for 2 images"),
            (2, ["a", "cat"], r"`labels` has \['cat'\], which are no classes here \(a, b, c\)"),
            (2, [0, 7], r"`labels` has \[7\], which are no classes"),
            (0, [], "0 `labels` for 0 images"),
            (1, "a", "the batch holds one image, and a batch norm needs two"),
        ],
    )
    def test_what_cannot_be_learned_is_said_and_changes_nothing(
        self, build, data, n, labels, message
    ):
        learn = build()
        before = copy.deepcopy(learn.model.state_dict())
        with pytest.raises(DataError, match=message):
            learn.train_batch(data.train.paths[:n], labels)
        assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())

    def test_a_loss_that_is_not_finite_makes_no_step(self, build):
        learn = build()
        x, y = learn.dls.train.one_batch()
        before = copy.deepcopy(learn.model.state_dict())
        x[3, 0, 0, 0] = float("nan")
        with pytest.raises(
            NonFiniteLossError, match=r"the loss of the batch is nan, .*no step was"
        ):
            learn.train_batch((x, y))
        assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())

    def test_the_continual_state_is_not_trained(self, build, data):
        learn = build()
        learn.init_continual(data)
        with pytest.raises(ContinualStateError, match="training would change the features"):
            learn.train_batch(data.train.paths, data.train.labels)


class TestFailures:
    def test_weights_of_another_network_are_refused_in_one_line(self, quiet, dls):
        quiet.save("three_classes")
        other = make(dls, path=quiet.path, lin_ftrs=[16])
        with pytest.raises(WeightsError, match=r"'three_classes' does not fit .* size mismatch"):
            other.load("three_classes")

    @pytest.mark.parametrize("mix", [MixUp, CutMix])
    @pytest.mark.parametrize("event", ["before_batch", "after_loss", "after_backward"])
    def test_after_ctrl_c_inside_a_mixed_batch_the_learner_is_as_before(
        self, dls, mix, event, tmp_path
    ):
        class CtrlC(Callback):
            order = 200

            def __call__(self, name):
                if name == event:
                    raise KeyboardInterrupt

        learn, logging = make(dls, path=tmp_path), CSVLogger()
        loss, logger = learn.loss_func, learn.logger
        with learn.no_bar():
            with pytest.raises(KeyboardInterrupt):
                learn.fit(1, cbs=[mix(), CtrlC(), logging])
            logging.file.close()
            assert (learn.loss_func, learn.logger) == (loss, logger)
            assert learn.evaluate().summary["n"] == len(dls.valid_ds)

    @pytest.mark.parametrize(
        ("block", "label"),
        [(RegressionBlock, lambda path: 1.5), (PointBlock, lambda path: [[1.0, 2.0]])],
        ids=["numbers", "points"],
    )
    def test_regression_is_refused_before_anything_is_built(self, data, block, label):
        blocks = DataBlock((ImageBlock, block), get_y=label, item_tfms=Resize(32))
        loaders = blocks.dataloaders(data.paths, bs=4)
        with pytest.raises(DataError, match="labels of `dls` are numbers or points, not classes"):
            make(loaders, y_range=(0, 2), n_out=1)

    def test_lr_find_and_summary_of_no_batches_say_what_fit_says(self, data):
        learn = make(data.dataloaders(size=32, bs=6))
        learn.dls.train.bs, learn.dls.train.drop_last = 64, True
        for call in (learn.lr_find, partial(learn.fit, 1), learn.summary):
            with learn.no_bar(), pytest.raises(DataError, match="loader has 0 batches: 18 images"):
                call()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [({"num_it": n}, f"`num_it` is {n}; give a whole number from 6 on") for n in (0, -1, 2.5)]
        + [({"start_lr": r}, f"`start_lr` is {r}; give a rate above 0") for r in (0, -1e-3)],
    )
    def test_lr_find_needs_rates_and_a_count(self, dls, wrong, message):
        with pytest.raises(DataError, match=message):
            make(dls).lr_find(show_plot=False, **wrong)

    def test_lr_find_takes_what_fastai_takes(self, dls, tmp_path):
        learn = make(dls, path=tmp_path)
        before = [p.clone() for p in learn.model.parameters()]
        with learn.no_bar():
            assert learn.lr_find(1e-6, 1, 8, False, False).valley > 0
            assert learn.lr_find(num_it=2, show_plot=False, suggest_funcs=None) is None
            assert learn.lr_find(slice(1e-6, 1e-5).stop, num_it=6, show_plot=False).valley > 0
        assert all(map(torch.equal, before, learn.model.parameters()))

    @pytest.mark.parametrize("bs", [1, 17])
    def test_a_batch_of_one_image_is_explained(self, data, bs):
        loaders = data.dataloaders(size=32, bs=bs)
        loaders.train.drop_last = False  # of 18 images
        learn = make(loaders)
        with (
            learn.no_bar(),
            pytest.raises(DataError, match=r"holds one image \(.* `bs` is 17?\), .* needs two"),
        ):
            learn.fit(1)

    def test_a_dead_reading_process_is_explained(self, data):
        class Die(Transform):
            def encodes(self, image: PILImage):
                os.kill(os.getpid(), signal.SIGKILL)

        loaders = data.dataloaders(size=32, bs=6, item_tfms=[Die()], num_workers=1)
        learn = make(loaders)
        with (
            learn.no_bar(),
            pytest.raises(WorkerError, match="smaller `bs` or fewer"),
        ):
            learn.fit(1)


class TestExport:
    def test_round_trip_gives_the_same_probabilities(self, quiet, tmp_path):
        path = quiet.export(tmp_path / "bundle")
        model = load_learner(path)
        for file in quiet.dls.valid.items:
            assert torch.allclose(model.predict(file).probs, quiet.predict(file).probs, atol=1e-5)

    def test_the_learner_goes_on_as_before(self, dls, tmp_path):
        learn = make(dls, path=tmp_path)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)
            opt, loaders = learn.opt, learn.dls
            learn.export(tmp_path / "bundle")
            assert learn.opt is opt
            assert learn.dls is loaders
            learn.fit(1)

    def test_the_card_holds_the_measures(self, quiet, tmp_path):
        text = (quiet.export(tmp_path / "bundle") / "README.md").read_text(encoding="utf-8")
        assert "accuracy" in text
        assert "training images" in text
        unmeasured = quiet.export(tmp_path / "other", evaluate=False) / "README.md"
        assert "balanced" not in unmeasured.read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"custom_head": lambda n, c: nn.Sequential(Mean(), nn.Linear(n, c))}, "head"),
            ({"cut": lambda m: nn.Sequential(*list(m.children())[:-2])}, "cut"),
        ],
    )
    def test_code_in_the_network_is_refused_by_name(self, dls, tmp_path, change, reason):
        learn = make(dls, **change)
        with pytest.raises(ExportError, match=reason):
            learn.export(tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()


class TestPathsOfFastai:
    """What fastai v1's page of `vision.learner` does with an exported learner."""

    def test_export_without_a_path_lands_in_the_learners_own(self, quiet, tmp_path, monkeypatch):
        monkeypatch.setattr(quiet, "path", tmp_path)
        assert quiet.export(evaluate=False) == tmp_path / "model"
        assert load_learner(quiet.path, "model").classes == tuple(quiet.dls.vocab)
        with pytest.raises(BundleError, match=r"there is one in it: .*model"):
            load_learner(quiet.path)

    def test_data_are_the_loaders(self, quiet):
        assert quiet.data is quiet.dls


class TestAdopting:
    @pytest.fixture(params=["timm", "torchvision"])
    def foreign(self, request, dls):
        arch = "test_resnet" if request.param == "timm" else tv.resnet18
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return vision_learner(dls, arch, pretrained=False, metrics=accuracy, normalize=False)

    def test_shares_model_and_data_and_evaluates(self, foreign):
        learn = ImageLearner.from_learner(foreign)
        assert learn.model is foreign.model
        assert learn.dls is foreign.dls
        with learn.no_bar():
            assert learn.evaluate().summary["n"] == len(foreign.dls.valid.items)

    def test_exports_what_fastais_factory_built(self, foreign, tmp_path):
        learn = ImageLearner.from_learner(foreign)
        with learn.no_bar():
            model = load_learner(learn.export(tmp_path / "bundle"))
            file = foreign.dls.valid.items[0]
            assert torch.allclose(model.predict(file).probs, learn.predict(file).probs, atol=1e-5)

    def test_the_given_learner_keeps_its_callbacks(self, foreign):
        foreign.add_cb(BnFreeze())
        learn = ImageLearner.from_learner(foreign)
        assert all(cb.learn is foreign for cb in foreign.cbs)
        assert any(isinstance(cb, BnFreeze) for cb in learn.cbs)

    def test_home_made_networks_are_refused_at_export_with_the_remedy(self, dls, tmp_path):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(Mean(), nn.Linear(4, 3)))
        learn = ImageLearner(dls, model)
        with pytest.raises(ExportError, match="cannot travel as data"):
            learn.export(tmp_path / "bundle", evaluate=False)


class TestState:
    """What a learner keeps beside fastai's Learner, however the learner came to be."""

    def test_a_copy_goes_its_own_way(self, dls):
        learn = make(dls)
        learn.state = replace(learn.state, fits_to_come=2)
        other = copy.copy(learn)
        other.state = replace(other.state, fits_to_come=0)
        assert (learn.state.fits_to_come, other.state.fits_to_come) == (2, 0)

    def test_it_travels_with_pickles_and_deep_copies(self, data):
        learn = make(data.dataloaders(size=32, bs=6))
        with learn.no_bar():
            learn.init_continual(data)
        learn.rename({"a": "apple"})
        for other in (pickle.loads(pickle.dumps(learn)), copy.deepcopy(learn)):
            assert other.state.record.former_names == {"a": "apple"}
            assert other.continual.classes == learn.continual.classes
            other.undo()
            assert other.continual.classes == ("a", "b", "c")

    def test_a_learner_made_without_init_has_an_empty_one(self):
        learn = ImageLearner.__new__(ImageLearner)
        learn.model = nn.Sequential(nn.Identity(), nn.Identity())
        assert (learn.state.record, learn.ood, learn.continual) == (None, None, None)

    def test_one_of_fastais_own_learners_has_an_empty_one_too(self, dls):
        model = nn.Sequential(nn.Identity(), nn.Identity())
        model.state = "of the model, where fastai's Learner looks"
        assert learner_state(Learner(dls, model)).ood_detector is None


def test_the_room_offers_learner_and_factory_by_name():
    from learnkit import learner

    assert learner.ImageLearner is ImageLearner
    assert learner.cnn_learner is cnn_learner
    with pytest.raises(AttributeError, match="no attribute 'unet'"):
        learner.unet  # noqa: B018


@pytest.mark.skipif(not SHARED.exists(), reason="real weights and photographs are not here")
def test_three_frozen_epochs_on_real_weights_reach_90_percent(tmp_path):
    import zipfile

    zipfile.ZipFile(SHARED / "data/hymenoptera.zip").extractall(tmp_path)
    (root,) = (p.parent for p in tmp_path.rglob("train"))
    torch.manual_seed(0)
    learn = cnn_learner(
        ImageDataset.from_folder(root).dataloaders(size=160, bs=32, method="crop"),
        "mobilenetv2_100",
        pretrained=SHARED / "weights/mobilenetv2_100.tf_in1k.safetensors",
        arch_kwargs={"pad_type": "same"},
        normalize=((0.5,) * 3, (0.5,) * 3),
        metrics=accuracy,
        train_bn=False,
        cbs=FrozenFeatures(),
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 2e-3)
    assert learn.history["accuracy"].max() >= 0.9
    assert timm.is_model(learn.model.spec.arch)


class TestCheckWeights:
    """Weights of a file whose recipe nobody says."""

    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "w.safetensors"
        torch.manual_seed(0)
        save_file(timm.create_model("test_efficientnet").state_dict(), path)
        return path

    def test_what_is_assumed_is_said_once_where_the_file_says_nothing(self, dls, file):
        said = r"w.safetensors does not say how .* timm's test_efficientnet is assumed: mean \(0.4"
        with pytest.warns(UserWarning, match=said):
            cnn_learner(dls, "test_efficientnet", file)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cnn_learner(dls, "test_efficientnet", file, normalize=((0.5,) * 3, (0.5,) * 3))
            cnn_learner(dls, "test_efficientnet", file, normalize=False)
            cnn_learner(dls, "test_efficientnet", False)
            (file.parent / "config.json").write_text('{"mean": [0.1, 0.2, 0.3], "std": 0.5}')
            learn = cnn_learner(dls, "test_efficientnet", file)
        assert learn.model.spec.mean == (0.1, 0.2, 0.3)
        assert learn.dls.valid.after_batch[-1].mean.flatten().tolist() == pytest.approx(
            [0.1, 0.2, 0.3]
        )

    def test_the_chosen_recipe_is_that_of_network_loaders_and_spec(self, dls, file, monkeypatch):
        best = property(lambda check: check.recipes[-1])
        monkeypatch.setattr(WeightsCheck, "best", best)
        monkeypatch.setattr(WeightsCheck, "is_better", True)
        with pytest.warns(UserWarning, match="`check_weights`: of 8 input recipes on 18 images"):
            learn = cnn_learner(dls, "test_efficientnet", file, check_weights=True)
        check, spec = learn.weights_check, learn.model.spec
        assert spec.mean == check.best.mean == (0, 0, 0)
        assert spec.std == check.best.std == (1 / 255,) * 3
        assert spec.arch_kwargs == {"pad_type": "same"}
        assert type(learn.model[0].model.conv_stem).__name__ == "Conv2dSame"
        assert learn.dls.valid.after_batch[-1].std.flatten().tolist() == pytest.approx(
            [1 / 255] * 3
        )

    def test_the_check_changes_neither_head_nor_random_state(self, dls, file):
        heads, states = [], []
        for check in (False, True):
            torch.manual_seed(5)
            with pytest.warns(UserWarning, match="is assumed|as was assumed"):
                learn = cnn_learner(dls, "test_efficientnet", file, check_weights=check)
            heads.append(learn.model[1].state_dict())
            states.append(torch.get_rng_state())
        assert all(torch.equal(value, heads[1][name]) for name, value in heads[0].items())
        assert torch.equal(*states)

    def test_what_the_caller_says_is_kept(self, dls, file):
        given = {"normalize": ((0.1,) * 3, (0.9,) * 3), "pad_type": "same"}
        with pytest.warns(UserWarning, match="as `normalize` says"):
            learn = cnn_learner(dls, "test_efficientnet", file, check_weights=True, **given)
        assert learn.model.spec.mean == (0.1,) * 3
        assert len(learn.weights_check.recipes) == 5  # no other padding is tried

    def test_what_cannot_be_checked_is_refused_in_a_sentence(self, dls, file):
        with pytest.raises(WeightsError, match="random weights have no recipe"):
            cnn_learner(dls, "test_efficientnet", False, check_weights=True)
        with pytest.raises(TypeError, match="compares by training images, and there is no `dls`"):
            cnn_learner(arch="test_efficientnet", pretrained=file, size=32, check_weights=True)


def test_a_missing_weights_file_is_named_in_one_line(quiet, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^weights file '.*none.pth' does not exist; `"
    ) as e:
        quiet.load("none")
    assert isinstance(e.value, WeightsUnavailableError)


def test_a_file_that_is_gone_stops_a_fit_with_reading_processes_in_one_line(tmp_path):
    root = write_image_folder(tmp_path, {"a": 4, "b": 4})
    data = ImageDataset.from_folder(root).split(0.5, 0.5, seed=0)
    dls = data.dataloaders(size=32, bs=4, num_workers=1)
    data.train.paths[0].unlink()
    learn = make(dls)
    said = f"image {str(data.train.paths[0])!r} cannot be read: there is no such file"
    with learn.no_bar(), learn.no_logging(), pytest.raises(FileNotFoundError) as caught:
        learn.fit(1)
    assert str(caught.value) == said


class TestShown:
    """What a learner and its loaders say of themselves; nothing is read for it."""

    @pytest.fixture(autouse=True)
    def no_pass(self, monkeypatch):
        if_read = lambda *_: pytest.fail("images were read")
        monkeypatch.setattr("fastai.data.load.DataLoader.__iter__", if_read)

    def test_a_line_names_network_classes_and_state(self, dls, trained):
        assert repr(make(dls)) == "ImageLearner(test_resnet; 3 classes: a, b, c; not trained here)"
        assert repr(trained).endswith("3 classes: a, b, c; trained for 2 epochs)")
        assert trained.classes == ["a", "b", "c"]

    def test_a_page_names_images_pixels_and_parameters(self, dls):
        page = make(dls)._repr_html_()
        n = sum(p.numel() for p in make(dls).model.parameters())
        for text in (f"{n:,}, {n:,} of them not frozen", "18 train, 9 valid", "3 x 32 x 32"):
            assert text in page
        assert "batches of 6" in page
        assert "pixels normalised with mean [0.5, 0.5, 0.5]" in page

    def test_loaders_say_what_they_hold_also_in_a_copy(self, dls):
        said = (
            "DataLoaders(18 train, 9 valid, 9 test, 3 x 32 x 32, batches of 6; 3 classes: a, b, c)"
        )
        assert repr(dls) == repr(make(dls).dls) == repr(copy.copy(dls)) == said
        assert "18 train" in dls._repr_html_()
        assert repr(pickle.loads(pickle.dumps(dls))) == said

    def test_learners_without_the_usual_parts_say_so(self, dls):
        assert repr(object.__new__(ImageLearner)) == "ImageLearner(no network; not trained here)"
        object.__new__(ImageLearner)._repr_html_()
        home_made = ImageLearner(dls, nn.Linear(3, 3), loss_func=nn.CrossEntropyLoss())
        assert repr(home_made).startswith("ImageLearner(Linear; 3 classes")
        home_made.remove_cb(home_made.training_history)
        home_made.remove_cb(home_made.recorder)
        assert "not trained here" in home_made._repr_html_()

    def test_hostile_and_many_names_stay_short_and_harmless(self):
        said = names_text(["\x1b[31mred", "<b>", "n" * 500, *map(str, range(997))])
        assert said.startswith(f"1000 classes: ?[31mred, <b>, {'n' * 40}..., 0, 1")
        assert said.endswith(", 6, ...")


def test_the_continual_state_and_its_threshold_are_shown(data):
    learn = cnn_learner(arch="test_resnet", pretrained=False, size=32)
    assert repr(learn) == "ImageLearner(test_resnet; no class yet; continual, 0 images learned)"
    assert "threshold" not in learn._repr_html_()
    with learn.no_bar():
        learn.extend(data.train)
    assert repr(learn).endswith("; 3 classes: a, b, c; continual, 18 images learned)")
    assert f"{learn.ood.threshold.value:.4g}: " in learn._repr_html_()
    assert f"{learn.continual.temperature:.4g}" in learn._repr_html_()


def test_what_is_looked_for_on_the_learner_is_there(quiet, data):
    interp = quiet.interpret()
    assert quiet.most_confused() == interp.most_confused()
    assert quiet.most_confused(data=data.test) == quiet.interpret(data=data.test).most_confused()
    matrix = quiet.plot_confusion_matrix(normalize=True)
    assert len(matrix.texts) == len(interp.plot_confusion_matrix(normalize=True).texts)
    assert len(quiet.plot_top_losses(2)) == 2
    files = [str(path) for path in data.test.paths]
    by_hand = quiet.predictor().predict_files(files, progress=False)
    assert quiet.predict_files(files, progress=False).equals(by_hand)
    folder = data.test.paths[0].parent
    assert len(quiet.predict_folder(folder, progress=False)) == 12
    plt.close("all")


def test_what_is_looked_for_on_an_interpretation_is_there(trained):
    interp = trained.interpret()
    assert len(interp.plot_history()) == len(trained.plot_history())
    with pytest.raises(InterpretationError, match="keeps neither history nor OOD scores"):
        ClassificationInterpretation(None, interp.outputs).plot_history()
    plt.close("all")


def test_an_image_explained_by_its_place_is_the_one_at_that_place(data):
    learn = tiny_learner(data)
    interp = learn.interpret()
    place = len(interp.outputs) - 1
    by_file = learn.heatmap(interp.outputs.items[place])
    for image in (place, -1, np.int64(place), interp.outputs.items[place]):
        found = interp.heatmap(image)
        assert [*found.maps] == [*by_file.maps]
        assert all(np.array_equal(found.maps[name], by_file.maps[name]) for name in found.maps)
    with pytest.raises(InterpretationError, match=f"and there are {place + 1}; give another place"):
        interp.heatmap(place + 1)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        (
            "classes",
            "they are those of its data; in the continual state rename({old: new}) renames them",
        ),
        ("continual", "init_continual() makes that head, drop_continual() drops it"),
        ("ood", "fit_ood() makes it, clear_ood() drops it"),
        ("data", "assign the loaders to `dls`"),
        ("history", "training writes it, a row per epoch"),
        ("audit", "every change writes its line there: extend(...), forget(...) and their kin"),
        ("snapshots", "snapshot(name) adds one, drop_snapshot(name) drops one"),
    ],
)
def test_what_follows_from_other_things_says_what_changes_it(data, name, way):
    learn = tiny_learner(data)
    before = {**vars(learn)}
    with pytest.raises(AttributeError) as caught:
        setattr(learn, name, None)
    assert str(caught.value) == f"`{name}` cannot be assigned to; {way}"
    assert {**vars(learn)} == before

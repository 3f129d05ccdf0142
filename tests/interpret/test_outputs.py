import random
import threading

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, MSELossFlat
from fastai.vision.core import PILImage
from helpers import quiet, show_progress_at_once, tiny_cnn, write_image_folder
from torch import nn

from learnkit.continual.classifier import ContinualClassifier
from learnkit.data.dataset import ImageDataset
from learnkit.errors import EvaluationError, InterpretationError
from learnkit.interpret.outputs import Outputs, collect_outputs
from learnkit.interpret.source import to_picture


def slow_logits(learn, paths):
    """The logits of files, one at a time, by hand: open, resize, scale, normalise, run."""
    learn.model.eval()
    rows = []
    for path in paths:
        item = learn.dls.valid.after_item((PILImage.create(path),))[0]
        x = (torch.as_tensor(item).float() / 255 - 0.5) / 0.25
        with torch.no_grad():
            rows.append(learn.model(x[None])[0])
    return torch.stack(rows)


@pytest.mark.parametrize("ds_idx", [0, 1])
def test_logits_are_those_of_the_unaugmented_files_in_dataset_order(learn, ds_idx):
    out = collect_outputs(learn, ds_idx=ds_idx)
    dataset = learn.dls[ds_idx].dataset
    assert list(out.items) == list(dataset.items)
    assert out.targets.tolist() == [int(dataset[i][1]) for i in range(len(dataset))]
    learn.dls.valid.after_item.split_idx = 1
    torch.testing.assert_close(out.logits, slow_logits(learn, out.items))
    torch.testing.assert_close(out.probs, out.logits.softmax(1))
    expected = F.cross_entropy(out.logits, out.targets, reduction="none")
    torch.testing.assert_close(out.losses, expected)


def test_valid_equals_fastais_get_preds(learn):
    out = collect_outputs(learn)
    probs, targets, losses = learn.get_preds(with_loss=True)
    torch.testing.assert_close(out.probs, torch.as_tensor(probs))
    torch.testing.assert_close(out.losses, losses.as_subclass(torch.Tensor))
    assert out.targets.tolist() == targets.tolist()


def test_the_model_sees_every_sample_exactly_once(learn):
    seen = []
    handle = learn.model.register_forward_hook(lambda m, x, y: seen.append(len(y)))
    out = collect_outputs(learn, ds_idx=0, with_features=True)
    handle.remove()
    assert sum(seen) == len(out) == len(learn.dls.train_ds)
    assert len(seen) == -(-len(out) // learn.dls.bs)


def test_only_plain_tensors_on_the_cpu_come_out(learn):
    out = collect_outputs(learn, with_features=True)
    for tensor in (out.logits, out.probs, out.targets, out.losses, out.features):
        assert type(tensor) is torch.Tensor
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad


def test_features_are_the_mean_of_the_bodys_map(learn):
    out = collect_outputs(learn, with_features=True)
    x, _ = learn.dls.valid.one_batch()
    with torch.no_grad():
        maps = learn.model.eval()[0](x).as_subclass(torch.Tensor)
    torch.testing.assert_close(out.features[: len(x)], maps.mean((2, 3)))


def test_features_need_a_body(learn):
    learn.model = nn.Sequential(nn.Sequential(*learn.model))
    with pytest.raises(InterpretationError, match=r"nn.Sequential\(body, head\)"):
        collect_outputs(learn, with_features=True)


class Meddler(Callback):
    """Breaks everything it can reach in any loop."""

    def before_batch(self):
        raise AssertionError("a callback ran")


def test_callbacks_do_not_run(dls):
    learn = quiet(Learner(dls, tiny_cnn(3)))
    expected = collect_outputs(learn)
    learn.add_cbs([MixUp(), Meddler()])
    torch.testing.assert_close(collect_outputs(learn).probs, expected.probs)


def test_the_learner_and_the_random_states_stay_as_they_were(learn):
    learn.model.train()
    learn.model[0][1].eval()
    modes = [m.training for m in learn.model.modules()]
    loader, order = learn.dls.train, learn.dls.train.rng.getstate()
    weights = {k: v.clone() for k, v in learn.model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    collect_outputs(learn, ds_idx=0, with_features=True)
    assert [m.training for m in learn.model.modules()] == modes
    assert learn.dls.train is loader
    assert loader.rng.getstate() == order
    assert loader.shuffle
    assert loader.dataset.split_idx == 0
    assert all(torch.equal(v, weights[k]) for k, v in learn.model.state_dict().items())
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert learn.loss_func.reduction == "mean"
    assert not any(m._forward_hooks for m in learn.model.modules())


def test_after_an_exception_nothing_is_left_behind(dls, monkeypatch):
    show_progress_at_once(monkeypatch)

    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of order")

    learn = Learner(dls, nn.Sequential(tiny_cnn(3)[0], Fails()), loss_func=CrossEntropyLossFlat())
    learn.model.train()
    with pytest.raises(RuntimeError, match="out of order"):
        collect_outputs(learn, with_features=True, progress=True)
    assert not [one for one in threading.enumerate() if one.name == "learnkit-progress"]
    assert learn.model.training
    assert learn.loss_func.reduction == "mean"
    assert not learn.model[0]._forward_hooks


def test_a_bar_is_shown_if_the_learner_shows_bars(dls, monkeypatch, capsys):
    show_progress_at_once(monkeypatch)
    learn = Learner(dls, tiny_cnn(3))
    collect_outputs(learn)
    shown = capsys.readouterr()
    collect_outputs(learn, progress=False)
    hidden = capsys.readouterr()
    n = len(dls.valid)
    assert f"predict: {n} of {n} batches, 0 s left\n" in shown.err
    assert shown.out + hidden.out + hidden.err == ""


def test_a_shuffling_loader_that_drops_samples_is_read_whole_and_in_order(learn):
    dl = learn.dls.valid.new(shuffle=True, drop_last=True, bs=5)
    torch.testing.assert_close(collect_outputs(learn, dl).probs, collect_outputs(learn).probs)


def test_samples_without_labels_have_neither_targets_nor_losses(learn):
    files = list(learn.dls.valid_ds.items)[:5]
    out = collect_outputs(learn, learn.dls.test_dl(files))
    assert out.targets is None
    assert out.losses is None
    torch.testing.assert_close(out.probs, collect_outputs(learn).probs[:5])
    with pytest.raises(InterpretationError, match="The samples have no labels"):
        out.evaluate()


def test_plain_torch_loaders_work_too(learn):
    tensors = torch.utils.data.TensorDataset(torch.randn(7, 3, 16, 16), torch.arange(7) % 3)
    dl = torch.utils.data.DataLoader(tensors, batch_size=3, shuffle=True)
    out = collect_outputs(learn, dl)
    assert out.targets.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert out.items is None
    with torch.no_grad():
        torch.testing.assert_close(out.logits, learn.model.eval()(tensors.tensors[0]))


@pytest.mark.parametrize("ds_idx", [0, 1, 2])
def test_a_dataset_is_read_as_its_loaders_read_it(image_folder, ds_idx):
    dataset = ImageDataset.from_folder(image_folder).split(train=0.6, valid=0.2, test=0.2, seed=1)
    learn = quiet(Learner(dataset.dataloaders(size=16, bs=4, augment=True), tiny_cnn(3)))
    part = (dataset.train, dataset.valid, dataset.test)[ds_idx]
    by_data, by_index = collect_outputs(learn, data=part), collect_outputs(learn, ds_idx=ds_idx)
    assert [str(f) for f in by_data.items] == [str(f) for f in part.paths]
    assert [by_data.classes[i] for i in by_data.targets] == list(part.labels)
    for name in ("logits", "probs", "targets", "losses"):
        torch.testing.assert_close(getattr(by_data, name), getattr(by_index, name))


def test_a_dataset_of_several_labels_gives_flags(image_folder):
    files = sorted(image_folder.rglob("*.png"))
    frame = pd.DataFrame({"path": [str(f.relative_to(image_folder)) for f in files]})
    frame["label"] = [[f.parent.name, "even"] if i % 2 else ["odd"] for i, f in enumerate(files)]
    dataset = ImageDataset(frame, image_folder).split(train=0.6, valid=0.4, test=0, seed=1)
    learn = Learner(
        dataset.dataloaders(size=16, bs=4),
        tiny_cnn(dataset.n_classes),
        loss_func=BCEWithLogitsLossFlat(),
    )
    by_data = collect_outputs(quiet(learn), data=dataset.valid)
    by_index = collect_outputs(learn)
    assert by_data.multi_label
    torch.testing.assert_close(by_data.targets, by_index.targets)
    torch.testing.assert_close(by_data.losses, by_index.losses)


def test_data_with_unknown_labels_is_refused(learn, tmp_path):
    data = ImageDataset.from_folder(write_image_folder(tmp_path, {"ant": 2, "dodo": 2}))
    with pytest.raises(InterpretationError, match="labels the learner does not know: dodo"):
        collect_outputs(learn, data=data)
    with pytest.raises(InterpretationError, match="`dl` and `data` both name the samples"):
        collect_outputs(learn, learn.dls.valid, data=data)


def test_multilabel_outputs_are_sigmoids_with_the_losss_threshold(multi_learn):
    out = collect_outputs(multi_learn)
    assert out.multi_label
    assert out.classes == ["early", "warm"]
    assert out.threshold == pytest.approx(0.4)
    torch.testing.assert_close(out.probs, out.logits.sigmoid())
    bce = F.binary_cross_entropy_with_logits(out.logits, out.targets, reduction="none")
    torch.testing.assert_close(out.losses, bce.mean(1))
    assert torch.equal(out.pred_labels, out.probs > 0.4)


def test_segmentation_is_refused_in_a_sentence(dls):
    model = nn.Sequential(tiny_cnn(3)[0], nn.Conv2d(8, 3, 1))
    learn = quiet(Learner(dls, model, loss_func=CrossEntropyLossFlat(axis=1)))
    with pytest.raises(InterpretationError, match="Segmentation, with one answer per pixel"):
        collect_outputs(learn)


def test_regression_is_refused_in_a_sentence(learn):
    batches = [(torch.randn(2, 3, 16, 16), torch.tensor([0.3, 1.7]))]
    learn.loss_func = MSELossFlat()
    with pytest.raises(InterpretationError, match="Regression and segmentation are not"):
        collect_outputs(learn, batches)


def test_a_loss_without_probabilities_is_told_what_to_add(learn):
    loss_func = nn.CrossEntropyLoss()
    loss_func.activation = lambda logits: logits * 2
    learn.loss_func = loss_func
    with pytest.raises(InterpretationError, match=r"CrossEntropyLoss\) an `activation` method"):
        collect_outputs(learn)


def test_wrong_numbers_of_outputs_and_loaders_are_named(dls):
    learn = quiet(Learner(dls, tiny_cnn(5)))
    with pytest.raises(InterpretationError, match="5 outputs for 3 classes"):
        collect_outputs(learn)
    with pytest.raises(InterpretationError, match="`ds_idx` is 7; the learner has 2 loaders"):
        collect_outputs(learn, ds_idx=7)
    with pytest.raises(InterpretationError, match="There are no samples"):
        collect_outputs(learn, [])


def test_from_probs_keeps_the_probabilities_and_refuses_logits():
    probs = torch.tensor([[0.9, 0.1], [0.0, 1.0]])
    out = Outputs.from_probs(probs, torch.tensor([0, 1]), torch.tensor([0.1, 0.0]), ["a", "b"])
    torch.testing.assert_close(out.logits.softmax(1), probs)
    with pytest.raises(EvaluationError, match="sums to 5"):
        Outputs.from_probs(torch.tensor([[2.0, 3.0]]), torch.tensor([0]))
    with pytest.raises(InterpretationError, match="`losses` has 1 row, `probs` has 2"):
        Outputs.from_probs(probs, torch.tensor([0, 1]), torch.tensor([0.1]))


def test_the_probability_of_a_set_of_labels_is_the_product():
    flags = torch.tensor([[1.0, 0.0]])
    out = Outputs.from_probs(torch.tensor([[0.8, 0.3]]), flags)
    assert out.probability_of(flags).item() == pytest.approx(0.8 * 0.7)


def test_pictures_lie_in_0_to_1_whatever_the_tensor():
    whole = torch.full((3, 2, 2), 255, dtype=torch.uint8)
    assert to_picture(whole).shape == (2, 2, 3)
    assert to_picture(whole).max() == 1
    stretched = to_picture(torch.tensor([[[-2.0, 6.0]]]))
    assert stretched.tolist() == [[0.0, 1.0]]
    assert to_picture(torch.full((1, 2, 2), 0.25)).tolist() == [[0.25, 0.25]] * 2


def test_scores_are_those_of_the_head_to_the_last_bit(learn):
    """In float32 a score just above the threshold could come out below it."""
    learn.model[1] = ContinualClassifier(8)
    labels = ["ant", "bee", "cat"] * 8
    learn.model[1].extend(torch.rand(24, 8, generator=torch.Generator().manual_seed(0)), labels)
    outputs = collect_outputs(learn, with_features=True)
    scores = torch.as_tensor(learn.model[1].ood_scores(outputs.features))
    assert torch.equal(outputs.ood_scores, scores.double())

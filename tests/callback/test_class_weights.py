import numpy as np
import pytest
import torch
from fastai.callback.mixup import MixUp
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat
from fastai.metrics import accuracy
from helpers import quiet, tiny_learner, write_image_folder
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from learnkit.data.dataset import ImageDataset
from learnkit.errors import DataError
from learnkit.learner.factory import cnn_learner
from learnkit.learner.learner import ImageLearner


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_image_folder(tmp_path_factory.mktemp("images"), {"a": 4, "b": 20, "c": 9})
    return ImageDataset.from_folder(folder).split(0.7, 0.3, seed=0)


@pytest.fixture(scope="module")
def several(data):
    """The same images with the labels {a}, {b} and both."""
    names = {"a": ["a"], "b": ["b"], "c": ["a", "b"]}
    return ImageDataset(data.frame.assign(label=data.frame["label"].map(names)), data.root)


def learner(data, **kwargs):
    return tiny_learner(data, cbs=[], metrics=accuracy, **kwargs)


def fitted(learn):
    with torch.random.fork_rng():
        torch.manual_seed(4)  # of the dropout
        learn.fit(2, 0.01)
    return [p.detach().clone() for p in learn.model.parameters()]


def test_training_is_that_of_a_loss_function_with_these_weights(data):
    names = data.classes
    weight = torch.tensor(
        compute_class_weight("balanced", classes=np.array(names), y=data.train.labels)
    ).float()
    ours = fitted(learner(data, class_weights=True))
    theirs = fitted(learner(data, loss_func=CrossEntropyLossFlat(weight=weight)))
    plain = fitted(learner(data))
    assert all(map(torch.equal, ours, theirs))
    assert not all(map(torch.equal, ours, plain))


@pytest.mark.parametrize("weights", [True, "sqrt", {"a": 5, "b": 0.5, "c": 1}])
def test_what_is_measured_is_not_weighted(data, weights):
    learn = learner(data, class_weights=weights)
    learn.fit(1, 0.01)
    probs, targets = (t.double().numpy() for t in learn.get_preds())
    plain = log_loss(targets, probs / probs.sum(1, keepdims=True), labels=[0, 1, 2])
    assert learn.history["valid_loss"].iloc[-1] == pytest.approx(plain, rel=1e-5)
    assert learn.validate()[0] == pytest.approx(plain, rel=1e-5)
    assert learn.outputs().losses.mean() == pytest.approx(plain, rel=1e-5)
    assert learn.loss_func.func.weight is None


def test_train_loss_is_the_weighted_mean(data):
    learn = learner(data, class_weights={"a": 7, "b": 1, "c": 2}, train_bn=False)
    x, y = (t.as_subclass(torch.Tensor) for t in learn.dls.train.one_batch())
    weight = torch.tensor([7.0, 1.0, 2.0])
    learn.model.train()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        losses = torch.nn.functional.cross_entropy(learn.model(x), y, reduction="none")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        stepped = learn.train_batch((x, y))["total_loss"]
    expected = ((losses * weight[y]).sum() / weight[y].sum()).item()
    assert stepped == pytest.approx(expected, rel=1e-4)


def test_an_error_in_a_step_leaves_the_loss_without_weights(data):
    learn = learner(data, class_weights=True)
    seen = []

    def interrupt():
        seen.append(learn.loss_func.func.weight)
        raise KeyboardInterrupt

    learn.opt_func, learn.opt = learn.opt_func, None
    learn.create_opt()
    learn.opt.step = interrupt
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, 0.01)
    assert seen[0] is not None
    assert learn.loss_func.func.weight is None


def test_mixup_weighs_too_and_lr_find_changes_nothing(data):
    learn = learner(data, class_weights=True)
    random = learn.dls.train.rng.getstate()
    with learn.no_bar():
        learn.lr_find(num_it=6, show_plot=False)
    assert learn.loss_func.func.weight is None
    learn.dls.train.rng.setstate(random)
    assert all(map(torch.equal, fitted(learn), fitted(learner(data, class_weights=True))))
    mixed = []
    for weights in (True, False):
        one = learner(data, class_weights=weights)
        one.add_cb(MixUp())
        mixed.append(fitted(one))
        assert isinstance(one.loss_func, CrossEntropyLossFlat)
        assert one.loss_func.func.weight is None
    assert not all(map(torch.equal, *mixed))


def test_the_weight_of_a_label_is_its_pos_weight(several):
    n, counts = len(several.train), dict.fromkeys("ab", 0)
    for label in several.train.labels:
        for name in label:
            counts[name] += 1
    # scikit-learn's weights of "has it" over "has it not", label by label
    for name, weight in several.class_weights().items():
        has = np.array([name in label for label in several.train.labels])
        no, yes = compute_class_weight("balanced", classes=np.array([False, True]), y=has)
        assert weight == pytest.approx(yes / no)
        assert weight == pytest.approx((n - counts[name]) / counts[name])
    weight = torch.tensor(list(several.class_weights().values()))
    theirs = BCEWithLogitsLossFlat(pos_weight=weight, flatten=False)
    ours = tiny_learner(several, class_weights=True)
    assert all(map(torch.equal, fitted(ours), fitted(tiny_learner(several, loss_func=theirs))))
    assert ours.loss_func.func.pos_weight is None
    assert ours.loss_func.flatten


def test_weights_follow_the_loaders_of_fastai(data, tmp_path):
    from fastai.vision.all import ImageDataLoaders, Resize

    for label, n in {"x": 9, "y": 3}.items():
        write_image_folder(tmp_path, {label: n})
    dls = ImageDataLoaders.from_folder(
        tmp_path, valid_pct=0.25, seed=0, item_tfms=Resize(32), bs=4, num_workers=0
    )
    learn = quiet(cnn_learner(dls, "test_resnet", False, class_weights=True))
    labels = [path.parent.name for path in dls.train_ds.items]
    expected = compute_class_weight("balanced", classes=np.array(["x", "y"]), y=labels)
    assert learn.class_weights.weights().numpy() == pytest.approx(expected, rel=1e-6)


def test_other_losses_with_weights_take_them(data):
    learn = learner(data, loss_func=FocalLossFlat(), class_weights=True)
    assert not all(
        map(torch.equal, fitted(learn), fitted(learner(data, loss_func=FocalLossFlat())))
    )


def test_an_adopted_learner_weighs_as_it_did(data):
    learn = learner(data, class_weights={"a": 5, "b": 1, "c": 1})
    adopted = ImageLearner.from_learner(learn)
    assert adopted.class_weights.weights().tolist() == [5, 1, 1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("balanced", "`class_weights` is 'balanced'; give True, 'sqrt', or {name: weight}"),
        ({"a": 1, "b": 1}, r"names 'a', 'b'; it must have one weight for each class: .*'c'"),
        ({"a": 1, "b": -1, "c": 1}, "has -1 for 'b'; a weight is a finite number from 0 on"),
        ({"a": 1, "b": float("nan"), "c": 1}, "has nan for 'b'"),
    ],
)
def test_wrong_weights_are_refused_before_any_training(data, weights, message):
    with pytest.raises(DataError, match=message):
        learner(data, class_weights=weights)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (CrossEntropyLossFlat(weight=torch.ones(3)), "CrossEntropyLoss has weights of its own"),
        (lambda x, y: nn.functional.cross_entropy(x, y), "function takes none; leave one"),
    ],
    ids=["weighted", "function"],
)
def test_a_loss_that_cannot_be_weighed_is_refused(data, loss, message):
    with pytest.raises(DataError, match=message):
        learner(data, loss_func=loss, class_weights=True)

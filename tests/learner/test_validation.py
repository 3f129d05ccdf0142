"""fastai's own passes over a learner that numbers classes otherwise than the loader at hand."""

import matplotlib as mpl
import pytest
import torch
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import F1Score, accuracy
from helpers import tiny_learner, write_image_folder
from sklearn.metrics import f1_score

from learnkit.callback.after_fit import Calibration, ContinualLearning
from learnkit.data.dataset import ImageDataset
from learnkit.errors import ContinualStateError, InterpretationError
from learnkit.interpret.classification import ClassificationInterpretation
from learnkit.learner.dataloaders import with_normalization
from learnkit.learner.transforms import preprocessing_of

# few tiny images, validation and learned ones unlike
# plain passes are all these tests need
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* are more unusual than 95% of"),
    pytest.mark.filterwarnings("ignore:the training images are not augmented"),
]

mpl.use("Agg")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    counts = dict.fromkeys(["d", "a", "b", "c"], 12)
    root = write_image_folder(tmp_path_factory.mktemp("images"), counts)
    return ImageDataset.from_folder(root).split(0.5, 0.25, seed=0)


def only(data, names):
    return ImageDataset(data.frame[data.frame["label"].isin(list(names))], data.root)


def learner(everything, first, then="", **kwargs):
    learn = tiny_learner(only(everything, first), **kwargs)
    learn.init_continual(only(everything, first))
    if then:
        learn.extend(only(everything, then))
    return learn


@pytest.fixture
def learn(everything):
    """Knows c, d, a, b in this order; the loaders of all four say a, b, c, d."""
    metrics = [accuracy, F1Score(average="macro")]
    return learner(everything, "cd", "ab", metrics=metrics)


def loader(learn, data):
    """The validation images of `data`, read as the learner does, in classes of their own."""
    recipe = preprocessing_of(learn.dls)
    return with_normalization(data.dataloaders(size=32, bs=5), recipe.mean, recipe.std)[1]


@pytest.fixture
def dl(learn, everything):
    return loader(learn, everything)


def by_name(learn, data):
    """(true names, predicted names), image by image: no class number has a part in it."""
    return data.labels, [answer.label for answer in learn.predict_batch(data.paths)]


def share(truth, predicted):
    return sum(a == b for a, b in zip(truth, predicted, strict=True)) / len(truth)


def hits(preds, targets):
    return float((preds.argmax(1) == targets).float().mean())


def test_every_pass_has_the_accuracy_of_the_names(learn, everything, dl):
    truth, predicted = by_name(learn, everything.valid)
    expected = share(truth, predicted)
    assert learn.continual.classes == ("c", "d", "a", "b")
    assert expected > 0.5  # another order of classes would be below
    loss, right, f1 = learn.validate(dl=dl)
    summary = learn.evaluate(dl=dl).summary
    assert right == pytest.approx(expected) == summary.accuracy
    assert f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert loss == pytest.approx(summary.log_loss)
    assert hits(*learn.get_preds(dl=dl)) == pytest.approx(expected)
    assert hits(*learn.tta(dl=dl, beta=1.0)) == pytest.approx(expected)  # plain images alone
    preds, targets, decoded = learn.get_preds(dl=dl, with_decoded=True)
    names = learn.continual.classes
    assert [names[i] for i in targets.tolist()] == truth
    assert [names[i] for i in decoded.tolist()] == predicted
    interp = ClassificationInterpretation(learn, preds, targets)
    assert interp.confusion_matrix().tolist() == learn.interpret(dl=dl).confusion_matrix().tolist()


def test_own_loaders_keep_the_names_of_training_after_a_swap(everything):
    learn = learner(everything, "ab", metrics=accuracy)
    before = [learn.validate(i)[1] for i in (0, 1)]
    learn.rename({"a": "b", "b": "a"})
    assert before == [learn.validate(i)[1] for i in (0, 1)]
    assert before[1] == hits(*learn.get_preds()) == hits(*learn.tta(beta=1.0))
    # a loader made for other images says what is on them now
    data = only(everything, "ab")
    assert learn.validate(dl=loader(learn, data))[1] == share(*by_name(learn, data.valid))


def test_learned_images_beside_evaluated_ones_have_the_names_of_now(everything):
    learn = learner(everything, "ab")
    places = list(range(len(only(everything, "ab").valid)))

    def most_alike():
        found = learn.evaluate().page.images.alike(places)
        return [found.labels[row] for row in found.rows[:, 0]], found.sources

    before, files = most_alike()
    assert files is not None
    assert set(before) == {"a", "b"}
    learn.rename({"a": "b", "b": "a"})
    assert most_alike()[0] == ["ba"["ab".index(name)] for name in before]
    learn.rename({"a": "b", "b": "a"})
    assert most_alike() == (before, files)


def test_a_loader_may_lack_classes_and_not_have_others(everything):
    learn = learner(everything, "cd", "a", metrics=accuracy)
    dl = loader(learn, everything)
    fewer = only(everything, "da")
    right = learn.validate(dl=loader(learn, fewer))[1]
    assert right == pytest.approx(share(*by_name(learn, fewer.valid)))
    knowledge, own = learn.continual.knowledge, learn.validate()
    for verb in (learn.validate, learn.get_preds, learn.tta, learn.evaluate, learn.show_results):
        with pytest.raises(InterpretationError, match=r"does not know: b; extend it with images"):
            verb(dl=dl)
    assert learn.continual.knowledge is knowledge
    assert learn.validate() == own
    # classes of the loader that no image shows do no harm
    known = everything.filter([name != "b" for name in everything.labels])
    assert learn.validate(dl=loader(learn, known)) is not None


def test_a_trained_head_is_compared_by_name_too(everything):
    learn = tiny_learner(only(everything, "cd"), metrics=accuracy)
    data = everything.filter([name in "cd" for name in everything.labels])  # says a, b, c, d
    wider = loader(learn, data)
    assert list(learn.validate(dl=wider)) == pytest.approx(list(learn.validate()))
    assert learn.evaluate(dl=wider).summary.accuracy == learn.evaluate().summary.accuracy
    assert torch.equal(learn.get_preds(dl=wider)[1], learn.get_preds()[1])
    with pytest.raises(InterpretationError, match=r"a, b; train on images of them, too, or leave"):
        learn.validate(dl=loader(learn, everything))


def test_flags_of_several_labels_are_compared_by_name(everything):
    def several(names):
        frame = everything.frame[everything.frame["label"].isin(list("cd"))]
        labels = [["c", "d"] if i % 2 else [name] for i, name in enumerate(frame["label"])]
        return ImageDataset(frame.assign(label=labels), everything.root, classes=list(names))

    learn = tiny_learner(several("cd"))
    expected, wider = learn.get_preds()[1], loader(learn, several("abcd"))
    assert expected.shape[1] == 2
    assert torch.equal(learn.get_preds(dl=wider)[1], expected)
    assert list(learn.validate(dl=wider)) == pytest.approx(list(learn.validate()))
    assert torch.equal(learn.outputs(dl=wider).targets, expected)


def test_the_trained_heads_loss_is_not_asked_in_the_continual_state(everything):
    loss = CrossEntropyLossFlat(weight=torch.tensor([1.0, 5.0]))
    learn = learner(everything, "cd", "ab", loss_func=loss)
    dl = loader(learn, everything)
    expected = learn.evaluate(dl=dl).summary.log_loss
    assert learn.validate(dl=dl)[0] == pytest.approx(expected)
    assert learn.get_preds(dl=dl, with_loss=True)[2].mean() == pytest.approx(expected)
    assert learn.loss_func is loss


def test_an_infinite_loss_is_told_with_the_class_that_was_forgotten(learn, everything):
    learn.merge_classes(["a", "c"], "ac")
    learn.validate()  # a class merged away is found under its name of now
    learn.forget("d")
    with pytest.warns(UserWarning, match=r"^the loss is infinite: .* forgotten \('d'\), which it"):
        assert learn.validate()[0] == float("inf")
    assert "2 classes: ac, b;" in repr(learn)


def test_pictures_say_the_names_of_truth_and_answer(learn, everything):
    data = only(everything, "db")
    dl = loader(learn, data)
    truth, predicted = by_name(learn, data.valid)
    axes = [mpl.figure.Figure().subplots() for _ in range(4)]
    learn.show_results(dl=dl, max_n=4, ctxs=axes)
    expected = [f"{a}\n{b}" for a, b in zip(truth, predicted, strict=True)][:4]
    assert [ax.get_title() for ax in axes] == expected
    unlabelled = learn.dls.test_dl(data.paths)
    with pytest.raises(InterpretationError, match=r"no labels to show .*predict_batch"):
        learn.show_results(dl=unlabelled)


def test_pictures_of_a_trained_head_are_fastais(everything):
    data = only(everything, "cd")
    learn = tiny_learner(data)
    truth, predicted = by_name(learn, data.valid)
    axes = [mpl.figure.Figure().subplots() for _ in range(4)]
    learn.show_results(max_n=4, shuffle=False, ctxs=axes)
    expected = [f"{a}\n{b}" for a, b in zip(truth, predicted, strict=True)][:4]
    assert [ax.get_title() for ax in axes] == expected


def test_tta_ends_no_training(everything):
    for callback in (ContinualLearning(), Calibration()):
        learn = tiny_learner(only(everything, "cd"), cbs=[callback])
        learn.fit(1)
        head, weights = learn.continual, learn.model[1].state_dict()
        weights = {name: value.clone() for name, value in weights.items()}
        learn.tta()
        assert learn.continual is head
        assert all(torch.equal(v, learn.model[1].state_dict()[k]) for k, v in weights.items())
        assert len(learn.history) == 1
        learn.fit(1)  # the callbacks are back
        assert len(learn.history) == 2
        assert (learn.continual is None) == (head is None)


def test_training_after_new_classes_is_refused_with_ways_out(learn):
    for train in (lambda: learn.fit(1), learn.lr_find, lambda: learn.fine_tune(1)):
        with pytest.raises(ContinualStateError, match=r"refit\(data\).*drop_continual\(\)"):
            train()
    assert learn.continual.classes == ("c", "d", "a", "b")

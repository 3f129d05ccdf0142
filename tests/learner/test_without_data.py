"""A learner that starts with nothing: no data, no classes, a body; and all that is made of it."""

import pytest
from deploy_helpers import labelled, shades
from helpers import quiet, write_image_folder

from learnkit import ImageDataset, ImageLearner, cnn_learner, load_learner
from learnkit.cli.app import main
from learnkit.errors import ContinualPredictionError, DataError, InterpretationError

# one image a class is what these tests learn
pytestmark = pytest.mark.filterwarnings("ignore:no class has two images that differ")

NONE = "knows no class yet; `extend` it with images and labels"


def without_data(**options):
    return quiet(cnn_learner(arch="test_resnet", size=32, pretrained=False, **options))


@pytest.fixture
def learn():
    return without_data()


def same_knowledge(ours, wanted):
    ours, wanted = ours.continual.state()[1], wanted.continual.state()[1]
    return ours.keys() == wanted.keys() and all(ours[k].equal(wanted[k]) for k in wanted)


def test_it_learns_what_a_learner_with_the_data_knows_to_the_bit(learn, tmp_path):
    folder = write_image_folder(tmp_path / "images", {"a": 6, "b": 6, "c": 5}, size=(40, 36))
    data = ImageDataset.from_folder(folder).split(1, 0, 0)
    with pytest.warns(UserWarning, match="no validation images"):
        dls = data.dataloaders(size=32)
    other = quiet(cnn_learner(dls, "test_resnet", pretrained=False))
    learn.model[0].load_state_dict(other.model[0].state_dict())
    other.init_continual(data)
    assert learn.continual.classes == ()
    learn.extend(data)
    assert same_knowledge(learn, other)
    for path in data.paths[::6]:
        assert learn.predict(path).probs.equal(other.predict(path).probs)


def test_what_is_cut_off_images_is_noted_where_they_are_learned(learn, tmp_path):
    wide = write_image_folder(tmp_path / "wide", {"a": 3, "b": 3}, size=(40, 80), seed=1)
    square = write_image_folder(tmp_path / "square", {"c": 3}, size=(40, 40), seed=2)
    data = ImageDataset.from_folder(wide, splits=False)
    note = (
        "fitting the images to 32 x 32 pixels cuts off 50% of their area, by a centred crop: what "
        'lies there is not seen; a learner built on `dataloaders(method="squish")` sees it'
    )
    assert note in learn.extend(data).notes
    assert not any("cuts off" in said for said in learn.extend(square).notes)
    learn.export(tmp_path / "model")
    deployed = load_learner(tmp_path / "model")
    files, labels = data.paths, [f"new {name}" for name in data.labels]
    deployed.subtract(data, progress=False)
    assert note in deployed.extend(files, labels, progress=False).notes
    assert not any("cuts off" in said for said in deployed.extend(square, progress=False).notes)
    images, labels = labelled({"ok": 3})
    assert not any("cuts off" in said for said in deployed.extend(images, labels).notes)
    fresh = without_data().drop_continual()
    assert note in fresh.init_continual(data, reset_class_information=True).notes


def test_before_the_first_images_every_question_is_answered_by_a_sentence(learn):
    assert learn.continual.classes == ()
    with pytest.raises(ContinualPredictionError, match=NONE):
        learn.predict(shades("ok", 1)[0])
    for verb in (learn.evaluate, learn.validate, learn.get_preds):
        with pytest.raises(InterpretationError, match=r"no samples in the loader; .* as `dl`$"):
            verb()
    with pytest.raises(DataError, match=r"the training loader has no images; .*`learn\.dls`"):
        learn.summary()
    with pytest.raises(ContinualPredictionError, match=NONE):
        learn.predictor().optimize(backend="torch", progress=False)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_bundle_of_nothing_learns_where_it_is_deployed(tmp_path, channels):
    learn = without_data(n_in=channels)
    learn.export(tmp_path / "empty")
    model = load_learner(tmp_path / "empty")
    assert (model.classes, model.preprocessing.channels) == ((), channels)
    with pytest.raises(ContinualPredictionError, match=NONE):
        model.predict(shades("ok", 1)[0])
    images, labels = labelled({"ok": 4, "bad": 3})
    for part in (slice(0, 1), slice(1, 7)):
        model.extend(images[part], labels[part], progress=False)
    learn.extend(images, labels)
    assert same_knowledge(model, learn)
    model.save(tmp_path / "taught")
    taught = load_learner(tmp_path / "taught")
    assert taught.classes == ("ok", "bad")
    assert taught.predict(images[-1]).probs.equal(model.predict(images[-1]).probs)
    for name in ("ok", "bad"):
        taught.forget(name)
    assert not taught.knows_classes
    taught.save(tmp_path / "again")  # with nothing known, once more
    later = load_learner(tmp_path / "again")
    assert (later.classes, later.knows_classes) == (("ok", "bad"), False)
    later.extend(images, labels, progress=False)
    assert later.predict(images[-1]).probs.equal(model.predict(images[-1]).probs)
    again = quiet(ImageLearner.from_bundle(tmp_path / "empty"))
    again.extend(images, labels)
    assert same_knowledge(again, learn)


def test_the_command_line_teaches_and_shows_it(learn, tmp_path, capsys):
    learn.export(tmp_path / "empty")
    folder = write_image_folder(tmp_path / "new", {"a": 4, "b": 4}, size=(32, 32))
    with pytest.raises(SystemExit) as ended:
        main(["extend", str(tmp_path / "empty"), str(folder), "--out", str(tmp_path / "b")])
    assert ended.value.code == 0
    assert load_learner(tmp_path / "b").classes == ("a", "b")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "empty"), str(folder / "a")])
    assert "knows no class yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({}, TypeError, r"no `dls`; .* or the `size` of .* as in cnn_learner\(arch="),
        ({"size": 0}, DataError, "`size` is"),
        ({"size": 32, "n_in": 17}, DataError, "`channels` is 17"),
    ],
)
def test_what_it_needs_instead_of_data_is_said(options, kind, match):
    with pytest.raises(kind, match=match):
        cnn_learner(arch="test_resnet", pretrained=False, **options)
    with pytest.raises(TypeError, match="needs `dls` and `arch`"):
        cnn_learner()


def test_a_size_beside_data_is_refused(learn):
    with pytest.raises(TypeError, match=r"`size` is 32, but .* dataloaders\(size=32\)"):
        cnn_learner(learn.dls, "test_resnet", pretrained=False, size=32)

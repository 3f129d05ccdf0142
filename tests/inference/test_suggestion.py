import re

import numpy as np
import pytest
from deploy_helpers import PLAIN_HEAD, make_continual, make_model, make_predictor, shades, strange
from helpers import show_progress_at_once
from PIL import Image

from learnkit.deploy.predictor import Predictor
from learnkit.errors import DataError, UnreadableImagesError
from learnkit.inference import suggestion
from learnkit.inference.prediction import Prediction


@pytest.fixture(scope="module")
def model():
    return make_continual({"red": 12, "blue": 12})


def test_a_new_kind_is_suggested_before_more_of_the_known(model):
    known = shades("red", 20, seed=1) + shades("blue", 20, seed=1)
    found = model.suggest([*known, *strange(4)], 1, progress=False)
    assert found[0].place >= 40
    assert found[0].reason.startswith("unlike the images the model knows; ")
    assert found[0].novelty > 0.9
    assert found.items[0] is not None
    assert found.n_images == 44


def test_a_copy_of_what_is_suggested_is_not_suggested_as_well(model):
    new = strange(3)
    found = model.suggest([new[0], new[0], new[0], new[1], new[2]], 3, progress=False)
    assert sorted(one.place for one in found) == [0, 3, 4]
    assert [one.covers for one in found if one.place == 0] == [3]
    # where no other image is left it says so
    found = model.suggest([new[0], new[1], new[0]], 3, progress=False)
    told = [(one.place, one.covers, one.reason.partition("; ")[2]) for one in found]
    assert sorted(told[:2]) == [(0, 2, "1 more like it"), (1, 1, "stands for itself alone")]
    said = "shows the same as one before it: one label is enough for both"
    assert told[2:] == [(2, 0, said)]


def test_a_model_that_knows_no_class_begins_with_images_that_stand_for_many():
    model = make_continual({})
    images = [*shades("red", 30), *shades("blue", 12)]
    found = model.suggest(images, 2, progress=False)
    assert not model.knows_classes
    assert [one.place < 30 for one in found] == [True, False]
    assert [one.reason for one in found] == [
        "no class is known yet; 29 more like it",
        "no class is known yet; 11 more like it",
    ]
    one = found[0]
    assert (one.label, one.confidence, one.uncertainty, one.novelty) == ("", 0.0, 1.0, None)
    assert len(found.table()) == 2
    assert "29 more like it" in found._repr_html_()
    with pytest.warns(UserWarning, match="no class has two images that differ"):
        model.extend(found.items, ["red", "blue"], progress=False)
    assert model.predict(images[5]).label == "red"


def test_nothing_is_changed_and_labels_can_be_learned(model):
    before, images = model.continual.knowledge, strange(6)
    found = model.suggest(images, 2, progress=False)
    assert model.continual.knowledge is before
    grown = make_continual({"red": 12, "blue": 12})
    grown.extend(found.items, "squares", progress=False)
    assert grown.continual.n_images["squares"] == 2


def test_numbers_of_a_suggestion_are_those_of_the_prediction(model):
    images = shades("red", 5, seed=3) + strange(2)
    found = model.predict_batch(images)  # in the same batches: equal to the bit on any machine
    for one in model.suggest(images, 7, progress=False):
        prediction = found[one.place]
        first, second = prediction.probs.sort(descending=True).values.tolist()[:2]
        assert one.label == prediction.label
        assert one.confidence == prediction.confidence
        assert one.uncertainty == pytest.approx(1 - (first - second), abs=1e-6)
        assert one.novelty == 1 - prediction.p_value


@pytest.mark.parametrize(
    ("probs", "p_value", "worth"),
    [
        ([0.6, 0.4], None, 0.8**0.5),
        ([0.6, 0.4], 0.5, 0.8**0.5),
        ([0.6, 0.4], 0.02, 0.98),
        ([0.7, 0.2, 0.1], None, 0.5**0.5),
        ([1.0, 0.0], 0.75, 0.25),
        ([1.0], None, 0.0),
    ],
)
def test_the_worth_of_an_image_is_the_larger_of_the_root_of_doubt_and_novelty(
    probs, p_value, worth
):
    names = tuple("abc"[: len(probs)])
    prediction = Prediction("a", 0, np.array(probs), names, p_value=p_value)
    assert suggestion._worth(prediction) == pytest.approx(worth)


def test_files_that_cannot_be_read_are_named_and_left_out(model, tmp_path):
    for i, image in enumerate(strange(3)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    found = model.suggest(tmp_path, 4, progress=False)
    assert len(found) == 3
    assert [*found.failures] == [str(tmp_path / "broken.png")]
    assert str(found) == "3 of 4 images to label next; 1 could not be read"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "broken.png").write_bytes(b"no picture")
    said = r"no image can be read \(1 given\): "
    with pytest.raises(UnreadableImagesError, match=said) as caught:
        model.suggest(tmp_path / "one", 1, progress=False)
    assert [*caught.value.failures] == [str(tmp_path / "one" / "broken.png")]


@pytest.mark.parametrize("n", [0, -3, True, 2.0, "2"])
def test_a_number_that_is_none_is_refused(model, n):
    said = f"`n` is {n!r}; give a whole number of 1 or more: up to so many are chosen"
    with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
        model.suggest(strange(3), n, progress=False)


@pytest.mark.parametrize("n", [(), (4,), (np.int64(4),)])
def test_up_to_as_many_are_suggested_as_there_are(model, n):
    assert sorted(one.place for one in model.suggest(strange(3), *n, progress=False)) == [0, 1, 2]


def test_images_that_were_learned_are_told_as_such(model):
    learned, new = shades("red", 12)[:3], shades("red", 3, seed=7)
    found = model.suggest([*learned, learned[0], *new], progress=False)
    reasons = {one.place: one.reason for one in found}
    said = "learned already: its label teaches nothing new; "
    assert [reasons[place].startswith(said) for place in range(7)] == [True] * 4 + [False] * 3
    assert any(", not learned yet; " in reasons[place] for place in (4, 5, 6)), reasons
    # two of the images are the same, and neither is said to be like no other
    assert not any("none is like" in reason for reason in reasons.values())


def test_no_images_are_refused(model):
    with pytest.raises(DataError, match="`images` is empty; give files, a folder or a dataset"):
        model.suggest([], 1, progress=False)


def test_the_images_beside_change_the_bits_of_none(model, monkeypatch):
    seen = []
    cover = suggestion.cover
    spy = lambda features, *args, **kwargs: (
        seen.append(features) or cover(features, *args, **kwargs)
    )
    monkeypatch.setattr(suggestion, "cover", spy)
    images = strange(19)
    model.suggest(images, 1, progress=False)
    model.suggest(images[17:], 1, progress=False)
    assert np.array_equal(seen[0][17:], seen[1])


def test_a_trained_head_alone_suggests_what_it_doubts():
    model = make_predictor()
    found = model.suggest(strange(6), 3, progress=False)
    assert len(found) == 3
    assert all(one.novelty is None for one in found)


def test_a_multi_label_model_names_the_label_in_doubt():
    net = make_model(**PLAIN_HEAD)
    model = Predictor(net, make_predictor().preprocessing, ["a", "b", "c"], multi_label=True)
    one = model.suggest(strange(3), 1, progress=False)[0]
    probs = model.predict(strange(3)[one.place]).probs
    assert one.uncertainty == pytest.approx(float(1 - (2 * probs - 1).abs().min()), abs=1e-4)
    assert " or not (" in one.reason


def test_a_model_of_one_class_suggests(model):
    alone = make_continual({"red": 6})
    assert len(alone.suggest(strange(3), 2, progress=False)) == 2


def test_table_document_and_plot_show_every_image_and_reason(model):
    images = [*shades("red", 2, seed=5), *strange(2)]
    found = model.suggest(images, 4, progress=False)
    table = found.table()
    assert table.reason.tolist() == [one.reason for one in found]
    assert table.place.tolist() == [one.place for one in found]
    html = found._repr_html_()
    assert html.count("data:image/png") == 4
    assert all(one.reason in html for one in found)
    axes = found.plot().ravel()
    assert [ax.get_title() for ax in axes[:4]] == [one.reason.replace("; ", "\n") for one in found]
    assert all(len(ax.images) == 1 for ax in axes[:4])


def test_only_the_first_have_a_picture(model, monkeypatch):
    monkeypatch.setattr(suggestion, "_PICTURES", 2)
    found = model.suggest(strange(4), 4, progress=False)
    assert [one.picture is None for one in found] == [False, False, True, True]
    assert "and 2 more: see table()" in found._repr_html_()


def test_bars_are_shown_if_wanted(model, capsys, monkeypatch):
    show_progress_at_once(monkeypatch)
    model.suggest(strange(3), 2, progress=True)
    assert "suggest: 5 of 5 images, 0 s left" in capsys.readouterr().err
    model.suggest(strange(3), 2, progress=False)
    assert capsys.readouterr().err == ""

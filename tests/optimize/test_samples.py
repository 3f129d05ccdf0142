import hashlib
import warnings

import numpy as np
import pytest
import torch
from deploy_helpers import labelled, make_continual, make_predictor, shades
from helpers import write_image_folder
from PIL import Image

from learnkit.data.dataset import ImageDataset
from learnkit.data.labelled_images import Labelled
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import DataError, OptimizeError, UnreadableImagesError
from learnkit.optimize.compare import answers
from learnkit.optimize.samples import check_samples, evenly, kept_apart, read_pictures, set_apart
from learnkit.optimize.trials import optimism_about

RECIPE = Preprocessing(16)
CLASSES = ("a", "b")


def read(data, what="samples", *, classes=CLASSES, limit=1000):
    return read_pictures(data, RECIPE, classes, what=what, limit=limit)


def some(counts, seed=0):
    return read(Labelled(*labelled(counts, seed=seed, size=16)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images"), {"a": 6, "b": 4}, size=(16, 20))


def test_pictures_are_what_the_network_sees_and_digests_what_they_show(folder):
    found = read(folder)
    files = sorted(folder.rglob("*.png"))
    assert found.names[0] == "a/000.png"
    assert found.labels == ("a",) * 6 + ("b",) * 4
    assert torch.equal(found.pixels, torch.stack([RECIPE.load(file) for file in files]))
    assert found.digests[3] == hashlib.sha256(RECIPE.load(files[3]).numpy().tobytes()).hexdigest()


def test_the_same_picture_under_another_name_and_format_has_the_same_digest(folder, tmp_path):
    image = Image.open(folder / "a" / "000.png")
    image.save(tmp_path / "other.bmp")
    assert read([tmp_path / "other.bmp"]).digests == read([folder / "a" / "000.png"]).digests


def test_datasets_give_the_split_that_is_meant(folder):
    data = ImageDataset.from_folder(folder).split(0.6, 0.4, seed=0)
    train, valid = (set(map(str, part.paths)) for part in (data.train, data.valid))
    names = {what: set(read(data, what).names) for what in ("samples", "test")}
    assert names["samples"] == {"/".join(p.split("/")[-2:]) for p in train}
    assert names["test"] == {"/".join(p.split("/")[-2:]) for p in valid}


def test_a_folder_without_class_folders_and_a_list_have_no_labels(folder):
    assert read(folder / "a").labels is None
    assert read([folder / "a" / "000.png"]).labels is None


def test_names_never_tell_where_on_the_machine_files_were(folder):
    described = read(folder).described("images")
    assert str(folder) not in str(described)
    assert described.per_class == {"a": 6, "b": 4}
    assert len(described.ids) == described.n == 10


def test_the_digest_of_all_does_not_depend_on_their_order(folder):
    found = read(folder)
    turned = found.picked(range(len(found) - 1, -1, -1))
    assert turned.described("x").digest == found.described("x").digest
    assert turned.picked(range(9)).described("x").digest != found.described("x").digest


def test_unknown_classes_and_no_images_are_refused_with_a_remedy(folder, tmp_path):
    with pytest.raises(OptimizeError, match=r"\['b'\], which this model does not know.*as a list"):
        read(folder, classes=("a", "c"))
    with pytest.raises(OptimizeError, match="`test` holds no images"):
        read([], "test")


def test_unreadable_images_are_all_named(folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImagesError, match=r"broken\.png"):
        read([folder / "a" / "000.png", tmp_path / "broken.png"])


def test_images_of_less_than_half_the_size_are_warned_of():
    with pytest.warns(UserWarning, match="3 of 5 images of `samples` are less than half"):
        read([*shades("a", 3, size=7), *shades("a", 2, size=16)])


def test_images_that_are_all_small_come_so():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(shades("a", 3, size=7))) == 3


def test_more_images_than_the_limit_are_drawn_evenly_from_all_classes():
    found = read(Labelled(*labelled({"a": 30, "b": 10}, size=16)), limit=12)
    assert found.described("x").per_class == {"a": 6, "b": 6}
    assert evenly(["x"] * 9 + ["y"] * 2, 3) == [0, 4, 8, 9, 10]


def test_few_samples_are_warned_of_and_enough_are_not():
    with pytest.warns(UserWarning, match=r"only 3 of 'a', 0 of 'b'; 10 to 20"):
        check_samples(some({"a": 3}), CLASSES)
    with pytest.warns(UserWarning, match="4 images for 2 classes"):
        check_samples(read(shades("a", 4, size=16)), CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_samples(some({"a": 10, "b": 10}), CLASSES)


def test_samples_that_are_all_alike_are_refused_and_twins_counted_once():
    (image,) = shades("a", 1, size=16)
    with pytest.raises(OptimizeError, match="all show the same"):
        check_samples(read([image] * 5), CLASSES)
    with pytest.warns(UserWarning, match="`samples` has 1 image twice"):
        found = check_samples(read([image, *shades("b", 20, size=16), image]), CLASSES)
    assert len(found) == 21


def test_overlap_is_taken_out_of_the_larger_side_and_said():
    pool = some({"a": 8, "b": 8})
    few, many = pool.picked(range(5)), pool.picked(range(3, 16))
    samples, test, said = kept_apart(few, many)
    assert (len(samples), len(test)) == (5, 11)
    assert said == "2 images both in `samples` and in `test`; the test goes without them"
    samples, test, said = kept_apart(many, few)
    assert (len(samples), len(test)) == (11, 5)
    assert not set(samples.digests) & set(test.digests)
    assert "the samples go without them" in said
    assert kept_apart(pool.picked(range(4)), pool.picked(range(4, 9)))[2] == ""


def test_samples_that_are_the_test_are_divided():
    pool = some({"a": 9, "b": 6})
    samples, test, said = kept_apart(pool, pool)
    assert (len(samples), len(test)) == (10, 5)
    assert "5 of them are set apart" in said


def test_a_third_of_every_class_is_set_apart_whatever_the_order():
    pool = some({"a": 9, "b": 6})
    samples, test = set_apart(pool)
    assert test.described("x").per_class == {"a": 3, "b": 2}
    assert not set(samples.digests) & set(test.digests)
    order = np.random.default_rng(0).permutation(len(pool)).tolist()
    assert set(set_apart(pool.picked(order))[1].digests) == set(test.digests)
    assert [len(part) for part in set_apart(pool.picked(range(3)))] == [2, 1]
    with pytest.raises(OptimizeError, match="has 2 of the 3 images that are the least"):
        set_apart(pool.picked([0, 1]))


def test_labels_are_one_name_or_several_as_the_model_gives_them():
    images = shades("a", 3, size=16)

    def labels(*given, multi_label):
        data, how = Labelled(images, list(given)), {"what": "test", "limit": 9}
        return read_pictures(data, RECIPE, CLASSES, multi_label=multi_label, **how).labels

    assert labels("a", ("b",), ["a"], multi_label=False) == ("a", "b", "a")
    assert labels("a", ("a", "b"), (), multi_label=True) == (("a",), ("a", "b"), ())
    with pytest.raises(OptimizeError, match=r"an image with 2 labels, .'a', 'b'.*exactly one"):
        labels("a", ("a", "b"), "b", multi_label=False)
    for wrong in (3, None, {"a": 1}, ("a", ["b"])):
        with pytest.raises(OptimizeError, match="a label is a name"):
            labels("a", "b", wrong, multi_label=True)


@pytest.mark.parametrize("data", [5, None, 1.5])
def test_what_holds_no_images_is_named(data):
    with pytest.raises(DataError, match=f"{data} is of type .*; give a dataset, a folder"):
        read(data)


def test_a_report_says_where_it_is_judged_by_images_that_were_learned():
    predictor = make_continual({"ok": 7, "scratch": 6})
    images, _ = labelled({"ok": 7, "scratch": 6})
    pixels = torch.stack([predictor.preprocessing.load(image) for image in images])
    strange = torch.stack([predictor.preprocessing.load(one) for one in shades("ok", 9, seed=5)])

    def said(pixels):
        features = answers(predictor.record, pixels).features
        assert len(features) == len(pixels)
        return optimism_about(predictor.record, features)

    assert said(strange) == ()  # whatever folder they are in
    assert said(pixels[:0]) == ()
    note = (
        "of the test images 5 of 14 images were learned by this model: the numbers are optimistic"
    )
    assert said(torch.cat([strange, pixels[:5]])) == (f"{note}, before and after alike",)
    predictor.calibrate(shades("ok", 9, seed=5), "ok", progress=False)
    (fitted,) = said(strange[:3])
    assert fitted.startswith("of the test images 3 of 3 images decide threshold and temperature")
    plain = make_predictor()
    assert optimism_about(plain.record, answers(plain.record, pixels).features) == ()

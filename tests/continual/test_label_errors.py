"""Label errors: every image by the statistics of all others."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from deploy_helpers import make_continual, shades
from helpers import tiny_learner, write_image_folder
from PIL import Image
from sklearn.datasets import load_digits

from learnkit.continual.closed_form.every_image import leave_every_image_out
from learnkit.continual.closed_form.linear import Basis
from learnkit.continual.closed_form.loo_samples import every_row_out, mean_noise
from learnkit.continual.embedding import to_grid
from learnkit.continual.label_issues import label_errors
from learnkit.continual.statistics import ClassStatistics
from learnkit.data.dataset import ImageDataset
from learnkit.errors import DataError
from learnkit.uncertainty.scoring import GRID, unit_rows


def flipped(labels, share, seed):
    """(labels, which are wrong) with a share of them replaced by another class each."""
    rng, wrong = np.random.default_rng(seed), np.zeros(len(labels), bool)
    wrong[rng.choice(len(labels), round(share * len(labels)), replace=False)] = True
    names, labels = sorted(set(labels)), list(labels)
    for i in np.flatnonzero(wrong):
        labels[i] = rng.choice([name for name in names if name != labels[i]])
    return labels, wrong


@pytest.fixture(scope="module")
def digits():
    pixels, targets = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float(), [f"digit {i}" for i in targets]


def clusters(sizes, seed=0, width=6):
    """(features, labels) of as many images around an axis each."""
    generator = torch.Generator().manual_seed(seed)
    labels = [name for name, n in sizes.items() for _ in range(n)]
    axes = torch.eye(width)[[list(sizes).index(name) for name in labels]]
    noise = torch.rand(len(labels), width, generator=generator)
    return noise + axes, labels


@pytest.fixture(scope="module")
def found(digits):
    features, labels = digits
    labels, wrong = flipped(labels, 0.05, seed=1)
    return label_errors(features, labels, [f"{i}.png" for i in range(len(labels))]), wrong


def test_wrong_labels_of_digits_come_first(found):
    errors, wrong = found
    first = errors.frame["place"][: wrong.sum()]
    assert wrong[first].mean() >= 0.8


def test_the_number_of_wrong_labels_is_estimated(found):
    errors, wrong = found
    assert errors.n_wrong == pytest.approx(wrong.sum(), rel=0.2)
    low, high = errors.n_wrong_interval
    assert low < errors.n_wrong < high
    text = f"about {errors.n_wrong:.0f} of 1797 labels are wrong ({low:.0f} to {high:.0f}); "
    assert str(errors).startswith(text)
    assert str(errors).endswith("are right, more if images show another class as well")


def test_where_no_suspect_is_expected_to_be_wrong_nothing_else_is_said(found):
    errors = copy.copy(found[0])
    errors.frame = errors.frame.assign(p_wrong=0.0)
    n = len(errors.suspects)
    assert str(errors).endswith(f"; {n} suspects, and all of them may be right")
    errors.frame = errors.frame.assign(suspect=False)
    assert str(errors).endswith("; 0 suspects")


def test_the_false_discovery_rate_is_that_of_the_list(found):
    errors, wrong = found
    for k in (40, 90, 150, 300):
        right = 1 - wrong[errors.frame["place"][:k]].mean()
        assert errors.frame["false_discovery"][k - 1] == pytest.approx(right, abs=0.08)


def test_no_wrong_label_is_expected_where_there_is_none():
    features, labels = clusters({"a": 60, "b": 60})
    errors = label_errors(features * 1.0, labels, range(120))
    assert errors.n_wrong < 2


def test_an_image_left_out_is_judged_by_a_fit_that_never_saw_it():
    features, labels = clusters({"a": 9, "b": 7, "c": 14})
    features[3], labels[5] = features[2], "b"  # a copy, and a wrong label
    stats = ClassStatistics.empty(6, root=False, memory_size=99).update(features, labels)
    moments = stats.canonical().moments()
    every = leave_every_image_out(moments)
    spectrum = Basis.of(moments, "training").spectrum
    share, geometry = every.shrinkage, spectrum.geometry(every.shrinkage)
    noise = mean_noise(every_row_out(spectrum, every.memory), geometry)
    ridge = share / (1 - share) * spectrum.total / 6  # in units of scatter; held
    rows = to_grid(unit_rows(features.numpy(), root=False)).numpy() / GRID
    names = np.array(labels)
    for i in (0, 3, 5, 20, 29):
        stay = (rows != rows[i]).any(1) | (names != names[i])
        z, own = rows[stay], names[stay]
        means = np.stack([z[own == name].mean(0) for name in "abc"])
        counts = np.array([(own == name).sum() for name in "abc"])
        offsets = z - means[[*map("abc".index, own)]]
        dof = spectrum.dof - (~stay).sum()
        inverse = np.linalg.inv((1 - share) / dof * (offsets.T @ offsets + ridge * np.eye(6)))
        squared = lambda x, inverse=inverse: np.einsum("...i,ij,...j->...", x, inverse, x)
        center = spectrum.center.numpy()
        lengths = torch.from_numpy(squared(means - center))
        debts = noise.debts(lengths, torch.from_numpy(counts).double(), 1.0).numpy()
        # that of the background is the mean of the means as they are without it
        evidence = squared(rows[i] - means.mean(0)) - squared(rows[i] - means) + debts
        expected = evidence * noise.reliabilities(geometry.counts, 1.0).numpy() / 2
        where = (every.memory.embedded(slice(None)).numpy() == rows[i]).all(1)
        where &= every.labels.numpy() == "abc".index(labels[i])
        np.testing.assert_allclose(every.logits.numpy()[where][0], expected, rtol=1e-8, atol=1e-8)


def test_the_order_of_the_images_decides_nothing():
    features, labels = clusters({"a": 20, "b": 30})
    labels[2] = "b"
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3)).tolist()
    one = label_errors(features, labels, [str(i) for i in range(50)]).frame
    other = label_errors(features[order], [labels[i] for i in order], [str(i) for i in order]).frame
    assert one.drop(columns="place").equals(other.drop(columns="place"))
    assert one["path"][0] == "2"


def test_copies_with_one_wrong_label_do_not_speak_for_each_other():
    features, labels = clusters({"a": 20, "b": 20})
    copies = torch.cat([features, features[:1].repeat(12, 1)])
    errors = label_errors(copies, [*labels, *["b"] * 12], range(52))
    assert set(errors.frame["place"][:12]) == set(range(40, 52))


def test_a_group_is_left_out_as_a_whole():
    features, labels = clusters({"a": 20, "b": 20})
    noise = 0.02 * torch.rand(12, 6, generator=torch.Generator().manual_seed(5))
    features = torch.cat([features, features[:1] + noise])
    labels = [*labels, *["b"] * 12]
    groups = [*range(40), *["burst"] * 12]
    alone = label_errors(features, labels, range(52)).frame
    grouped = label_errors(features, labels, range(52), groups=groups).frame
    seen = [frame["p_label"][frame["place"] >= 40].max() for frame in (alone, grouped)]
    assert seen[1] < 0.1
    assert seen[1] <= seen[0]
    assert set(grouped["place"][:12]) == set(range(40, 52))


def test_what_has_no_other_image_stands_last_with_nothing_said():
    features, labels = clusters({"a": 20, "b": 20, "c": 1})
    errors = label_errors(features, labels, range(41))
    last = errors.frame.iloc[-1]
    assert last["label"] == "c"
    assert np.isnan(last[["p_label", "p_wrong", "false_discovery"]].astype(float)).all()
    assert pd.isna(last["predicted"])
    assert not last["suspect"]
    assert "1 could not be left out: their classes have no other image" in str(errors)


def test_an_image_like_none_is_an_outlier_whatever_its_label():
    features, labels = clusters({"a": 40, "b": 40}, width=8)
    features[7] = 3 * torch.eye(8)[6]
    errors = label_errors(features, labels, range(80))
    assert errors.outliers["place"].tolist()[0] == 7
    assert len(errors.outliers) <= 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"a": 5}, "all 5 labels are 'a'; label errors are found between classes"),
        ({"a": 1, "b": 1}, "none of the 2 classes has two images that differ"),
    ],
    ids=["one class", "one image each"],
)
def test_images_that_cannot_be_compared_are_refused(sizes, message):
    features, labels = clusters(sizes)
    with pytest.raises(DataError, match=message):
        label_errors(features, labels, range(len(labels)))


def test_a_predictor_finds_the_wrong_label_and_shows_it():
    model = make_continual({"red": 3, "blue": 3})
    before, images = model.continual.knowledge, [*shades("red", 12), *shades("blue", 12)]
    labels = ["red"] * 12 + ["blue"] * 12
    labels[4] = "blue"
    errors = model.label_errors(images, labels, progress=False)
    assert errors.frame["place"][0] == 4
    assert errors.frame["predicted"][0] == "red"
    assert errors.suspects["place"].tolist() == [4]
    assert model.continual.knowledge is before
    html = errors._repr_html_()
    assert str(errors).startswith("about 1 of 24 labels is wrong (")
    assert "look at the first" in html
    assert [row[0] for row in errors.document().content[1].content] == [1]  # there is one suspect
    assert "data:image/" in html
    assert repr(errors) == f"LabelErrors({errors})"


def test_all_splits_of_a_folder_are_looked_at(tmp_path):
    for split, n in (("train", 8), ("valid", 4)):
        for name in ("red", "blue"):
            (tmp_path / split / name).mkdir(parents=True)
            for i, pixels in enumerate(shades(name, n, seed=len(split))):
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    wrong = tmp_path / "valid" / "red" / "0.png"
    wrong.rename(tmp_path / "valid" / "blue" / "wrong.png")
    errors = make_continual({"red": 3}).label_errors(tmp_path, progress=False)
    assert len(errors) == 24
    assert errors.frame["path"][0].endswith("wrong.png")


def test_a_learner_looks_at_its_own_images_as_its_export_does(tmp_path):
    root = write_image_folder(tmp_path / "images", {"a": 10, "b": 10}, size=(24, 24))
    (root / "a" / "000.png").rename(root / "b" / "wrong.png")
    data = ImageDataset.from_folder(root).split(0.5, 0.5, seed=0)
    learn = tiny_learner(data)
    errors = learn.label_errors()
    assert len(errors) == 20
    assert errors.frame["path"][0].endswith("wrong.png")
    by_loaders = learn.label_errors(learn.dls)
    assert by_loaders.frame.drop(columns="place").equals(errors.frame.drop(columns="place"))
    by_loader = learn.label_errors(learn.dls.valid)
    assert len(by_loader) == 10
    exported = learn.predictor().label_errors(data, progress=False)
    assert exported.frame["path"].tolist() == errors.frame["path"].tolist()
    grouped = learn.label_errors(data, group=[i // 2 for i in range(20)])
    assert len(grouped) == 20
    assert not grouped.frame["p_label"].equals(errors.frame["p_label"])


def test_names_are_taken_as_they_are(found, digits):
    features, labels = digits
    names, _ = flipped(labels, 0.05, seed=1)
    odd = label_errors(
        features, [f"={name}" for name in names], [str(i) for i in range(len(names))]
    )
    assert odd.frame["place"].tolist() == found[0].frame["place"].tolist()

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from continual_helpers import draw, embedded, gather, keep_every_row
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from learnkit.continual.closed_form.lda import fit_lda, fit_prototype, mixed, share_of_mean
from learnkit.continual.closed_form.linear import Basis
from learnkit.continual.closed_form.loo_samples import mean_noise
from learnkit.continual.closed_form.mean_noise import MeanNoise
from learnkit.continual.closed_form.temperature import temper
from learnkit.continual.embedding import to_grid
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import ContinualNotInitializedError
from learnkit.uncertainty.scoring import GRID

unblended = partial(fit_lda, blend=False)
FITS = [fit_lda, fit_prototype]
both = pytest.mark.parametrize("fit", FITS)
each_alone = pytest.mark.parametrize("fit", [unblended, fit_prototype], ids=["lda", "prototype"])


def accuracy(classifier, stats, features, labels):
    predicted = classifier.logits(embedded(features)).argmax(1)
    return np.mean(
        [stats.class_names[i] == label for i, label in zip(predicted, labels, strict=True)]
    )


def is_usable(classifier, stats, features):
    """Finite logits for known classes, -inf for others, finite scores and temperature."""
    logits = classifier.logits(embedded(features))
    known = stats.counts > 0
    assert torch.isfinite(logits[:, known]).all()
    assert (logits[:, ~known] == -math.inf).all()
    assert 0 < classifier.temperature < math.inf
    scores = classifier.geometry.distances.mahalanobis(embedded(features).numpy())
    assert np.isfinite(scores).all()
    for values in (classifier.loo.mahalanobis, classifier.loo.relative):
        assert torch.isfinite(values).all()
    return True


@pytest.mark.parametrize("shrinkage", [0.1, 0.6])
@pytest.mark.parametrize("counts", [{"a": 9, "b": 9, "c": 9}, {"a": 4, "b": 20, "c": 9}])
def test_without_debiasing_it_is_scikit_learns(shrinkage, counts):
    features, labels = draw(counts)
    stats = gather(features, labels)
    z = (to_grid(embedded(features)) / GRID).numpy()
    priors = [n / len(labels) for n in counts.values()]
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=priors)
    theirs.fit(z, labels)
    ours = fit_lda(stats.moments(), debias=0, shrinkage=shrinkage)
    # theirs divides the scatter by the images, ours by the degrees of freedom
    factor = len(labels) / stats.dof
    wanted = theirs.decision_function(z) - np.log(priors)
    got = ours.logits(torch.from_numpy(z)).numpy() * factor
    wanted, got = (logits - logits[:, :1] for logits in (wanted, got))
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)


def lengths_that_count(lengths, counts, variance):
    """Squared lengths of the means less their noise, drawn together, less what the center adds."""
    noise = [variance / float(n) for n in counts]
    shared = sum(noise) / len(noise) ** 2  # the center is the mean of the means
    in_length = [(1 - 2 / len(noise)) * v + shared for v in noise]
    free = [float(length) - v for length, v in zip(lengths, in_length, strict=True)]
    kept = [0.75 * float(n) / (float(n) + 0.5) for n in counts]
    common = sum(k * f for k, f in zip(kept, free, strict=True)) / sum(kept)
    rows = zip(kept, free, in_length, noise, strict=True)
    drawn = [k * f + (1 - k) * common + inside - v for k, f, inside, v in rows]
    return torch.tensor(drawn, dtype=torch.float64)


def signal_of(means, counts, variance):
    """Half the mean squared distance of true means: over pairs, one by one, noise taken off."""
    over = weight = 0.0
    for i, j in itertools.permutations(range(len(counts)), 2):
        n, m = float(counts[i]), float(counts[j])
        w = n / (n + 0.5) * m / (m + 0.5)
        apart = float((means[i] - means[j]).square().sum())
        over, weight = over + w * (apart - variance / n - variance / m) / 2, weight + w
    return max(over / weight, 1e-3 * variance)


def factors_of(signal, variance, counts):
    """By how much less the logits of a class would spread if its mean were known."""
    shares = [signal / (signal + variance / float(n)) for n in counts]
    return torch.tensor([math.sqrt(s / max(shares)) for s in shares], dtype=torch.float64)


@each_alone
def test_leave_one_out_logits_are_those_of_the_classifier_without_the_sample(fit):
    features, labels = draw({"a": 6, "b": 5, "c": 3})
    stats = gather(features, labels)
    classifier = fit(stats.moments())
    spectrum, rho = classifier.geometry.spectrum, classifier.shrinkage
    z = to_grid(embedded(features)) / GRID
    ridge = rho / (1 - rho) * float(stats.scatter().trace()) / 12 if rho < 1 else 0.0

    def covariance_of(these):
        if rho == 1:
            return torch.eye(12, dtype=torch.float64) * spectrum.variance_per_axis
        ridged = these.scatter() + ridge * torch.eye(12, dtype=torch.float64)
        return (1 - rho) / these.dof * ridged

    refits, own = [], []
    for row in range(len(labels)):
        sample = classifier.loo.memory.features[classifier.loo.rows[row]]
        gone = int((z - sample).abs().sum(1).argmin())
        keep = [i for i in range(len(labels)) if i != gone]
        less = gather(features[keep], [labels[i] for i in keep])
        refits.append((sample, less, torch.linalg.inv(covariance_of(less))))
        label = int(classifier.loo.labels[row])
        away, n = sample - less.means()[label], float(less.counts[label])
        own.append(float(away @ refits[-1][2] @ away) * n / (n + 1))
    variance = sum(own) / len(own)
    geometry = spectrum.geometry(rho)
    whitened = stats.means() @ torch.linalg.cholesky(torch.linalg.inv(covariance_of(stats)))
    signal = signal_of(whitened, geometry.counts, variance)
    for row, (sample, less, inverse) in enumerate(refits):
        centered, counts = less.means() - spectrum.center, less.counts.double()
        weight = centered @ inverse
        bias = -lengths_that_count((weight * centered).sum(1), counts, variance) / 2
        wanted = weight @ (sample - spectrum.center) + bias
        # the center is the mean of the class means, and moves with one of them
        away, was = sample - less.means().mean(0), sample - spectrum.center
        wanted += (away @ inverse @ away - was @ inverse @ was) / 2
        wanted = wanted * factors_of(signal, variance, geometry.counts)
        wanted = wanted - math.log(3) * classifier.temperature
        torch.testing.assert_close(classifier.loo.logits[row], wanted, rtol=1e-8, atol=1e-8)


@both
def test_the_shrinkage_has_about_the_least_held_out_log_loss(fit):
    classifier = fit(gather(*draw({"a": 20, "b": 12, "c": 4})).moments())
    losses = classifier.diagnostics["losses"]
    assert losses[classifier.shrinkage] < min(losses.values()) + 0.01
    assert classifier.diagnostics["chosen_by"] == "leave-one-out log loss"
    loo, t = classifier.loo, classifier.temperature
    soft = torch.log_softmax(loo.logits / t, 1)[torch.arange(len(loo.labels)), loo.labels]
    assert -float(loo.weights @ soft) <= losses[classifier.shrinkage]  # that counts a mistake more


def test_shrinks_much_with_few_images_and_little_with_many():
    few = fit_lda(gather(*draw({"a": 4, "b": 4, "c": 4}, width=40, noise=1.5)).moments())
    features, labels = draw({"a": 200, "b": 200, "c": 200}, width=10)
    features[:, 0] *= 4  # far from round
    many = fit_lda(gather(features, labels).moments())
    assert many.shrinkage < 0.5 < few.shrinkage


def test_classes_weigh_alike_in_the_held_out_loss():
    loo = fit_lda(gather(*draw({"a": 30, "b": 6, "c": 2})).moments()).loo
    masses = torch.zeros(3, dtype=torch.float64).index_add_(0, loo.labels, loo.weights)
    torch.testing.assert_close(masses, torch.full_like(masses, 1 / 3))


def test_classes_of_one_image_are_played_by_others(monkeypatch):
    keep_every_row(monkeypatch)
    stats = gather(*draw({"a": 8, "b": 8, "c": 1, "d": 1}))
    loo = fit_lda(stats.moments()).loo
    assert float(loo.weights[loo.n_single :].sum()) == pytest.approx(0.5)
    assert len(loo.labels) == 2 * loo.n_single == 32
    assert fit_lda(gather(*draw({"a": 8, "b": 8, "c": 2})).moments()).loo.n_single == 18


@both
def test_a_class_of_two_images_is_found_beside_classes_of_hundreds(fit):
    counts = {"a": 200, "b": 200, "c": 200, "new": 2}
    features, labels = draw({**counts, "new": 102}, width=200, noise=3.5)
    stats = gather(features[:602], labels[:602])
    fresh, truth = features[602:], labels[602:]
    assert accuracy(fit(stats.moments(), debias=0), stats, fresh, truth) < 0.1
    assert accuracy(fit(stats.moments()), stats, fresh, truth) > 0.5


def test_a_shrinkage_that_is_as_good_as_any_is_the_expected_one():
    easy = gather(*draw({"a": 6, "b": 6}, width=200, noise=0.2))
    assert fit_lda(easy.moments()).shrinkage > 0.9


@both
@pytest.mark.parametrize("prior", ["uniform", "training"])
def test_does_not_depend_on_the_order_of_arrival(fit, prior):
    features, labels = draw({"a": 9, "b": 1, "c": 5, "d": 2})
    stats = gather(features, labels)
    base = fit(stats.moments(), prior=prior)
    for seed in range(2):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
        other_stats = ClassStatistics.empty(12, root=False)
        for part in (order[:5], order[5:6], order[6:]):
            other_stats = other_stats.update(features[part], [labels[i] for i in part])
        other = fit(other_stats.moments(), prior=prior)
        places = [other_stats.class_names.index(name) for name in stats.class_names]
        assert torch.equal(other.weight[places], base.weight)
        assert torch.equal(other.bias[places], base.bias)
        assert torch.equal(other.loo.logits[:, places], base.loo.logits)
        assert torch.equal(other.loo.mahalanobis, base.loo.mahalanobis)
        assert torch.equal(other.loo.weights, base.loo.weights)
        assert (other.temperature, other.shrinkage) == (base.temperature, base.shrinkage)


@each_alone
def test_the_prior_of_training_adds_its_logarithm_to_the_tempered_logits(fit):
    stats = gather(*draw({"a": 30, "b": 6, "c": 2}))
    classifier = fit(stats.moments(), prior="training", debias=1.0)
    same = fit(stats.moments(), debias=1.0) if fit is fit_prototype else None
    shrinkage = {} if same else {"shrinkage": classifier.shrinkage}
    same = same or fit(stats.moments(), debias=1.0, **shrinkage)
    t = classifier.temperature
    gap = classifier.bias / t - (same.bias / t + math.log(3) * same.temperature / t)
    wanted = (stats.counts / stats.counts.sum()).log().double()
    torch.testing.assert_close(gap, wanted, rtol=1e-5, atol=1e-5)


# -- classes of few images beside many -----------------------------------------------------------


def share(n, mean):
    """Of the nearest mean in the logits of a class of n images."""
    k = max(5 * (1 - n / min(mean, 40)), 0)
    return k / (n + k)


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ([7, 7, 7], [0, 0, 0]),
        ([40, 400], [0, 0]),  # enough, however many others have
        ([8, 12], [1 / 9, 0]),
        ([1, 119], [0.975 / 0.2 / (1 + 0.975 / 0.2), 0]),  # a mean of 60 counts as 40
        ([20, 1000, 1000], [1 / 9, 0, 0]),
    ],
)
def test_the_nearest_mean_has_its_share_in_classes_of_fewer_images(counts, wanted):
    counts = torch.tensor(counts, dtype=torch.float64)
    found = share_of_mean(counts, counts)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_its_share_falls_with_every_image():
    n = torch.arange(1, 60, dtype=torch.float64)
    shares = share_of_mean(n, torch.full((3,), 300.0, dtype=torch.float64))
    assert (shares.diff() <= 0).all()
    assert shares[0] > 0.8
    assert (shares[39:] == 0).all()


def blended(one, other, shares, scale):
    """Each row of logits (R,C) by the shares (R,C) of the other classifier, number by number."""
    found = np.empty_like(one)
    for row, c in np.ndindex(*one.shape):
        its = other[row, c] - other[row].mean()
        own = one[row, c] - one[row].mean()
        found[row, c] = one[row, c] + shares[row, c] * (scale * its - own)
    return found


def test_of_two_classes_the_difference_is_blended_by_half_the_share():
    ours, theirs = torch.rand(2, 9, 2, dtype=torch.float64)
    found = mixed(ours, theirs, 3.0, torch.tensor([0.0, 0.5]), dim=1)
    wanted = 0.75 * (ours[:, 1] - ours[:, 0]) + 0.25 * 3 * (theirs[:, 1] - theirs[:, 0])
    torch.testing.assert_close(found[:, 1] - found[:, 0], wanted)


@pytest.mark.parametrize("counts", [[40, 25, 3, 2], [60, 30, 2, 1], [90, 2]])
def test_logits_of_classes_of_few_images_are_blended_with_those_of_the_nearest_mean(counts):
    of = dict(zip("abcd", counts, strict=False))
    stats = gather(*draw(of, noise=1.5))
    moments, fresh = stats.moments(), embedded(draw(of, seed=3)[0])
    one, other, found = (fit(moments) for fit in (unblended, fit_prototype, fit_lda))
    assert one.shrinkage < 1
    scale = one.temperature / other.temperature
    shares = np.array([share(n, sum(counts) / len(counts)) for n in counts])
    assert shares[-1] > 0.3
    # probabilities, as a constant in all logits of an image tells nothing
    tables = [classifier.logits(fresh).numpy() for classifier in (one, other)]
    wanted = blended(*tables, np.broadcast_to(shares, tables[0].shape), scale)
    got = torch.log_softmax(found.logits(fresh), 1)
    torch.testing.assert_close(got, torch.log_softmax(torch.from_numpy(wanted), 1))
    # of images left out alike; a row that plays a class of one image as one of that
    loo = found.loo
    held = np.tile(shares, (len(loo.labels), 1))
    assert (loo.n_single < len(held)) == (counts[-1] == 1)
    for row in range(loo.n_single, len(held)):
        held[row, loo.labels[row]] = share(1, sum(counts) / len(counts))
    wanted = torch.from_numpy(
        blended(one.loo.logits.numpy(), other.loo.logits.numpy(), held, scale)
    )
    torch.testing.assert_close(torch.log_softmax(loo.logits, 1), torch.log_softmax(wanted, 1))
    t = temper(wanted, loo.labels, loo.weights, expected=found.expected_temperature).temperature
    assert found.temperature == pytest.approx(t)
    assert torch.equal(loo.mahalanobis, one.loo.mahalanobis)  # OOD scores are as they were


@pytest.mark.parametrize("counts", [{"a": 9, "b": 9}, {"a": 45, "b": 300}, {"a": 60, "b": 59}])
def test_classes_of_as_many_images_or_of_enough_are_told_by_the_discriminant_alone(counts):
    moments = gather(*draw(counts, noise=1.5)).moments()
    one, other = fit_lda(moments), unblended(moments)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)
    assert one.temperature == other.temperature


def test_without_a_memory_they_are_blended_by_the_temperatures_to_expect():
    features, labels = draw({"a": 50, "b": 50, "c": 2})
    stats = ClassStatistics.empty(12, root=False, memory_size=0).update(features, labels)
    one, other, found = (fit(stats.moments()) for fit in (unblended, fit_prototype, fit_lda))
    assert is_usable(found, stats, features)
    tables = [classifier.logits(embedded(features)).numpy() for classifier in (one, other)]
    shares = np.broadcast_to([0.0, 0.0, share(2, 34)], tables[0].shape)
    wanted = blended(*tables, shares, one.temperature / other.temperature)
    got = torch.log_softmax(found.logits(embedded(features)), 1)
    torch.testing.assert_close(got, torch.log_softmax(torch.from_numpy(wanted), 1))
    assert found.temperature == one.temperature


# -- edges ----------------------------------------------------------------------------------------


@both
def test_one_class_alone_always_wins(fit):
    features, labels = draw({"only": 6})
    stats = gather(features, labels)
    classifier = fit(stats.moments())
    assert is_usable(classifier, stats, features)
    assert (classifier.logits(features).softmax(1) == 1).all()
    assert classifier.temperature == 1
    assert classifier.diagnostics["chosen_by"] == "leave-one-out density"


def test_one_class_gets_the_shrinkage_of_the_likeliest_covariance():
    narrow, labels = draw({"only": 60}, width=6, noise=0.01)
    generator = torch.Generator().manual_seed(5)
    narrow[:, :2] += 0.3 * torch.randn(60, 2, generator=generator)
    assert fit_lda(gather(narrow, labels).moments()).shrinkage < 0.1


@both
def test_one_image_of_each_class_gives_the_nearest_image(fit):
    features, labels = draw({"a": 1, "b": 1, "c": 1}, center_seed=4)
    stats = gather(features, labels)
    classifier = fit(stats.moments())
    assert is_usable(classifier, stats, features)
    assert classifier.diagnostics["chosen_by"].startswith("default")
    z = embedded(draw({"a": 50, "b": 50, "c": 50}, seed=3)[0], root=False)
    nearest = torch.cdist(z, stats.means()).argmin(1)
    plain = fit(stats.moments(), debias=0).logits(z)
    assert torch.equal(plain.argmax(1), nearest)
    # half of what the lengths differ by is taken for chance
    offsets = stats.means() - stats.means().mean(0)
    wanted = (z - stats.means().mean(0)) @ offsets.T - offsets.square().sum(1) / 4
    found = classifier.logits(z).argmax(1)
    assert (found != nearest).any()
    assert torch.equal(found, wanted.argmax(1))
    probs = (classifier.logits(z) / classifier.temperature).softmax(1)
    assert probs.max() < 0.999  # three images prove nothing


@both
def test_one_image_of_one_class(fit):
    features, labels = draw({"a": 1})
    stats = gather(features, labels)
    assert is_usable(fit(stats.moments()), stats, features)


@both
@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_one_image_a_class(fit, copies):
    features, labels = draw({"a": 1, "b": 1})
    stats = gather(features.repeat(copies, 1), labels * copies)
    classifier = fit(stats.moments())
    assert is_usable(classifier, stats, features)
    assert accuracy(classifier, stats, features, labels) == 1
    assert classifier.diagnostics["chosen_by"].startswith("default")


@both
def test_copies_beside_a_class_that_varies(fit):
    features, labels = draw({"a": 8, "b": 1})
    features = torch.cat([features, features[-1:]])
    labels = [*labels, "b"]
    stats = gather(features, labels)
    classifier = fit(stats.moments())
    assert is_usable(classifier, stats, features)
    assert accuracy(classifier, stats, features, labels) == 1


@both
def test_features_that_never_vary(fit):
    features, labels = draw({"a": 8, "b": 5})
    features[:, 3:] = 0
    stats = gather(features, labels)
    assert is_usable(fit(stats.moments()), stats, features)


@both
def test_far_fewer_images_than_features(fit):
    features, labels = draw({"a": 2, "b": 3}, width=300)
    stats = gather(features, labels)
    classifier = fit(stats.moments())
    assert is_usable(classifier, stats, features)
    fresh, truth = draw({"a": 20, "b": 20}, width=300, seed=9)
    assert accuracy(classifier, stats, fresh, truth) == 1


@both
def test_blank_images_among_the_others(fit):
    features, labels = draw({"a": 5, "b": 5})
    features[0] = 0
    stats = gather(features, labels)
    assert is_usable(fit(stats.moments()), stats, features)


@both
def test_without_a_memory_defaults_are_taken_and_said(fit):
    features, labels = draw({"a": 30, "b": 30, "c": 30})
    stats = gather(features, labels, memory_size=0)
    classifier = fit(stats.moments())
    assert is_usable(classifier, stats, features)
    assert classifier.diagnostics["chosen_by"].startswith("default")
    assert classifier.loo.logits.shape == (0, 3)
    assert accuracy(classifier, stats, features, labels) > 0.8


@both
def test_a_memory_of_one_leaves_it_out(fit):
    stats = gather(*draw({"a": 5, "b": 5, "c": 1}), memory_size=1)
    classifier = fit(stats.moments())
    assert len(classifier.loo.labels) == 2
    assert classifier.loo.n_single == 2  # no partner to play a class of one image with


@both
def test_forgotten_classes_never_win(fit):
    features, labels = draw({"a": 8, "b": 8, "c": 8})
    stats = gather(features, labels).forget("b")
    classifier = fit(stats.moments())
    assert is_usable(classifier, stats, features)
    assert classifier.bias[1] == -math.inf
    assert (classifier.weight[1] == 0).all()
    assert 1 not in classifier.logits(embedded(features)).argmax(1)
    assert (classifier.loo.logits[:, 1] == -math.inf).all()


def test_nothing_known_is_refused():
    stats = ClassStatistics.empty(4, root=False)
    with pytest.raises(ContinualNotInitializedError, match="no class has an image yet"):
        fit_lda(stats.moments())


def test_many_classes_take_a_bounded_number_of_samples(monkeypatch):
    monkeypatch.setattr("learnkit.continual.closed_form.linear._MAX_FEATURES", 40 * 12)
    monkeypatch.setattr("learnkit.continual.closed_form.linear._MAX_PRODUCTS", 12 * 12 * 6)
    features, labels = draw({f"class {i:02}": 5 for i in range(12)})
    stats = gather(features, labels)
    classifier = fit_lda(stats.moments())
    assert len(classifier.loo.labels) <= 40
    assert set(classifier.loo.labels.tolist()) == set(range(12))
    assert is_usable(classifier, stats, features)


# -- the temperature ------------------------------------------------------------------------------


@pytest.fixture
def scored():
    generator = torch.Generator().manual_seed(1)
    logits = 5 * torch.randn(200, 4, generator=generator, dtype=torch.float64)
    targets = torch.distributions.Categorical(logits=logits / 7).sample()
    weights = torch.rand(200, generator=generator, dtype=torch.float64)
    return logits, targets, weights / weights.sum()


def test_the_temperature_is_the_best_of_a_fine_grid(scored):
    logits, targets, weights = scored
    share = 1 / (1 + 1 / float(weights.square().sum()))
    rows = torch.arange(len(logits))
    others = logits.clone()
    others[rows, targets] = -math.inf
    rival = others.argmax(1)

    def loss(t):
        log_probs = torch.log_softmax(logits / t, 1)
        own, wrong = log_probs[rows, targets], log_probs[rows, rival]
        return -float(weights @ ((1 - share) * own + share * wrong))

    found = temper(logits, targets, weights)
    best = min(np.geomspace(1, 50, 4001), key=loss)
    assert found.temperature == pytest.approx(best, rel=2e-3)
    assert found.log_loss == pytest.approx(loss(found.temperature), rel=1e-12)
    assert found.log_loss <= loss(best)


def test_the_temperature_scales_with_the_logits(scored):
    logits, targets, weights = scored
    once, scaled = temper(logits, targets, weights), temper(30 * logits, targets, weights)
    assert scaled.temperature == pytest.approx(30 * once.temperature, rel=1e-8)


@pytest.mark.parametrize("n", [10, 1000])
def test_n_samples_all_right_are_worth_a_confidence_of_n_in_n_plus_one(n):
    logits = torch.tensor([[7.0, 0.0]], dtype=torch.float64).repeat(n, 1)
    t = temper(logits, torch.zeros(n, dtype=torch.int64), torch.full((n,), 1 / n).double())
    confidence = (logits[0] / t.temperature).softmax(0)[0]
    assert float(confidence) == pytest.approx(n / (n + 1), rel=1e-6)


def test_samples_all_wrong_end_at_the_upper_bound(scored):
    logits, _, weights = scored
    assert temper(logits, logits.argmin(1), weights, bounds=(0.1, 90)).temperature == pytest.approx(
        90, rel=1e-6
    )


def test_ten_samples_half_of_them_wrong_leave_about_the_expected_temperature():
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]], dtype=torch.float64).repeat(5, 1)
    targets, weights = torch.zeros(10, dtype=torch.int64), torch.full((10,), 0.1).double()
    assert temper(logits, targets, weights).temperature > 1000
    t = temper(logits, targets, weights, expected=2.0).temperature
    assert 2.5 < t < 8
    slope, step = [], 1e-5  # the penalised loss is flat there, by finite differences
    for log_t in (math.log(t) - step, math.log(t) + step):
        pulled = temper(logits, targets, weights, bounds=(math.exp(log_t), math.exp(log_t) + 1e-12))
        slope.append(pulled.log_loss + (log_t - math.log(2)) ** 2 / (2 * 0.6**2 * 10))
    assert slope[1] - slope[0] == pytest.approx(0, abs=1e-9)


def test_many_samples_overrule_the_expected_temperature(scored):
    logits, targets, weights = (torch.cat([x] * 50) for x in scored)
    weights = weights / 50
    free = temper(logits, targets, weights).temperature
    pulled = temper(logits, targets, weights, expected=10 * free).temperature
    assert free < pulled < 1.01 * free


def test_lengths_of_means_are_relieved_of_noise_and_drawn_together():
    lengths, counts = torch.tensor([9.0, 5.0, 8.0]).double(), torch.tensor([1.0, 4.0, 400.0])
    noise = MeanNoise(4.0, 2.0)
    debts = noise.debts(lengths, counts.double(), 1.0)
    torch.testing.assert_close(lengths - debts, lengths_that_count(lengths, counts, 4.0))
    assert torch.equal(noise.debts(lengths, counts.double(), 0.0), torch.zeros(3).double())
    # classes of as many images: the differences shrink alike, and nothing else happens
    alike = lengths - noise.debts(lengths, torch.full((3,), 4.0).double(), 1.0)
    wanted = 0.75 * 4 / 4.5 * (lengths - lengths.mean())
    torch.testing.assert_close(alike - alike.mean(), wanted)


def test_of_two_classes_the_one_of_fewer_images_is_relieved_of_all_its_noise():
    # from halfway between two means both are as long: all that tells them apart is their noise
    lengths, counts = torch.tensor([5.0, 5.0]).double(), torch.tensor([1.0, 100.0]).double()
    debts = MeanNoise(8.0, 2.0).debts(lengths, counts, 1.0)
    assert float(debts[0] - debts[1]) == pytest.approx(8.0 - 0.08)


def test_logits_spread_by_as_much_less_as_the_length_of_a_mean_is_noise():
    counts = torch.tensor([1.0, 4.0, 400.0]).double()
    noise = MeanNoise(4.0, 2.0)
    torch.testing.assert_close(noise.reliabilities(counts, 1.0), factors_of(2.0, 4.0, counts))
    assert torch.equal(noise.reliabilities(counts, 0.0), torch.ones(3).double())
    assert torch.equal(noise.reliabilities(torch.full((3,), 2.0), 1.0), torch.ones(3))


def rare_beside_many(n_few, n_many, n_classes, seed):
    """Images learned and fresh ones, (features, labels) each: the first class has few."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(n_classes, 300, generator=generator) * 0.27
    counts = [n_few, *[n_many] * (n_classes - 1)]
    learned = torch.arange(n_classes).repeat_interleave(torch.tensor(counts))
    fresh = torch.arange(n_classes).repeat_interleave(60)
    spread = torch.linspace(1.8, 0.2, 300)
    sets = []
    for labels in (learned, fresh):
        noise = torch.randn(len(labels), 300, generator=generator) * spread
        sets.append((2 + means[labels] + noise, [f"{c}" for c in labels.tolist()]))
    return sets


def test_held_out_images_tell_how_far_fresh_ones_lie_from_their_class_means():
    (features, labels), (fresh, of) = rare_beside_many(20, 20, 4, seed=3)
    moments = gather(features, labels).moments()
    basis = Basis.of(moments, "uniform")
    geometry = basis.spectrum.geometry(0.3)
    scatter, dof = moments.scatter, moments.dof
    covariance = 0.7 * scatter / dof + 0.3 * scatter.trace() / dof / 300 * torch.eye(300).double()
    away = embedded(fresh) - moments.means[[int(label) for label in of]]
    away = (away * torch.linalg.solve(covariance, away.T).T).sum(1)
    wanted = float(away.mean()) * 20 / 21
    assert mean_noise(basis.samples, geometry).variance == pytest.approx(wanted, rel=0.05)
    assert geometry.d_eff < 0.8 * wanted  # the learned ones lie nearer


@pytest.mark.parametrize("n_classes", [2, 6])
@pytest.mark.parametrize("n_few", [1, 3])
@both
def test_a_class_of_few_images_beside_many_is_found_and_leaves_the_others_theirs(
    fit, n_few, n_classes
):
    def recalls(classifier, fresh, of):
        right = classifier.logits(embedded(fresh)).argmax(1) == torch.tensor([int(c) for c in of])
        return right.double().view(n_classes, -1).mean(1)

    found = []
    for seed in range(2):
        (features, labels), (fresh, of) = rare_beside_many(n_few, 60, n_classes, seed)
        moments = gather(features, labels).moments()
        both_ways = [recalls(fit(moments, debias=d), fresh, of) for d in (1.0, 0.0)]
        found.append(torch.stack(both_ways))
    ours, plain = torch.stack(found).mean(0)
    assert ours[0] > plain[0] + 0.1
    assert ours[1:].mean() > plain[1:].mean() - 0.1
    assert ours.mean() > plain.mean() + 0.02


@both
def test_few_samples_mostly_wrong_once_left_out_do_not_drown_all_confidence(fit):
    features, _ = draw({"a": 10}, width=60, noise=1.5, seed=8)  # nothing to tell apart
    loo = (classifier := fit(gather(features, ["a"] * 5 + ["b"] * 5).moments())).loo
    assert (loo.logits.argmax(1) == loo.labels).double().mean() < 0.5
    assert temper(loo.logits, loo.labels, loo.weights).temperature > 5000
    assert classifier.temperature < 50


def test_equal_logits_leave_a_temperature():
    logits = torch.zeros(5, 3, dtype=torch.float64)
    t = temper(logits, torch.zeros(5, dtype=torch.int64), torch.full((5,), 0.2).double())
    assert math.isfinite(t.temperature)
    assert t.log_loss == pytest.approx(math.log(3))

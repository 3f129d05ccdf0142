import math

import numpy as np
import pytest
import torch
from continual_helpers import bursts, draw, embedded, gather, keep_every_row, on_grid
from sklearn.linear_model import Ridge as SklearnRidge

from learnkit.continual.closed_form.linear import Basis
from learnkit.continual.closed_form.ridge import PENALTIES, Ridge, fit_ridge

WIDTH = 12
COUNTS = {"a": 8, "b": 5, "c": 3, "d": 2}


def by_definition(z, labels, means, penalty):
    """Weights (C,D): ridge on centred samples with targets balanced by class, the slow way."""
    names, n_classes = sorted(means), len(means)
    middle = z.mean(0)
    total = (z - middle).T @ (z - middle)
    balanced = torch.stack([means[name] - middle for name in names]) * len(z) / n_classes
    return balanced @ torch.linalg.inv(total + penalty * torch.eye(len(total), dtype=z.dtype))


def class_means(z, labels):
    return {
        name: z[[i for i, label in enumerate(labels) if label == name]].mean(0)
        for name in sorted(set(labels))
    }


def said_by_the_rest(sample, z, labels, keep, penalty):
    """Logits (C,) of a sample by the regression fitted to the rows `keep` alone."""
    rest = [labels[i] for i in keep]
    means = class_means(z[keep], rest)
    weight = by_definition(z[keep], rest, means, penalty)
    return weight @ (sample - torch.stack(list(means.values())).mean(0))


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_is_ridge_regression_on_balanced_targets(penalty):
    features, labels = draw(COUNTS)
    z = on_grid(features).numpy()
    stats = gather(features, labels)
    classifier = fit_ridge(stats.moments(), penalty=penalty, debias=0)
    basis = Basis.of(stats.moments(), "uniform")
    absolute = Ridge.fit(basis.spectrum, penalty).penalty
    targets = np.zeros((len(labels), 4))
    for row, label in enumerate(labels):
        targets[row, "abcd".index(label)] = len(labels) / 4 / COUNTS[label]
    theirs = SklearnRidge(alpha=absolute).fit(z, targets)
    np.testing.assert_allclose(classifier.weight, theirs.coef_, rtol=1e-9, atol=1e-9)
    center = stats.means().mean(0)
    bias = -classifier.weight @ center - math.log(4) * classifier.temperature
    torch.testing.assert_close(classifier.bias, bias)


def test_the_penalty_is_in_units_of_the_mean_non_zero_eigenvalue():
    features, labels = draw({"a": 3, "b": 4}, width=40)
    z = on_grid(features)
    values = torch.linalg.eigvalsh((z - z.mean(0)).T @ (z - z.mean(0)))
    wanted = values[values > 1e-9].mean()
    spectrum = Basis.of(gather(features, labels).moments(), "uniform").spectrum
    assert Ridge.fit(spectrum, 0.5).penalty == pytest.approx(0.5 * float(wanted))


@pytest.mark.parametrize("width", [WIDTH, 40])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_leave_one_out_is_refitting_without_the_sample(penalty, width, monkeypatch):
    keep_every_row(monkeypatch)
    features, labels = draw(COUNTS, width=width)
    basis = Basis.of(gather(features, labels).moments(), "uniform")
    ridge = Ridge.fit(basis.spectrum, penalty)
    logits = ridge.leave_out(basis.samples).logits
    z = on_grid(features)
    assert len(logits) == len(labels)
    for row, sample in enumerate(basis.samples.memory.features):
        gone = int((z - sample).abs().sum(1).argmin())
        keep = [i for i in range(len(labels)) if i != gone]
        wanted = said_by_the_rest(sample, z, labels, keep, ridge.penalty)
        torch.testing.assert_close(logits[row], wanted, rtol=1e-9, atol=1e-9)


def test_copies_leave_together(monkeypatch):
    keep_every_row(monkeypatch)
    features, labels = draw({"a": 5, "b": 6})
    features, labels = torch.cat([features, features[:3], features[:1]]), [*labels, *"aaaa"]
    basis = Basis.of(gather(features, labels).moments(), "uniform")
    ridge = Ridge.fit(basis.spectrum, 0.1)
    logits, z = ridge.leave_out(basis.samples).logits, on_grid(features)
    assert basis.samples.memory.copies.max() == 3
    for row, sample in enumerate(basis.samples.memory.features):
        keep = ((z - sample).abs().sum(1) > 1e-6).nonzero()[:, 0].tolist()
        wanted = said_by_the_rest(sample, z, labels, keep, ridge.penalty)
        torch.testing.assert_close(logits[row], wanted, rtol=1e-9, atol=1e-9)


def test_near_copies_leave_together(monkeypatch):
    features, labels = bursts({"a": 4, "b": 5}, width=96, versions=3)
    basis = Basis.of(gather(features, labels).moments(), "uniform")
    ridge, z = Ridge.fit(basis.spectrum, 0.1), on_grid(features)
    logits = ridge.leave_out(basis.samples).logits
    assert len(logits) == 9
    for row, members in enumerate(basis.samples.memory.members[basis.samples.rows]):
        own = basis.samples.memory.features[members]
        assert len(own) == 3
        keep = (torch.cdist(z, own).amin(1) > 1e-6).nonzero()[:, 0].tolist()
        wanted = said_by_the_rest(own[0], z, labels, keep, ridge.penalty)
        torch.testing.assert_close(logits[row], wanted, rtol=1e-9, atol=1e-9)


def test_near_copies_leave_beside_a_partner():
    features, labels = bursts({"a": 4, "b": 5, "one": 1}, width=96, versions=2)
    basis = Basis.of(gather(features[:-1], labels[:-1]).moments(), "uniform")
    ridge, samples = Ridge.fit(basis.spectrum, 0.1), basis.samples
    logits, z = ridge.leave_out(samples).logits, on_grid(features[:-1])
    assert len(samples) == 2 * samples.n_single == 18
    for row in range(samples.n_single, len(samples)):
        own = basis.samples.memory.features[basis.samples.memory.members[samples.rows[row]]]
        partner = basis.samples.memory.features[samples.partners[row - samples.n_single]]
        gone = int((z - own[0]).abs().sum(1).argmin())
        keep = (torch.cdist(z, own).amin(1) > 1e-6).nonzero()[:, 0].tolist()
        assert len(keep) == len(z) - 2
        means = class_means(z[keep], [labels[i] for i in keep])
        means[labels[gone]] = partner
        weight = by_definition(z[keep], None, means, ridge.penalty)
        wanted = weight @ (own[0] - torch.stack(list(means.values())).mean(0))
        torch.testing.assert_close(logits[row], wanted, rtol=1e-9, atol=1e-9)


def test_a_class_of_one_image_is_played_by_a_partner():
    features, labels = draw({"a": 6, "b": 5, "one": 1})
    basis = Basis.of(gather(features, labels).moments(), "uniform")
    ridge, samples = Ridge.fit(basis.spectrum, 0.1), basis.samples
    logits, z = ridge.leave_out(samples).logits, on_grid(features)
    assert len(samples) == 2 * samples.n_single == 22
    for row in range(samples.n_single, len(samples)):
        memory_row = int(samples.rows[row])
        sample = basis.samples.memory.features[memory_row]
        partner = basis.samples.memory.features[samples.partners[row - samples.n_single]]
        gone = int((z - sample).abs().sum(1).argmin())
        keep = [i for i in range(len(labels)) if i != gone]
        means = class_means(z[keep], [labels[i] for i in keep])
        means[labels[gone]] = partner
        weight = by_definition(z[keep], None, means, ridge.penalty)
        wanted = weight @ (sample - torch.stack(list(means.values())).mean(0))
        torch.testing.assert_close(logits[row], wanted, rtol=1e-9, atol=1e-9)


def metric_of(z, penalty):
    """The inverse of total scatter plus penalty."""
    away = z - z.mean(0)
    return torch.linalg.inv(away.T @ away + penalty * torch.eye(len(z.T), dtype=z.dtype))


@pytest.mark.parametrize("case", ["alone", "copies", "near copies", "beside a partner"])
def test_lengths_and_distances_are_those_of_the_rest(case, monkeypatch):
    if case == "near copies":
        features, labels = bursts({"a": 4, "b": 5, "c": 3}, width=96, versions=3)
    else:
        keep_every_row(monkeypatch)
        counts = {"a": 6, "b": 5, "c": 4}
        features, labels = draw(counts | ({"one": 1} if case == "beside a partner" else {}))
    if case == "copies":
        features, labels = torch.cat([features, features[:3]]), [*labels, *"aaa"]
    basis = Basis.of(gather(features, labels).moments(), "uniform")
    ridge, samples, z = Ridge.fit(basis.spectrum, 0.1), basis.samples, on_grid(features)
    found, memory = ridge.leave_out(samples), basis.samples.memory
    rows = range(samples.n_single if case == "beside a partner" else 0, len(samples))
    assert len(rows) > 5
    for row in rows:
        members = memory.members[samples.rows[row]]
        own = memory.features[members[members >= 0]]
        gone = int((z - own[0]).abs().sum(1).argmin())
        keep = (torch.cdist(z, own).amin(1) > 1e-6).nonzero()[:, 0].tolist()
        means = class_means(z[keep], [labels[i] for i in keep])
        metric = metric_of(z[keep], ridge.penalty)
        if row >= samples.n_single:
            means[labels[gone]] = memory.features[samples.partners[row - samples.n_single]]
        away = own[0] - means[labels[gone]]
        assert float(found.own[row]) == pytest.approx(float(away @ metric @ away), rel=1e-9)
        means = torch.stack([means[name] for name in sorted(means)])
        offsets = means - means.mean(0)
        wanted = (offsets @ metric * offsets).sum(1)
        torch.testing.assert_close(found.lengths[row], wanted, rtol=1e-9, atol=1e-9)


def test_of_two_classes_the_one_of_fewer_images_is_relieved_of_all_its_noise():
    features, labels = draw({"a": 40, "b": 2}, width=60)
    moments = gather(features, labels).moments()
    plain, ours = (fit_ridge(moments, penalty=1.0, debias=d) for d in (0.0, 1.0))
    # halfway between the means plain regression is undecided
    halfway = moments.means.mean(0)
    assert float(plain.logits(halfway[None]).diff()) == pytest.approx(0, abs=1e-9)
    z = on_grid(features)
    ridge = Ridge.fit(Basis.of(moments, "uniform").spectrum, 1.0)
    left = []
    for row in range(len(z)):
        keep = [i for i in range(len(z)) if i != row]
        mean = class_means(z[keep], [labels[i] for i in keep])[labels[row]]
        n = (40, 2)[labels[row] == "b"] - 1
        away = z[row] - mean
        left.append(float(away @ metric_of(z[keep], ridge.penalty) @ away) * n / (n + 1))
    fresh = float(np.mean(left))
    noise = fresh / (1 + fresh)
    half = (noise / 2 - noise / 40) / 2 * len(z) / 2
    factor = float(ours.weight[1].norm() / ours.weight[0].norm())
    assert 0 < factor < 1  # of the class of fewer images logits count less
    said = ours.logits(halfway[None])[0] + ours.temperature * math.log(2)  # without the prior
    first, second = said.tolist()
    assert second / factor - first == pytest.approx(half, rel=1e-6)


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_generalised_cross_validation_follows_its_formula(penalty):
    features, labels = draw(COUNTS)
    z, n = on_grid(features), len(labels)
    ridge = Ridge.fit(Basis.of(gather(features, labels).moments(), "uniform").spectrum, penalty)
    targets = torch.zeros(n, 4, dtype=torch.float64)
    for row, label in enumerate(labels):
        targets[row, "abcd".index(label)] = n / 4 / COUNTS[label]
    x = z - z.mean(0)
    hat = (
        x @ torch.linalg.inv(x.T @ x + ridge.penalty * torch.eye(WIDTH, dtype=z.dtype)) @ x.T
        + 1 / n
    )
    rest = (targets - hat @ targets).square().sum()
    wanted = n * rest / (n - hat.trace()) ** 2
    assert ridge.generalised_cross_validation() == pytest.approx(float(wanted), rel=1e-9)


def test_the_penalty_stays_off_zero_with_fewer_images_than_features():
    features, labels = draw({"a": 10, "b": 10}, width=100)
    classifier = fit_ridge(gather(features, labels).moments())
    assert classifier.shrinkage in PENALTIES
    right = classifier.loo.logits.argmax(1) == classifier.loo.labels
    assert right.double().mean() > 0.9


def test_a_class_of_two_images_is_found_where_plain_ridge_never_finds_it():
    features, labels = draw({"a": 200, "b": 200, "c": 200, "new": 102}, width=200, noise=3.5)
    stats = gather(features[:602], labels[:602])
    classifier = fit_ridge(stats.moments())
    fresh = embedded(features[602:])
    one_hot = np.eye(4)[[stats.class_names.index(label) for label in labels[:602]]]
    plain = SklearnRidge(alpha=1.0).fit(on_grid(features[:602]).numpy(), one_hot)
    assert (plain.predict(fresh.numpy()).argmax(1) == 3).mean() == 0
    assert (classifier.logits(fresh).argmax(1) == 3).double().mean() > 0.15


def test_does_not_depend_on_the_order_of_arrival():
    features, labels = draw({"a": 6, "b": 1, "c": 4})
    stats, back = gather(features, labels), list(range(len(labels)))[::-1]
    other_stats = gather(features[back], [labels[i] for i in back])
    places = [other_stats.class_names.index(name) for name in stats.class_names]
    one, other = fit_ridge(stats.moments()), fit_ridge(other_stats.moments())
    assert torch.equal(one.weight, other.weight[places])
    assert torch.equal(one.bias, other.bias[places])
    assert torch.equal(one.loo.logits, other.loo.logits[:, places])
    assert one.temperature == other.temperature


@pytest.mark.parametrize(
    "counts",
    [{"a": 1}, {"a": 5}, {"a": 1, "b": 1}, {"a": 1, "b": 9}, {"a": 2, "b": 2, "c": 1}],
    ids=str,
)
@pytest.mark.parametrize("memory_size", [0, 1, 64])
@pytest.mark.parametrize("copies", [1, 3])
def test_edges_give_a_usable_classifier(counts, memory_size, copies):
    features, labels = draw(counts, width=30)
    features, labels = features.repeat(copies, 1), labels * copies
    stats = gather(features, labels, memory_size=memory_size).with_classes(["empty"])
    classifier = fit_ridge(stats.moments())
    logits = classifier.logits(embedded(features))
    assert torch.isfinite(logits[:, :-1]).all()
    assert (logits[:, -1] == -math.inf).all()
    assert 0 < classifier.temperature < math.inf
    names = [stats.class_names[i] for i in logits.argmax(1)]
    assert names == labels
    assert torch.isfinite(classifier.loo.logits[:, :-1]).all()


def test_without_a_memory_cross_validation_chooses():
    features, labels = draw({"a": 30, "b": 30})
    classifier = fit_ridge(gather(features, labels, memory_size=0).moments())
    assert classifier.diagnostics["chosen_by"] == "generalised cross-validation"
    losses = classifier.diagnostics["losses"]
    assert losses[classifier.shrinkage] == min(losses.values())


def test_forgotten_classes_keep_their_spread_but_lose_their_pull():
    features, labels = draw({"a": 8, "b": 7, "c": 6})
    stats = gather(features, labels, memory_size=0).forget("c")  # all of it is a remainder
    classifier = fit_ridge(stats.moments(), debias=0)
    assert classifier.bias[2] == -math.inf
    basis = Basis.of(stats.moments(), "uniform")
    z = on_grid(features)
    keep = [i for i, label in enumerate(labels) if label != "c"]
    middle = z[keep].mean(0)
    total = (z[keep] - middle).T @ (z[keep] - middle)
    lost = z[15:] - z[15:].mean(0)
    ridge = Ridge.fit(basis.spectrum, classifier.shrinkage)
    ridged = total + lost.T @ lost + ridge.penalty * torch.eye(WIDTH, dtype=torch.float64)
    means = torch.stack(list(class_means(z[:15], labels[:15]).values()))
    wanted = (means - middle) * len(keep) / 2 @ torch.linalg.inv(ridged)
    torch.testing.assert_close(classifier.weight[:2], wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n_classes", [2, 6])
@pytest.mark.parametrize("n_few", [1, 3])
def test_a_class_of_few_images_beside_many_is_found(n_few, n_classes):
    found = []
    for seed in range(2):
        sets = []
        for n, image_seed in ((n_few, 2 * seed), (60, 2 * seed + 1)):
            counts = {"a": n} | {f"b{i}": 60 for i in range(n_classes - 1)}
            sets.append(draw(counts, width=100, noise=2.2, seed=image_seed))
        (features, labels), (fresh, of) = sets
        stats = gather(features, labels)
        right = []
        for debias in (1.0, 0.0):
            logits = fit_ridge(stats.moments(), debias=debias).logits(embedded(fresh))
            names = [stats.class_names[i] for i in logits.argmax(1)]
            hit = torch.tensor([a == b for a, b in zip(names, of, strict=True)])
            right.append(hit.double().view(n_classes, -1).mean(1))
        found.append(torch.stack(right))
    ours, plain = torch.stack(found).mean(0)
    assert ours[0] > plain[0] + 0.1
    assert ours[1:].mean() > plain[1:].mean() - 0.1
    assert ours.mean() > plain.mean()

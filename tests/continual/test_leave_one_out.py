import importlib.util
import sys
from dataclasses import replace

import pytest
import torch
from continual_helpers import gather, on_grid
from helpers import SHARED

from learnkit.continual.closed_form.leave_one_out import (
    Group,
    leave_group_out,
    leave_one_out,
    leave_pair_out,
    log_det_left_out,
)
from learnkit.continual.closed_form.loo_samples import memory_rows
from learnkit.continual.closed_form.whitening import fit_spectrum

COUNTS = {"bolt": 14, "nut": 9, "screw": 5, "pin": 3, "cap": 2}
SHRINKAGES = (0.003, 0.3, 0.97, 1.0)


def draw(counts=COUNTS, *, width=12, seed=0):
    """Features (N,D) around one centre per class, and labels, in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    labels = [name for name, n in counts.items() for _ in range(n)]
    centers = {name: torch.randn(width, generator=generator) for name in counts}
    noise = torch.randn(len(labels), width, generator=generator)
    order = torch.randperm(len(labels), generator=generator).tolist()
    features = torch.stack([centers[label] for label in labels]) + 0.7 * noise + 1
    return features[order].double(), [labels[i] for i in order]


class Refit:
    """The discriminant by its definition, with what leaving out holds fixed taken from `whole`."""

    def __init__(self, features, labels, whole, shrinkage, *, own_dof=None):
        z = on_grid(features)
        names = sorted(set(labels))
        groups = [z[[i for i, label in enumerate(labels) if label == name]] for name in names]
        self.means = torch.stack([group.mean(0) for group in groups])
        self.counts = torch.tensor([float(len(group)) for group in groups], dtype=torch.float64)
        scatter = sum((group - group.mean(0)).T @ (group - group.mean(0)) for group in groups)
        dof = len(z) - len(names) if own_dof is None else own_dof
        n_axes = z.shape[1]
        if shrinkage == 1:
            self.covariance = torch.eye(n_axes, dtype=torch.float64) * whole.variance_per_axis
        else:
            ridge = shrinkage / (1 - shrinkage) * whole.total / n_axes
            ridged = scatter + ridge * torch.eye(n_axes, dtype=torch.float64)
            self.covariance = (1 - shrinkage) / max(dof, 1) * ridged
        self.inverse = torch.linalg.inv(self.covariance)

    def squared(self, z, points):
        return torch.stack([(z - point) @ self.inverse @ (z - point) for point in points])


@pytest.fixture(scope="module")
def data():
    features, labels = draw()
    stats = gather(features, labels)
    return features, labels, stats, fit_spectrum(stats.moments()), memory_rows(stats.moments())


def position_of(features, row):
    """Which sample a memory row is."""
    return int((on_grid(features) - row).abs().sum(1).argmin())


@pytest.mark.parametrize("rules", [3, 4])
@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_leaving_one_out_is_refitting_without_it(data, shrinkage, rules):
    features, labels, _, spectrum, memory = data
    geometry = replace(spectrum, rules=rules).geometry(shrinkage)
    assert len(memory) == len(labels)
    own = _own(spectrum, memory)
    left_out = leave_one_out(geometry, spectrum.turn(memory.features), own)
    log_dets = log_det_left_out(geometry, spectrum.turn(memory.features), own)
    for row, z in enumerate(memory.features):
        keep = [i for i in range(len(labels)) if i != position_of(features, z)]
        refit = Refit(features[keep], [labels[i] for i in keep], spectrum, shrinkage)
        wanted = refit.squared(z, refit.means)
        torch.testing.assert_close(left_out.distances[row], wanted, rtol=1e-9, atol=1e-9)
        background = refit.squared(z, refit.means.mean(0)[None])[0]
        torch.testing.assert_close(left_out.background[row], background, rtol=1e-9, atol=1e-9)
        center = refit.means.mean(0) if rules > 3 else spectrum.center
        lengths = refit.squared(center, refit.means)
        torch.testing.assert_close(left_out.lengths[row], lengths, rtol=1e-9, atol=1e-9)
        assert torch.equal(left_out.counts[row], refit.counts)
        wanted = torch.logdet(refit.covariance)
        torch.testing.assert_close(log_dets[row], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_leaving_a_pair_out_is_refitting_without_both(data, shrinkage):
    features, labels, stats, spectrum, memory = data
    geometry = spectrum.geometry(shrinkage)
    own = _own(spectrum, memory)
    rows = (stats.counts[memory.labels] > 2).nonzero()[:, 0]
    points, partners = memory.features[rows], memory.features[memory.partners[rows]]
    left_out = leave_pair_out(geometry, spectrum.turn(points), own[rows], spectrum.turn(partners))
    for row, (z, partner) in enumerate(zip(points, partners, strict=True)):
        gone = {position_of(features, z), position_of(features, partner)}
        keep = [i for i in range(len(labels)) if i not in gone]
        dof = len(keep) - len(spectrum.classes)
        refit = Refit(features[keep], [labels[i] for i in keep], spectrum, shrinkage, own_dof=dof)
        means, place = refit.means.clone(), int(own[rows][row])
        means[place] = partner  # known by this one image
        wanted = refit.squared(z, means)
        torch.testing.assert_close(left_out.distances[row], wanted, rtol=1e-9, atol=1e-9)
        background = refit.squared(z, means.mean(0)[None])[0]
        torch.testing.assert_close(left_out.background[row], background, rtol=1e-9, atol=1e-9)
        lengths = refit.squared(spectrum.center, means)
        torch.testing.assert_close(left_out.lengths[row], lengths, rtol=1e-9, atol=1e-9)
        assert left_out.counts[row, place] == 1
        assert left_out.counts[row].sum() == geometry.counts.sum() - geometry.counts[place] + 1


def test_copies_of_an_image_leave_together():
    features, labels = draw({"a": 6, "b": 7}, width=8)
    features = torch.cat([features, features[:1], features[:1], features[1:2]])
    labels = [*labels, labels[0], labels[0], labels[1]]
    stats = gather(features, labels)
    spectrum, memory = fit_spectrum(stats.moments()), memory_rows(stats.moments())
    assert sorted(memory.copies.tolist()) == [1] * 11 + [2, 3]
    geometry = spectrum.geometry(0.3)
    left_out = leave_one_out(
        geometry, spectrum.turn(memory.features), _own(spectrum, memory), memory.copies
    )
    distance = (on_grid(features)[:, None] - memory.features).abs().sum(2)
    for row, z in enumerate(memory.features):
        keep = (distance[:, row] > 1e-6).nonzero()[:, 0].tolist()
        refit = Refit(features[keep], [labels[i] for i in keep], spectrum, 0.3)
        wanted = refit.squared(z, refit.means)
        torch.testing.assert_close(left_out.distances[row], wanted, rtol=1e-9, atol=1e-9)


def test_copies_of_a_pair_leave_together():
    features, labels = draw({"a": 6, "b": 7}, width=8)
    features, labels = torch.cat([features, features[:4]]), [*labels, *labels[:4]]
    stats = gather(features, labels)
    spectrum, memory = fit_spectrum(stats.moments()), memory_rows(stats.moments())
    own, geometry = _own(spectrum, memory), spectrum.geometry(0.3)
    partners = memory.partners
    left_out = leave_pair_out(
        geometry,
        spectrum.turn(memory.features),
        own,
        spectrum.turn(memory.features[partners]),
        (memory.copies, memory.copies[partners]),
    )
    distance = (on_grid(features)[:, None] - memory.features).abs().sum(2)
    for row, z in enumerate(memory.features):
        apart = (distance[:, row] > 1e-6) & (distance[:, partners[row]] > 1e-6)
        keep = apart.nonzero()[:, 0].tolist()
        refit = Refit(features[keep], [labels[i] for i in keep], spectrum, 0.3)
        refit.means[own[row]] = memory.features[partners[row]]
        wanted = refit.squared(z, refit.means)
        torch.testing.assert_close(left_out.distances[row], wanted, rtol=1e-9, atol=1e-9)


def test_scores_of_left_out_samples_are_those_of_a_model_without_them(data):
    features, labels, _, spectrum, memory = data
    geometry = spectrum.geometry(0.3)
    left_out = leave_one_out(geometry, spectrum.turn(memory.features), _own(spectrum, memory))
    row = 4
    z = memory.features[row]
    keep = [i for i in range(len(labels)) if i != position_of(features, z)]
    refit = Refit(features[keep], [labels[i] for i in keep], spectrum, 0.3)
    score = (refit.squared(z, refit.means) - geometry.d_eff / refit.counts).min()
    torch.testing.assert_close(left_out.mahalanobis_scores(geometry.d_eff)[row], score)
    background = refit.squared(z, refit.means.mean(0)[None])[0]
    found = left_out.mahalanobis_scores(geometry.d_eff) - left_out.background
    torch.testing.assert_close(found[row], score - background)


def test_scores_agree_with_slow_distances(data):
    _, _, stats, spectrum, _ = data
    geometry = spectrum.geometry(0.3)
    covariance = 0.7 * stats.scatter() / stats.dof
    variance = float(stats.scatter().trace()) / stats.dof / 12
    covariance += 0.3 * variance * torch.eye(12, dtype=torch.float64)
    inverse = torch.linalg.inv(covariance)
    assert geometry.d_eff == pytest.approx(float((inverse @ stats.scatter()).trace() / stats.dof))
    z = torch.randn(3, 12, dtype=torch.float64)
    debt = geometry.d_eff / stats.counts
    scores = torch.from_numpy(geometry.distances.mahalanobis(z.numpy()))
    for row, score in enumerate(scores):
        away = z[row] - stats.means()
        wanted = ((away @ inverse * away).sum(1) - debt).min()
        torch.testing.assert_close(score, wanted)
    away = z - spectrum.center
    relative = scores - (away @ inverse * away).sum(1)
    found = torch.from_numpy(geometry.distances.relative(z.numpy()))
    torch.testing.assert_close(found, relative)


def test_rows_are_the_same_whatever_the_order_of_arrival():
    features, labels = draw()
    back = [len(labels) - 1 - i for i in range(len(labels))]
    one = memory_rows(gather(features, labels).moments(), 12)
    other = memory_rows(gather(features[back], [labels[i] for i in back]).moments(), 12)
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.positions, other.positions)
    assert torch.equal(one.partners, other.partners)


def test_a_limit_takes_as_many_of_each_class():
    stats = gather(*draw({"a": 20, "b": 20, "c": 2}))
    memory = memory_rows(stats.moments(), 13)
    assert torch.bincount(memory.labels[: len(memory)]).sort().values.tolist() == [2, 5, 5]
    assert torch.equal(memory_rows(stats.moments()).positions[:3], torch.arange(3))


def test_a_limit_below_two_a_class_takes_some_classes():
    stats = gather(*draw({f"class {i}": 3 for i in range(10)}))
    memory = memory_rows(stats.moments(), 8)
    assert len(memory) <= 8
    assert torch.bincount(memory.labels).max() == 2


def test_partners_are_other_rows_of_the_class(data):
    *_, memory = data
    assert (memory.partners != torch.arange(len(memory))).all()
    assert torch.equal(memory.labels[memory.partners], memory.labels)


@pytest.mark.parametrize("copies", [1, 3])
def test_the_only_image_of_a_class_cannot_be_left_out(copies):
    features, labels = draw({"a": 4, "b": 1})
    alone = labels.index("b")
    features = torch.cat([features, features[[alone] * (copies - 1)]])
    stats = gather(features, [*labels, *["b"] * (copies - 1)])
    place = stats.class_names.index("b")
    assert stats.moments().is_alone == [False, True]  # by name: a, b
    assert place not in memory_rows(stats.moments()).labels


def test_without_a_memory_there_are_no_rows():
    memory = memory_rows(gather(*draw(), memory_size=0).moments())
    assert len(memory) == 0
    assert memory.features.shape == (0, 12)


@pytest.mark.skipif(
    not (SHARED / "reference" / "dslda_oracle.py").exists(), reason="no oracle beside the checkout"
)
@pytest.mark.parametrize("shrinkage", [0.03, 0.9])
def test_agrees_with_the_oracle(data, shrinkage):
    oracle = _load_oracle()
    features, labels, _, spectrum, memory = data
    theirs = oracle.Stats(12)
    names = sorted(COUNTS)
    theirs.extend(features.numpy(), [names.index(label) for label in labels])
    head = oracle.Head(theirs, shrinkage)
    # to the oracle the center stays, as by the first rules
    geometry, own = replace(spectrum, rules=1).geometry(shrinkage), _own(spectrum, memory)
    assert geometry.d_eff == pytest.approx(head.deff, rel=1e-9)
    left_out = leave_one_out(geometry, spectrum.turn(memory.features), own)
    logits, scores, _ = head.loo(memory.features.numpy(), own.numpy())
    ours = (left_out.distances - geometry.d_eff / left_out.counts) / -2
    torch.testing.assert_close(ours, torch.from_numpy(logits), rtol=1e-9, atol=1e-9)
    ours = left_out.mahalanobis_scores(geometry.d_eff) - left_out.background
    torch.testing.assert_close(ours, torch.from_numpy(scores[:, 0]), rtol=1e-9, atol=1e-9)


def test_held_is_counted_from_the_center_as_it_stays(data):
    _, _, _, spectrum, memory = data
    own, points = _own(spectrum, memory), spectrum.turn(memory.features)
    group = Group(points[:, None], memory.copies[:, None])
    pairs = (memory.partners >= 0) & (spectrum.counts[own] > 2)  # of two, both would leave
    pair = points[pairs], own[pairs], points[memory.partners[pairs]]
    for of in (
        lambda geometry: leave_one_out(geometry, points, own),
        lambda geometry: leave_group_out(geometry, points, own, group),
        lambda geometry: leave_pair_out(geometry, *pair),
    ):
        moved, stayed = (of(replace(spectrum, rules=rules).geometry(0.3)) for rules in (3, 1))
        torch.testing.assert_close(moved.held, stayed.background, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(stayed.held, stayed.background, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(moved.held, moved.background)


def _own(spectrum, memory):
    place_of = {int(c): p for p, c in enumerate(spectrum.classes)}
    return torch.tensor([place_of[int(c)] for c in memory.labels])


def _load_oracle():
    path = SHARED / "reference" / "dslda_oracle.py"
    spec = importlib.util.spec_from_file_location("dslda_oracle", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("dslda_oracle", module)
    spec.loader.exec_module(module)
    return module

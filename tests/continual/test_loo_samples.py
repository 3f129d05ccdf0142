"""Left-out samples are scored some at a time, which no result shows."""

import continual_helpers
import numpy as np
import pytest
import torch

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.closed_form.lda import fit_lda, fit_prototype
from learnkit.continual.closed_form.linear import Basis
from learnkit.continual.closed_form.ridge import fit_ridge
from learnkit.continual.statistics import ClassStatistics

COUNTS = {"a": 9, "b": 1, "c": 6, "d": 3}  # b is alone: others play its part, beside a partner
CLOSED_FORM = "continual.closed_form"
BLOCKS = (f"{CLOSED_FORM}.loo_samples", f"{CLOSED_FORM}.temperature", "uncertainty.ood")


def draw(width=10):
    generator = torch.Generator().manual_seed(0)
    labels = [name for name, n in COUNTS.items() for _ in range(n)]
    centers = {name: torch.randn(width, generator=generator) for name in COUNTS}
    spread = torch.randn(len(labels), width, generator=generator)
    return (torch.stack([centers[name] for name in labels]) + spread).double(), labels


def learned(method):
    features, labels = draw()
    head = ContinualClassifier(10, classifier=method)
    head.extend(features, labels)
    return head


@pytest.mark.parametrize("method", ["lda", "ridge", "prototype"])
def test_scoring_some_at_a_time_gives_what_scoring_all_at_once_gives(method, monkeypatch):
    whole = learned(method)
    for module in BLOCKS:
        monkeypatch.setattr(f"learnkit.{module}._BLOCK", 13)
    parts = learned(method)
    one, other = (head.knowledge.derived for head in (whole, parts))
    assert one.linear.loo.n_single < len(one.linear.loo.labels)  # there are pairs as well
    for name in "logits", "mahalanobis", "relative":
        torch.testing.assert_close(getattr(one.linear.loo, name), getattr(other.linear.loo, name))
    assert parts.temperature == pytest.approx(whole.temperature)
    thresholds = [derived.scoring.threshold.calibration_scores for derived in (one, other)]
    np.testing.assert_allclose(*thresholds, rtol=1e-7, atol=1e-5)
    fresh = draw()[0].flip(0)
    torch.testing.assert_close(whole.ood_scores(fresh), parts.ood_scores(fresh))


@pytest.mark.parametrize("method", ["lda", "prototype"])
def test_logits_are_counted_from_a_center_that_stays_and_energy_from_one_that_moves(method):
    features, labels = continual_helpers.draw({"a": 9, "b": 9, "c": 9})
    earlier, now = (
        ContinualClassifier(features.shape[1], classifier=method, score="energy", rules=rules)
        for rules in (2, 3)
    )
    for head in earlier, now:
        head.extend(features, labels)
    was, found = (head.knowledge.derived.linear.loo for head in (earlier, now))
    # of classes of as many images all logits count alike: their differences are the same
    torch.testing.assert_close(found.logits + found.shift[:, None], was.logits)
    assert found.shift.abs().min() > 1e-3
    assert not was.shift.any()
    assert now.temperature == pytest.approx(earlier.temperature)
    assert now.threshold.value == pytest.approx(earlier.threshold.value)


def test_few_images_beside_many_have_the_noise_of_the_center_once():
    many, few = {"a": 60, "b": 60, "c": 60}, {"d": 2}
    features, labels = continual_helpers.draw(many | few)
    width = features.shape[1]
    heads = [ContinualClassifier(width, blend=False, rules=rules) for rules in (1, 2, 3)]
    for head in heads:
        head.extend(features, labels)
    logits = [head.knowledge.derived.linear.loo.logits for head in heads]
    # by the first rules the center stayed for all
    torch.testing.assert_close(logits[2], logits[0])
    assert not torch.allclose(logits[1], logits[0], rtol=1e-3)


def test_a_block_is_small_and_never_mixes_both_kinds_of_samples(monkeypatch):
    features, labels = draw()
    stats = ClassStatistics.empty(10, root=False).update(features, labels)
    samples = Basis.of(stats.moments(), "uniform").samples
    monkeypatch.setattr("learnkit.continual.closed_form.loo_samples._BLOCK", 13)
    blocks = [range(len(samples))[block] for block in samples.blocks(4)]
    assert [row for block in blocks for row in block] == list(range(len(samples)))
    assert max(map(len, blocks)) == 13 // 4
    kinds = [{row < samples.n_single for row in block} for block in blocks]
    assert all(len(kind) == 1 for kind in kinds)
    assert {True} in kinds
    assert {False} in kinds
    assert len(list(samples.blocks(10**6))) == len(samples)  # one at a time is the least


@pytest.mark.parametrize("most", [3, 8, 20])
@pytest.mark.parametrize("method", [fit_lda, fit_ridge, fit_prototype])
def test_of_more_samples_than_can_be_compared_some_are_scored_as_all_are(method, most, monkeypatch):
    features, labels = draw()
    bursts = features.repeat(2, 1) + 1e-3 * torch.arange(2 * len(features))[:, None]
    stats = ClassStatistics.empty(10, root=False).update(bursts, labels * 2)
    held = {fit_lda: {"shrinkage": 0.5}, fit_ridge: {"penalty": 0.5}}.get(method, {})
    given = {"debias": 0.0, **held}  # what is taken off is told by other samples then
    every = method(stats.moments(), **given).loo
    monkeypatch.setattr("learnkit.continual.closed_form.linear._MIN_SAMPLES", most)
    monkeypatch.setattr("learnkit.continual.closed_form.linear._MAX_COMPARED", 0)
    some = method(stats.moments(), **given).loo

    rows = torch.arange(len(every.labels))[:: -(-len(every.labels) // most)]
    assert len(some.labels) == len(rows) <= most < len(every.labels)
    assert some.n_single == (rows < every.n_single).sum()
    assert torch.equal(some.labels, every.labels[rows])
    one, other = (table - table.mean(1, keepdim=True) for table in (some.logits, every.logits))
    torch.testing.assert_close(one, other[rows])
    assert float(some.weights.sum()) == pytest.approx(1)
    its, own = every.memory, some.memory
    at, here = every.rows[rows], some.rows
    for name in "grid", "labels", "positions", "copies":
        assert torch.equal(getattr(own, name)[here], getattr(its, name)[at])
    mates = [
        [sorted(m.grid[members[members >= 0]].tolist()) for members in m.members[which]]
        for m, which in ((own, here), (its, at))
    ]
    assert mates[0] == mates[1]
    lone = rows >= every.n_single
    partners = own.grid[own.partners[here[lone]]], its.grid[its.partners[at[lone]]]
    assert torch.equal(*partners)


def test_of_many_samples_some_evenly_spaced_tell_the_noise_of_means():
    features, labels = continual_helpers.draw({"a": 300, "b": 300, "c": 200})
    basis = Basis.of(
        continual_helpers.gather(features, labels, memory_size=300).moments(), "uniform"
    )
    samples, geometry = basis.samples, basis.spectrum.geometry(0.3)
    own, counts = samples.own_left_out(geometry)
    every = samples.left_out(geometry, slice(0, samples.n_single))
    at = samples.labels[:, None]
    wanted, rest = (t.gather(1, at)[::3, 0] for t in (every.distances, every.counts))
    assert 256 <= len(own) < 300
    torch.testing.assert_close(own, wanted)
    assert torch.equal(counts, rest)

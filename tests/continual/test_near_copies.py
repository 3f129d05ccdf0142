"""Near copies: bursts are found, left out as a whole, and weigh as one image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from continual_helpers import bursts, draw, gather, on_grid
from scipy.cluster.hierarchy import fcluster, linkage

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.closed_form.leave_one_out import Group, leave_group_out
from learnkit.continual.closed_form.linear import Basis
from learnkit.continual.closed_form.loo_samples import memory_rows
from learnkit.continual.closed_form.near_copies import (
    CopyRule,
    copy_groups,
    fresh_rows,
    look_like_bursts,
    near_copy_groups,
    stand_for,
)
from learnkit.continual.closed_form.shrinkage import density_loss
from learnkit.continual.closed_form.whitening import fit_spectrum
from learnkit.errors import DataError
from learnkit.uncertainty.scoring import GRID


def grid_of(features):
    return (on_grid(features) * GRID).to(torch.int16)


def test_the_versions_of_a_photograph_make_a_group():
    features, _ = bursts({"a": 9}, versions=3)
    assert near_copy_groups(grid_of(features)) == (*range(9),) * 3


def test_groups_of_images_are_those_of_their_class_however_many_these_are():
    features, _ = bursts({"a": 120}, versions=5)
    in_order = grid_of(features).reshape(5, 120, -1).transpose(0, 1).flatten(0, 1).numpy()
    photograph = np.repeat(np.arange(120), 5)
    groups = copy_groups(in_order, ["a"] * 600)  # more than are compared together
    assert (groups == 5 * photograph).mean() > 0.99
    split = copy_groups(in_order, ["ab"[i % 2] for i in range(600)])
    assert split[:6].tolist() == [0, 1, 0, 1, 0, 5]
    assert copy_groups(in_order[:0], []).tolist() == []


def test_groups_are_the_clusters_of_single_linkage():
    features, _ = bursts({"a": 12}, versions=4, apart=0.3)
    grid = grid_of(features)
    merges = linkage(grid.double().numpy(), "single")
    gap = (merges[1:, 2] / merges[:-1, 2]).argmax()
    wanted = fcluster(merges, (merges[gap, 2] + merges[gap + 1, 2]) / 2, "distance")
    found = torch.tensor(near_copy_groups(grid))
    same = torch.from_numpy(wanted[:, None] == wanted)
    assert same.sum() == 12 * 4 * 4
    assert torch.equal(found[:, None] == found, same)


def test_versions_of_one_photograph_near_and_far_make_a_group_but_by_the_earlier_rules():
    photographs = draw({"a": 12}, width=128)[0]
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(4, *photographs.shape, generator=generator).double()
    # one as far as .45 of the typical squared distance, where other photographs are from .57 on
    apart = torch.tensor([0.1, 0.2, 0.55, 0.6])[:, None, None]
    grid = grid_of(torch.cat([photographs, *(photographs + apart * noise)]))
    assert near_copy_groups(grid) == (*range(12),) * 5
    assert len(set(near_copy_groups(grid, CopyRule(0.35, 2.0)))) == 18


def test_different_images_and_all_alike_keep_every_row_to_themselves():
    assert near_copy_groups(grid_of(draw({"a": 64}, width=128)[0])) == tuple(range(64))
    one_burst, _ = bursts({"a": 1}, versions=20)
    assert near_copy_groups(grid_of(one_burst)) == tuple(range(20))
    assert near_copy_groups(grid_of(one_burst[:2])) == (0, 1)
    assert near_copy_groups(grid_of(one_burst[:0])) == ()


def fresh(validation, remembered, *, all_remembered=True):
    groups = near_copy_groups(torch.cat([validation, remembered]))
    return fresh_rows(groups, len(validation), all_remembered=all_remembered)


def test_of_validation_images_those_count_that_are_no_near_copies():
    features, _ = bursts({"a": 12}, versions=4)
    version = grid_of(features).reshape(4, 12, -1)
    remembered, others = version[0, :8], version[1:, :8].flatten(0, 1)
    new = version[:, 8:].transpose(0, 1).flatten(0, 1)  # photograph after photograph
    wanted = [False] * 24 + [True, False, False, False] * 4
    assert fresh(torch.cat([others, new]), remembered).tolist() == wanted
    assert not fresh(others, remembered).any()
    assert fresh(version[0, 8:], remembered).all()
    # those that are near none may be near one that was learned and forgotten
    assert not fresh(torch.cat([others, new]), remembered, all_remembered=False).any()
    assert fresh(new, remembered, all_remembered=False).tolist() == wanted[24:]
    # nothing tells what is near where there are so few
    assert fresh(version[0, :2], version[1, :2]).all()
    assert fresh(version[0, :0], remembered).tolist() == []


def test_one_near_pair_among_many_is_chance():
    features, _ = bursts({"a": 60}, versions=2)
    one, other = grid_of(features).split(60)
    assert fresh(torch.cat([one, other[:3]]), one[:0]).all()
    assert fresh(torch.cat([one, other[:4]]), one[:0]).tolist() == [True] * 60 + [False] * 4
    more = torch.cat([one, other[:3]])
    assert fresh(more[3:], more[:3], all_remembered=False).all()


def validated(learned, validation, **settings):
    head = ContinualClassifier(learned[0].shape[1], **settings)
    head.extend(*learned)
    head.validate(*validation)
    return head


def both_classes(version, photographs):
    """Photographs of both classes in one version of a (V, 2, 20, D) table of them."""
    features = version[:, photographs].flatten(0, 1)
    return features, [name for name in "ab" for _ in range(len(features) // 2)]


@pytest.fixture
def versions():
    return bursts({"a": 20, "b": 20}, width=128, versions=3)[0].reshape(3, 2, 20, -1)


def test_an_image_is_fresh_unless_it_is_a_near_copy_of_a_learned_one_of_its_class(versions):
    learned = both_classes(versions[0], slice(12))
    copies, new = both_classes(versions[1], slice(12)), both_classes(versions[0], slice(12, 20))
    given = torch.cat([copies[0], new[0]]), [*copies[1], *new[1]]
    head, blind = ContinualClassifier(128), ContinualClassifier(128, near_copies=False)
    for one in head, blind:
        one.extend(*learned)
    assert head.are_fresh(*given).tolist() == [False] * 24 + [True] * 16
    assert blind.are_fresh(*given).all()
    assert head.are_fresh(given[0], [name.upper() for name in given[1]]).all()  # of no such class
    # of a class that is not known either, near copies of each other count as one
    twice = versions[::2, 0, 12:].flatten(0, 1), ["c"] * 16
    assert head.are_fresh(*twice).tolist() == [True] * 8 + [False] * 8


def test_of_more_images_than_are_compared_at_once_the_last_copies_are_found():
    first, second = bursts({"a": 640}, width=128, versions=2)[0].reshape(2, 640, -1)
    head = ContinualClassifier(128)
    head.extend(first[600:], ["a"] * 40)
    given = torch.cat([first[:600], second[600:]])
    assert head.are_fresh(given, ["a"] * 640).tolist() == [True] * 600 + [False] * 40


def test_validation_images_that_are_near_copies_of_learned_ones_count_for_none(versions):
    learned = both_classes(versions[0], slice(12))
    copies, fresh = both_classes(versions[1], slice(12)), both_classes(versions[0], slice(12, 20))
    whole = torch.cat([copies[0], fresh[0]]), [*copies[1], *fresh[1]]
    head, expected = validated(learned, whole), validated(learned, fresh)
    assert head.threshold == expected.threshold
    assert head.temperature == expected.temperature
    report = head.undo() and head.validate(*whole)
    assert report.notes[0] == (
        "24 of 40 validation images do not count: they are near copies of learned ones, or of "
        "others of them (bursts, augmented files, files saved again), or cannot be told from such; "
        "`group=` of `split` keeps together what belongs together"
    )
    alone = ContinualClassifier(128)
    alone.extend(*learned)
    beside = ContinualClassifier(128)
    beside.extend(*learned, validation=copies)
    assert beside.threshold == alone.threshold


def test_images_to_calibrate_by_of_which_none_counts_are_refused(versions):
    learned, copies = both_classes(versions[0], slice(12)), both_classes(versions[1], slice(12))
    fresh = both_classes(versions[0], slice(12, 20))
    head = validated(learned, fresh)
    before = head.knowledge
    said = (
        r"^none of the images to calibrate by \(24 given\) counts: they are learned, near copies "
        r"of learned ones \(bursts, augmented files, files saved again\), of groups that are "
        r"learned, or cannot be told from such; give labelled images taken anew$"
    )
    with pytest.raises(DataError, match=said):
        head.validate(*copies)
    assert head.knowledge is before
    # an image that was kept for another class: near those of the right one, it goes with that
    wrong = copies[0], copies[1][::-1]
    head.validate(*wrong)
    assert head.validate(*copies).notes[0].startswith("24 of 24 validation images were of another")


def test_of_a_burst_that_is_not_all_remembered_no_validation_image_counts(versions):
    parts = [both_classes(one, slice(20)) for one in versions]
    learned = torch.cat([parts[0][0], parts[1][0]]), [*parts[0][1], *parts[1][1]]
    head, alone = (ContinualClassifier(128, memory=16) for _ in range(2))
    head.extend(*learned, validation=parts[2])
    alone.extend(*learned)
    assert head.threshold == alone.threshold
    assert head.temperature == alone.temperature


def test_near_copies_among_validation_images_count_for_one(versions):
    learned, rest = both_classes(versions[0], slice(12)), slice(12, 20)
    parts = [both_classes(one, rest) for one in versions]
    features, labels = zip(*parts, strict=True)
    head = validated(learned, (torch.cat(features), [name for own in labels for name in own]))
    one = validated(learned, parts[0])
    assert (head.threshold.n, head.threshold.source) == (one.threshold.n, one.threshold.source)


def test_what_counts_does_not_depend_on_the_order_of_changes(versions):
    learned, copies = both_classes(versions[0], slice(16)), both_classes(versions[1], slice(4, 20))
    later = ContinualClassifier(128)
    later.extend(learned[0][:16], learned[1][:16])
    later.extend(learned[0][16:17], learned[1][16:17])
    later.validate(*copies)  # of most of the second class nothing is learned yet
    later.extend(learned[0][17:], learned[1][17:])
    first = validated(learned, copies)
    assert later.knowledge.digest == first.knowledge.digest
    assert later.threshold == first.threshold
    assert later.temperature == first.temperature


@pytest.mark.filterwarnings("ignore:.* are more unusual than 95% of")
def test_a_state_from_before_counts_every_validation_image(versions):
    learned, copies = both_classes(versions[0], slice(12)), both_classes(versions[1], slice(12))
    old = validated(learned, copies, near_copies=False)
    config, tensors = old.state()
    settings = {k: v for k, v in config["settings"].items() if k != "near_copies"}
    again = ContinualClassifier.from_state({**config, "format": 3, "settings": settings}, tensors)
    assert again.threshold == old.threshold
    head = ContinualClassifier(128)
    head.extend(*learned, validation=copies)
    assert old.threshold.value < 0.8 * head.threshold.value


def test_chance_makes_few_near_copies_where_dimensions_are_few():
    n_near = n = 0
    for seed in range(20):
        groups = near_copy_groups(grid_of(draw({"a": 40}, width=24, seed=seed)[0]))
        n += len(groups)
        n_near += len(groups) - len(set(groups))
    assert n_near <= 0.02 * n


def test_groups_do_not_depend_on_the_order_of_rows():
    features, _ = bursts({"a": 10}, versions=3, seed=1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    one = torch.tensor(near_copy_groups(grid_of(features)))
    other = torch.tensor(near_copy_groups(grid_of(features[order])))
    assert torch.equal((one[:, None] == one)[order][:, order], other[:, None] == other)


def test_rows_stand_for_the_copies_pushed_out_of_the_memory():
    assert stand_for([0, 0, 2], [1, 2, 1], 4) == [1, 2, 1]  # all remembered
    assert stand_for([0, 1, 2], [1, 2, 1], 40) == [1, 2, 1]  # no near copies
    # 3 of 12 images remembered: each group has 9/3 * 2/3 = 2 more images, shared by its rows
    assert stand_for([0, 0, 2], [1, 1, 1], 12) == pytest.approx([2, 2, 3])
    assert stand_for([], [], 5) == []


class Refit:
    """Mean and covariance by definition, what leaving out holds fixed taken from `whole`."""

    def __init__(self, z, labels, whole, shrinkage, dof):
        names = sorted(set(labels))
        parts = [z[[i for i, label in enumerate(labels) if label == name]] for name in names]
        self.means = torch.stack([part.mean(0) for part in parts])
        self.counts = torch.tensor([float(len(part)) for part in parts]).double()
        scatter = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in parts)
        ridge = shrinkage / (1 - shrinkage) * whole.total / z.shape[1]
        ridged = scatter + ridge * torch.eye(z.shape[1]).double()
        self.covariance = (1 - shrinkage) / dof * ridged
        self.inverse = torch.linalg.inv(self.covariance)

    def squared(self, z, points):
        return torch.stack([(z - point) @ self.inverse @ (z - point) for point in points])


@pytest.mark.parametrize("shrinkage", [0.01, 0.5])
@pytest.mark.parametrize(("paired", "rules"), [(False, 3), (False, 4), (True, 4)])
def test_leaving_a_group_out_is_refitting_without_it(shrinkage, paired, rules):
    features, labels = draw({"a": 9, "b": 7}, width=10)
    features, labels = torch.cat([features, features[:1], features[:1]]), [*labels, "a", "a"]
    stats = gather(features, labels)
    spectrum, memory = fit_spectrum(stats.moments()), memory_rows(stats.moments())
    geometry, z = replace(spectrum, rules=rules).geometry(shrinkage), on_grid(features)
    # the copies of the first image and two more of its class; of the other class three
    copies = torch.tensor([[3.0, 1, 1], [1, 1, 1]]).double()
    group = Group(spectrum.turn(z[[0, 3, 5, 9, 10, 12]]).view(2, 3, -1), copies)
    own, known = torch.tensor([0, 1]), z[[3, 12]]
    points = z[[0, 9]]
    found = leave_group_out(
        geometry, spectrum.turn(points), own, group, spectrum.turn(known) if paired else None
    )
    assert len(memory) == 16
    for row, gone in enumerate(([0, 3, 5, 16, 17], [9, 10, 12])):
        keep = [i for i in range(18) if i not in gone]
        refit = Refit(z[keep], [labels[i] for i in keep], spectrum, shrinkage, 16 - len(gone))
        means, counts = refit.means, refit.counts
        if paired:
            means[row], counts[row] = known[row], 1
        close = {"rtol": 1e-9, "atol": 1e-9}
        torch.testing.assert_close(found.distances[row], refit.squared(points[row], means), **close)
        background = refit.squared(points[row], means.mean(0)[None])[0]
        torch.testing.assert_close(found.background[row], background, **close)
        # with a partner they count from where the center stays
        center = means.mean(0) if rules > 3 and not paired else spectrum.center
        torch.testing.assert_close(found.lengths[row], refit.squared(center, means), **close)
        assert torch.equal(found.counts[row], counts)
        wanted = torch.logdet(refit.covariance)
        torch.testing.assert_close(group.log_det(geometry, own)[row], wanted, **close)


def test_a_group_of_one_leaves_as_a_sample_does():
    features, labels = bursts({"a": 5, "b": 6}, width=64, versions=2)
    moments = gather(features, labels).moments()
    basis = Basis.of(moments, "uniform")
    samples, memory = basis.samples, basis.samples.memory
    assert len(samples) == 11
    assert memory.members.shape == (22, 2)
    assert samples.weights.tolist() == pytest.approx([0.1] * 5 + [1 / 12] * 6)
    partners = memory.partners[memory.first_rows]
    assert torch.equal(partners.sort().values, memory.first_rows)
    assert not (memory.members[memory.first_rows] == partners[:, None]).any()


def test_the_density_of_one_class_leaves_groups_out():
    features, labels = bursts({"a": 8}, width=64, versions=3)
    basis = Basis.of(gather(features, labels).moments(), "uniform")
    z, memory = on_grid(features), basis.samples.memory
    geometry = basis.spectrum.geometry(0.3)
    wanted = []
    for row in memory.first_rows:
        own = memory.features[memory.members[row]]
        keep = (torch.cdist(z, own).amin(1) > 1e-6).nonzero()[:, 0]
        refit = Refit(z[keep], ["a"] * len(keep), basis.spectrum, 0.3, 23 - len(own))
        distance = refit.squared(own[0], refit.means)[0]
        wanted.append((distance + torch.logdet(refit.covariance)) / 2)
    assert density_loss(geometry, basis.samples) == pytest.approx(float(sum(wanted)) / 8)


def learned(features, labels, **settings):
    head = ContinualClassifier(features.shape[1], **settings)
    return head, head.extend(features, labels)


def flagged(head, counts):
    return float(head.is_ood(draw(counts, width=128, seed=9)[0]).double().mean())


@pytest.mark.parametrize("classifier", ["lda", "ridge"])
@pytest.mark.parametrize("versions", [3, 10])
def test_a_burst_flags_no_more_than_its_single_images(classifier, versions):
    counts = {"a": 20, "b": 20}
    single, quiet = learned(*bursts(counts, versions=1), classifier=classifier)
    burst, told = learned(*bursts(counts, versions=versions), classifier=classifier)
    fresh = {"a": 200, "b": 200}
    assert flagged(single, fresh) < 0.12
    assert flagged(burst, fresh) <= 1.2 * flagged(single, fresh) + 0.01
    assert not any("near copies" in note for note in quiet.notes)
    n = min(20 * versions, 64) * 2
    [note] = [note for note in told.notes if "near copies" in note]
    assert f" of {n} remembered images are near copies of others" in note


def test_groups_weigh_as_one_image_whatever_the_order_of_arrival():
    features, labels = bursts({"a": 8, "b": 7}, versions=3)
    head, _ = learned(features, labels)
    assert len(head.knowledge.derived.linear.loo.labels) == 15
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3)).tolist()
    other = ContinualClassifier(128)
    for some in order[:20], order[20:21], order[21:]:
        other.extend(features[some], [labels[i] for i in some])
    assert other.threshold.value == head.threshold.value
    assert other.temperature == head.temperature


def test_the_nearest_other_feature_is_of_another_group():
    features, labels = bursts({"a": 6, "b": 6}, versions=3)
    head, _ = learned(features, labels, score="knn")
    z = on_grid(features)
    loo = head.knowledge.derived.linear.loo
    wanted = []
    for row in loo.rows:
        own = loo.memory.features[loo.memory.members[row]]
        keep = torch.cdist(z, own).amin(1) > 1e-6
        wanted.append(float((z[keep] - own[0]).norm(dim=1).min()))
    assert sorted(head.threshold.calibration_scores) == pytest.approx(sorted(wanted))


@pytest.mark.parametrize("n", [2, 5, 10, 19])
def test_one_look_alike_takes_no_evidence_away_from_the_others(n):
    def counted(near, **how):
        # so many of them are near the first of three learned ones
        groups = [0] * near + [*range(near, n), 0, n + 1, n + 2]
        return fresh_rows(groups, n, all_remembered=False, **how).tolist()

    assert counted(1) == [False] + [True] * (n - 1)
    assert counted(2) == counted(1, strays=0) == [False] * n


@pytest.mark.parametrize(("photographs", "versions"), [(2, 2), (2, 3), (3, 2)])
def test_bursts_of_a_handful_of_images_are_told_until_somebody_says_what_belongs_together(
    photographs, versions
):
    rows, labels = bursts({"a": photographs, "b": photographs}, width=128, versions=versions)
    head, told = ContinualClassifier(128), ContinualClassifier(128)
    note = "the few images of 'a', 'b' look like near copies of each other"
    assert any(note in one for one in head.extend(rows, labels).notes)
    groups = [i % (2 * photographs) for i in range(len(labels))]
    assert not any("near copies" in one for one in told.extend(rows, labels, groups=groups).notes)


def test_a_handful_of_different_images_is_hardly_ever_taken_for_bursts():
    found = 0
    for seed in range(60):
        for n in (3, 4, 5, 6, 7):
            rows = grid_of(draw({"a": n}, width=128, seed=seed)[0]).numpy()
            found += look_like_bursts(rows)
    assert found <= 3

"""Statistics of classes: sums that do not depend on how the images came."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from continual_helpers import embedded, examples
from hypothesis import given
from hypothesis import strategies as st

import learnkit.continual.embedding
from learnkit.continual.checks import what_is_not_finite
from learnkit.continual.embedding import EXACT, LARGEST, embed, to_grid
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import DataError, StatisticsError
from learnkit.uncertainty.scoring import GRID

D = 6
NAMES = ["ant", "bee", "cat", "dog"]
few = examples(25)


def images(seed, n=24, d=D):
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.gamma(1.0, size=(n, d)).astype("float32"))
    features[n // 2] = features[0]  # a copy, as burst frames are
    return features, [NAMES[i] for i in rng.integers(0, len(NAMES), n)]


def collect(features, labels, *, memory_size=3, root=True):
    empty = ClassStatistics.empty(features.shape[1], root=root, memory_size=memory_size)
    return empty.update(features, labels)


def in_pieces(features, labels, order, cuts, memory_size=3):
    """Statistics of the images in another order, batch by batch."""
    stats = ClassStatistics.empty(features.shape[1], root=True, memory_size=memory_size)
    for piece in np.split(np.array(order), sorted(cuts)):
        if len(piece):
            stats = stats.update(features[piece], [labels[i] for i in piece])
    return stats


orders = st.permutations(range(24))
cuts = st.lists(st.integers(0, 24), max_size=5)
seeds = st.integers(0, 2**31)


@few
@given(seeds, orders, cuts, st.integers(0, 9))
def test_any_order_and_batching_gives_the_same_bits(seed, order, cuts, memory_size):
    features, labels = images(seed)
    whole = collect(features, labels, memory_size=memory_size)
    assert in_pieces(features, labels, order, cuts, memory_size).equals(whole)


@pytest.mark.parametrize("root", [True, False])
def test_rows_taken_some_at_a_time_give_the_same_bits(root, monkeypatch):
    features, labels = images(3)
    whole = collect(features, labels, root=root)
    monkeypatch.setattr(learnkit.continual.embedding, "_BLOCK", 5)
    assert collect(features, labels, root=root).equals(whole)


@few
@given(seeds, orders, cuts, st.integers(0, 9))
def test_any_number_of_shards_merges_to_the_same_bits(seed, order, cuts, memory_size):
    features, labels = images(seed)
    shards = [
        in_pieces(features, labels, piece, [], memory_size)
        for piece in np.split(np.array(order), sorted(cuts))
    ]
    merged = ClassStatistics.empty(D, root=True, memory_size=memory_size)
    for shard in shards:
        merged = shard.merge(merged)
    assert merged.equals(collect(features, labels, memory_size=memory_size))


@few
@given(seeds, st.integers(1, 23))
def test_subtracting_undoes_updating(seed, cut):
    features, labels = images(seed)
    before = collect(features[:cut], labels[:cut], memory_size=24)
    after = before.update(features[cut:], labels[cut:]).subtract(features[cut:], labels[cut:])
    assert after.equals(before)


@few
@given(seeds, st.integers(1, 23))
def test_subtracting_undoes_all_sums_even_when_the_memory_overflowed(seed, cut):
    features, labels = images(seed)
    before = collect(features[:cut], labels[:cut], memory_size=1)
    after = before.update(features[cut:], labels[cut:]).subtract(features[cut:], labels[cut:])
    mine, its = after.canonical(), before.canonical()
    assert torch.equal(mine.sums, its.sums)
    assert torch.equal(mine.gram, its.gram)
    assert torch.equal(mine.counts, its.counts)
    assert torch.equal(mine.scatter(), its.scatter())


@few
@given(seeds, orders)
def test_scatter_is_that_of_the_rounded_features(seed, order):
    features, labels = images(seed)
    stats = in_pieces(features, labels, order, [5, 11])
    z = (to_grid(embedded(features, root=True)) / GRID).numpy()
    expected = np.zeros((D, D))
    for name in set(labels):
        rows = z[[label == name for label in labels]]
        for row in rows - rows.mean(0):
            expected += np.outer(row, row)
    torch.testing.assert_close(stats.scatter().numpy(), expected, atol=1e-12, rtol=0)
    assert torch.equal(stats.scatter(), stats.scatter().T)
    assert torch.equal(stats.scatter(), collect(features, labels).scatter())


def test_sums_are_those_of_exact_integer_arithmetic():
    features, labels = images(1)
    stats = collect(features, labels)
    grid = to_grid(embedded(features, root=True)).to(torch.int64)
    assert torch.equal(stats.gram.to(torch.int64), sum(torch.outer(z, z) for z in grid))
    for place, name in enumerate(stats.class_names):
        rows = grid[[label == name for label in labels]]
        assert torch.equal(stats.sums[place].to(torch.int64), rows.sum(0))
        assert stats.counts[place] == len(rows)


def test_operations_leave_what_they_are_called_on_as_it_was():
    features, labels = images(2)
    stats = collect(features, labels)
    before = {name: tensor.clone() for name, tensor in stats.to_tensors().items()}
    stats.update(features, ["new"] * 24)
    stats.subtract(features[:3], labels[:3])
    stats.forget(labels[0])
    stats.rename({labels[0]: "other"})
    stats.merge_classes(sorted(set(labels)), "all")
    stats.merge(stats)
    for name, tensor in stats.to_tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_places_of_classes_never_move():
    features, labels = images(3)
    stats = collect(features, labels)
    names = stats.class_names
    grown = stats.update(features[:2], ["zebra", "aardvark"]).forget(names[1])
    assert grown.class_names == (*names, "zebra", "aardvark")
    assert grown.counts[1] == 0
    assert grown.update(features[:1], [names[1]]).counts[1] == 1


def test_class_names_give_the_order_of_arrival_and_meaning_to_numbers():
    features, _ = images(3)
    stats = ClassStatistics.empty(D, root=True).update(features[:3], [2, 0, 2], ["x", "y", "z"])
    assert stats.class_names == ("x", "y", "z")
    assert stats.counts.tolist() == [1, 0, 2]


def test_a_class_larger_than_the_memory_leaves_the_spread_of_what_is_not_remembered():
    features, labels = images(4)
    stats = collect(features, labels, memory_size=4)
    gone, place = stats.forget("bee"), stats.class_names.index("bee")
    rows = to_grid(embedded(features, root=True))[[label == "bee" for label in labels]].tolist()
    for remembered in stats.memory.of("bee").tolist():
        rows.remove(remembered)
    rows = torch.tensor(rows, dtype=torch.float64)
    (left,) = gone.forgotten
    assert (left.name, left.count) == ("bee", len(rows)) == ("bee", int(stats.counts[place]) - 4)
    assert torch.equal(left.total, rows.sum(0))
    others = collect(features, labels, memory_size=24).forget("bee")
    spread = (rows - rows.mean(0)) / GRID
    expected = others.scatter() + spread.T @ spread
    torch.testing.assert_close(gone.scatter(), expected, atol=1e-12, rtol=0)
    assert torch.equal(gone.gram, others.gram + rows.T @ rows)
    assert len(gone.memory.of("bee")) == 0
    assert not gone.means()[place].any()
    assert (gone.n_images, gone.n_groups) == (others.n_images + left.count, others.n_groups + 1)


@few
@given(seeds, orders, st.sampled_from(NAMES))
def test_a_class_that_fits_the_memory_is_forgotten_to_the_bit(seed, order, name):
    features, labels = images(seed)
    if name not in labels:
        return
    kept = [i for i, label in enumerate(labels) if label != name]
    gone = in_pieces(features, labels, order, [7], memory_size=24).forget(name)
    assert gone.equals(collect(features[kept], [labels[i] for i in kept], memory_size=24))
    assert not gone.forgotten
    again = [i for i in order if labels[i] == name]
    whole = collect(features, labels, memory_size=24)
    assert gone.update(features[again], [name] * len(again)).equals(whole)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_one_image_more_than_is_remembered_is_its_own_sum_and_goes_too(size):
    features = torch.rand(size + 2, D, generator=torch.Generator().manual_seed(size))
    others, names = images(4)
    stats = collect(others, names, memory_size=size)
    one_more, two_more = (stats.update(features[:n], ["new"] * n) for n in (size + 1, size + 2))
    assert one_more.forget("new").equals(stats)
    assert [one.count for one in two_more.forget("new").forgotten] == [2]


@few
@given(seeds, orders, orders, cuts, st.integers(0, 9))
def test_forgetting_and_learning_again_keep_to_no_order(seed, first, again, cuts, memory_size):
    features, labels = images(seed)
    names = sorted(set(labels))[:2]
    back = [i for i in again if labels[i] in names or i % 3 == 0]

    def told(first, back, cuts):
        stats = in_pieces(features, labels, first, cuts, memory_size)
        other = in_pieces(features, labels, back[: len(back) // 2], [], memory_size)
        for name in names if first[0] % 2 else reversed(names):
            stats = stats.forget(name)
        rest = back[len(back) // 2 :]
        stats = stats.update(features[rest], [labels[i] for i in rest]) if rest else stats
        stats = stats.merge(other) if first[1] % 2 else other.merge(stats)
        least = min(back)
        return stats.subtract(features[[least]], [labels[least]])

    one, other = told(first, back, cuts), told(sorted(first), sorted(back), [])
    assert one.equals(other)
    assert torch.equal(one.scatter(), other.scatter())
    if memory_size == 9 and not one.forgotten:
        times = torch.tensor([(labels[i] not in names) + (i in back) for i in range(24)])
        times[min(back)] -= 1
        rows = torch.arange(24).repeat_interleave(times)
        whole = collect(features[rows], [labels[i] for i in rows], memory_size=9)
        assert torch.equal(whole.canonical().gram, one.canonical().gram)


def test_the_order_of_forgetting_leaves_no_trace():
    features, labels = images(4)
    stats = collect(features, labels)
    assert stats.forget("bee").forget("ant").equals(stats.forget("ant").forget("bee"))
    assert not stats.forget("bee").equals(stats)


@few
@given(seeds, orders)
def test_merged_classes_are_as_if_labelled_so_from_the_start(seed, order):
    features, labels = images(seed)
    merged = in_pieces(features, labels, order, [9])
    known = sorted(set(labels))[:2]
    merged = merged.merge_classes(known, "insect")
    relabelled = ["insect" if label in known else label for label in labels]
    assert merged.equals(collect(features, relabelled))


def test_renamed_classes_are_as_if_named_so_from_the_start():
    features, labels = images(5)
    swapped = {"ant": "bee", "bee": "ant", "cat": "Katze"}
    renamed = collect(features, labels).rename(swapped)
    assert renamed.equals(collect(features, [swapped.get(label, label) for label in labels]))


def test_merging_into_an_existing_class_keeps_its_place():
    features, labels = images(6)
    stats = collect(features, labels)
    merged = stats.merge_classes(["ant"], "bee")
    assert merged.class_names == stats.class_names
    assert merged.counts[stats.class_names.index("ant")] == 0
    with pytest.raises(DataError, match="fewer than two"):
        stats.merge_classes(["ant"], "ant")
    with pytest.raises(DataError, match="use `rename`"):
        stats.merge_classes(["ant"], "new")


# -- embedding ------------------------------------------------------------------------------------


@few
@given(seeds, st.sampled_from([1, 3, 7, 500, 9000]), st.integers(1, 9), st.booleans())
def test_embedding_does_not_depend_on_the_batch(seed, width, n, root):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, width)))
    whole = embedded(x, root=root)
    single = torch.cat([embedded(row[None].clone(), root=root) for row in x])
    strided = embedded(x.T.contiguous().T, root=root)
    assert torch.equal(whole, single)
    assert torch.equal(whole, strided)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(n, dtype=torch.float64))


def test_embedding_takes_the_direction_of_the_signed_root():
    x = torch.tensor([[4.0, -9.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[2.0, -3.0, 0.0]], dtype=torch.float64) / 13**0.5
    torch.testing.assert_close(embedded(x, root=True), expected)
    torch.testing.assert_close(embedded(x, root=False), x / 97**0.5)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e30, 1e300])
def test_embedding_forgets_the_scale_without_overflow(scale):
    x = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(embedded(x * scale), x / 3)


def test_a_blank_image_stays_zero_and_is_not_divided_by():
    x = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [1.0, 1.0]])
    assert embedded(x, root=True)[:2].abs().sum() == 0


@pytest.mark.parametrize("root", [True, False])
def test_gradients_of_the_embedding_are_right_and_finite_at_zero(root):
    x = torch.rand(3, 5, dtype=torch.float64) + 0.1
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: embed(t, root=root), (x,), atol=1e-5)
    y = torch.tensor([[0.0, 2.0], [0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(embed(y, root=root).sum(), y)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("root", [True, False])
def test_the_embedding_with_gradients_is_the_same_up_to_rounding(root):
    x = torch.tensor([[3.0, -4.0], [3e38, 1e-38], [1e-11, 0.0], [1e-12, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(embed(x, root=root), embedded(x, root=root), rtol=1e-14, atol=0)


def test_the_grid_fits_16_bits_and_errs_by_half_a_step():
    z = embedded(torch.eye(2) * torch.tensor([1.0, -1.0]), root=False)
    assert to_grid(z).abs().max() == 32767
    z = embedded(torch.randn(50, 9), root=False)
    assert (to_grid(z) / GRID - z).abs().max() <= 0.5 / GRID


# -- bad input ------------------------------------------------------------------------------------

OK = torch.rand(2, D)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.full((2, D), torch.nan), ["a", "b"], r"2 of 2 images are NaN or infinite \(rows 0"),
        (torch.tensor([[1.0] * D, [torch.inf] * D]), ["a", "b"], "rows 1"),
        (torch.rand(2, D + 1), ["a", "b"], r"shape \(2, 7\); give one row of 6"),
        (torch.rand(D), ["a"], "one row of 6"),
        (OK, ["a"], "2 rows of features come with 1 label"),
        (OK, "ab", "one class name per image"),
        (torch.empty(0, D), [], "no rows"),
        (OK, ["a", ""], "no class name"),
        (OK, ["a", None], "no class name"),
        (OK, ["a", 1], "no class name"),
        (OK, ["a", ["b"]], "one name per image"),
        (OK, ["a", "\ud800"], "not valid Unicode"),
        (OK, ["Ant", "ant"], "differ only in case"),
        (OK, ["a b", "ab"], "differ only in case, spaces"),
        (OK, ["ﬁn", "fin"], "Unicode form"),
        (OK.to(torch.complex64), ["a", "b"], "real numbers"),
        ("nonsense", ["a"], "no table of numbers"),
    ],
)
def test_bad_images_are_refused_with_the_reason(features, labels, message):
    with pytest.raises(DataError, match=message):
        ClassStatistics.empty(D, root=True).update(features, labels)


def test_numbers_are_refused_beyond_the_class_names():
    with pytest.raises(DataError, match="label 2 has no place among 2"):
        ClassStatistics.empty(D, root=True).update(OK, [0, 2], ["a", "b"])
    with pytest.raises(DataError, match="named twice"):
        ClassStatistics.empty(D, root=True).update(OK, [0, 1], ["a", "a"])


def test_unicode_forms_of_one_name_are_one_class():
    stats = ClassStatistics.empty(D, root=True).update(OK, ["caf\u00e9", "cafe\u0301"])
    assert stats.class_names == ("caf\u00e9",)


def test_a_look_alike_of_a_known_class_is_refused_later_too():
    stats = ClassStatistics.empty(D, root=True).update(OK, ["a", "b"])
    with pytest.raises(DataError, match="'b' and 'B'"):
        stats.update(OK, ["B", "c"])
    with pytest.raises(DataError, match="'a' and 'A'"):
        stats.rename({"b": "A"})
    with pytest.raises(DataError, match="'a' and 'A'"):
        stats.merge(ClassStatistics.empty(D, root=True).update(OK, ["A", "c"]))


def test_unknown_classes_are_named_with_those_meant():
    stats = ClassStatistics.empty(D, root=True).update(OK, ["scratch", "dent"])
    with pytest.raises(DataError, match=r"no class 'scrach'; did you mean one of \['scratch'\]"):
        stats.forget("scrach")
    with pytest.raises(DataError, match="no class 'rust'"):
        stats.subtract(OK, ["rust", "dent"])
    with pytest.raises(DataError, match="nothing to forget"):
        stats.forget("dent").forget("dent")


def doubled(stats, times):
    """The statistics of 2^times as many images, by merging them with themselves."""
    for _ in range(times):
        stats = stats.merge(stats)
    return stats


def pointing(features):
    """Statistics of images of width 2, `features` of them along the first axis and one beside."""
    rows = torch.tensor([[1.0, 0.0]] * features + [[3.0, 4.0]])
    return collect(rows, ["a"] * features + ["b"], memory_size=2, root=False)


def test_far_more_images_add_up_exactly_than_the_worst_case_allows():
    features, labels = torch.rand(40, 64, generator=torch.Generator().manual_seed(3)), ["a"] * 40
    few = collect(features, labels, root=False)
    many = doubled(few, 23)
    assert many.n_images == 40 * 2**23 > 39 * (EXACT // LARGEST**2)
    grid = to_grid(embedded(features, root=False)).to(torch.int64).tolist()
    gram = [[2**23 * sum(z[i] * z[j] for z in grid) for j in range(64)] for i in range(64)]
    assert many.gram.tolist() == gram  # whole numbers without limit
    assert many.sums[0].tolist() == [2**23 * sum(z[i] for z in grid) for i in range(64)]


def test_sums_are_exact_up_to_the_limit_and_refused_from_there_on():
    per_image, top = LARGEST**2, (EXACT - 1) // LARGEST**2
    full = doubled(pointing(top // 2**12 - 1), 12)  # below the limit by some thousand images
    squares = 2**12 * ((top // 2**12 - 1) * per_image + 19661**2)
    assert full.gram[0, 0].item() == squares < EXACT
    room = (EXACT - 1 - squares) // per_image
    rest = ClassStatistics.empty(2, root=False, memory_size=2)
    rest = rest.update(torch.tensor([[1.0, 0.0]] * room), ["a"] * room)
    brim = full.merge(rest)
    assert int(brim.gram[0, 0].item()) == squares + room * per_image < EXACT
    before = {name: tensor.clone() for name, tensor in brim.to_tensors().items()}
    n = brim.n_images + 1
    message = rf"feature 0 .* 9\.007e\+15 over {n:,} images.*diagonal.*learn fewer images"
    with pytest.raises(StatisticsError, match=message):
        brim.update(torch.tensor([[1.0, 0.0]]), ["a"])
    with pytest.raises(StatisticsError, match=r"2\^53 = 9\.007e\+15"):
        brim.merge(collect(torch.tensor([[-1.0, 0.0]]), ["c"], memory_size=2, root=False))
    with pytest.raises(StatisticsError, match="feature 0"):
        full.merge(full)
    assert all(torch.equal(tensor, before[name]) for name, tensor in brim.to_tensors().items())
    # images along the other axis still fit, and what is subtracted makes room
    assert brim.update(torch.tensor([[0.0, 1.0]]), ["a"]).n_images == n
    less = brim.subtract(torch.tensor([[1.0, 0.0]] * room), ["a"] * room)
    assert less.equals(full)
    assert rebuilt(brim).equals(brim)


def test_one_image_across_the_limit_is_noticed_whatever_the_rounding():
    # from 2^53 on float64 knows every second whole number: 2^53 + 1 rounds to 2^53 itself
    stats = collect(torch.tensor([[1.0, 1e-4]]), ["a"], memory_size=2, root=False)
    assert stats.gram[1, 1] == 9.0
    for above in range(12):
        gram = stats.gram.clone()
        gram[0, 0] = EXACT - 1 - above
        near = replace(stats, gram=gram)
        tiny = collect(torch.tensor([[1e-4, 1.0]]), ["a"], memory_size=2, root=False)
        if above >= 9:
            assert near.merge(tiny).gram[0, 0].item() == EXACT - 1 - above + 9
        else:
            with pytest.raises(StatisticsError, match="feature 0"):
                near.merge(tiny)


def test_images_that_were_never_added_cannot_be_subtracted():
    features, labels = images(8)
    stats = collect(features, labels, memory_size=24)
    with pytest.raises(StatisticsError, match="never added"):
        stats.subtract(torch.rand(1, D), labels[:1])
    without = collect(features, labels, memory_size=0)
    with pytest.raises(StatisticsError, match="cannot be subtracted"):
        without.subtract(features[[0] * 24], [labels[0]] * 24)
    one = collect(features[:1], ["a"], memory_size=0)
    with pytest.raises(StatisticsError, match="not those that were added"):
        one.subtract(features[1:2], ["a"])


def test_more_than_was_never_remembered_cannot_be_subtracted_unseen():
    features = torch.rand(9, D, generator=torch.Generator().manual_seed(1))
    stats = collect(features[:5], ["a"] * 5, memory_size=4)
    for n in 2, 4:
        with pytest.raises(StatisticsError, match="never added"):
            stats.subtract(features[5 : 5 + n], ["a"] * n)
    with pytest.raises(StatisticsError, match="never added"):  # a copy too many
        stats.subtract(features[[0, 0, 1, 1]], ["a"] * 4)


def test_statistics_of_other_networks_do_not_merge():
    stats = collect(*images(9))
    for other in (
        ClassStatistics.empty(D + 1, root=True, memory_size=3),
        ClassStatistics.empty(D, root=False, memory_size=3),
        ClassStatistics.empty(D, root=True, memory_size=4),
    ):
        with pytest.raises(StatisticsError, match="only statistics of one network"):
            stats.merge(other)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"n_features": 0}, "give a whole number of 1 or more"),
        ({"n_features": 2.0}, "give a whole number of 1 or more"),
        ({"n_features": 65_537}, "give a whole number of 1 or more, 65,536 at most"),
        ({"n_features": 10**400}, "give a whole number of 1 or more, 65,536 at most"),
        ({"memory_size": -1}, "give a whole number of 0 or more"),
        ({"memory_size": True}, "give a whole number of 0 or more"),
        ({"memory_size": 10**400}, "give a whole number of 0 or more, 2,147,483,647 at most"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, rule):
    (name, value), *_ = wrong.items()
    with pytest.raises(StatisticsError) as caught:
        ClassStatistics.empty(**{"n_features": D, "root": True, **wrong})
    assert str(caught.value) == f"`{name}` is {value!r:.80}; {rule}"


# -- tensors and back -----------------------------------------------------------------------------


def rebuilt(stats, **changes):
    tensors = {**stats.to_tensors(), **changes}
    return ClassStatistics.from_tensors(
        {name: tensor for name, tensor in tensors.items() if tensor is not None},
        stats.class_names,
        root=stats.root,
        memory_size=stats.memory.size,
        forgotten_names=[one.name for one in stats.forgotten],
    )


@pytest.mark.parametrize("memory_size", [0, 3])
def test_statistics_come_back_from_tensors_as_they_were(memory_size):
    stats = collect(*images(10), memory_size=memory_size).forget("dog").with_classes(["none"])
    back = rebuilt(stats)
    assert back.equals(stats)
    assert back.class_names == stats.class_names
    assert back.update(*images(11)).equals(stats.update(*images(11)))


def test_empty_statistics_come_back_too():
    empty = ClassStatistics.empty(D, root=False)
    assert rebuilt(empty).equals(empty)


def hostile():
    stats = collect(*images(12)).forget("dog")
    t = stats.to_tensors()
    half, nan = t["sums"] + 0.5, t["gram"] * torch.nan
    skew = t["gram"].clone()
    skew[0, 1] += 1
    swapped = t["memory"].clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    return stats, {
        "missing": {"gram": None},
        "unexpected": {"extra": t["gram"]},
        "float32": {"gram": t["gram"].float()},
        "shape": {"counts": t["counts"][:-1]},
        "`counts` are not": {"counts": -t["counts"]},
        "added up": {"counts": t["counts"] * 2**51},
        "sums of that many": {"sums": half},
        "features; ": {"sums": t["sums"] * 2},
        "NaN or infinity": {"gram": nan},
        "sum of products": {"gram": skew},
        "no sum of": {"gram": t["gram"] * 2},
        "order of its hashes": {"memory": swapped},
        "what no feature": {"memory_copies": t["memory_copies"] * 0},
        "memory_sizes": {"memory_sizes": t["memory_sizes"] + 4},
        "remembers more": {"memory_copies": t["memory_copies"] * 100},
        "`forgotten_sums` are not": {"forgotten_sums": t["forgotten_sums"] * 3},
        "not all from 1": {"forgotten_counts": -t["forgotten_counts"]},
    }


@pytest.mark.parametrize("message", hostile()[1])
def test_damaged_tensors_are_refused(message):
    stats, cases = hostile()
    with pytest.raises(StatisticsError, match=message):
        rebuilt(stats, **cases[message])


@pytest.mark.parametrize("names", [["a", "A"], ["e\u0301", "b"], ["", "b"], "ab", [1, 2]])
def test_stored_names_are_not_trusted(names):
    stats = ClassStatistics.empty(D, root=True).update(OK, ["a", "b"])
    with pytest.raises(StatisticsError):
        ClassStatistics.from_tensors(stats.to_tensors(), names, root=True, memory_size=64)


def test_a_thousand_updates_of_one_equal_one_update_of_a_thousand():
    features, labels = images(13, n=1000, d=3)
    stats = ClassStatistics.empty(3, root=True, memory_size=5)
    for row, label in zip(features, labels, strict=True):
        stats = stats.update(row[None], [label])
    assert stats.equals(collect(features, labels, memory_size=5))


def test_nbytes_counts_every_number():
    stats = collect(*images(14), memory_size=2)
    assert stats.nbytes == 8 * (4 + 4 * D + D * D) + 8 * (2 * D + 24) + 8 * 24


def test_the_hash_of_a_feature_is_the_same_everywhere():
    stats = collect(torch.tensor([[3.0, 4.0]]), ["a"], root=False)
    little = np.array([19661, 26214], dtype="<i2").tobytes()
    key = b"learnkit feature memory"
    assert stats.memory.cells[0].hashes == (
        hashlib.blake2b(little, digest_size=16, key=key).digest(),
    )


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ({(2, 1): math.inf, (4, 0): -math.inf}, "2 of 5 images are NaN or infinite (rows 2, 4)"),
        ({(3, 3): math.nan}, "1 of 5 images are NaN or infinite (rows 3)"),
    ],
)
def test_rows_that_are_not_finite_are_named_though_their_sum_may_be(values, rows):
    features = torch.ones(5, D, dtype=torch.float64)
    for place, value in values.items():
        features[place] = value
    assert rows in what_is_not_finite(features)


def test_finite_rows_whose_sum_is_not_are_finite():
    assert what_is_not_finite(torch.full((5, D), 1.7e308, dtype=torch.float64)) == ""
    assert what_is_not_finite(torch.ones(0, D)) == ""

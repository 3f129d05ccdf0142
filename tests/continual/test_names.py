"""Names of classes: former ones, lists of them, and what a person would take for the same."""

import json
from itertools import permutations

import pytest
import torch
from continual_helpers import draw, gather

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.names import check_distinct
from learnkit.continual.statistics import ClassStatistics
from learnkit.errors import DataError, StatisticsError
from learnkit.optimize.relearn import _settle

N = 4


def learned(names):
    """A classifier that has learned N images of each class."""
    head = ContinualClassifier(12)
    head.extend(*draw(dict.fromkeys(names, N)))
    return head


def images(name, seed=1):
    return draw({name: 3}, seed=seed)


def refused(head, verb, name):
    """The message with which a verb refuses images under a name; nothing has changed then."""
    before = head.knowledge
    with pytest.raises(DataError) as error:
        getattr(head, verb)(*images(name))
    assert head.knowledge is before
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "former", "now"),
    [
        (lambda head: head.rename({"bee": "wasp"}), ["bee"], "wasp"),
        (lambda head: head.merge_classes(["bee", "fly"], "fly"), ["bee"], "fly"),
        (lambda head: head.merge_classes(["bee", "fly"], "pest"), ["bee", "fly"], "pest"),
    ],
    ids=["rename", "merge into one of them", "merge into a new name"],
)
def test_former_names_are_refused_by_every_verb_with_the_present_one(change, former, now):
    head = learned(["ant", "bee", "fly"])
    change(head)
    for name in former:
        for verb in ("extend", "subtract", "validate"):
            message = refused(head, verb, name)
            assert f"class {name!r} is called {now!r} now" in message
            assert f"label these images {now!r}" in message
            assert ("reuse_names=True" in message) == (verb == "extend")
    head.extend(*images(now))
    assert head.n_images[now] == 3 + N * (2 if "fly" in (now, *former[1:]) else 1)


def test_a_former_name_can_be_another_class_on_purpose():
    head = learned(["ant", "bee"])
    head.rename({"bee": "wasp"})
    report = head.extend(*images("bee"), reuse_names=True)
    assert report.classes_added == ("bee",)
    assert head.n_images == {"ant": N, "wasp": N, "bee": 3}
    head.extend(*images("bee", seed=2))  # a present name from now on
    # renaming to a former name is as explicit
    other = learned(["ant", "bee"])
    other.rename({"bee": "wasp"})
    other.extend(*draw({"hornet": 3}))
    other.rename({"hornet": "bee"})
    other.extend(*images("bee"))
    assert other.n_images == {"ant": N, "wasp": N, "bee": 6}


def test_names_lead_through_every_later_change():
    head = learned(["a", "b", "c"])
    head.rename({"a": "a2"})
    head.rename({"a2": "a3"})
    head.merge_classes(["a3", "b"], "ab")
    assert head.statistics.former_names == {"a": "ab", "a2": "ab", "a3": "ab", "b": "ab"}
    head.undo()
    assert head.statistics.former_names == {"a": "a3", "a2": "a3"}
    head.rename({"a3": "a"})  # back again
    assert head.statistics.former_names == {"a2": "a", "a3": "a"}


def test_swapped_names_and_forgotten_classes_are_present_ones():
    head = learned(["a", "b"])
    head.rename({"a": "b", "b": "a"})
    head.forget("a")
    assert head.statistics.former_names == {}
    head.extend(*draw({"a": 3, "b": 3}, seed=5))
    assert head.n_images == {"b": N + 3, "a": 3}


def test_verbs_for_one_class_say_what_it_is_called_now():
    head = learned(["a", "b"])
    head.rename({"a": "z"})
    for verb, given in (("forget", "a"), ("rename", {"a": "y"}), ("merge_classes", ["a", "b"])):
        with pytest.raises(DataError, match="no class 'a' any more: it is called 'z' now"):
            getattr(head, verb)(given, *(["b"] if verb == "merge_classes" else []))


def test_copies_that_name_a_class_otherwise_do_not_merge_in_silence():
    here, there = learned(["a", "b"]), learned(["a", "b"])
    here.rename({"a": "z"})
    for one, other in permutations([here, there]):
        before = one.knowledge
        with pytest.raises(DataError, match=r"rename\(\{'a': 'z'\}\) where it has the former name"):
            one.merge(other.statistics)
        assert one.knowledge is before
    both = [
        one.statistics.merge(other.statistics, reuse_names=True)
        for one, other in permutations([here, there])
    ]
    assert both[0].equals(both[1])
    assert both[0].former_names == both[1].former_names == {}
    there.rename({"a": "z"})
    here.merge(there.statistics)
    assert here.n_images == {"z": 2 * N, "b": 2 * N}


@pytest.mark.parametrize(
    ("into", "names", "n_images"),
    [("z", ["a", "b"], {"z": 4 * N, "c": 2 * N}), ("c", ["a", "b", "c"], {"c": 6 * N})],
    ids=["two former names lead to one class", "the present name is there, too"],
)
def test_the_remedy_of_a_refused_merge_can_be_carried_out(into, names, n_images):
    here, there = learned(["a", "b", "c"]), learned(["a", "b", "c"])
    here.merge_classes(["a", "b"], into)
    with pytest.raises(DataError) as error:
        here.merge(there.statistics)
    assert f"merge_classes({names}, into={into!r}) where it has the former name" in str(error.value)
    there.merge_classes(names, into)
    here.merge(there.statistics)
    assert {name: n for name, n in here.n_images.items() if n} == n_images


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_merged_class_can_take_the_name_of_any_part(name):
    head = learned(["a", "b", "c"])
    head.merge_classes(["a", "b"], "z")
    place = head.classes.index("z")
    head.rename({"z": name})
    (other,) = {"a", "b"} - {name}
    assert head.classes.index(name) == place
    assert {one: n for one, n in head.n_images.items() if n} == {name: 2 * N, "c": N}
    assert head.statistics.former_names == {other: name, "z": name}
    for former in (other, "z"):
        assert f"called {name!r} now" in refused(head, "extend", former)
    head.extend(*images(name))
    assert head.n_images[name] == 2 * N + 3
    whole = learned(["a", "b", "c"])
    whole.merge_classes([other], name)
    whole.extend(*images(name))
    assert head.statistics.equals(whole.statistics)


def test_the_name_of_an_emptied_place_may_be_part_of_a_chain():
    head = learned(["a", "b", "c"])
    head.merge_classes(["a", "b"], "z")
    head.rename({"z": "b", "c": "z"})
    assert {name: n for name, n in head.n_images.items() if n} == {"b": 2 * N, "z": N}
    assert head.statistics.former_names == {"a": "b", "c": "z"}


@pytest.mark.parametrize(
    ("names", "now", "former"),
    [
        ({"z": "b", "b": "z"}, "b", {"a": "b", "b": "b", "z": "b"}),
        ({"b": "a"}, "z", {"a": "z", "b": "z"}),
        ({"b": "c", "c": "q"}, "z", {"a": "z", "b": "z", "c": "q"}),
        ({"b": "new"}, "z", {"a": "z", "b": "z"}),
    ],
    ids=["a swap with it", "a former name for it", "the name of another class", "a new name"],
)
def test_an_emptied_place_that_is_called_otherwise_makes_no_name_a_present_one(names, now, former):
    head = learned(["a", "b", "c"])
    head.merge_classes(["a", "b"], "z")
    head.rename(names)
    here = {name: n for name, n in head.n_images.items() if n}
    assert here == {now: 2 * N, names.get("c", "c"): N}
    # a name that a class has, one with images, is none of its former ones
    assert head.statistics.former_names == {o: n for o, n in former.items() if o not in here}
    for old in head.statistics.former_names:
        assert f"called {former[old]!r} now" in refused(head, "extend", old)


def test_former_names_of_merged_statistics_do_not_depend_on_the_order():
    parts = []
    for i, to in enumerate(["x", "y", "z"]):
        stats = gather(*draw({"a": N, f"own {i}": N}, seed=i))
        parts.append(stats.rename({"a": to}))
    found = [one.merge(two).merge(three) for one, two, three in permutations(parts)]
    assert all(stats.former_names == {"a": "x"} for stats in found)
    assert all(stats.equals(found[0]) for stats in found)


def test_former_names_are_kept_with_the_state_and_older_states_have_none():
    head = learned(["a", "b"])
    head.rename({"a": "z"})
    config, tensors = head.state()
    config = json.loads(json.dumps(config))
    again = ContinualClassifier.from_state(config, tensors)
    assert again.statistics.former_names == {"a": "z"}
    assert "called 'z' now" in refused(again, "extend", "a")
    loaded = ContinualClassifier(12)
    loaded.load_state_dict(head.state_dict())
    assert loaded.statistics.former_names == {"a": "z"}
    del config["former_names"]
    old = ContinualClassifier.from_state(config | {"format": 1}, tensors)
    old.extend(*images("a"))
    assert old.n_images == {"z": N, "b": N, "a": 3}


@pytest.mark.parametrize(
    "former", [["a"], {"b": "z"}, {"a": "nobody"}, {"": "z"}, {"a": 3}, {"e\u0301": "z"}]
)
def test_stored_former_names_are_not_trusted(former):
    head = learned(["z", "b"])
    config, tensors = head.state()
    with pytest.raises(StatisticsError):
        ContinualClassifier.from_state(config | {"former_names": former}, tensors)


@pytest.mark.parametrize(
    "names",
    ["12", b"12", {"1", "2"}, {"1": "2"}, 12, None, ["1", 2]],
    ids=lambda names: type(names).__name__,
)
def test_several_classes_are_a_list_of_names(names):
    head = learned(["1", "2", "12"])
    before = head.knowledge
    with pytest.raises(DataError, match=r"list of class names|is no class name"):
        head.merge_classes(names, "12")
    assert head.knowledge is before
    with pytest.raises(DataError, match=r"list of class names|is no class name|give one label"):
        ClassStatistics.empty(12, root=False).update(
            *draw({"1": 2}), class_names=names if names is not None else "12"
        )


def test_any_sequence_of_names_will_do_once():
    head, other = learned(["1", "2", "3"]), learned(["1", "2", "3"])
    held_out = draw({"1": 2, "2": 2}, seed=9)
    for one, names in ((head, ["1", "2", "1"]), (other, iter(["1", "2"]))):
        one.validate(*held_out)
        one.merge_classes(names, "12")
        assert one.n_images == {"12": 2 * N, "2": 0, "3": N}
        assert one.knowledge.validation.class_names == ("12", "2", "3")
        assert [cell.n_copies for cell in one.knowledge.validation.cells] == [4, 0, 0]
    with pytest.raises(DataError, match="joins fewer than two classes"):
        head.merge_classes(["12", "12"], "12")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([("a", "b")], r"give \{old: new\}"),
        ("ab", r"give \{old: new\}"),
        ({"a": ["x"]}, "is no class name"),
        ({"\u00e9": "x", "e\u0301": "y"}, "named twice"),
        (
            {"a": "x", "b": "x"},
            r"'a' cannot be called 'x': another class has this name, or is to have it; to make one "
            r"class of them, merge_classes\(\['a', 'b'\], into='x'\)",
        ),
        ({"a": "b"}, r"merge_classes\(\['a', 'b'\], into='b'\)"),
    ],
)
def test_renaming_takes_a_mapping_of_names(names, message):
    head = learned(["a", "b", "\u00e9"])
    before = head.knowledge
    with pytest.raises(DataError, match=message):
        head.rename(names)
    assert head.knowledge is before


def test_a_head_learned_again_for_a_converted_network_keeps_former_names():
    head, again = learned(["a", "b"]), learned(["z", "b"])
    head.rename({"a": "z"})
    _settle(again, head, [])
    assert "called 'z' now" in refused(again, "extend", "a")


def test_a_forward_pass_is_the_same_whatever_the_names():
    head, other = learned(["a", "b"]), learned(["a", "b"])
    other.rename({"a": "z"})
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head(x), other(x))


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        ("Ant", "ant", "class names 'Ant' and 'ant' differ only in case"),
        ("é", "e\u0301", "'é' and 'e\u0301' ('\\xe9' and 'e\\u0301') differ only in case"),
    ],
)
def test_names_that_look_alike_are_shown_by_their_letters(one, other, shown):
    with pytest.raises(DataError) as caught:
        check_distinct([one, other])
    assert shown in str(caught.value)


class TestCase:
    """'A' and 'a' are two classes where that is said, and stay two through every change."""

    @pytest.fixture
    def letters(self):
        head = ContinualClassifier(12, case_sensitive=True)
        head.extend(*draw({"A": N, "a": N, "b": N}))
        return head

    def test_it_must_be_said(self):
        head = learned(["A", "b"])
        before = head.knowledge
        with pytest.raises(DataError, match=r"differ only in case.*case_sensitive=True"):
            head.extend(*images("a"))
        assert head.knowledge is before
        report = head.extend(*images("a"), case_sensitive=True)
        assert "names of classes are told apart by case from now on" in report.notes
        assert head.n_images == {"A": N, "b": N, "a": 3}
        report = head.extend(*images("B"))  # once said, it stays
        assert not any("told apart" in note for note in report.notes)
        assert head.settings.case_sensitive
        head.undo()
        head.undo()
        assert not head.settings.case_sensitive
        with pytest.raises(DataError, match="differ only in case"):
            head.extend(*images("a"))

    def test_it_changes_no_number(self, letters):
        features, labels = draw({"A": N, "a": N, "b": N})
        other = ContinualClassifier(12)
        # the same order of names: what is derived runs over classes by name
        other.extend(features, [{"A": "0", "a": "1", "b": "2"}[name] for name in labels])
        assert torch.equal(letters(features), other(features))
        assert letters.threshold.value == other.threshold.value

    def test_spaces_and_unicode_forms_are_still_no_difference(self, letters):
        for name in ("a ", "\uff41"):  # the last is a wide a
            with pytest.raises(DataError, match=r"only in spaces or Unicode form; [^,]*, or"):
                letters.extend(*images(name))

    def test_verbs_tell_them_apart(self, letters):
        letters.rename({"b": "B"})
        with pytest.raises(DataError, match="another class has this name"):
            letters.rename({"B": "a"})
        letters.forget("A")
        assert letters.n_images == {"A": 0, "a": N, "B": N}
        letters.merge_classes(["a", "B"], "x")
        assert letters.statistics.former_names == {"a": "x", "B": "x", "b": "x"}
        letters.extend(*images("A"))
        assert refused(letters, "extend", "a")

    def test_it_is_kept_with_the_state_and_older_states_have_it_not(self, letters):
        config, tensors = letters.state()
        config = json.loads(json.dumps(config))
        again = ContinualClassifier.from_state(config, tensors)
        again.extend(*images("B"))
        assert again.n_images == {"A": N, "a": N, "b": N, "B": 3}
        old, tensors = learned(["A", "b"]).state()
        del old["settings"]["case_sensitive"]
        assert not ContinualClassifier.from_state(old, tensors).settings.case_sensitive
        config["settings"]["case_sensitive"] = False
        with pytest.raises(StatisticsError, match="differ only in case"):
            ContinualClassifier.from_state(config, letters.state()[1])

    def test_copies_merge_if_one_of_them_tells_by_case(self, letters):
        plain = learned(["a", "c"])
        both = [
            one.statistics.merge(other.statistics) for one, other in permutations([letters, plain])
        ]
        assert both[0].equals(both[1])
        assert all(stats.case_sensitive for stats in both)
        plain.merge(letters.statistics)
        assert plain.settings.case_sensitive
        assert plain.n_images == {"a": 2 * N, "c": N, "A": N, "b": N}

    def test_the_setting_is_true_or_false(self):
        with pytest.raises(StatisticsError, match="`case_sensitive` is 1; give True or False"):
            ContinualClassifier(12, case_sensitive=1)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "=1+1",
            r"the new name '=1\+1' begins with '=': spreadsheets would compute it; begin with",
        ),
        (
            "\x1b[31m",
            "the new name '.*' of 5 characters; a class name has 200 at most, all of which",
        ),
        ("a" * 201, "the new name 'a{20}' of 201 characters"),
        (
            "UNKNOWN",
            "the new name 'UNKNOWN' is what predictions say of images that are of no class",
        ),
        ("ERROR", "the new name 'ERROR' is what predictions say of .* take another name, such as"),
    ],
)
@pytest.mark.parametrize(
    "verb",
    [
        lambda head, name: head.rename({"bee": name}),
        lambda head, name: head.merge_classes(["bee", "ant"], name),
        lambda head, name: head.extend(images("ant")[0], [name] * 3),
        lambda head, name: head.extend(*images("ant"), class_names=["ant", name]),
        lambda head, name: head.statistics.with_classes([name]),
        lambda head, name: head.statistics.update(images("ant")[0], [name] * 3),
        lambda head, name: head.extend(images("ant")[0], [name] * 3, what="init_continual"),
    ],
    ids=["rename", "merge", "extend", "class_names", "places", "update", "init"],
)
def test_new_names_are_held_to_one_rule_by_every_verb(name, reason, verb):
    head = learned(["bee", "ant"])
    before = head.statistics
    with pytest.raises(DataError, match=reason):
        verb(head, name)
    assert head.statistics is before


@pytest.fixture
def odd():
    """A classifier of an earlier version, which took any name."""
    config, tensors = learned(["bee", "ant", "x"]).state()
    names = [{"x": "=x"}.get(name, name) for name in config["class_names"]]
    return ContinualClassifier.from_state(config | {"class_names": names}, tensors)


class TestNamesThatAreKnown:
    def test_they_go_on(self, odd):
        odd.extend(images("x")[0], ["=x"] * 3)
        assert odd.n_images == {"bee": N, "ant": N, "=x": N + 3}
        odd.subtract(images("x")[0], ["=x"] * 3)
        odd.rename({"bee": "=x", "=x": "bee"})
        odd.merge_classes(["bee", "ant"], "=x")
        odd.forget("=x")
        odd.extend(images("x")[0], ["=x"] * 3)
        assert odd.n_images["=x"] == 3

    def test_they_come_along_with_merged_statistics(self, odd):
        plain = learned(["bee"])
        plain.merge(odd.statistics)
        assert plain.n_images == {"bee": 2 * N, "ant": N, "=x": N}


def test_a_name_that_ends_in_nul_is_another_name():
    # numpy compares texts without the NUL characters at their ends
    stats = gather(*draw({"a": N}))
    assert not stats.repeated(images("a")[0], ["a\0"] * 3).any()
    head = learned(["a", "b"])
    assert "all of which can be printed" in refused(head, "extend", "a\0")

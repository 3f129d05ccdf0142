"""Knowledge learned again from features of another network: groups come along."""

import pytest
from deploy_helpers import labelled, make_continual

from learnkit.continual.classifier import ContinualClassifier
from learnkit.continual.fingerprints import group_codes
from learnkit.data.labelled_images import Labelled
from learnkit.inference.features import feature_rows
from learnkit.optimize.relearn import learned_again

COUNTS = {"ok": 9, "scratch": 6}


@pytest.mark.parametrize("memory", [16, 4])
def test_groups_come_along_as_far_as_they_are_remembered(memory):
    images, names = labelled(COUNTS)
    groups = [f"part {i % 3}" for i in range(len(names))]
    was, other = make_continual(memory=memory), make_continual(seed=1)
    was.extend(images, names, group=groups, progress=False)
    networks, learned = (was.network, other.network), Labelled(images, names)
    new, said = learned_again(was.continual, *networks, was.preprocessing, learned, progress=False)
    given = new.statistics.memory.given()
    assert ("groups only of images it remembered" in said) == (memory == 4)
    assert set(given.tolist()) <= {0, *group_codes(groups, len(groups)).tolist()}
    rows = feature_rows(
        other.network, was.preprocessing, images, bs=16, n_workers=0, progress=False
    )
    if memory == 16:
        whole = make_continual(memory=memory)
        whole.continual.extend(rows, names, groups=groups)
        assert new.statistics.equals(whole.continual.statistics)
        assert new.threshold.value == whole.continual.threshold.value


def test_groups_of_validation_images_come_along_too():
    images, names = labelled({"ok": 12, "scratch": 8})
    groups = [f"part {i % 3}" for i in range(len(names))]
    learn, apart = slice(0, None, 2), slice(1, None, 2)
    was, other = make_continual(), make_continual(seed=1)
    rows = feature_rows(was.network, was.preprocessing, images, bs=16, n_workers=0, progress=False)
    kept = rows[apart], names[apart], groups[apart]
    head = was.continual
    head.extend(rows[learn], names[learn], groups=groups[learn], validation=kept)
    assert head.knowledge.derived.n_fresh == 0 < len(head.knowledge.validation)
    learned = Labelled(images[learn], names[learn], Labelled(images[apart], names[apart]))
    networks = was.network, other.network
    new, said = learned_again(head, *networks, was.preprocessing, learned, progress=False)
    assert said.startswith("learned again from 10 images and 10 of validation")
    assert new.knowledge.derived.n_fresh == 0
    for one in (lambda head: head.statistics.memory), (lambda head: head.knowledge.validation):
        assert set(one(new).given().tolist()) == set(one(head).given().tolist()) != {0}


def test_without_groups_there_are_none():
    images, names = labelled(COUNTS)
    was, other = make_continual(COUNTS), make_continual(seed=1)
    networks, learned = (was.network, other.network), Labelled(images, names)
    new, said = learned_again(was.continual, *networks, was.preprocessing, learned, progress=False)
    assert said.startswith("learned again from 15 images")
    assert said.endswith("threshold and temperature")
    assert not new.statistics.memory.given().any()


def test_names_of_an_earlier_version_come_along_as_they_are():
    images, names = labelled(COUNTS)
    was, other = make_continual(COUNTS), make_continual(seed=1)
    config, tensors = was.continual.state()
    odd = {name: f"={name}" for name in config["class_names"]}
    head = ContinualClassifier.from_state(config | {"class_names": list(odd.values())}, tensors)
    networks, learned = (was.network, other.network), Labelled(images, [odd[n] for n in names])
    new, said = learned_again(head, *networks, was.preprocessing, learned, progress=False)
    assert said.startswith("learned again from 15 images")
    assert new.n_images == head.n_images
    assert new.classes == head.classes

"""Views: the order of the queue, what is said of surprises, and scores that are judged anew."""

import os
import time
from datetime import datetime

import numpy as np
import pytest
from deploy_helpers import shades
from labelling_helpers import Clock, client_of, ids_of, look, make_workplace, name, put
from numpy.testing import assert_array_equal

from learnkit.serving.labelling import workplace
from learnkit.serving.labelling.kept_features import KeptFeatures
from learnkit.serving.labelling.queue import Leases, asking_order, is_blind


class TestAskingOrder:
    names = ("d", "c", "b", "a")
    scores = np.array([1.0, 3, 3, np.nan])
    leads = np.array([0.1, 0.9, 0.2, 0.6])
    flagged = np.array([False, True, True, False])
    none = np.zeros(4, bool)

    def order(self, view, skipped=none):
        return asking_order(self.names, self.scores, self.leads, self.flagged, skipped, view)

    def test_unknown_ones_come_by_their_score_and_ties_by_name(self):
        assert self.order("unknown").tolist() == [2, 1]

    def test_unsure_ones_come_by_their_lead(self):
        assert self.order("unsure").tolist() == [0, 2, 1]

    def test_all_come_with_those_flagged_first(self):
        assert self.order("all").tolist() == [2, 1, 3, 0]

    @pytest.mark.parametrize("view", ["unknown", "unsure", "all"])
    def test_what_was_put_off_comes_last_whatever_it_is(self, view):
        skipped = np.array([False, False, True, False])
        assert self.order(view, skipped)[-1] == 2

    @pytest.mark.parametrize("view", ["unknown", "unsure", "all"])
    def test_the_order_is_that_of_a_slow_sort(self, view):
        rng = np.random.default_rng(0)
        names = [f"{i}é"[::-1] for i in rng.permutation(200)]
        scores, leads = rng.integers(0, 4, 200).astype(float), rng.integers(0, 11, 200) / 10
        flagged, skipped = rng.random((2, 200)) < 0.3
        keys = {
            "unknown": lambda i: (skipped[i], not flagged[i], -scores[i], names[i]),
            "unsure": lambda i: (skipped[i], leads[i], -scores[i], names[i]),
        }
        keys["all"] = keys["unknown"]
        asked = flagged | skipped | {"unknown": False, "unsure": leads < 0.5, "all": True}[view]
        wanted = sorted(np.flatnonzero(asked), key=keys[view])
        assert asking_order(names, scores, leads, flagged, skipped, view).tolist() == wanted

    def test_no_image_has_no_order(self):
        empty = np.zeros(0)
        assert asking_order([], empty, empty, empty.astype(bool), empty.astype(bool)).size == 0


def test_about_one_in_ten_is_asked_blind_and_always_the_same():
    ids = [f"{i * 7919:08x}{'0' * 24}" for i in range(1000)]
    found = [is_blind(one) for one in ids]
    assert 60 < sum(found) < 140
    assert found == [is_blind(one) for one in ids]


def test_a_lease_lasts_a_minute_from_when_it_was_last_asked_for():
    clock = Clock(0)
    leases = Leases(clock)
    assert leases.take("image", "ours")
    clock.now = 59
    assert not leases.take("image", "theirs")
    assert leases.take("image", "ours")
    clock.now = 118
    assert not leases.is_free("image", "theirs")
    clock.now = 119
    assert leases.take("image", "theirs")
    assert (leases.of("ours"), leases.of("theirs")) == ([], ["image"])


def sure_images(place, room, n):
    """Ids of images that the model is sure are `ok`."""
    put(room / "inbox", "sure", shades("ok", n, seed=77))
    look(place)
    found = [one for one in ids_of(place, "sure") if not place.scores.of(one)["flagged"]]
    return [one for one in found if place.scores.of(one)["said"] == "ok"]


def test_many_surprises_are_told(place, room):
    images = sure_images(place, room, 40)
    assert len(images) >= 30
    name(place, images[:19], "bad")
    assert "drift" not in [one["kind"] for one in place.views.state()["notes"]]
    name(place, images[19:20], "bad")
    (drift,) = (one for one in place.views.state()["notes"] if one["kind"] == "drift")
    assert drift["text"].startswith("many surprises: 20 of the last 30 labels")


def test_a_class_that_takes_much_of_another_is_told_with_pictures_of_both(place, room):
    images = sure_images(place, room, 20)
    name(place, images[:8], "ok")
    name(place, images[8:12], "bad")
    assert place.views.state()["notes"] == []
    name(place, images[12:13], "bad")
    (mixed,) = place.views.state()["notes"]
    assert mixed["kind"] == "mixed"
    assert "5 of today's 13 images that the model was sure are ok were named bad" in mixed["text"]
    assert [one["label"] for one in mixed["like"]] == ["bad", "ok"]


def test_today_ends_at_midnight_of_the_clock_on_the_wall(room, start):
    clock = Clock(datetime(2026, 3, 4, 23, 59, 50).timestamp())
    place = start(room, clock=clock)
    name(place, ids_of(place, "new")[0], "bad")
    assert place.views.state()["counts"]["done_today"] == 1
    clock.now += 20
    assert place.views.state()["counts"]["done_today"] == 0


def test_scores_are_those_of_the_model_as_it_is_now(place):
    new = ids_of(place, "new")
    name(place, new[0], "Scratch", new=True)
    place.scores.rescore(new[1:])
    rows = place.scores.features(new[1:])
    scoring = place.predictor.continual.scoring
    places = place.scores.places(new[1:])
    assert_array_equal(place.scores.ood[places], scoring.ood_scores(rows))
    assert_array_equal(place.scores.p[places], scoring.probs(rows).max(1))
    probs, scores = scoring.probs_and_ood_scores(rows)
    assert_array_equal(probs, scoring.probs(rows))
    assert_array_equal(scores, scoring.ood_scores(rows))


def test_after_the_start_what_is_not_judged_yet_is_judged_and_asked_then(room, start, monkeypatch):
    before = start(room, show="all")
    wanted = [one.id for one in before.views.order("all")]
    monkeypatch.setattr(workplace, "_AT_START", 2)
    place = make_workplace(room, show="all")
    place.desk.open()
    place.know()
    place.look(known_only=True)
    counts = place.views.state()["counts"]
    assert (counts["waiting"], counts["reading"], counts["sure"]) == (2, 5, 0)
    held = [one for one in wanted if one not in place.scores]
    found = place.views.queue(7, "all", held, held[0], "owner")
    assert len(found["images"]) == 2
    assert found["held"] == {}
    place.close()
    with client_of(make_workplace(room, show="all")) as (client, _):
        place = client.app.state.labelling.workplace
        end = time.monotonic() + 60
        while place.scores.unjudged() and time.monotonic() < end:
            time.sleep(0.01)
        assert [one.id for one in place.views.order("all")] == wanted
        assert place.views.state()["counts"]["reading"] == 0


def test_a_look_at_an_inbox_without_news_changes_nothing(place):
    version = place.book.version, place.scores.version
    assert place.look() == 0
    assert (place.book.version, place.scores.version) == version


def test_a_file_that_comes_back_as_it_was_is_asked_again(place, room):
    file, kept = room / "inbox" / "new0.png", room / "kept.png"
    (image,) = ids_of(place, "new0")
    os.rename(file, kept)
    place.look()
    assert place.book.pictures[image].state == "gone"
    assert place.book.counts()["waiting"] == 6
    os.rename(kept, file)
    look(place)
    assert place.book.pictures[image].state == "waiting"
    assert image in [one.id for one in place.views.order("all")]


def test_a_torn_line_of_the_kept_features_costs_its_row_alone(tmp_path):
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    about = [
        {"sha": f"s{i}", "name": f"{i}", "size": 1, "mtime": 2, "w": 3, "h": 4} for i in range(3)
    ]
    kept = KeptFeatures(tmp_path, 2, "body")
    kept.add(about, rows)
    kept.close()
    index = tmp_path / "features.jsonl"
    lines = index.read_text().splitlines()
    for torn, left in [
        (lines[2][:9], [0, 2]),
        ("7", [0, 2]),
        ("1],[2", [0, 2]),
        (lines[2], [0, 1, 2]),
    ]:
        index.write_text("\n".join([*lines[:2], torn, lines[3]]) + "\n")
        again = KeptFeatures(tmp_path, 2, "body")
        assert [i for i in range(3) if f"s{i}" in again] == left
        assert_array_equal(again.exact([f"s{i}" for i in left]), rows[left])
        again.close()

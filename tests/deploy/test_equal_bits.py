"""An image's numbers in bulk are the same to the bit, whatever stands beside it."""

import functools
import re

import numpy as np
import pytest
import torch
from deploy_helpers import labelled, make_continual, shades, strange
from threadpoolctl import threadpool_info, threadpool_limits

from learnkit.continual.classifier import ContinualClassifier
from learnkit.inference.prediction import conclude
from learnkit.models.eval_mode import torch_threads
from learnkit.uncertainty.blas_threads import single_blas_thread

COUNTS = {"ok": 9, "bad": 7, "ß/<b>": 8}
IMAGES = [*shades("ok", 8, seed=4), *strange(4), *shades("bad", 7, seed=5)]
NETWORKS = {"CNN": "test_efficientnet", "ViT": "test_vit"}
QUIET = {"n_workers": 0, "progress": False}


@functools.cache
def predictor(network):
    return make_continual(COUNTS, arch=NETWORKS[network])


def rows(table):
    """Rows of a table without their names, as bytes: NaN equals NaN."""
    return [row.drop("path").map(repr).tolist() for _, row in table.iterrows()]


@pytest.mark.parametrize("network", NETWORKS)
class TestRows:
    def test_of_a_file_alone_and_among_others_are_equal(self, network):
        found = predictor(network)
        together = rows(found.predict_files(IMAGES, **QUIET))
        alone = [rows(found.predict_files([image], **QUIET))[0] for image in IMAGES]
        assert together == alone

    def test_stay_beside_files_that_cannot_be_read(self, network):
        found = predictor(network)
        broken = [b"", *IMAGES[:5], b"", b"", *IMAGES[5:], b""]
        table = found.predict_files(broken, **QUIET)
        assert (table["error"].notna()).tolist() == [isinstance(item, bytes) for item in broken]
        assert rows(table[table["error"].isna()]) == rows(found.predict_files(IMAGES, **QUIET))

    def test_stay_in_another_order(self, network):
        found = predictor(network)
        backwards = rows(found.predict_files(IMAGES[::-1], **QUIET))
        assert backwards[::-1] == rows(found.predict_files(IMAGES, **QUIET))


def test_batches_have_as_many_images_as_asked_for(monkeypatch):
    found, seen = predictor("CNN"), []
    run = found.network.run
    monkeypatch.setattr(found.network, "run", lambda x: (seen.append(len(x)), run(x))[1])
    found.predict_batch([*IMAGES[:7]], bs=3, n_workers=0)
    found.predict_files([b"", IMAGES[0]], **QUIET)
    found.predict(IMAGES[0])
    assert seen == [3, 3, 3, 16, 1]


def test_numbers_that_are_not_finite_leave_those_of_others():
    head, generator = predictor("CNN").continual, np.random.default_rng(0)
    features = generator.random((16, head.n_features), np.float32)
    whole = conclude(head.scoring, features, None, head.classes)
    features[5, 3] = np.nan
    beside = conclude(head.scoring, features, None, head.classes)
    assert "not finite" in str(beside[5])
    for place in {*range(16)} - {5}:
        assert beside[place].ood_score == whole[place].ood_score
        assert np.array_equal(beside[place].probs, whole[place].probs)


def blas_libraries():
    """The libraries behind numpy's products."""
    return [one for one in threadpool_info() if one["user_api"] == "blas"]


class TestDerivation:
    @pytest.mark.parametrize("threads", [2, 4])
    @pytest.mark.parametrize(("n", "width"), [(60, 192), (300, 192), (700, 640)])
    def test_has_the_same_bits_with_any_number_of_threads(self, n, width, threads, monkeypatch):
        monkeypatch.setattr("learnkit.continual.closed_form.threads._WORTH_A_THREAD", 0)
        generator = torch.Generator().manual_seed(0)
        features = torch.rand(n, width, generator=generator)
        labels = [f"class {i % 7}" for i in range(n)]
        heads = []
        for used in (1, threads):
            with torch_threads(used), threadpool_limits(used, "blas"):
                heads.append(ContinualClassifier(width))
                heads[-1].extend(features, labels)
                assert torch.get_num_threads() == used
                assert {one["num_threads"] for one in blas_libraries()} == {used}
        one, several = (head.scoring for head in heads)
        assert one.threshold.value == several.threshold.value
        assert one.temperature == several.temperature
        assert one.standards == several.standards
        assert one.weight.tobytes() == several.weight.tobytes()
        assert one.distances.axes.tobytes() == several.distances.axes.tobytes()

    def test_that_ends_first_leaves_one_thread_to_another(self):
        with threadpool_limits(2, "blas"):
            with single_blas_thread:
                with single_blas_thread:
                    pass
                assert {one["num_threads"] for one in blas_libraries()} == {1}
            assert {one["num_threads"] for one in blas_libraries()} == {2}


def test_a_state_says_where_its_features_come_from():
    found = make_continual(COUNTS)
    (origin,) = found.continual.statistics.origins
    assert re.fullmatch(r"torch \S+ float32, cpu \w+, batches of 16", origin)
    report = found.extend(*labelled({"new": 3}), bs=4, n_workers=0, progress=False)
    assert found.continual.statistics.origins == (origin, origin.replace("16", "4"))
    assert any(note.startswith("features of different origins") for note in report.notes)

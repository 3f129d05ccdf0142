"""HALCON's error numbers: raised where they can be, and those of learnkit's own classes."""

import copy

import pytest
from halcon_helpers import new_model
from helpers import write_image_folder

import learnkit.errors
import learnkit.halcon as ha
from learnkit.halcon import errors

OF_CLASSES = {
    "BundleNotFoundError": 7780,
    "BundleCorruptError": 7780,
    "BundleVersionError": 7782,
    "BundleWriteError": 7781,
    "PredictionError": 7783,
    "DataError": 7925,
    "ImageReadError": 7790,
    "InterpretationError": 7851,
    "OptimizedModelError": 7916,
    "OptimizeError": 7917,
    "BackendUnavailableError": 7960,
    "ContinualUnsupportedError": 7970,
    "ContinualNotInitializedError": 7971,
    "ContinualAlreadyInitializedError": 7972,
    "ContinualPredictionError": 7973,
    "ContinualStateError": 7974,
    "InsufficientDiversityError": 7975,
    "OodUnsupportedError": 7985,
    "OodInsufficientDataError": 7986,
    "OodInternalError": 7987,
    "OodLockedError": 7988,
}


def code_of(function, *args):
    """The number of the error that a call raises."""
    with pytest.raises(ha.HOperatorError) as e:
        function(*args)
    return e.value.error_code


@pytest.mark.parametrize("name", OF_CLASSES)
def test_an_error_of_learnkits_has_halcons_number_and_stays_what_it_is(name):
    kind = getattr(learnkit.errors, name)
    found = errors.as_halcon_error(kind("told"))
    assert isinstance(found, ha.HOperatorError)
    assert isinstance(found, kind)
    assert (found.error_code, found.message) == (OF_CLASSES[name], "told")


def test_numbers_of_models_for_anomalies_are_there_and_no_operator_of_theirs_runs():
    names = ("UNTRAINED", "TRAINING_FAILED", "PARAM_TRAINED", "RESIZE", "DEPTH", "INPUT_DOMAIN")
    numbers = [getattr(errors, f"H_ERR_DL_ANOMALY_MODEL_{name}") for name in names]
    assert numbers == list(range(7881, 7887))
    assert errors.H_ERR_DL_GCAD_NETWORK_NOT_AVAILABLE == 7870
    assert code_of(ha.train_dl_model_anomaly_dataset, [], [], []) == 7912


def test_a_place_that_cannot_be_written_is_7781(continual, tmp_path):
    (tmp_path / "file").write_text("")
    assert code_of(ha.write_dl_model, continual, tmp_path / "file" / "x.hdl") == 7781


def test_a_layer_without_a_feature_map_is_7851(continual, dataset):
    sample = ha.read_dl_samples(dataset, [0])
    how = ("grad_cam", [], {"target_conv_layer": "1"})
    assert code_of(ha.gen_dl_model_heatmap, continual, sample, *how) == 7851


def test_the_size_is_fixed_by_ood_detection_7988(model, dataset):
    ha.fit_dl_out_of_distribution(model, dataset, [])
    assert code_of(ha.set_dl_model_param, model, "image_width", 64) == 7988
    assert code_of(ha.set_dl_model_param, model, "image_dimensions", [64, 32, 3]) == 7988
    assert ha.get_dl_model_param(model, "image_dimensions") == [32, 32, 3]


def test_several_labels_are_kept_and_not_learned_7789(tmp_path):
    write_image_folder(tmp_path / "in", {"a": 6, "b": 6})
    data = ha.read_dl_dataset_classification(str(tmp_path / "in"))
    for sample in data["samples"][::3]:
        sample["image_label_id"] = [0, 1]
    ha.split_dl_dataset(data, 50, 25, [])
    param = ha.create_dl_preprocess_param("classification", 32, 32, 3)
    data = ha.read_dict(ha.preprocess_dl_dataset(data, tmp_path, param, {"show_progress": 0}))
    places = ha.find_dl_samples(data["samples"], "image_label_id", [0, 1], "match")
    assert places == [0, 3, 6, 9]
    assert set(places) < set(ha.find_dl_samples(data["samples"], "image_label_id", 1, "contain"))
    assert [one["image_label_id"] for one in ha.read_dl_samples(data, places)] == [[0, 1]] * 4
    assert [one["image_label_id"] for one in ha.gen_dl_samples(data, places)] == [[0, 1]] * 4
    before, model = copy.deepcopy(data), new_model(data)
    assert code_of(ha.init_dl_continual_learning, model, data, []) == 7789
    ha.set_dl_model_param(model, "batch_size", 4)
    assert code_of(ha.train_dl_model_batch, model, ha.read_dl_samples(data, places)) == 7789
    assert data == before


def test_a_converted_model_says_what_it_is(optimised):
    assert ha.get_dl_model_param_s(optimised, "num_trainable_params") == 0
    assert "optimised" in ha.get_dl_model_param_s(optimised, "summary")

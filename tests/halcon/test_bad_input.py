"""Bad input: what no script should pass, and what scripts do pass."""

import copy
import json

import numpy as np
import pytest
import torch
from halcon_helpers import NETWORK, new_model
from helpers import write_image_folder

import learnkit.halcon as ha
from learnkit.halcon import errors

ARRAYS = (np.array([1, 2]), np.zeros((2, 2, 3), np.uint8), torch.ones(2))
NO_IDS = tuple(8 + one for one in ARRAYS)
ODD = (None, float("nan"), -3, 1.5, b"x", ["a", 1], [[1], [2]], {"x": 1}, {1}, object(), "a\0b")
PIXELS = np.full((32, 32, 3), 90, np.uint8)


def codes(function, *args):
    """The numbers of the errors that a call raises, with each odd value in place of `ODD`."""
    found = []
    for value in ODD:
        with pytest.raises(ha.HError) as e:
            function(*[value if one is ODD else copy.deepcopy(one) for one in args])
        found.append(e.value.error_code)
    return set(found)


@pytest.mark.parametrize(
    ("name", "args", "number"),
    [
        ("read_dl_model", [ODD], 1201),
        ("read_dict", [ODD], 1201),
        ("json_to_dict_s", [ODD], 1201),
        ("deserialize_dl_model", [ODD], None),
        ("get_dict_tuple", [ODD, "a"], 1201),
        ("read_dl_dataset_classification", [ODD], None),
        ("get_image_size", [ODD], 7790),
        ("apply_dl_model", [ODD, [{"image": PIXELS}]], 2404),
        ("get_dl_device_param", [ODD, "runtime"], 2404),
        ("preprocess_dl_samples", [[{"image": PIXELS}], ODD], None),
        ("split_dl_dataset", [ODD, 50, 25, []], None),
        ("find_dl_samples", [[{"a": 1}], ODD, 1], None),
        ("find_dl_samples", [[{"a": 1}], "a", 1, ODD], None),
        ("create_dl_preprocess_param", ["classification", ODD, 32, 3], None),
        ("create_dl_preprocess_param", [ODD, 32, 32, 3], None),
        ("HDevProcedure", [ODD], None),
        ("get_dl_classifier_result", [[{"classification_confidences": [1]}], ODD, "x"], 7911),
    ],
)
def test_no_argument_is_believed(name, args, number):
    found = codes(getattr(ha, name), *args)
    assert number is None or number in found


@pytest.mark.parametrize("value", [one for one in ODD[1:] if one != 1.5])
def test_no_value_of_a_parameter_is_believed(dataset, value):
    sample = {"image": PIXELS.copy()}
    with pytest.raises(ha.HError):
        ha.augment_dl_samples(sample, {"rotate_range": value})
    assert (sample["image"] == PIXELS).all()
    with pytest.raises(ha.HError):
        ha.gen_dl_samples(dataset, value, "off", [])


@pytest.mark.parametrize("value", [{"x": 1}, [{"x": 1}], {8}, *NO_IDS, [NO_IDS[0]]], ids=repr)
@pytest.mark.parametrize("key", ["measures", "class_names_to_evaluate", "class_ids_to_evaluate"])
def test_what_is_no_measure_and_no_class_is_refused(dataset, continual, key, value):
    with pytest.raises(ha.HError):
        ha.evaluate_dl_model(dataset, continual, "split", "test", {key: value})


STRATEGIES = {
    "evaluate": [{"x": 1}, {"measures": "most"}, {"show_progress": "x"}],
    "augment": [{"x": 1}, {"mirror": "x"}],
    "change": [
        {"epochs": one} for one in ("x", [-1], [1.5], [True], [None], [10**400], [{"x": 1}])
    ],
    "serialize": [
        *({"basename": one} for one in (5, {"x": 1}, "a\0b", [1, 2])),
        *({"type": "epochs", "epochs": one} for one in ("x", [-1], [1.5], [None])),
    ],
    "display": [{"x": 1}],
}
KEY_OF = {"evaluate": "evaluation_param", "augment": "augmentation_param"}
KEY_OF |= {"change": "change_strategies", "serialize": "serialization_strategies"}


@pytest.mark.parametrize(
    ("name", "value"), [(k, v) for k, some in STRATEGIES.items() for v in some]
)
def test_a_training_is_refused_before_its_first_step(dataset, name, value):
    model = new_model(dataset)
    before = copy.deepcopy(model.learner.model.state_dict())
    change = {"model_param": "momentum", "values": [0.5]}
    value = change | value if name == "change" else value
    with pytest.raises(ha.HError):
        ha.create_dl_train_param(model, 1, 1, "false", 1, [name], [value])
    # nor is a dictionary believed that was changed afterwards
    param = ha.create_dl_train_param(model, 1, 1, "false", 1)
    param[KEY_OF.get(name, "display_param")] = value
    with pytest.raises(ha.HError):
        ha.train_dl_model(dataset, model, param, 0)
    now = model.learner.model.state_dict()
    assert all(torch.equal(now[key], before[key]) for key in before)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("evaluate_before_train", one) for one in (*ARRAYS, "x", 1.5, None, {"x": 1})),
        ("evaluation_param", {"class_ids_to_evaluate": 7}),
        ("display_param", {"enabled": "x"}),
    ],
)
def test_no_parameter_of_a_training_is_believed(dataset, key, value):
    model = new_model(dataset)
    param = ha.create_dl_train_param(model, 1, 1, "false", 1)
    with pytest.raises(ha.HError):
        ha.train_dl_model(dataset, model, param | {key: value}, 0)


@pytest.mark.parametrize("value", ARRAYS, ids=["tuple", "image", "tensor"])
def test_arrays_are_no_single_values_and_no_dictionaries(dataset, continual, value):
    (sample,) = ha.read_dl_samples(dataset, [0])
    change = {"model_param": "momentum", "epochs": [1], "values": [0.5]}
    calls = {
        "of a seed": lambda: ha.create_dl_train_param(continual, 1, 1, "false", value),
        "of a name": lambda: ha.create_dl_train_param(continual, 1, 1, "false", 1, [value], [{}]),
        "of a key": lambda: ha.create_dl_train_param(
            continual, 1, 1, "false", 1, "change", [change | {"model_param": value}]
        ),
        "of a file": lambda: ha.create_dl_train_param(
            continual, 1, 1, "false", 1, "serialize", [{"type": value}]
        ),
        "of a layer": lambda: ha.gen_dl_model_heatmap(
            continual, sample, "grad_cam", [], {"target_conv_layer": value}
        ),
        "of a dataset": lambda: ha.init_dl_continual_learning(new_model(dataset), value, []),
    }
    for call in calls.values():
        with pytest.raises(ha.HError):
            call()


def test_numbers_in_arrays_are_the_numbers(continual):
    asked = ha.create_dl_train_param(continual, 1, 1, "false", np.array([7]))
    assert asked["seed_rand"] == 7
    assert ha.create_dl_train_param(continual, 1, 1, "false", torch.tensor(8))["seed_rand"] == 8
    assert ha.create_dl_train_param(continual, 1, 1, "false", np.array([]))["seed_rand"] >= 0


def test_a_label_in_text_is_no_id(dataset, continual):
    for sample in dataset["samples"]:
        sample["image_label_id"] = ["1"]
    with pytest.raises(ha.HError, match="the model knows"):
        ha.evaluate_dl_model(dataset, continual, "split", "test", [])


@pytest.mark.parametrize("name", ["device", "ood_threshold"])
@pytest.mark.parametrize("value", [[], [1, 2], ["a", "b", "c"]], ids=repr)
def test_a_parameter_of_one_value_takes_no_other_number_of_them(continual, name, value):
    with pytest.raises(ha.HOperatorError) as e:
        ha.set_dl_model_param(continual, name, value)
    assert e.value.error_code == errors.H_ERR_DL_MODEL_UNSUPPORTED_GENVALUE


def test_dictionaries_are_no_names():
    one = {"a": 1}
    ha.remove_dict_key(one, [{"a": 1}, "b"])
    assert one == {"a": 1}
    with pytest.raises(ha.HOperatorError) as e:
        ha.query_available_dl_devices([{"a": 1}], [1])
    assert e.value.error_code == 7911
    results = [{"classification_confidences": [1.0]}]
    with pytest.raises(ha.HOperatorError) as e:
        ha.get_dl_classifier_result(results, np.arange(3), "confidences")
    assert e.value.error_code == 7914


def test_what_must_be_text_says_so():
    with pytest.raises(ha.HOperatorError, match=r"`file_name` is 5; it is the name of a file") as e:
        ha.write_dict({}, 5)
    assert e.value.error_code == errors.H_ERR_WIPT1 + 1


def test_numbers_of_numpy_and_tuples_of_one_are_numbers(images):
    data = ha.read_dl_dataset_classification([str(images)], ["last_folder"])
    ha.split_dl_dataset(data, [np.float32(50)], (25,), [])
    assert [one["split"] for one in data["samples"]].count("train") == 18
    param = ha.create_dl_preprocess_param(["classification"], np.int64(8), [9], np.array([3]))
    assert (param["image_width"], param["image_height"]) == (8, 9)
    json.dumps(param)
    places = np.array(ha.find_dl_samples(data["samples"], "image_label_id", np.int32(1), "match"))
    assert len(ha.gen_dl_samples(data, places[:2], [], {})) == 2
    model = ha.read_dl_model((NETWORK,))
    ha.set_dl_model_param(model, "class_names", np.array(["a", "b"]))
    ha.set_dl_model_param(model, "class_ids", np.array([7, 3]))
    ha.set_dl_model_param(model, ["batch_size"], (np.int8(4),))
    assert ha.get_dl_model_param_s(model, "batch_size") == 4
    assert ha.get_dl_model_param(model, "class_ids") == [7, 3]


@pytest.mark.parametrize("value", [1.0, -1, True, None, "3", [0], 2**63])
def test_ids_that_are_no_ids_are_refused(dataset, model, value):
    samples = ha.read_dl_samples(dataset, list(range(0, 36, 6)))
    samples[2]["image_label_id"] = [value] if value != [0] else [[0]]
    with pytest.raises(ha.HOperatorError) as e:
        ha.train_dl_model_batch(model, samples)
    assert e.value.error_code in (errors.H_ERR_DL_CLASS_IDS_INVALID, errors.H_ERR_CTPL_WTYP)
    if value is True or value == [0]:
        return  # in a dataset, JSON's true is 1, and a tuple is no tuple of tuples
    dataset["samples"][0]["image_label_id"] = value
    with pytest.raises(ha.HError):
        ha.init_dl_continual_learning(model, dataset, [])
    assert not model.continual


@pytest.mark.parametrize("key", ["samples", "class_names", "class_ids"])
def test_datasets_without_a_key_are_7925(dataset, continual, key):
    before = ha.serialize_dl_model(continual)
    del dataset[key]
    with pytest.raises(ha.HOperatorError) as e:
        ha.extend_dl_continual_learning(continual, dataset, [])
    assert e.value.error_code == errors.H_ERR_DL_INVALID_DATASET
    assert ha.serialize_dl_model(continual) == before


@pytest.mark.parametrize("key", ["image_file_name", "dlsample_file_name"])
@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "C:\\x.png", "", "a\0.png"])
def test_no_file_is_read_outside_of_its_folder(dataset, continual, tmp_path, key, name):
    dataset["samples"][0][key] = name
    calls = {
        "image_file_name": lambda: ha.gen_dl_samples(dataset, [0], "image_only", []),
        "dlsample_file_name": lambda: ha.evaluate_dl_model(
            dataset, continual, "sample_indices", [0], []
        ),
    }
    with pytest.raises(ha.HError, match="must lie below"):
        calls[key]()
    if key == "image_file_name":
        with pytest.raises(ha.HError, match="must lie below"):
            ha.preprocess_dl_dataset(dataset, tmp_path, dataset["preprocess_param"], [])
        assert list(tmp_path.iterdir()) == []


def test_unknown_keys_of_a_dataset_are_kept(images, tmp_path):
    data = ha.read_dl_dataset_classification(str(images))
    data["line"], data["samples"][3]["shift"] = {"n": 7}, "late"
    ha.split_dl_dataset(data, 50, 25, [])
    param = ha.create_dl_preprocess_param("classification", 8, 8, 3, gen_param={"own": [1]})
    file = ha.preprocess_dl_dataset(data, tmp_path, param, {"show_progress": 0})
    found = ha.read_dict(file)
    assert (found["line"], found["samples"][3]["shift"]) == ({"n": 7}, "late")
    assert found["preprocess_param"]["own"] == [1]
    assert ha.read_dl_samples(found, [3])[0]["shift"] == "late"


def test_samples_without_a_label_are_told_unless_ignored(dataset):
    del dataset["samples"][4]["image_label_id"]
    with pytest.raises(ha.HError, match="has no 'image_label_id'; label it, or set"):
        ha.gen_dl_samples(dataset, [4], "off", [])
    (sample,) = ha.gen_dl_samples(dataset, [4], "off", {"ignore_missing_labels": "true"})
    assert sample["image_label_id"] == []
    assert "image_label_id" not in ha.gen_dl_samples(dataset, [4], "image_only", [])[0]


def test_a_handle_is_not_cleared_in_part(dataset):
    model = ha.read_dl_model(NETWORK)
    with pytest.raises(ha.HOperatorError) as e:
        ha.clear_dl_model([model, "no handle"])
    assert e.value.error_code == errors.H_ERR_WRONG_HANDLE_TYPE
    assert ha.get_dl_model_param_s(model, "type") == "classification"


def test_two_models_do_not_know_of_each_other(dataset):
    one, other = new_model(dataset), new_model(dataset, learning_rate=0.5)
    samples = ha.read_dl_samples(dataset, list(range(0, 36, 6)))
    before = ha.apply_dl_model(one, samples, [])
    ha.train_dl_model_batch(other, samples)
    ha.set_dl_model_param(other, "class_names", ["crack", "good", "rust"])
    ha.clear_dl_model(other)
    assert ha.apply_dl_model(one, samples, []) == before
    assert ha.get_dl_model_param_s(one, "learning_rate") == 0.001


def test_the_order_of_keys_does_not_matter(dataset):
    turned = dict(reversed(dataset.items()))
    turned["samples"] = [dict(reversed(one.items())) for one in dataset["samples"]]
    answers = []
    for data in (dataset, turned):
        model = new_model(dataset)
        ha.init_dl_continual_learning(model, data, [])
        answers.append(ha.apply_dl_model(model, ha.read_dl_samples(data, [0, 20]), []))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("param", "said"),
    [
        ({}, "has 'num_epochs' None; create_dl_train_param makes it"),
        ({"num_epochs": "2"}, "has 'num_epochs' '2'"),
        ({"num_epochs": 1, "seed_rand": -1}, "has 'seed_rand' -1"),
        ({"num_epochs": 1, "augmentation_param": {"flip": 1}}, "does not know 'flip'"),
        ({"num_epochs": 1, "serialization_strategies": {"type": "worst"}}, "the type 'worst'"),
        ({"num_epochs": 1, "change_strategies": {"model_param": "x"}}, "the 'model_param' 'x'"),
    ],
)
def test_parameters_of_a_training_are_checked_again(model, dataset, param, said):
    with pytest.raises(ha.HError, match=said):
        ha.train_dl_model(dataset, model, param, 0)


def test_parameters_of_a_training_that_json_has_changed_are_those(model, dataset):
    strategy = {"type": "epochs", "epochs": 9}
    param = {"num_epochs": [1], "seed_rand": 1, "serialization_strategies": strategy}
    change = {"model_param": "momentum", "epochs": 1, "values": 0.5}
    results, infos, _ = ha.train_dl_model(dataset, model, {**param, "change_strategies": change}, 0)
    assert (len(results), len(infos)) == (3, 1)


def test_a_model_is_evaluated_before_its_training_when_asked(model, dataset):
    names, values = ["evaluate_before_train", "display"], ["true", {"num_images": 2}]
    param = ha.create_dl_train_param(model, 1, 1, "false", 1, names, values)
    assert param["display_param"]["num_images"] == 2
    _, _, found = ha.train_dl_model(dataset, model, {**param, "serialization_strategies": []}, 0)
    assert [one["epoch"] for one in found] == [0, 1]
    with pytest.raises(ha.HError, match="'display' does not know 'speed'"):
        ha.create_dl_train_param(model, 1, 1, "false", 1, "display", {"speed": 1})


def test_values_of_momentum_that_are_none_are_refused_where_they_are_set(model):
    change = {"model_param": "momentum", "epochs": [2], "values": [7]}
    with pytest.raises(ha.HOperatorError) as e:
        ha.create_dl_train_param(model, 3, 1, "false", 1, "change", change)
    assert e.value.error_code == 7914


def test_batches_of_another_size_are_7784_and_with_a_multiplier_7800(dataset):
    samples = ha.read_dl_samples(dataset, [0, 20, 30])
    for multiplier, number in ((1, 7784), (2, 7800)):
        model = new_model(dataset, batch_size_multiplier=multiplier)
        with pytest.raises(ha.HOperatorError) as e:
            ha.train_dl_model_batch(model, samples)
        assert e.value.error_code == number


def test_a_seed_is_a_number_and_other_settings_have_no_effect():
    for value in (None, "x", -1, 1.5, [1, 2], 2**32):
        with pytest.raises(ha.HError, match="'seed_rand' is"):
            ha.set_system("seed_rand", value)
    with pytest.warns(UserWarning, match="'cudnn_deterministic' has no effect here"):
        ha.set_system("cudnn_deterministic", "true")


def test_places_that_cannot_be_written_are_7781(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    below = str(tmp_path / "file" / "x")
    quiet = {"show_progress": "false"}
    calls = [
        lambda: ha.write_dict({}, below),
        lambda: ha.preprocess_dl_dataset(dataset, below, dataset["preprocess_param"], quiet),
        lambda: ha.write_dl_samples(
            {**dataset, "dlsample_dir": below}, [0], ha.read_dl_samples(dataset, [0])
        ),
    ]
    for call in calls:
        with pytest.raises(ha.HOperatorError) as e:
            call()
        assert e.value.error_code == errors.H_ERR_DL_FILE_WRITE


def test_names_of_errors_are_halcons_with_and_without_model():
    assert errors.H_ERR_DL_MODEL_UNSUPPORTED_GENPARAM == 7911
    assert errors.H_ERR_DL_UNSUPPORTED_GENPARAM == 7911
    with pytest.raises(AttributeError, match="has no 'H_ERR_DL_NONE'"):
        _ = errors.H_ERR_DL_NONE


def test_json_is_read_in_halcons_forms_when_asked(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [true, [null]], "b": {"c": false}}')
    names = ["convert_json_arrays_to", "json_value_true", "json_value_null"]
    found = ha.read_dict(str(tmp_path / "a.json"), names, ["dict", 1, "none"])
    assert found == {"a": {0: 1, 1: {0: "none"}}, "b": {"c": False}}
    with pytest.raises(ha.HOperatorError, match="takes 'dict' or 'tuple'"):
        ha.json_to_dict_s("{}", "convert_json_arrays_to", "list")
    with pytest.raises(ha.HOperatorError) as e:
        ha.json_to_dict_s("{}", "arrays", "list")
    assert e.value.error_code == 7911
    with pytest.raises(ha.HOperatorError, match="one value for each"):
        ha.json_to_dict_s("{}", names, "dict")


def test_what_json_cannot_hold_is_told_before_images_are_read(tmp_path):
    write_image_folder(tmp_path / "in", {"a": 2})
    data = ha.read_dl_dataset_classification(str(tmp_path / "in"))
    data["samples"][1]["heat"] = float("nan")
    param = ha.create_dl_preprocess_param("classification", 8, 8, 3)
    with pytest.raises(ha.HError, match="cannot be written as JSON"):
        ha.preprocess_dl_dataset(data, tmp_path / "out", param, [])
    assert not (tmp_path / "out").exists()


def test_old_values_of_normalization_are_those_of_today():
    size = ("classification", 8, 8, 3, [], [])
    for old, new in (("true", "first_channel"), ("false", "none")):
        assert ha.create_dl_preprocess_param(*size, old)["normalization_type"] == new
    with pytest.raises(ha.HError, match="`domain_handling` is 'true'"):
        ha.create_dl_preprocess_param(*size, "none", "true")
    for low, high in ((0, "x"), (128, -127)):
        with pytest.raises(ha.HError, match="they are numbers, the first smaller"):
            ha.create_dl_preprocess_param(*size[:4], low, high)


def test_a_matrix_may_be_drawn_alone():
    assert ha.gen_confusion_matrix([0, 1], [0, 1], "return_matrix", "none").size == 0
    for labels, name, value in (([0, "a"], [], []), ([0, 1], "return_matrix", "all")):
        with pytest.raises(ha.HError):
            ha.gen_confusion_matrix(labels, labels, name, value)


def test_lines_of_hdevelop_run():
    assert ha.stop() is None
    assert ha.disp_continue_message([], "black", "true") is None
    call = ha.HDevProcedureCall(ha.HDevProcedure("find_dl_samples"))
    with pytest.raises(ha.HError, match="missing a required argument: 'samples'"):
        call.execute()

"""Models: parameters, applying, training, learning on, optimising; errors by their numbers."""

import copy

import numpy as np
import pytest
import torch
from halcon_helpers import NETWORK, new_model

import learnkit.halcon as ha
from learnkit.errors import LearnkitError

GREY = np.full((32, 32, 3), 90, np.uint8)


def code_of(function, *args, **kwargs):
    """HALCON's number of the error that a call raises."""
    with pytest.raises(ha.HOperatorError) as e:
        function(*args, **kwargs)
    assert isinstance(e.value, LearnkitError)
    assert e.value.message == str(e.value)
    return e.value.error_code


def train_param(model, n=1, **given):
    """Parameters of a short training that writes nothing."""
    param = ha.create_dl_train_param(model, n, 1, "false", 1, [*given], [*given.values()])
    return param if "serialize" in given else {**param, "serialization_strategies": []}


def test_a_model_has_halcons_parameters(model):
    wanted = {
        "type": ["classification"],
        "class_names": ["crack", "good", "rust"],
        "class_ids": [0, 1, 2],
        "image_dimensions": [32, 32, 3],
        "image_range_min": [-127.0],
        "image_range_max": [128.0],
        "batch_size": [6],
        "momentum": [0.9],
        "solver_type": ["sgd"],
        "precision": ["float32"],
        "precision_is_converted": ["false"],
        "optimize_for_inference": ["false"],
        "runtime": ["cpu"],
    }
    assert {name: ha.get_dl_model_param(model, name) for name in wanted} == wanted
    assert ha.get_dl_model_param_s(model, "image_width") == 32
    with pytest.raises(ha.HTupleConversionError, match="3 elements"):
        ha.get_dl_model_param_s(model, "class_names")


@pytest.mark.parametrize("name", ["learn_rate", "ood_threshold", "classes"])
def test_unknown_parameters_are_7788(model, name):
    assert code_of(ha.get_dl_model_param, model, name) == 7788


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("type", "segmentation", 7788),
        ("batch_size", 0, 7914),
        ("batch_size", 2.5, 7914),
        ("batch_size", True, 7914),
        ("learning_rate", -1, 7914),
        ("learning_rate", "fast", 7914),
        ("momentum", 1.5, 7914),
        ("solver_type", "lion", 7914),
        ("class_names", [], 7914),
        ("class_names", [1], 7914),
        ("image_dimensions", [32, 32], 7914),
        ("image_num_channels", 17, 7914),
        ("image_num_channels", 0, 7914),
        ("image_width", 0, 7914),
        ("device", "cpu", 7914),
        ("runtime", "tpu", 7914),
        ("meta_data", {"a": 1}, 7914),
        ("optimize_for_inference", "maybe", 7914),
        ("ood_threshold", 3.0, 7788),
        ("class_ids", [], 7802),
        ("class_ids", [0, 1, 65_535], 7793),
        ("class_ids", [0, 1, -1], 7793),
        ("class_ids", [0, 1, True], 7793),
        ("class_ids", [0, 1, 1], 7792),
    ],
)
def test_wrong_settings_are_refused_by_number_and_change_nothing(dataset, name, value, code):
    model = ha.read_dl_model(NETWORK)
    before = copy.deepcopy(model.parameters), model.names, model.ids, model.size
    assert code_of(ha.set_dl_model_param, model, name, value) == code
    assert before == (model.parameters, model.names, model.ids, model.size)


def test_other_numbers_of_names_and_ids_are_told_when_they_are_used(dataset):
    model = new_model(dataset, class_ids=[4, 5])
    assert code_of(ha.init_dl_continual_learning, model, dataset, []) == 7793


def test_what_is_no_handle_is_2404(model):
    for wrong in (None, "model", [], [model, model], {}):
        assert code_of(ha.get_dl_model_param, wrong, "type") == 2404
    ha.clear_dl_model([model])
    assert code_of(ha.get_dl_model_param, model, "type") == 2404
    assert code_of(ha.apply_dl_model, model, [{"image": GREY}], []) == 2404
    assert code_of(ha.clear_dl_model, model) == 2404


def test_models_of_halcons_own_files_are_refused_with_a_reason(tmp_path):
    (tmp_path / "parts.hdl").write_bytes(b"HALCON")
    with pytest.raises(ha.HOperatorError, match="HALCON's own files are closed") as e:
        ha.read_dl_model(tmp_path / "parts.hdl")
    assert e.value.error_code == 7780
    assert code_of(ha.read_dl_model, tmp_path / "absent.hdl") == 7780
    assert code_of(ha.read_dl_model, tmp_path) == 7780


def test_bytes_that_are_no_model_are_7780(continual_bytes):
    for damaged in (
        b"",
        b"abc",
        continual_bytes[:-100],
        continual_bytes[: len(continual_bytes) // 2],
    ):
        assert code_of(ha.deserialize_dl_model, damaged) == 7780


def test_results_have_halcons_keys_in_descending_order(continual, dataset):
    samples = ha.read_dl_samples(dataset, [0, 20])
    for result in ha.apply_dl_model(continual, samples, []):
        confidences = result["classification_confidences"]
        assert confidences == sorted(confidences, reverse=True)
        assert set(result["classification_class_ids"]) == {0, 1, 2}
        assert result["ood_result"] in (0, 1)
        assert isinstance(result["ood_score"], float)
        assert isinstance(result["ood_threshold"], float)
    alone = ha.apply_dl_model(continual, samples[0], [])
    assert alone[0]["classification_class_names"][0] == "crack"


def test_features_may_be_asked_for(continual, dataset):
    (result,) = ha.apply_dl_model(continual, ha.read_dl_samples(dataset, [0]), "features")
    assert len(result["features"]) == continual.predictor.continual.statistics.n_features


@pytest.mark.parametrize(
    ("samples", "outputs", "code"),
    [
        ([], [], 7915),
        ([{"image_id": 1}], [], 7783),
        ([{"image": GREY}], ["softmax"], 7787),
        ([{"image": GREY.astype(np.int64)}], [], 7790),
        ([{"image": GREY / 255}], [], 7791),
        ([{"image": GREY.astype(np.float32)}], [], 7791),
        ([{"image": GREY.astype(np.float32) - 240}], [], 7791),
        ([{"image": GREY.astype(np.float32) - 126.5}], [], 7791),
        ([{"image": np.full((8, 8, 3), np.nan)}], [], 7791),
        ([{"image": np.full((8, 8, 3), -np.inf)}], [], 7791),
        ([{"image": "file.png"}], [], 7790),
        ("file.png", [], 7790),
        ([GREY], [], 7790),
    ],
)
def test_wrong_samples_are_refused_by_number(continual, samples, outputs, code):
    assert code_of(ha.apply_dl_model, continual, samples, outputs) == code


def test_shifted_floats_are_the_image_they_came_from(continual):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    shifted = pixels.astype(np.float32) - 127
    one, other = ha.apply_dl_model(continual, [{"image": pixels}, {"image": shifted}], [])
    assert one == other


def test_a_model_without_classes_is_7910():
    model = ha.read_dl_model(NETWORK)
    assert code_of(ha.apply_dl_model, model, {"image": GREY}, []) == 7910
    ha.init_dl_continual_learning(model, [], {"reset_class_information": "true"})
    assert model.continual
    assert code_of(ha.apply_dl_model, model, {"image": GREY}, []) == 7910


def test_training_gives_losses_notes_and_evaluations(model, dataset, tmp_path):
    best = {"type": "best", "basename": str(tmp_path / "best")}
    final = {"type": "final", "basename": str(tmp_path / "final")}
    param = ha.create_dl_train_param(
        model,
        2,
        1,
        "false",
        1,
        ["serialize", "serialize", "augment"],
        [best, final, {"mirror": "c"}],
    )
    results, infos, evaluations = ha.train_dl_model(dataset, model, param, 0)
    assert len(results) == 2 * (18 // 6)
    assert all(one["total_loss"] > 0 for one in results)
    assert [one["epoch"] for one in infos] == [1, 2]
    assert [one["epoch"] for one in evaluations] == [1, 2]
    assert set(evaluations[0]["result"]["global"]) == {"top1_error"}
    for name in ("best", "final"):
        read = ha.read_dl_model(tmp_path / f"{name}.hdl")
        assert ha.get_dl_model_param(read, "class_names") == ["crack", "good", "rust"]
        told = ha.read_dict(tmp_path / f"{name}_info.json", [], [])
        assert told["train_infos"][0]["epoch"] == 1


@pytest.mark.parametrize(
    "asked", [{"class_ids_to_evaluate": 1}, {"class_names_to_evaluate": "rust"}]
)
def test_the_best_model_is_chosen_by_all_images_whatever_classes_are_asked_for(
    dataset, tmp_path, monkeypatch, asked
):
    monkeypatch.chdir(tmp_path)
    alone = copy.deepcopy(dataset)
    for sample in alone["samples"]:  # no validation image of one class: its recall is NaN
        if sample["image_label_id"] == [2] and sample["split"] == "validation":
            sample["split"] = "test"
    model = new_model(alone)
    asked = {"measures": ["recall", "absolute_confusion_matrix"]} | asked
    param = train_param(model, evaluate=asked, serialize={"basename": "model_best"})
    _, infos, evaluations = ha.train_dl_model(alone, model, param, 0)
    place = asked.get("class_ids_to_evaluate", 2)
    assert set(evaluations[0]["result"]) >= {f"class_id_{place}"}
    assert "global" not in evaluations[0]["result"]
    told = ha.read_dict("model_best_info.json", [], [])
    own = told["evaluation_infos"][0]["result"]
    samples = own["evaluated_samples"]
    pairs = zip(samples["top1_predictions"], samples["image_label_ids"], strict=True)
    wrong = [guess != truth for guess, truth in pairs]
    assert infos[0]["best"]["top1_error"] == pytest.approx(sum(wrong) / len(wrong))
    # of no image: JSON has no NaN, and this reader takes none
    assert place == 1 or own["class_id_2"]["recall"] is None
    assert np.shape(own["absolute_confusion_matrix"]) == (3, 3)


def test_trainings_of_one_seed_are_one(dataset):
    losses = []
    for _ in range(2):
        model = new_model(dataset)
        param = train_param(model, augment={"mirror": "rc", "augmentation_percentage": 60})
        losses.append(ha.train_dl_model(dataset, model, param, 0)[0])
    assert losses[0] == losses[1]


def test_a_training_goes_on_at_an_epoch_and_changes_rates(model, dataset):
    change = {"model_param": "learning_rate", "epochs": [2], "values": [0.5]}
    param = train_param(model, 3, change=change)
    _, infos, _ = ha.train_dl_model(dataset, model, param, 1)
    assert [one["epoch"] for one in infos] == [2, 3]
    assert [one["model_params"]["learning_rate"] for one in infos] == [0.001, 0.5]


def test_batches_may_be_gathered(dataset):
    model = new_model(dataset, batch_size_multiplier=3, solver_type="adam")
    results, _, _ = ha.train_dl_model(dataset, model, train_param(model), 0)
    assert len(results) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d, m: d.pop("dlsample_dir"), "is not preprocessed; call preprocess_dl_dataset"),
        (
            lambda d, m: ha.set_dl_model_param(m, "batch_size", 19),
            "18 training samples and a batch has 19",
        ),
        (
            lambda d, m: ha.set_dl_model_param(m, "class_names", ["a", "b", "c"]),
            "differ by 'a', 'b'",
        ),
    ],
)
def test_trainings_that_cannot_be_are_told(model, dataset, change, said):
    change(dataset, model)
    with pytest.raises(ha.HError, match=said):
        ha.train_dl_model(dataset, model, train_param(model), 0)


@pytest.mark.parametrize("start", [-1, 2, "0"])
def test_the_first_epoch_lies_within_the_training(model, dataset, start):
    with pytest.raises(ha.HError, match=r"it lies in 0\.\.1"):
        ha.train_dl_model(dataset, model, train_param(model), start)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((0, 1, "false", 1, [], []), "`num_epochs` is 0"),
        ((1, 0, "false", 1, [], []), "`evaluation_interval_epochs` is 0"),
        ((1, 1, "false", 1, ["anneal"], [{}]), "'anneal' is unknown"),
        ((1, 1, "false", 1, ["augment"], []), "0 values for the 1 names"),
        ((1, 1, "perhaps", 1, [], []), "'enable_display' is 'perhaps'"),
        (
            (1, 1, "false", 1, ["serialize"], [{"type": "worst"}]),
            "takes 'best', 'epochs' or 'final'",
        ),
        ((1, 1, "false", 1, ["change"], [{"model_param": "class_ids"}]), "takes 'learning_rate'"),
    ],
)
def test_wrong_parameters_of_a_training_are_told(model, args, said):
    with pytest.raises(ha.HError, match=said):
        ha.create_dl_train_param(model, *args)


def test_one_step_moves_the_network(model, dataset):
    ha.set_dl_model_param(model, "learning_rate", 0.5)  # a random network's gradients are short
    samples = ha.read_dl_samples(dataset, list(range(0, 36, 6)))
    first = ha.train_dl_model_batch(model, samples)
    before = [p.clone() for p in model.learner.model.parameters()]
    second = ha.train_dl_model_batch(model, samples)
    assert set(first) == {"total_loss"}
    assert first != second
    assert any(
        (a != b).any() for a, b in zip(before, model.learner.model.parameters(), strict=True)
    )


def test_a_step_is_no_longer_than_the_rate(dataset):
    rate = 0.25
    model = new_model(dataset, learning_rate=rate, momentum=0.0)
    parameters = list(model.learner.model.parameters())
    with torch.no_grad():
        parameters[-2].normal_(std=30)  # the classifier's weights: gradients are long
    before = [one.detach().clone() for one in parameters]
    ha.train_dl_model_batch(model, ha.read_dl_samples(dataset, list(range(0, 36, 6))))
    moves = [(a - b.detach()) for a, b in zip(before, parameters, strict=True)]
    assert sum(float((one**2).sum()) for one in moves) ** 0.5 == pytest.approx(rate, rel=1e-3)
    assert moves[0].any()  # the body, too


def test_a_new_model_holds_no_class_likelier_than_another(model, dataset):
    (result,) = ha.apply_dl_model(model, ha.read_dl_samples(dataset, [0]), [])
    assert result["classification_confidences"] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda s: s.pop(), 7784),
        (lambda s: s[0].pop("image_label_id"), 7789),
        (lambda s: s[0].update(image_label_id=[0, 1]), 7789),
        (lambda s: s[0].update(image_label_id=[9]), 7793),
        (lambda s: s[0].pop("image"), 7783),
    ],
)
def test_wrong_batches_are_refused_by_number(model, dataset, change, code):
    samples = ha.read_dl_samples(dataset, list(range(0, 36, 6)))
    change(samples)
    assert code_of(ha.train_dl_model_batch, model, samples) == code


def test_ood_detection_is_fitted_locks_training_and_is_cleared(model, dataset):
    ha.train_dl_model(dataset, model, train_param(model), 0)
    assert ha.fit_dl_out_of_distribution(model, dataset, {}) is None
    (result,) = ha.apply_dl_model(model, ha.read_dl_samples(dataset, [0]), [])
    threshold = ha.get_dl_model_param_s(model, "ood_threshold")
    assert result["ood_threshold"] == threshold
    assert result["ood_result"] == int(result["ood_score"] > threshold)
    assert code_of(ha.train_dl_model, dataset, model, train_param(model), 0) == 7988
    ha.set_dl_model_param(model, "ood_threshold", -1e9)
    (result,) = ha.apply_dl_model(model, ha.read_dl_samples(dataset, [0]), [])
    assert result["ood_result"] == 1
    ha.set_dl_model_param(model, "clear_ood", "true")
    assert "ood_result" not in ha.apply_dl_model(model, ha.read_dl_samples(dataset, [0]), [])[0]
    assert code_of(ha.fit_dl_out_of_distribution, model, dataset, {"alpha": 1}) == 7911


def test_a_second_initialisation_is_7972_and_training_7974(continual, dataset):
    assert code_of(ha.init_dl_continual_learning, continual, dataset, []) == 7972
    assert code_of(ha.train_dl_model, dataset, continual, train_param(continual), 0) == 7974
    samples = ha.read_dl_samples(dataset, list(range(0, 36, 6)))
    assert code_of(ha.train_dl_model_batch, continual, samples) == 7974
    assert code_of(ha.set_dl_model_param, continual, "image_width", 64) == 7974
    assert code_of(ha.fit_dl_out_of_distribution, continual, dataset, []) == 7988


def test_extending_what_is_not_initialised_is_7971(model, dataset):
    assert code_of(ha.extend_dl_continual_learning, model, dataset, []) == 7971
    assert code_of(ha.init_dl_continual_learning, model, dataset, {"reset": 1}) == 7911
    answer = {"reset_class_information": "perhaps"}
    assert code_of(ha.init_dl_continual_learning, model, dataset, answer) == 7914


def test_init_with_images_is_init_without_and_extend(dataset):
    one, other = new_model(dataset), ha.read_dl_model(NETWORK)
    ha.set_dl_model_param(other, "image_dimensions", [32, 32, 3])
    ha.init_dl_continual_learning(one, dataset, [])
    ha.init_dl_continual_learning(other, [], {"reset_class_information": "true"})
    ha.extend_dl_continual_learning(other, copy.deepcopy(dataset), [])
    samples = ha.read_dl_samples(dataset, list(range(36)))
    assert ha.apply_dl_model(one, samples, []) == ha.apply_dl_model(other, samples, [])


@pytest.mark.filterwarnings("ignore:.*% of the validation images are more unusual")  # one colour
def test_extending_gives_the_dataset_the_models_ids(continual, dataset):
    new = copy.deepcopy(dataset)
    new["class_names"], new["class_ids"] = ["rust", "dent", "hole"], [0, 1, 2]
    for number, sample in enumerate(new["samples"]):
        sample["image_id"] = 1000 + number
    wanted = {0: 2, 1: 3, 2: 4}
    old = [sample["image_label_id"][0] for sample in new["samples"]]
    ha.extend_dl_continual_learning(continual, new, {})
    assert new["class_ids"] == [2, 3, 4]
    assert [sample["image_label_id"] for sample in new["samples"]] == [[wanted[one]] for one in old]
    assert ha.get_dl_model_param(continual, "class_ids") == [0, 1, 2, 3, 4]
    assert ha.get_dl_model_param(continual, "class_names") == [
        "crack",
        "good",
        "rust",
        "dent",
        "hole",
    ]


def test_after_a_failed_extend_model_and_dataset_are_as_before(continual, dataset):
    new = copy.deepcopy(dataset)
    new["class_names"] = ["dent", "hole", "rust"]
    new["samples"][7]["dlsample_file_name"] = "absent.png"
    before = copy.deepcopy(new), ha.serialize_dl_model(continual)
    assert code_of(ha.extend_dl_continual_learning, continual, new, []) == 7925
    assert (new, ha.serialize_dl_model(continual)) == before


def test_ids_are_the_datasets_own_wherever_they_appear(dataset):
    ids = {0: 3, 1: 17, 2: 65_534}
    dataset["class_ids"] = list(ids.values())
    for sample in dataset["samples"]:
        sample["image_label_id"] = [ids[sample["image_label_id"][0]]]
    model = new_model(dataset)
    ha.init_dl_continual_learning(model, dataset, [])
    model = ha.deserialize_dl_model(ha.serialize_dl_model(model))
    assert ha.get_dl_model_param(model, "class_ids") == [3, 17, 65_534]
    (result,) = ha.apply_dl_model(model, ha.read_dl_samples(dataset, [0]), [])
    assert result["classification_class_ids"][0] == 3
    (heat,) = ha.gen_dl_model_heatmap(model, ha.read_dl_samples(dataset, [0]), "grad_cam", [17], [])
    assert set(heat["heatmap_grad_cam"]) == {"heatmap_image_class_17"}


def test_heatmaps_are_at_the_networks_size_in_0_to_1(continual, dataset):
    sample = ha.read_dl_samples(dataset, [0])[0]
    for method in ("grad_cam", "guided_grad_cam"):
        (found,) = ha.gen_dl_model_heatmap(continual, sample, method, [], [])
        (heat,) = found[f"heatmap_{method}"].values()
        assert heat.shape == (32, 32)
        assert heat.dtype == np.float32
        assert heat.min() >= 0
        assert heat.max() <= 1
    result = {}
    ha.gen_dl_model_classification_heatmap(
        continual, sample, result, {"feature_size": 12, "sampling_size": 6}
    )
    found = result["heatmap_confidence_based"]
    assert found["heatmap_parameters"] == {"feature_size": 12, "sampling_size": 6}
    assert found["heatmap_image_class_0"].shape == (32, 32)
    deviation = np.abs(found["heatmap_image_class_0"]).max()
    assert found["classification_heatmap_maxdeviation"] == pytest.approx(deviation)


@pytest.mark.parametrize("kind", ["all_channels", "first_channel"])
def test_contrast_is_stretched_wherever_an_image_is_read(images, tmp_path, kind):
    data = ha.read_dl_dataset_classification(str(images), "last_folder")
    ha.split_dl_dataset(data, 50, 25, [])
    size = (32, 32, 3, [], [])
    param = ha.create_dl_preprocess_param("classification", *size, kind, gen_param=[])
    ha.preprocess_dl_dataset(data, tmp_path, param, {"show_progress": 0})
    (sample,) = ha.read_dl_samples(data, [0])
    first = sample["image"][..., 0]
    assert (first.min(), first.max()) == (0, 255)
    model = new_model(data)
    ha.init_dl_continual_learning(model, data, [])
    model = ha.deserialize_dl_model(ha.serialize_dl_model(model))
    (raw,) = ha.gen_dl_samples(data, [0], "image_only", [])
    assert ha.apply_dl_model(model, raw, []) == ha.apply_dl_model(model, sample, [])
    darker = {"image": raw["image"] // 2}
    same = ha.apply_dl_model(model, darker, [])[0]["classification_class_names"][0]
    assert same == ha.apply_dl_model(model, sample, [])[0]["classification_class_names"][0]


def test_a_dataset_preprocessed_for_another_model_is_refused(model, continual, dataset):
    dataset["preprocess_param"]["image_width"] = 48
    said = r"preprocessed with `size` \(32, 48\) and the model has \(32, 32\)"
    with pytest.raises(ha.HError, match=said):
        ha.train_dl_model(dataset, model, train_param(model), 0)
    assert code_of(ha.init_dl_continual_learning, model, dataset, []) == 7925
    dataset["preprocess_param"] |= {"image_width": 32, "normalization_type": "all_channels"}
    assert code_of(ha.extend_dl_continual_learning, continual, dataset, []) == 7925


def test_wrong_heatmaps_are_refused_by_number(continual, optimised, dataset):
    sample = ha.read_dl_samples(dataset, [0])
    heat = ha.gen_dl_model_heatmap
    assert code_of(heat, continual, sample, "lime", [], []) == 7852
    assert code_of(heat, continual, sample, "grad_cam", [9], []) == 7853
    assert code_of(heat, continual, sample, "grad_cam", [], {"layer": "x"}) == 7911
    assert code_of(heat, continual, sample, "grad_cam", [], {"target_conv_layer": "x"}) == 7785
    assert code_of(heat, optimised, sample, "grad_cam", [], []) == 7850


def test_devices_are_found_by_their_parameters():
    every = ha.query_available_dl_devices([], [])
    assert every
    runtimes = ["gpu", "cpu"]
    either = ha.query_available_dl_devices(["runtime", "runtime"], runtimes)
    assert [repr(one) for one in either] == [repr(one) for one in every]
    (onnx,) = [
        d
        for d in every
        if ha.get_dl_device_param_s(d, "ai_accelerator_interface") == "onnxruntime"
        and ha.get_dl_device_param_s(d, "runtime") == "cpu"
    ]
    assert "int8" in ha.get_dl_device_param(onnx, "precisions")
    assert ha.query_available_dl_devices("runtime", "tpu") == []
    assert code_of(ha.query_available_dl_devices, ["speed"], [1]) == 7911
    assert code_of(ha.query_available_dl_devices, ["runtime"], []) == 7914
    assert code_of(ha.get_dl_device_param, onnx, "speed") == 7911
    assert code_of(ha.get_dl_device_param, "cpu", "runtime") == 2404
    assert code_of(ha.set_dl_device_param, onnx, "speed", 1) == 7911
    assert code_of(ha.set_dl_device_param, onnx, "threads", 0) == 7914


@pytest.mark.filterwarnings("ignore:.*% of the validation images are more unusual")  # one colour
def test_an_optimised_model_learns_and_is_fixed_in_all_else(optimised, dataset):
    assert ha.get_dl_model_param_s(optimised, "precision_is_converted") == "true"
    assert ha.get_dl_model_param_s(optimised, "precision") == "float32"
    for name, value in (("batch_size", 2), ("image_width", 64), ("class_ids", [5, 6, 7])):
        assert code_of(ha.set_dl_model_param, optimised, name, value) == 7916
    ha.set_dl_model_param(optimised, "class_names", ["a", "b", "c"])
    ha.set_dl_model_param(optimised, "ood_threshold", 2.5)
    ha.set_dl_model_param(optimised, "meta_data", {"line": "7"})
    assert code_of(ha.train_dl_model, dataset, optimised, {"num_epochs": 1}, 0) == 7917
    assert code_of(ha.init_dl_continual_learning, optimised, dataset, []) == 7917
    (device,) = ha.query_available_dl_devices("ai_accelerator_interface", "onnxruntime")[-1:]
    optimise = ha.optimize_dl_model_for_inference
    assert code_of(optimise, optimised, device, "float32", [], []) == 7917
    new = copy.deepcopy(dataset)
    new["class_names"] = ["dent", "hole", "scratch"]
    ha.extend_dl_continual_learning(optimised, new, [])
    assert ha.get_dl_model_param(optimised, "class_names")[3:] == ["dent", "hole", "scratch"]
    again = ha.deserialize_dl_model(ha.serialize_dl_model(optimised))
    assert ha.get_dl_model_param(again, "class_names") == ha.get_dl_model_param(
        optimised, "class_names"
    )
    assert ha.get_dl_model_param(again, "meta_data") == [{"line": "7"}]


def test_wrong_optimisations_are_refused_by_number(continual):
    (device,) = ha.query_available_dl_devices("ai_accelerator_interface", "onnxruntime")[-1:]
    optimise = ha.optimize_dl_model_for_inference
    assert code_of(optimise, continual, device, "int4", [], []) == 7960
    assert code_of(optimise, continual, device, "float32", [], {"speed": 1}) == 7911
    assert code_of(optimise, continual, device, "int8", [], []) == 7917
    assert code_of(optimise, continual, "cpu", "float32", [], []) == 2404


def test_a_written_model_is_read_with_what_was_set(continual, tmp_path):
    ha.set_dl_model_param(continual, "learning_rate", 0.02)
    ha.set_dl_model_param(continual, "meta_data", {"line": "7"})
    ha.write_dl_model(continual, tmp_path / "parts.hdl")
    again = ha.read_dl_model(tmp_path / "parts.hdl")
    assert ha.get_dl_model_param_s(again, "learning_rate") == 0.02
    assert ha.get_dl_model_param_s(again, "meta_data") == {"line": "7"}
    samples = [{"image": GREY}]
    assert ha.apply_dl_model(again, samples, []) == ha.apply_dl_model(continual, samples, [])


def test_operators_of_other_types_are_7912():
    for name in (
        "train_dl_model_anomaly_dataset",
        "create_dl_model_detection",
        "compute_dl_anomaly_thresholds",
    ):
        assert code_of(getattr(ha, name), "a", "b") == 7912


def test_the_former_operators_lead_to_those_of_today(continual, dataset):
    samples = ha.read_dl_samples(dataset, [0, 1])
    images = [one["image"] for one in samples]
    found = ha.apply_dl_classifier(images, continual)
    names = ha.get_dl_classifier_result(found, "all", "predicted_classes")
    assert names == [
        one["classification_class_names"][0] for one in ha.apply_dl_model(continual, samples)
    ]
    assert len(ha.get_dl_classifier_result(found, 0, "confidences")) == 3
    assert ha.get_dl_classifier_param(continual, "classes") == ["crack", "good", "rust"]
    assert code_of(ha.get_dl_classifier_result, found, 0, "loss") == 7911


def test_the_former_training_takes_images_first(dataset):
    model = new_model(dataset, batch_size=2)
    images = [one["image"] for one in ha.read_dl_samples(dataset, [0, 20])]
    result = ha.train_dl_classifier_batch(images, model, ["crack", 1])
    assert ha.get_dl_classifier_train_result(result, "loss")[0] > 0
    for labels in ["crack"], ["crack", 1, 1]:
        assert code_of(ha.train_dl_classifier_batch, images, model, labels) == 7789


def test_errors_are_of_learnkits_classes_too(continual):
    from learnkit.errors import ContinualNotInitializedError, PredictionError

    with pytest.raises(LearnkitError, match="has no 'image'"):
        ha.preprocess_dl_samples([{}], ha.create_dl_preprocess_param("classification", 8, 8, 3))
    model = ha.read_dl_model(NETWORK)
    with pytest.raises(ContinualNotInitializedError) as e:
        ha.extend_dl_continual_learning(model, {}, [])
    assert isinstance(e.value, ha.HOperatorError)
    assert isinstance(e.value, RuntimeError)
    assert PredictionError.code == 7783


def test_procedures_are_called_by_name_as_through_hdevengine():
    pixels = np.zeros((40, 20, 3), np.uint8)
    call = ha.HDevProcedureCall(ha.HDevProcedure.load_external("preprocess_dl_samples"))
    batch = [{"image": pixels}]
    call.set_input_control_param_by_name("DLSampleBatch", batch)
    param = ha.create_dl_preprocess_param("classification", 8, 8, 3)
    call.set_input_control_param_by_name("DLPreprocessParam", param)
    call.execute()
    assert batch[0]["image"].shape == (8, 8, 3)
    call = ha.HDevProcedureCall(ha.HDevProcedure("gen_dl_samples_from_images"))
    call.set_input_iconic_param_by_name("Images", pixels)
    call.execute()
    assert len(call.get_output_control_param_by_name("DLSampleBatch")) == 1
    with pytest.raises(ha.HError, match="has no input 'Image'; it has images"):
        call.set_input_iconic_param_by_name("Image", pixels)
    with pytest.raises(ha.HError, match="has no output 'Samples'"):
        call.get_output_control_param_by_name("Samples")
    with pytest.raises(ha.HError, match="there is no procedure 'read_all'"):
        ha.HDevProcedure("read_all")

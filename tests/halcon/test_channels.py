"""Images of other numbers of channels than grey and colour, from the file to an optimised model."""

import numpy as np
import pytest
from halcon_helpers import NETWORK
from PIL import Image

import learnkit.halcon as ha


@pytest.fixture(params=[2, 5])
def many(request, tmp_path):
    """(number of channels, preprocessed dataset of .npy files, its model)."""
    n, rng = request.param, np.random.default_rng(0)
    for level, name in enumerate(("dark", "light")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(10):
            pixels = (rng.integers(0, 60, (24, 20, n)) + 150 * level).astype(np.uint8)
            np.save(tmp_path / "in" / name / f"{number}.npy", pixels)
    data = ha.read_dl_dataset_classification(str(tmp_path / "in"))
    ha.split_dl_dataset(data, 50, 30, [])
    model = ha.read_dl_model(NETWORK)
    settings = {"class_names": data["class_names"], "class_ids": data["class_ids"]}
    settings |= {"image_dimensions": [32, 24, n], "batch_size": 5}
    for key, value in settings.items():
        ha.set_dl_model_param(model, key, value)
    param = ha.create_dl_preprocess_param_from_model(model, "none", "full_domain", [], [], [])
    file = ha.preprocess_dl_dataset(data, tmp_path / "out", param, {"show_progress": "false"})
    return n, ha.read_dict(file), model


def test_samples_of_many_channels_are_tiff_files_without_loss(many):
    n, data, _ = many
    assert data["samples"][0]["dlsample_file_name"] == "1_dlsample.tif"
    (sample,) = ha.read_dl_samples(data, [0])
    pixels = np.load(f"{data['image_dir']}/{data['samples'][0]['image_file_name']}")
    # each channel is resized as Pillow resizes it alone
    planes = [
        Image.fromarray(np.ascontiguousarray(pixels[..., place])).resize((32, 24), 2)
        for place in range(n)
    ]
    np.testing.assert_array_equal(sample["image"], np.stack(planes, axis=-1))
    assert sample["image_label_id"] == data["samples"][0]["image_label_id"]
    (same,) = ha.gen_dl_samples(data, [0], "off", [])
    np.testing.assert_array_equal(same["image"], pixels)
    ha.preprocess_dl_samples(same, data["preprocess_param"])
    np.testing.assert_array_equal(same["image"], sample["image"])
    ha.write_dl_samples(data, [1], [{**sample, "image_id": 2, "note": "\u00df"}], [], [])
    (again,) = ha.read_dl_samples(data, [1])
    np.testing.assert_array_equal(again["image"], sample["image"])
    assert again["note"] == "\u00df"


@pytest.mark.filterwarnings("ignore:.*unusual")
def test_a_model_of_many_channels_is_trained_learns_and_is_optimised(many):
    n, data, model = many
    augment = {"augmentation_percentage": 100, "rotate_range": 10, "contrast_variation": 0.2}
    param = ha.create_dl_train_param(model, 1, 1, "false", 1, ["augment"], [augment])
    results, _, _ = ha.train_dl_model(data, model, {**param, "serialization_strategies": []}, 0)
    assert len(results) == 2
    model = ha.deserialize_dl_model(ha.serialize_dl_model(model))
    assert ha.get_dl_model_param(model, "image_dimensions") == [32, 24, n]
    ha.init_dl_continual_learning(model, data, [])
    samples = ha.read_dl_samples(data, list(range(20)))
    answers = ha.apply_dl_model(model, samples, [])
    pairs = zip(samples, answers, strict=True)
    right = [a["classification_class_ids"][:1] == s["image_label_id"] for s, a in pairs]
    assert sum(right) >= 16
    (device,) = ha.query_available_dl_devices("ai_accelerator_interface", "onnxruntime")[-1:]
    fast, _ = ha.optimize_dl_model_for_inference(model, device, "float32", samples, [])
    again = ha.apply_dl_model(fast, samples, [])
    for one, other in zip(again, answers, strict=True):
        assert one["classification_class_ids"] == other["classification_class_ids"]
        confidences = one["classification_confidences"], other["classification_confidences"]
        np.testing.assert_allclose(*confidences, atol=1e-4)
    (heat,) = ha.gen_dl_model_heatmap(model, samples[0], "grad_cam", [0], [])
    assert heat["heatmap_grad_cam"]["heatmap_image_class_0"].shape == (24, 32)
    windows = {}
    ha.dev_display_dl_data(samples[0], answers[0], data, "classification_both", [], windows)
    assert len(windows["classification_both"].axes[0].images) == 1


def test_augmented_channels_stay_together():
    plane = np.random.default_rng(0).integers(0, 256, (12, 16), np.uint8)
    for param in ({"rotate_range": 30}, {"crop_percentage": 60}, {"mirror": "rc"}):
        sample = {"image": np.stack([plane] * 4, axis=-1)}
        ha.augment_dl_samples(sample, {"augmentation_percentage": 100, **param})
        assert not np.array_equal(sample["image"][..., 0], plane)
        assert (sample["image"] == sample["image"][..., :1]).all()


def test_an_image_of_another_number_of_channels_is_refused(many):
    _, _, model = many
    with pytest.raises(ha.HOperatorError) as e:
        ha.apply_dl_model(model, {"image": np.zeros((24, 32, 3), np.uint8)}, [])
    assert e.value.error_code == ha.errors.H_ERR_DL_INPUT_WRONG_TYPE

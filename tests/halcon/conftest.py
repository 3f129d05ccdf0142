"""A small dataset and a tiny pretrained network under one of HALCON's names."""

import pytest
import safetensors.torch
import timm
import torch
from halcon_helpers import NETWORK, SIZE, new_model
from helpers import write_image_folder

import learnkit.halcon as ha


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder per class: 12 noisy images in one colour each."""
    return write_image_folder(
        tmp_path_factory.mktemp("halcon"), {"crack": 12, "good": 12, "rust": 12}
    )


@pytest.fixture(scope="session", autouse=True)
def pretrained(tmp_path_factory):
    """Weights of a file, since no hub is reached."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_efficientnet", pretrained=False)
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    safetensors.torch.save_file(network.state_dict(), file)
    before = dict(ha.PRETRAINED[NETWORK])
    ha.PRETRAINED[NETWORK] = {
        "arch": "test_efficientnet",
        "weights": file,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    yield
    ha.PRETRAINED[NETWORK] = before


@pytest.fixture(scope="session")
def written(images, tmp_path_factory):
    """The file of the split and preprocessed dataset."""
    dataset = ha.read_dl_dataset_classification(str(images), "last_folder")
    ha.split_dl_dataset(dataset, 50, 25, [])
    param = ha.create_dl_preprocess_param("classification", *SIZE, gen_param=[])
    folder = tmp_path_factory.mktemp("preprocessed")
    return ha.preprocess_dl_dataset(dataset, folder, param, {"show_progress": "false"})


@pytest.fixture
def dataset(written):
    """The preprocessed dataset, to be changed at will."""
    return ha.read_dict(written, [], [])


@pytest.fixture
def model(dataset):
    """A pretrained model."""
    return new_model(dataset)


@pytest.fixture(scope="session")
def continual_bytes(written):
    """A model in the continual state, as bytes."""
    dataset = ha.read_dict(written, [], [])
    model = new_model(dataset)
    ha.init_dl_continual_learning(model, dataset, [])
    return ha.serialize_dl_model(model)


@pytest.fixture
def continual(continual_bytes):
    """A model in the continual state."""
    return ha.deserialize_dl_model(continual_bytes)


@pytest.fixture(scope="session")
def optimised_bytes(continual_bytes):
    """The same, optimised for the processor."""
    (device,) = ha.query_available_dl_devices("ai_accelerator_interface", "onnxruntime")[-1:]
    model = ha.deserialize_dl_model(continual_bytes)
    samples = [{"image": torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()} for _ in range(6)]
    fast, _ = ha.optimize_dl_model_for_inference(model, device, "float32", samples, [])
    return ha.serialize_dl_model(fast)


@pytest.fixture
def optimised(optimised_bytes):
    """An optimised model."""
    return ha.deserialize_dl_model(optimised_bytes)

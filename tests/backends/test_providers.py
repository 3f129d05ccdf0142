"""Devices of onnxruntime, by lists and sessions that pretend: only processors are here."""

import threading

import numpy as np
import onnxruntime
import pytest
from deploy_helpers import make_continual, shades
from onnx_helpers import exported, noise

from learnkit.backends.devices import devices
from learnkit.backends.ort_session import PROVIDERS, OrtSession
from learnkit.backends.registry import open_session
from learnkit.deploy.predictor import load_learner
from learnkit.deploy.runtime_predictor import load_runtime
from learnkit.errors import BackendUnavailableError

DEVICES = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
IMAGES = noise(2).permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture
def pretended(monkeypatch):
    """(options, providers) of every session, which runs on the processor and says otherwise."""
    opened = []
    real = onnxruntime.InferenceSession

    class Pretended:
        def __init__(self, data, options, *, providers, **rest):
            opened.append((options, providers))
            self.real = real(data, options, providers=["CPUExecutionProvider"], **rest)
            self.at_once = self.most_at_once = 0

        def get_providers(self):
            return opened[-1][1]

        def __getattr__(self, name):
            return getattr(self.real, name)

        def run(self, *arguments):
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            found = self.real.run(*arguments)
            self.at_once -= 1
            return found

    def use(*names):
        have = [*(DEVICES[name] for name in names), "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: have)
        monkeypatch.setattr(onnxruntime, "InferenceSession", Pretended)
        return opened

    return use


def rows():
    return [row["device"] for row in devices() if row["backend"] == "onnxruntime"]


def test_devices_are_listed_only_where_they_are(pretended):
    assert rows() == ["cpu"]
    pretended("coreml", "directml")
    assert rows() == ["cpu", "coreml", "directml"]
    assert "coreml: no test of learnkit has run there" in repr(devices())
    assert "directml" not in [r["device"] for r in devices() if r["backend"] != "onnxruntime"]


@pytest.mark.parametrize("device", DEVICES)
def test_a_session_runs_on_the_device_it_is_told(pretended, device):
    opened = pretended(*DEVICES)
    session = open_session("onnxruntime", "float32", {"onnx": exported()}, device=device)
    options, providers = opened[-1]
    assert providers[0] == DEVICES[device]
    assert session.device == device
    assert f"on {device}" in repr(session)
    assert device in session.origin(16)  # features of it are not mixed with others
    assert options.enable_mem_pattern == (device != "directml")
    assert (DEVICES["cuda"] in providers) == (device in {"cuda", "tensorrt"})
    expected = open_session("onnxruntime", "float32", {"onnx": exported()}).run(IMAGES)
    np.testing.assert_array_equal(session.run(IMAGES)[0], expected[0])


def test_directml_runs_one_batch_at_a_time(pretended):
    pretended("directml")
    session = OrtSession("float32", {"onnx": exported()}, threads=1, device="directml")
    threads = [threading.Thread(target=session.run, args=(IMAGES,)) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert session._session.most_at_once == 1


@pytest.mark.parametrize("device", ["directml", "npu", "CoreML"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(pretended, device):
    pretended("coreml")
    match = f"cannot run 'float32' on '{device}' here: the onnxruntime installed has cpu, coreml"
    with pytest.raises(BackendUnavailableError, match=match):
        open_session("onnxruntime", "float32", {"onnx": exported()}, device=device)
    with pytest.raises(BackendUnavailableError, match=match.partition(": ")[2]):
        make_continual({"red": 2}).optimize(device=device, progress=False)


def test_an_optimised_model_is_opened_served_and_moved_by_device(pretended, tmp_path):
    pretended("coreml")
    model = make_continual({"red": 8, "blue": 8})
    images = [*shades("red", 4, seed=3), *shades("blue", 4, seed=3)]
    how = {"backend": "onnxruntime", "force": True, "progress": False, "threads": 1}
    faster, _ = model.optimize(samples=images, device="coreml", **how)
    assert faster.device == "coreml"
    faster.save(tmp_path / "model")
    for opened in (load_runtime, load_learner):
        assert str(opened(tmp_path / "model").device) == "cpu"
        predictor = opened(tmp_path / "model", device="coreml")
        assert predictor.device == "coreml"
        assert predictor.set(device="cpu").predict(images[0]).label == "red"
    with pytest.raises(BackendUnavailableError, match="installed has cpu, coreml"):
        load_runtime(tmp_path / "model", device="cuda")


def test_every_device_has_a_name_of_onnxruntimes():
    assert dict(PROVIDERS) == {"cpu": "CPUExecutionProvider", **DEVICES}
    assert set(PROVIDERS.values()) <= set(onnxruntime.get_all_providers())

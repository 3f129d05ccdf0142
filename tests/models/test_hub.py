import http.client
import http.server
import socket
import threading
import time

import huggingface_hub
import pytest
import timm
import torch
import torchvision.models as tv
from safetensors.torch import save_file

from learnkit.errors import WeightsUnavailableError
from learnkit.models import hub, networks
from learnkit.models.body import create_body
from learnkit.models.create import create_cnn_model

WAYS_OUT = (r'pretrained="file\.safetensors"', "HF_ENDPOINT", "local-dir:", "pretrained=False")


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(403)

    def log_message(self, *_):
        return


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No server answers, all caches are empty; returns the hub's cache folder."""
    monkeypatch.setattr(hub, "server_answers", lambda *_: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "torch"))
    yield tmp_path / "hf"
    torch.hub.set_dir(before)


def fill_cache(cache, arch):
    """Put random weights for timm's `arch` where the hub's client looks for them; return them."""
    repo = timm.get_pretrained_cfg(arch).hf_hub_id
    folder = cache / f"models--{repo.partition('@')[0].replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    state = timm.create_model(arch).state_dict()
    save_file(state, snapshot / "model.safetensors")
    return state


@pytest.mark.parametrize(
    "arch", ["resnet18", "torchvision:resnet18", "hf-hub:timm/resnet18.a1_in1k"]
)
def test_unreachable_weights_give_one_error_naming_the_ways_out(offline, arch):
    for way in WAYS_OUT:
        with pytest.raises(WeightsUnavailableError, match=way):
            create_cnn_model(arch, 2, pretrained=True)
    with pytest.raises(OSError, match="does not answer"):
        create_body(arch)


def test_the_hubs_offline_switch_is_obeyed(offline, monkeypatch):
    monkeypatch.setattr(hub, "server_answers", lambda *_: True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailableError, match="HF_HUB_OFFLINE is set"):
        create_body("resnet18")


def test_cached_weights_are_used_without_asking_anyone(offline):
    state = fill_cache(offline, "test_resnet")
    body = create_body("test_resnet")
    assert all(torch.equal(v, state[k]) for k, v in body.model.state_dict().items())
    assert create_body("test_resnet", n_in=1)(torch.rand(1, 1, 64, 64)).shape[1] == 96


def test_torchvisions_cache_is_used_without_asking_anyone(offline, tmp_path):
    weights = tv.get_model_weights("squeezenet1_1").DEFAULT
    state = tv.squeezenet1_1(weights=None).state_dict()
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "torch" / "checkpoints" / weights.url.rpartition("/")[2])
    body = create_body("torchvision:squeezenet1_1")
    assert torch.equal(body[0][0].weight, state["features.0.weight"])
    assert torch.equal(
        create_body(tv.squeezenet1_1, weights="IMAGENET1K_V1")[0][0].bias, state["features.0.bias"]
    )


@pytest.mark.parametrize(
    "weights",
    [tv.Swin_T_Weights.IMAGENET1K_V1, tv.ResNet34_Weights.DEFAULT, "Swin_T_Weights.IMAGENET1K_V1"],
)
def test_weights_of_another_network_are_refused_though_their_last_names_agree(offline, weights):
    message = f"`weights`={weights!s}: these are not weights of torchvision:resnet18, whose entries"
    with pytest.raises(WeightsUnavailableError, match=rf"{message} are in ResNet18_Weights: IMAG"):
        create_body(tv.resnet18, weights=weights)


def test_a_download_that_fails_halfway_is_explained_too(offline, monkeypatch):
    def broken(*_, **__):
        raise ConnectionResetError("reset by peer\nmore")

    monkeypatch.setattr(hub, "server_answers", lambda *_: True)
    monkeypatch.setattr(networks.timm, "create_model", broken)
    with pytest.raises(WeightsUnavailableError, match=r"reset by peer\. Ways out"):
        create_body("resnet18")


def test_networks_without_published_weights_say_so(offline):
    names = timm.list_models("test_*") + timm.list_models("resnet*")
    arch = next(n for n in names if not timm.get_pretrained_cfg(n).has_weights)
    with pytest.raises(WeightsUnavailableError, match="timm publishes none for it"):
        create_body(arch)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet18", "timm's weights for resnet18: a1_in1k,"),
        ("torchvision:resnet18", "torchvision:resnet18 has IMAGENET1K_V1"),
    ],
)
def test_unknown_published_weights_are_refused_with_the_known_ones(offline, arch, message):
    with pytest.raises(WeightsUnavailableError, match=message):
        create_body(arch, weights="nonsense")


def test_a_refusal_is_an_answer_and_silence_is_not():
    server = http.server.HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert hub.server_answers(f"http://127.0.0.1:{server.server_port}/x/y")
    server.shutdown()
    server.server_close()
    assert not hub.server_answers(f"http://127.0.0.1:{server.server_port}/", seconds=2)


def test_a_name_server_that_hangs_beyond_the_sockets_limit_is_not_waited_for(monkeypatch):
    release = threading.Event()

    def hang(*_, **__):
        release.wait(20)
        raise OSError("too late")

    monkeypatch.setattr(hub.urllib.request, "urlopen", hang)
    started = time.monotonic()
    assert not hub.server_answers("http://127.0.0.1:9/", seconds=0.2)
    assert time.monotonic() - started < 10
    release.set()


def test_a_server_that_talks_nonsense_is_no_hub(monkeypatch):
    def nonsense(*_, **__):
        raise http.client.BadStatusLine("?")

    monkeypatch.setattr(hub.urllib.request, "urlopen", nonsense)
    assert not hub.server_answers("http://127.0.0.1:9/")


def test_a_server_that_never_answers_costs_no_more_than_the_time_limit():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert not hub.server_answers(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3)
        assert time.monotonic() - started < 5

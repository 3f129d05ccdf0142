"""Networks in 8 bits for OpenVINO."""

import os
from functools import cache

import numpy as np
import pytest
from onnx_helpers import channels_last, exported, noise

from learnkit.deploy.backends.registry import open_session
from learnkit.deploy.conversion.limits import Limits
from learnkit.deploy.conversion.quantize import outputs_of
from learnkit.deploy.conversion.quantize_graph import FloatNetwork, open_raw
from learnkit.deploy.conversion.quantize_openvino import quantize_openvino
from learnkit.deploy.conversion.sensitivity import relative_error
from learnkit.errors import OptimizeError

pytest.importorskip("openvino")
pytest.importorskip("nncf")
SAMPLES = channels_last(noise(8))


@cache
def quantized():
    return quantize_openvino(exported(), SAMPLES, Limits(keep=()), progress=False)


def n_int8(data):
    return data.xml.count(b'element_type="i8"')


def test_session_gives_features_and_logits_near_the_network_s():
    session = open_session("openvino", "int8", {"xml": quantized().xml, "bin": quantized().bin})
    found, exact = session.run(SAMPLES), outputs_of(open_raw(exported()), SAMPLES)
    errors = [relative_error(low, high) for low, high in zip(found, exact, strict=True)]
    assert max(errors) < 0.5
    assert quantized().error == pytest.approx(errors[0], rel=0.05)


def test_layers_that_are_kept_and_the_head_stay_float32():
    layers = FloatNetwork(exported()).layers
    kept = quantize_openvino(exported(), SAMPLES, Limits(keep=layers[:3]), progress=False)
    # NNCF itself leaves the two layers of squeeze-and-excitation alone
    assert len(layers) - 2 <= n_int8(quantized()) <= len(layers)
    assert n_int8(kept) == n_int8(quantized()) - 3
    assert kept.kept == tuple(layers[:3])


def test_layers_are_spared_where_the_error_is_too_large():
    found = quantize_openvino(exported(), SAMPLES, Limits(max_error=0.1), progress=False)
    assert found.kept
    assert found.error < quantized().error
    assert "in float32" in found.notes[0]


def test_is_quiet_and_leaves_the_environment_alone(capfd):
    before = dict(os.environ)
    quantize_openvino(exported(), SAMPLES, Limits(keep=()), progress=False)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert dict(os.environ) == before


def test_samples_that_do_not_suit_are_refused():
    with pytest.raises(OptimizeError, match="all alike"):
        quantize_openvino(exported(), np.repeat(SAMPLES[:1], 4, 0), progress=False)

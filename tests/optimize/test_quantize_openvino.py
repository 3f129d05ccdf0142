"""Networks in 8 bits for OpenVINO."""

from functools import cache

import pytest
from onnx_helpers import channels_last, exported, noise

from learnkit.backends.openvino_session import openvino_files
from learnkit.backends.processor import processor_flags
from learnkit.backends.registry import open_session
from learnkit.optimize.quantize.graph import FloatNetwork, open_raw, outputs_of
from learnkit.optimize.quantize.quantize import quantize_onnx
from learnkit.optimize.quantize.sensitivity import Tolerance, relative_error

pytest.importorskip("openvino")
SAMPLES = channels_last(noise(8))


@cache
def quantized(n_kept=0):
    keep = FloatNetwork(exported()).layers[:n_kept]
    return quantize_onnx(exported(), SAMPLES, Tolerance(keep=keep), progress=False)


# Measured: .146 of the spread instead of .114; weights of 7 bits mend it (.120), and cost accuracy.
@pytest.mark.xfail(
    "avx2" in processor_flags() and not processor_flags() & {"avx512_vnni", "avx_vnni"},
    reason="with AVX2 and no VNNI, OpenVINO cuts off sums of products of 8 bits at 16 bits",
    strict=True,
)
def test_session_gives_what_onnxruntime_gives_of_the_same_network():
    session = open_session("openvino", "int8", openvino_files(quantized().onnx))
    found, same = session.run(SAMPLES), outputs_of(open_raw(quantized().onnx), SAMPLES)
    exact = outputs_of(open_raw(exported()), SAMPLES)
    for low, other, high in zip(found, same, exact, strict=True):
        assert relative_error(low, high) < 1.2 * relative_error(other, high)
        assert relative_error(low, other) < 0.1


def test_weights_and_their_zeros_are_int8_but_those_of_layers_kept_and_of_the_head():
    everything, some = (openvino_files(quantized(n_kept).onnx) for n_kept in (0, 3))
    n_tensors = [files["xml"].count(b'element_type="i8"') for files in (everything, some)]
    assert n_tensors == [2 * n for n in (quantized().n_layers, quantized().n_layers - 3)]
    assert len(everything["bin"]) < len(some["bin"]) < len(exported())

"""Networks in 8 bits: what is quantised, corrected, left in float32, refused."""

import io
import re
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import show_progress_at_once
from onnx_helpers import RECIPE, channels_last, exported, network, noise
from torch import nn

from learnkit.backends.onnx_export import export_onnx
from learnkit.backends.onnx_file import check_onnx
from learnkit.backends.ort_session import OrtSession
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import OptimizeError
from learnkit.models.body import create_body
from learnkit.optimize.quantize.bias import correct_biases, with_biases
from learnkit.optimize.quantize.graph import FloatNetwork, open_raw, outputs_of, to_int8
from learnkit.optimize.quantize.quantize import MAX_SAMPLES, quantize_onnx
from learnkit.optimize.quantize.ranges import observe_activations
from learnkit.optimize.quantize.sensitivity import Tolerance, relative_error

SHARED = Path(__file__).parents[3] / "shared"
SMALL = Preprocessing(16)
SAMPLES = channels_last(noise(12))
SMALL_SAMPLES = channels_last(noise(16, SMALL))


def export(*layers):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(*(layer() if isinstance(layer, type) else layer for layer in layers))
    return export_onnx(nn.Sequential(body, nn.Identity()), SMALL, continual=True)


def convolution(*args, seed=0, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Conv2d(*args, **kwargs)


@cache
def uneven():
    """Four convolutions; what the second hands to the third has one channel 3000 times as large."""
    layers = [convolution(3, 8, 3, 2)] + [convolution(8, 8, 1, seed=i) for i in range(1, 4)]
    sizes = torch.tensor([3000.0] + [1.0] * 7)
    with torch.no_grad():
        layers[1].weight.mul_(sizes.view(-1, 1, 1, 1))
        layers[1].bias.mul_(sizes)
        layers[2].weight.div_(sizes.view(1, -1, 1, 1))
    first, *others = layers
    return export(first, nn.ReLU(), *others)


@cache
def positive():
    """A wide layer with weights that 8 bits round badly, fed with what is never negative."""
    wide = convolution(16, 4, 3, padding=1, padding_mode="zeros")
    with torch.no_grad():
        wide.weight[:, 0, 0, 0] = 20.0
    return export(convolution(3, 16, 3, 2), nn.ReLU(), wide)


@cache
def quantized():
    return quantize_onnx(exported(), SAMPLES, Tolerance(max_error=1.0), progress=False)


def graph_of(data):
    return onnx.load_model_from_string(data).graph


def types_of(data):
    """Element type of every layer's weights, by layer."""
    graph = graph_of(data)
    types = {one.name: one.data_type for one in graph.initializer}
    sources = {node.output[0]: node.input[0] for node in graph.node}
    heavy = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return {n.name: types.get(n.input[1], types.get(sources.get(n.input[1]))) for n in heavy}


def errors(data, low, images):
    exact, _ = outputs_of(open_raw(data), images)
    return relative_error(outputs_of(open_raw(low), images)[0], exact)


class TestTheNetwork:
    def test_the_numbers_a_layer_passes_are_those_of_one_image(self):
        first, *others = FloatNetwork(uneven()).n_passed.values()
        assert first == 3 * 16 * 16 + 8 * 7 * 7
        assert others == [2 * 8 * 7 * 7] * 3

    def test_convolutions_are_int8_and_the_head_is_float32(self):
        types = types_of(quantized().onnx)
        head = {name for name in types if name.startswith("head")}
        assert head
        assert {types[name] for name in head} == {onnx.TensorProto.FLOAT}
        assert {types[name] for name in types.keys() - head} == {onnx.TensorProto.INT8}
        assert len(types) - len(head) == quantized().n_layers > 10

    def test_activations_are_unsigned(self):
        graph = graph_of(quantized().onnx)
        types = {one.name: one.data_type for one in graph.initializer}
        found = {types[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"}
        assert found == {onnx.TensorProto.UINT8}

    def test_runs_in_a_session_with_features_and_logits_near_the_network_s(self):
        check_onnx(quantized().onnx)
        session = OrtSession("int8", {"onnx": quantized().onnx}, threads=1)
        images = noise(8, seed=1)
        features, logits = session.run(channels_last(images))
        with torch.no_grad():
            feature_map = network()[0](RECIPE.normalize(images))
            exact = network()[1](feature_map).numpy()
        assert relative_error(features, feature_map.mean((2, 3)).numpy()) < 0.3
        assert relative_error(logits, exact) < 0.3

    def test_reports_the_error_it_has_on_the_samples(self):
        assert quantized().error == pytest.approx(errors(exported(), quantized().onnx, SAMPLES))
        assert quantized().score is None
        assert quantized().kept == ()

    def test_the_same_samples_give_the_same_bytes(self):
        again = quantize_onnx(exported(), SAMPLES.copy(), Tolerance(max_error=1.0), progress=False)
        assert again.onnx == quantized().onnx

    def test_patches_products_of_two_activations_and_sums_beside_them_stay_float32(self):
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.out = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8)

            def forward(self, x):
                tokens = self.stem(x).flatten(2).transpose(1, 2)
                mixed = (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens
                return (tokens + self.out(mixed)).transpose(1, 2).reshape(-1, 8, 2, 2)

        data = quantize_onnx(
            export(Attention), SMALL_SAMPLES, Tolerance(keep=()), progress=False
        ).onnx
        graph = graph_of(data)
        made = {name: node.op_type for node in graph.node for name in node.output}
        moving = [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in made]
        inside = {made.get(name) for n in moving for name in n.input}
        assert types_of(data)
        assert len(moving) >= 3
        types = types_of(data)
        patches = next(node.name for node in graph.node if node.op_type == "Conv")
        assert types.pop(patches) == onnx.TensorProto.FLOAT
        assert sum(t == onnx.TensorProto.INT8 for t in types.values()) == 1
        sums = [n for n in graph.node if n.op_type == "Add" and n.input[0] in made]
        assert "DequantizeLinear" not in {made.get(n.input[0]) for n in sums[-1:]}
        assert inside - {"DequantizeLinear"}


class TestCalibration:
    def test_ranges_and_means_are_those_of_every_image(self):
        found = FloatNetwork(uneven())
        seen = observe_activations(found, SMALL_SAMPLES, bs=5)
        name = found.heavy[2].input[0]
        values = _activation(found, name)
        assert seen.ranges[name] == (values.min(), values.max())
        assert np.allclose(seen.means[name], values.mean(0, keepdims=True), rtol=1e-5)
        assert np.allclose(seen.features, outputs_of(open_raw(uneven()), SMALL_SAMPLES)[0])

    def test_what_is_not_finite_is_refused(self):
        model = onnx.load_model_from_string(uneven())
        weights = next(one for one in model.graph.initializer if list(one.dims) == [8, 8, 1, 1])
        values = np.array(onnx.numpy_helper.to_array(weights))
        values[0] = np.nan
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        with pytest.raises(OptimizeError, match="not finite on the samples"):
            quantize_onnx(model.SerializeToString(), SMALL_SAMPLES, progress=False)

    def test_many_samples_are_thinned_out_evenly(self):
        samples = np.repeat(SMALL_SAMPLES, 40, 0)
        seen = []
        quantize_onnx(
            positive(),
            samples,
            Tolerance(keep=(), criterion=lambda f, _: seen.append(len(f)) or 1),
            progress=False,
        )
        assert seen == [MAX_SAMPLES]


class TestBiases:
    def test_shift_is_the_mean_output_of_what_rounding_took(self):
        found = FloatNetwork(positive())
        seen = observe_activations(found, SMALL_SAMPLES)
        low = to_int8(found, found.copy(), seen.ranges)
        node = found.heavy[1]
        weights = onnx.numpy_helper.to_array(found.weights[node.input[1]])
        scale = np.abs(weights).max((1, 2, 3), keepdims=True) / 127
        missing = torch.from_numpy(weights - np.round(weights / scale) * scale)
        values = torch.from_numpy(_activation(found, node.input[0]))
        expected = nn.functional.conv2d(values, missing, padding=1).mean((0, 2, 3)).numpy()
        shifts = correct_biases(found, low, seen.means)
        assert np.abs(expected).max() > 0.01
        assert np.allclose(shifts[node.name], expected, atol=1e-5)

    def test_corrected_network_is_nearer(self):
        found = FloatNetwork(positive())
        plain = to_int8(found, found.copy(), observe_activations(found, SMALL_SAMPLES).ranges)
        better = quantize_onnx(positive(), SMALL_SAMPLES, Tolerance(keep=()), progress=False)
        assert better.error < 0.7 * errors(positive(), plain, SMALL_SAMPLES)

    @pytest.mark.parametrize("bias", [True, False])
    def test_a_layer_gets_a_bias_whether_it_had_one_or_not(self, bias):
        data = export(convolution(3, 4, 1, bias=bias), nn.ReLU())
        found = FloatNetwork(data)
        shift = np.arange(4, dtype=np.float32)
        model = with_biases(found, {found.layers[0]: shift})
        before = _activation(found, found.heavy[0].output[0])
        after = _activation(found, found.heavy[0].output[0], model)
        assert np.allclose(after - before, shift.reshape(1, 4, 1, 1), atol=1e-5)

    def test_linear_layers_are_corrected_like_convolutions(self):
        class Mlp(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(3, 32), nn.Linear(32, 4)

            def forward(self, x):
                return self.b(self.a(x.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2)

        found = FloatNetwork(export(Mlp))
        seen = observe_activations(found, SMALL_SAMPLES)
        low = to_int8(found, found.copy(), seen.ranges)
        shifts = correct_biases(found, low, seen.means)
        assert set(shifts) == set(found.layers)
        assert len(shifts) == 2
        model = with_biases(found, shifts)
        moved = outputs_of(open_raw(model.SerializeToString()), SMALL_SAMPLES)[0] - seen.features
        assert np.allclose(moved.mean(0), shifts[found.layers[1]], atol=0.01)
        assert np.abs(moved).max() > 0


class TestSparing:
    def test_the_layers_around_a_fragile_activation_stay_float32(self):
        everything = quantize_onnx(uneven(), SMALL_SAMPLES, Tolerance(keep=()), progress=False)
        searched = quantize_onnx(uneven(), SMALL_SAMPLES, Tolerance(max_error=0.2), progress=False)
        layers = FloatNetwork(uneven()).layers
        assert everything.error > 0.3
        assert searched.kept == tuple(layers[1:3])
        assert searched.error < 0.2
        assert {name for name, _ in searched.sensitivities[:2]} == set(layers[1:3])
        assert searched.notes == ("kept 2 of 4 layers in float32, chosen by measurement",)
        kept = [types_of(searched.onnx)[name] == onnx.TensorProto.FLOAT for name in layers]
        assert kept == [False, True, True, False]

    def test_a_layer_in_float32_is_left_so_by_sessions(self):
        # onnxruntime takes weights between activations in 8 bits to 8 bits, too, one scale for all
        middle = convolution(8, 8, 1)
        with torch.no_grad():
            middle.weight[0] *= 50
        network = export(convolution(3, 8, 3, 2), nn.ReLU(), middle, convolution(8, 8, 1))
        limits = Tolerance(keep=FloatNetwork(network).layers[1:2])
        data = quantize_onnx(network, SMALL_SAMPLES, limits, progress=False).onnx
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        exact, _ = outputs_of(onnxruntime.InferenceSession(data, options), SMALL_SAMPLES)
        session = OrtSession("int8", {"onnx": data}, threads=1)
        assert relative_error(session.run(SMALL_SAMPLES)[0], exact) < 0.01
        assert relative_error(outputs_of(open_raw(data), SMALL_SAMPLES)[0], exact) < 0.01

    def test_the_criterion_decides_beside_the_error(self):
        exact, _ = outputs_of(open_raw(uneven()), SMALL_SAMPLES)

        def criterion(features, logits):
            assert logits is None
            return float(relative_error(features, exact) < 0.2)

        searched = quantize_onnx(
            uneven(), SMALL_SAMPLES, Tolerance(max_error=10.0, criterion=criterion), progress=False
        )
        assert searched.score == 1.0
        assert searched.kept

    def test_a_network_beyond_help_comes_with_a_note(self):
        hopeless = quantize_onnx(uneven(), SMALL_SAMPLES, Tolerance(max_error=1e-9), progress=False)
        assert "is fragile in 8 bits" in hopeless.notes[0]
        assert hopeless.error > 1e-9
        assert len(hopeless.kept) <= 2

    def test_what_was_asked_for_is_kept_and_nothing_searched(self):
        layers = FloatNetwork(uneven()).layers
        asked = quantize_onnx(uneven(), SMALL_SAMPLES, Tolerance(keep=layers[:1]), progress=False)
        assert asked.kept == tuple(layers[:1])
        assert not asked.sensitivities

    def test_bars_count_images_and_layers(self, capsys, monkeypatch):
        show_progress_at_once(monkeypatch)
        quantize_onnx(uneven(), SMALL_SAMPLES, Tolerance(max_error=0.2))
        shown = capsys.readouterr().err
        assert "int8: ranges: 16 of 16 images, 0 s left\n" in shown
        assert "convert: 2 of 2 steps, 0 s left\n" in shown
        assert "try each layer: 4 of 4 layers, 0 s left\n" in shown
        assert re.search(r"keep layers in float32: [2-4] tries, \d s so far\n", shown)


class TestRefusals:
    @pytest.mark.parametrize(
        ("samples", "reason"),
        [
            (SMALL_SAMPLES[:, :8], r"uint8 \(16, 8, 16, 3\).*images uint8 \(n, 16, 16, 3\)"),
            (SMALL_SAMPLES.astype(np.float32), "`samples` is float32"),
            (SMALL_SAMPLES[0], r"\(16, 16, 3\)"),
            (SMALL_SAMPLES[:0], "has 0 images"),
            (SMALL_SAMPLES[:1], "has 1 image"),
            (np.repeat(SMALL_SAMPLES[:1], 9, 0), "has 9 images, all alike"),
        ],
    )
    def test_samples_that_do_not_suit_are_refused(self, samples, reason):
        with pytest.raises(OptimizeError, match=reason):
            quantize_onnx(uneven(), samples, progress=False)

    def test_a_network_without_weights_is_refused(self):
        with pytest.raises(OptimizeError, match="no layer with weights"):
            quantize_onnx(export(nn.ReLU()), SMALL_SAMPLES, progress=False)

    def test_unknown_layers_cannot_be_kept(self):
        with pytest.raises(OptimizeError, match=r"`keep` names \['stem'\]"):
            quantize_onnx(uneven(), SMALL_SAMPLES, Tolerance(keep=["stem"]), progress=False)


@pytest.mark.skipif(not SHARED.exists(), reason="real weights and images are not here")
def test_a_real_network_keeps_its_features():
    weights = SHARED / "weights" / "mobilenetv2_100.tf_in1k.safetensors"
    body = create_body("mobilenetv2_100", str(weights), img_size=160, pad_type="same")
    recipe = Preprocessing(160, mean=[0.5] * 3, std=[0.5] * 3)
    with zipfile.ZipFile(SHARED / "data" / "hymenoptera.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[::25]
        images = [recipe.load(io.BytesIO(archive.read(name))) for name in names]
    images = channels_last(torch.stack(images))
    data = export_onnx(nn.Sequential(body, nn.Identity()), recipe, continual=True)
    found = FloatNetwork(data)
    plain = to_int8(found, found.copy(), observe_activations(found, images).ranges)
    low = quantize_onnx(data, images[::2], Tolerance(keep=()), progress=False)
    others = images[1::2]
    assert errors(data, low.onnx, others) < 0.17
    assert errors(data, low.onnx, others) < 0.7 * errors(data, plain, others)


def _activation(found, name, model=None):
    """The values of one activation on the small samples."""
    model = found.copy() if model is None else model
    if name not in {value.name for value in model.graph.output}:
        value = next(value for value in model.graph.value_info if value.name == name)
        model.graph.output.append(value)
    return open_raw(model.SerializeToString()).run([name], {"image": SMALL_SAMPLES})[0]

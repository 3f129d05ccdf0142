"""Networks as ONNX files: what is in them, what is refused, what is said when it cannot be done."""

import json
import logging
import sys
import warnings

import onnx
import pytest
import torch
from onnx_helpers import GREY, RECIPE, exported, exported_grey, grey_network, network, noise
from torch import nn

from learnkit.backends import onnx_export
from learnkit.backends.onnx_export import Pixels, export_onnx
from learnkit.backends.onnx_file import check_onnx, stored_float16, write_metadata
from learnkit.errors import BundleCorruptError, ExportError, MissingExtraError

HEAD = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def metadata_of(data):
    return {entry.key: entry.value for entry in model_of(data).metadata_props}


class Custom(nn.Module):
    """A convolution, then whatever a stranger wrote."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, x):
        return self.function(self.conv(x))


def model_of(data):
    return onnx.load_model_from_string(data)


class TestTheFile:
    def test_takes_pixels_and_gives_features_and_logits_for_any_number_of_images(self):
        graph = model_of(exported()).graph
        shapes = {
            value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)
        }
        assert shapes == {
            "image": ["batch", 32, 32, 3],
            "features": ["batch", 256],
            "logits": ["batch", 3],
        }
        assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8

    def test_of_a_head_that_lives_outside_only_features_remain(self):
        graph = model_of(exported_grey()).graph
        assert [output.name for output in graph.output] == ["features"]
        assert not any("head" in node.name for node in graph.node)

    def test_stands_alone_and_says_how_images_are_prepared(self):
        check_onnx(exported())
        assert json.loads(metadata_of(exported_grey())["preprocessing"]) == GREY.to_dict()

    def test_nodes_bear_the_names_of_the_networks_modules(self):
        names = [node.name for node in model_of(exported()).graph.node]
        modules = dict(network().named_children())
        convolutions = {name.rpartition("/")[0] for name in names if name.endswith("/Conv")}
        inside = {f"body.{n}" for n, m in modules["0"].named_modules() if isinstance(m, nn.Conv2d)}
        assert convolutions == inside
        assert len(set(names)) == len(names)

    def test_tells_nothing_of_the_machine_it_was_made_on(self):
        for trace in (b"File ", b".py", b"site-packages", b"stack_trace", sys.prefix.encode()):
            assert trace not in exported()

    def test_the_same_network_gives_the_same_bytes(self):
        assert export_onnx(grey_network(), GREY, continual=True) == exported_grey()


class TestPixels:
    @pytest.mark.parametrize("recipe", [RECIPE, GREY, RECIPE.replace(mean=None, std=None)])
    def test_are_normalised_as_everywhere_else(self, recipe):
        images = noise(3, recipe)
        pixels = Pixels(nn.Identity(), nn.Identity(), recipe)
        _, found = pixels(images.permute(0, 2, 3, 1))
        torch.testing.assert_close(found, recipe.normalize(images), rtol=1e-6, atol=1e-6)


class TestTheCallersThings:
    def test_are_left_as_they_were_and_nothing_is_said(self, capfd, caplog):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
        model[1].eval()
        before = {name: t.clone() for name, t in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        state = torch.get_rng_state()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            export_onnx(nn.Sequential(model, HEAD), GREY, continual=True)
        assert capfd.readouterr() == ("", "")
        assert not caught
        assert not caplog.records
        assert not logging.getLogger("torch.onnx").disabled
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in model.modules()] == modes
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


class TestWhatCannotBeExported:
    def test_operators_onnx_lacks_are_named_and_torch_is_offered(self):
        model = nn.Sequential(Custom(torch.special.bessel_j0), HEAD)
        with pytest.raises(ExportError, match=r'nothing for prims.bessel_j0 as.*backend="torch"'):
            export_onnx(model, RECIPE, continual=False)

    def test_operators_it_has_for_other_shapes_only_are_named_too(self):
        attention = nn.functional.scaled_dot_product_attention
        model = nn.Sequential(Custom(lambda x: attention(x[0], x[0], x[0])[None] + x), HEAD)
        with pytest.raises(ExportError, match=r"for aten\.scaled_dot_product_attention as"):
            export_onnx(model, RECIPE, continual=False)

    def test_code_that_looks_at_its_images_is_no_graph(self, capfd, caplog):
        model = nn.Sequential(Custom(lambda x: x if x.sum() > 0 else -x), HEAD)
        with pytest.raises(ExportError, match=r'captured as a graph.*backend="torch"'):
            export_onnx(model, RECIPE, continual=False)
        assert capfd.readouterr() == ("", "")
        assert not caplog.records

    def test_one_number_of_images_only(self):
        model = nn.Sequential(Custom(lambda x: x.reshape(2, 4, 30, 30)), HEAD)
        with pytest.raises(ExportError, match="one number of images at a time only"):
            export_onnx(model, RECIPE, continual=False)

    def test_a_network_that_is_not_the_same_twice(self):
        calls = iter(range(100))
        model = nn.Sequential(Custom(lambda x: x + next(calls)), HEAD)
        with pytest.raises(ExportError, match=r"off by .*depends on more than its images"):
            export_onnx(model, RECIPE, continual=True)

    def test_no_body(self):
        with pytest.raises(ExportError, match="a Linear without a body"):
            export_onnx(nn.Linear(3, 2), RECIPE, continual=False)

    def test_no_feature_map(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
        with pytest.raises(ExportError, match=r"the body gives \(2, 3072\)"):
            export_onnx(model, RECIPE, continual=False)

    def test_too_much_for_one_file(self, monkeypatch):
        monkeypatch.setattr(onnx_export, "_LIMIT", 1000)
        with pytest.raises(ExportError, match=r"one ONNX file holds 1,000.*torch"):
            export_onnx(network(), RECIPE, continual=False)

    @pytest.mark.parametrize("name", ["onnx", "onnxscript"])
    def test_without_the_packages_the_pip_line_is_given(self, monkeypatch, name):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtraError, match=rf'{name} .*pip install "learnkit\[onnx\]"'):
            export_onnx(network(), RECIPE, continual=False)


class TestMetadata:
    def test_comes_back_and_what_was_there_stays(self):
        data = write_metadata(exported_grey(), {"classes": ["ß/<b>", "NO"], "note": "é"})
        found = metadata_of(data)
        assert found["classes"] == '["\\u00df/<b>", "NO"]'
        assert found["note"] == "é"
        assert json.loads(found["preprocessing"]) == GREY.to_dict()


class TestFloat16:
    def test_halves_the_file(self):
        assert len(stored_float16(exported())) < 0.55 * len(exported())

    def test_weights_it_cannot_hold_stay(self):
        model = model_of(exported_grey())
        kernel = next(t for t in model.graph.initializer if len(t.dims) == 4)
        large = onnx.numpy_helper.to_array(kernel) * 1e6
        kernel.CopyFrom(onnx.numpy_helper.from_array(large, kernel.name))
        kept = model_of(stored_float16(model.SerializeToString())).graph.initializer
        (found,) = (onnx.numpy_helper.to_array(t) for t in kept if t.name == kernel.name)
        assert (found == large).all()


def edited(change):
    """The grey network after `change(model)`."""
    model = model_of(exported_grey())
    change(model)
    return model.SerializeToString()


def external(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_constant(model):
    tensor = onnx.TensorProto(data_type=1, dims=[2])
    tensor.external_data.add(key="location", value="../w.bin")
    node = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    model.graph.node.insert(0, node)


def with_node(*args, **kwargs):
    return lambda model: model.graph.node.append(onnx.helper.make_node(*args, **kwargs))


def with_loop(model):
    body = onnx.helper.make_graph([], "body", [], [])
    with_node("Loop", ["a", "b"], ["c"], body=body)(model)


def with_function(model):
    model.functions.add(name="f", domain="mine")


def huge(model):
    model.graph.initializer.add(name="h", data_type=1, dims=[1 << 31, 1 << 31])


def sparse(model):
    model.graph.sparse_initializer.add(dims=[5])


def is_read(data):
    try:
        check_onnx(data)
    except BundleCorruptError:
        return False
    return True


class TestRefusedFiles:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (external, "weights in another file"),
            (external_constant, "weights in another file"),
            (with_node("Evil", ["image"], ["x"], domain="com.evil"), "Evil of 'com.evil'"),
            (with_node("FusedConv", ["image"], ["x"], domain="com.microsoft"), "FusedConv"),
            (with_loop, "graph inside an operator Loop"),
            (with_function, "functions of its own"),
            (huge, "does not fit"),
            (sparse, "sparse weights"),
            (lambda model: model.ClearField("graph"), "no graph"),
            (lambda model: model.graph.ClearField("node"), "0 operators"),
        ],
    )
    def test_for_what_they_hold(self, change, reason):
        with pytest.raises(BundleCorruptError, match=f"refused: .*{reason}.*export the model"):
            check_onnx(edited(change))

    def test_quantised_operators_of_onnxruntime_are_fine(self):
        node = with_node("QuantizeLinear", ["a", "b", "c"], ["x"], domain="com.microsoft")
        check_onnx(edited(node))

    def test_cut_off_anywhere(self):
        data = exported_grey()
        whole = [end for end in range(len(data)) if is_read(data[:end])]
        # only between the fields behind the graph can a file end and be one: then it lacks them
        assert len(whole) < 4
        assert all(len(data[end:]) < 700 for end in whole)

    def test_bytes_that_are_anything(self):
        generator = torch.Generator().manual_seed(0)
        for n in range(200):
            data = bytes(torch.randint(256, (n,), generator=generator).tolist())
            with pytest.raises(BundleCorruptError):
                check_onnx(data)

"""Every backend gives what torch gives; those that cannot run say why."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import MappingProxyType

import numpy as np
import onnx
import pytest
import torch
from onnx_helpers import (
    GREY,
    RECIPE,
    channels_last,
    exported,
    exported_grey,
    grey_network,
    network,
    noise,
)
from torch import nn

from learnkit.backends import processor
from learnkit.backends import registry as backends
from learnkit.backends.devices import devices
from learnkit.backends.onnx_file import stored_float16
from learnkit.backends.openvino_session import check_ir
from learnkit.backends.processor import has_bfloat16, n_threads, processor_flags
from learnkit.backends.registry import open_session
from learnkit.backends.torch_session import Network, TorchSession
from learnkit.errors import (
    BackendUnavailableError,
    BundleCorruptError,
    ExportError,
    MissingExtraError,
    OptimizeError,
    PredictionError,
)
from learnkit.inference.model import Model
from learnkit.inference.prediction import predictions
from learnkit.models.eval_mode import torch_threads

# largest difference to torch's float32 there may be, as a share of the largest value
TOLERANCES = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 3e-2}
CASES = [
    ("onnxruntime", "float32"),
    ("onnxruntime", "float16"),
    ("openvino", "float32"),
    ("openvino", "float16"),
    ("openvino", "bfloat16"),
    ("torch", "float32"),
    ("torch", "bfloat16"),
]


def session_of(backend, precision, **kwargs):
    """The small efficientnet in a backend; whatever the processor, bfloat16 is computed."""
    if backend == "torch":
        return TorchSession(network(), precision, RECIPE, continual=False, **kwargs)
    data = stored_float16(exported()) if precision == "float16" else exported()
    return open_session(backend, precision, {"onnx": data}, **{"threads": 1, **kwargs})


opened = cache(session_of)  # sessions change nothing, so tests may share them


@pytest.fixture
def any_processor(monkeypatch):
    monkeypatch.setattr(backends, "has_bfloat16", lambda: True)


@pytest.fixture(params=CASES, ids="-".join)
def session(request, any_processor):
    return opened(*request.param)


def off(found, expected):
    """Largest difference as a share of the largest value."""
    return (np.abs(found - expected).max() / np.abs(expected).max()).item()


class TestEveryBackend:
    def test_gives_torchs_features_and_logits_for_any_number_of_images(self, session):
        reference = Network(network(), RECIPE, owned=True)
        allowed = TOLERANCES[session.precision]
        for n in (1, 2, 16):
            images = channels_last(noise(n, seed=n))
            features, logits = session.run(images)
            assert features.dtype == logits.dtype == np.float32
            expected = reference.run(images)
            assert off(features, expected[0]) < allowed
            # the head was scaled up to spread the logits, and spreads differences with them
            assert off(logits, expected[1]) < 20 * allowed

    def test_no_images_give_no_rows(self, session):
        features, logits = session.run(session.no_images())
        assert (features.shape, logits.shape) == ((0, 256), (0, 3))

    def test_gives_the_same_bits_again_and_in_four_threads_at_once(self, session):
        images = [channels_last(noise(n, seed=n)) for n in (1, 2, 3, 4) * 3]
        expected = [session.run(one) for one in images]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(session.run, images))
        for one, other in zip(expected, found, strict=True):
            assert all(map(np.array_equal, one, other))

    def test_refuses_images_of_another_shape_or_type(self, session):
        right = channels_last(noise(1))
        for wrong in (right[0], right[:, :30], right.astype("float32"), right[..., :1], None):
            with pytest.raises(PredictionError, match=r"takes uint8 \(N, 32, 32, 3\)"):
                session.run(wrong)

    def test_says_what_it_is(self, session):
        assert (session.n_features, session.n_outputs, session.device) == (256, 3, "cpu")
        assert f"{session.backend} {session.precision} session" in repr(session)

    def test_takes_arrays_in_any_memory_layout(self, session):
        images = channels_last(noise(2))
        strided = np.repeat(images, 2, axis=0)[::2]
        assert np.array_equal(session.run(strided)[0], session.run(images)[0])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_grey_images_that_are_not_square_and_a_head_outside(backend):
    if backend == "torch":
        found = TorchSession(grey_network(), "float32", GREY, continual=True)
    else:
        found = open_session(backend, "float32", {"onnx": exported_grey()}, threads=1)
    images = noise(3, GREY)
    features, logits = found.run(channels_last(images))
    expected = Network(grey_network(), GREY, owned=True).features(channels_last(images))
    assert logits is None
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(PredictionError, match="has no head"):
        predictions(Model(found, GREY, tuple("abcde")), channels_last(images))
    with pytest.raises(PredictionError, match=r"\(24, 40, 1\).*makes them \(32, 32, 3\)"):
        Model(found, RECIPE, ("a",))


def test_another_number_of_classes_is_refused():
    model = Model(session_of("onnxruntime", "float32"), RECIPE, tuple("abcd"))
    with pytest.raises(PredictionError, match=r"shape \(1, 3\) for 1 image and 4 classes"):
        predictions(model, channels_last(noise(1)))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_files_run_where_there_is_no_torch(backend, tmp_path):
    (tmp_path / "net.onnx").write_bytes(exported_grey())
    code = f"""
        import sys
        import numpy as np
        for name in ("torch", "fastai", "pandas", "matplotlib", "onnx", "timm"):
            sys.modules[name] = None
        from learnkit.backends.registry import open_session
        data = open({str(tmp_path / "net.onnx")!r}, "rb").read()
        session = open_session({backend!r}, "float32", {{"onnx": data}}, threads=1)
        print(session.run(np.zeros((2, 24, 40, 1), np.uint8))[0].shape)
    """
    code = textwrap.dedent(code)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert run.stdout.strip() == "(2, 8)", run.stderr


class TestOpenvino:
    def test_compiled_for_one_size_of_batch_it_gives_the_same_and_takes_others(self):
        usual = session_of("openvino", "float32")
        found = session_of("openvino", "float32", batch_size=2)
        for n in (1, 2, 3):
            images = channels_last(noise(n))
            assert off(found.run(images)[0], usual.run(images)[0]) < TOLERANCES["float32"]
        assert [len(one._idle) for one in (found._fixed[2], found._any_number)] == [1, 1]

    @pytest.mark.parametrize("size", [0, 1.0, True])
    def test_a_size_that_is_none_is_refused(self, size):
        with pytest.raises(OptimizeError, match="`batch_size` is"):
            session_of("openvino", "float32", batch_size=size)


class TestTorch:
    def test_leaves_the_network_as_it_was(self):
        model = grey_network().train()
        before = [parameter.clone() for parameter in model.parameters()]
        TorchSession(model, "bfloat16" if has_bfloat16() else "float32", GREY, continual=False)
        assert all(module.training for module in model.modules())
        assert all(map(torch.equal, before, model.parameters()))
        model.eval()

    def test_threads_are_set_for_the_time_of_a_run(self, monkeypatch):
        seen, before = [], torch.get_num_threads()
        found = TorchSession(grey_network(), "float32", GREY, continual=True, threads=3)
        run = found._outputs
        monkeypatch.setattr(
            found, "_outputs", lambda images: (seen.append(torch.get_num_threads()), run(images))[1]
        )
        found.run(channels_last(noise(1, GREY)))
        assert (seen, found.threads, torch.get_num_threads()) == ([3], 3, before)

    def test_a_compiler_that_fails_is_named(self, monkeypatch):
        def fails(*_):
            raise RuntimeError("no g++ here")

        monkeypatch.setattr(torch, "compile", lambda body, options: fails)
        with pytest.raises(BackendUnavailableError, match=r"no g\+\+ here.*compile=False"):
            TorchSession(grey_network(), "float32", GREY, continual=True, compile=True)

    def test_needs_a_body_with_a_map(self):
        for model in (nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Identity())):
            with pytest.raises(ExportError, match=r"without a body|the body gives \(1, 960\)"):
                TorchSession(model, "float32", GREY, continual=True)


class TestWhatCannotBeHad:
    def test_a_backend_there_is_not(self):
        with pytest.raises(BackendUnavailableError, match="'tensorrt'; there are onnx"):
            open_session("tensorrt", "float32", {})

    def test_a_precision_it_does_not_know_names_what_is_possible(self):
        with pytest.raises(BackendUnavailableError, match=r"it knows float32.*onnxruntime int8"):
            open_session("onnxruntime", "bfloat16", {})

    @pytest.mark.parametrize("backend", ["openvino", "torch"])
    def test_bfloat16_on_a_processor_without_it(self, backend, monkeypatch):
        monkeypatch.setattr(processor, "processor_flags", lambda: frozenset({"avx2", "fma"}))
        reason = r"neither avx512_bf16 nor amx_bf16 \(its flags: avx2 fma\)"
        with pytest.raises(BackendUnavailableError, match=reason):
            session_of(backend, "bfloat16")

    def test_torchs_float16_on_a_processor(self):
        with pytest.raises(BackendUnavailableError, match="several times slower"):
            session_of("torch", "float16")

    @pytest.mark.parametrize("device", ["cuda", "npu"])
    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
    def test_a_device_that_is_not_here(self, backend, device, monkeypatch):
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(BackendUnavailableError, match=device):
            session_of(backend, "float32", device=device)

    def test_parameters_it_does_not_have(self):
        with pytest.raises(OptimizeError, match=r"no parameter streams; it takes \{'spinning'"):
            session_of("onnxruntime", "float32", streams=3)

    @pytest.mark.parametrize("threads", [0, 1.5, True])
    def test_threads_that_are_no_number_of_threads(self, threads):
        with pytest.raises(OptimizeError, match="`threads` is"):
            session_of("onnxruntime", "float32", threads=threads)

    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
    def test_a_package_that_is_not_installed(self, backend, monkeypatch):
        extra = {"onnxruntime": "onnx", "openvino": "openvino"}[backend]
        monkeypatch.setitem(sys.modules, backend, None)
        with pytest.raises(MissingExtraError, match=rf'pip install "learnkit\[{extra}\]"') as error:
            session_of(backend, "float32")
        assert isinstance(error.value, ImportError)
        (row,) = (row for row in devices() if row["backend"] == backend)
        assert (row["version"], row["precisions"]) == (None, ())
        assert f"learnkit[{extra}]" in row["why_not"]["float32"]

    def test_files_that_are_not_there(self):
        with pytest.raises(BundleCorruptError, match=r"openvino int8 network lacks \['bin'\]"):
            open_session("openvino", "int8", {"xml": b""})

    def test_torch_is_not_made_of_files(self):
        with pytest.raises(BackendUnavailableError, match="use TorchSession"):
            open_session("torch", "float32", {"onnx": b""})


def rewritten(change):
    model = onnx.load_model_from_string(exported_grey())
    change(model.graph)
    return model.SerializeToString()


def rename_input(graph):
    for name in [*graph.node[0].input]:
        graph.node[0].input[0] = "picture" if name == "image" else name
    graph.input[0].name = "picture"


def unknown_operator(graph):
    graph.node[-1].op_type = "Nonsense"


def more_pixels(graph):
    graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
class TestFilesThatAreNoNetworks:
    def test_are_refused(self, backend):
        data = exported_grey()
        wrong = [b"", b"no network", data[: len(data) // 2]]
        wrong += [rewritten(f) for f in (rename_input, unknown_operator, more_pixels)]
        for one in wrong:
            with pytest.raises(BundleCorruptError):
                open_session(backend, "float32", {"onnx": one}, threads=1)

    def test_weights_elsewhere_are_never_looked_for(self, backend, tmp_path):
        def external(graph):
            tensor = graph.initializer[0]
            (tmp_path / "weights").write_bytes(bytes(4096))
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=str(tmp_path / "weights"))

        with pytest.raises(BundleCorruptError, match="weights in another file"):
            open_session(backend, "float32", {"onnx": rewritten(external)}, threads=1)


@pytest.fixture(scope="module")
def openvino_files(tmp_path_factory):
    import openvino

    path = tmp_path_factory.mktemp("ir") / "net.xml"
    openvino.save_model(openvino.Core().read_model(exported_grey()), path)
    return {"xml": path.read_bytes(), "bin": path.with_suffix(".bin").read_bytes()}


class TestOpenvinoFiles:
    def test_run_like_the_onnx_file_they_came_from(self, openvino_files):
        images = channels_last(noise(2, GREY))
        expected, _ = open_session("openvino", "float32", {"onnx": exported_grey()}).run(images)
        found, _ = open_session("openvino", "int8", openvino_files).run(images)
        assert off(found, expected) < TOLERANCES["float16"]  # weights are saved in float16

    @pytest.mark.parametrize(
        ("old", "new", "reason"),
        [
            (b"<net", b"<!DOCTYPE net><net", "entities"),
            (b'version="opset1"', b'version="evil"', "of 'evil'"),
            (b'offset="0"', b'offset="99999999"', "weights beyond"),
            (b'offset="0"', b'offset="-1"', "weights beyond"),
            (b'offset="0"', b'offset="x"', "invalid literal"),
            (b"</net>", b"", "no element found"),
            (b"net", b"nut", "describes no network"),
        ],
    )
    def test_are_refused_when_tampered_with(self, openvino_files, old, new, reason):
        tampered = openvino_files["xml"].replace(old, new)
        assert tampered != openvino_files["xml"]
        with pytest.raises(BundleCorruptError, match=f"refused: .*{reason}"):
            check_ir(tampered, len(openvino_files["bin"]))

    def test_are_refused_with_too_few_weights(self, openvino_files):
        short = {**openvino_files, "bin": openvino_files["bin"][:-8]}
        with pytest.raises(BundleCorruptError, match="weights beyond"):
            open_session("openvino", "int8", short)


class TestDevices:
    def test_lists_every_backend_with_its_parameters(self):
        found = {(row["backend"], row["device"]): row for row in devices()}
        assert {name for name, _ in found} == set(backends.BACKENDS)
        assert found["torch", "cpu"]["parameters"] == {"channels_last": True, "compile": False}
        assert "float32" in found["onnxruntime", "cpu"]["precisions"]
        for row in found.values():
            assert set(row["precisions"]) ^ set(row["why_not"]) == set(backends.PRECISIONS)

    def test_says_what_the_processor_lacks(self, monkeypatch):
        monkeypatch.setattr(processor, "processor_flags", frozenset)
        rows = {row["backend"]: row for row in devices()}
        assert "avx512_bf16" in rows["openvino"]["why_not"]["bfloat16"]
        assert "flags unknown" in repr(devices())

    def test_names_what_brings_a_backend_that_is_not_installed(self, monkeypatch):
        missing = property(lambda backend: backend.packages)
        monkeypatch.setattr(type(backends.BACKENDS["torch"]), "missing", missing)
        rows = {row["backend"]: row for row in devices()}
        told = {name: rows[name]["why_not"]["float32"] for name in rows}
        assert told["torch"].endswith("torch not installed: pip install learnkit")
        assert told["openvino"].endswith('pip install "learnkit[openvino]"')

    def test_fits_a_terminal_and_names_only_what_could_run_elsewhere(self, monkeypatch):
        monkeypatch.setattr(processor, "processor_flags", lambda: frozenset({"fma", "avx2"}))
        lines = repr(devices()).splitlines()
        assert max(map(len, lines)) <= 80
        header, *table = (line.split() for line in lines if " cpu " in line or "float32" in line)
        assert header[-4:] == list(backends.PRECISIONS)
        marks = {row[0]: dict(zip(header, row, strict=True)) for row in table[:3]}
        assert marks["torch"]["int8"] == marks["onnxruntime"]["bfloat16"] == "-"
        assert marks["openvino"]["bfloat16"] == "-"
        assert marks["onnxruntime"]["int8"] == marks["torch"]["float32"] == "yes"
        said = " ".join(" ".join(lines).split())
        assert "openvino on cpu, bfloat16: the processor has neither" in said
        assert "torch on cpu, int8" not in said

    def test_is_shown_as_a_table_with_everything_escaped(self, monkeypatch):
        row = backends.Backend("<b>", ("json",), None, ("float32",), MappingProxyType({}))
        monkeypatch.setattr(
            "learnkit.backends.devices.importlib.metadata.version", lambda name: "<i>1"
        )
        monkeypatch.setattr("learnkit.backends.devices.BACKENDS", {"<b>": row})
        shown = devices()._repr_html_()
        assert "&lt;b&gt;" in shown
        assert "<b>" not in shown
        assert "<i>" not in shown


class TestProcessor:
    def test_flags_are_read_as_linux_lists_them(self, tmp_path):
        for text in ("flags\t\t: fpu avx2\nflags: other\n", "Features : fpu avx2\n"):
            path = tmp_path / str(len(text))
            path.write_text("model name : x\n" + text, encoding="utf-8")
            assert processor_flags(str(path)) == {"fpu", "avx2"}

    def test_none_are_known_where_they_are_not_listed(self, tmp_path):
        assert processor_flags(str(tmp_path / "absent")) == frozenset()

    def test_threads_are_those_this_process_may_use(self, monkeypatch):
        monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
        assert (n_threads(), n_threads(2)) == (3, 2)


def test_torch_has_as_many_threads_afterwards_as_before():
    before = torch.get_num_threads()
    with pytest.raises(KeyError, match=str(before + 1)), torch_threads(before + 1):
        raise KeyError(torch.get_num_threads())
    assert torch.get_num_threads() == before

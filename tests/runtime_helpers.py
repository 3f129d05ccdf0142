"""A network as a hand-made ONNX file, and a bundle with it as a variant: no export, no torch."""

import copy
import json
import math

import numpy as np
import torch
from deploy_helpers import shades

from learnkit.backends.registry import open_session
from learnkit.bundle.schema import SCHEMA
from learnkit.bundle.scoring_file import scoring_tensors
from learnkit.bundle.variant import Variant, path_of
from learnkit.bundle.variant_probes import recorded
from learnkit.continual.ood_detector import OodDetector
from learnkit.data.preprocess import Preprocessing
from learnkit.inference.prediction import not_finite, prediction_of
from learnkit.storage.formats import tensors_to_bytes, to_json
from learnkit.storage.write_folder import write_folder

NAME = "onnxruntime-float32"
SIZE, WIDTH = 16, 12


def onnx_bytes(n_classes=None, *, n_features=WIDTH, size=SIZE, channels=3):
    """An ONNX file: a convolution over blocks of 4 x 4 pixels, its mean over space, and logits."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weight = rng.normal(size=(n_features, channels, 4, 4)).astype("float32") / 255
    tensors = {"weight": weight}
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["pixels", "weight"], ["map"], strides=[4, 4]),
        helper.make_node("Relu", ["map"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    widths = {"features": n_features}
    if n_classes is not None:
        tensors["last"] = rng.normal(size=(n_features, n_classes)).astype("float32")
        nodes.append(helper.make_node("MatMul", ["features", "last"], ["logits"]))
        widths["logits"] = n_classes
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, channels])],
        [helper.make_tensor_value_info(name, float32, ["n", d]) for name, d in widths.items()],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def features_of(data, images):
    """What the network in `data` makes of `images`, a tensor float32 (N, D)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["features"], {"image": np.stack(images)})[0])


def variant_files(name=NAME, *, onnx, head=None, classes=("a", "b"), probe=None, **changes):
    """The files of a variant; those of `head`, where there is one."""
    is_detector = isinstance(head, OodDetector)
    own = () if head is None or is_detector else head.classes
    backend, precision = name.split("-")
    config, state = (None, None) if head is None else head.state()
    described = {
        "backend": backend,
        "precision": precision,
        "params": {},
        "files": ("onnx",),
        "classes": tuple(own or classes),
        "multi_label": False,
        "threshold": 0.5,
        "n_features": WIDTH,
        "weights": "0" * 64,
        "preprocessing": Preprocessing(SIZE).to_dict(),
        "versions": {},
        "continual": config if own else None,
        "ood": config if is_detector else None,
        **changes,
    }
    images = np.stack(shades("probe", 2, size=SIZE)) if probe is None else probe
    session = open_session("onnxruntime", "float32", {"onnx": onnx}, threads=1)
    probes = recorded(session, images, 0.0)
    files = {
        "json": Variant(**described).to_bytes(),
        "onnx": onnx,
        "probe.safetensors": tensors_to_bytes({k: torch.tensor(v) for k, v in probes.items()}),
    }
    if head is not None:
        tensors = scoring_tensors(head)
        files["judge.safetensors"] = tensors_to_bytes(tensors)
        files["state.safetensors"] = tensors_to_bytes(state)
    return {path_of(name, ending): data for ending, data in files.items()}


def write_bundle(path, *variants, default=None, metadata=None):
    """SHA-256 of a bundle at `path` that holds these files of variants, and no weights."""
    section = {"schema": SCHEMA, "critical": [], "metadata": metadata or {}}
    section |= {} if default is None else {"default_variant": default}
    files = {"config.json": json.dumps({"learnkit": section}).encode()}
    for variant in variants:
        files |= variant
    return write_folder(path, files, about={"schema": SCHEMA})


def json_tensor(value):
    """`value` as `facts` of a file of judgements."""
    return torch.frombuffer(bytearray(to_json(value)), dtype=torch.uint8)


# the same in torch, as a reference


def torch_predictions(head, features):
    """For each row of `features` (N, D) its prediction, or a PredictionError.

    All of it is said by the head as it is at one moment, whoever changes it meanwhile.

    Raises:
        ContinualPredictionError: the head knows no class, or features of another width.
    """
    head = copy.copy(head)  # shares what it knows, which never changes
    sound = features.isfinite().all(1)
    with torch.no_grad():
        probs = head(features[sound]).softmax(1)
    nonconformity = head.scoring.nonconformity
    return _rows(probs, sound, head.classes, _said(head, features[sound], nonconformity))


def torch_predictions_beside(detector, logits, features, classes):
    """As `torch_predictions`, beside a trained head that gave `logits` (N, C)."""
    detector = copy.copy(detector)
    sound = logits.isfinite().all(1) & features.isfinite().all(1)
    said = _said(detector, features[sound], detector.nonconformity)
    return _rows(logits[sound].softmax(1), sound, classes, said)


def _said(head, features, nonconformity):
    """Fields of `Prediction` from `ood_score` on, for each row of finite features."""
    threshold, scores = head.threshold, head.ood_scores(features)
    return [
        {
            "ood_score": score,
            "ood_threshold": threshold.value,
            "p_value": None if math.isnan(p_value) else p_value,
            "nonconformity": nonconformity,
        }
        for score, p_value in zip(scores.tolist(), threshold.p_values(scores).tolist(), strict=True)
    ]


def _rows(probs, sound, classes, said):
    """A prediction for every sound row, whose probabilities and judgements come in order."""
    rows = (prediction_of(row, classes, **own) for row, own in zip(probs, said, strict=True))
    return [next(rows) if is_sound else not_finite() for is_sound in sound.tolist()]

"""A whole model as one plain ONNX file: pixels in; probabilities, features and OOD score out.

Whatever reads ONNX runs it: C++, C#, browsers. The scoring behind the network is that of
`uncertainty.scoring`, step by step, in operators of ONNX's own and in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.backends.extras import extra
from learnkit.data.labels import ids_of_classes
from learnkit.errors import ExportError
from learnkit.inference.prediction import Prediction, knowledge_of, predictions
from learnkit.storage.filesystem import write_file
from learnkit.storage.write_folder import check_outside
from learnkit.uncertainty.ood import BLANK_ACTIVATION, BLANK_SCORE, SCORE_FLOOR
from learnkit.uncertainty.scoring import BLANK, OF_CLASSES, OF_LOGITS, Scoring

if TYPE_CHECKING:
    from learnkit.inference.model import Model

PROBABILITIES, OOD_SCORE = "probabilities", "ood_score"
_TOLERANCE = 1e-4  # of probabilities, and of scores relative to 1 or the score, as it is checked
_INSTEAD = "take the float32 model: load_learner(path, variant='float32')"
_DOMAINS = {"", "ai.onnx"}
_OPSET = 18  # from this one on axes are inputs of every reduction


def plain_onnx(model: Model) -> tuple[bytes, dict[str, Any]]:
    """(ONNX file of `model` in operators of ONNX's own, its metadata); weights are inside.

    Input `image` uint8 (N, H, W, C), read and resized as `preprocessing` in the metadata says.
    Outputs, all float32: `probabilities` (N, C), `features` (N, D), and `ood_score` (N,) where the
    model detects images out of distribution: one is unknown if it is above `ood_threshold`.

    The network computes in float32 (or as it was converted), what is concluded from it in float64.
    Where images are not finite in the network, so are the outputs.

    Raises:
        ExportError: the model knows no class yet; it was converted to what is no plain ONNX; the
            network cannot be exported; or the file says something else than the model.
        MissingExtraError: onnx is not installed.
    """
    from learnkit.backends.onnx_file import write_metadata

    onnx = extra("onnx")
    frozen = model.frozen()
    if not frozen.knows_classes:
        raise ExportError("the model knows no class yet; extend it with labelled images first")
    scoring, classes = knowledge_of(frozen)
    proto = onnx.load_model_from_string(_network(frozen))
    if foreign := sorted({node.domain for node in proto.graph.node} - _DOMAINS):
        raise ExportError(f"{frozen.variant} uses operators of {', '.join(foreign)}; {_INSTEAD}")
    version = next(one.version for one in proto.opset_import if one.domain in _DOMAINS)
    if version < _OPSET:
        raise ExportError(f"the file is in opset {version}, before {_OPSET}; {_INSTEAD}")
    graph = _Graph(onnx, proto.graph)
    by_scoring = scoring is not None and scoring.labels
    affine = None if scoring is None else graph.affine(scoring)
    if by_scoring:
        assert affine is not None
        # rounded and widened again, as `Scoring.logits` is before its softmax
        logits = graph("Cast", affine[1], to=onnx.TensorProto.FLOAT)
    else:
        logits = "logits"
    wide = graph("Cast", logits, to=onnx.TensorProto.DOUBLE)
    probs = graph("Sigmoid", wide) if frozen.multi_label else graph("Softmax", wide, axis=1)
    outputs = {PROBABILITIES: probs}
    if scoring is not None:
        assert affine is not None
        outputs[OOD_SCORE] = graph.ood_score(scoring, *affine)
    graph.end(outputs, {PROBABILITIES: len(classes), "features": None, OOD_SCORE: 0})
    data = proto.SerializeToString(deterministic=True)
    about = _about(frozen, scoring, classes)
    data = write_metadata(data, about)
    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
    _check_alike(data, frozen, scoring)
    return data, about


def write_onnx(path: Path, model: Model) -> dict[str, Any]:
    """The metadata of the file written to `path`: what `plain_onnx` gives, whole or not at all."""
    check_outside(path)
    data, about = plain_onnx(model)
    write_file(path, lambda file: file.write(data))
    return about


def _network(model: Model) -> bytes:
    """The network alone, from pixels to features and, under a trained head, logits."""
    if model.variant is None:
        from learnkit.backends.onnx_export import export_onnx

        is_open = model.head is not None
        return export_onnx(model.network.model, model.preprocessing, continual=is_open)
    files = {} if model.converted is None else model.converted.files
    if "onnx" not in files:
        raise ExportError(f"{model.variant} is no ONNX file; {_INSTEAD}")
    return files["onnx"]


def _about(model: Model, scoring: Scoring | None, classes: Sequence[str]) -> dict[str, Any]:
    """The metadata: what a program around the file needs beside the numbers."""
    from learnkit._version import __version__

    ids = ids_of_classes(model.class_ids, len(classes)) if model.class_ids else range(len(classes))
    about = {
        "learnkit": __version__,
        "classes": list(classes),
        "class_ids": list(ids),
        "preprocessing": model.preprocessing.to_dict(),
        "multi_label": model.multi_label,
        "precision": "float32" if model.variant is None else model.variant,
    }
    if model.multi_label:
        threshold = model.threshold
        about["threshold"] = threshold if isinstance(threshold, float) else list(threshold)
    if scoring is not None:
        about["ood_threshold"] = float(scoring.threshold.value)
    return about


class _Graph:
    """Adds operators behind a network, and gives the names of what they compute."""

    def __init__(self, onnx: Any, graph: Any):
        self.onnx, self.graph, self.n = onnx, graph, 0

    def __call__(self, op: str, *inputs: Any, **attributes: Any) -> str:
        """The name of what `op` gives; an input that is no name is a constant."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        self.n += 1
        name = f"scoring_{self.n}"
        node = self.onnx.helper.make_node(op, names, [name], name=f"scoring/{op}_{self.n}")
        node.attribute.extend(
            self.onnx.helper.make_attribute(key, value) for key, value in attributes.items()
        )
        self.graph.node.append(node)
        return name

    def constant(self, value: Any) -> str:
        """A constant in float64, stored in half the space where float32 holds it exactly."""
        array = np.asarray(value)
        self.n += 1
        name = f"scoring_{self.n}"
        whole = array.dtype.kind == "i"
        small = array if whole else array.astype(np.float32)
        exact = whole or (array.ndim > 1 and np.array_equal(small, array))
        kept = small if exact else array.astype(np.float64)
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(kept, name))
        if whole or not exact:
            return name
        return self("Cast", name, to=self.onnx.TensorProto.DOUBLE)

    def reduced(self, op: str, x: str, *, keep: bool = False) -> str:
        """One number for each row."""
        return self(op, x, np.array([1]), keepdims=int(keep))

    def embedded(self, root: bool) -> str:
        """Rows of length 1 of the features; see `uncertainty.scoring.unit_rows`."""
        x = self("Cast", "features", to=self.onnx.TensorProto.DOUBLE)
        if root:
            size = self("Abs", x)
            roots = self("Mul", self("Sign", x), self("Sqrt", size))
            x = self("Where", self("LessOrEqual", size, BLANK**2), 0.0, roots)
        top = self.reduced("ReduceMax", self("Abs", x), keep=True)
        blank = self("LessOrEqual", top, BLANK)
        # by the largest entry first, which keeps squares in range; `Where` computes both sides,
        # so that blank rows are divided by 1
        x = self("Where", blank, 0.0, self("Div", x, self("Where", blank, 1.0, top)))
        length = self("Sqrt", self.reduced("ReduceSum", self("Mul", x, x), keep=True))
        return self("Div", x, self("Where", blank, 1.0, length))

    def affine(self, scoring: Scoring) -> tuple[str, str]:
        """(embedded features, logits of the classifier over them)."""
        x = self.embedded(scoring.root)
        return x, self("Add", self("MatMul", x, scoring.weight.T), scoring.bias)

    def ood_score(self, scoring: Scoring, x: str, logits: str) -> str:
        """The score (N,) of embedded features, as `Scoring.ood_scores` has it."""
        raw = self._parts(scoring, x, logits, {part for part, _, _ in scoring.standards})
        parts = [
            self("Div", self("Sub", raw[part], loc), spread)
            for part, loc, spread in scoring.standards
        ]
        score = parts[0]
        if len(parts) > 1:
            floored = [self("Max", part, SCORE_FLOOR) for part in parts]
            total = reduce(lambda a, b: self("Add", a, b), floored)  # no runtime averages float64
            score = self("Div", total, float(len(parts)))
        if scoring.shifts is not None:
            winner = self("ArgMax", logits, axis=1, keepdims=0)
            score = self("Add", score, self("Gather", np.asarray(scoring.shifts), winner))
        wide = self("Cast", "features", to=self.onnx.TensorProto.DOUBLE)
        power = self.reduced("ReduceMean", self("Mul", wide, wide))
        blank = self("Less", self("Sqrt", power), BLANK_ACTIVATION)
        return self("Where", blank, BLANK_SCORE, score)

    def _parts(self, scoring: Scoring, x: str, logits: str, parts: set[str]) -> dict[str, str]:
        """The parts of the score (N,) before they are standardised."""
        found = {}
        if not OF_CLASSES.isdisjoint(parts):
            whole = "mahalanobis" in parts
            found["relative"], from_center = self._distances(scoring.distances, whole, x)
            if from_center:
                found["mahalanobis"] = self("Add", found["relative"], from_center)
        if "knn" in parts:
            memory = scoring.neighbors
            # |x - m|^2 = |x|^2 - 2 x m + |m|^2, which rounding can take below 0
            products = self("Mul", self("MatMul", x, memory.features.T), -2.0)
            nearest = self.reduced("ReduceMin", self("Add", products, memory.squares))
            square = self("Add", nearest, self.reduced("ReduceSum", self("Mul", x, x)))
            found["knn"] = self("Sqrt", self("Max", square, 0.0))
        if not OF_LOGITS.isdisjoint(parts):
            largest = self.reduced("ReduceMax", self("Softmax", logits, axis=1))
            found["msp"] = self("Sub", 1.0, largest)
            # log-sum-exp, less the largest, so that no exponential overflows
            top = self.reduced("ReduceMax", logits, keep=True)
            odds = self.reduced("ReduceSum", self("Exp", self("Sub", logits, top)))
            energy = self("Add", self.reduced("ReduceMax", logits), self("Log", odds))
            found["energy"] = self("Mul", energy, -float(scoring.temperature))
        return found

    def _distances(self, distances: Any, whole: bool, x: str) -> tuple[str, str]:
        """Squared distances to the nearest class less that to the center, and the latter."""
        y = self("Sub", x, distances.center)
        products = self("Mul", self("MatMul", y, distances.covectors.T), -2.0)
        relative = self.reduced("ReduceMin", self("Add", products, distances.offsets))
        if not whole:
            return relative, ""
        # |u|^2 = base |y|^2 - |y axes|^2, or |y axes|^2 where base is 0: see `ClassDistances`
        inside = self("MatMul", y, distances.axes)
        along = self.reduced("ReduceSum", self("Mul", inside, inside))
        if not distances.base:
            return relative, along
        square = self.reduced("ReduceSum", self("Mul", y, y))
        return relative, self("Sub", self("Mul", square, float(distances.base)), along)

    def end(self, outputs: dict[str, str], widths: dict[str, int | None]) -> None:
        """Give results in float32 the names of outputs, beside the features."""
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        features = next(one for one in self.graph.output if one.name == "features")
        kept = self.onnx.ValueInfoProto()
        kept.CopyFrom(features)
        del self.graph.output[:]
        batch = kept.type.tensor_type.shape.dim[0].dim_param or "batch"
        values = []
        for name, found in outputs.items():
            self.graph.node.append(helper.make_node("Cast", [found], [name], name=name, to=kind))
            shape = [batch, widths[name]] if widths[name] else [batch]
            values.append(helper.make_tensor_value_info(name, kind, shape))
        self.graph.output.extend([values[0], kept, *values[1:]])


def _check_alike(data: bytes, model: Model, scoring: Scoring | None) -> None:
    """Raise ExportError unless the file says what the model says, of its probes or noise."""
    from learnkit.backends.torch_session import channels_last, default_probes

    try:
        ort = extra("onnxruntime")
    # nothing here can run the file then; it is given as it is
    except ImportError:
        return
    probes = default_probes(model.preprocessing, 3) if model.probes is None else model.probes
    images = channels_last(probes)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": images}), strict=True))
    said = [one for one in predictions(model, images) if isinstance(one, Prediction)]
    if len(said) < len(images):
        raise ExportError("the network's outputs are not finite; check the weights for NaN")
    wanted = {PROBABILITIES: np.stack([np.asarray(one.probs) for one in said])}
    if scoring is not None:
        wanted[OOD_SCORE] = np.array([one.ood_score for one in said])
    for name, values in wanted.items():
        off = np.abs(found[name] - values) / np.maximum(1, np.abs(values))
        if not (off <= 10 * _TOLERANCE).all():
            raise ExportError(
                f"the exported file gives `{name}` off by {off.max():.2g} from the model's; "
                "this network computes other numbers in ONNX"
            )

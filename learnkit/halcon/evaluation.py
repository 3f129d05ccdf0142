"""Evaluation of a classifier, with HALCON's measures, keys and layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from learnkit.evaluation import measures
from learnkit.evaluation.confusion import confusion_matrix
from learnkit.halcon.dataset import SPLITS, chosen, image_id, sample_file, samples_of
from learnkit.halcon.errors import HError
from learnkit.halcon.handles import checked_model
from learnkit.halcon.model import ids_named, ids_of
from learnkit.halcon.operators import as_bool, as_tuple, checked_params, one_value, procedure

_PLAIN = (
    "precision",
    "recall",
    "f_score",
    "absolute_confusion_matrix",
    "relative_confusion_matrix",
)
_TOP = re.compile(r"top([1-9]\d*)_error")
_DEFAULTS = {
    "evaluation_type": "classification",
    "measures": "top1_error",
    "class_names_to_evaluate": None,
    "class_ids_to_evaluate": "global",
    "show_progress": "true",
    "evaluate_instances": "false",
    "class_ids": None,
    "num_classes": None,
}


@procedure("EvaluationResult", "EvalParams")
def evaluate_dl_model(
    dldataset: Mapping[str, Any],
    dlmodel_handle: Any,
    sample_select_method: str,
    sample_select_values: Any,
    gen_param: Any = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(results, the parameters they were made with), of preprocessed samples.

    'global' holds the errors and the means over classes, 'class_id_<id>' those of a class. Rows of
    confusion matrices are the predictions, columns the truth, in the order of the model's ids.
    'evaluated_samples' has learnkit's own 'confidences' (N, C), whose columns are its 'class_ids',
    and where the model detects images out of distribution 'ood_scores' (N,) and 'ood_threshold'.

    Differs from HALCON: a class without an image is no error; its recall is NaN, and means are over
    the classes that have images. Any ids are taken.

    Args:
        dldataset: preprocessed; its ids are the model's.
        dlmodel_handle: the model.
        sample_select_method: 'split', 'image_ids' or 'sample_indices'.
        sample_select_values: of that.
        gen_param: 'measures', one or several of 'top<k>_error' for any k, 'precision', 'recall',
            'f_score', 'absolute_confusion_matrix', 'relative_confusion_matrix', or 'all';
            'class_names_to_evaluate' or 'class_ids_to_evaluate' ('global'); 'show_progress'.

    Raises:
        HError: an unknown key or measure, no samples, or labels that are no ids of the model.
    """
    model = checked_model(dlmodel_handle)
    ids = ids_of(model)
    params = checked_evaluation(gen_param, ids)
    wanted, classes = params["measures"], params["class_ids_to_evaluate"]
    rows = chosen(dldataset, _selected(dldataset, sample_select_method, sample_select_values))
    truth = _truth(rows, list(ids.values()))
    files = [sample_file(dldataset, row) for row in rows]
    answers = model.predictor.predict_batch(files)
    probs = np.stack([np.asarray(one.probs) for one in answers])
    about = {**params, "class_names": list(ids), "class_ids": list(ids.values())}
    about["num_classes"] = len(ids)
    found = classification_measures(probs, truth, list(ids.values()), wanted, classes)
    guesses = np.asarray([*ids.values()])[probs.argmax(1)]
    found["evaluated_samples"] = {
        "image_ids": [row.get("image_id") for row in rows],
        "image_label_ids": truth,
        "top1_predictions": guesses.tolist(),
        "class_ids": list(ids.values()),
        "confidences": probs,
    }
    if model.predictor.detects_ood:
        found["evaluated_samples"] |= {
            "ood_scores": [one.ood_score for one in answers],
            "ood_threshold": answers[0].ood_threshold,
        }
    return found, about


def checked_evaluation(gen_param: Any, ids: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The checked parameters of an evaluation, classes too where the model's `ids` are given."""
    params = checked_params(gen_param, _DEFAULTS, "evaluate_dl_model", of_operator=False)
    as_bool(params["show_progress"], "show_progress")
    params["measures"] = _checked_measures(params["measures"])
    if ids is not None:
        params["class_ids_to_evaluate"] = _classes_to_evaluate(params, ids)
    return params


def _checked_measures(given: Any) -> list[str]:
    """The measures that are meant."""
    wanted = as_tuple(given)
    for name in wanted:
        if name not in (*_PLAIN, "all") and not _TOP.fullmatch(str(name)):
            raise HError(
                f"there is no measure {name!r}; there are 'top<k>_error', "
                f"{', '.join(map(repr, _PLAIN))}, 'all'"
            )
    return ["top1_error", *_PLAIN] if "all" in wanted else wanted


def _selected(dldataset: Mapping[str, Any], method: str, values: Any) -> list[int]:
    """Places of the samples that are meant; HError if there are none."""
    samples, wanted = samples_of(dldataset), as_tuple(values)
    if method == "split":
        if unknown := [one for one in wanted if one not in SPLITS]:
            raise HError(f"there is no split {unknown[0]!r}; there are {', '.join(SPLITS)}")
        places = [i for i, sample in enumerate(samples) if sample.get("split") in wanted]
    elif method == "image_ids":
        place_of = {image_id(sample): place for place, sample in enumerate(samples)}
        if unknown := [one for one in wanted if not isinstance(one, int) or one not in place_of]:
            raise HError(f"no sample has the 'image_id' {unknown[0]!r:.80}")
        places = [place_of[one] for one in wanted]
    elif method == "sample_indices":
        places = wanted
    else:
        raise HError(
            f"`sample_select_method` is {method!r}; it takes 'split', 'image_ids' or "
            "'sample_indices'"
        )
    if not places:
        raise HError(f"no sample is selected by {method!r} {values!r}")
    return places


def _truth(rows: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> list[int]:
    """The id of each sample's class."""
    found = [one_value(row.get("image_label_id")) for row in rows]
    # as text: True would be the id 1, and lists go into no set
    if unknown := sorted({str(one) for one in found if not isinstance(one, int) or one not in ids}):
        raise HError(
            f"samples have the 'image_label_id' {unknown[0]}, and the model knows {sorted(ids)}; a "
            "dataset that was learned by extend_dl_continual_learning has the model's ids"
        )
    return found


def _classes_to_evaluate(params: Mapping[str, Any], ids: Mapping[str, int]) -> list[Any]:
    """'global' and ids of classes."""
    names = as_tuple(params["class_names_to_evaluate"])
    wanted = ids_named(names, ids) or as_tuple(params["class_ids_to_evaluate"])
    # compared one by one, without a set: a dictionary may be among them, and has no hash
    if unknown := [one for one in wanted if one != "global" and one not in ids.values()]:
        raise HError(f"there is no class {unknown[0]!r} to evaluate; there are {dict(ids)}")
    return wanted


def classification_measures(
    probs: np.ndarray,
    truth: Sequence[int],
    ids: Sequence[int],
    wanted: Sequence[str],
    classes: Sequence[Any] = ("global",),
) -> dict[str, Any]:
    """The measures of predictions, under HALCON's keys.

    Args:
        probs: (N, C).
        truth: N ids.
        ids: C ids, in the order of the columns of `probs`.
        wanted: names of measures.
        classes: 'global' and ids.
    """
    place = {one: number for number, one in enumerate(ids)}
    targets = np.asarray([place[one] for one in truth])
    matrix = confusion_matrix(targets, probs.argmax(1), len(ids))
    per_class = _per_class(matrix)
    found: dict[str, Any] = {}
    if "global" in classes:
        found["global"] = _global(probs, targets, per_class, wanted)
    for one in (one for one in classes if one != "global"):
        found[f"class_id_{one}"] = _of_class(probs, targets, per_class, place[one], wanted)
    if "absolute_confusion_matrix" in wanted:
        # HALCON's rows are the predictions, learnkit's the truth
        found["absolute_confusion_matrix"] = matrix.T
    if "relative_confusion_matrix" in wanted:
        found["relative_confusion_matrix"] = relative(matrix.T)
    return found


def _per_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F-score of each class; precision is 0 if it was never predicted."""
    hits, n, predicted = measures.class_counts(matrix)
    has_images = n > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(has_images, hits / n, np.nan)
        precision = np.where(predicted > 0, hits / np.maximum(predicted, 1), 0.0)
        both = precision + recall
        # 0 where both are 0, and NaN times 0, which is NaN, for a class without images
        score = np.where(both > 0, 2 * precision * recall / both, both * 0)
    return {"precision": precision, "recall": recall, "f_score": score, "n": n}


def _global(
    probs: np.ndarray, targets: np.ndarray, per_class: Mapping[str, Any], wanted: Sequence[str]
) -> dict[str, Any]:
    found: dict[str, Any] = _top_errors(probs, targets, wanted)
    has_images = per_class["n"] > 0
    for name in ("precision", "recall", "f_score"):
        if name in wanted:
            found[f"mean_{name}"] = float(per_class[name][has_images].mean())
            found[f"{name}_per_class"] = per_class[name].tolist()
    return found


def _of_class(
    probs: np.ndarray,
    targets: np.ndarray,
    per_class: Mapping[str, Any],
    place: int,
    wanted: Sequence[str],
) -> dict[str, Any]:
    own = targets == place
    found: dict[str, Any] = _top_errors(probs[own], targets[own], wanted)
    for name in ("precision", "recall", "f_score"):
        if name in wanted:
            found[name] = float(per_class[name][place])
    return found


def _top_errors(probs: np.ndarray, targets: np.ndarray, wanted: Sequence[str]) -> dict[str, float]:
    """Share of samples whose class is not among the k likeliest, for each k that is wanted."""
    found = {}
    for name in wanted:
        if match := _TOP.fullmatch(name):
            k = min(int(match[1]), probs.shape[1])
            right = measures.top_k_accuracy(probs, targets, k) if len(targets) else float("nan")
            found[name] = 1 - right
    return found


def relative(matrix: np.ndarray) -> np.ndarray:
    """A confusion matrix of predictions by truth as shares of the truth; 0 where there is none."""
    n = matrix.sum(0, keepdims=True)
    return np.where(n > 0, matrix / np.maximum(n, 1), 0.0)


@procedure("ConfusionMatrix")
def gen_confusion_matrix(
    ground_truth_labels: Any,
    predicted_classes: Any,
    gen_param_name: Any = (),
    gen_param_value: Any = (),
    window_handle: Any = (),
) -> np.ndarray:
    """The confusion matrix, rows predicted, columns true, of labels in sorted order.

    Args:
        ground_truth_labels: the true label of each sample, numbers or names.
        predicted_classes: the predicted ones.
        gen_param_name: 'return_matrix' ('none', 'absolute', 'relative'), 'display_matrix',
            'display_color', 'display_column_width'.
        gen_param_value: of these; only 'return_matrix' matters here.
        window_handle: not used.

    Raises:
        HError: other numbers of labels, or an unknown key.
    """
    names, values = as_tuple(gen_param_name), as_tuple(gen_param_value)
    defaults = {
        "return_matrix": "absolute",
        "display_matrix": "absolute",
        "display_color": "true",
        "display_column_width": "minimal",
    }
    if len(names) != len(values):
        raise HError(f"there are {len(values)} values for the {len(names)} names {names}")
    given = dict(zip(names, values, strict=True))
    params = checked_params(given, defaults, "gen_confusion_matrix", of_operator=False)
    if (kind := params["return_matrix"]) not in ("none", "absolute", "relative"):
        raise HError(f"'return_matrix' is {kind!r}; it takes 'none', 'absolute' or 'relative'")
    truth, guesses = as_tuple(ground_truth_labels), as_tuple(predicted_classes)
    if len(truth) != len(guesses) or not truth:
        raise HError(
            f"there are {len(truth)} true and {len(guesses)} predicted labels; one each is needed"
        )
    # numbers and names cannot be sorted together
    kinds = {str if isinstance(one, str) else int for one in (*truth, *guesses)}
    if len(kinds) > 1 or not all(isinstance(one, str | int) for one in (*truth, *guesses)):
        raise HError("labels are all of them names, or all of them whole numbers")
    labels = sorted({*truth, *guesses})
    place = {label: number for number, label in enumerate(labels)}
    numbers = (np.asarray([place[one] for one in values]) for values in (truth, guesses))
    matrix = confusion_matrix(*numbers, len(labels)).T
    if kind == "none":
        return np.zeros((0, 0), int)
    return relative(matrix) if kind == "relative" else matrix

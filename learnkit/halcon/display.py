"""Pictures: HALCON's display procedures as figures of matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

# not pyplot's, which keeps each figure until it is closed
from matplotlib.figure import Figure

from learnkit.evaluation.evaluate import evaluate
from learnkit.halcon.dataset import find_dl_samples, image_file, sample_file, samples_of
from learnkit.halcon.errors import HError
from learnkit.halcon.handles import MAX_SIDE, checked_model
from learnkit.halcon.model import (
    apply_dl_model,
    class_targets,
    maps_by_id,
    sample_images,
    samples_in,
)
from learnkit.halcon.model import ids_of as ids_of_model
from learnkit.halcon.operators import (
    as_dict,
    as_tuple,
    checked_params,
    is_whole,
    one_value,
    procedure,
)
from learnkit.halcon.samples import read_dl_samples
from learnkit.interpret.page.images import EvaluatedImages
from learnkit.interpret.page.page import EvaluationPage

_OF_EVALUATION = {
    "display_mode": "measures",
    "measure_color": "white",
    "row_col_names_color": "black",
    "display_column_width": "equal",
    "display_color": "true",
    "font": "mono",
    "font_size": 14,
}
_MAX_TILES = 1000
_KEYS = (
    "image",
    "classification_ground_truth",
    "classification_result",
    "classification_both",
    "heatmap_grad_cam",
    "heatmap_confidence_based",
)


@procedure()
def dev_display_classification_evaluation(
    evaluation_result: Mapping[str, Any],
    eval_param: Mapping[str, Any],
    gen_param: Any = (),
    window_handle_dict: MutableMapping[str, Any] | None = None,
) -> None:
    """Draw an evaluation; each figure is put into `window_handle_dict` under its mode.

    Args:
        evaluation_result: of `evaluate_dl_model`.
        eval_param: likewise.
        gen_param: 'display_mode', one or several of 'measures', 'absolute_confusion_matrix',
            'relative_confusion_matrix', 'pie_charts_precision', 'pie_charts_recall'; sizes and
            colours are taken and not used.
        window_handle_dict: to be filled.

    Raises:
        HError: an unknown key or mode, or a mode whose measures were not evaluated.
    """
    where = "dev_display_classification_evaluation"
    params = checked_params(gen_param, _OF_EVALUATION, where, of_operator=False)
    modes = as_tuple(params["display_mode"])
    if unknown := [mode for mode in modes if mode not in _MODES]:
        raise HError(f"'display_mode' has {unknown[0]!r}; it takes {', '.join(map(repr, _MODES))}")
    windows = _windows(window_handle_dict)
    result, param = as_dict(evaluation_result), {"class_names": [], **as_dict(eval_param)}
    for mode in modes:
        windows[mode] = _MODES[mode](result, param)


def _windows(given: Any) -> MutableMapping[str, Any]:
    """The dictionary of windows; another one where none is given."""
    return given if isinstance(given, MutableMapping) else {}


def _measures(result: Mapping[str, Any], param: Mapping[str, Any]) -> Figure:
    """A table of the measures of all samples and of each class."""
    numbers = {
        name: value for name, value in result.get("global", {}).items() if np.isscalar(value)
    }
    figure = Figure(figsize=(5, 0.6 + 0.35 * max(1, len(numbers))), layout="constrained")
    ax = figure.subplots()
    ax.axis("off")
    rows = [[name, f"{value:.4f}"] for name, value in numbers.items()] or [
        ["", "nothing evaluated"]
    ]
    ax.table(rows, colLabels=["measure", "value"], loc="center", cellLoc="left")
    return figure


def _matrix(name: str) -> Callable[..., Figure]:
    def draw(result: Mapping[str, Any], param: Mapping[str, Any]) -> Figure:
        if name not in result:
            raise HError(f"{name!r} was not evaluated; name it among the 'measures'")
        return _matrix_figure(np.asarray(result[name]), param["class_names"])

    return draw


def _matrix_figure(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """A confusion matrix of predictions (rows) by truth (columns)."""
    side = max(3.5, 0.6 * len(names) + 1.5)
    figure = Figure(figsize=(side, side), layout="constrained")
    ax = figure.subplots()
    # a class without images has a column of zeros, not of 0 / 0
    shares = matrix / np.maximum(matrix.sum(0, keepdims=True), 1e-12)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*matrix.shape):
        value = matrix[row, column]
        said = f"{value:.2f}" if matrix.dtype.kind == "f" else str(value)
        colour = "white" if shares[row, column] > 0.5 else "black"
        ax.text(column, row, said, ha="center", va="center", color=colour)
    ticks = range(len(names))
    # else a class with two $ in its name is set as a formula
    ax.set_xticks(ticks, names, rotation=45, ha="right", parse_math=False)
    ax.set_yticks(ticks, names, parse_math=False)
    ax.set_xlabel("ground truth")
    ax.set_ylabel("predicted")
    return figure


def _pies(name: str) -> Callable[..., Figure]:
    def draw(result: Mapping[str, Any], param: Mapping[str, Any]) -> Figure:
        values = result.get("global", {}).get(f"{name}_per_class")
        if values is None:
            raise HError(f"{name!r} was not evaluated; name it among the 'measures'")
        n = len(values)
        figure = Figure(figsize=(2.2 * min(n, 5), 2.5 * -(-n // 5)), layout="constrained")
        axes = figure.subplots(-(-n // 5), min(n, 5), squeeze=False).ravel()
        for ax, value, label in zip(axes, values, param["class_names"], strict=False):
            # a class without images has the recall NaN, which `pie` refuses
            share = 0.0 if np.isnan(value) else value
            ax.pie([share, 1 - share], colors=["#0072b2", "#e69f00"], startangle=90)
            ax.set_title(f"{label}\n{name} {value:.3f}", fontsize=9, parse_math=False)
        for ax in axes[n:]:
            ax.axis("off")
        return figure

    return draw


_MODES: dict[str, Callable[..., Figure]] = {
    "measures": _measures,
    "absolute_confusion_matrix": _matrix("absolute_confusion_matrix"),
    "relative_confusion_matrix": _matrix("relative_confusion_matrix"),
    "pie_charts_precision": _pies("precision"),
    "pie_charts_recall": _pies("recall"),
}


@procedure("FileName")
def dev_display_dl_interactive_confusion_matrix(
    dldataset: Mapping[str, Any], evaluation_result: Mapping[str, Any], gen_param: Any = ()
) -> str:
    """Write a page whose confusion matrix is clicked for the images of a cell; the file's path.

    Args:
        dldataset: that was evaluated; its images are shown, or its samples where they are gone.
        evaluation_result: of `evaluate_dl_model`.
        gen_param: learnkit's own 'file_name' ('interactive_confusion_matrix.html'); HALCON's
            'display_matrix' is taken and not used: the page has both kinds.

    Raises:
        HError: an unknown key, samples that the dataset has not, or a result of another program.
        UsageError: the file's name does not end in .html, or another file stands there.
    """
    where = "dev_display_dl_interactive_confusion_matrix"
    known = {"file_name": "interactive_confusion_matrix.html", "display_matrix": "absolute"}
    params = checked_params(gen_param, known, where, of_operator=False)
    seen = as_dict(as_dict(evaluation_result).get("evaluated_samples"))
    if "confidences" not in seen:
        raise HError(
            "`evaluation_result` has no 'confidences' among its 'evaluated_samples'; "
            "evaluate_dl_model gives them"
        )
    ids, probs = as_tuple(seen["class_ids"]), np.asarray(seen["confidences"])
    names = _names(dldataset)
    place = {one: number for number, one in enumerate(ids)}
    targets = np.asarray([place[one] for one in as_tuple(seen["image_label_ids"])])
    files = _files(dldataset, seen["image_ids"])
    root = Path(str(dldataset.get("image_dir", "")))
    scores = seen.get("ood_scores")
    images = EvaluatedImages(
        *(probs, targets, files),
        root=root,
        ood_scores=None if scores is None else np.asarray(scores),
        ood_threshold=seen.get("ood_threshold"),
    )
    evaluation = evaluate(probs, targets, [names.get(one, f"class {one}") for one in ids])
    path = EvaluationPage(images).save_html(evaluation, one_value(params["file_name"]))
    return str(path)


def _files(dldataset: Mapping[str, Any], image_ids: Any) -> list[Path]:
    """The files to show of the samples with these ids: the image as it was, else preprocessed."""
    rows = {sample.get("image_id"): sample for sample in samples_of(dldataset)}
    wanted = as_tuple(image_ids)
    if missing := [one for one in wanted if one not in rows]:
        raise HError(
            f"the dataset has no sample with the 'image_id' {missing[0]}; give the dataset that "
            "was evaluated"
        )
    return [
        file
        if "image_file_name" in rows[one] and (file := image_file(dldataset, rows[one])).is_file()
        else sample_file(dldataset, rows[one])
        for one in wanted
    ]


@procedure()
def dev_display_dl_data(
    dlsample: Any,
    dlresult: Any = (),
    dldataset_info: Mapping[str, Any] | None = None,
    keys_for_display: Any = "image",
    gen_param: Any = (),
    window_handle_dict: MutableMapping[str, Any] | None = None,
) -> None:
    """Draw a sample, with its class, its result or its heatmap.

    Args:
        dlsample: one sample.
        dlresult: of `apply_dl_model` or a heatmap.
        dldataset_info: with 'class_names' and 'class_ids'.
        keys_for_display: 'image', 'classification_ground_truth', 'classification_result',
            'classification_both', 'heatmap_grad_cam', 'heatmap_confidence_based'.
        gen_param: taken and not used.
        window_handle_dict: each figure is put here under its key.

    Raises:
        HError: an unknown key, or one whose result is missing.
    """
    sample, result = _one_sample(dlsample), as_dict(dlresult)
    info, windows = as_dict(dldataset_info), _windows(window_handle_dict)
    for key in as_tuple(keys_for_display):
        if key not in _KEYS:
            raise HError(f"there is no {key!r} to display; there are {', '.join(map(repr, _KEYS))}")
        figure = Figure(figsize=(4, 4.4), layout="constrained")
        _draw(figure.subplots(), sample, result, info, key)
        windows[key] = figure


def _one_sample(dlsample: Any) -> dict[str, Any]:
    samples = samples_in(dlsample)
    if len(samples) != 1:
        raise HError(f"there are {len(samples)} samples; give one")
    return samples[0]


def _draw(ax: Axes, sample: Any, result: Any, info: Mapping[str, Any], key: str) -> None:
    (pixels,) = sample_images(sample)
    gray = {"cmap": "gray", "vmin": 0, "vmax": 255}
    # of other channels the first three, or one
    shown = (
        pixels if pixels.ndim == 2 else pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., 0]
    )
    ax.imshow(shown, **gray)
    said = []
    if key in ("classification_ground_truth", "classification_both"):
        names, ids = _names(info), as_tuple(sample.get("image_label_id"))
        said.append("truth: " + (", ".join(str(names.get(one, one)) for one in ids) or "no label"))
    if key in ("classification_result", "classification_both"):
        said.append(_result_text(result))
    if key.startswith("heatmap"):
        said.append(_draw_heat(ax, result, key))
    ax.set_title("\n".join(said), fontsize=9, parse_math=False)
    ax.axis("off")


def _names(dldataset: Mapping[str, Any]) -> dict[int, str]:
    """The name of each class by its id."""
    ids, names = (as_tuple(dldataset.get(key)) for key in ("class_ids", "class_names"))
    if len(ids) != len(names):
        raise HError(f"there are {len(names)} 'class_names' for {len(ids)} 'class_ids'")
    return dict(zip(ids, names, strict=True))


def _result_text(result: Mapping[str, Any]) -> str:
    if "classification_class_names" not in result:
        raise HError("there is no result to display; apply_dl_model makes it")
    name = as_tuple(result["classification_class_names"])[0]
    text = f"{name}: {as_tuple(result['classification_confidences'])[0]:.1%}"
    return f"{text}, unlike anything known" if result.get("ood_result") else text


def _draw_heat(ax: Axes, result: Mapping[str, Any], key: str) -> str:
    """Draw the first heatmap over the image; return what is said of it."""
    if key not in result:
        raise HError(f"the result has no {key!r}; gen_dl_model_heatmap makes heatmaps")
    maps = {k: v for k, v in result[key].items() if k.startswith("heatmap_image_class_")}
    name, heat = next(iter(maps.items()))
    # occlusion has values below 0, where covering the image raises the confidence
    heat = np.maximum(heat, 0)
    of = f"class {name.rpartition('_')[2]}"
    if not heat.any():
        return f"no part of the image speaks for {of}"
    ax.imshow(heat, cmap="magma", alpha=0.55 * heat / heat.max())
    return f"what speaks for {of}"


@procedure("WindowHandleOut")
def dev_display_dl_data_tiled(
    dldataset: Mapping[str, Any],
    dlmodel_handle: Any,
    num_samples: int,
    split: str = "test",
    gen_param: Any = (),
    window_handle: Any = (),
) -> Figure:
    """Draw samples of a split in rows, with truth, and with results if there is a model.

    Args:
        dldataset: preprocessed.
        dlmodel_handle: the model, or [].
        num_samples: how many, at most.
        split: 'train', 'validation' or 'test'.
        gen_param: taken and not used.
        window_handle: not used.
    """
    if not is_whole(num_samples, 1, _MAX_TILES):
        raise HError(f"`num_samples` is {num_samples!r:.80}; it is a number in 1..{_MAX_TILES}")
    places = find_dl_samples(samples_of(dldataset), "split", split, "match")[:num_samples]
    if not places:
        raise HError(f"the dataset has no samples in the split {split!r}")
    samples = read_dl_samples(dldataset, places)
    model = as_tuple(dlmodel_handle)
    results = apply_dl_model(model[0], samples, []) if model else [{}] * len(samples)
    columns = min(5, len(samples))
    rows = -(-len(samples) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    key = "classification_both" if model else "classification_ground_truth"
    for ax, sample, result in zip(axes, samples, results, strict=False):
        _draw(ax, sample, result, dldataset, key)
    for ax in axes[len(samples) :]:
        ax.axis("off")
    return figure


@procedure()
def gen_dl_model_classification_heatmap(
    dlmodel_handle: Any, dlsample: Any, dlresult: MutableMapping[str, Any], gen_param: Any = ()
) -> None:
    """Add a heatmap of confidences to a result: what is lost where a disc covers the image.

    Args:
        dlmodel_handle: any model.
        dlsample: one sample.
        dlresult: gets 'heatmap_confidence_based'.
        gen_param: 'target_class_id' (the likeliest), 'feature_size' (30), 'sampling_size' (7, below
            `feature_size`).

    Raises:
        HError: an unknown key, or a value that it does not take.
        HOperatorError: 7853, an id that no class has.
    """
    model = checked_model(dlmodel_handle)
    defaults = {"target_class_id": [], "feature_size": 30, "sampling_size": 7}
    where = "gen_dl_model_classification_heatmap"
    params = checked_params(gen_param, defaults, where, of_operator=False)
    sizes = {name: one_value(params[name]) for name in ("feature_size", "sampling_size")}
    if not is_whole(sizes["feature_size"], 2, MAX_SIDE):
        raise HError(f"'feature_size' is {sizes['feature_size']!r:.80}; it lies in 2..{MAX_SIDE}")
    if not is_whole(sizes["sampling_size"], 1, sizes["feature_size"] - 1):
        raise HError(
            f"'sampling_size' is {sizes['sampling_size']!r}; it lies in 1..'feature_size' - 1"
        )
    targets = class_targets(model, params["target_class_id"]) or None
    results = dlresult if isinstance(dlresult, list) else [dlresult]
    if len(results) != 1 or not isinstance(results[0], MutableMapping):
        raise HError(f"`dlresult` is {dlresult!r:.80}; it is one dictionary, to be added to")
    (image,) = sample_images(_one_sample(dlsample))
    found = model.predictor.heatmap(image, "occlusion", targets, progress=False, **sizes)
    maps = maps_by_id(found, ids_of_model(model))
    deviation = max(float(np.abs(heat).max()) for heat in found.maps.values())
    about = {"classification_heatmap_maxdeviation": deviation, "heatmap_parameters": sizes}
    results[0]["heatmap_confidence_based"] = {**maps, **about}


@procedure()
def dev_update_off() -> None:
    """Nothing; lines pasted from HDevelop run."""


@procedure()
def stop() -> None:
    """Nothing; lines pasted from HDevelop run."""


@procedure()
def disp_continue_message(window_handle: Any, color: Any = (), box: Any = ()) -> None:
    """Nothing; lines pasted from HDevelop run."""


@procedure()
def dev_close_window_dict(window_handle_dict: MutableMapping[str, Any]) -> None:
    """Forget the figures."""
    _windows(window_handle_dict).clear()


@procedure()
def dev_display_dl_data_close_windows(window_handle_dict: MutableMapping[str, Any]) -> None:
    """Forget the figures."""
    _windows(window_handle_dict).clear()

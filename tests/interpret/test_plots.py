from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from learnkit.errors import InterpretationError
from learnkit.evaluation.measures import calibration_bins
from learnkit.interpret import plots
from learnkit.interpret.canvas import shorten

MATRIX = np.array([[8, 2, 0], [1, 4, 0], [0, 0, 0]])


def texts(ax):
    return [t.get_text() for t in ax.texts]


def overlaps(labels):
    """Whether any of the drawn texts lies over its neighbour."""
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    return any(a.overlaps(b) for a, b in pairwise(boxes))


def test_counts_are_written_into_the_cells():
    ax = plots.plot_confusion(MATRIX, ["a", "b", "c"])
    assert texts(ax) == ["8", "2", "0", "1", "4", "0", "0", "0", "0"]


def test_shares_are_of_the_rows_and_rows_without_samples_show_a_dash():
    ax = plots.plot_confusion(MATRIX, ["a", "b", "c"], normalize=True, norm_dec=1)
    assert texts(ax) == ["0.8", "0.2", "0.0", "0.2", "0.8", "0.0", "–", "–", "–"]
    assert np.isnan(ax.images[0].get_array().filled(np.nan)[2]).all()
    assert ax.images[0].get_clim() == (0, 1)


def test_no_text_on_request_or_with_too_many_classes():
    assert texts(plots.plot_confusion(MATRIX, list("abc"), plot_txt=False)) == []
    many = plots.plot_confusion(np.eye(60, dtype=int), [str(i) for i in range(60)])
    assert texts(many) == []
    assert len(many.figure.axes) == 2  # a colour bar instead


@pytest.mark.parametrize("n", [1, 2, 5, 12, 33, 100])
def test_names_beside_the_matrix_never_overlap(n):
    names = [f"class_{i}_with_a_long_name" for i in range(n)]
    ax = plots.plot_confusion(np.eye(n, dtype=int), names)
    ax.figure.canvas.draw()
    assert max(ax.figure.get_size_inches()) < 15
    assert not overlaps(ax.get_yticklabels())
    figure = ax.figure.bbox
    for label in (ax.yaxis.label, ax.xaxis.label, ax.title, *ax.get_yticklabels()):
        box = label.get_window_extent()
        assert box.x0 >= -1, label
        assert box.y0 >= -1, label
        assert box.x1 <= figure.x1 + 1, label


def test_the_given_axes_are_drawn_on_and_no_figure_is_opened():
    ax = plt.figure().add_subplot()
    before = plt.get_fignums()
    assert plots.plot_confusion(MATRIX, list("abc"), ax=ax, title="mine") is ax
    assert plt.get_fignums() == before
    assert ax.get_title() == "mine"


def test_no_rc_parameter_changes():
    before = mpl.rcParams.copy()
    plots.plot_confusion(MATRIX, list("abc"))
    plots.plot_image_grid([np.zeros((4, 4))], ["x"])
    plots.plot_history(pd.DataFrame({"epoch": [1], "train_loss": [1.0]}))
    assert mpl.rcParams == before


def test_the_grid_shows_each_image_under_its_title():
    images = [np.full((4, 6), 0.5), np.zeros((4, 6, 3))]
    axes = plots.plot_image_grid(images, ["one", "two"], suptitle="both")
    assert [ax.get_title() for ax in axes] == ["one", "two"]
    np.testing.assert_array_equal(axes[0].images[0].get_array(), images[0])
    assert axes[0].images[0].get_clim() == (0, 1)
    assert axes[0].figure.get_suptitle().strip() == "both"
    assert len(plots.plot_image_grid([])) == 0


def test_a_heatmap_without_evidence_leaves_the_image_alone():
    image = np.zeros((8, 8))
    heat = np.array([[0.0, 2.0], [0.0, 0.0]])
    first, second, third = plots.plot_image_grid(
        [image] * 3, heatmaps=[heat, np.zeros((2, 2)), None]
    )
    assert [len(ax.images) for ax in (first, second, third)] == [2, 1, 1]
    assert first.images[1].get_clim() == (0, 2)


def test_history_gets_a_panel_for_losses_errors_and_metrics():
    frame = pd.DataFrame(
        {"fit": 1, "epoch": [1, 2, 3], "lr": 0.1}
        | {"train_loss": [3.0, 2.0, 1.0], "valid_loss": [3.0, 2.5, 2.0]}
        | {"accuracy": [0.1, 0.2, 0.3], "f1": [0.0, 0.2, 0.4], "perplexity": [9.0, 5.0, 4.0]}
        | {"train_error": [0.9, 0.5, 0.1], "valid_error": [0.9, 0.8, 0.7], "time": "00:01"}
    )
    axes = plots.plot_history(frame)
    assert [ax.get_title() for ax in axes] == ["loss", "error", "metrics", "perplexity"]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes[0].lines}
    assert drawn["valid"] == [[1, 3.0], [2, 2.5], [3, 2.0]]
    assert [line.get_label() for line in axes[2].lines] == ["accuracy", "f1"]


def test_one_given_axes_shows_the_losses():
    frame = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "accuracy": [0.5, 0.6]})
    ax = plt.figure().add_subplot()
    assert plots.plot_history(frame, ax=ax) is ax
    assert len(ax.lines) == 1
    with pytest.raises(InterpretationError, match=r"`ax` has 3 Axes for 2 panels \(loss, accuracy"):
        plots.plot_history(frame, ax=plt.figure().subplots(3))


def test_a_history_without_epochs_is_refused():
    with pytest.raises(InterpretationError, match="train first"):
        plots.plot_history(pd.DataFrame())


def test_reliability_draws_what_the_bins_hold():
    probs = np.array([[0.9, 0.1]] * 10 + [[0.3, 0.7]] * 10)
    bins = calibration_bins(probs, [0] * 5 + [1] * 5 + [1] * 10)
    ax = plots.plot_reliability(bins)
    points = ax.collections[0].get_offsets()
    np.testing.assert_allclose(points, [[0.7, 1.0], [0.9, 0.5]])


@pytest.mark.parametrize("width", [5, 9, 20])
def test_shortened_names_keep_both_ends_and_the_width(width):
    text = "abcdefghijklmnopqrstuvwxyz"
    short = shorten(text, width)
    assert len(short) == width
    assert short[0] == "a"
    assert short[-1] == "z"
    assert shorten("short", 20) == "short"

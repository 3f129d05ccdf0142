from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from learnkit.errors import InterpretationError
from learnkit.evaluation.measures import calibration_bins
from learnkit.interpret import plots
from learnkit.report.figure_text import shorten

MATRIX = np.array([[8, 2, 0], [1, 4, 0], [0, 0, 0]])


def texts(ax):
    return [t.get_text() for t in ax.texts]


def overlaps(labels):
    """Whether any of the drawn texts lies over its neighbour."""
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    return any(a.overlaps(b) for a, b in pairwise(boxes))


def test_counts_are_written_into_the_cells():
    ax = plots.plot_confusion(MATRIX, ["a", "b", "c"])
    assert texts(ax) == ["8", "2", "1", "4"]  # zeros are blank
    assert [t.get_position() for t in ax.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_shares_are_of_the_rows_and_rows_without_samples_show_a_dash():
    ax = plots.plot_confusion(MATRIX, ["a", "b", "c"], normalize=True, norm_dec=1)
    assert texts(ax) == ["0.8", "0.2", "0.2", "0.8", "–", "–", "–"]
    assert np.isnan(ax.images[0].get_array().filled(np.nan)[2]).all()
    assert ax.images[0].get_clim() == (0, 1)


def test_colours_are_shares_of_the_row_and_mistakes_have_another_hue():
    counts = np.array([[90, 10, 0], [0, 9, 1], [0, 0, 4]])
    right, wrong = plots.plot_confusion(counts, list("abc")).images
    blue, orange = right.get_array(), wrong.get_array()
    assert blue.compressed().tolist() == [0.9, 0.9, 1.0]
    assert np.argwhere(~blue.mask).tolist() == [[0, 0], [1, 1], [2, 2]]
    assert orange.compressed().tolist() == [0.1, 0.1]  # 10 of 100 weigh like 1 of 10
    assert np.argwhere(~orange.mask).tolist() == [[0, 1], [1, 2]]
    assert right.cmap.name != wrong.cmap.name


def test_beyond_32_classes_those_of_the_commonest_mistakes_are_drawn():
    counts = 7 * np.eye(100, dtype=int)
    counts[3, 60], counts[90, 3] = 2, 1
    ax = plots.plot_confusion(counts, [f"c{i}" for i in range(100)])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["c3", "c60", "c90"]
    assert texts(ax) == ["7", "2", "7", "1", "7"]
    assert ax.images[0].get_array()[0, 0] == pytest.approx(7 / 9)  # of the whole row
    assert ax.get_title().split("\n")[1:] == [
        "3 of 100 classes, those of the commonest mistakes",
        "left out: 97 classes, 0 of 3 mistakes",
    ]
    counts[:50, 50:] += np.eye(50, dtype=int)
    ax = plots.plot_confusion(counts, [f"c{i}" for i in range(100)])
    drawn = [int(t.get_text()[1:]) for t in ax.get_yticklabels()]
    assert {3, 60} < set(drawn)
    assert len(drawn) == 32
    inside = counts[np.ix_(drawn, drawn)]
    n = int(inside.sum() - np.trace(inside))
    assert f"left out: 68 classes, {53 - n} of 53 mistakes" in ax.get_title()


@pytest.mark.parametrize("sheet", ["default", "dark_background"])
def test_numbers_are_read_on_their_cells_and_blank_ones_are_the_paper(sheet):
    with plt.style.context(sheet):
        ax = plots.plot_confusion(np.array([[97, 3], [50, 50]]), ["a", "b"])
        assert {t.get_text(): t.get_color() for t in ax.texts}["97"] == "white"
        assert {t.get_text(): t.get_color() for t in ax.texts}["3"] == "black"


def test_beyond_32_labels_those_with_mistakes_are_drawn():
    counts = np.tile([[5, 0], [0, 5]], (50, 1, 1))
    counts[7] = [[3, 2], [0, 5]]
    axes = plots.plot_label_confusions(counts, [f"l{i}" for i in range(50)])
    assert [ax.get_title() for ax in axes] == ["l7"]
    assert "1 of 50 labels" in axes[0].figure.get_suptitle()


@pytest.mark.parametrize("name", ["$a_b$", r"$\frac{", "_x_", "a\nb\x1b[31m", "\udcff", "سلام"])
def test_no_name_is_taken_for_a_formula_or_steers(name):
    names = [name, "good", "bad"]
    ax = plots.plot_confusion(np.eye(3, dtype=int), names)
    plots.plot_label_confusions(np.ones((3, 2, 2), int), names)[0].figure.canvas.draw()
    ax.figure.canvas.draw()
    shown = ax.get_yticklabels()[0].get_text()
    assert shown.isprintable()
    if name.isprintable():
        assert shown == name


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


def test_the_image_stands_beside_itself_under_its_heatmap():
    image = np.linspace(0, 1, 24 * 48).reshape(24, 48)
    (ax,) = plots.plot_image_grid([image], heatmaps=[np.eye(3)])
    pair, heat = ax.images
    pixels = pair.get_array()
    np.testing.assert_array_equal(pixels[:, :48, 0], image)
    np.testing.assert_array_equal(pixels[:, -48:, 2], image)
    assert (pixels[:, 48:-48, 3] == 0).all()  # nothing between them
    assert heat.get_extent() == [-0.5, 47.5, 23.5, -0.5]
    left, right = ax.get_xlim()
    assert right == 47.5
    assert right - left == pixels.shape[1]  # pixels keep their size


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


def test_several_axes_have_a_short_form_and_are_an_array_all_the_same():
    images = [np.zeros((4, 4))] * 5
    axes = plots.plot_image_grid(images)
    assert repr(axes) == str(axes) == "<5 Axes>"
    assert repr(axes[:4].reshape(2, 2)) == "<2 x 2 Axes>"
    assert isinstance(axes, np.ndarray)
    assert isinstance(axes[0], plt.Axes)
    assert [ax.get_title() for ax in axes.flat] == [""] * 5

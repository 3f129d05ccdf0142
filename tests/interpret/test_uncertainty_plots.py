import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from learnkit.errors import InterpretationError, UncertaintyError
from learnkit.evaluation.measures import calibration_bins
from learnkit.interpret.uncertainty_plots import plot_calibration, plot_ood
from learnkit.uncertainty.ood import BLANK_SCORE
from learnkit.uncertainty.threshold import fit_threshold


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def counts(ax, n):
    """Number of scores in each bar of a histogram of `n` scores."""
    return [round(bar.get_height() * bar.get_width() * n) for bar in ax.patches]


def test_the_legend_gives_the_realised_rates_and_the_wanted_one():
    threshold = fit_threshold(range(100), false_alarm_rate=0.1)  # at 90
    ax = plot_ood([1.0, 2.0, 90.0, 91.0, 99.0, 3.0, 4.0, 5.0], threshold, [80.0, 95.0, 300.0])
    assert legend(ax) == [
        "known: 25 % of 8 flagged",
        "unknown: 66.7 % of 3 flagged",
        "threshold 90, 10 % wanted",
    ]


def test_the_title_says_how_well_the_scores_tell_both_kinds_apart():
    title = plot_ood([1.0, 2.0, 3.0, 4.0], 3.5, [3.5, 9.0]).get_title()
    assert title == "AUROC 0.875, 25.0 % false alarms at 95 % found"
    assert plot_ood([1.0, 2.0], 3.5).get_title() == "Out-of-distribution scores"


def test_bars_hold_every_score_and_none_lies_across_the_threshold():
    scores = np.random.default_rng(0).normal(size=500)
    ax = plot_ood(scores, 1.0)
    assert sum(counts(ax, 500)) == 500
    edges = np.array([bar.get_x() for bar in ax.patches])
    assert np.abs(edges - 1.0).min() < 1e-9
    above = [c for c, x in zip(counts(ax, 500), edges, strict=True) if x > 1.0 - 1e-9]
    assert sum(above) == (scores > 1.0).sum()
    assert legend(ax)[1] == "threshold 1"


def test_a_blank_frame_stands_in_the_last_bar_and_stretches_nothing():
    scores = np.random.default_rng(0).normal(size=100)
    ax = plot_ood(scores, 1.5, [2.0, 3.0, BLANK_SCORE, BLANK_SCORE])
    assert ax.get_xlim()[1] < 30
    strange = ax.patches[len(ax.patches) // 2 :]
    assert round(strange[-1].get_height() * strange[-1].get_width() * 4) == 2


@pytest.mark.parametrize(
    ("known", "cut", "strange"),
    [
        ([1.0] * 5, 1.5, None),
        ([2.0], 2.0, None),
        ([0.0] * 3, 0.0, [0.0]),
        ([], 3.0, [1.0, 9.0]),
        ([BLANK_SCORE], 3.0, None),
        ([1e-9, 2e-9], 1e6, [3e6]),
    ],
)
def test_few_and_equal_scores_are_drawn_too(known, cut, strange):
    ax = plot_ood(known, cut, strange)
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    assert low <= cut <= high
    n_kinds = bool(known) + bool(strange)
    assert len(legend(ax)) == n_kinds + 1
    assert sum(bar.get_height() * bar.get_width() for bar in ax.patches) == pytest.approx(n_kinds)


def test_no_scores_or_no_numbers_are_refused():
    with pytest.raises(InterpretationError, match="`scores_in` and `scores_out` are empty"):
        plot_ood([], 1.0)
    with pytest.raises(UncertaintyError, match="`scores_out` holds nan in row 1"):
        plot_ood([1.0], 1.0, [0.0, np.nan])


def test_calibration_shows_both_errors_and_the_filled_bins():
    probs = np.array([[0.95, 0.05]] * 30 + [[0.55, 0.45]] * 10)
    targets = [0] * 30 + [1] * 10
    before, after = calibration_bins(probs, targets), calibration_bins(np.eye(2), [0, 1])
    ax = plot_calibration(before, after)
    assert legend(ax) == ["ideal", "before: ECE 0.175", "after: ECE 0.000"]
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [[0.55, 0], [0.95, 1]])
    np.testing.assert_allclose(ax.collections[1].get_offsets(), [[1, 1]])
    nothing = calibration_bins(np.zeros((0, 2)), [])
    assert legend(plot_calibration(nothing, after))[1] == "before: ECE nan"


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plot_ood([1.0, 2.0], 3.0, [4.0], ax=ax, title="mine"),
        lambda ax: plot_calibration(
            *[calibration_bins(np.eye(2), [0, 1])] * 2, ax=ax, title="mine"
        ),
    ],
)
def test_the_given_axes_are_drawn_on_and_nothing_else_changes(draw):
    ax = plt.figure().add_subplot()
    figures, settings = plt.get_fignums(), mpl.rcParams.copy()
    assert draw(ax) is ax
    assert ax.get_title() == "mine"
    assert plt.get_fignums() == figures
    assert mpl.rcParams == settings

import random
import re
import warnings
from dataclasses import replace
from pathlib import Path

import helpers
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as skm
import torch
from fastai.learner import Learner
from fastai.vision.augment import Resize
from fastai.vision.data import ImageDataLoaders
from helpers import quiet, tiny_cnn
from PIL import Image

from learnkit.data.dataset import ImageDataset
from learnkit.errors import InterpretationError
from learnkit.interpret.classification import ClassificationInterpretation
from learnkit.interpret.gradcam import grad_cam
from learnkit.interpret.heatmaps import loss_titles
from learnkit.interpret.outputs import Outputs, collect_outputs
from learnkit.interpret.tables import errors_table

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture
def interp(learn):
    return ClassificationInterpretation.from_learner(learn, ds_idx=0)


def by_hand(classes, targets, probs, losses=None, **kwargs):
    """An interpretation of probabilities written down in a test; there is no learner."""
    losses = torch.zeros(len(probs)) if losses is None else torch.tensor(losses)
    targets, probs = torch.tensor(targets), torch.tensor(probs)
    return ClassificationInterpretation(None, probs, targets, losses, classes=classes, **kwargs)


def test_every_number_equals_a_slow_loop_over_the_files(learn, interp):
    dataset = learn.dls.train_ds
    n, probs = len(dataset), interp.outputs.probs
    counts = np.zeros((3, 3), int)
    losses, wrong = [], []
    for i in range(n):
        actual = CLASSES.index(dataset.items[i].parent.name)
        predicted = max(range(3), key=lambda c: probs[i, c].item())
        counts[actual, predicted] += 1
        losses.append(-float(probs[i, actual].log()))
        if actual != predicted:
            wrong.append((losses[-1], str(dataset.items[i]), CLASSES[actual], CLASSES[predicted]))
    assert 0 < len(wrong) < n
    np.testing.assert_array_equal(interp.confusion_matrix(), counts)
    assert interp.evaluation.summary["accuracy"] == pytest.approx(np.trace(counts) / n)
    top, positions = interp.top_losses()
    assert positions.tolist() == sorted(range(n), key=lambda i: -losses[i])
    np.testing.assert_allclose(top, sorted(losses, reverse=True), rtol=1e-5)
    table = interp.errors()
    found = list(zip(table["path"], table["actual"], table["predicted"], strict=True))
    assert found == [row[1:] for row in sorted(wrong, reverse=True)]
    for i, row in table.iterrows():
        assert row["prob"] == pytest.approx(probs[i].max().item())
        assert row["prob_actual"] == pytest.approx(np.exp(-row["loss"]), rel=1e-5)


def test_samples_are_taken_by_position_as_in_fastai(learn, interp):
    inputs, probs, truth, found, losses = interp[[3, 0]]
    with torch.no_grad():
        logits = learn.model.eval()(inputs)
    torch.testing.assert_close(logits.softmax(1), probs)
    assert torch.equal(probs, interp.preds[[3, 0]])
    assert torch.equal(found, probs.argmax(1))
    torch.testing.assert_close(
        losses, torch.nn.functional.cross_entropy(logits, truth, reduction="none")
    )
    assert [len(part) for part in interp[:2]] == [2] * 5
    assert len(interp[1][0]) == 1
    assert interp.dl is interp.data is learn.dls.train
    axes = interp.show_results([2, 5], figsize=(2, 2))
    assert [ax.get_title() for ax in axes] == loss_titles(interp.outputs, [2, 5])[0]


def test_augmented_passes_are_averaged_and_have_losses_of_their_own(learn):
    with learn.no_bar():
        interp = ClassificationInterpretation.from_learner(learn, tta=True)
        torch.manual_seed(0)
        plain = ClassificationInterpretation.from_learner(learn, ds_type="DatasetType.Valid")
        expected = learn.tta()[0]
    assert torch.equal(plain.y_true, interp.y_true)
    torch.testing.assert_close(interp.preds.sum(1), torch.ones(len(expected)))
    wanted = -interp.preds.gather(1, interp.y_true[:, None])[:, 0].log()
    torch.testing.assert_close(interp.losses, wanted)
    assert interp.preds.shape == expected.shape
    with pytest.raises(InterpretationError, match="it is one of train, valid, test"):
        ClassificationInterpretation.from_learner(learn, ds_type="fix")


def test_one_pass_serves_every_question(learn):
    calls = []
    handle = learn.model.register_forward_hook(lambda m, x, y: calls.append(len(y)))
    interp = ClassificationInterpretation.from_learner(learn)
    n_batches = len(calls)
    interp.confusion_matrix()
    interp.most_confused()
    interp.top_losses()
    interp.errors()
    interp.evaluation.to_dict()
    interp.plot_confusion_matrix()
    interp.plot_top_losses(3)
    interp._repr_html_()
    handle.remove()
    assert len(calls) == n_batches == len(learn.dls.valid)


def test_only_the_images_that_are_drawn_are_read_again(learn, monkeypatch):
    interp = ClassificationInterpretation.from_learner(learn)
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda f, *a, **k: opened.append(f) or original(f, *a, **k))
    interp.plot_top_losses(2)
    assert len(opened) <= 2 + 1  # fastai looks at one sample once, to learn the types


def test_no_question_draws_a_random_number(learn):
    def states():
        return random.getstate()[1], np.random.get_state()[1].tolist()  # noqa: NPY002

    data = ImageDataset(
        pd.DataFrame({"path": map(str, learn.dls.train_ds.items), "label": "ant"}), learn.path
    )
    before, torchs = states(), torch.get_rng_state()
    for options in ({"ds_idx": 0}, {"dl": learn.dls.train}, {"data": data}):
        interp = ClassificationInterpretation.from_learner(learn, **options)
        assert states() == before
        interp.plot_top_losses(2, heatmap=True)
        assert states() == before
    assert torch.equal(torch.get_rng_state(), torchs)


def test_most_confused_are_plain_values_in_order():
    probs = np.eye(3)[[1, 1, 0, 2, 2]].tolist()
    interp = by_hand(CLASSES, [0, 0, 1, 1, 2], probs)
    assert interp.most_confused() == [("ant", "bee", 2), ("bee", "ant", 1), ("bee", "cat", 1)]
    assert interp.most_confused(min_val=2) == [("ant", "bee", 2)]
    assert all(type(n) is int for _, _, n in interp.most_confused())


def test_top_losses_are_clamped_and_may_be_the_smallest():
    interp = by_hand(["a", "b"], [0, 0, 0], [[0.5, 0.5]] * 3, [0.2, 0.9, 0.1])
    assert interp.top_losses(99)[1].tolist() == [1, 0, 2]
    losses, positions = interp.top_losses(2, largest=False)
    assert positions.tolist() == [2, 0]
    assert type(losses) is torch.Tensor
    assert f"{losses[0]:.2f}" == "0.10"
    with pytest.raises(InterpretationError, match="`k` is 0; ask for at least one"):
        interp.top_losses(0)


def test_top_losses_name_the_files(interp, learn):
    _, positions, files = interp.top_losses(4, items=True)
    assert files == [learn.dls.train_ds.items[i] for i in positions.tolist()]


def test_v1_v2_and_outputs_make_the_same_interpretation(learn):
    probs, targets, losses = learn.get_preds(with_loss=True)
    v1 = ClassificationInterpretation(learn, probs, targets, losses)
    v2 = ClassificationInterpretation(learn, learn.dls.valid, losses)
    ours = ClassificationInterpretation(learn, collect_outputs(learn))
    for interp in (v1, v2, ours):
        assert interp.classes == CLASSES
        np.testing.assert_array_equal(interp.confusion_matrix(), ours.confusion_matrix())
        torch.testing.assert_close(interp.outputs.losses, ours.outputs.losses)
        assert len(interp.plot_top_losses(2)) == 2


def test_titles_give_the_probability_of_the_actual_class(interp):
    axes = interp.plot_top_losses([0, 2])
    out, positions = interp.outputs, interp.top_losses()[1].tolist()
    for ax, i in zip(axes, (positions[0], positions[2]), strict=True):
        actual = CLASSES[out.targets[i]]
        predicted = CLASSES[out.probs[i].argmax()]
        prob = out.probs[i, out.targets[i]].item()
        expected = f"{predicted} / {actual}\n{out.losses[i].item():.2f} / {prob:.2f}"
        assert ax.get_title() == f"{expected}\n{out.items[i].name}"
    assert "probability of actual" in axes[0].figure.get_suptitle()


def test_files_of_one_name_are_told_by_their_folder(interp):
    outputs = replace(interp.outputs, items=[Path(f"{i}/a.png") for i in range(13)])
    titles, _, _ = loss_titles(outputs, [3, 12])
    assert [title.split("\n")[-1] for title in titles] == ["3/a.png", "12/a.png"]
    titles, _, _ = loss_titles(replace(outputs, items=None), [3])
    assert titles[0].count("\n") == 1


def test_titles_say_whose_evidence_the_heat_is(interp):
    axes = interp.plot_top_losses(99, heatmap=True)
    out, positions = interp.outputs, interp.top_losses()[1]
    for ax, i in zip(axes, positions.tolist(), strict=True):
        name = CLASSES[out.pred_labels[i]]
        seen = len(ax.images) == 2
        assert ax.get_title().endswith(f"\nheat: {name}" if seen else f"\nno evidence of {name}")
    actual = interp.plot_top_losses([0], heatmap=True, explain="actual")[0].get_title()
    assert actual.split("\n")[-1].endswith(CLASSES[out.targets[positions[0]]])


def test_right_answers_among_the_largest_losses_are_told(interp):
    n_wrong = len(interp.errors())
    everything = interp.plot_top_losses(99)[0].figure.get_suptitle()
    assert f"{n_wrong} of these {len(interp.outputs)} are wrong" in everything
    assert "wrong" not in interp.plot_top_losses(1)[0].figure.get_suptitle()


def test_the_worst_mistakes_hold_no_right_answer_and_say_if_they_are_few(interp):
    wrong = interp.errors()
    axes = interp.plot_multi_top_losses(99, heatmap=True)
    assert len(axes) == len(wrong)
    said = axes[0].figure.get_suptitle()
    assert f"only {len(wrong)} of {len(interp.outputs)} images are wrong" in said
    files = [ax.get_title().split("\n")[2] for ax in axes]
    assert files == ["/".join(Path(p).parts[-2:]) for p in wrong["path"]]
    assert "only" not in interp.plot_multi_top_losses(2)[0].figure.get_suptitle()


def test_the_drawn_image_is_the_file_denormalised(interp):
    _, _, files = interp.top_losses(1, items=True)
    drawn = interp.plot_top_losses(1)[0].images[0].get_array()
    expected = np.asarray(Resize(16)(Image.open(files[0]).convert("RGB"), split_idx=1)) / 255
    np.testing.assert_allclose(drawn, expected, atol=1.1 / 255)


@pytest.mark.parametrize("k", [1, 3, 99, range(2), [1, 4]])
def test_k_may_be_a_number_or_ranks(interp, k):
    expected = len(interp.outputs) if k == 99 else k if isinstance(k, int) else len(k)
    assert len(interp.plot_top_losses(k)) == expected


def test_without_text_nothing_is_written(interp):
    figure = interp.plot_top_losses(2, show_text=False, return_fig=True)
    assert [ax.get_title() for ax in figure.axes] == [""] * len(figure.axes)
    assert figure.get_suptitle() == ""


@pytest.mark.parametrize("explain", ["actual", "predicted"])
def test_heatmaps_are_grad_cam_of_the_named_class(learn, interp, explain):
    axes = interp.plot_top_losses(99, heatmap=True, explain=explain, alpha=0.4, cmap="viridis")
    out, positions = interp.outputs, interp.top_losses()[1]
    x, _ = interp._source.read(positions.tolist())
    classes = out.targets if explain == "actual" else out.pred_labels
    maps = grad_cam(learn.model, x, classes[positions])
    for ax, heat in zip(axes, maps, strict=True):
        overlays = ax.images[1:]
        if heat.max() == 0:  # no evidence, no overlay
            assert overlays == []
            continue
        np.testing.assert_allclose(overlays[0].get_array(), heat, rtol=1e-5)
        assert overlays[0].get_extent() == [-0.5, 15.5, 15.5, -0.5]
        assert overlays[0].get_interpolation() == "bilinear"
        assert overlays[0].get_alpha() == 0.4
    assert any(len(ax.images) == 2 for ax in axes)


def test_heatmaps_leave_the_model_as_it_was(learn, interp):
    learn.model.train()
    learn.model[0].requires_grad_(False)
    interp.plot_top_losses(2, heatmap=True)
    assert learn.model.training
    assert all(p.grad is None for p in learn.model.parameters())
    assert not any(p.requires_grad for p in learn.model[0].parameters())


def test_a_feature_map_too_coarse_is_not_drawn_and_says_so_once(interp):
    with pytest.warns(
        UserWarning, match=r"16 x 16 pixels .* 8 x 8 cells, fewer than .*=65"
    ) as seen:
        axes = interp.plot_top_losses(3, heatmap=True, heatmap_thresh=65)
    assert len(seen) == 1
    assert all(len(ax.images) == 1 for ax in axes)


def test_an_unknown_class_to_explain_is_refused(interp):
    with pytest.raises(InterpretationError, match='choose "actual" or "predicted"'):
        interp.plot_top_losses(1, heatmap=True, explain="both")


def test_the_confusion_plot_shows_the_matrix(interp):
    ax = interp.plot_confusion_matrix()
    matrix = interp.confusion_matrix()
    shares = matrix / matrix.sum(1, keepdims=True)
    np.testing.assert_allclose(ax.images[0].get_array().data, shares)
    written = [t.get_text() for t in ax.texts]
    assert written == [str(n) for n in matrix.ravel().tolist() if n]
    assert [t.get_text() for t in ax.get_yticklabels()] == CLASSES
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Predicted", "Actual")
    assert interp.plot_confusion_matrix(slice_size=10, return_fig=True).axes
    assert interp.plot_confusion_matrix(ax=ax) is ax


def test_the_report_is_scikit_learns(interp, capsys):
    interp.print_classification_report()
    out = interp.outputs
    expected = skm.classification_report(
        out.targets, out.probs.argmax(1), labels=[0, 1, 2], target_names=CLASSES, zero_division=0
    )
    assert capsys.readouterr().out.strip() == expected.strip()


def test_a_class_without_samples_and_a_perfect_model_raise_nothing():
    interp = by_hand(CLASSES, [0, 1], np.eye(3)[[0, 1]].tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interp.most_confused() == []
        assert len(interp.errors()) == 0
        assert np.isnan(interp.evaluation.per_class.loc["cat", "recall"])
        interp.plot_confusion_matrix(normalize=True).figure.canvas.draw()
        assert "accuracy 1.0000, 0 wrong" in repr(interp)
        interp._repr_html_()


def test_misclassified_images_come_in_the_order_of_their_losses(interp):
    wrong = interp.errors()
    axes = interp.plot_multi_top_losses(samples=2)
    assert len(axes) == 2
    first = wrong.iloc[0]
    assert axes[0].get_title().startswith(f"{first['predicted']} / {first['actual']}\n")
    images = interp.plot_multi_top_losses(samples=2, save_misclassified=True)
    assert len(images) == len(wrong)
    expected = Resize(16)(Image.open(first["path"]).convert("RGB"), split_idx=1)
    difference = np.asarray(images[0], int) - np.asarray(expected, int)
    assert np.abs(difference).max() <= 1


def test_no_misclassified_image_is_no_error(interp):
    perfect = by_hand(CLASSES, [0, 1], np.eye(3)[[0, 1]].tolist())
    assert len(perfect.plot_multi_top_losses.__func__(interp, 0)) == 0
    assert perfect.errors().empty


def test_a_mistake_in_a_file_whose_name_is_no_text_is_listed():
    names = [Path(f"a/{i}\udcff.png") for i in range(2)]
    interp = by_hand(CLASSES, [0, 1], np.eye(3)[[0, 0]].tolist())
    outputs = replace(interp.outputs, items=names)
    assert errors_table(outputs)["path"].tolist() == [str(names[1])]


def test_several_labels_give_one_matrix_per_label(multi_learn):
    interp = ClassificationInterpretation.from_learner(multi_learn, ds_idx=0)
    out = interp.outputs
    expected = skm.multilabel_confusion_matrix(out.targets, out.probs > 0.4)
    np.testing.assert_array_equal(interp.confusion_matrix(), expected)
    axes = interp.plot_confusion_matrix()
    assert [ax.get_title() for ax in axes] == ["early", "warm"]
    written = [t.get_text() for t in axes[1].texts]
    assert written == [str(n) for n in expected[1].ravel().tolist() if n]
    v1 = ClassificationInterpretation(multi_learn, out.probs, out.targets, out.losses)
    np.testing.assert_array_equal(v1.confusion_matrix(), expected)
    with pytest.raises(InterpretationError, match="none is taken for another"):
        interp.most_confused()
    with pytest.raises(InterpretationError, match="One `ax` cannot hold"):
        interp.plot_confusion_matrix(ax=axes[0])


def test_several_labels_misclassified_means_any_label_is_wrong(multi_learn):
    interp = ClassificationInterpretation.from_learner(multi_learn, ds_idx=0)
    out = interp.outputs
    rows = [i for i in range(len(out)) if ((out.probs[i] > 0.4) != out.targets[i].bool()).any()]
    assert len(rows) > 0
    table = interp.errors()
    assert sorted(table.index) == rows
    position = table.index[0]
    names = [c for c, there in zip(interp.classes, out.targets[position], strict=True) if there]
    assert table.iloc[0]["actual"] == ("; ".join(names) or "–")
    assert np.exp(-2 * table["loss"]).to_numpy() == pytest.approx(
        table["prob_actual"].to_numpy(), rel=1e-4
    )
    assert len(interp.plot_multi_top_losses(2)) == 2
    assert len(interp.plot_top_losses(2, heatmap=True)) == 2
    interp.print_classification_report()
    assert "label_accuracy" in interp._repr_html_()


def test_names_from_outside_are_escaped(tmp_path):
    interp = by_hand(["<b>x</b>", "y"], [0, 0], [[0.2, 0.8], [0.9, 0.1]])
    html = interp._repr_html_()
    assert "<b>x" not in html
    assert "&lt;b&gt;x" in html


def test_masks_and_missing_labels_are_refused(learn):
    masks = torch.softmax(torch.randn(2, 3, 4, 4), 1)
    with pytest.raises(InterpretationError, match="Segmentation, with one answer per pixel"):
        ClassificationInterpretation(learn, masks, torch.zeros(2, 4, 4).long(), torch.zeros(2))
    with pytest.raises(InterpretationError, match="`y` is missing"):
        ClassificationInterpretation(learn, torch.eye(3))
    files = list(learn.dls.valid_ds.items)[:3]
    with pytest.raises(InterpretationError, match="The samples have no labels"):
        ClassificationInterpretation.from_learner(learn, dl=learn.dls.test_dl(files))


def test_predictions_of_other_samples_than_the_loaders_draw_nothing(learn):
    interp = ClassificationInterpretation(learn, torch.eye(3), torch.arange(3), torch.zeros(3))
    with pytest.raises(InterpretationError, match="samples for 3 predictions; pass the loader"):
        interp.plot_top_losses(1)
    with pytest.raises(InterpretationError, match="`learn` is None"):
        by_hand(["a", "b"], [0], [[0.5, 0.5]]).plot_top_losses(1)


def test_losses_are_needed_to_sort_by_them():
    out = Outputs.from_probs(torch.eye(2), torch.tensor([0, 1]))
    with pytest.raises(InterpretationError, match="no losses to sort by"):
        ClassificationInterpretation(None, out).top_losses()


def test_rows_of_a_table_are_read_and_named(image_folder):
    files = sorted(image_folder.rglob("*.png"))
    frame = pd.DataFrame(
        {"name": [str(f.relative_to(image_folder)) for f in files]}
        | {"label": [f.parent.name for f in files]}
    )
    dls = ImageDataLoaders.from_df(
        frame, image_folder, valid_pct=0.5, seed=2, item_tfms=Resize(16), bs=4, num_workers=0
    )
    interp = ClassificationInterpretation.from_learner(quiet(Learner(dls, tiny_cnn(3))))
    assert all(path.exists() for path in interp.outputs.items)
    names = [path.parent.name for path in interp.outputs.items]
    assert names == [CLASSES[i] for i in interp.outputs.targets]
    assert len(interp.plot_top_losses(2)) == 2


def test_grey_images_are_drawn_grey(tmp_path):
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import RandomSplitter, get_image_files, parent_label
    from fastai.vision.core import PILImageBW
    from fastai.vision.data import ImageBlock
    from torch import nn

    root = helpers.write_image_folder(tmp_path, {"a": 4, "b": 4})
    block = DataBlock(
        (ImageBlock(PILImageBW), CategoryBlock),
        get_items=get_image_files,
        get_y=parent_label,
        splitter=RandomSplitter(0.5, seed=1),
        item_tfms=Resize(16),
    )
    model = tiny_cnn(2)
    model[0][0] = nn.Conv2d(1, 8, 3, 2, 1)
    learn = quiet(Learner(block.dataloaders(root, bs=4, num_workers=0), model))
    axes = ClassificationInterpretation.from_learner(learn).plot_top_losses(2)
    assert axes[0].images[0].get_array().shape == (16, 16)


def test_reliability_shows_confidence_and_accuracy_and_what_calibration_did():
    sure = by_hand(["a", "b"], [0, 0, 1, 0], [[0.9, 0.1]] * 4)
    meek = by_hand(["a", "b"], [0, 0, 1, 0], [[0.75, 0.25]] * 4)
    ax = sure.plot_reliability(n_bins=10)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), [[0.9, 0.75]])
    both = meek.plot_reliability(before=sure)
    texts = [text.get_text() for text in both.get_legend().get_texts()]
    assert texts == ["ideal", "before: ECE 0.150", "after: ECE 0.000"]


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", True, np.int64(0)])
def test_how_many_losses_is_a_whole_number_from_one_on(interp, k):
    message = re.escape(f"`k` is {k!r}; ask for at least one loss, or ")
    with pytest.raises(InterpretationError, match=message + "a list of ranks"):
        interp.plot_top_losses(k)
    with pytest.raises(InterpretationError, match=message + "None for all"):
        interp.top_losses(k)


@pytest.mark.parametrize("k", [[], [10_000], [0.5], [True], ["a"]])
def test_ranks_of_losses_are_those_there_are(interp, k):
    with pytest.raises(
        InterpretationError, match=r"`k` is \[.*\]; give ranks from 0, the first, to"
    ):
        interp.plot_top_losses(k)


def test_the_numbers_have_the_names_of_fastai(interp):
    outputs = interp.outputs
    assert interp.vocab == interp.classes
    assert interp.probs is interp.preds is outputs.probs
    assert torch.equal(interp.y_true, outputs.targets)
    assert torch.equal(interp.pred_class, outputs.probs.argmax(1))
    assert torch.equal(interp.losses, outputs.losses)


@pytest.mark.parametrize(
    ("wanted", "grid"), [({"nrows": 1}, (1, 4)), ({"ncols": 1}, (4, 1)), ({"nrows": 2}, (2, 2))]
)
def test_the_grid_of_top_losses_has_the_rows_and_columns_asked_for(interp, wanted, grid):
    spec = interp.plot_top_losses(4, **wanted)[0].get_subplotspec().get_gridspec()
    assert (spec.nrows, spec.ncols) == grid


def test_a_grid_without_rows_is_refused(interp):
    with pytest.raises(InterpretationError, match="`nrows` is 0; give a whole number from 1 on"):
        interp.plot_top_losses(4, nrows=0)


def test_the_confusion_matrix_takes_dots_per_inch(interp):
    assert interp.plot_confusion_matrix(dpi=37).figure.dpi == 37


def test_probabilities_are_made_of_logits_as_asked_for(learn):
    interp = ClassificationInterpretation.from_learner(learn, act=lambda x: (2 * x).softmax(1))
    plain = ClassificationInterpretation.from_learner(learn)
    expected = (2 * plain.outputs.logits).softmax(1)
    assert torch.allclose(interp.preds, expected)
    own = expected[torch.arange(len(expected)), plain.y_true]
    assert torch.allclose(interp.losses, -own.log(), atol=1e-5)

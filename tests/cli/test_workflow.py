import contextlib
import json
import re
import threading
import warnings
from dataclasses import replace

import pytest
import timm
import torch
from fastai.basics import Callback
from helpers import show_progress_at_once, write_image_folder
from safetensors.torch import save_file, save_model

from learnkit.backends import processor
from learnkit.callback.checkpoint import read_checkpoint, write_checkpoint
from learnkit.cli import workflow
from learnkit.errors import CheckpointError, DataError, NonFiniteLossError

PLAN = workflow.TrainingPlan("test_resnet", pretrained=False, size=32, epochs=2, bs=8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images"), {"a": 12, "b": 14})


def test_a_folder_without_splits_is_split_by_class(images):
    data = workflow.read_dataset(images)
    assert data.splits == ["train", "valid", "test"]
    assert workflow.held_out(data)[0] == "test"


def test_what_a_group_finds_in_a_path_is_not_split(images):
    data = workflow.read_dataset(images, group=r"\d(?=\.png)")
    splits = {}
    for path, split in zip(data.paths, data.frame["split"], strict=True):
        splits.setdefault(path.stem[-1], set()).add(split)
    assert [len(found) for found in splits.values()] == [1] * 10
    with pytest.raises(DataError, match="`group`"):
        workflow.read_dataset(images, group="nowhere")


def test_groups_that_the_folders_put_into_several_splits_are_told(tmp_path):
    write_image_folder(tmp_path / "train", {"a": 9, "b": 9})
    write_image_folder(tmp_path / "val", {"a": 5, "b": 2})
    for path in (tmp_path / "val" / "a").iterdir():  # of other parts, but for two
        path.rename(path.with_name(f"{int(path.stem) + 7:03}.png"))
    said = (
        "4 of 21 groups stand in several splits, such as '007' of 'a' in train and valid: images "
        "of what was learned are evaluated, and the numbers will be optimistic; put all images of "
        "a group into one split"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(said)}$"):
        workflow.read_dataset(tmp_path, group=r"\d+(?=\.png)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        workflow.read_dataset(tmp_path, group=r"(?:train|val)/./\d+")
        workflow.read_dataset(tmp_path)
    with pytest.raises(DataError, match="finds nothing in 25 of 25 paths"):  # before any training
        workflow.read_dataset(tmp_path, group="nowhere")


def test_splits_of_the_folder_are_kept(tmp_path):
    write_image_folder(tmp_path / "train", {"a": 3, "b": 3})
    write_image_folder(tmp_path / "val", {"a": 2, "b": 1})
    name, images = workflow.held_out(workflow.read_dataset(tmp_path))
    assert (name, len(images)) == ("valid", 3)


def test_equal_plans_start_from_equal_weights(images):
    data = workflow.read_dataset(images)
    torch.manual_seed(1)
    one = workflow.build_learner(data, PLAN).model.state_dict()
    torch.manual_seed(2)
    other = workflow.build_learner(data, PLAN).model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_epochs_become_lines_and_errors_of_real_images_are_measured(images, monkeypatch, capsys):
    show_progress_at_once(monkeypatch)
    learn = workflow.build_learner(workflow.read_dataset(images), PLAN)
    lines = []
    with workflow.watch(learn, PLAN, lines.append):
        workflow.train(learn, PLAN)
    assert [line.split("   ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    n = len(learn.dls.train) + len(learn.dls.valid)
    said = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == [f"epoch {e}/2: {i} of {n} batches" for e in (1, 2) for i in range(1, n + 1)]
    row = learn.history.iloc[-1]
    assert row["valid_error"] == pytest.approx(1 - row["accuracy"])
    evaluation = learn.evaluate(ds_idx=0)  # every training image: fewer than are watched
    assert row["train_error"] == pytest.approx(1 - evaluation.summary["accuracy"])
    assert "predict: " in capsys.readouterr().err  # a later pass shows itself, too


def test_an_error_within_an_epoch_ends_its_progress(images):
    learn, lines = workflow.build_learner(workflow.read_dataset(images), PLAN), []

    def after_batch(self):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), workflow.watch(learn, PLAN, lines.append):
        workflow.train(learn, PLAN, cbs=Callback(after_batch=after_batch))
    assert learn.progress._shown is None
    assert not [one for one in threading.enumerate() if one.name.startswith("learnkit-progress")]


def test_balance_and_class_weights_reach_the_training(images):
    data = workflow.read_dataset(images)
    learn = workflow.build_learner(data, replace(PLAN, balance="sqrt"))
    weights = data.class_weights("sqrt")
    assert learn.dls.train.weights == [weights[name] for name in data.train.labels]
    learn = workflow.build_learner(data, replace(PLAN, class_weights=True))
    expected = list(data.class_weights().values())
    assert learn.class_weights.weights().tolist() == pytest.approx(expected)


def test_a_training_from_a_store_ends_in_the_same_weights(images, tmp_path):
    data, states = workflow.read_dataset(images), []
    for store in (None, tmp_path / "store", tmp_path / "store"):
        learn = workflow.build_learner(data, replace(PLAN, store=store))
        with workflow.watch(learn, PLAN, str):
            workflow.train(learn, PLAN)
        states.append(learn.model.state_dict())
    for other in states[1:]:
        assert all(torch.equal(states[0][name], other[name]) for name in other)
    plan = replace(PLAN, store=tmp_path)
    checkpoint = workflow.checkpoint_of(tmp_path / "c.ckpt", plan, resume=False)
    assert "store" not in checkpoint.config


def test_a_non_finite_loss_names_the_image_files(images):
    learn = workflow.build_learner(workflow.read_dataset(images), PLAN)
    with (
        pytest.raises(NonFiniteLossError, match=r"items: .*\.png, .*\.png, .*and 3 more") as caught,
        learn.no_bar(),
        learn.no_logging(),
    ):
        learn.fit(1, lr=1e30)
    assert set(caught.value.items) <= {str(path) for path in images.rglob("*.png")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weights file: the body of an untrained network."""
    file = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_model(timm.create_model("test_resnet", pretrained=False), file)
    return str(file)


class Interrupt(Callback):
    """Ctrl-C at the beginning of the second epoch."""

    def before_epoch(self):
        if self.epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("head_only", [True, False])
def test_pretrained_training_resumes_to_the_same_weights(images, weights, tmp_path, head_only):
    plan = replace(PLAN, pretrained=weights, head_only=head_only, epochs=3)
    data, states, bodies = workflow.read_dataset(images), {}, []

    def run(name, *cbs, resume=False):
        learn = workflow.build_learner(data, plan)
        bodies.append({k: v.clone() for k, v in learn.model[0].state_dict().items()})
        checkpoint = workflow.checkpoint_of(tmp_path / f"{name}.ckpt", plan, resume=resume)
        states[name] = learn.model.state_dict()
        with workflow.watch(learn, plan, str):
            workflow.train(learn, plan, cbs=[checkpoint, *cbs])
        return learn

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("broken", Interrupt())
    learn = run("broken", resume=True)
    assert all(torch.equal(states["whole"][k], states["broken"][k]) for k in states["whole"])
    kept = all(torch.equal(bodies[0][k], v) for k, v in learn.model[0].state_dict().items())
    assert kept == head_only
    assert len(learn.history) == plan.n_epochs


def test_pretrained_plans_train_the_head_for_one_epoch_more():
    assert workflow.TrainingPlan(epochs=3).n_epochs == 4
    assert workflow.TrainingPlan(epochs=3, pretrained=False).n_epochs == 3
    assert workflow.TrainingPlan(epochs=3, head_only=True).n_epochs == 3


def test_an_unfinished_training_is_not_overwritten(tmp_path):
    file = tmp_path / "checkpoint.ckpt"
    file.write_bytes(b"something")
    with pytest.raises(CheckpointError, match=r"unfinished training stands in .*--resume"):
        workflow.checkpoint_of(file, PLAN, resume=False)
    assert file.read_bytes() == b"something"


def test_files_and_folders_are_found_in_the_order_given(images, tmp_path):
    one = images / "b" / "003.png"
    assert workflow.images_at([one, images / "a"]) == [one, *sorted((images / "a").iterdir())]
    with pytest.raises(DataError, match="there is no file or folder"):
        workflow.images_at([tmp_path / "none"])
    with pytest.raises(DataError, match="holds no images"):
        workflow.images_at([tmp_path])


def test_a_weights_file_is_said_to_be_read_or_assumed_or_compared(images, weights, recwarn):
    data, said = workflow.read_dataset(images), {}
    for name, more in {"assumed": {}, "given": {"mean": (0.5,) * 3, "std": (0.5,) * 3}}.items():
        plan = replace(PLAN, pretrained=weights, **more)
        said[name] = workflow.input_said(workflow.build_learner(data, plan), plan)
    assert "does not say how its images were normalised" in said["assumed"]
    assert said["assumed"].endswith(
        "--weights-check compares the likely ones, --mean and --std say it"
    )
    assert said["given"] == ""
    plan = replace(PLAN, pretrained=weights, check_weights=True)
    learn = workflow.build_learner(data, plan)
    assert workflow.input_said(learn, plan) == str(learn.weights_check)
    assert [*learn.weights_check.frame] == ["input", "recipe", "balanced_accuracy", "log_loss"]
    assert not [w for w in recwarn if "weights" in str(w.message)]
    assert workflow.input_said(workflow.build_learner(data, PLAN), PLAN) == ""


def _begun(images, file, plan=PLAN):
    """The data of a training with the checkpoint `file`, interrupted in its second epoch."""
    data = workflow.read_dataset(images)
    learn = workflow.build_learner(data, plan)
    checkpoint = workflow.checkpoint_of(file, plan, resume=False)
    with pytest.raises(KeyboardInterrupt), workflow.watch(learn, plan, str):
        workflow.train(learn, plan, cbs=[checkpoint, Interrupt()])
    return data


def test_a_checkpoint_of_before_a_setting_was_there_goes_on_with_what_it_was_then(images, tmp_path):
    file = tmp_path / "a.ckpt"
    data, saved = _begun(images, file), read_checkpoint(file)
    for name in ("check_weights", "method"):
        del saved["run"][name]
    write_checkpoint(file, saved)
    for plan, said in [
        (replace(PLAN, method="pad"), "method is 'None' there and 'pad' here"),
        (replace(PLAN, bs=9), "bs is '8' there and '9' here"),
        (PLAN, ""),
    ]:
        learn = workflow.build_learner(data, plan)
        checkpoint = workflow.checkpoint_of(file, plan, resume=True)
        fails = pytest.raises(CheckpointError, match=said) if said else contextlib.nullcontext()
        with fails, workflow.watch(learn, plan, str):
            workflow.train(learn, plan, cbs=checkpoint)
    assert len(learn.history) == PLAN.n_epochs


@pytest.mark.parametrize(
    ("flags", "asked", "size", "said"),
    [
        ("amx_bf16", "auto", 64, "in bfloat16, which this processor multiplies itself"),
        ("amx_bf16", "auto", 32, "in float32: images of 32 x 32 pixels are too small to gain"),
        ("avx2", "auto", 64, "in float32: this processor does not multiply bfloat16 itself"),
        ("amx_bf16", "bfloat16", 64, ""),
        ("amx_bf16", "float32", 64, ""),
    ],
)
def test_what_auto_precision_is_and_why_is_said(
    images, tmp_path, monkeypatch, flags, asked, size, said
):
    monkeypatch.setattr(processor, "processor_flags", lambda: frozenset({flags}))
    plan = replace(PLAN, precision=asked, size=size)
    learn = workflow.build_learner(workflow.read_dataset(images), plan)
    checkpoint = workflow.checkpoint_of(tmp_path / "a.ckpt", plan, resume=False)
    found = workflow.precision_said(learn, checkpoint)
    assert said in found
    assert bool(said) == bool(found)


def test_a_resumed_training_says_the_precision_it_goes_on_in(images, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "processor_flags", lambda: frozenset({"avx2"}))
    data = _begun(images, tmp_path / "a.ckpt")
    monkeypatch.setattr(processor, "processor_flags", lambda: frozenset({"amx_bf16"}))
    learn = workflow.build_learner(data, PLAN)
    checkpoint = workflow.checkpoint_of(tmp_path / "a.ckpt", PLAN, resume=True)
    assert workflow.precision_said(learn, checkpoint) == (
        "training steps in float32, as before the interruption"
    )


@pytest.mark.parametrize(
    ("said", "size"),
    [([3, 160, 160], 160), ([3, 160, 192], 224), (None, 224), ([3, 0, 0], 224), ("large", 224)],
)
def test_images_are_as_large_as_the_weights_file_says_unless_it_is_said(tmp_path, said, size):
    file = tmp_path / "a.safetensors"
    metadata = {} if said is None else {"input_size": json.dumps(said)}
    save_file({"a": torch.zeros(1)}, file, metadata)
    assert workflow.size_of_weights("resnet18", file) == size
    assert workflow.size_of_weights("resnet18", None) == 224
    assert workflow.size_of_weights("resnet18", tmp_path / "none") == 224

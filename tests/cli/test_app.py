"""The command line as a user meets it: outputs, messages, exit codes, interruptions."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from deploy_helpers import labelled, make_continual, renamed_as_before, rewrite, strange
from helpers import show_progress_at_once, write_image_folder
from PIL import Image
from safetensors.torch import load_file

from learnkit import load_learner
from learnkit._version import __version__
from learnkit.callback import checkpoint
from learnkit.callback.checkpoint import read_checkpoint
from learnkit.cli.app import main
from learnkit.data.dataset import ImageDataset
from learnkit.deploy.runtime_predictor import load_runtime
from learnkit.inference.prediction_log import PredictionLog
from learnkit.report.matrix import dense_counts

_RUN = """
import sys
from learnkit.cli.app import main
try: main(sys.argv[1:])
except SystemExit: pass
"""
GOLDEN = Path(__file__).parents[1] / "bundle" / "golden" / "v1.2-variants"
SMALL = ["--arch", "test_resnet", "--no-pretrained", "--size", "32", "--bs", "8"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 36 images in three classes."""
    return write_image_folder(tmp_path_factory.mktemp("images"), {"bad": 12, "good": 14, "odd": 10})


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """(exit code, output, model) of `learnkit train`, run once."""
    model = tmp_path_factory.mktemp("trained") / "model"
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit) as caught:
        main(["train", str(images), *SMALL, "--out", str(model)])
    return caught.value.code or 0, output.getvalue(), model


def learnkit(capsys, *argv):
    """Exit code, standard output and standard error of the command."""
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in argv])
    return (caught.value.code or 0, *capsys.readouterr())


@pytest.fixture(scope="module")
def known(images, tmp_path_factory):
    """A model in the continual state that has learned the classes bad and good."""
    predictor = make_continual()
    data = ImageDataset.from_folder(images)
    data = data.filter(lambda frame: frame["label"] != "odd")
    predictor.extend(data.paths, data.labels, progress=False)
    path = tmp_path_factory.mktemp("known") / "model"
    predictor.save(path, history=0)
    return path


@pytest.fixture(scope="module")
def unknown(tmp_path_factory):
    """A folder of six images of no class."""
    folder = tmp_path_factory.mktemp("unknown")
    for i, image in enumerate(strange(6)):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def test_help_names_the_commands_without_importing_torch():
    code = _RUN.replace("sys.argv[1:]", "['--help']")
    code += "print({'torch', 'pandas', 'matplotlib', 'fastai'} & set(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert all(
        name in out.stdout for name in ("demo", "train", "extend", "evaluate", "predict", "--debug")
    )
    assert out.stdout.strip().endswith("set()")


def test_the_end_of_the_process_looks_for_no_cycles_among_what_was_imported():
    code = _RUN.replace("main(sys.argv[1:])", "sys.argv[1:] = ['--version']; main()")
    code += "import gc; print(len(gc.get_objects()) < 1000 < gc.get_freeze_count())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().endswith("True")


@pytest.mark.parametrize("argv", [[], ["--debug"]])
def test_without_a_command_the_help_is_shown(argv):
    for start in ([], ["-c", "from learnkit.cli.app import main; main()"]):
        command = [sys.executable, *(start or ["-m", "learnkit"]), *argv]
        run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        assert "Usage: learnkit [OPTIONS] COMMAND" in run.stdout
        assert all(name in run.stdout for name in ("train", "evaluate", "predict"))
        assert run.stderr == ""


@pytest.mark.parametrize("width", ["40", "80", "200"])
def test_help_shows_the_names_of_options_in_terminals_of_any_width(width):
    commands = ("demo", "train", "extend", "evaluate", "predict", "report", "serve", "optimize")
    code = _RUN.replace("main(sys.argv[1:])\n", "main([sys.argv[1], '--help'])\n")
    code = f"import sys\nfor name in {commands}:\n    sys.argv[1:] = [name]\n" + textwrap.indent(
        code, "    "
    )
    env = os.environ | {"COLUMNS": width, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code]
    out = subprocess.run(
        command, capture_output=True, text=True, check=True, env=env, encoding="utf-8"
    ).stdout
    assert max(map(len, out.splitlines())) <= int(width)
    assert "…" not in out
    for option in (
        "--epochs",
        "--no-pretrained",
        "--false-alarm-rate",
        "--token-file",
        "--samples",
    ):
        assert option in out


def test_train_says_each_step_and_writes_what_it_lists(run):
    code, output, model = run
    assert code == 0, output
    assert [f"{i}/5" in output for i in range(1, 6)] == [True] * 5
    assert output.count(" images right (") == 2  # above the numbers, and at the end
    assert re.search(r"\d test images\n +\d+ of \d+ images right .*\n", output)
    for epoch in range(1, 4):
        assert f"epoch {epoch}/3   train loss" in output
    beside = model.with_name("model-training")
    written = sorted(path.name for path in beside.iterdir())
    pictures = ["confusion_matrix.png", "top_losses.png", "training_curve.png"]
    assert written == sorted([*pictures, "history.csv", "report.html", "split.csv"])
    assert all(str(path) in output.replace("\n", "") for path in [model, *beside.iterdir()])
    assert len(pd.read_csv(beside / "history.csv")) == 3
    assert pd.read_csv(beside / "split.csv")["split"].value_counts().sum() == 36
    assert f"learnkit predict {model} IMAGES" in output.replace("\n", "")


def test_train_takes_images_of_any_number_of_channels(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, value in {"dry": 60, "wet": 190}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (40, 36, 5)).astype("uint8")
            pixels[..., 4] = value + i
            np.save(tmp_path / "images" / name / f"{i}.npy", pixels)
    out = tmp_path / "model"
    arguments = [*SMALL, "--epochs", 1, "--out", out]
    code, _, err = learnkit(capsys, "train", tmp_path / "images", *arguments)
    assert code == 2
    assert "--channels" in err
    code, _, err = learnkit(capsys, "train", tmp_path / "images", *arguments, "--channels", 5)
    assert code == 0, err
    assert load_learner(out).preprocessing.channels == 5
    code, output, _ = learnkit(capsys, "report", out)
    assert code == 0
    assert "5-channel images of 32 x 32 pixels" in " ".join(output.split())
    assert learnkit(capsys, "check", tmp_path / "images")[0] == 0
    assert learnkit(capsys, "train", tmp_path / "images", *arguments, "--channels", 17)[0] == 2


def test_train_keeps_together_what_its_group_finds(tmp_path, capsys):
    images = write_image_folder(tmp_path / "images", {"a": 12, "b": 12})
    for path in images.rglob("*.png"):  # three of each part
        path.rename(path.with_name(f"{path.parent.name}{int(path.stem) // 3}_{path.stem}.png"))
    out = tmp_path / "model"
    group = ["--group", r"[ab]\d(?=_)", "--continual", "--seed", 1]
    assert learnkit(capsys, "train", images, *SMALL, *group, "--out", out)[0] == 0
    table = pd.read_csv(tmp_path / "model-training" / "split.csv")
    parts = table["path"].str.extract(r"([ab]\d)_")[0]
    assert parts.nunique() == 8
    assert (table.groupby(parts)["split"].nunique() == 1).all()
    assert load_learner(out).continual.statistics.memory.given().bool().all()
    other = ["--out", tmp_path / "other"]
    code, _, err = learnkit(capsys, "train", images, *SMALL, "--group", "nowhere", *other)
    assert code == 2
    assert "finds nothing in 24 of 24 paths, such as 'a/a0_000.png'. Here: --group." in err
    code, _, err = learnkit(capsys, "train", images, *SMALL, "--group", "^[ab]", *other)
    assert code == 2
    assert "images in FOLDER/train and FOLDER/valid, or class folders alone" in err


def test_train_continual_ends_in_a_model_that_extend_takes(images, tmp_path, capsys):
    model, new = tmp_path / "model", write_image_folder(tmp_path / "new", {"late": 5}, seed=9)
    code, out, err = learnkit(capsys, "train", images, *SMALL, "--continual", "--out", model)
    assert code == 0, err
    assert "3/6 Make it a continual learner" in out
    assert load_learner(model).continual.classes == ("bad", "good", "odd")
    code, _, err = learnkit(capsys, "extend", model, new, "--out", tmp_path / "more")
    assert code == 0, err
    assert load_learner(tmp_path / "more").continual.classes == ("bad", "good", "odd", "late")


def test_evaluate_agrees_with_the_predictor(run, images, capsys):
    model = load_learner(run[2])
    right = sum(model.predict(path).label == path.parent.name for path in images.rglob("*.png"))
    code, out, _ = learnkit(capsys, "evaluate", run[2], images)
    assert code == 0
    assert f"{right / 36:.4f}" in out
    assert "36 images" in out


def test_predict_shows_a_table(run, images, capsys):
    code, out, _ = learnkit(capsys, "predict", run[2], images / "good" / "000.png", images / "odd")
    assert code == 0
    assert out.count(".png") == 11
    prediction = load_learner(run[2]).predict(images / "good" / "000.png")
    assert f"{prediction.confidence:.4f}" in out


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_predict_shows_file_names_that_the_screen_cannot(run, images, tmp_path, encoding):
    path = shutil.copy(
        images / "odd" / "000.png", tmp_path / os.fsdecode("\N{SNOWMAN}.png".encode())
    )
    command = [sys.executable, "-m", "learnkit", "predict", str(run[2]), str(path)]
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, env=env, check=True)
    name = {"utf-8": "\N{SNOWMAN}", "ascii": r"\u2603"}[encoding]
    assert f"{name}.png" in done.stdout.decode(encoding)


def test_predict_lists_every_image_it_could_not_read(run, images, tmp_path, capsys):
    shutil.copy(images / "odd" / "000.png", tmp_path / "whole.png")
    for i in range(22):
        (tmp_path / f"{i:02d}.png").write_bytes(b"x")
    code, out, _ = learnkit(capsys, "predict", run[2], tmp_path)
    assert code == 1
    table, after, _ = out.split("└")
    assert table.count(".png") == 1
    assert "    1 image, 22 more could not be read\n" in out
    assert f"    image '{tmp_path / '19.png'}' cannot be read: " in after
    assert (after.count("cannot be read"), "    and 2 more\n" in after) == (20, True)


def test_predict_writes_csv_and_json(run, images, tmp_path, capsys):
    targets = ["--csv", tmp_path / "p.csv", "--json", tmp_path / "p.json"]
    code, out, _ = learnkit(capsys, "predict", run[2], images / "bad", *targets)
    assert code == 0
    table = pd.read_csv(tmp_path / "p.csv")
    objects = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert len(table) == len(objects) == 12
    for row, found in zip(table.to_dict("records"), objects, strict=True):
        assert (row["path"], row["label"]) == (found["path"], found["label"])
        assert row["verdict"] == found["verdict"] == row["label"]
        assert found["probs"]["odd"] == pytest.approx(row["p(odd)"], abs=1e-6)
    counts = {name: int(n) for name, n in re.findall(r"│ (\w+) +│ +(\d+) │", out)}
    assert counts == dict(table["verdict"].value_counts())
    for name in ("p.csv", "p.json"):
        assert re.search(rf"{tmp_path / name} +12 rows", out)


def test_predict_writes_file_names_that_are_no_text(run, images, tmp_path, capsys):
    name = os.fsdecode(b"\xff.png")
    try:
        (tmp_path / name).write_bytes((images / "bad" / "000.png").read_bytes())
    except OSError:
        pytest.skip("this file system refuses such names")
    targets = ["--csv", tmp_path / "p.csv", "--json", tmp_path / "p.json"]
    assert learnkit(capsys, "predict", run[2], tmp_path / name, *targets)[0] == 0
    (path,) = pd.read_csv(tmp_path / "p.csv")["path"]  # UTF-8, whatever the names are
    assert path.endswith(r"\udcff.png")
    (found,) = json.loads((tmp_path / "p.json").read_text("utf-8"))
    assert found["path"] == str(tmp_path / name)


def test_names_with_line_ends_quotes_and_formulae_come_back_from_the_table(
    run, images, tmp_path, capsys
):
    names = ["a\rb.png", "a\nb.png", 'a"b,c.png', "=1+1.png", " a.png"]
    for name in names:
        shutil.copy(images / "bad" / "000.png", tmp_path / name)
    assert learnkit(capsys, "predict", run[2], tmp_path, "--csv", tmp_path / "p.csv")[0] == 0
    table = pd.read_csv(tmp_path / "p.csv")
    assert sorted(table["path"]) == sorted(str(tmp_path / name) for name in names)
    assert table["confidence"].notna().all()
    out = tmp_path / "out.csv"
    assert learnkit(capsys, "predict", run[2], tmp_path, "--out", out)[0] == 0
    assert sorted(pd.read_csv(out)["path"]) == sorted(table["path"])
    code, output, _ = learnkit(capsys, "predict", run[2], tmp_path, "--out", out, "--resume")
    assert (code, "5 of them from an earlier call" in output) == (0, True)


@pytest.mark.parametrize("tail", [["--json"], ["--json", "-"], ["--json", "--debug"]])
def test_predict_writes_json_to_the_screen(run, images, capsys, tail):
    code, out, _ = learnkit(capsys, "predict", run[2], images / "bad" / "003.png", *tail)
    assert code == 0
    (found,) = json.loads(out)
    assert sum(found["probs"].values()) == pytest.approx(1, abs=1e-5)


def test_unreadable_images_are_listed_and_give_exit_code_1(run, images, tmp_path, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((images / "bad" / "000.png").read_bytes()[:60])
    code, out, err = learnkit(capsys, "predict", run[2], tmp_path, "--json")
    assert code == 1
    assert err == "learnkit: 1 image could not be read; the table says why\n"
    first, second = json.loads(out)
    assert first["label"] in {"bad", "good", "odd"}
    assert set(second) == {"path", "error"}


def test_an_unreadable_image_alone_is_told_without_a_table(run, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    code, out, err = learnkit(capsys, "predict", run[2], tmp_path / "text.png")
    assert (code, err) == (1, "learnkit: 1 image could not be read\n")
    assert "0 images, 1 could not be read" in out


def test_predict_imports_no_fastai(run, images):
    code = _RUN + "print('fastai' in sys.modules)"
    command = [sys.executable, "-c", code, "predict", str(run[2]), str(images / "bad")]
    out = subprocess.run(
        command, capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout
    assert out.endswith("False\n")


def test_predict_needs_neither_torch_nor_pandas(images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"x")
    code = """
import sys
sys.modules.update(torch=None, torchvision=None, timm=None, fastai=None, pandas=None)
from learnkit.cli.app import main
main(sys.argv[1:])
"""
    paths = [images / "bad" / "000.png", tmp_path / "broken.png"]
    targets = ["--csv", tmp_path / "p.csv", "--json", tmp_path / "p.json"]
    for tail, name in (([], ""), (targets, "p.csv"), (["--out", tmp_path / "q.csv"], "q.csv")):
        command = [sys.executable, "-c", code, "predict", GOLDEN, *paths, *tail]
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, check=False, encoding="utf-8"
        )
        assert done.returncode == 1, done.stderr
        assert "1 image could not be read" in done.stderr
        assert "1 more could not be read" in done.stdout
        assert name in done.stdout
    expected = load_runtime(GOLDEN).predict(paths[0])
    (found, failed) = json.loads((tmp_path / "p.json").read_text("utf-8"))
    assert failed == {"path": str(paths[1]), "error": failed["error"]}
    assert found["probs"] == dict(zip(expected.classes, expected.probs.tolist(), strict=True))
    assert found["ood_score"] == pytest.approx(expected.ood_score, rel=1e-9)
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "q.csv").read_bytes()


# -- models that go on learning -------------------------------------------------------------------


def test_extend_writes_a_model_with_the_new_class_and_leaves_the_old_one(
    known, images, tmp_path, capsys
):
    before = {path.name: path.read_bytes() for path in known.iterdir()}
    shutil.copytree(images / "odd", tmp_path / "new" / "odd")
    code, out, err = learnkit(capsys, "extend", known, tmp_path / "new", "--out", tmp_path / "more")
    assert (code, err) == (0, "")
    assert "odd (new)" in out
    assert "+10" in out
    assert "threshold" in out
    assert f"learnkit predict {tmp_path / 'more'} IMAGES" in out.replace("\n", "")
    model = load_learner(tmp_path / "more")
    assert model.classes == ("bad", "good", "odd")
    assert model.continual.n_images["odd"] == 10
    assert model.predict(images / "odd" / "000.png").label == "odd"
    assert {path.name: path.read_bytes() for path in known.iterdir()} == before
    expected = load_learner(known)
    expected.extend(tmp_path / "new", progress=False)
    state, wanted = model.continual.state()[1], expected.continual.state()[1]
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_a_changed_model_takes_the_place_of_the_former_one_without_another_folder(
    known, images, tmp_path, capsys
):
    mine, before = tmp_path / "mine", load_learner(known).continual.state()[1]
    shutil.copytree(known, mine)
    shutil.copytree(images / "odd", tmp_path / "new" / "odd")
    assert learnkit(capsys, "extend", mine, tmp_path / "new")[0] == 0
    assert load_learner(mine).classes == ("bad", "good", "odd")
    assert learnkit(capsys, "undo", mine)[0] == 0
    assert load_learner(mine).continual.state()[1]["counts"].equal(before["counts"])
    code, _, err = learnkit(capsys, "extend", "hf-hub:owner/name", tmp_path / "new")
    assert (code, err.endswith("choose a folder. Here: --out OUT, a folder.\n")) == (2, True)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("optimize model", "Missing option '--out'. Folder of the faster model; may be MODEL"),
        ("extend model", "Missing argument 'FOLDER'. Images in one folder per class."),
        ("rename model", "Missing argument 'OLD=NEW'. Names to change."),
    ],
)
def test_of_what_is_missing_it_is_said_what_it_is(capsys, call, said):
    code, _, err = learnkit(capsys, *call.split())
    assert (code, said in err) == (2, True)


def test_an_image_of_too_many_pixels_is_no_reason_for_an_option_that_is_not_there(
    known, images, tmp_path, capsys
):
    Image.new("1", (10_000, 5_001)).save(tmp_path / "huge.png")
    for command in ("predict", "suggest"):
        code, out, _ = learnkit(capsys, command, known, tmp_path, images / "odd")
        said = "if you trust it. Here: a copy of the image with fewer pixels."
        assert (code, said in " ".join(out.split())) == (1, True)


def test_extend_may_replace_the_model_and_set_the_false_alarm_rate(known, images, tmp_path, capsys):
    values = []
    for rate in ("0.01", "0.4"):
        path = shutil.copytree(known, tmp_path / rate)
        code, *_ = learnkit(
            capsys, "extend", path, images, "--out", path, "--false-alarm-rate", rate
        )
        assert code == 0
        assert load_learner(path).continual.settings.false_alarm_rate == float(rate)
        values.append(load_learner(path).continual.threshold.value)
    assert values[0] > values[1]


def test_extend_by_the_same_folder_counts_once_unless_again(known, images, tmp_path, capsys):
    n = load_learner(known).continual.n_images
    once, twice = tmp_path / "once", tmp_path / "twice"
    code, out, _ = learnkit(capsys, "extend", known, images, "--out", once)
    assert code == 0
    assert "already learned" in out
    seen = load_learner(once).continual.n_images
    code, _, err = learnkit(capsys, "extend", once, images, "--out", twice, "--again")
    assert code == 0, err
    assert sum(load_learner(twice).continual.n_images.values()) == sum(seen.values()) + len(
        list(images.rglob("*.png"))
    )
    assert sum(n.values()) <= sum(seen.values())


def test_evaluate_says_how_many_images_the_model_has_learned(known, images, tmp_path, capsys):
    for name in ("bad", "good"):
        shutil.copytree(images / name, tmp_path / "images" / name)
    code, out, err = learnkit(capsys, "evaluate", known, tmp_path / "images")
    assert code == 0, err
    assert "26 of 26 images were learned by this model: the numbers are optimistic" in out


def test_extend_takes_groups_from_the_paths(known, images, tmp_path, capsys):
    out = tmp_path / "grouped"
    code, _, err = learnkit(capsys, "extend", known, images, "--out", out, "--group", r"/0\d(\d)")
    assert code == 0, err
    given = load_learner(out).continual.statistics.memory.given()
    assert 1 < len(set(given.tolist())) <= 10
    code, _, err = learnkit(capsys, "extend", known, images, "--out", out, "--group", "serial")
    assert code != 0
    assert "finds nothing in" in err


def test_extend_tells_names_apart_by_case_from_the_first_time_on(known, images, tmp_path, capsys):
    for name, kind in (("GOOD", "new"), ("BAD", "newer")):
        shutil.copytree(images / "odd", tmp_path / kind / name)
    call = ("extend", known, tmp_path / "new", "--out", tmp_path / "more")
    code, _, err = learnkit(capsys, *call)
    assert (code, err.count("\n")) == (2, 1)
    assert "differ only in case" in err
    assert "case_sensitive" in err
    assert not (tmp_path / "more").exists()
    code, out, _ = learnkit(capsys, *call, "--case-sensitive")
    assert code == 0
    assert "told apart by case from now on" in out.replace("\n", " ")
    assert load_learner(tmp_path / "more").classes == ("bad", "good", "GOOD")
    more = tmp_path / "more"
    for name in ("good", "GOOD"):
        shutil.copytree(images / "odd", tmp_path / "both" / name)
    code, _, err = learnkit(capsys, "evaluate", more, tmp_path / "both")
    assert (code, "differ only in case" in err) == (0, False)  # the model tells them apart
    assert learnkit(capsys, "extend", more, tmp_path / "newer", "--out", more, "--again")[0] == 0
    assert load_learner(more).continual.n_images["BAD"] == 10


def test_extend_takes_a_former_name_for_a_new_class_if_told(known, images, tmp_path, capsys):
    predictor = load_learner(known)
    predictor.rename({"good": "fine"})
    predictor.save(tmp_path / "renamed")
    shutil.copytree(images / "odd", tmp_path / "new" / "good")
    call = ("extend", tmp_path / "renamed", tmp_path / "new", "--out", tmp_path / "more")
    code, _, err = learnkit(capsys, *call)
    assert (code, err.count("\n")) == (2, 1)
    assert "'good'" in err
    assert "'fine'" in err
    assert not (tmp_path / "more").exists()
    assert learnkit(capsys, *call, "--reuse-names")[0] == 0
    found = load_learner(tmp_path / "more")
    assert found.classes == ("bad", "fine", "good")
    assert found.continual.n_images["good"] == 10


def test_extend_sets_the_validation_images_of_a_split_folder_aside(known, images, tmp_path, capsys):
    for i, file in enumerate(sorted((images / "odd").iterdir())):
        part = tmp_path / "new" / ("valid" if i < 3 else "train") / "odd"
        part.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, part)
    before = len(load_learner(known).continual.knowledge.validation)
    call = ("extend", known, tmp_path / "new", "--out", tmp_path / "more")
    code, out, _ = learnkit(capsys, *call)
    assert code == 0
    assert "+7" in out
    head = load_learner(tmp_path / "more").continual
    assert head.n_images["odd"] == 7
    assert len(head.knowledge.validation) == before + 3
    assert head.threshold.source == "validation and leave-one-out"


def test_extend_with_unreadable_images_writes_nothing(known, images, tmp_path, capsys):
    shutil.copytree(images / "odd", tmp_path / "new" / "odd")
    for name in ("002.png", "005.png"):
        (tmp_path / "new" / "odd" / name).write_bytes(b"x")
    code, _, err = learnkit(capsys, "extend", known, tmp_path / "new", "--out", tmp_path / "more")
    assert (code, err.count("\n")) == (2, 1)
    assert "2 of 10 images cannot be read" in err
    assert "002.png" in err
    assert "005.png" in err
    assert not (tmp_path / "more").exists()


def test_extend_that_fails_gives_no_notes_on_what_it_did_not_do(known, images, tmp_path, capsys):
    for name in ("odd", "o dd"):  # of which a warning says that they look alike
        shutil.copytree(images / "odd", tmp_path / "new" / name)
    (tmp_path / "new" / "odd" / "000.png").write_bytes(b"x")
    call = ("extend", known, tmp_path / "new", "--out", tmp_path / "more")
    code, _, err = learnkit(capsys, *call)
    assert (code, err.count("\n"), "note:" in err) == (2, 1, False)


def test_evaluate_judges_the_images_that_can_be_read_and_lists_the_others(
    run, images, tmp_path, capsys
):
    shutil.copytree(images, tmp_path / "all")
    shutil.copytree(images, tmp_path / "sound")
    for name in ("good/001.png", "bad/003.png"):
        (tmp_path / "all" / name).write_bytes(b"no image")
        (tmp_path / "sound" / name).unlink()
    for name in ("all", "sound"):  # all images in one split
        for kind in sorted((tmp_path / name).iterdir()):
            shutil.move(kind, tmp_path / name / "test" / kind.name)
    sound = ImageDataset.from_folder(tmp_path / "sound")
    expected = load_learner(run[2]).evaluate(sound, progress=False)
    code, out, err = learnkit(capsys, "evaluate", run[2], tmp_path / "all")
    assert code == 1
    words = re.sub(r"\W*[│┃]\W*|\s+", " ", out)
    assert f" accuracy {expected.summary['accuracy']:.4f} " in words
    assert f" n {len(sound)} " in words
    assert "as far as readable" in out
    assert err.count("\n") == 1
    assert err.startswith("learnkit: 2 of ")
    assert err.count("no image") == 1  # one reason, once
    assert "001.png" in err
    assert "003.png" in err


def test_evaluate_measures_how_unknown_images_are_noticed(known, images, unknown, capsys):
    model = load_learner(known)
    data = ImageDataset.from_folder(images)
    data = data.filter(lambda frame: frame["label"] != "odd")
    expected = model.evaluate(data, ood=unknown, progress=False).summary
    (images.parent / "two").mkdir(exist_ok=True)
    for name in ("bad", "good"):
        shutil.copytree(images / name, images.parent / "two" / name, dirs_exist_ok=True)
    code, out, _ = learnkit(capsys, "evaluate", known, images.parent / "two", "--ood", unknown)
    assert code == 0
    assert "6 unknown ones" in out.replace("\n", " ")
    n, n_noticed = len(data), round(6 * expected["detection_rate"])
    assert f"    {round(n * expected['accuracy'])} of {n} images right (" in out
    assert f"    {n_noticed} of 6 unknown images noticed (" in out
    alarms = rf"    {round(n * expected['false_alarm_rate'])} of {n} known images called unknown \("
    assert re.search(alarms + r"[\d.]+ %, 5 % promised\)", out)
    assert out.index("images right (") < out.index("accuracy")
    for name in ("false_alarm_rate", "detection_rate", "auroc", "fpr_at_95_tpr"):
        assert re.search(rf"{name.replace('_', ' ')} +. +{expected[name]:.4f}", out), name
    code, out, _ = learnkit(capsys, "evaluate", known, images.parent / "two")
    assert (code, "false alarm rate" in out, "auroc" in out) == (0, True, False)


def test_predict_flags_unknown_images(known, images, unknown, tmp_path, capsys):
    paths = [unknown / "0.png", images / "good" / "001.png"]
    code, out, _ = learnkit(capsys, "predict", known, *paths)
    assert code == 0
    assert re.search(r"0\.png +│ UNKNOWN │", out)
    assert re.search(r"001\.png +│ good +│ good +│", out)
    assert out.endswith("    2 images, 1 of them UNKNOWN, like none of the classes\n")
    code, out, _ = learnkit(capsys, "predict", known, *paths, "--json")
    first, second = json.loads(out)
    assert (first["is_ood"], second["is_ood"]) == (True, False)
    assert (first["verdict"], second["verdict"]) == ("UNKNOWN", "good")
    prediction = load_learner(known).predict(paths[0])
    assert first["ood_score"] == pytest.approx(prediction.ood_score, rel=1e-4)
    (unknown / "broken.png").write_bytes(b"x")
    csv = ["--csv", tmp_path / "p.csv"]
    assert learnkit(capsys, "predict", known, unknown, *csv)[0] == 1
    table = pd.read_csv(tmp_path / "p.csv")
    assert table["is_ood"].notna().sum() == 6
    assert table["verdict"].tolist() == ["UNKNOWN"] * 6 + [pytest.approx(np.nan, nan_ok=True)]
    code, out, _ = learnkit(capsys, "predict", known, unknown, "--json")
    assert set(json.loads(out)[-1]) == {"path", "error"}
    (unknown / "broken.png").unlink()


def test_predict_out_goes_on_after_ctrl_c_and_gives_the_same_file(
    run, images, tmp_path, capsys, monkeypatch
):
    whole, out = tmp_path / "whole.csv", tmp_path / "p.csv"
    (tmp_path / "broken.png").write_bytes(b"x")
    argv = ["predict", run[2], images, images, tmp_path / "broken.png", "--out"]
    code, said, err = learnkit(capsys, *argv, whole)
    assert (code, f"{whole}: 73 files; 1 could not be read" in said) == (1, True)
    assert "    72 images, 1 more could not be read\n" in said
    assert err.endswith("1 image could not be read; the table says why\n")
    append = PredictionLog.append

    def append_and_interrupt(self, first, rows):
        append(self, first, rows)
        if first == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(PredictionLog, "append", append_and_interrupt)
    code, _, err = learnkit(capsys, *argv, out)
    monkeypatch.setattr(PredictionLog, "append", append)
    assert (code, out.exists()) == (130, False)
    assert re.search(rf"interrupted; go on with: learnkit predict .*--out {out} --resume\n", err)
    code, _, err = learnkit(capsys, *argv, out)
    assert (code, "unfinished predictions stand in" in err) == (2, True)
    code, said, _ = learnkit(capsys, *argv, out, "--resume")
    assert (code, "16 of them from an earlier call" in said) == (1, True)
    assert out.read_bytes() == whole.read_bytes()
    assert not out.with_name(f"{out.name}.parts").exists()
    assert learnkit(capsys, *argv, out, "--resume")[0] == 1  # it is all there
    code, _, err = learnkit(capsys, "predict", run[2], images / "odd", "--out", out, "--resume")
    assert (code, "predictions of other files" in err) == (2, True)
    assert "Here: remove it, or name another --out" in err
    code, _, err = learnkit(capsys, *argv, out)
    assert (code, "is there already" in err) == (2, True)


def test_changes_without_images_are_made_in_place_and_can_be_undone(known, tmp_path, capsys):
    model = shutil.copytree(known, tmp_path / "model")
    assert learnkit(capsys, "rename", model, "bad=broken")[0] == 0
    assert load_learner(model).classes == ("broken", "good")
    code, output, _ = learnkit(capsys, "forget", model, "broken", "--out", tmp_path / "other")
    assert "the model with 1 class\n" in output
    assert code == 0
    assert re.search(r"broken +│ +-12 │ +0", output)
    assert load_learner(tmp_path / "other").continual.n_images == {"broken": 0, "good": 14}
    assert learnkit(capsys, "undo", model)[0] == 0
    assert load_learner(model).classes == ("bad", "good")


def test_only_what_a_model_can_do_is_proposed_and_one_without_classes_is_to_be_taught(
    known, images, tmp_path, capsys
):
    model, empty = shutil.copytree(known, tmp_path / "model"), tmp_path / "empty"
    output = learnkit(capsys, "forget", model, "bad", "good", "--out", empty)[1]
    assert output.endswith(f"Next\n    learnkit undo {empty}\n    learnkit extend {empty} FOLDER\n")
    code, _, error = learnkit(capsys, "evaluate", empty, images)
    assert code == 2
    assert error.endswith(
        "knows no class yet, so there is nothing to evaluate; `extend` it with images and labels. "
        "Here: learnkit extend MODEL FOLDER --out MODEL.\n"
    )
    output = learnkit(capsys, "undo", empty)[1]  # of what was saved with history=0
    assert output.endswith(f"Next\n    learnkit evaluate {empty} FOLDER\n")
    assert learnkit(capsys, "undo", empty)[0] == 2


def test_what_another_command_wrote_meanwhile_is_not_written_over(
    known, tmp_path, capsys, monkeypatch
):
    from learnkit.deploy.predictor import Predictor

    model, real = shutil.copytree(known, tmp_path / "model"), Predictor.rename

    def meanwhile(self, names):
        other = load_learner(model)
        other.forget("good")
        other.save(model)
        return real(self, names)

    monkeypatch.setattr(Predictor, "rename", meanwhile)
    code, _, err = learnkit(capsys, "rename", model, "bad=broken")
    assert code == 2
    assert "Here: the same command again, or --out OUT, another folder." in err
    assert load_learner(model).continual.n_images == {"bad": 12, "good": 0}


def test_commands_to_try_next_can_be_pasted(known, tmp_path, capsys):
    model = shutil.copytree(known, tmp_path / "my $model; it's")
    output = learnkit(capsys, "rename", model, "bad=broken")[1]
    line = next(one for one in output.splitlines() if "learnkit undo" in one)
    asked = ["sh", "-c", line.replace("learnkit undo", "printf %s")]
    assert subprocess.run(asked, capture_output=True, text=True).stdout == str(model)


def test_several_classes_are_forgotten_by_one_change_that_one_undo_takes_back(
    known, tmp_path, capsys
):
    model = shutil.copytree(known, tmp_path / "model")
    n = len(load_learner(model).audit)
    code, output, _ = learnkit(capsys, "forget", model, "bad", "good")
    assert code == 0
    assert re.search(r"bad +│ +-12 │ +0", output)
    assert re.search(r"good +│ +-14 │ +0", output)
    assert len(load_learner(model).audit) == n + 1
    assert learnkit(capsys, "undo", model)[0] == 0
    assert load_learner(model).continual.n_images == {"bad": 12, "good": 14}


def test_other_names_are_told_as_such(known, tmp_path, capsys):
    model = shutil.copytree(known, tmp_path / "model")
    code, output, _ = learnkit(capsys, "rename", model, "bad=broken")
    assert (code, "(new)" in output) == (0, False)
    assert output.startswith("2 classes\n    renamed bad -> broken\n")
    assert "renamed broken -> bad\n" in learnkit(capsys, "undo", model)[1]


def test_fresh_images_calibrate_a_model_and_learned_ones_do_not(known, images, tmp_path, capsys):
    model = shutil.copytree(known, tmp_path / "model")
    learned = ImageDataset.from_folder(images).filter(lambda frame: frame["label"] != "odd")
    for path, name in zip(learned.paths, learned.labels, strict=True):
        (tmp_path / "learned" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "learned" / name)
    fresh = write_image_folder(tmp_path / "fresh", {"bad": 4, "good": 5}, seed=7)
    was = load_learner(model)
    expected = was.ood.threshold.value
    was.calibrate(ImageDataset.from_folder(fresh), progress=False)
    code, output, _ = learnkit(capsys, "calibrate", model, fresh)
    assert code == 0
    assert output.startswith("2 classes\n    validation images +9\n    threshold ")
    assert load_learner(model).ood.threshold.value == was.ood.threshold.value
    assert learnkit(capsys, "undo", model)[0] == 0
    assert load_learner(model).ood.threshold.value == expected
    code, _, error = learnkit(capsys, "calibrate", model, tmp_path / "learned")
    assert code == 2
    assert "every image to calibrate by (26 given) was learned by this model" in error
    code, _, error = learnkit(capsys, "calibrate", model, images)
    assert code == 2
    assert error.endswith(
        "there is no class 'odd'; did you mean one of ['bad', 'good']? Label these images so, "
        "leave them out, or `extend` it by that class first. Here: learnkit extend MODEL FOLDER "
        "--out MODEL.\n"
    )


def test_suggest_names_images_to_label_and_those_it_cannot_read(known, unknown, tmp_path, capsys):
    before = load_learner(known).digest
    table = tmp_path / "next.csv"
    code, output, error = learnkit(capsys, "suggest", known, unknown, "--n", 2, "--csv", table)
    assert (code, error) == (0, "")
    files = sorted(map(str, unknown.iterdir()))
    assert "2 of 6 images to label next" in output
    rows = pd.read_csv(table)
    assert len(rows) == 2
    assert set(rows["item"]) < set(files)
    assert rows["reason"].notna().all()
    assert load_learner(known).digest == before
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"x")
    code, output, error = learnkit(capsys, "suggest", known, unknown, torn)
    assert (code, error) == (1, "learnkit: 1 image could not be read\n")
    assert "6 of 7 images to label next; 1 could not be read" in output
    assert "cannot be read: it begins with" in " ".join(output.split())
    code, _, error = learnkit(capsys, "suggest", known, unknown, "--csv", tmp_path / "next.txt")
    assert (code, "name a file that ends in .csv" in error) == (2, True)


def test_of_several_changes_all_are_made_or_none(known, tmp_path, capsys):
    model = shutil.copytree(known, tmp_path / "model")
    code, _, error = learnkit(capsys, "forget", model, "bad", "nowhere")
    assert code == 2
    assert "there is no class 'nowhere'" in error
    assert load_learner(model).continual.n_images == {"bad": 12, "good": 14}


def test_check_shows_findings_and_gives_exit_code_1_for_errors(images, tmp_path, capsys):
    folder = shutil.copytree(images, tmp_path / "copy")
    code, output, _ = learnkit(capsys, "check", folder)
    assert (code, "error" in output) == (0, False)
    (folder / "bad" / "torn.png").write_bytes(b"x")
    shutil.copy(folder / "good" / "000.png", folder / "odd" / "again.png")
    code, output, _ = learnkit(capsys, "check", folder, "--csv", tmp_path / "found.csv")
    assert code == 1
    assert "error: unreadable (1)\n    bad/torn.png, bad: it begins with b'x'" in output
    table = pd.read_csv(tmp_path / "found.csv")
    assert {"unreadable", "conflicting labels"} <= set(table["finding"])


def test_version_is_told(capsys):
    code, output, _ = learnkit(capsys, "--version")
    assert (code, output) == (0, f"learnkit {__version__}\n")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_convert_turns_fastais_export_into_a_model_that_answers_alike(images, tmp_path, capsys):
    from fastai.vision.all import ImageDataLoaders, Resize, vision_learner

    dls = ImageDataLoaders.from_folder(images, valid_pct=0.3, item_tfms=Resize(32), num_workers=0)
    learn = vision_learner(dls, "test_resnet", pretrained=False, path=tmp_path)
    learn.export("export.pkl")
    out = tmp_path / "model"
    code, output, _ = learnkit(capsys, "convert", tmp_path / "export.pkl", out, "--allow-pickle")
    assert code == 0
    assert "it holds no code" in " ".join(output.split())
    file = dls.valid_ds.items[0]
    with learn.no_bar():
        expected = learn.predict(file)[2]
    assert torch.allclose(load_learner(out).predict(file).probs, expected, atol=1e-6)


def test_convert_says_that_an_export_without_a_size_of_images_lacks_it(images, tmp_path, capsys):
    from fastai.vision.all import ImageDataLoaders, vision_learner

    dls = ImageDataLoaders.from_folder(images, valid_pct=0.3, num_workers=0)
    vision_learner(dls, "test_resnet", pretrained=False, path=tmp_path).export("export.pkl")
    arguments = ("convert", tmp_path / "export.pkl", tmp_path / "model", "--allow-pickle")
    code, _, err = learnkit(capsys, *arguments)
    assert (code, (tmp_path / "model").exists()) == (2, False)
    assert "nothing says to what size images are brought" in err
    assert "`item_tfms=Resize(224)`" in err


def test_report_says_what_a_model_is_and_what_its_variants_cost(tmp_path, capsys):
    page = tmp_path / "model.html"
    code, out, err = learnkit(capsys, "report", GOLDEN, "--html", page)
    assert (code, err) == (0, "")
    predictor = load_learner(GOLDEN, threads=1)
    assert predictor.continual.n_images == {
        name: int(n) for name, n in re.findall(r"│ ([^│]+?) +│ +(\d+) │\n", out)
    }
    assert re.search(r"onnxruntime-float16 │ +5 │ +59 │ 0\.13 │ opens by default, has learned", out)
    assert re.search(r"float32 +│ +4 │ +52 │", out)
    assert str(predictor.report) in out
    text = page.read_text(encoding="utf-8")
    assert predictor.report._repr_html_() in text
    assert "Golden parts, learned" in text
    assert predictor.digest in text


def test_report_reads_descriptions_only_and_shows_names_as_text(known, tmp_path, capsys):
    model = shutil.copytree(known, tmp_path / "model")
    load_learner(model).set(class_names=["[red]x", "<b>"]).save(
        model, card={"name": "<i>\x1b[2J\u202e"}
    )
    (model / "model.safetensors").unlink()
    page = tmp_path / "model.html"
    code, out, _ = learnkit(capsys, "report", model, "--html", page)
    assert (code, "│ [red]x │" in out) == (0, True)
    assert out.startswith("<i>?[2J?\n")
    assert "<td>&lt;b&gt;</td><td>14</td>" in page.read_text(encoding="utf-8")
    assert "<i>" not in page.read_text(encoding="utf-8")
    rewrite(model, "config.json", lambda data: data.replace(b'"arch"', b'"crah"'))
    code, _, err = learnkit(capsys, "report", model)
    assert (code, "is no description of a model" in err) == (2, True)


def test_report_tells_of_the_images_that_were_served(known, tmp_path, capsys):
    model, page = shutil.copytree(known, tmp_path / "model"), tmp_path / "page.html"
    predictor = load_learner(model)
    monitor = predictor.monitor(file=tmp_path / "model.drift.json")
    predictor.predict(strange(1)[0])
    monitor.save()
    code, out, _ = learnkit(capsys, "report", model, "--html", page)
    assert (code, str(monitor) in " ".join(out.split())) == (0, True)
    assert str(monitor) in page.read_text(encoding="utf-8")
    (tmp_path / "model.drift.json").write_text("{}", encoding="utf-8")
    code, _, err = learnkit(capsys, "report", model)
    assert (code, "model.drift.json: `format` is missing" in " ".join(err.split())) == (2, True)


def test_report_shows_the_last_changes_and_the_snapshots(tmp_path, capsys):
    page, predictor = tmp_path / "report.html", make_continual({"ok": 4, "bad": 4})
    predictor.snapshot("as delivered")
    for _ in range(6):
        predictor.forget("bad")
        predictor.undo()
    predictor.save(tmp_path / "m")
    code, out, err = learnkit(capsys, "report", tmp_path / "m", "--html", page)
    assert (code, err) == (0, "")
    shown = out.partition("Last changes of float32")[2]
    last, first = predictor.audit[-1], predictor.audit[0]
    for text in (shown, page.read_text(encoding="utf-8")):
        assert last.digest[:12] in text
        assert "3 earlier changes" in text
        assert first.when[:16].replace("T", " ") in text
    assert shown.index(" 13  undo") < shown.index(" 12  forget")
    assert "as delivered" in out


def test_report_and_card_show_the_ids_of_classes_that_have_any(tmp_path, capsys):
    predictor = make_continual({"ok": 4, "bad": 4})
    predictor.record = predictor.record.replace(class_ids=(17, 3))
    predictor.extend(*labelled({"new": 3}), progress=False)
    predictor.save(tmp_path / "m")
    code, out, _ = learnkit(capsys, "report", tmp_path / "m")
    assert code == 0
    rows = [line.split() for line in out.partition("Classes of")[2].splitlines()]
    told = [[cell for cell in row if cell not in "│┃|"] for row in rows]
    for row in (["ok", "17", "4"], ["bad", "3", "4"], ["new", "18", "3"]):
        assert row in told
    card = (tmp_path / "m" / "README.md").read_text(encoding="utf-8").partition("## Classes")[2]
    assert "| 17 | ok |" in card
    assert "| 18 | new |" in card


def test_report_needs_neither_torch_nor_pandas():
    code = _RUN + "print({'torch', 'pandas', 'fastai'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code, "report", GOLDEN],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert found.stdout.strip().endswith("set()")


# -- progress -----------------------------------------------------------------------------------

PASSES = {
    "check {images} --fast": "check images: 36 of 36 images",
    "predict {known} {images} --json": "predict: 36 of 36 images",
    "evaluate {known} {images}/../two": "predict: 26 of 26 images",
    "extend {known} {images} --out {tmp}/m": "features: 36 of 36 images",
}


@pytest.mark.parametrize("line", PASSES)
def test_progress_is_told_on_standard_error_and_leaves_the_output_alone(
    known, images, tmp_path, capsys, monkeypatch, line
):
    for name in ("bad", "good"):
        shutil.copytree(images / name, images.parent / "two" / name, dirs_exist_ok=True)
    argv = line.format(images=images, known=known, tmp=tmp_path).split()
    quiet = learnkit(capsys, *argv)
    assert quiet[2] == ""  # it took no two seconds
    show_progress_at_once(monkeypatch)
    code, out, err = learnkit(capsys, *argv)
    assert (code, out) == quiet[:2]
    assert re.search(rf"^{PASSES[line]}, \d+ s left$", err, re.M), err


# -- mistakes -----------------------------------------------------------------------------------

MISTAKES = {
    "train nowhere": "nowhere' does not exist or is not a folder; check the path",
    "train {images} --arch resnet81": "no architecture of this name; nearest: .*resnet18",
    "train {images} --lr 0": "--lr is 0.0; it must be above 0",
    "train {images} --lr inf": "--lr is inf; it must be above 0 and finite",
    "train {images} --lr nan": "--lr is nan; it must be above 0",
    "train {images} --precision int8": "--precision is 'int8'; it must be one of auto, float32,",
    "train {images} --precision float16 --arch test_resnet --no-pretrained --out {tmp}/half": (
        "`precision` is 'float16', which torch trains many times slower than float32 on processors"
    ),
    "train {images} --bs 1 --size 32 --epochs 1 --no-pretrained --arch test_resnet --out {tmp}/m": (
        "a training batch holds one image .*, and a batch norm needs two"
    ),
    "train {images} --arch-args same": "--arch-args is 'same'; write NAME=VALUE",
    "train {images} --mean 0.5": "--mean and --std belong together",
    "train {images} --mean dark --std 1": "--mean is 'dark'; write numbers such as 0.5,0.5,0.5",
    "train {images} --weights no.safetensors": "weights file 'no.safetensors' does not exist",
    "train {images} --weights a.safetensors --no-pretrained": "exclude each other",
    "train {images} --head-only --no-pretrained": "--head-only needs a pretrained body",
    "train {images} --resume --out {tmp}/none": "no checkpoint '.*none-training.checkpoint.ckpt'",
    "train {images} --out {images}": "is a folder with files that no bundle put there",
    "evaluate {model} nowhere": "nowhere' does not exist or is not a folder",
    "evaluate {images} {images}": "is not a bundle",
    "evaluate {model} {images} --ood {images}": "is not in the continual state",
    "evaluate {known} {images}": (
        r"labels \['odd'\] that this model does not know.*\. Here: learnkit rename MODEL OLD=NEW\.$"
    ),
    "optimize {known} --out {tmp}/m --precision int8": (
        r"`samples` is missing: .*\. Here: --samples\.$"
    ),
    "train {images} --method cut": r"`method` is 'cut'.*'squish'.*\. Here: --method\.$",
    "predict {images}/../x.pkl {images}": (
        r"a pickle, .*\. Here: learnkit convert EXPORT\.PKL OUT --allow-pickle\.$"
    ),
    "evaluate {known} {images} --ood {tmp}": "holds no images",
    "extend {model} {images} --out {tmp}/m": "is not in the continual state: .*init_continual",
    "extend {known} nowhere --out {tmp}/m": "nowhere' does not exist or is not a folder",
    "extend {known} {images} --out {images}": "is a folder with files that no bundle put there",
    "extend {known} {images} --out {tmp}/m --false-alarm-rate 1.5": "--false-alarm-rate is 1.5",
    "extend {known} {images} --out {tmp}/m --ood-threshold nan": "--ood-threshold is nan; a finite",
    "predict {known} {images} --false-alarm-rate 0.1 --ood-threshold 1.2": (
        "--false-alarm-rate 0.1 and --ood-threshold 1.2 both say when an image is flagged"
    ),
    "extend {images} {images}": "is not a bundle: it has no manifest",
    "undo {images}": "is not a bundle: it has no manifest",
    "extend nomodel {images} --out {tmp}/m": "there is no bundle at nomodel",
    "predict nomodel {images}": "there is no bundle at nomodel",
    "predict {model} none.png": "there is no file or folder 'none.png'",
    "predict {model} {tmp}": "holds no images",
    "predict {model} {images} --json a.png": "--json is 'a.png'; name a file that ends in .json",
    "predict {model} {images} --csv a.jpg": "--csv is 'a.jpg'; name a file that ends in .csv",
    "predict {model} {images} --csv {tmp}/no/a.csv": "non-existent directory",
    "predict {model} {images} --out a.txt": "--out is 'a.txt'; name a file that ends in .csv, .js",
    "predict {model} {images} --out a.csv --json": "--out takes the place of --csv and --json",
    "predict {model} {images} --resume": "--resume goes on with the file of --out",
    "predict {model} {images} --out {tmp}/no/a.csv": "there is no folder '.*no' to write to",
    "report nomodel": "there is no bundle at nomodel",
    "report {images}": "is not a bundle: it has no manifest.json",
    "report {model} --html a.png": "--html is 'a.png'; name a file that ends in .html",
    "report {model} --html {tmp}/no/a.html": "No such file or directory",
    "convert nowhere.pkl {tmp}/m": "EXPORT.PKL is 'nowhere.pkl', which is no file",
    "convert {model}/config.json {tmp}/m": "whatever code .* if you trust .* --allow-pickle",
    "convert {model}/config.json {tmp}/m --allow-pickle": "config.json cannot be unpickled here",
    "convert {model}/config.json {images} --allow-pickle": "is a folder with files that no bundle",
    "check nowhere": "nowhere' does not exist or is not a folder",
    "check {images} --csv a.png": "--csv is 'a.png'; name a file that ends in .csv",
    "undo {known}": "there is no change to undo",
    "undo {model}": "is not in the continual state: .* Here: learnkit train FOLDER --continual",
    "rename {known} bad": "OLD=NEW is 'bad'; write a class and its new name",
    "rename {known} bad=a bad=b": "gives one class two names",
    "rename {known} bad=good": "good",
    "demo --out {images}": "is not empty and was not made by the demo",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(run, known, images, tmp_path, capsys, line):
    (images.parent / "x.pkl").touch()
    argv = line.format(images=images, model=run[2], known=known, tmp=tmp_path).split()
    code, _, err = learnkit(capsys, *argv)
    assert code == 2
    assert err.startswith("learnkit: ")
    assert err.count("\n") == 1
    assert re.search(MISTAKES[line], err), err


@pytest.mark.parametrize(
    "argv",
    [
        *(["train", "x", "--colour"], ["fly"], ["train"], ["train", "x", "--size", "big"]),
        *(["train", "x", "--bs", "0"], ["train", "x", "--seed", "-1"], ["train", "x", "--bs", "a"]),
    ],
)
def test_a_wrong_option_gives_exit_code_2(capsys, argv):
    code, _, err = learnkit(capsys, *argv)
    assert code == 2
    assert "Error" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="does not exist") as caught:
        main(["train", "nowhere", "--debug"])
    assert type(caught.value).__name__ == "DataError"


_RAISES = """
import sys
from learnkit.cli import workflow
from learnkit.cli.app import main
from learnkit.errors import DataError
def refuse(*args, **kwargs):
    raise DataError("\\x1b[31mred\\x9b\\u202e")
workflow.read_dataset = refuse
main()
"""


def test_a_traceback_steers_no_terminal(tmp_path):
    command = [sys.executable, "-c", _RAISES, "--debug", "train", "a", "--out", tmp_path / "b"]
    done = subprocess.run(command, capture_output=True, check=False, encoding="utf-8")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.splitlines()[-1] == "learnkit.errors.DataError: ?[31mred??"
    assert all(line.isprintable() for line in done.stderr.splitlines())


# -- interruptions ------------------------------------------------------------------------------


_WAITING = """
import sys, time
from learnkit.callback import checkpoint
from learnkit.cli.app import main
write = checkpoint.write_checkpoint
def write_and_wait(*args):
    write(*args)
    print("saved", flush=True)
    time.sleep(600)
checkpoint.write_checkpoint = write_and_wait
main(sys.argv[1:])
"""


def test_a_killed_training_resumes_to_the_same_weights(images, tmp_path, capsys):
    again = ["train", images, *SMALL, "--epochs", 4, "--out", tmp_path / "killed"]
    file = tmp_path / "killed-training" / "checkpoint.ckpt"
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITING, *map(str, again)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        encoding="utf-8",
    )
    assert "saved\n" in iter(process.stdout.readline, "")  # its first epoch is, and it waits
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert read_checkpoint(file)["epoch"] == 0

    code, _, err = learnkit(capsys, *again)
    assert (code, "unfinished training stands in" in err) == (2, True)
    code, _, err = learnkit(capsys, *again[:-3], "3", *again[-2:], "--resume")
    assert (code, "number of epochs of fit 0 is '4' there and '3' here" in err) == (2, True)
    code, _, err = learnkit(capsys, *again, "--resume", "--lr", "0.5")
    assert (code, "lr is 'None' there and '0.5' here" in err) == (2, True)
    code, out, _ = learnkit(capsys, *again, "--resume")
    assert (code, "going on from" in out) == (0, True)
    assert not file.exists()

    whole = ["train", images, *SMALL, "--epochs", 4, "--out", tmp_path / "whole"]
    assert learnkit(capsys, *whole)[0] == 0
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])
    histories = [
        pd.read_csv(tmp_path / f"{name}-training" / "history.csv") for name in ("killed", "whole")
    ]
    assert histories[0].drop(columns="seconds").equals(histories[1].drop(columns="seconds"))


def test_ctrl_c_says_how_to_go_on(images, tmp_path, capsys, monkeypatch):
    write = checkpoint.write_checkpoint

    def write_and_interrupt(*args):
        write(*args)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint, "write_checkpoint", write_and_interrupt)
    argv = ["train", images, *SMALL, "--out", tmp_path / "model", "--epochs", 3]
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers may ignore it
    try:
        code, _, err = learnkit(capsys, *argv)
    except KeyboardInterrupt:
        pytest.fail("the command did not see to it")
    finally:
        signal.signal(signal.SIGINT, former)
    assert code == 130
    last = err.strip().splitlines()[-1]
    assert last.startswith(
        f"learnkit: interrupted; go on with: learnkit train {images} --arch test_resnet"
    )
    assert last.endswith("--epochs 3 --resume")
    assert (tmp_path / "model-training" / "checkpoint.ckpt").exists()


def test_a_command_that_needs_more_than_serving_says_what(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "learnkit.cli.workflow", None)
    code, out, err = learnkit(capsys, "predict", tmp_path, tmp_path)
    assert (code, out) == (2, "")
    assert "needs learnkit.cli.workflow, which is not installed: `pip install learnkit`" in err


# -- hostile names and targets ---------------------------------------------------------------------

STEERING = "a\x1b]0;x\x07\x9b2J\u202eb"  # a window's title, a cleared screen, text turned around


@pytest.fixture(scope="module")
def steering(tmp_path_factory):
    """(model, images) whose classes and files are called what a terminal obeys."""
    root = tmp_path_factory.mktemp("steering")
    images = write_image_folder(root / "images", {STEERING: 6, "good": 6})
    for path in sorted((images / STEERING).iterdir()):
        path.rename(path.with_name(f"{STEERING}{path.name}"))
    (images / "good" / f"{STEERING}.png").write_bytes(b"x")
    predictor = make_continual()
    data = ImageDataset.from_folder(images).filter(lambda frame: frame["path"].str[-5] != "b")
    labels = ["bad" if label == STEERING else label for label in data.labels]
    predictor.extend(data.paths, labels, progress=False)
    renamed_as_before(predictor, {"bad": STEERING}).save(root / "model")
    return root / "model", images


@pytest.mark.parametrize(
    "command",
    [
        "report MODEL",
        "predict MODEL IMAGES",
        "predict MODEL IMAGES --json -",
        "evaluate MODEL IMAGES",
        "check IMAGES",
        "extend MODEL IMAGES --out NEW",
        "rename MODEL good=GOOD --out NEW",
        "rename MODEL GOOD=good --out NEW",
        "forget MODEL STEERING --out NEW",
        "forget MODEL STEERINGx --out NEW",
        "undo MODEL --out NEW",
        "evaluate STEERING IMAGES",
        "train STEERING",
    ],
)
def test_terminals_are_shown_what_would_steer_them(steering, tmp_path, capsys, command):
    model, images = steering
    named = {"MODEL": model, "IMAGES": images, "NEW": tmp_path / STEERING, "STEERING": STEERING}
    named["STEERINGx"] = f"{STEERING}x"
    _, out, err = learnkit(capsys, *(named.get(word, word) for word in command.split()))
    assert out + err
    sent = {one for one in out + err if not one.isprintable()} - {"\n"}
    assert not sent, sorted(sent)


def test_json_on_the_screen_holds_the_names_as_they_are(steering, capsys):
    model, images = steering
    path = next(path for path in (images / STEERING).iterdir())
    _, out, _ = learnkit(capsys, "predict", model, path, "--json")
    (found,) = json.loads(out)
    assert found["path"] == str(path)
    assert found["probs"].keys() == {STEERING, "good"}


@pytest.mark.parametrize(
    "command",
    [
        "report MODEL --html MODEL/page.html",
        "predict MODEL IMAGES --csv MODEL/p.csv",
        "predict MODEL IMAGES --json MODEL/config.json",
        "predict MODEL IMAGES --out MODEL/variants/p.jsonl",
        "check IMAGES --csv MODEL/p.csv",
        "extend MODEL IMAGES --out MODEL/more",
        "rename MODEL good=GOOD --out MODEL/more",
        "undo MODEL --out MODEL/more",
        "optimize MODEL --out MODEL/fast",
        "onnx MODEL MODEL/model.onnx",
        "onnx MODEL model.onnx --about MODEL/config.json",
        "train IMAGES --out MODEL/new",
        "demo --out MODEL/demo",
    ],
)
def test_nothing_is_written_into_a_bundle(known, images, capsys, command):
    before = {path.name: path.read_bytes() for path in known.iterdir()}
    words = command.replace("MODEL", str(known)).replace("IMAGES", str(images)).split()
    code, out, err = learnkit(capsys, *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(
        rf"learnkit: {known}/.* is inside the bundle {known}; a bundle holds nothing but what it "
        "lists: choose another path\n",
        err,
    )
    assert {path.name: path.read_bytes() for path in known.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "balance", "class_weights"),
    [
        ([], False, False),
        (["--balance"], True, False),
        (["--balance", "equal"], True, False),
        (["--balance", "sqrt", "--class-weights"], "sqrt", True),
    ],
    ids=["plain", "bare", "equal", "sqrt"],
)
@pytest.mark.parametrize("last", [True, False])
def test_train_balances_as_its_options_say(
    images, monkeypatch, capsys, options, balance, class_weights, last
):
    plans = []
    monkeypatch.setattr(
        "learnkit.cli.train.train_folder", lambda _, __, plan, **___: plans.append(plan)
    )
    argv = ["train", images, *options] if last else ["train", *options, images]
    assert learnkit(capsys, *argv)[0] == 0
    assert (plans[0].balance, plans[0].class_weights) == (balance, class_weights)


def test_an_unknown_balance_is_a_mistake_in_one_sentence(images, capsys):
    code, _, said = learnkit(capsys, "train", images, "--balance=log")
    assert code == 2
    assert "--balance is 'log'; it must be one of no, equal, sqrt" in " ".join(said.split())


def page_of(path):
    """The data of a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path, re.S)
    return json.loads(found[1])


def test_evaluate_writes_a_page_and_says_how_to_open_it(run, images, tmp_path, capsys):
    page = tmp_path / "report.html"
    call = ("evaluate", run[2], images, "--html", page, "--good", "good")
    code, out, _ = learnkit(capsys, *call)
    assert code == 0
    assert out.rstrip().endswith(f"Open {page} in a browser")
    assert "defects passed as good" in out
    text = page.read_text("utf-8")
    data = page_of(text)
    assert str(images) not in text
    assert str(run[2].parent) not in text
    wanted = load_learner(run[2]).evaluate(images, progress=False)
    assert (dense_counts(data["confusion"]) == wanted.confusion.values).all()
    assert data["command"] == (
        f"learnkit evaluate {run[2].name} {images.name} --html report.html --good good"
    )
    assert len(data["thumbs"]) == 36
    code, _, _ = learnkit(capsys, *call, "--no-images")  # it is replaced
    assert code == 0
    assert page_of(page.read_text("utf-8"))["thumbs"] == []


def test_evaluate_replaces_no_other_file_and_says_so_before_any_work(
    run, images, tmp_path, capsys, monkeypatch
):
    page = tmp_path / "mine.html"
    page.write_text("mine")
    monkeypatch.setattr("learnkit.deploy.predictor.load_learner", None)
    code, _, err = learnkit(capsys, "evaluate", run[2], images, "--html", page)
    assert (code, err.count("\n")) == (2, 1)
    assert "is no page of learnkit's" in err
    assert "Here: --force." in err
    assert page.read_text() == "mine"
    for option, *value in (("--open",), ("--force",), ("--no-images",), ("--learned", images)):
        code, _, err = learnkit(capsys, "evaluate", run[2], images, option, *value)
        assert (code, f"{option} is about the page of --html" in err) == (2, True)


def test_evaluate_opens_the_page_if_asked(run, images, tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    page = tmp_path / "a b.html"
    code, out, _ = learnkit(capsys, "evaluate", run[2], images, "--html", page, "--open")
    assert code == 0
    assert opened == [page.as_uri()]
    assert "in a browser" not in out


def test_a_good_class_that_is_none_is_refused(run, images, capsys):
    code, _, err = learnkit(capsys, "evaluate", run[2], images, "--good", "fine")
    assert (code, err.count("\n")) == (2, 1)
    assert "`good` names 'fine', which is no class; the classes are 'bad', 'good', 'odd'" in err


def test_images_that_cannot_be_read_are_listed_on_the_page(run, images, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "set")
    (tmp_path / "set" / "bad" / "000.png").write_bytes(b"no image")
    page = tmp_path / "report.html"
    code, _, _ = learnkit(capsys, "evaluate", run[2], tmp_path / "set", "--html", page)
    data = page_of(page.read_text("utf-8"))
    assert (code, data["data"]["n"]) == (1, 35)
    assert [one["path"] for one in data["unreadable"]] == ["bad/000.png"]
    assert str(tmp_path) not in page.read_text("utf-8")
    for path in (tmp_path / "set").rglob("*.png"):
        path.write_bytes(b"no image")
    code, _, _ = learnkit(capsys, "evaluate", run[2], tmp_path / "set", "--html", page)
    data = page_of(page.read_text("utf-8"))
    assert (code, data["data"]["n"], len(data["unreadable"]), data["rows"]) == (1, 0, 36, [])


def test_training_writes_the_page_first_and_notes_good_classes(images, tmp_path, capsys):
    out = tmp_path / "model"
    call = ("train", images, *SMALL, "--epochs", "1", "--out", out)
    code, said, _ = learnkit(capsys, *call, "--good", "good")
    assert code == 0
    page = out.with_name("model-training") / "report.html"
    written = said[said.index("Written") :].split("\n")
    assert str(page) in written[1]
    data = page_of(page.read_text("utf-8"))
    assert [one["name"] for one in data["classes"] if one["good"]] == ["good"]
    assert data["title"].startswith("model on ")
    assert "defects passed as good" in said
    _, said, _ = learnkit(capsys, "evaluate", out, images)
    assert "defects passed as good" in said
    assert "## Good parts" in (out / "README.md").read_text("utf-8")
    code, _, err = learnkit(capsys, *call, "--good", "fine")
    assert (code, "`good` names 'fine', which is no class" in err) == (2, True)
    page.write_text("my own notes")
    code, _, err = learnkit(capsys, *call)
    assert (code, "is no page of learnkit's" in err) == (2, True)


def test_a_false_alarm_rate_moves_the_threshold_of_a_prediction(known, images, tmp_path, capsys):
    model = load_learner(known)
    model.set(false_alarm_rate=0.3)
    wanted = [model.predict(path).verdict for path in sorted((images / "good").glob("*"))]
    table = tmp_path / "p.csv"
    call = ("predict", known, images / "good", "--csv", table, "--false-alarm-rate", "0.3")
    code, _, _ = learnkit(capsys, *call)
    assert (code, pd.read_csv(table)["verdict"].tolist()) == (0, wanted)
    code, _, err = learnkit(capsys, *call[:-1], "2")
    assert (code, "--false-alarm-rate is 2.0; between 0 and 1" in err) == (2, True)
    two = images.parent / "two"
    for name in ("bad", "good"):
        shutil.copytree(images / name, two / name, dirs_exist_ok=True)
    _, out, _ = learnkit(capsys, "evaluate", known, two, "--false-alarm-rate", "0.3")
    rate = model.evaluate(two, progress=False).summary["false_alarm_rate"]
    assert re.search(rf"false alarm rate .+{rate:.4f}", out)
    assert "30 % promised" in out


def test_an_ood_threshold_is_the_one_that_images_are_flagged_by(known, images, tmp_path, capsys):
    model, good = load_learner(known), sorted((images / "good").glob("*"))
    scores = np.array([model.predict(path).ood_score for path in good])
    limit = str(float(np.median(scores)))
    table, page = tmp_path / "p.csv", tmp_path / "page.html"
    call = ("predict", known, images / "good", "--csv", table, "--ood-threshold", limit)
    assert learnkit(capsys, *call)[0] == 0
    flagged = pd.read_csv(table)["verdict"] == "UNKNOWN"
    assert flagged.tolist() == (scores > float(limit)).tolist()
    two = images.parent / "two-more"
    for name in ("bad", "good"):
        shutil.copytree(images / name, two / name, dirs_exist_ok=True)
    assert learnkit(capsys, "evaluate", known, two, "--html", page, *call[-2:])[0] == 0
    data = page_of(page.read_text("utf-8"))
    assert data["ood"]["threshold"] == float(limit)
    assert data["command"].endswith(f"--ood-threshold {limit}")
    out = tmp_path / "extended"
    assert learnkit(capsys, "extend", known, images, "--out", out, *call[-2:])[0] == 0
    assert load_learner(out).ood.threshold.value == float(limit)

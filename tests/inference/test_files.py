"""Tables of predictions on disk: the same whatever the interruptions, never of two models."""

import csv
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from deploy_helpers import make_continual, make_predictor, renamed_as_before, shades, strange
from PIL import Image

from learnkit.errors import (
    ImageReadError,
    MissingExtraError,
    PredictionError,
    PredictionFileError,
)
from learnkit.inference.files import FilesReport, predict_to_file
from learnkit.inference.model import model_digest
from learnkit.inference.prediction import prediction_of
from learnkit.inference.prediction_log import PredictionLog, opened_log

KINDS = ["csv", "jsonl", "parquet"]


class Counting:
    """A predictor of two classes that reads no files and counts those it is asked about."""

    digest, classes, multi_label = "d" * 64, ("a", "b"), False

    def __init__(self, digest="d" * 64, stop_after=math.inf):
        self.digest, self.seen, self.stop_after = digest, [], stop_after

    def load(self, source):
        if "broken" in source:
            raise ImageReadError(f"image {source!r} cannot be read")
        return np.float32(sum(source.encode("utf-8", "surrogateescape")) % 97 / 97)

    def try_loaded(self, images):
        own = {id(image): image for image in images}.values()  # a batch is filled up with its last
        if len(self.seen) + len(own) > self.stop_after:
            raise KeyboardInterrupt
        self.seen += own
        return [prediction_of(np.array([1 - x, x]), self.classes) for x in images]


NAMES = [f"dir/{i}{'-broken' * (i % 7 == 3)}.png" for i in range(30)]
RUN = {"bs": 4, "progress": False, "n_workers": 0}


def lines(log):
    """The lines of a log: its header, then a record for every batch."""
    return log.read_bytes().splitlines(keepends=True) if log.exists() else []


def rows(path):
    """The rows of a table as dictionaries of plain values."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five images, the third of which is broken, and the fifth like no class."""
    folder = tmp_path_factory.mktemp("photos")
    images = [*shades("ok", 4), *strange(1)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"no image")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_tables_say_what_the_data_frame_says(photos, tmp_path, kind):
    predictor = renamed_as_before(make_continual({"ok": 6, "bad": 5}), {"bad": "=bad,\n"})
    frame = predictor.predict_files(photos, progress=False)
    report = predictor.predict_files(photos, out=tmp_path / f"p.{kind}", progress=False)
    assert (report.n_files, report.n_failed, report.n_resumed) == (5, 1, 0)
    assert report.counts == dict(frame["verdict"].value_counts())
    assert report.counts["UNKNOWN"] == 1
    again = predictor.predict_files(photos, out=report.path, progress=False)
    assert (again.n_failed, again.counts) == (1, report.counts)
    assert report.model == model_digest(predictor)
    assert os.listdir(tmp_path) == [f"p.{kind}"]
    for row, wanted in zip(rows(report.path), frame.to_dict("records"), strict=True):
        assert (row["path"], row["model"]) == (wanted["path"], report.model)
        assert (row["error"] or None) == wanted["error"]
        probs = row.get("probs", row)
        if wanted["error"] is not None:
            blank = ("verdict", "label", "confidence", "is_ood", "ood_score", "p_value")
            assert {row[name] for name in blank} <= {None, ""}
            assert probs is None or not probs.get("p(ok)")
            continue
        assert (row["label"], row["verdict"]) == (wanted["label"], wanted["verdict"])
        assert row["verdict"] == ("UNKNOWN" if wanted["is_ood"] else wanted["label"])
        assert str(row["is_ood"]) == str(wanted["is_ood"])
        for name in ("confidence", "ood_score", "p_value"):
            assert float(row[name]) == wanted[name]
        for name in predictor.classes:
            found = probs[name if kind == "jsonl" else f"p({name})"]
            assert np.float32(found) == np.float32(wanted[f"p({name})"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_call_is_gone_on_with_and_gives_the_same_bytes(tmp_path, kind):
    whole, out = tmp_path / f"whole.{kind}", tmp_path / f"p.{kind}"
    everything = Counting()
    predict_to_file(everything, NAMES, whole, **RUN)
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Counting(stop_after=13), NAMES, out, **RUN)
    assert not out.exists()
    again = Counting()
    report = predict_to_file(again, NAMES, out, **RUN)
    assert out.read_bytes() == whole.read_bytes()
    assert (report.n_files, report.n_failed, report.n_resumed) == (30, 4, 12)
    assert again.seen == everything.seen[-len(again.seen) :]
    assert len(again.seen) == 30 - 4 - 10  # two of the first twelve are broken
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([whole.name, out.name])


_KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from learnkit.inference.files import predict_to_file
import numpy as np
from learnkit.inference.prediction import prediction_of
class Slow:
    digest, classes, multi_label = "d" * 64, ("a", "b"), False
    def load(self, source):
        time.sleep(0.02)
        return np.float32(sum(source.encode()) % 97 / 97)
    def try_loaded(self, images):
        return [prediction_of(np.array([1 - x, x]), self.classes) for x in images]
predict_to_file(Slow(), {names!r}, {out!r}, bs=4, progress=False, n_workers=0)
"""


def test_a_killed_process_leaves_whole_batches_and_no_table(tmp_path):
    names, out = [name for name in NAMES if "broken" not in name] * 20, tmp_path / "p.csv"
    code = _KILLED.format(tests=os.path.dirname(__file__), names=names, out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code])
    log = tmp_path / "p.csv.parts"
    for _ in range(4000):
        if len(lines(log)) > 2 or process.poll() is not None:
            break
        time.sleep(0.005)
    with pytest.raises(PredictionFileError, match="another process is at work"):
        predict_to_file(Counting(), names, out, **RUN)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    records = [line for line in lines(log)[1:] if line.endswith(b"\n")]
    assert [line.split()[:2] for line in records[:2]] == [[b"0", b"4"], [b"4", b"4"]]
    done = len(records)
    again = Counting()
    report = predict_to_file(again, names, out, **RUN)
    assert (report.n_resumed, len(again.seen)) == (4 * done, len(names) - 4 * done)
    predict_to_file(Counting(), names, tmp_path / "whole.csv", **RUN)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def interrupted(out, stop_after=16):
    """The log of a call that was interrupted, after four batches by default."""
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Counting(stop_after=stop_after), NAMES, out, **RUN)
    return out.with_name(f"{out.name}.parts")


def test_a_damaged_record_is_predicted_again(tmp_path):
    out = tmp_path / "p.jsonl"
    log = interrupted(out)
    found = lines(log)
    found[2] = b'4 4 0 [{"path": "dir/4\n'
    log.write_bytes(b"".join(found) + b"half")
    report = predict_to_file(Counting(), NAMES, out, **RUN)
    assert report.n_resumed == 12
    assert [row["path"] for row in rows(out)] == NAMES


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of the table of `NAMES`."""
    out = tmp_path_factory.mktemp("whole") / "p.jsonl"
    predict_to_file(Counting(), NAMES, out, **RUN)
    return out.read_bytes()


def test_wherever_a_log_is_torn_the_table_comes_out_the_same(tmp_path, whole):
    out = tmp_path / "p.jsonl"
    content = interrupted(out).read_bytes()
    header = content.index(b"\n") + 1
    ends = [i + 1 for i in range(len(content)) if content[i : i + 1] == b"\n"][1:]
    for n in [0, 1, header - 1, header, header + 1, *ends, *(end + 9 for end in ends), ends[1] - 1]:
        out.unlink(missing_ok=True)
        out.with_name("p.jsonl.parts").write_bytes(content[:n])
        report = predict_to_file(Counting(), NAMES, out, **RUN)
        assert out.read_bytes() == whole
        assert report.n_resumed == 4 * sum(end <= n for end in ends)


def test_a_flipped_byte_costs_its_batch_and_nothing_else(tmp_path, whole):
    out = tmp_path / "p.jsonl"
    content = interrupted(out).read_bytes()
    for place in np.linspace(content.index(b"\n") + 1, len(content) - 1, 25).astype(int):
        damaged = bytearray(content)
        damaged[place] ^= 1
        out.unlink(missing_ok=True)
        out.with_name("p.jsonl.parts").write_bytes(damaged)
        report = predict_to_file(Counting(), NAMES, out, **RUN)
        assert out.read_bytes() == whole
        assert report.n_resumed in (8, 12)  # the end of a line takes the next one with it
        assert report.n_failed == 4


def test_a_process_killed_while_the_table_is_written_leaves_none(tmp_path, monkeypatch, whole):
    def killed(file, *_):
        file.write(b"half")
        raise KeyboardInterrupt

    out = tmp_path / "p.jsonl"
    monkeypatch.setattr("learnkit.inference.files.write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Counting(), NAMES, out, **RUN)
    monkeypatch.undo()
    (tmp_path / ".p.jsonl.tmp").write_text("half", encoding="utf-8")  # what SIGKILL would have left
    assert not out.exists()
    for _ in "ab":
        again = Counting()
        assert predict_to_file(again, NAMES, out, **RUN).n_resumed == 30
        assert (again.seen, out.read_bytes()) == ([], whole)
    assert os.listdir(tmp_path) == ["p.jsonl"]


def test_a_process_killed_before_the_log_is_removed_loses_nothing(tmp_path, monkeypatch, whole):
    out = tmp_path / "p.jsonl"
    monkeypatch.setattr(PredictionLog, "remove", lambda self: None)
    predict_to_file(Counting(), NAMES, out, **RUN)
    monkeypatch.undo()
    again = Counting()
    report = predict_to_file(again, NAMES, out, **RUN)
    assert (again.seen, report.n_resumed, report.n_failed) == ([], 30, 4)
    assert (os.listdir(tmp_path), out.read_bytes()) == (["p.jsonl"], whole)


def test_one_process_writes_at_a_time(tmp_path, whole):
    out = tmp_path / "p.jsonl"
    log = out.with_name("p.jsonl.parts")
    with opened_log(log), pytest.raises(PredictionFileError, match="another process is at work"):
        predict_to_file(Counting(), NAMES, out, resume=False, **RUN)
    code = _KILLED.format(tests=os.path.dirname(__file__), names=NAMES[:1] * 8, out=str(out))
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)
    ]
    said = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes
    for code, err in zip(codes, said, strict=True):
        assert code == 0 or b"another process is at work" in err
    assert [row["path"] for row in rows(out)] == NAMES[:1] * 8
    assert os.listdir(tmp_path) == ["p.jsonl"]


def test_a_log_that_was_removed_while_one_waited_for_it_is_not_written_to(tmp_path, monkeypatch):
    from learnkit.inference import prediction_log

    path, turns = tmp_path / "p.csv.parts", itertools.count()

    def lock(descriptor):
        if next(turns) == 0:
            path.unlink()  # by the process that held the lock, and has finished
        return True

    monkeypatch.setattr(prediction_log, "try_lock", lock)
    with opened_log(path) as log:
        log.begin({}, resume=True)
        assert path.read_bytes().startswith(b'{"learnkit predictions": 3}')
    assert next(turns) == 2


def test_what_is_no_log_is_neither_read_nor_replaced(tmp_path):
    out, place = tmp_path / "p.csv", tmp_path / "p.csv.parts"
    place.write_text("my notes", encoding="utf-8")
    for resume in (True, False):
        with pytest.raises(PredictionFileError, match="holds something else than predictions; mov"):
            predict_to_file(Counting(), NAMES, out, resume=resume, **RUN)
    assert place.read_text(encoding="utf-8") == "my notes"
    place.unlink()
    place.mkdir()
    (place / "job.json").write_text("{}", encoding="utf-8")
    for resume in (True, False):
        with pytest.raises(PredictionFileError, match=r"earlier versions .* remove it to start"):
            predict_to_file(Counting(), NAMES, out, resume=resume, **RUN)
    assert os.listdir(place) == ["job.json"]


def test_a_log_damaged_while_it_is_read_is_told(tmp_path):
    path = tmp_path / "log"
    with opened_log(path) as log:
        log.begin({}, resume=True)
        log.append(0, [{"path": "a", "error": None}])
        path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
        with pytest.raises(PredictionFileError, match="was damaged while it was in use; call"):
            list(log.rows())


@pytest.mark.parametrize("kind", KINDS)
def test_finished_work_is_not_repeated_nor_mixed_with_other_work(tmp_path, kind):
    out = tmp_path / f"p.{kind}"
    first = predict_to_file(Counting(), NAMES, out, **RUN)
    again = Counting()
    report = predict_to_file(again, NAMES, out, **RUN)
    assert again.seen == []
    assert (report.n_failed, report.n_resumed) == (first.n_failed, 30)
    before = out.read_bytes()
    for files in (NAMES[:-1], [*NAMES, "new.png"], NAMES[::-1]):
        with pytest.raises(PredictionError, match=r"of other files .*`resume=False`"):
            predict_to_file(Counting(), files, out, **RUN)
    with pytest.raises(PredictionError, match="of another model"):
        predict_to_file(Counting("e" * 64), NAMES, out, **RUN)
    assert out.read_bytes() == before
    report = predict_to_file(Counting("e" * 64), NAMES[:2], out, resume=False, **RUN)
    assert [row["model"] for row in rows(out)] == ["e" * 64] * 2


def test_unfinished_work_is_gone_on_with_by_the_same_model_on_the_same_files_only(tmp_path):
    out = tmp_path / "p.csv"
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Counting(stop_after=13), NAMES, out, **RUN)
    with pytest.raises(PredictionError, match=r"p.csv.parts' holds predictions of another model"):
        predict_to_file(Counting("e" * 64), NAMES, out, **RUN)
    with pytest.raises(PredictionError, match="of other files"):
        predict_to_file(Counting(), NAMES[:9], out, **RUN)
    with pytest.raises(PredictionError, match="with other columns"):
        predict_to_file(Counting(), NAMES, out, probs=False, **RUN)
    log = tmp_path / "p.csv.parts"
    log.write_bytes(log.read_bytes().replace(b": 3,", b": 2,"))
    with pytest.raises(PredictionError, match="of another version"):
        predict_to_file(Counting(), NAMES, out, **RUN)
    anew = Counting()
    report = predict_to_file(anew, NAMES, out, resume=False, **RUN)
    assert (report.n_resumed, len(anew.seen)) == (0, 26)


def test_rows_are_never_of_two_models(photos, tmp_path):
    predictor = make_continual({"ok": 6, "bad": 5})
    load, turn = predictor.load, itertools.count()

    def loading(source):
        if next(turn) == 6:
            predictor.extend(shades("new", 3), "new", progress=False)
        return load(source)

    predictor.load = loading
    many = [*photos] * 4
    with pytest.raises(PredictionError, match="the model was changed while it predicted"):
        predict_to_file(predictor, many, tmp_path / "p.csv", **RUN)
    assert [line.split()[:2] for line in lines(tmp_path / "p.csv.parts")[1:]] == [[b"0", b"4"]]
    with pytest.raises(PredictionError, match="of another model"):
        predict_to_file(predictor, many, tmp_path / "p.csv", **RUN)


def test_a_digest_follows_what_the_model_learned(saved):
    from learnkit import load_learner

    path, digest = saved
    predictor = load_learner(path)
    assert model_digest(predictor) == digest
    predictor.set(class_names=["x", "y", "z"])
    renamed = model_digest(predictor)
    assert renamed != digest
    assert model_digest(make_predictor()) == model_digest(make_predictor()) != digest
    learned = make_continual({"ok": 6, "bad": 5})
    before = model_digest(learned)
    learned.set(ood_threshold=9.0)
    assert model_digest(learned) != before
    learned.undo()
    assert model_digest(learned) == before


def test_file_names_that_are_no_text_and_infinite_scores_survive(tmp_path):
    names = [os.fsdecode(b"caf\xe9.png"), "tab\t\"quote',\n.png"]
    predictor = Counting()
    for kind in KINDS:
        report = predict_to_file(predictor, names, tmp_path / f"p.{kind}", **RUN)
        expected = ["caf\\udce9.png", names[1]]
        assert [row["path"] for row in rows(report.path)] == expected
        assert predict_to_file(predictor, names, report.path, **RUN).n_resumed == 2
    blank = {"ood_score": math.inf, "ood_threshold": 1.0, "p_value": 0.1}
    predictor.try_loaded = lambda images: [
        prediction_of(np.array([0.5, 0.5]), ("a", "b"), **blank) for _ in images
    ]
    for kind, score in zip(KINDS, ["inf", None, math.inf], strict=True):
        report = predict_to_file(predictor, ["a"], tmp_path / f"q.{kind}", **RUN)
        assert rows(report.path)[0]["ood_score"] == score
        assert str(rows(report.path)[0]["is_ood"]) == "True"


def test_several_labels_and_no_files(tmp_path):
    predictor = Counting()
    predictor.multi_label = True
    labels = {"multi_label": True, "threshold": 0.4}
    predictor.try_loaded = lambda images: [
        prediction_of(np.array([0.5, 0.6]), ("a", "b"), **labels) for _ in images
    ]
    for kind, label in zip(KINDS, ['["a", "b"]', ["a", "b"], ["a", "b"]], strict=True):
        report = predict_to_file(predictor, ["x"], tmp_path / f"p.{kind}", **RUN)
        assert rows(report.path)[0]["label"] == label
        report = predict_to_file(predictor, [], tmp_path / f"none.{kind}", **RUN)
        assert (report.n_files, rows(report.path)) == (0, [])


def test_what_cannot_be_written_is_refused_before_anything_is_predicted(tmp_path, monkeypatch):
    def refused(error, match, files=NAMES, out="p.csv", **changes):
        predictor = Counting()
        with pytest.raises(error, match=match):
            predict_to_file(predictor, files, tmp_path / out, **RUN | changes)
        assert predictor.seen == []

    refused(PredictionError, "ends in .parquet, .csv or .jsonl", out="p.txt")
    refused(PredictionError, "`paths` holds a bytes; .*leave `out` away", files=[b"\x89PNG"])
    refused(PredictionError, "`bs`=0", bs=0)
    refused(PredictionFileError, "there is no folder .*nowhere", out="nowhere/p.csv")
    (tmp_path / "d.csv").mkdir()
    refused(PredictionFileError, "is no file; choose another name", out="d.csv")
    (tmp_path / "notes.csv").write_text("mine\n1\n", encoding="utf-8")
    refused(PredictionError, "is no table of predictions", out="notes.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(MissingExtraError, "pip install pyarrow", out="p.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.csv", "notes.csv"]


def test_a_full_disk_is_told_and_what_was_predicted_is_kept(tmp_path, monkeypatch):
    def full(self, first, found):
        if first == 8:
            raise OSError(28, "No space left on device")
        return append(self, first, found)

    append, out = PredictionLog.append, tmp_path / "p.csv"
    monkeypatch.setattr(PredictionLog, "append", full)
    with pytest.raises(PredictionFileError, match=r"No space left on device\. What was predicted"):
        predict_to_file(Counting(), NAMES, out, **RUN)
    monkeypatch.undo()
    assert predict_to_file(Counting(), NAMES, out, **RUN).n_resumed == 8


def test_the_report_is_escaped(tmp_path):
    report = FilesReport(tmp_path / "<b>.csv", 5, 1, 2, "m")
    assert "5 files, 2 of them from an earlier call; 1 could not be read" in str(report)
    assert "<b>" not in report._repr_html_().replace("<p>", "")

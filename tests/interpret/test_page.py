"""The evaluation page's numbers: against the evaluation, scikit-learn, slow loops and the files."""

import base64
import dataclasses
import io
import json
import pickle
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from deploy_helpers import labelled, make_continual, make_model, make_predictor, strange
from PIL import Image

from learnkit.data.dataset import ImageDataset
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor
from learnkit.errors import (
    EvaluationError,
    ImageReadError,
    UnreadableImagesError,
    UsageError,
)
from learnkit.evaluation.evaluate import evaluate
from learnkit.inference.evaluation import _spread_out
from learnkit.interpret.page.build import DEFAULTS, page_data, suspicions
from learnkit.interpret.page.evidence import heat_text
from learnkit.interpret.page.folder_page import _odds
from learnkit.interpret.page.images import EvaluatedImages
from learnkit.interpret.page.page import EvaluationPage
from learnkit.interpret.page.thumbs import data_url, picture_order
from learnkit.report.document import interval_ends, value_text
from learnkit.report.matrix import dense_counts
from learnkit.report.page import page_html

CLASSES = ["good", "scratch", "dent"]


def answers(n=60, n_strange=0, seed=0, n_classes=3, **given):
    """Random answers, most of them right, and their evaluation."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, n_classes, n)
    logits = rng.normal(size=(n + n_strange, n_classes)) * 1.5
    logits[np.arange(n), targets] += 1.5
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    probs = probs.astype(np.float32)
    scores = np.concatenate([rng.normal(size=n), rng.normal(3, 1, n_strange)])
    images = EvaluatedImages(
        probs,
        targets,
        [rng.integers(0, 255, (4, 6, 3)).astype(np.uint8) for _ in range(n + n_strange)],
        ood_scores=scores,
        ood_threshold=1.6,
        **given,
    )
    names = (
        (CLASSES * n_classes)[:n_classes] if n_classes == 3 else list(map(str, range(n_classes)))
    )
    return evaluate(probs[:n], targets, names), images


def data_of(evaluation, images, **about):
    return EvaluationPage(images).data(evaluation, **about)


def full(row):
    return DEFAULTS | row


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Shades of two known classes and strange images, as files; one is damaged, one is a copy."""
    root = tmp_path_factory.mktemp("page")
    images, labels = labelled({"a": 6, "b": 6}, seed=3)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / "parts" / label).mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x010E] = "taken at home"
        Image.fromarray(image).save(root / "parts" / label / f"{i}.png", exif=exif)
    (root / "strange").mkdir()
    for i, image in enumerate(strange(4)):
        Image.fromarray(image).save(root / "strange" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def predictor():
    return make_continual({"a": 20, "b": 20})


def test_numbers_are_those_of_the_evaluation():
    evaluation, images = answers()
    data = data_of(evaluation, images, pictures=False)
    assert (dense_counts(data["confusion"]) == evaluation.confusion.values).all()
    shown = {name: value for name, value, _ in evaluation.with_intervals()}
    assert data["measures"] == pytest.approx(shown)
    assert [*data["measures"]] == [*shown]  # less the bounds of the accuracy, its interval
    assert data["data"]["n"] == 60 == dense_counts(data["confusion"]).sum()


def test_the_accuracy_of_images_in_bursts_has_the_interval_of_the_evaluation():
    evaluation, images = answers()
    evaluation = evaluation.with_copies(np.arange(60) // 6)
    low, high = interval_ends(*evaluation.intervals.loc["accuracy"], percent=True)
    first, *others = [one["text"] for one in data_of(evaluation, images)["summary"]]
    assert f"with 95 % confidence between {low} and {high})" in first
    assert any(text.startswith("50 of 60 images are near copies of others") for text in others)


def test_unknown_images_and_percentages_are_written_in_one_way():
    evaluation, images = answers(n_strange=7)
    data = data_of(evaluation.inspected(["good"]), images, pictures=False)
    page = re.sub("(?s)<(style|script)[^>]*>.*?</\\1>", "", page_html(data))
    text = unescape(" ".join([re.sub("<[^>]*>", " ", page), *re.findall('label="[^"]*', page)]))
    assert "unknown images went unnoticed" in text
    assert "strange" not in text.lower()
    assert not re.search(r"\d%", text)


def test_a_model_without_a_threshold_is_not_said_to_miss_unknown_images():
    evaluation, images = answers(n_strange=7)
    data = data_of(evaluation, dataclasses.replace(images, ood_threshold=None), pictures=False)
    said = [one["text"] for one in data["summary"]]
    assert "This model has no threshold: it flags nothing as unknown." in said
    assert not any("noticed" in text or "taken for unknown" in text for text in said)
    assert {row["false_alarm"] for row in data["rows"]} == {None}
    assert "went unnoticed." not in page_html(data).partition("<script")[0]


def test_a_suspect_is_never_wrong_for_sure_nor_right_for_sure():
    shares = {0.0: "less than 1 %", 0.004: "less than 1 %", 0.5: "50 %", 0.99: "99 %"}
    shares |= {0.997: "more than 99 %", 1.0: "more than 99 %"}
    assert {share: _odds(share) for share in shares} == shares


def test_rows_of_images_add_up_to_the_confusion_matrix():
    evaluation, images = answers(n_strange=7)
    data = data_of(evaluation, images, pictures=False)
    counted = np.zeros((3, 3), int)
    for row in data["images"]:
        if not full(row)["o"]:
            counted[row["a"], row["y"]] += 1
    assert (counted == dense_counts(data["confusion"])).all()
    assert [full(row)["o"] for row in data["images"]] == [False] * 60 + [True] * 7
    assert all(row["a"] == -1 for row in data["images"][60:])


def test_rates_of_classes_are_those_of_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    evaluation, images = answers()
    rows = data_of(evaluation, images, pictures=False)["rows"]
    precision, recall, _, n = precision_recall_fscore_support(
        images.targets, images.predicted, labels=range(3)
    )
    for i, row in enumerate(rows):
        assert row["found"][0] / row["found"][1] == pytest.approx(recall[i])
        assert row["right"][0] / row["right"][1] == pytest.approx(precision[i])
        assert row["n"] == n[i]
        flagged = (images.ood_scores[images.targets == i] > 1.6).sum()
        assert row["false_alarm"][:2] == [flagged, n[i]]
        low, high = row["found"][2:]
        assert low < recall[i] < high


def test_strange_images_and_threshold_are_counted_by_hand():
    evaluation, images = answers(n_strange=9)
    ood = data_of(evaluation, images, pictures=False)["ood"]
    scores = images.ood_scores
    assert ood["missed"] == (scores[60:] <= 1.6).sum()
    assert ood["rate"] == pytest.approx((scores[:60] > 1.6).mean())
    assert ood["detected"] == pytest.approx((scores[60:] > 1.6).mean())
    assert ood["n_strange"] == 9


def test_escapes_and_rejects_are_counted_by_hand():
    evaluation, images = answers(n=200, seed=4)
    data = data_of(evaluation, images, good=["good"], pictures=False)
    escapes = rejects = defects = 0
    for row in map(full, data["images"]):
        is_good, passed = row["a"] == 0, row["y"] == 0 and not row["u"]
        defects += not is_good
        escapes += not is_good and passed
        rejects += is_good and not passed
    texts = " ".join(one["text"] for one in data["summary"])
    assert f"{escapes} of {defects} defects passed as good" in texts
    assert f"{rejects} of {200 - defects} good parts rejected" in texts
    assert [one["good"] for one in data["classes"]] == [True, False, False]


def test_good_classes_must_be_classes_and_leave_defects():
    evaluation, images = answers()
    with pytest.raises(EvaluationError, match="`good` names 'fine', which is no class; the cla"):
        data_of(evaluation, images, good=["fine"])
    with pytest.raises(EvaluationError, match="every class"):
        data_of(evaluation, images, good=CLASSES)


def test_suspects_are_those_of_confident_learning_in_a_slow_loop():
    _, images = answers(n=300, seed=2)
    usual = [
        np.mean([p[c] for p, t in zip(images.probs, images.targets, strict=True) if t == c])
        for c in range(3)
    ]
    for place, found in enumerate(suspicions(images)):
        probs, label = images.probs[place], images.targets[place]
        top = probs.argmax()
        wanted = 1 - probs[label] if top != label and probs[top] >= usual[top] else 0
        assert found == pytest.approx(wanted, abs=1e-6)
    assert (suspicions(images) > 0).any()


def test_at_most_200_suspects_are_shown_the_worst():
    evaluation, images = answers(n=4000, seed=1)
    found = suspicions(images)
    assert (found > 0).sum() == 200
    assert evaluation.summary["n"] == 4000


def test_json_holds_numbers_alone_and_no_nan():
    evaluation, images = answers(n=3, seed=5)  # a class without images gives NaN measures
    data = data_of(evaluation, images, pictures=False)
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_the_same_input_gives_the_same_data():
    about = {"created": "2026-11-25T22:50Z", "command": "learnkit evaluate m f"}
    one, other = (data_of(*answers(n_strange=3), **about) for _ in range(2))
    assert json.dumps(one) == json.dumps(other)
    assert one["created"] == "2026-11-25T22:50Z"
    assert ["command", "learnkit evaluate m f"] in one["measured"]


def test_a_moment_that_is_none_is_refused():
    with pytest.raises(EvaluationError, match="`created` is 'now'; give a moment such as '2026"):
        data_of(*answers(), created="now")


def test_five_thousand_images_are_a_tenth_of_12_mb_at_most():
    evaluation, images = answers(n=5_000, n_classes=10)
    sources = [f"/data/parts/class_{t}/image_{i:06}.jpg" for i, t in enumerate(images.targets)]
    named = EvaluatedImages(
        images.probs,
        images.targets,
        sources,
        Path("/data/parts"),
        ood_scores=images.ood_scores,
        ood_threshold=1.6,
    )
    vars(named)["sha256"] = ["0" * 64] * 5_000
    listed, data = page_data(evaluation, named)
    assert len(listed) == 5_000
    assert len(json.dumps(data, separators=(",", ":"))) < 1.2e6


def test_above_the_limit_right_images_are_not_listed(monkeypatch):
    monkeypatch.setattr("learnkit.interpret.page.build.MAX_ROWS", 300)
    evaluation, images = answers(n=405, n_strange=10)
    listed, data = page_data(evaluation, images)
    assert len(data["images"]) == 300
    assert data["rows_left_out"] == 115
    assert dense_counts(data["confusion"]).sum() == 405
    wrong = set(np.flatnonzero(~images.right).tolist())
    assert wrong <= set(listed)
    assert set(range(405, 415)) <= set(listed)
    assert ["right images not listed", "115"] in data["measured"]


def test_sentences_warn_only_where_it_is_true():
    evaluation, images = answers(n=600, n_strange=8, seed=3)
    texts = [one["text"] for one in data_of(evaluation, images, pictures=False)["summary"]]
    joined = " ".join(texts)
    for absent in ("learned", "mean little", "Not tested", "hides", "No images of", "copy"):
        assert absent not in joined
    learned = np.zeros(20, bool)
    learned[:3] = True
    evaluation, images = answers(n=20, learned=learned)
    summary = data_of(evaluation, images, pictures=False)["summary"]
    warned = {one["text"]: one["show"] for one in summary if one["warning"]}
    assert "The model has learned 3 of these 20 images: the figures are optimistic." in warned
    assert "Not tested whether unknown images are noticed: add --ood FOLDER." in warned
    assert any("mean little" in text for text in warned)


def test_the_page_says_each_note_of_the_evaluation_once():
    learned = np.zeros(20, bool)
    learned[:3] = True
    evaluation, images = answers(n=20, learned=learned)
    notes = ("at least 3 of 20 images were learned by this model: so", "2 of 20 images decide")
    data = data_of(dataclasses.replace(evaluation, notes=notes), images, pictures=False)
    texts = [one["text"] for one in data["summary"] if one["warning"]]
    assert texts[-1] == "2 of 20 images decide."
    assert sum("learned" in text for text in texts) == 1


def test_no_mistakes_are_said():
    probs = np.eye(3, dtype=np.float32)[[0, 1, 2] * 40]
    images = EvaluatedImages(probs, probs.argmax(1), [None] * 120)
    data = data_of(evaluate(probs, probs.argmax(1), CLASSES), images, pictures=False)
    # the lower end of Wilson's interval, 120 / (120 + 1.96 ** 2)
    said = "No mistakes among 120 images (100.0 %, with 95 % confidence between 96.9 % and 100.0 %)"
    assert data["summary"][0]["text"].startswith(said)
    assert data["ood"] is None
    assert data["images"][0]["p"] == "image 1"


def test_several_labels_per_image_have_a_table_each():
    rng = np.random.default_rng(0)
    probs = rng.random((50, 3)).astype(np.float32)
    targets = rng.random((50, 3)) < 0.5
    evaluation = evaluate(probs, targets, CLASSES, multi_label=True)
    data = data_of(evaluation, EvaluatedImages(probs, targets, [None] * 50), pictures=False)
    assert data["multi_label"]
    assert data["confusion"] == []
    f1 = [table["f1"] for table in data["label_tables"]]
    assert f1 == sorted(f1)
    for table in data["label_tables"]:
        place = CLASSES.index(table["name"])
        said = probs[:, place] > 0.5
        assert table["tp"] == (said & targets[:, place]).sum()
        assert table["fn"] == (~said & targets[:, place]).sum()
    for row, flags in zip(data["images"], targets, strict=True):
        assert row["a"] == np.flatnonzero(flags).tolist()


def test_the_budget_goes_to_errors_flagged_missed_suspects_then_each_class():
    rows = [{"a": c, "y": c, "t": [[c, p]]} for c in (0, 1) for p in np.linspace(0.5, 0.99, 20)]
    rows[3] |= {"y": 1, "l": 1.0}
    rows[8] |= {"y": 1, "l": 5.0, "w": 0.9}
    rows[9] |= {"u": True}
    rows += [{"a": -1, "y": 0, "o": True, "t": [[0, 0.4]]}]
    rows[11] |= {"w": 0.5}
    first, rest = picture_order(rows)
    assert first == [8, 3, 9, 40, 11]
    assert rest[:2] == [19, 39]  # the surest of each class
    assert set(rest[:24]) >= {20, 21, 22, 23, 24, 25}  # the least sure six of class 1
    assert sorted([*first, *rest]) == list(range(41))


def test_pictures_keep_to_the_budget_and_what_is_left_out_is_counted():
    evaluation, images = answers(n=400)
    data = data_of(evaluation, images, max_mb=0.1)
    assert len(json.dumps(data, separators=(",", ":"))) <= 100_000
    with_picture = [i for i, row in enumerate(data["images"]) if "th" in row]
    assert data["pictures_left_out"] == 400 - len(with_picture) > 0
    first, rest = picture_order(data["images"])
    order = [*first, *rest]
    assert with_picture == sorted(order[: len(with_picture)])


def test_no_pictures_at_all_if_none_are_wanted():
    evaluation, images = answers()
    data = data_of(evaluation, images, pictures=False)
    assert (data["thumbs"], data["bigs"], data["pictures_left_out"]) == ([], [], 60)
    with pytest.raises(UsageError, match="`max_mb` is 900; give megabytes from 0 to 200"):
        data_of(evaluation, images, max_mb=900)


@pytest.mark.parametrize("size", [(1, 5000), (3000, 2000), (20, 30)])
def test_thumbnails_are_whole_and_small(size):
    url = data_url(Image.new("L", size, 90), 160)
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    assert max(picture.size) == min(160, max(size))
    assert picture.size[0] == max(1, round(size[0] * max(picture.size) / max(size)))


def test_heat_is_scaled_to_bytes_and_zero_stays_zero():
    assert base64.b64decode(heat_text(np.array([[0.0, 1.0], [2.0, 4.0]]))) == b"\0\x40\x80\xff"
    assert base64.b64decode(heat_text(np.zeros((2, 2)))) == b"\0\0\0\0"


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        (Preprocessing(64), (300, 200)),
        (Preprocessing(64, crop=0.875), (200, 300)),
        (Preprocessing((40, 64), method="pad"), (200, 150)),
        (Preprocessing(64, method="squish"), (200, 100)),
        (Preprocessing(48, method="keep", before=({"size": (64, 64)},)), (320, 240)),
    ],
)
def test_the_box_that_the_network_sees_is_where_pixels_come_from(recipe, size):
    width, height = size
    ramps = np.zeros((height, width, 3), np.uint8)
    ramps[..., 0] = np.linspace(0, 255, width)
    ramps[..., 1] = np.linspace(0, 255, height)[:, None]
    seen = recipe.pixels(ramps).astype(float) / 255
    left, top, right, bottom = recipe.seen_box(size)
    n_rows, n_columns = seen.shape[:2]
    row, column = n_rows // 2, n_columns // 2
    for at in (0.4, 0.6):
        x = left + (right - left) * (int(at * n_columns) + 0.5) / n_columns
        y = top + (bottom - top) * (int(at * n_rows) + 0.5) / n_rows
        assert seen[row, int(at * n_columns), 0] == pytest.approx(x, abs=0.02)
        assert seen[int(at * n_rows), column, 1] == pytest.approx(y, abs=0.02)


def test_a_predictor_evaluates_files_to_a_page(predictor, folders):
    evaluation = predictor.evaluate(folders / "parts", ood=folders / "strange", progress=False)
    data = evaluation.page.data(evaluation)
    assert [row["p"] for row in data["images"]][:2] == ["a/0.png", "a/1.png"]
    assert data["images"][-1]["p"] == "strange/3.png"
    assert data["data"]["folder"] == "parts"
    assert [one["n_learned"] for one in data["classes"]] == [20, 20]
    assert data["ood"]["n_strange"] == 4
    assert data["ood"]["detected"] == evaluation.summary["detection_rate"]
    text = json.dumps(data)
    assert str(folders) not in text
    for url in data["thumbs"]:
        picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        assert not picture.getexif()
    assert data["pictures_left_out"] == 0


def test_learned_images_are_found_by_their_features(predictor, folders):
    knows = make_continual({"a": 20, "b": 20})
    knows.extend([folders / "parts" / "a" / "2.png"], "a", progress=False)
    evaluation = knows.evaluate(folders / "parts", progress=False)
    data = evaluation.page.data(evaluation, pictures=False)
    assert [row["p"] for row in data["images"] if full(row)["k"]] == ["a/2.png"]
    assert any("has learned 1 of these 12 images" in one["text"] for one in data["summary"])


def test_heat_of_mistakes_is_grad_cam_of_both_classes(folders):
    from learnkit.interpret.gradcam import grad_cam

    network = make_predictor(make_model(n_out=2, size=64), size=64, classes=["b", "a"])
    evaluation = network.evaluate(folders / "parts", progress=False)
    rows = evaluation.page.data(evaluation, pictures=False)["images"]
    wrong = [row for row in rows if row["a"] != row["y"]]
    assert len(wrong) > 3
    for row in wrong:
        x = network.preprocessing(folders / "parts" / row["p"])[None]
        for key, number in (("h", row["y"]), ("ha", row["a"])):
            heat = grad_cam(network.model, x, number)[0].numpy()
            told = np.frombuffer(base64.b64decode(row[key]), np.uint8).reshape(row["hs"])
            wanted = heat / heat.max() * 255 if heat.max() > 0 else 0 * heat
            np.testing.assert_allclose(told, wanted, atol=1)


def test_unreadable_images_are_listed_by_relative_name(predictor, folders, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
    Image.open(folders / "parts" / "a" / "0.png").save(tmp_path / "set" / "a" / "0.png")
    (tmp_path / "set" / "b" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableImagesError) as raised:
        predictor.evaluate(tmp_path / "set", progress=False)
    evaluation = raised.value.evaluation
    data = evaluation.page.data(evaluation)
    (one,) = data["unreadable"]
    assert one["path"] == "b/bad.png"
    assert str(tmp_path) not in json.dumps(data)
    assert len(data["images"]) == 1


def test_copies_of_a_file_are_grouped(predictor, folders, tmp_path):
    for i, source in enumerate(["0.png", "1.png", "0.png"]):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{i}.png").write_bytes((folders / "parts" / "a" / source).read_bytes())
    evaluation = predictor.evaluate(tmp_path, progress=False)
    data = evaluation.page.data(evaluation, pictures=False)
    assert data["duplicates"] == [[0, 2]]
    assert [full(row)["d"] for row in data["images"]] == [0, -1, 0]


def test_hostile_names_stay_text(tmp_path, predictor, folders):
    name = 'a"><img src=x onerror=alert(1)>\n'.replace("/", "")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / f"{name}.png").write_bytes((folders / "parts/a/0.png").read_bytes())
    evaluation = predictor.evaluate(tmp_path, progress=False)
    data = evaluation.page.data(evaluation, pictures=False)
    assert data["images"][0]["p"] == f"a/{name}.png"
    assert len(base64.b64decode(data["images"][0]["sha"] + "=")) == 32


def test_a_page_is_one_file_that_holds_the_data(predictor, folders, tmp_path):
    evaluation = predictor.evaluate(folders / "parts", progress=False)
    path = evaluation.save_html(tmp_path / "page.html", created="2026-11-25T22:50Z")
    html = path.read_text("utf-8")
    assert 'name="generator" content="learnkit ' in html[:1024]
    assert "src=http" not in html
    assert "a/0.png" in html
    again = evaluation.save_html(tmp_path / "again.html", created="2026-11-25T22:50Z")
    assert again.read_text("utf-8") == html
    assert sorted(one.name for one in tmp_path.iterdir()) == ["again.html", "page.html"]


def test_only_a_page_of_learnkits_is_replaced(predictor, folders, tmp_path):
    evaluation = predictor.evaluate(folders / "parts", progress=False)
    path = tmp_path / "page.html"
    path.write_text("my own")
    with pytest.raises(UsageError, match="is no page of learnkit's; name another file, or replace"):
        evaluation.save_html(path)
    assert path.read_text() == "my own"
    evaluation.save_html(path, force=True)
    before = path.read_bytes()
    evaluation.save_html(path, title="other")
    assert path.read_bytes() != before
    for wrong, why in (
        (tmp_path / "page.txt", "ends in .html"),
        (tmp_path / "none" / "page.html", "there is no folder"),
    ):
        with pytest.raises(UsageError, match=why):
            evaluation.save_html(wrong)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        evaluation.save_html(tmp_path / "folder.html", force=True)


def test_an_interrupted_page_leaves_what_was_there(predictor, folders, tmp_path, monkeypatch):
    evaluation = predictor.evaluate(folders / "parts", progress=False)
    path = evaluation.save_html(tmp_path / "page.html")
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        evaluation.save_html(path, title="new")
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]


def test_an_evaluation_of_arrays_has_no_page():
    evaluation, _ = answers()
    with pytest.raises(EvaluationError, match="of arrays, so there are no images to show"):
        evaluation.save_html("page.html")


def test_an_evaluation_is_pickled_with_its_answers_and_without_the_model(
    predictor, folders, tmp_path
):
    evaluation = predictor.evaluate(folders / "parts", progress=False)
    data = pickle.dumps(evaluation)
    assert len(data) < 100_000
    again = pickle.loads(data)
    wanted, found = (one.page.data(one, created="2026-11-25T22:50Z") for one in (evaluation, again))
    assert found == wanted  # no mistakes here, whose heat would be missing
    assert found["thumbs"]


def test_a_picture_that_is_gone_is_left_out(predictor, folders, tmp_path):
    shutil.copytree(folders / "parts", tmp_path / "set")
    evaluation = predictor.evaluate(tmp_path / "set", progress=False)
    (tmp_path / "set" / "a" / "0.png").unlink()
    data = evaluation.page.data(evaluation)
    assert [row["p"] for row in data["images"] if "th" not in row] == ["a/0.png"]
    assert data["pictures_left_out"] == 1
    _, images = answers(5)
    bare = dataclasses.replace(images, sources=[None] * 5)
    with pytest.raises(ImageReadError, match="image 3 is in no file"):
        bare.open(2)


@pytest.mark.parametrize(("channels", "mode"), [(2, "L"), (5, "RGB")])
def test_images_of_many_channels_show_the_first_of_them(channels, mode):
    evaluation, images = answers(6)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8)
    read = Preprocessing(16, channels=channels).decode
    many = dataclasses.replace(images, picture=lambda place: read(pixels))
    shown = many.open(0)
    assert shown.mode == mode
    wanted = pixels[..., 0] if channels == 2 else pixels[..., :3]
    assert (np.asarray(shown) == wanted).all()
    assert len(data_of(evaluation, many)["thumbs"]) == 6


def mistaken(data):
    """Rows that the page has something to show of: mistakes, flagged and strange ones."""
    rows = [full(row) for row in data["images"]]
    return [row for row in rows if row["o"] or row["u"] or row["a"] != row["y"]]


@pytest.fixture(scope="module")
def unsure():
    """A model that learned the colours of a and b the wrong way round: all is a mistake."""
    return make_continual({"b": 20, "a": 20}).set(class_names={"a": "b", "b": "a"})


def nearest(predictor, folder, reference, k=3):
    """(places of the most alike rows, cosines) of the images of a folder, by a slow loop."""
    found = {}
    for file in sorted(folder.glob("*/*.png")):
        own = predictor.features([file], progress=False)[0].numpy().astype(float)
        cosines = [own @ other / np.linalg.norm(own) / np.linalg.norm(other) for other in reference]
        order = np.argsort([-one for one in cosines], kind="stable")[:k]
        found[file.relative_to(folder).as_posix()] = [(i, cosines[i]) for i in order]
    return found


def test_beside_a_mistake_are_the_most_alike_learned_images(unsure, folders):
    shown = unsure.evaluate(folders / "parts", learned=folders / "parts", progress=False)
    data = shown.page.data(shown)
    files = sorted((folders / "parts").glob("*/*.png"))
    features = [unsure.features([one], progress=False)[0].numpy().astype(float) for one in files]
    wanted = nearest(unsure, folders / "parts", features)
    rows = mistaken(data)
    assert len(rows) >= 6
    for row in rows:
        told = [(data["kin"][k]["p"], likeness) for _, likeness, k in row["m"]]
        assert told[0] == (row["p"], 1.0)  # it was learned itself
        for (path, likeness), (place, cosine) in zip(told, wanted[row["p"]], strict=True):
            assert likeness == pytest.approx(cosine, abs=2e-3)
            assert path == files[place].relative_to(folders / "parts").as_posix()
        named = [data["classes"][number]["name"] for number, *_ in row["m"]]
        assert named == [path.split("/")[0] for path, _ in told]
    assert all("th" in one for one in data["kin"])
    assert data["n_kin"] == [12, 12]
    assert str(folders) not in json.dumps(data)


def test_memory_names_the_classes_of_the_most_alike_and_has_no_pictures(unsure, folders):
    shown = unsure.evaluate(folders / "parts", progress=False)
    data = shown.page.data(shown)
    features, labels = unsure.continual.statistics.memory.all()
    names = unsure.continual.statistics.class_names
    wanted = nearest(unsure, folders / "parts", features.numpy())
    for row in mistaken(data):
        assert [data["classes"][number]["name"] for number, *_ in row["m"]] == [
            names[labels[place]] for place, _ in wanted[row["p"]]
        ]
        cosines = [cosine for _, cosine in wanted[row["p"]]]
        assert [likeness for _, likeness, _ in row["m"]] == pytest.approx(cosines, abs=2e-3)
        assert {k for *_, k in row["m"]} == {-1}
    assert data["kin"] == []
    assert data["n_kin"] == [len(labels), 40]


def test_learned_images_of_other_classes_keep_their_names_and_gone_ones_are_left_out(
    unsure, folders, tmp_path
):
    other = "<b>other"
    shutil.copytree(folders / "parts" / "a", tmp_path / "learned" / other)
    (tmp_path / "learned" / other / "0.png").write_bytes(b"no picture")
    shown = unsure.evaluate(folders / "parts", learned=tmp_path / "learned", progress=False)
    data = shown.page.data(shown, max_mb=0)
    assert {one[0] for row in mistaken(data) for one in row["m"]} == {other}
    assert data["n_kin"] == [5, 6]
    assert not any("th" in one for one in data["kin"])
    html = shown.save_html(tmp_path / "page.html").read_text("utf-8")
    assert other not in html


def test_of_many_learned_images_some_of_each_class_are_looked_at():
    labels = ["a"] * 5000 + ["b"] * 10 + ["c"] * 700
    chosen = _spread_out(labels, 2000)
    counts = {name: sum(labels[place] == name for place in chosen) for name in "abc"}
    assert counts["b"] == 10
    assert 500 <= counts["a"] <= 666
    assert 350 <= counts["c"] <= 666
    assert chosen == sorted(set(chosen))
    assert _spread_out(labels[:3], 2) == [0, 1, 2]


def test_right_images_have_none_beside_them(predictor, folders):
    shown = predictor.evaluate(folders / "parts", progress=False)
    data = shown.page.data(shown, pictures=False)
    right = [row for row in data["images"] if row not in mistaken(data)]
    assert not any("m" in row for row in right if not full(row)["u"])


def test_scores_stay_on_their_side_of_the_threshold():
    evaluation, images = answers(n=40)
    scores = np.linspace(1.36028, 1.36048, 40)
    close = dataclasses.replace(images, ood_scores=scores, ood_threshold=1.360372)
    data = data_of(evaluation, close, pictures=False)
    limit = data["ood"]["threshold"]
    assert [row["s"] > limit for row in data["images"]] == (scores > 1.360372).tolist()
    assert sum(len(repr(row["s"])) > 6 for row in data["images"]) < 25  # the others stay short


def test_of_several_labels_heat_is_of_the_wrong_ones(folders):
    from learnkit.interpret.gradcam import grad_cam

    network = make_predictor(
        make_model(n_out=3, size=64), size=64, classes=["a", "b", "c"], multi_label=True
    )
    table = pd.DataFrame(
        {
            "path": [f"a/{i}.png" for i in range(6)],
            "label": [("a",), ("b",), ("a", "c"), (), ("c",), ("a", "b", "c")],
        }
    )
    data = ImageDataset.from_df(table, folders / "parts")
    evaluation = network.evaluate(data, progress=False)
    rows = evaluation.page.data(evaluation, pictures=False)["images"]
    explained = [row for row in rows if "hs" in row]
    assert explained == [row for row in rows if set(row["a"]) != set(row["y"])]
    for row in explained:
        x = network.preprocessing(folders / "parts" / row["p"])[None]
        probs = network.predict(folders / "parts" / row["p"]).probs
        extra = sorted(set(row["y"]) - set(row["a"]), key=lambda c: -probs[c])
        missed = sorted(set(row["a"]) - set(row["y"]), key=lambda c: probs[c])
        assert row["hc"] == [extra[0] if extra else -1, missed[0] if missed else -1]
        for key, number in zip(("h", "ha"), row["hc"], strict=True):
            assert (key in row) == (number >= 0)
            if number >= 0:
                heat = grad_cam(network.model, x, number)[0].numpy()
                told = np.frombuffer(base64.b64decode(row[key]), np.uint8).reshape(row["hs"])
                wanted = heat / heat.max() * 255 if heat.max() > 0 else 0 * heat
                np.testing.assert_allclose(told, wanted, atol=1)
    assert {tuple(n >= 0 for n in row["hc"]) for row in explained} >= {(False, True)}


def test_a_thousand_classes_add_little():
    evaluation, images = answers(n=3000, n_classes=1000)
    data = data_of(evaluation, images, pictures=False)
    assert (dense_counts(data["confusion"]) == evaluation.confusion.values).all()
    assert len(json.dumps(data["confusion"], separators=(",", ":"))) < 40_000  # of 2 MB


def test_all_that_repeats_it_is_said(predictor, folders):
    from importlib.metadata import version

    evaluation = predictor.evaluate(folders / "parts", progress=False)
    told = dict(evaluation.page.data(evaluation, pictures=False, command="learnkit x")["measured"])
    assert re.fullmatch(r"\d+ s", told["time taken"])
    for package in ("numpy", "torch", "timm", "Pillow"):
        assert f"{package} {version(package)}" in told["versions"]
    assert told["versions"].startswith("learnkit ")
    assert "1,000 resamples within each class, seed 0" in told["intervals"]
    assert told["command"] == "learnkit x"
    assert "pictures show" not in told  # of three channels all


@pytest.mark.parametrize(
    ("channels", "shown"),
    [(1, None), (2, "the first channel of 2"), (6, "the first 3 channels of 6")],
)
def test_what_pictures_show_of_many_channels_is_said(tmp_path, channels, shown):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = rng.integers(0, 256, (40, 40, channels), np.uint8)
            np.save(tmp_path / name / f"{i}.npy", pixels)
    model = make_model(n_out=2, size=32, n_in=channels)
    stats = {"mean": [0.5] * channels, "std": [0.2] * channels}
    recipe = Preprocessing(32, channels=channels, **stats)
    network = Predictor(model, recipe, ["a", "b"])
    evaluation = network.evaluate(tmp_path, progress=False)
    data = evaluation.page.data(evaluation)
    assert dict(data["measured"]).get("pictures show") == shown
    assert data["pictures_left_out"] == 0
    assert all("h" in row for row in data["images"] if row["a"] != row["y"])


def test_every_measure_is_on_the_page_with_its_interval():
    evaluation, images = answers(n_strange=9)
    page = page_html(data_of(evaluation, images, pictures=False))
    rows = re.findall(r"<tr><th scope=\"row\">([^<]*)</th><td>([^<]*)</td><td>([^<]*)</td>", page)
    told = {name: (value, bounds) for name, value, bounds in rows}
    for name, value, bounds in evaluation.with_intervals():
        assert name not in ("accuracy_low", "accuracy_high")  # the interval of the accuracy
        assert told[name.replace("_", " ")] == (value_text(value), bounds)
    assert told["ece"][1]

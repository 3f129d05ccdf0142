"""The commands `check` and `clean`: a folder looked through, and put right as a new one."""

import json
import re
import shutil

import pandas as pd
import pytest
from deploy_helpers import make_continual
from helpers import write_image_folder
from PIL import Image, ImageFilter

from learnkit.cli.app import main
from learnkit.data.dataset import ImageDataset
from learnkit.report.matrix import dense_counts

HOSTILE = '"><script>alert(1)</script>'


def learnkit(capsys, *argv):
    """Exit code, standard output and standard error of the command."""
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in argv])
    return (caught.value.code or 0, *capsys.readouterr())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    make_continual({"red": 3, "blue": 3}).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes with one label wrong, one file damaged, and one copied."""
    root = write_image_folder(tmp_path / "parts", {"bad": 14, "good": 14}, size=(40, 40))
    (root / "bad" / "003.png").rename(root / "good" / "wrong.png")
    (root / "bad" / "torn.png").write_bytes(b"x")
    with Image.open(root / "good" / "001.png") as image:
        image.filter(ImageFilter.BoxBlur(1)).save(root / "good" / "near.png")
    shutil.copy(root / "good" / "002.png", root / "good" / "copy.png")
    return root


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    )


def test_the_wrong_label_comes_first_in_table_and_page(folder, model, tmp_path, capsys):
    csv, html = tmp_path / "clean.csv", tmp_path / "clean.html"
    code, output, error = learnkit(
        capsys, "clean", folder, "--model", model, "--csv", csv, "--html", html
    )
    assert code == 1
    assert "1 image could not be read; the table says why" in error
    assert re.search(r"good/wrong\.png │ good +│ bad +│", output)
    assert "error: unreadable (1)" in output
    assert f"learnkit clean {folder} --apply {csv} --out parts-clean" in output
    table = pd.read_csv(csv, keep_default_na=False)
    names = ["path", "sha256", "old", "new", "action", "marked_at", "why"]
    assert list(table.columns[:7]) == names
    assert table.loc[0, ["path", "old", "new", "action"]].tolist() == [
        "good/wrong.png",
        "good",
        "bad",
        "",
    ]
    assert table["why"][0].startswith("looks like bad (")
    assert len(table) == 31
    assert table["path"].iloc[-1] == "bad/torn.png"
    assert table["why"].iloc[-1].startswith("unreadable: it begins with")
    assert table["sha256"].str.fullmatch("[0-9a-f]{64}").all()
    data = data_of(html)
    assert data["kind"] == "cleaning"
    (suspect,) = [one for one in data["images"] if one.get("w")]
    assert suspect["p"] == "good/wrong.png"
    says = r"says good, looks like bad \([^)]* %\); wrong with a probability of .* %"
    assert re.fullmatch(says, suspect["wt"])
    assert dense_counts(data["confusion"]).sum() == len(data["images"]) == 30
    assert str(tmp_path) not in html.read_text(encoding="utf-8")
    kinds = {one["kind"]: one for one in data["findings"]}
    assert {data["images"][i]["p"] for i in kinds["duplicate"]["images"]} == {
        "good/002.png",
        "good/copy.png",
    }
    assert kinds["duplicate"]["picture"].startswith("data:image/webp;base64,")
    assert data["unreadable"][0]["path"] == "bad/torn.png"


def test_marks_are_applied_to_a_new_folder(folder, model, tmp_path, capsys):
    csv, out = tmp_path / "clean.csv", tmp_path / "better"
    learnkit(capsys, "clean", folder, "--model", model, "--csv", csv)
    table = pd.read_csv(csv, keep_default_na=False)
    table.loc[0, "action"] = "relabel"
    table.loc[table["path"].isin(["bad/torn.png", "good/copy.png"]), "action"] = "drop"
    table.to_csv(csv, index=False)
    code, output, _ = learnkit(capsys, "clean", folder, "--apply", csv, "--out", out)
    assert code == 0
    assert "1 relabelled, 2 dropped into _removed/, 28 as they were" in output
    assert ImageDataset.from_folder(out).counts()["unassigned"].tolist() == [14, 15]
    code, output, _ = learnkit(capsys, "clean", folder, "--apply", csv, "--out", out)
    assert code == 0
    assert "the folder was there already" in output
    (folder / "good" / "wrong.png").write_bytes(b"another")
    code, output, error = learnkit(
        capsys, "clean", folder, "--apply", csv, "--out", tmp_path / "third"
    )
    assert code == 1
    assert "refused: row 2, 'good/wrong.png': the file has changed since it was marked" in output
    assert "rows refused: 1; their files are as they were" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --model MODEL to look through the folder, or --apply FILE"),
        (["--model", "M", "--apply", "c.csv"], "give --model MODEL to look through the folder, or"),
        (["--apply", "c.csv"], "--apply needs --out FOLDER2; the folder itself is never changed"),
        (["--model", "M", "--out", "x"], "--out is where --apply writes; leave it out"),
        (["--model", "M", "--html", "x.txt"], "--html is 'x.txt'; name a file that ends in .html"),
        (["--model", "M", "--html", "no/x.html"], "in a non-existent directory; make it first"),
        (["--model", "M", "--csv", "x.txt"], "--csv is 'x.txt'; name a file that ends in .csv"),
        (["--apply", "c.csv", "--out", "x"], "'c.csv' is no table of corrections"),
    ],
    ids=["nothing", "both", "no out", "out", "html", "place", "csv", "no table"],
)
def test_what_does_not_go_together_is_refused(folder, capsys, options, message, monkeypatch):
    monkeypatch.chdir(folder.parent)
    code, _, error = learnkit(capsys, "clean", folder, *options)
    assert code == 2
    assert message in error
    assert {path.name for path in folder.parent.iterdir()} == {"parts"}


def test_a_file_that_is_no_page_is_replaced_by_force_alone(folder, model, tmp_path, capsys):
    html = tmp_path / "mine.html"
    html.write_text("<p>mine</p>", encoding="utf-8")
    options = ["clean", folder, "--model", model, "--html", html]
    code, _, error = learnkit(capsys, *options)
    assert code == 2
    assert "is there already and is no page of learnkit's; name another file, or" in error
    assert html.read_text(encoding="utf-8") == "<p>mine</p>"
    assert learnkit(capsys, *options, "--force")[0] == 1  # one image cannot be read
    assert data_of(html)["command"] == "learnkit clean parts --model model"
    assert learnkit(capsys, *options, "--max-mb", 0)[0] == 1
    assert data_of(html)["thumbs"] == []


def test_check_writes_a_page_with_copies_side_by_side(folder, tmp_path, capsys):
    html = tmp_path / "check.html"
    code, output, _ = learnkit(capsys, "check", folder, "--html", html)
    assert code == 1
    assert f"{html}   the findings with their pictures" in output
    text = html.read_text(encoding="utf-8")
    assert "error: unreadable (1)" in text
    assert "good/002.png | good/copy.png" in text
    assert "data:image/png;base64," in text
    assert "<script" not in text


def test_limits_are_arguments_of_the_commands(folder, tmp_path, capsys):
    Image.new("L", (40, 40), 128).convert("RGB").save(folder / "good" / "flat.png")
    _, output, _ = learnkit(capsys, "check", folder)
    assert "blank image (1)" in output
    assert "grey levels deviate by 0 (under 1)" in output
    _, output, _ = learnkit(capsys, "check", folder, "--limit", "blank=0", "--limit", "blurred=0")
    assert "blank image" not in output
    code, _, error = learnkit(capsys, "check", folder, "--limit", "dim=3")
    assert code == 2
    assert "`limits` has 'dim': 3; give numbers of 0 or more" in error


def test_hostile_names_stay_text(model, tmp_path, capsys):
    root = write_image_folder(tmp_path / "parts", {"=1+1": 6, "good": 6}, size=(40, 40))
    (root / "good" / "000.png").rename(root / "good" / f"{HOSTILE.replace('/', '_')}.png")
    shutil.copy(root / "good" / "001.png", root / "good" / "<b>.png")
    csv, html, check = (tmp_path / name for name in ("c.csv", "c.html", "check.html"))
    assert learnkit(capsys, "clean", root, "--model", model, "--csv", csv, "--html", html)[0] == 0
    learnkit(capsys, "check", root, "--html", check)
    for page in (html, check):
        assert "<script>alert" not in page.read_text(encoding="utf-8")
        assert "<b>.png" not in page.read_text(encoding="utf-8")
    cells = pd.read_csv(csv, keep_default_na=False)
    assert cells["old"].isin(["'=1+1", "good"]).all()
    assert not cells["path"].str.startswith("=").any()
    cells["action"] = ["relabel" if old == "'=1+1" else "" for old in cells["old"]]
    cells["new"] = "good"
    cells.to_csv(csv, index=False)
    code, output, _ = learnkit(capsys, "clean", root, "--apply", csv, "--out", tmp_path / "out")
    assert code == 0
    assert "6 relabelled" in output

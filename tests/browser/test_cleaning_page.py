"""The page of what to clean: what is marked on it is what a new folder has."""

from deploy_helpers import make_continual
from helpers import write_image_folder

from learnkit.data.dataset import ImageDataset
from learnkit.deploy.clean import look_through
from learnkit.deploy.corrections import apply_corrections, read_corrections


def test_marks_downloaded_from_the_page_are_applied(new_context, seen, tmp_path):
    root = write_image_folder(tmp_path / "parts", {"bad": 14, "good": 14}, size=(40, 40))
    wrong = root / "good" / "<b>wrong.png"
    (root / "bad" / "003.png").rename(wrong)
    data = ImageDataset.from_folder(root)
    found = look_through(make_continual({"red": 3, "blue": 3}), data, progress=False)
    page = new_context().new_page()
    page.goto(found.save_html(tmp_path / "clean.html").as_uri())
    assert "Suspect labels" in page.locator("h2").first.inner_text()
    page.get_by_label("is bad").first.check()
    with page.expect_download() as download:
        page.get_by_text("Download corrections.csv").click()
    download.value.save_as(tmp_path / "corrections.csv")
    marks = read_corrections(tmp_path / "corrections.csv")
    assert [(one.path, one.action, one.new) for one in marks] == [
        ("good/<b>wrong.png", "relabel", "bad")
    ]
    done = apply_corrections(root, marks, tmp_path / "better")
    assert (done.n_relabelled, done.refused) == (1, {})
    assert (tmp_path / "better" / "bad" / "<b>wrong.png").read_bytes() == wrong.read_bytes()
    assert seen.errors == []
    assert [url.partition(":")[0] for url in seen.requests] == ["file"]

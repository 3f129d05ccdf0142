"""What fastai's pages type does here what the table in docs/from_fastai.md says."""

import re
from pathlib import Path

import pytest
from helpers import write_image_folder

TABLE = Path(__file__).parents[1] / "docs" / "from_fastai.md"
ROW = re.compile(r"^\| `(.+?)` \| (works|differs|not) \|", re.MULTILINE)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_row_of_the_table_is_as_it_says(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    import learnkit.all
    from learnkit.all import ImageDataLoaders, Resize

    root = write_image_folder(tmp_path / "images", {"a": 8, "b": 8})
    load = ImageDataLoaders.from_folder
    names = {name: getattr(learnkit.all, name) for name in learnkit.all.__all__}
    names |= {"arch": "test_resnet", "path": root, "f": next(root.rglob("*.png"))}
    names["dls"] = load(root, valid_pct=0.3, seed=1, item_tfms=Resize(32), bs=4, num_workers=0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export.pkl").write_bytes(b"x")
    rows = ROW.findall(TABLE.read_text(encoding="utf-8"))
    assert len(rows) == TABLE.read_text(encoding="utf-8").count("\n| `")
    for code, status in rows:
        if status == "not":
            with pytest.raises((TypeError, AttributeError, ValueError)):
                exec(code, names)
        else:
            exec(code, names)
        plt.close("all")
        if "learn" in names and hasattr(names["learn"], "no_bar"):
            names["learn"].remove_cbs([cb for cb in names["learn"].cbs if cb.name == "progress"])

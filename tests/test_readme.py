"""What the README shows works as it stands."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from helpers import write_image_folder

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tour_runs(tmp_path, monkeypatch):
    (tour,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    write_image_folder(tmp_path / "parts", {"good": 14, "bad": 14, "ugly": 14}, size=(40, 40))
    images = write_image_folder(tmp_path / "more", {"new": 3})
    (images / "new").rename(tmp_path / "new")
    write_image_folder(tmp_path / "new-parts", {"odd": 4, "good": 3}, seed=5)
    write_image_folder(tmp_path / "more-parts", {"even": 4}, seed=6)
    (tmp_path / "img.png").write_bytes((tmp_path / "new" / "000.png").read_bytes())
    # the one line that needs a hub, on a network of a moment's training; no gate lets noise pass
    offline = tour.replace('"resnet18"', '"test_resnet", pretrained=False').replace("=224", "=64")
    offline = offline.replace(
        "test=data.test)", 'test=data.test, force=True, backend="onnxruntime")'
    )
    assert offline.count("pretrained") == offline.count("force") == 1
    names = {}
    with (
        plt.rc_context({"figure.max_open_warning": 0}),
        pytest.warns(UserWarning, match="No heatmap is drawn: for images of 64 x 64 pixels"),
        pytest.warns(UserWarning, match="`samples` has only 0 of 'odd'"),
    ):
        exec(compile(offline, "README.md", "exec"), names)
    assert names["label"] in {"good", "bad", "ugly"}
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8").count(".png") == 3
    assert names["model"].continual.classes == ("bad", "good", "ugly", "odd")
    assert names["prediction"].p_value is not None
    assert names["fast"].classes == (*names["model"].continual.classes, "even")
    assert (tmp_path / "parts-fast" / "variants" / "onnxruntime-int8.onnx").exists()


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT))
def test_every_link_leads_somewhere(target):
    assert (ROOT / target).exists()

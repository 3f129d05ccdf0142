"""Where fastai is not installed, a deployed model is interpreted all the same."""

import subprocess
import sys

SCRIPT = """
import sys

BANNED = {"fastai", "fastcore", "fasttransform", "fastprogress"}


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BANNED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
import torch

from learnkit import ClassificationInterpretation, Outputs, grad_cam, load_learner
from learnkit.interpret import plots, uncertainty_plots
from learnkit.interpret.heatmaps import evidence

model = load_learner(sys.argv[1])
pictures = [np.full((32, 32, 3), 80 * i, np.uint8) for i in range(4)]
probs = torch.stack([model.predict(picture).probs for picture in pictures])
losses = [0.1, 2.0, 0.3, 0.4]
interp = ClassificationInterpretation(None, probs, [0, 1, 1, 0], losses, classes=model.classes)
assert interp.confusion_matrix().sum() == 4
assert interp.top_losses(1)[1].tolist() == [1]
assert len(interp.errors()) == int((~interp.outputs.correct).sum())
assert interp.evaluation.summary["n"] == 4
interp.plot_confusion_matrix()
interp.plot_reliability(before=interp)
uncertainty_plots.plot_ood([1.0, 2.0], 1.5, [3.0])

x = torch.rand(2, 3, 32, 32)
maps = grad_cam(model.model, x)
drawn = evidence(model.model, x, torch.tensor([0, 1]), min_cells=1)
assert maps.shape == (2, *drawn[0].shape)
plots.plot_image_grid([picture / 255 for picture in pictures[:2]], heatmaps=drawn)
assert not BANNED & {name.split(".")[0] for name in sys.modules}
"""


def test_numbers_pictures_and_heatmaps_of_a_deployed_model(saved, tmp_path):
    script = tmp_path / "interpret.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, str(script), str(saved[0])]
    run = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")
    assert run.returncode == 0, run.stderr

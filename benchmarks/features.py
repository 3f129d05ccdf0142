"""Features of a batch in torch's own memory layout, in channels last, and in onnxruntime.

What `init_continual`, `extend` and `evaluate` spend their time on. The features are asserted to be
the same to 1e-5 of the largest one first; then a batch of 16 images of each engine is timed, one
thread, in seconds of the processor. `channels last` is what a learner runs by its layers
(`is taken`), `onnxruntime` what `init_continual(data, engine="onnxruntime")` runs.

Run: python benchmarks/features.py [rounds].
"""

import copy
import sys
import time

import numpy as np
import torch
from _bench import interleaved_times, report, timing_row, write_csv

from learnkit.backends.onnx_export import same_in_onnxruntime
from learnkit.backends.torch_session import Network, channels_last, default_probes
from learnkit.data.preprocess import Preprocessing
from learnkit.inference.batch import BATCH
from learnkit.models.create import create_cnn_model
from learnkit.models.eval_mode import gains_by_channels_last, set_channels_last

# Share of the time of torch's own layout that was aimed at, in channels last.
GOALS = {"resnet18": 0.81, "mobilenetv2_100": 0.58, "mobilenetv3_small_100": 0.68}
GOALS |= {"efficientnet_b0": 0.78, "convnext_atto": 1.0, "vit_tiny_patch16_224": 1.0}
SIZE, SAME = 224, 1e-5
PLAIN, LAST, ONNX = "torch", "torch channels last", "onnxruntime"


def sessions(arch: str, recipe: Preprocessing) -> dict[str, object]:
    """One network, ready to run in each way."""
    torch.manual_seed(0)
    model = create_cnn_model(arch, 2, pretrained=False, img_size=SIZE)
    other = copy.deepcopy(model)
    set_channels_last(other[0], True)
    torches = [Network(one, recipe, owned=True, continual=True) for one in (model, other)]
    return {PLAIN: torches[0], LAST: torches[1], ONNX: same_in_onnxruntime(torches[0])}


def compare(arch: str, rounds: int) -> list[dict[str, object]]:
    """A row for each way but the first, after proof that the features are the same."""
    recipe = Preprocessing(SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    found, images = sessions(arch, recipe), channels_last(default_probes(recipe, BATCH))
    features = {name: session.features(images) for name, session in found.items()}
    largest = np.abs(features[PLAIN]).max()
    off = {name: np.abs(rows - features[PLAIN]).max() / largest for name, rows in features.items()}
    assert max(off.values()) <= SAME, f"{arch}: features differ: {off}"
    calls = {name: (lambda one=one: one.features(images)) for name, one in found.items()}
    times = interleaved_times(calls, repeats=rounds, clock=time.process_time)
    taken = gains_by_channels_last(found[PLAIN].model[0])
    about = {"arch": arch, "batch": BATCH, "size": SIZE, "channels last is taken": taken}
    return [
        {
            **timing_row(times, name, PLAIN, **about),
            "off": float(f"{off[name]:.1g}"),
            "goal": GOALS[arch] if name == LAST else None,
        }
        for name in (LAST, ONNX)
    ]


def main() -> None:
    """Measure, print, save."""
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    rows = []
    for arch in GOALS:
        rows += compare(arch, rounds)
        print(report(rows[-2:]), flush=True)
    print(write_csv("features", rows, packages=["onnxruntime"]).name)


if __name__ == "__main__":
    main()

"""Grad-CAM beside the published package grad-cam: equal maps first, then time.

Three CNNs with random weights, as (body, head) with an average pool and a linear head; both sides
explain the predicted classes at the body's output. The package's result is what it returns: maps
scaled to 0..1 at image size. Ours is the map scaled up to image size.

Run: python benchmarks/gradcam.py [rounds]
"""

import sys

import torch
from _bench import interleaved_times, report, timing_row, write_csv
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm import create_model
from torch import nn

from learnkit.interpret.gradcam import grad_cam

ARCHS = ("resnet18", "mobilenetv3_small_050", "efficientnet_b0")
SIZE, N_CLASSES = 224, 10


def build(arch: str) -> nn.Module:
    """The network as (body, head) in eval mode, norms moved away from their uniform start."""
    body = create_model(arch, num_classes=0, global_pool="")
    with torch.no_grad():
        for module in body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        width = body.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, N_CLASSES))
    return nn.Sequential(body, head).eval()


def correlate(a: torch.Tensor, b: torch.Tensor) -> float:
    """Correlation of two maps, pixel by pixel."""
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1].item()


def compare(arch: str, batch: int, repeats: int) -> dict[str, object]:
    """One row: correlation of the maps and time of both sides for one batch."""
    model, x = build(arch), torch.randn(batch, 3, SIZE, SIZE)
    with torch.no_grad():
        classes = model(x).argmax(1).tolist()  # another class may have no positive evidence at all
    published = GradCAM(model, [model[0]])

    def ours():
        maps = grad_cam(model, x, classes)
        return torch.nn.functional.interpolate(maps[None], SIZE, mode="bilinear")[0]

    def theirs():
        return torch.from_numpy(published(x, [ClassifierOutputTarget(c) for c in classes]))

    pairs = zip(ours(), theirs(), strict=True)
    correlation = min(
        torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in pairs
    )
    assert correlation > 0.99, f"{arch}: maps differ, correlation {correlation:.4f}"
    model.zero_grad(set_to_none=True)
    times = interleaved_times({"learnkit": ours, "grad-cam": theirs}, repeats=repeats)
    about = {
        "arch": arch,
        "size": SIZE,
        "batch": batch,
        "correlation": round(float(correlation), 6),
    }
    return timing_row(times, "learnkit", "grad-cam", **about)


def main(repeats: int = 15) -> None:
    """Measure, print, save."""
    torch.manual_seed(0)
    rows = [compare(arch, batch, repeats) for arch in ARCHS for batch in (1, 8)]
    print(report(rows))
    print(write_csv("gradcam", rows, packages=["grad-cam"]).name)
    slowest = max(row["ratio"] for row in rows)
    assert slowest < 1.05, f"slower than the published package: ratio {slowest}"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

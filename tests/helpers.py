"""Small image folders and networks that many tests need."""

from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / "shared"


def write_image_folder(root, counts, *, size=(24, 20), seed=0):
    """Write `counts[name]` noisy one-colour PNG files under `root/name/` each; return root."""
    rng = np.random.default_rng(seed)
    for index, (name, n) in enumerate(counts.items()):
        folder = Path(root) / name
        folder.mkdir(parents=True, exist_ok=True)
        base = np.array([(index * 83) % 256, (index * 151 + 60) % 256, (index * 37 + 120) % 256])
        for i in range(n):
            pixels = base + rng.integers(-20, 20, (*size, 3))
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{i:03d}.png")
    return Path(root)

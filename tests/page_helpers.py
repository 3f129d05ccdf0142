"""Evaluations as the page gets them: of six kinds of parts with known mistakes, and of any size."""

import base64
import io
import math

import numpy as np
from PIL import Image

PARTS = ["MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Free", "MT_Uneven"]
# actual, predicted, how often; 60 images in all, of which 50 are right
COUNTS = {
    (0, 0): 8,
    (0, 4): 2,
    (1, 1): 7,
    (1, 4): 1,
    (2, 2): 9,
    (2, 5): 1,
    (3, 3): 1,
    (3, 2): 1,
    (3, 4): 2,
    (4, 4): 18,
    (4, 0): 1,
    (5, 5): 7,
    (5, 4): 2,
}


def wilson(k, n):
    """[k, n, low, high]: a count and the 95 % interval of its rate."""
    if not n:
        return [0, 0, None, None]
    z, p = 1.959964, k / n
    middle = (p + z * z / 2 / n) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n)
    return [k, n, max(middle - half, 0.0), min(middle + half, 1.0)]


def picture(seed, size=(48, 36)):
    """A small picture as a data URL: a spot on a ground, another for each seed."""
    y, x = np.mgrid[: size[1], : size[0]]
    at = (seed * 7 % size[0], seed * 5 % size[1])
    spot = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 60)
    tint = np.array([[90, 130, 170], [170, 120, 90], [110, 150, 100]][seed % 3])
    pixels = np.clip(tint + 120 * spot[..., None], 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def heat(seed):
    """A map of 7 x 7 as the page has it; the one of seed 0 is zero everywhere."""
    values = np.zeros((7, 7), np.uint8)
    if seed:
        values[seed % 7, seed % 5] = 255
        values[(seed + 1) % 7, seed % 5] = 128
    return base64.b64encode(values.tobytes()).decode()


def image(path, actual, predicted, n_classes, sure, **more):
    """An image of the page: sure of what is predicted, the rest for what it is."""
    rest = [[actual, round((1 - sure) * 0.8, 4)]] if actual not in (predicted, -1) else []
    own = sure if actual == predicted else rest[0][1] if rest else None
    one = {"p": path, "a": actual, "y": predicted, "t": [[predicted, sure], *rest], **more}
    if own is not None:
        one |= {"pa": own, "l": round(-math.log(max(own, 1e-4)), 4)}
    return one


def sha(number):
    """A number as the SHA-256 of a file, in base64 without padding."""
    return base64.b64encode(number.to_bytes(32, "big")).decode().rstrip("=")


def parts_page():
    """60 images of parts in six classes, ten of them wrong, and 10 strange ones; with pictures."""
    images, k = [], 0
    for (a, y), n in COUNTS.items():
        for i in range(n):
            sure = round(0.99 - 0.011 * ((k * 13) % 37), 4)
            one = image(f"{PARTS[a]}/exp{k}_num_{77000 + k}.jpg", a, y, 6, sure, th=k, big=-1)
            one |= {"s": round(0.1 + 0.013 * k, 4) if k else 0.8, "sha": sha(k)}
            one["u"] = one["s"] > 0.8
            if a != y:
                # the map for the actual class of the first image of a kind is zero everywhere
                one |= {"h": heat(k + 1), "ha": heat(i), "hs": [7, 7], "big": k}
            if (a, y) == (3, 4):
                one["w"] = 0.9 - 0.1 * i
            images.append(one)
            k += 1
    for i in range(10):
        one = image(f"strange/{i:02}.png", -1, i % 6, 6, 0.5, th=k, o=True, s=0.6 + 0.07 * i)
        images.append(one | {"u": one["s"] > 0.8})
        k += 1
    images[20] |= {"k": True}
    images[21] |= {"d": 0}
    images[22] |= {"d": 0}
    found = page_data(PARTS, images, thumbs=[picture(i) for i in range(k)])
    found["bigs"] = [picture(i, (192, 144)) for i in range(k)]
    found["classes"][4]["good"] = True
    found["duplicates"] = [[21, 22]]
    return found


def page_data(classes, images, *, thumbs=(), strange_threshold=0.8):
    """Everything the page needs, counted from its images one by one."""
    n = len(classes)
    confusion = [[0] * n for _ in classes]
    for one in images:
        if not one.get("o"):
            confusion[one["a"]][one["y"]] += 1
    rows = []
    for c, name in enumerate(classes):
        others = {y: confusion[c][y] for y in range(n) if y != c and confusion[c][y]}
        said = sum(row[c] for row in confusion)
        rows.append(
            {
                "name": name,
                "n": sum(confusion[c]),
                "learned": 30 + c,
                "found": wilson(confusion[c][c], sum(confusion[c])),
                "right": wilson(confusion[c][c], said),
                "taken_for": classes[max(others, key=others.get)] if others else None,
                "false_alarm": None,
            }
        )
    known = [one for one in images if not one.get("o")]
    right = sum(one["a"] == one["y"] for one in known)
    missed = sum(bool(one.get("o")) and not one.get("u") for one in images)
    n_strange = len(images) - len(known)
    return {
        "version": 1,
        "kind": "evaluation",
        "title": "parts-model",
        "created": "2026-11-25T22:50Z",
        "model": {
            "name": "parts-model",
            "arch": "resnet18",
            "size": [224, 224],
            "digest": "7b86f00d",
            "learnkit": "0.9",
        },
        "data": {"folder": "parts-new", "n": len(known), "fingerprint": f"f{len(known)}"},
        "classes": [{"name": name, "good": False, "n_learned": 30} for name in classes],
        "measures": {"accuracy": right / max(len(known), 1)},
        "intervals": {},
        "confusion": [[n for y, k in enumerate(row) if k for n in (y, k)] for row in confusion],
        "ood": {
            "threshold": strange_threshold,
            "rate": 0.05,
            "auroc": 0.87,
            "missed": missed,
            "n_strange": n_strange,
        },
        "bins": reliability_bins(known),
        "unreadable": [],
        "images": images,
        "thumbs": [*thumbs],
        "bigs": [],
        "summary": summary(known, right, images),
        "rows": rows,
        "measured": [["model", "parts-model, resnet18, 224 x 224"], ["digest", "7b86f00d"]],
        "command": "learnkit evaluate parts-model parts-new --html report.html",
        "multi_label": False,
        "label_tables": [],
        "duplicates": [],
        "findings": [],
        "pictures_left_out": 0,
    }


def summary(known, right, images):
    if not known:
        return [{"text": "No image could be read.", "warning": True, "show": None}]
    low, high = wilson(right, len(known))[2:]
    flagged = sum(bool(one.get("u")) for one in images)
    return [
        {
            "text": f"{right} of {len(known)} right ({right / len(known):.1%}, with 95 % confidence"
            f" between {low:.0%} and {high:.0%}).",
            "warning": False,
            "show": "errors",
        },
        {"text": f"{flagged} go to a person.", "warning": False, "show": "flagged"},
        {
            "text": "The rarest class has 4 images here: its figures mean little. Give 30 or more.",
            "warning": True,
            "show": "class=3" if len(PARTS) == 6 else None,
        },
    ]


def reliability_bins(known, n_bins=10):
    edges = [k / n_bins for k in range(n_bins + 1)]
    bins = {"edges": edges, "n": [], "confidence": [], "accuracy": []}
    for k in range(n_bins):
        these = [one for one in known if edges[k] < one["t"][0][1] <= edges[k + 1]]
        n = len(these)
        bins["n"].append(n)
        bins["confidence"].append(sum(one["t"][0][1] for one in these) / n if n else None)
        bins["accuracy"].append(sum(one["a"] == one["y"] for one in these) / n if n else None)
    return bins


def large_page(n_classes, n_images, *, names=None, seed=0, faulty=0.05, thumbs=()):
    """An evaluation of any size, with `faulty` of it wrong, mostly beside its class."""
    rng = np.random.default_rng(seed)
    classes = names or [f"class_{c:03}" for c in range(n_classes)]
    actual = rng.integers(0, n_classes, n_images)
    off = np.where(rng.random(n_images) < faulty, rng.integers(1, 4, n_images), 0)
    predicted = (actual + off) % n_classes
    sure = (1 - 0.5 * rng.random(n_images) ** 2).round(3)
    scores = rng.gamma(2, 0.15, n_images).round(3)
    images = [
        image(f"{classes[a]}/{i:06}.jpg", a, y, n_classes, p, s=s, u=s > 0.8)
        for i, (a, y, p, s) in enumerate(
            zip(*(v.tolist() for v in (actual, predicted, sure, scores)), strict=True)
        )
    ]
    for k, one in enumerate(images if thumbs else []):
        one["th"] = k % len(thumbs)
    return page_data(classes, images, thumbs=thumbs)

"""A thousand damaged bundles: each is refused by a named error, or answers exactly as before."""

import copy
import random
import shutil
from collections import Counter

import pytest
import torch

from learnkit.deploy import rebuild
from learnkit.deploy.loading import load_learner
from learnkit.errors import BundleError
from learnkit.models.spec import build_model

N_MUTATIONS = 1000


def flip_bits(data, rng):
    for _ in range(rng.choice([1, 1, 1, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(data, rng):
    del data[rng.choice([0, 1, rng.randrange(len(data)), len(data) - 1]) :]


def insert(data, rng):
    at = rng.choice([0, len(data), rng.randrange(len(data))])
    data[at:at] = rng.choice([b" ", b"\n", b"\x00" * 64, rng.randbytes(rng.randint(1, 99))])


def delete(data, rng):
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 99)]


def swap_parts(data, rng):
    n = rng.randint(1, max(1, len(data) // 4))
    a, b = rng.randrange(len(data) - n + 1), rng.randrange(len(data) - n + 1)
    data[a : a + n], data[b : b + n] = data[b : b + n], data[a : a + n]


def change_digit(data, rng):
    """What a careless editor does to text: another digit or letter in one place."""
    at = rng.randrange(len(data))
    data[at : at + 1] = rng.choice(b'0123456789abcdefn{}[],:"').to_bytes(1, "little")


CHANGES = [flip_bits, truncate, insert, delete, swap_parts, change_digit]


def mutate(path, rng):
    """Damage one file of the bundle, or the set of files; return the names touched."""
    names = sorted(p.name for p in path.iterdir())
    kind = rng.randrange(24)
    if kind == 0:
        (path / (name := rng.choice(names))).unlink()
        return [name]
    if kind == 1:
        one, other = rng.sample(names, 2)
        (path / one).rename(path / "x")
        (path / other).rename(path / one)
        (path / "x").rename(path / other)
        return [one, other]
    if kind == 2:
        (path / (name := rng.choice(["extra.pkl", ".hidden", "a.safetensors"]))).write_bytes(
            b"\x80"
        )
        return [name]
    name = rng.choice([*names, "manifest.json", "manifest.json"])
    data = bytearray((path / name).read_bytes())
    rng.choice(CHANGES)(data, rng)
    (path / name).write_bytes(data)
    return [name]


def answer(path):
    predictor = load_learner(path)
    images = torch.arange(3 * 32 * 32, dtype=torch.int32).to(torch.uint8).view(1, 3, 32, 32)
    return predictor.logits(images), predictor.classes, predictor.preprocessing, predictor.threshold


@pytest.fixture
def built_once(monkeypatch):
    """Each network's structure is worked out once; names, shapes and weights are always checked."""
    built = {}

    def build(spec):
        key = str(spec)
        if key not in built:
            built[key] = build_model(spec)
        return copy.deepcopy(built[key])

    monkeypatch.setattr(rebuild, "build_model", build)


@pytest.mark.usefixtures("built_once")
def test_a_thousand_damaged_bundles_are_refused_or_answer_as_before(saved, tmp_path):
    rng, outcomes = random.Random(20), Counter()
    path = shutil.copytree(saved[0], tmp_path / "model")
    logits, *rest = answer(path)
    for number in range(N_MUTATIONS):
        touched = mutate(path, rng)
        try:
            found, *others = answer(path)
        except BundleError as error:
            outcomes[type(error).__name__] += 1
        else:
            assert torch.equal(found, logits), (number, touched)
            assert others == rest, (number, touched)
            outcomes["no effect"] += 1
        for name in touched:  # as new, for the next one
            (path / name).unlink(missing_ok=True)
            if (saved[0] / name).exists():
                shutil.copy(saved[0] / name, path / name)
    assert sum(outcomes.values()) == N_MUTATIONS
    assert outcomes["BundleCorruptError"] > 800
    assert outcomes["BundleNotFoundError"] > 0
    assert 0 < outcomes["no effect"] < 200

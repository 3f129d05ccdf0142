"""Over a thousand damaged bundles: each is refused by a named error, or answers as before."""

import copy
import random
import shutil
from collections import Counter
from functools import partial

import pytest
import safetensors.torch
import torch
from deploy_helpers import make_continual, rewrite

from learnkit.bundle.state import STATE
from learnkit.deploy.predictor import load_learner
from learnkit.errors import BundleError
from learnkit.models import rebuild
from learnkit.models.rebuild import build_body, build_model

N_MUTATIONS = {"plain": 500, "continual": 120}


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
    told = predictor.classes, predictor.preprocessing, predictor.threshold
    return predictor.logits(images), *told, predictor.try_tensors(images)[0].to_dict()


@pytest.fixture
def built_once(monkeypatch):
    """Each network's structure is worked out once; names, shapes and weights are always checked."""
    built = {}

    def once(build, spec):
        key = f"{build.__name__} {spec}"
        if key not in built:
            built[key] = build(spec)
        return copy.deepcopy(built[key])

    for build in (build_model, build_body):
        monkeypatch.setattr(rebuild, build.__name__, partial(once, build))


@pytest.fixture(scope="module")
def bundles(saved, tmp_path_factory):
    """A bundle of each kind; not to be changed."""
    path = tmp_path_factory.mktemp("continual") / "model"
    predictor = make_continual({"ok": 4, "dent": 3, "scratch": 2})
    predictor.forget("dent")
    predictor.save(path)
    return {"plain": saved[0], "continual": path}


@pytest.mark.usefixtures("built_once")
@pytest.mark.parametrize("kind", N_MUTATIONS)
def test_damaged_bundles_are_refused_or_answer_as_before(bundles, tmp_path, kind):
    rng, outcomes, original = random.Random(20), Counter(), bundles[kind]
    path = shutil.copytree(original, tmp_path / "model")
    logits, *rest = answer(path)
    for number in range(N_MUTATIONS[kind]):
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
            if (original / name).exists():
                shutil.copy(original / name, path / name)
    n = sum(outcomes.values())
    assert n == N_MUTATIONS[kind]
    assert outcomes["BundleCorruptError"] > 0.8 * n
    assert outcomes["BundleNotFoundError"] > 0 or n < 1000  # rare: the manifest itself is gone
    assert 0 < outcomes["no effect"] < 0.2 * n


def changed_state(data, rng):
    """A state whose numbers are others, in a file that is sound: one tensor, one value or many."""
    tensors = safetensors.torch.load(data)
    name = rng.choice(sorted(name for name, tensor in tensors.items() if tensor.numel()))
    tensor, kind = tensors[name].flatten(), rng.randrange(5)
    at = rng.randrange(len(tensor))
    if kind == 0:
        tensor[at] += rng.choice([-1, 1, 7, 30_000])
    elif kind == 1:
        tensor[at] = rng.choice([0, -1, 2**14])
    elif kind == 2:
        tensor = tensor.flip(0)
    elif kind == 3:
        tensor = tensor * rng.choice([0, 2, -1])
    else:
        tensor = tensor[: rng.randrange(len(tensor))]
    shape = tensors[name].shape
    tensors[name] = tensor.reshape(shape) if tensor.numel() == shape.numel() else tensor
    return safetensors.torch.save(tensors)


@pytest.mark.usefixtures("built_once")
def test_states_with_other_numbers_are_refused_or_give_sound_answers(bundles, tmp_path):
    """A stranger's numbers, hashes right: no crash, no NaN; what passes every check may differ."""
    rng, outcomes = random.Random(3), Counter()
    path = shutil.copytree(bundles["continual"], tmp_path / "model")
    logits, *_ = answer(path)
    for number in range(50):
        rewrite(path, STATE, lambda data: changed_state(data, rng))
        try:
            found, *_, told = answer(path)
        except BundleError as error:
            outcomes[type(error).__name__] += 1
        else:
            assert found.isnan().sum() == 0, number
            assert sum(told["probs"].values()) == pytest.approx(1, abs=1e-5), number
            torch.testing.assert_close(found, logits, atol=0.05, rtol=0.01)  # the probes saw to it
            outcomes["passed"] += 1
        shutil.copy(bundles["continual"] / STATE, path / STATE)
        shutil.copy(bundles["continual"] / "manifest.json", path / "manifest.json")
    assert outcomes["BundleCorruptError"] > 25
    assert outcomes["passed"] < 15, outcomes

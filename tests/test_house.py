"""The rules of the house, held by its imports and names; CONTRIBUTING.md shows the same table."""

import ast
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

import learnkit

ROOT = Path(learnkit.__file__).parent
# Lowest first. A folder or a file at the top may import lower floors and itself, nothing else; lazy
# imports and those for type checkers count.
FLOORS = [
    ("errors", "_version", "_torchvision", "report"),
    ("storage", "models", "evaluation"),
    ("data/annotations",),
    ("data", "uncertainty"),
    ("continual/closed_form", "backends"),
    ("continual",),
    ("interpret",),
    ("interpret/page",),
    ("inference", "callback"),
    ("optimize/quantize",),
    ("optimize",),
    ("bundle",),
    ("deploy",),
    ("serving",),
    ("serving/labelling",),
    ("learner",),
    ("halcon",),
    ("cli",),
    ("__init__",),
    ("all", "__main__"),
]
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
# What may be called upwards, by name: file -> room.
DOORS = {("data/dataset.py", "learner")}
# Files that import fastai under the line, each for a reason of its own.
KNOWS_FASTAI = {"interpret/outputs.py", "interpret/losses.py", "interpret/source.py"}
FASTAI_ROOMS = {"callback", "learner", "halcon", "cli", "all"}
FASTAI = {"fastai", "fastcore", "fasttransform"}
MAX_FILES, MAX_CODE = 18, 300
# Rooms that mirror another one and may repeat its file names.
MIRRORS = {
    *("callback", "interpret", "learner", "evaluation", "inference", "uncertainty"),
    *("cli", "halcon", "cluster", "models", "data"),
}
FAMILY = {"__init__", "base", "checks"}
REPEATS_VERBS = {"cli", "halcon"}
NOUNS = {  # words in -ing and -ed that are terms of the field, or nouns
    *("serving", "training", "learning", "batching", "timing", "scoring", "embedding"),
    *("pickling", "saving", "whitening", "labelling", "preprocessing"),
}
VAGUE = {"honest", "drawn", "kept", "many", "about", "apart", "notes", "utils", "helpers", "misc"}


@dataclass(frozen=True)
class Module:
    """A file of the package: its dotted name, its path below the package, and its syntax tree."""

    name: str
    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def stem(self) -> str:
        return Path(self.path).stem

    @property
    def top(self) -> str:
        return Path(self.path).parts[0].removesuffix(".py")

    @property
    def room(self) -> str:
        """The innermost folder, or the file itself if it stands at the top."""
        folder = Path(self.path).parent.as_posix()
        return self.stem if folder == "." else folder

    def imports(self, known: dict[str, "Module"]) -> Iterator[str]:
        """Every absolute module the file imports, anywhere in it; ours as far down as they go."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}: relative import"
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield whole if whole in known else str(node.module)

    def definitions(self) -> Iterator[ast.FunctionDef | ast.ClassDef]:
        """Its public functions and classes."""
        for node in self.tree.body:
            named = isinstance(node, (ast.FunctionDef, ast.ClassDef))
            if named and not node.name.startswith("_"):
                yield node


def modules_of(root: Path) -> dict[str, Module]:
    """All files below `root`, the folder of a package named learnkit, by dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        name = ".".join(("learnkit", *relative.with_suffix("").parts)).removesuffix(".__init__")
        found[name] = Module(name, relative.as_posix(), path.read_text(encoding="utf-8"))
    return found


def arrows(modules: dict[str, Module]) -> dict[str, set[str]]:
    """Which of ours each of ours imports."""
    return {
        name: {other for other in module.imports(modules) if other in modules and other != name}
        for name, module in modules.items()
    }


def rooms_without_a_floor(modules):
    return sorted({m.room for m in modules.values()} - HEIGHT.keys())


def imports_of_floors_not_below(modules):
    return [
        f"{modules[one].path} imports {other}"
        for one, others in arrows(modules).items()
        for other in sorted(others)
        if modules[one].room != modules[other].room
        and (modules[one].path, modules[other].top) not in DOORS
        and HEIGHT.get(modules[other].room, 99) >= HEIGHT.get(modules[one].room, 99)
    ]


def circles(modules):
    """Files that reach themselves through imports, through doors too, as connected components."""
    graph, index, low, stack, found = arrows(modules), {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(", ".join(sorted(stack[at:])))
            del stack[at:]

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        for node in graph:
            if node not in index:
                visit(node)
    finally:
        sys.setrecursionlimit(limit)
    return found


def crowded_folders(modules):
    n = Counter(Path(m.path).parent.as_posix() for m in modules.values() if m.stem != "__init__")
    return [f"{folder} holds {k} files" for folder, k in n.items() if k > MAX_FILES]


def code_lines(module):
    """Lines that are neither blank, nor comments, docstrings or imports."""
    free = set()
    for node in ast.walk(module.tree):
        has_doc = isinstance(
            node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        )
        if has_doc and ast.get_docstring(node) is not None:
            free.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            free.update(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(module.text.splitlines(), 1)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and i not in free
        for i, line in lines
    )


def long_files(modules):
    sizes = {m.path: code_lines(m) for m in modules.values()}
    return [f"{path} has {n} lines of code" for path, n in sizes.items() if n > MAX_CODE]


def classes_cut_over_files(modules):
    """Bases that nobody makes an instance of and exactly one class in another file inherits."""
    home, heirs, made = {}, defaultdict(set), Counter()
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                home[node.name] = module.path
                for base in node.bases:
                    if isinstance(base, ast.Name):
                        heirs[base.id].add((node.name, module.path))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                made[node.func.id] += 1
    return [
        f"{base} in {home[base]} is a part of {next(iter(found))[0]}"
        for base, found in sorted(heirs.items())
        if base in home
        and len(found) == 1
        and not made[base]
        and next(iter(found))[1] != home[base]
        and home[base] != "errors.py"
    ]


def file_names_twice(modules):
    where = defaultdict(list)
    for module in modules.values():
        if module.stem not in FAMILY and module.top not in MIRRORS:
            where[module.stem].append(module.path)
    return [f"{', '.join(paths)}" for paths in where.values() if len(paths) > 1]


def public_names_twice(modules):
    where = defaultdict(set)
    for module in modules.values():
        if module.top not in REPEATS_VERBS:
            for node in module.definitions():
                where[node.name].add(module.path)
    return [f"{name}: {', '.join(sorted(p))}" for name, p in where.items() if len(p) > 1]


def vague_file_names(modules):
    return [
        m.path
        for m in modules.values()
        if m.stem in VAGUE
        or ((last := m.stem.split("_")[-1]).endswith(("ing", "ed")) and last not in NOUNS)
    ]


def fastai_under_the_line(modules):
    return [
        f"{m.path} imports {name}"
        for m in modules.values()
        if m.top not in FASTAI_ROOMS and m.path not in KNOWS_FASTAI
        for name in m.imports(modules)
        if name.split(".")[0] in FASTAI
    ]


def torch_beside_the_runtime(modules):
    """Torch in what `load_runtime` imports when it is imported."""
    reached, waiting = set(), ["learnkit.deploy.runtime_predictor"]
    while waiting:
        name = waiting.pop()
        if name in reached or name not in modules:
            continue
        reached.add(name)
        parents = name.split(".")
        waiting += [".".join(parents[:k]) for k in range(1, len(parents))]
        waiting += eager_imports(modules[name], modules)
    foreign = {n: {x.split(".")[0] for x in eager_imports(modules[n], modules)} for n in reached}
    return [f"{modules[n].path} imports torch" for n in sorted(reached) if "torch" in foreign[n]]


def eager_imports(module, modules):
    """What is imported when the module is: not in functions, not for type checkers."""
    body = [n for n in module.tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    return list(Module.imports(_Body(module, body), modules))


class _Body:
    """As a `Module`, of some of its statements."""

    def __init__(self, module, body):
        self.path, self.tree = module.path, ast.Module(body, [])


def unused_public_names(modules):
    """Public functions and classes that nothing names, and `PUBLIC_NAMES` does not list."""
    used, listed = Counter(), set()
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Name):
                used[node.id] += 1
            elif isinstance(node, ast.Attribute):
                used[node.attr] += 1
            elif isinstance(node, ast.Constant):
                listed.add(node.value)  # a text registers it: PUBLIC_NAMES, `__all__`
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                listed.add(node.name)  # a decorator registers it
    return [
        f"{module.path}: {node.name}"
        for module in modules.values()
        if module.top not in REPEATS_VERBS
        for node in module.definitions()
        if not used[node.name] and node.name not in listed
    ]


RULES = [
    rooms_without_a_floor,
    imports_of_floors_not_below,
    circles,
    crowded_folders,
    long_files,
    classes_cut_over_files,
    file_names_twice,
    public_names_twice,
    vague_file_names,
    fastai_under_the_line,
    torch_beside_the_runtime,
    unused_public_names,
]


@pytest.fixture(scope="module")
def modules():
    return modules_of(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule, modules):
    assert rule(modules) == []


BROKEN = {
    rooms_without_a_floor: {"attic/box.py": ""},
    imports_of_floors_not_below: {
        "data/image.py": "def f():\n    from learnkit.continual import memory",
        "continual/memory.py": "",
    },
    circles: {
        "data/a.py": "from learnkit.data import b",
        "data/b.py": "if TYPE_CHECKING:\n    from learnkit.data.a import X",
    },
    crowded_folders: {f"data/file{i}.py": "" for i in range(MAX_FILES + 1)},
    long_files: {"data/image.py": "x = 1\n" * (MAX_CODE + 1)},
    classes_cut_over_files: {
        "data/image.py": "from learnkit.data.pixels import Part\nclass Image(Part): ...",
        "data/pixels.py": "class Part: ...",
    },
    file_names_twice: {"storage/write.py": "", "bundle/write.py": ""},
    public_names_twice: {"data/a.py": "def read(): ...", "models/b.py": "def read(): ..."},
    vague_file_names: {"data/about.py": "", "continual/judged.py": ""},
    fastai_under_the_line: {"deploy/predictor.py": "def f():\n    from fastai.learner import x"},
    torch_beside_the_runtime: {
        "deploy/runtime_predictor.py": "from learnkit.data import image",
        "data/image.py": "import torch",
    },
    unused_public_names: {"data/image.py": "def nobody_calls(): ..."},
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_each_rule_is_seen_to_fail_on_a_broken_house(rule, tmp_path):
    for name, text in BROKEN[rule].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert rule(modules_of(tmp_path))


def test_a_circle_through_a_door_is_one(tmp_path):
    for name, text in {
        "data/dataset.py": "def f():\n    from learnkit.learner import dataloaders",
        "learner/dataloaders.py": "from learnkit.data import dataset",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    modules = modules_of(tmp_path)
    assert imports_of_floors_not_below(modules) == []
    assert circles(modules) == ["learnkit.data.dataset, learnkit.learner.dataloaders"]


def test_a_sound_house_breaks_no_rule(tmp_path):
    sound = {
        "errors.py": "def warn_user(): ...",
        "data/image.py": "from learnkit.errors import warn_user\n\n\ndef _f():\n    warn_user()",
        "deploy/runtime_predictor.py": "def _f():\n    import torch",
    }
    for name, text in sound.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    modules = modules_of(tmp_path)
    assert {rule.__name__: rule(modules) for rule in RULES if rule(modules)} == {}


def test_contributing_shows_every_room_in_the_order_of_the_floors():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = [line.split() for line in text.split("```")[1].splitlines() if line.startswith("  ")]
    shown = [words[0].rstrip("/") for words in lines if words[0].endswith("/")]
    assert sorted(shown) == sorted(room for room in HEIGHT if (ROOT / room).is_dir())
    heights = [HEIGHT[room] for room in shown]
    assert heights == sorted(heights, reverse=True)


def test_load_runtime_imports_no_torch():
    code = "import sys; from learnkit import load_runtime; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert run.stdout.strip() == "False"

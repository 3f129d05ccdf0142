"""The pages people read, as programs: their blocks of code, and a small factory to run them in."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from fastai.vision.all import ImageDataLoaders, Resize, vision_learner
from helpers import write_image_folder
from PIL import Image
from safetensors.torch import save_file

from learnkit.cli.app import main

ROOT = Path(__file__).parents[1]
PAGES = [Path("README.md"), *sorted(p.relative_to(ROOT) for p in (ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "generated" not in page.parts]
PYTHON, SHELL = {"python", "py"}, {"bash", "sh"}
# blocks that say nothing to a machine: outputs, and what Sphinx makes of a page
SHOWN = {"text", "json", "html"}
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^(?P<ticks>`{3,})(?P<kind>[^\n`]*)\n"
    r"(?P<code>.*?)^(?P=ticks)`*$",
    re.DOTALL | re.MULTILINE,
)
# What of a page is written for real parts, and what stands for it here: a network of a moment's
# training that starts from random weights in a file, and no gate that noise fails.
REPLACED = {
    '"resnet18"': '"test_resnet", pretrained="resnet18.safetensors"',
    "size=224": "size=64",
    "test=data.test)": 'test=data.test, force=True, backend="onnxruntime")',
}
# The same for commands: options that win over those before them.
APPENDED = {
    "train": "--arch test_resnet --weights resnet18.safetensors --size 64 --bs 16",
    "optimize": "--force --backend onnxruntime",
    "serve": "--port 0",
    "label": "--port 0 --no-open",
}
LISTENS = {"serve": "localhost:8000", "label": "localhost:8080"}
# Of images of one colour, and of few of them, is said what is true of them.
EXPECTED = (
    "No heatmap is drawn: for images of 64 x 64 pixels",
    "`samples` has only 0 of 'odd'",
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line of its fence, its language, and why it cannot run."""

    page: Path
    line: int
    kind: str
    code: str
    reason: str | None

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks_of(page):
    """All fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            page, text[: one.start("ticks")].count("\n") + 1, *one.group("kind", "code", "reason")
        )
        for one in BLOCK.finditer(text)
    ]


def write_factory(folder):
    """Everything that the pages find on a disk: parts, new ones, and single pictures."""
    write_image_folder(folder / "parts", {"good": 14, "bad": 14, "ugly": 14}, size=(40, 40))
    write_image_folder(folder / "new-parts", {"odd": 4, "good": 3}, seed=5)
    write_image_folder(folder / "labelled", {"odd": 4, "good": 2}, seed=9)
    write_image_folder(folder / "more-parts", {"even": 4}, seed=6)
    write_image_folder(folder / "parts-new", {"good": 5, "bad": 5, "ugly": 3}, seed=7)
    write_image_folder(folder, {"new": 3, "shots": 2}, seed=8)
    (folder / "inbox").mkdir()
    for name, color in {"img.png": "red", "shot1.png": "gray", "inbox/7.png": "gold"}.items():
        Image.new("RGB", (40, 40), color).save(folder / name)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (40, 40), "teal").save(folder / name)
    how = {"valid_pct": 0.3, "item_tfms": Resize(32), "num_workers": 0}
    loaders = ImageDataLoaders.from_folder(folder / "parts", **how)
    vision_learner(loaders, "test_resnet", pretrained=False, path=folder).export("export.pkl")
    torch.manual_seed(0)
    weights = timm.create_model("test_resnet", pretrained=False).state_dict()
    normalised = {"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"}
    save_file(weights, folder / "resnet18.safetensors", normalised)
    command(["train", str(folder / "parts"), "--continual", "--out", str(folder / "parts-model")])


@dataclass
class Run:
    """A page that is run in a folder of its own, which is the current one."""

    names: dict = field(default_factory=dict)
    servers: dict = field(default_factory=dict)
    done: set = field(default_factory=set)

    def block(self, block):
        """Run a block; an error names its page and line."""
        run = self._python if block.kind in PYTHON else self._shell
        try:
            run(block)
        except Exception as error:
            raise AssertionError(f"the block at {block} does not run: {error}") from error

    def stop(self, command=None):
        """End the servers that were started, or those of one command."""
        ended = [argv for argv in self.servers if command in (None, argv[0])]
        for process, _ in (self.servers.pop(argv) for argv in ended):
            process.terminate()
            process.wait(60)
            process.stdout.close()

    def _python(self, block):
        code = block.code
        for written, here in REPLACED.items():
            code = code.replace(written, here)
        # the lines of a traceback are those of the page
        program = compile("\n" * block.line + code, str(ROOT / block.page), "exec")
        with warnings.catch_warnings():
            for message in EXPECTED:
                warnings.filterwarnings("ignore", message)
            exec(program, self.names)

    def _shell(self, block):
        for line in re.sub(r"\\\n|(?<=\|)(?: *#.*)?\n", " ", block.code).splitlines():
            argv = shlex.split(line, comments=True)
            if argv[:1] == ["learnkit"]:
                self._learnkit(argv[1:])
            elif argv:
                self._bash(line)

    def _bash(self, line):
        for argv, (_, address) in self.servers.items():
            line = line.replace(LISTENS[argv[0]], address)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    def _learnkit(self, argv):
        if tuple(argv) in self.done:  # a page may name a command again, to say more of it
            return
        self.done.add(tuple(argv))
        if argv[0] in LISTENS:
            self.stop(argv[0])  # a person ends one before the next, too: they share an inbox
            self.servers[tuple(argv)] = serve(argv)
        else:
            command(argv)


def here(argv):
    """A command with what stands here for what the page means."""
    return [*argv, *shlex.split(APPENDED.get(argv[0], ""))]


def command(argv):
    """Run a command of learnkit in this process; it ends well."""
    said, code = io.StringIO(), None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(here(argv))
        except SystemExit as end:
            code = end.code
    assert not code, f"learnkit {shlex.join(argv)} ended with {code}:\n{said.getvalue()}"


def serve(argv):
    """(process, host and port) of a command of learnkit that serves, once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "learnkit", *here(argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.match(r"(?:ready at|open) http://([\d.:]+)", line):
            return process, found[1]
    process.wait(60)
    raise AssertionError(f"learnkit {shlex.join(argv)} ended: {''.join(said)}")

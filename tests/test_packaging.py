"""The files that install learnkit agree with each other, and a package index can show it."""

import re
import runpy
import sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from readme_renderer import markdown

ROOT = Path(__file__).parents[1]
BASE, TOOLS, SERVING = "requirements.txt", "requirements-dev.txt", "requirements-serve.txt"
PYTHONS = ["3.10", "3.11", "3.13"]
HERE = "{}.{}".format(*sys.version_info[:2])
# what no other package asks for: pip's build of the editable package needs it
BUILDS = {"setuptools"}


def lines(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins(*names, python):
    """Version by canonical name, of the lines that count for this Python."""
    wanted = [Requirement(line) for name in names for line in lines(name)]
    here = [one for one in wanted if not one.marker or one.marker.evaluate(environment(python))]
    found = {canonicalize_name(one.name): str(one.specifier) for one in here}
    assert len(found) == len(here), "pinned twice"
    assert all(version.startswith("==") for version in found.values())
    return {name: Version(version[2:]) for name, version in found.items()}


def environment(python, extra=""):
    return {"python_version": python, "python_full_version": f"{python}.9", "extra": extra}


def configured(*extras, python=HERE):
    """What setup.cfg asks for on a Python, alone or with these extras."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    options = dict(config["options.extras_require"])
    texts = [config["options"]["install_requires"], *(options[name] for name in extras)]
    found = [Requirement(line) for text in texts for line in text.split("\n") if line]
    return [one for one in found if not one.marker or one.marker.evaluate(environment(python))]


def reached(requirements):
    """Canonical names of these and of all that they need, by what is installed here."""
    found, waiting = set(), [(one, frozenset(one.extras) | {""}) for one in requirements]
    done = set()
    while waiting:
        one, extras = waiting.pop()
        name = canonicalize_name(one.name)
        if (name, extras) in done:
            continue
        done.add((name, extras))
        found.add(name)
        for text in metadata.requires(name) or []:
            need = Requirement(text)
            if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras):
                waiting.append((need, frozenset(need.extras) | {""}))
    return found


@pytest.mark.parametrize("python", PYTHONS)
class TestPins:
    def test_fit_what_setup_cfg_asks_for(self, python):
        for names, extras in (
            ([BASE], ["onnx", "serve"]),
            ([BASE, TOOLS], ["openvino", "heif", "dev"]),
        ):
            pinned = pins(*names, python=python)
            for one in configured(*extras, python=python):
                assert one.specifier.contains(pinned[canonicalize_name(one.name)]), one

    def test_of_serving_are_those_of_everything(self, python):
        everything = pins(BASE, python=python).items()
        assert pins(SERVING, python=python).items() <= everything


class TestFilesOfPins:
    def test_hold_what_is_installed_here_and_all_that_it_needs_and_nothing_else(self):
        base, tools = pins(BASE, python=HERE), pins(TOOLS, python=HERE)
        user = reached(configured("onnx", "serve")) | BUILDS
        assert base.keys() == user
        assert tools.keys() == reached(configured("openvino", "heif", "dev")) - user
        # a build of torch says after the + what it is for
        versions = {name: Version(metadata.version(name)).public for name in {**base, **tools}}
        assert versions == {name: str(version) for name, version in {**base, **tools}.items()}

    def test_of_serving_hold_all_that_they_need(self):
        serving = pins(SERVING, python=HERE)
        assert serving.keys() == reached(Requirement(name) for name in serving)

    @pytest.mark.parametrize("name", [BASE, TOOLS, SERVING])
    def test_are_in_order(self, name):
        assert lines(name) == sorted(lines(name), key=str.lower)


def test_a_wheel_takes_every_file_of_the_package():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = config["options.package_data"]["learnkit"].replace(",", " ").split()
    package = ROOT / "learnkit"
    beside = {p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert package / "report" / "templates" / "evaluation.js" in beside
    assert beside == {p for pattern in patterns for p in package.glob(pattern)}


def test_a_package_index_shows_the_readme_without_a_picture_or_link_that_leads_nowhere():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    long_description = runpy.run_path(str(ROOT / "setup.py"))["long_description"]
    before, after = markdown.render(readme), markdown.render(long_description(readme))
    targets = re.compile(r'(?:href|src)="(?!https:|#)([^"]*)"')
    assert {"docs/optimize.png", "CONTRIBUTING.md"} <= set(targets.findall(before))
    assert targets.findall(after) == []
    assert 'href="https://docs.fast.ai"' in after
    assert "CONTRIBUTING.md: the house in one screen" in re.sub("<[^>]*>", "", after)

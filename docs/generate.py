"""What of the site is made, not written: the reference, the commands, the notebooks, the links.

Docstrings are markdown with Google's sections; prose names functions as a reader types them. Both
stay as they are, in an editor as on a page.
"""

import base64
import importlib
import inspect
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx import addnodes

import learnkit

ROOT = Path(__file__).parents[1]
MADE = "generated"

# Rooms of the house -> headings of the reference, in its order.
GROUPS = {
    "data": "Images",
    "models": "Networks",
    "learner": "Training",
    "callback": "During a training",
    "evaluation": "How good",
    "interpret": "Where it errs",
    "inference": "Answers",
    "deploy": "Deployed models",
    "backends": "Machines",
    "optimize": "Faster models",
    "errors": "Errors",
}
# What else comes back from public verbs, or goes into them, and is no public name by itself.
RESULTS = {
    "learnkit.evaluation.comparison": ["Comparison"],
    "learnkit.inference.heatmap": ["Heatmap"],
    "learnkit.inference.suggestion": ["Suggestions"],
    "learnkit.inference.files": ["FilesReport"],
    "learnkit.continual.change_report": ["ChangeReport", "AuditLog"],
    "learnkit.continual.label_issues": ["LabelErrors"],
    "learnkit.uncertainty.threshold": ["Threshold"],
    "learnkit.uncertainty.calibration": ["TemperatureFit"],
}
# How prose calls an object of a class.
CALLED = {
    "learn": "learnkit.ImageLearner",
    "model": "learnkit.Predictor",
    "fast": "learnkit.Predictor",
    "predictor": "learnkit.Predictor",
    "interp": "learnkit.ClassificationInterpretation",
    "data": "learnkit.ImageDataset",
    "dataset": "learnkit.ImageDataset",
    "prediction": "learnkit.Prediction",
    "evaluation": "learnkit.Evaluation",
    "report": "learnkit.ConversionReport",
    "recipe": "learnkit.Preprocessing",
    "ha": "learnkit.halcon",
}


def write_pages(source: Path) -> None:
    """Write the generated pages below `source`, anew."""
    made = source / MADE
    shutil.rmtree(made, ignore_errors=True)
    pages = {**reference_pages(), "commands.md": command_page(), **notebook_pages(made)}
    for name, text in pages.items():
        file = made / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


# -- the reference ---------------------------------------------------------------------------------


def reference_pages() -> dict[str, str]:
    """File name -> text of the reference: a page for each public name, halcon's, and results."""
    pages, groups = {}, {}
    for name, module in learnkit.PUBLIC_NAMES.items():
        if name == "LearnkitError":
            continue
        groups.setdefault(module.split(".")[1], []).append(name)
        pages[f"api/{name}.rst"] = _title(name) + _object_page(name)
    pages["api/errors.rst"] = _errors_page()
    pages["api/results.rst"] = _results_page()
    pages["api/halcon.rst"] = _halcon_page()
    index = [_title("API reference"), _intro()]
    for room, heading in GROUPS.items():
        names = ["errors"] if room == "errors" else groups.pop(room)
        if room == "inference":
            names = [*names, "results"]
        index.append(_section(heading, names))
    index.append(_section("HALCON's names", ["halcon"]))
    if groups:
        raise ValueError(f"GROUPS has no heading for {sorted(groups)}; add one")
    pages["api/index.rst"] = "\n".join(index)
    return pages


def _object_page(name: str) -> str:
    value = getattr(learnkit, name)
    if inspect.isclass(value):
        # callbacks are hooks of fastai's below their parameters, which nobody calls
        members = "" if learnkit.PUBLIC_NAMES[name].startswith("learnkit.callback") else "members"
        return _directive("autoclass", f"learnkit.{name}", members)
    if inspect.isroutine(value):
        return _directive("autofunction", f"learnkit.{name}")
    module = importlib.import_module(learnkit.PUBLIC_NAMES[name])
    return f".. data:: learnkit.{name}\n\n" + textwrap.indent(_rst(module.__doc__), "   ")


def _directive(kind: str, name: str, *options: str) -> str:
    lines = [f"   :{option}:" for option in options if option]
    if "members" in options:
        # as far as learnkit's own classes go: fastai documents what is fastai's
        lines.append("   :inherited-members: Learner, Shown, Callback, Exception")
    return "\n".join([f".. {kind}:: {name}", *lines, "", ""])


def _errors_page() -> str:
    from learnkit import errors

    found = [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, errors.LearnkitError)
    ]
    public = _directive("autoclass", "learnkit.LearnkitError", "show-inheritance")
    rest = (
        _directive("autoclass", f"learnkit.errors.{value.__name__}", "show-inheritance")
        for value in found
        if value is not errors.LearnkitError
    )
    return _title("Errors") + public + "".join(rest)


def _results_page() -> str:
    parts = [
        _directive("autoclass", f"{module}.{name}", "members")
        for module, names in RESULTS.items()
        for name in names
    ]
    return _title("What comes back") + "".join(parts)


def _halcon_page() -> str:
    import learnkit.halcon as ha

    kinds = {name: getattr(ha, name) for name in ha.__all__}
    parts = [_title("learnkit.halcon"), ".. automodule:: learnkit.halcon\n   :no-members:\n\n"]
    for name, value in kinds.items():
        if inspect.isclass(value):
            parts.append(_directive("autoclass", f"learnkit.halcon.{name}", "members"))
        elif inspect.isroutine(value):
            parts.append(_directive("autofunction", f"learnkit.halcon.{name}"))
    return "".join(parts)


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


def _intro() -> str:
    return (
        "All of these are ``from learnkit.all import *``, or ``learnkit.NAME``. What fastai's "
        "Learner has, an ImageLearner has too, and fastai documents it.\n"
    )


def _section(heading: str, names: list[str]) -> str:
    """A section of the index: its pages, each with the first sentence of what is on it."""
    entries = [f"* :doc:`{name}`{_first_sentence(name)}" for name in names]
    hidden = [".. toctree::", "   :hidden:", "", *(f"   {name}" for name in names), ""]
    return "\n".join([heading, "-" * len(heading), "", *entries, "", *hidden])


def _first_sentence(name: str) -> str:
    if name not in learnkit.PUBLIC_NAMES or not callable(value := getattr(learnkit, name)):
        return ""
    first = inspect.cleandoc(value.__doc__).split("\n\n")[0].replace("\n", " ")
    return f": {_rst(first)}"


_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_INDENTED = re.compile(r"^(\S.*)\n\n(?=    \S)", re.MULTILINE)


def docstring_to_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list) -> None:
    """Turn the markdown of a docstring into what Sphinx reads."""
    lines[:] = _rst("\n".join(lines)).split("\n")
    if what in {"property", "attribute"}:
        lines[:0] = ["..", ""]  # else napoleon takes what stands before a colon for a type


def readable_signature(app: Any, what: str, name: str, obj: Any, options: Any, *signature: Any):
    """A signature whose defaults that are made anew are "...": (arguments, what comes back)."""
    arguments, returned = signature
    return (arguments or "").replace("<factory>", "...") or arguments, returned


def _rst(text: str) -> str:
    """Markdown with its `code` as ``code``, and indented code as a block of it."""
    text = _INDENTED.sub(r"\1\n\n.. code-block:: python\n\n", text)

    def literal(match: re.Match) -> str:
        before, after = text[: match.start()][-1:], text[match.end() :][:1]
        left = "" if not before or before in " \n([{<-/:\"'" else "\\ "
        right = "\\ " if after.isalnum() or after == "_" else ""
        return f"{left}``{match[1]}``{right}"

    return _CODE.sub(literal, text)


# -- the command line ------------------------------------------------------------------------------


def command_page() -> str:
    """The page of all commands, from the help that they show."""
    import typer
    from typer.cli import get_docs_for_click

    from learnkit.cli.app import app

    command = typer.main.get_command(app)
    with command.make_context("learnkit", ["--debug"], resilient_parsing=True) as context:
        text = get_docs_for_click(obj=command, ctx=context, name="learnkit")
    for name, one in command.commands.items():
        first = inspect.cleandoc(one.help).split("\n\n")[0].replace("\n", " ")
        entry = re.compile(rf"^\* `{name}`: .*$", re.MULTILINE)
        text = entry.sub(lambda _, n=name, f=first: f"* [`{n}`](#learnkit-{n}): {f}", text, count=1)
    return text.replace("# `learnkit`", "# Command line", 1)


# -- notebooks -------------------------------------------------------------------------------------


def notebook_pages(made: Path) -> dict[str, str]:
    """File name -> markdown of each notebook as it was committed; its pictures are written."""
    pages = {}
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        parts = []
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown":
                parts.append(cell.source)
                continue
            parts.append(_fence("python", cell.source))
            for place, output in enumerate(cell.outputs):
                stem = f"{path.stem}-{number}-{place}"
                parts.append(_output(output, made / "nbs", stem))
        pages[f"nbs/{path.stem}.md"] = "\n\n".join(filter(None, parts)) + "\n"
    return pages


def _output(output: Any, folder: Path, stem: str) -> str:
    """An output of a cell in markdown."""
    if output.output_type == "stream":
        return _fence("text", output.text) if output.text.strip() else ""
    data = output.data
    if "image/png" in data:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.png").write_bytes(base64.b64decode(data["image/png"]))
        return f"![{data.get('text/plain', 'a figure')}]({stem}.png)"
    if "text/html" in data:
        html = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL).strip()
        return _fence("{raw} html", f'<div class="output">{html}</div>') if html else ""
    return data.get("text/markdown") or _fence("text", data["text/plain"])


def _fence(kind: str, text: str) -> str:
    return f"````{kind}\n{text.rstrip()}\n````"


# -- links -----------------------------------------------------------------------------------------

_LINK = re.compile(r"\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]+)?\)")
_COMMAND = re.compile(r"learnkit ([a-z]+)\b(?!\()")
_NAME = re.compile(r"([A-Za-z_]\w*)((?:\.[A-Za-z_]\w*)*)(?:\(.*\))?", re.DOTALL)


def site_links(app: Any, docname: str, content: list[str]) -> None:
    """Turn links that lead out of docs/, as readers of the repository follow them, into the site's.

    Notebooks have their page here, other files are downloads.
    """
    page = (Path(app.srcdir) / docname).parent

    def here(match: re.Match) -> str:
        target = (page / match[1] / match[2]).resolve()
        if target.suffix == ".ipynb" and target.parent == ROOT / "nbs":
            up = "../" * len(page.relative_to(app.srcdir).parts)
            return f"]({up}{MADE}/nbs/{target.stem}.md)"
        return match[0]

    content[0] = _LINK.sub(here, content[0])


def finish(app: Any, doctree: nodes.document) -> None:
    """Let code in prose lead to what it names in the reference; say things as docstrings do."""
    for label in doctree.findall(nodes.field_name):
        if label.astext() == "Variables":
            label[:] = [nodes.Text("Attributes")]
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":  # behind a parameter's name; all others are of options
            text.parent.replace(text, nodes.Text(" – "))
    for literal in list(doctree.findall(nodes.literal)):
        if any(isinstance(up, nodes.reference | addnodes.pending_xref) for up in _above(literal)):
            continue
        if command := _COMMAND.match(literal.astext()):
            page = app.builder.get_relative_uri(app.env.docname, f"{MADE}/commands")
            reference = nodes.reference(refuri=f"{page}#learnkit-{command[1]}", internal=True)
            literal.replace_self(reference)
            reference += literal
            continue
        found = _NAME.fullmatch(literal.astext())
        if not found:
            continue
        start, rest = found[1], found[2]
        target = CALLED.get(start) if rest else None
        context = _class_of(literal)
        reference = addnodes.pending_xref(
            "",
            refdomain="py",
            reftype="obj",
            reftarget=(target or start) + rest,
            refexplicit=True,
            refwarn=False,
            refdoc=app.env.docname,
            **{"py:module": "learnkit", "py:class": context},
        )
        literal.replace_self(reference)
        reference += literal


def _above(node: nodes.Node) -> list[nodes.Node]:
    found = []
    while node.parent is not None:
        node = node.parent
        found.append(node)
    return found


def _class_of(node: nodes.Node) -> str | None:
    """The class whose description a node is in."""
    for up in _above(node):
        if isinstance(up, addnodes.desc) and up.get("domain") == "py":
            signature = next(up.findall(addnodes.desc_signature))
            if up["objtype"] in ("class", "exception"):
                return signature.get("fullname")
            if signature.get("class"):
                return signature["class"]
    return None

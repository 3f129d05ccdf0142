"""What an error advises can be typed: every remedy in Python has one of the command line."""

import ast
import re

import pytest
import typer
from test_house import ROOT

from learnkit.cli.app import app
from learnkit.cli.remedies import BY_KIND, BY_WORDS, options_here, remedy
from learnkit.errors import ConversionRefusedError, WeightsUnavailableError

COMMANDS = {
    name: {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    for name, command in typer.main.get_command(app).commands.items()
}
OPTIONS = set().union(*COMMANDS.values())
# `serve` answers requests, and what its options set no message of a file advises
ON_FILES = set().union(*(options for name, options in COMMANDS.items() if name != "serve"))
# Rooms whose messages no command shows, or which speak to a programmer or a browser.
ELSEWHERE = {"cli", "interpret", "serving", "report"}
ELSEWHERE_FILES = {
    "bundle/card.py",
    "evaluation/inputs.py",
    "_torchvision.py",
    "inference/heatmap.py",
    "deploy/settable.py",  # of assignments, which no command makes
}
SHOWN = {"interpret/heatmaps.py"}  # of those rooms: `train` draws heatmaps
# What a message may advise in Python, since no command leads to it, or since it says why and the
# remedy stands beside it.
IN_PYTHON = {
    # arguments that no command gives
    *("aug_transforms(", "tta=", "start_lr=", "batch_tfms=", "split_idx=", "channels="),
    "item_tfms=",
    *("device=", "encoding=", "image_dir="),
    # masks and boxes, which no command reads yet
    *("images=", "masks=", "codes=", "ignore=", "good=", "rotated="),
    *("from_df(", "dataset.write_masks("),
    *("classifier=", "score=", "per_class=", "memory=", "shrinkage=", "temperature=", "lin_bias="),
    *("target=", "train_bn=", "num_workers=", "drop_last=", "with_labels="),
    *("data=", "sha256=", "p=", "history="),
    *("set_to_none=", "progress="),
    # verbs of a learner or of a predictor in a notebook
    *("cnn_learner(", "dataloaders(", "drop_continual(", "evaluate(", "from_bundle("),
    *("from_folder(", "get_preds(", "learn.clear_ood(", "learn.drop_continual("),
    *("learn.extend(", "learn.interpret(", "learn.opt.set_hypers(", "learn.predict_batch("),
    *(
        "learn.refit(",
        "learn.save(",
        "predict_batch(",
        "predictor.save(",
        "rename(",
        "reset(",
        "save(",
    ),
    *("load_learner(", "load_runtime(", "table(", "set(", "model.state_dict("),
    *("learn.export(", "learn.model.zero_grad(", "nn.Sequential(", "len("),
    *("dataset.class_weights(",),  # --class-weights takes no weights of its own
    *("learn.evaluate(", "predictor.evaluate("),  # of arrays, which no command has
    "images_per_false_alarm=",  # of a monitor, which commands begin anew
    "tolist(",  # of a Series, which no command takes
    "preprocessing.replace(",  # of a whole recipe, which no command takes
    *("np.save(", "np.ascontiguousarray("),  # files of .npy are written by Python
}
TOKEN = re.compile(r"(?<![\w-])([a-z_]\w*)=(?!=)|(?<!\w)([a-z_][\w.]*)\(")


def literal(node):
    """The text of a literal, with {} for what is put into it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def sentences(path):
    """Literals of a file with words in them, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef)
    skipped = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(one) for one in node.values}
    return [
        text
        for node in ast.walk(tree)
        if id(node) not in skipped and " " in (text := literal(node))
    ]


MESSAGES = {
    path.relative_to(ROOT).as_posix(): sentences(path)
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] not in ELSEWHERE
    or path.relative_to(ROOT).as_posix() in SHOWN
    if path.relative_to(ROOT).as_posix() not in ELSEWHERE_FILES
}


def advised():
    """(what is to be written in Python, file, message) of everything that a message advises."""
    for file, texts in MESSAGES.items():
        for text in texts:
            for name, verb in TOKEN.findall(text):
                yield (f"{name}=" if name else f"{verb}("), file, text


def test_whatever_a_message_advises_can_be_typed():
    for advice, file, text in advised():
        option = f"--{advice[:-1].replace('_', '-')}"
        typed = option in ON_FILES or any(re.search(words, text) for words in BY_WORDS)
        assert typed or advice in IN_PYTHON, (
            f"{file} advises {advice!r}: say in learnkit/cli/remedies.py what to type, or add it "
            f"to IN_PYTHON if no command shows it: {text!r}"
        )


def test_no_remedy_is_for_a_message_that_is_gone():
    texts = [text for texts in MESSAGES.values() for text in texts]
    for words in BY_WORDS:
        assert any(re.search(words, text) for text in texts), words
    left = {advice for advice, _, _ in advised()}
    assert left >= IN_PYTHON, sorted(IN_PYTHON - left)


@pytest.mark.parametrize("hint", [*BY_KIND.values(), *BY_WORDS.values()])
def test_what_is_to_be_typed_exists(hint):
    command = re.match("learnkit ([a-z]+)", hint)
    options = COMMANDS[command[1]] if command else OPTIONS
    assert options >= set(re.findall(r"--[a-z][a-z-]+", hint))


@pytest.fixture
def command(request):
    token = options_here.set(frozenset(COMMANDS[request.param]))
    yield request.param
    options_here.reset(token)


@pytest.mark.parametrize(
    ("command", "text", "kind", "expected"),
    [
        ("extend", "'a' and 'A'; or case_sensitive=True", str, " Here: --case-sensitive."),
        ("extend", "pass `reuse_names=True`", str, " Here: --reuse-names."),
        ("optimize", "`samples` is missing: int8 takes its ranges", str, " Here: --samples."),
        ("optimize", "refused; force=True takes it", ConversionRefusedError, None),
        ("train", "`pretrained=False` starts from nothing", str, " Here: --no-pretrained."),
        ("train", "`mean` and `std` go together", str, " Here: --mean, --std."),
        ("train", "`lr` is 0; give --lr 0.1", str, ""),
        ("train", "see `Preprocessing`", str, ""),
        (
            *("extend", 'a learner built on `dataloaders(method="squish")` sees it', str),
            " Here: learnkit train FOLDER --method squish.",
        ),
        ("train", "no weights", WeightsUnavailableError, None),
        ("predict", "no weights", WeightsUnavailableError, ""),  # which has no such options
        ("predict", "`resume=False` starts anew", str, ""),  # there is no --no-resume
        *(
            (command, "'a' has learned more. variant='a' loads that; to bring 'b' up", str, said)
            for command, said in (
                ("serve", " Here: --variant NAME."),
                ("predict", " Here: learnkit extend MODEL FOLDER --out MODEL."),
            )
        ),
        ("predict", "it is a. Here: remove `out`", str, ""),
        (
            "evaluate",
            "rename classes of the model by its set(class_names=)",
            str,
            " Here: learnkit rename MODEL OLD=NEW.",
        ),
    ],
    indirect=["command"],
)
def test_arguments_become_the_options_of_the_command_that_runs(command, text, kind, expected):
    if expected is None:
        expected = f" Here: {BY_KIND[kind]}."
    assert remedy(f"{text}.", kind) == expected
    assert remedy(text, kind) == (f".{expected}" if expected else "")

"""The command `learnkit`: demo, train, extend, evaluate, predict, serve, label, optimize, ...

Exit codes: 0 done, 1 done but some images could not be read, 2 a mistake of the user in one
sentence, 130 interrupted. Whatever is slow to import is imported inside the commands.
"""

from __future__ import annotations

import functools
import gc
import io
import os
import shlex
import shutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from learnkit._version import __version__
from learnkit.cli import change, clean, deploy, label, train, use
from learnkit.cli.arguments import DEBUG, Interrupted, tidy_arguments
from learnkit.cli.console import Report, fail, printable
from learnkit.cli.remedies import options_here, remedy
from learnkit.errors import LearnkitError

app = typer.Typer(
    name="learnkit",
    help="Image classifiers from the command line: train, extend, evaluate, predict, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # paragraphs of the docstrings are wrapped anew
    context_settings={
        "help_option_names": ["-h", "--help"],
        "terminal_width": shutil.get_terminal_size().columns,  # else at least 50
    },
)
_BOXES = 80  # columns from which on the boxes of a command's help hold the names of its options
_state: dict[str, Any] = {"debug": False, "argv": []}
_TICK = 0.5  # seconds between two looks whether Ctrl-C reaches nobody
_PATIENCE = 5.0  # seconds for a disk that is slow, and answers


def _say_version(wanted: bool) -> None:
    if wanted:
        Report().console.print(f"learnkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")] = False,
    version: Annotated[  # its callback answers
        bool,
        typer.Option("--version", help="Show the version.", callback=_say_version, is_eager=True),
    ] = False,
) -> None:
    _state["debug"] = debug


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    _state["argv"] = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may be no text of its encoding
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        # Warnings meant for the user are a line each; those for programmers are for --debug.
        if DEBUG not in _state["argv"]:
            # in this order: the filter that was set last is asked first
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = lambda message, *_: fail(f"note: {_with_remedy(message)}")
        if "" in _state["argv"]:  # of which a path would be the folder one is in
            fail("an argument is empty, as an unset variable is; leave it out, or fill it in")
            sys.exit(2)
        try:
            with ended_by_ctrl_c(fail):
                app(args=tidy_arguments(_state["argv"]), prog_name="learnkit")
        except Exception:
            if argv is None:  # the process ends here; typer has a hook of its own
                sys.excepthook = _show_traceback
            raise
        finally:
            if argv is None:
                # Python would look for cycles among all of torch's and fastai's objects at its end:
                # a second of the processor, of the few that a server has once it is told to stop.
                gc.freeze()


@contextmanager
def ended_by_ctrl_c(say: Callable[[str], object]) -> Iterator[None]:
    """Within, Ctrl-C ends the process with exit code 130 although a read never returns.

    The system tells a thread that waits for a disk of no signal but SIGKILL, and a network share
    that is gone lets it wait for ever; a training reads its images in the main thread. Whatever
    the command has written by then is whole: it is what a kill leaves.

    Args:
        say: is given the sentence before the end.
    """
    if not hasattr(signal, "sigpending"):  # Windows, where reads can be cancelled
        yield
        return
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(done, say), name="learnkit-ctrl-c", daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()


def _watch(done: threading.Event, say: Callable[[str], object]) -> None:
    """End the process where a SIGINT is taken by nobody, and the main thread does not move."""
    # `sigpending` tells of signals that its thread blocks, and only of those that wait
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    while not done.wait(_TICK):
        if signal.SIGINT not in signal.sigpending():
            continue
        before = _step()
        # a main thread that only was slow takes the signal itself
        if not done.wait(_PATIENCE) and _step() == before:
            say("interrupted; a file is left that the disk or network does not answer for")
            os._exit(130)  # a wait for a disk ends with its process, and by nothing else


def _step() -> tuple[FrameType | None, int]:
    """Where the main thread is: its frame, and the instruction in it."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    # a loop stays in its frame, and moves on in it
    return frame, -1 if frame is None else frame.f_lasti


def _show_traceback(*error: Any) -> None:
    """Write a traceback without what steers a terminal: names of files and classes are in it."""
    lines = "".join(traceback.format_exception(*error)).split("\n")
    sys.stderr.write("\n".join(map(printable, lines)))


class _Command(TyperCommand):
    """A command whose help is plain text, one option below the other, in a narrow terminal."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if formatter.width < _BOXES:
            self.rich_markup_mode = None
            # texts stand below names of more than 8 columns: beside them is no room
            formatter.write_dl = functools.partial(formatter.write_dl, col_max=8)
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments; of one that is missing it is said what it is."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:  # without a message, where it is missing
            error.message = error.message or getattr(error.param, "help", None) or ""
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run it, with remedies that are options of its own."""
        names = (name for one in self.params for name in (*one.opts, *one.secondary_opts))
        options_here.set(frozenset(names))
        return super().invoke(ctx)


def _command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the errors a user can mend into one sentence and an exit code."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt as stop:
            fail(_how_to_go_on(stop))
            raise typer.Exit(130) from None
        except (LearnkitError, OSError, ModuleNotFoundError) as error:
            if _state["debug"]:
                raise
            fail(_sentence(error))
            raise typer.Exit(2) from None

    return app.command(cls=_Command)(run)


def _sentence(error: Exception) -> str:
    """What an error says, in one line."""
    if not isinstance(error, LearnkitError) and isinstance(error, ModuleNotFoundError):
        return (
            f"this command needs {error.name}, which is not installed: `pip install learnkit` "
            "brings it, where only what serving needs was installed"
        )
    # some of learnkit's own are OSErrors, too, with a sentence of their own
    if not isinstance(error, LearnkitError) and getattr(error, "filename", None):
        return f"{error.filename}: {error.strerror}"
    return _with_remedy(error)


def _how_to_go_on(stop: KeyboardInterrupt) -> str:
    """What to do after Ctrl-C."""
    if not isinstance(stop, Interrupted):
        return "interrupted"
    if not stop.kept.exists():
        return f"interrupted {stop.nothing}"
    arguments = [arg for arg in _state["argv"] if arg != "--resume"]
    return f"interrupted; go on with: {shlex.join(['learnkit', *arguments, '--resume'])}"


def _with_remedy(message: Exception | Warning | str) -> str:
    """A message in one line, with what to type where it tells what to write in Python."""
    text = " ".join(str(message).split())
    return text + remedy(text, type(message))


for _function in (
    train.demo,
    train.train,
    clean.check,
    clean.clean,
    use.extend,
    change.undo,
    change.forget,
    change.rename,
    change.calibrate,
    use.evaluate,
    use.predict,
    use.report,
    deploy.serve,
    label.suggest,
    label.label,
    deploy.optimize,
    deploy.convert,
    deploy.onnx,
    deploy.devices,
):
    _command(_function)

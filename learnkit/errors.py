"""Every exception learnkit raises on purpose.

Each derives from `LearnkitError` and from the built-in a caller would expect, so both
`except LearnkitError` and `except ValueError` (or `FileNotFoundError`, ...) catch it. A message
names the argument, the value seen, the rule and the remedy. After one, nothing is half done.
"""

import functools
import os
import site
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")  # by itself: type checkers see it in no other way
T = TypeVar("T")


class LearnkitError(Exception):
    """Base of all errors learnkit raises on purpose.

    `code` is the number HALCON has for this kind of error; None where it has none.
    """

    code: int | None = None

    def __init__(self, *args: Any, **named: Any):  # ImportError takes `name`
        super().__init__(*(self._own_words(arg) for arg in args), **named)

    def _own_words(self, message: Any) -> Any:
        """What it said in a reading process, of which torch makes a message with a traceback."""
        kind = f"{type(self).__module__}.{type(self).__qualname__}: "
        if not isinstance(message, str) or not message.startswith("Caught ") or kind not in message:
            return message
        return message.rpartition(kind)[2].strip()

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the lines of the caller and the message; `%debug` has the others."""
        folders = (os.path.dirname(__file__), os.path.dirname(os.__file__), *site.getsitepackages())
        libraries = tuple(os.path.join(folder, "") for folder in folders)
        frames = traceback.extract_tb(self.__traceback__)
        own = [frame for frame in frames if not frame.filename.startswith(libraries)]
        return [*traceback.format_list(own), *traceback.format_exception_only(self)]


# -- data ---------------------------------------------------------------------------------------


class DataError(LearnkitError, ValueError):
    """A dataset, its labels or its table breaks a rule."""

    code = 7925


class SplitError(DataError):
    """A split is missing, impossible, or would silently overwrite another."""


class ImageReadError(LearnkitError, OSError):
    """An image is missing, damaged, of a refused kind or absurdly large; the message names it."""

    code = 7790


class ImageNotFoundError(ImageReadError, FileNotFoundError):
    """There is no image at this path."""


class UnreadableImagesError(ImageReadError):
    """Some of many images cannot be read; `failures` maps each to its reason.

    `evaluation` is that of the other images, where images were to be evaluated.
    """

    failures: dict[str, str]
    evaluation: Any = None


# -- models -------------------------------------------------------------------------------------


class UnknownArchitectureError(LearnkitError, ValueError):
    """No library offers an architecture of this name; the nearest names are suggested."""

    code = 7780


class CutError(LearnkitError, ValueError, NameError):
    """A `cut` finds no feature map or truncates the network. Also a NameError, as in fastai v1."""


class InputSizeError(LearnkitError, ValueError):
    """An image size or channel count does not fit the network."""

    code = 7789


class WeightsError(LearnkitError, ValueError):
    """A weights file does not fit the network it is loaded into."""

    code = 7780

    def __init__(self, message: str):
        # Names in files of strangers may hold codes that a terminal would obey.
        shown = (c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in message)
        super().__init__("".join(shown))


class WeightsUnavailableError(LearnkitError, OSError):
    """Pretrained weights cannot be had: hub unreachable, no such tag, no such file."""

    code = 7780


class WeightsNotFoundError(WeightsUnavailableError, FileNotFoundError):
    """There is no weights file at this path."""


class SplitterError(LearnkitError, ValueError):
    """Parameter groups miss a parameter or hold one twice."""


class ModelSpecError(LearnkitError, ValueError):
    """A network's description as data has unknown keys, or values that no network can have."""


# -- training -----------------------------------------------------------------------------------


class WorkerError(LearnkitError, RuntimeError):
    """A process that reads images has died."""


class NonFiniteLossError(LearnkitError, FloatingPointError):
    """The loss became NaN or infinite; the message names the batch, the last good weights stay."""


class CheckpointError(LearnkitError, ValueError):
    """A checkpoint is missing, damaged, or belongs to another run."""


# -- evaluation ---------------------------------------------------------------------------------


class EvaluationError(LearnkitError, ValueError):
    """Predictions and truth cannot be compared: no probabilities, no class numbers, not aligned."""


# -- uncertainty --------------------------------------------------------------------------------


class UncertaintyError(LearnkitError, ValueError):
    """Scores, logits, weights or rates that no threshold or calibration can be made of."""


# -- interpretation -----------------------------------------------------------------------------


class InterpretationError(LearnkitError, ValueError):
    """The question has no meaning for this model or data."""

    code = 7851


# -- deployment ---------------------------------------------------------------------------------


class ExportError(LearnkitError, ValueError):
    """Something about the learner cannot travel as data; the message names it."""

    code = 7781


class BundleWriteError(LearnkitError, OSError):
    """A bundle could not be written; what stood at the target before still does.

    Only a failed last flush to the disk is reported although the new bundle is in place.
    """

    code = 7781


class BundleError(LearnkitError, ValueError):
    """A bundle is refused."""

    code = 7780


class BundleNotFoundError(BundleError, FileNotFoundError):
    """There is no bundle at this path."""


class BundleCorruptError(BundleError):
    """A bundle is damaged or was tampered with: size, hash, structure, shape or value is wrong."""


class BundleVersionError(BundleError):
    """A bundle was written in a format newer than this learnkit reads."""

    code = 7782


class BundleProbeError(BundleError):
    """The loaded network does not reproduce the logits recorded at export."""


class NotPicklableError(LearnkitError, TypeError):
    """A predictor pickles as the path of its bundle, and is in none, or is another by now."""


class PredictionError(LearnkitError, ValueError):
    """A prediction cannot be made: wrong input, or the network's output is not finite."""

    code = 7783


class PredictionFileError(LearnkitError, OSError):
    """Predictions could not be written to a file; what was there before still is."""


# -- uncertainty --------------------------------------------------------------------------------


class OodError(LearnkitError):
    """Base of the errors of out-of-distribution detection."""


class OodUnsupportedError(OodError, TypeError):
    """This model has no scores of this kind to detect unusual images by."""

    code = 7985


class OodInsufficientDataError(OodError, ValueError):
    """Too few images, or too much alike, to fit a score or a threshold."""

    code = 7986


class OodInternalError(OodError, RuntimeError):
    """A fitted score is not finite although its input is; the message names the stage."""

    code = 7987


class OodLockedError(OodError, RuntimeError):
    """The change would make the fitted detection wrong; the message says how to drop it first."""

    code = 7988


# -- continual learning -------------------------------------------------------------------------


class ContinualError(LearnkitError):
    """Base of the errors of continual learning."""


class ContinualUnsupportedError(ContinualError, TypeError):
    """This model cannot learn continually: no feature map, several labels an image, ..."""

    code = 7970


class ContinualNotInitializedError(ContinualError, RuntimeError):
    """The model is not in the continual state; `init_continual` brings it there."""

    code = 7971


class ContinualAlreadyInitializedError(ContinualError, RuntimeError):
    """The model is in the continual state already; `extend` it, or drop that state first."""

    code = 7972


class ContinualPredictionError(ContinualError, PredictionError):
    """No prediction: no class is known, or the features are not finite or of another width."""

    code = 7973


class ContinualStateError(ContinualError, RuntimeError):
    """The operation would invalidate the class statistics, such as training their network."""

    code = 7974


class InsufficientDiversityError(ContinualError, DataError):
    """The images do not suffice to learn a class from: none readable, or all without content."""

    code = 7975


class StatisticsError(ContinualError, ValueError):
    """Class statistics are damaged, contradict each other, or would stop being exact."""


class NewerStateError(StatisticsError):
    """Class statistics are in a format newer than this learnkit reads."""


# -- command line -------------------------------------------------------------------------------


class UsageError(LearnkitError, ValueError):
    """An option of a command makes no sense."""


# -- optimised models ---------------------------------------------------------------------------


class MissingExtraError(LearnkitError, ImportError):
    """A package of an extra is not installed; the message has the pip line."""


class OptimizeError(LearnkitError, ValueError):
    """A model cannot be optimised with these samples or settings, or has been already."""

    code = 7917


class BackendUnavailableError(OptimizeError):
    """No such backend, or it cannot do this here; the message names what is possible."""

    code = 7960


class ConversionRefusedError(OptimizeError):
    """A converted model failed its gates; `report` says which, and by how much."""

    report: object


class OptimizedModelError(LearnkitError, AttributeError):
    """Something of an optimised model was to be set or looked into that is fixed."""

    code = 7916


# -- serving ------------------------------------------------------------------------------------


class ServingError(LearnkitError, ValueError):
    """A model cannot be served like this: an address, a token or a limit breaks its rule."""


_held: ContextVar[list[str] | None] = ContextVar("held", default=None)


def warned_after(function: Callable[P, T]) -> Callable[P, T]:
    """Say what `warn_user` is given in a call when that has succeeded, or not at all.

    A warning tells of an effect; a call that fails has none.

    >>> @warned_after
    ... def learn(n):
    ...     warn_user("some images count twice now")
    ...     return 1 // n
    >>> with warnings.catch_warnings(record=True) as said:
    ...     try:
    ...         learn(0)
    ...     except ZeroDivisionError:
    ...         print(len(said))
    0
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if _held.get() is not None:  # a call within a call: the outer one may fail yet
            return function(*args, **kwargs)
        held: list[str] = []
        token = _held.set(held)
        try:
            result = function(*args, **kwargs)
        finally:
            _held.reset(token)
        for message in dict.fromkeys(held):
            warn_user(message)
        return result

    return run


def warn_user(message: str) -> None:
    """Warn at the line of the first caller outside learnkit; see `warned_after`."""
    if (held := _held.get()) is not None:
        held.append(message)
        return
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("learnkit."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def number_of(n: int, noun: str) -> str:
    """A number and its noun, in the plural unless it is 1.

    >>> number_of(1, "class"), number_of(1200, "image")
    ('1 class', '1,200 images')
    """
    plural = "es" if noun.endswith("s") else "s"
    return f"{n:,} {noun}{'' if n == 1 else plural}"


def first_few(names: Iterable[object], limit: int = 5) -> str:
    """The first `limit` of `names` for a message, and how many more there are.

    >>> first_few("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    shown = [str(name) for name in names]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more

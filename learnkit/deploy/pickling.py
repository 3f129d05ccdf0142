"""Predictors in pickles: as the path and digest of their bundle, never as weights or code.

What a worker process gets is opened from disk there, and refused if it is another model by then.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from learnkit.errors import BundleError, NotPicklableError
from learnkit.inference.digest import same_state, state_of
from learnkit.storage.read_folder import read_folder

if TYPE_CHECKING:
    from typing_extensions import Self

_SAVE = "save it first: predictor.save(path)"


class Home(NamedTuple):
    """The bundle on disk that holds a predictor, and what the predictor was then."""

    path: Path
    digest: str
    state: tuple[Any, ...]
    facts: dict[str, Any]


class ByPath:
    """A predictor that pickles as the path of its bundle, for worker processes.

    It must have come from a bundle (`load_learner`, `load_runtime`) or have been saved to one, and
    be as it was then. Unpickling opens that bundle, which takes as long as loading it does: hand a
    predictor to each worker once, as an argument of its initializer, rather than with every task.
    What `undo` could take back does not travel.
    """

    _home: Home | None = None
    _needs_torch = True

    def __reduce__(self) -> tuple[Any, ...]:
        return opened_again, pickled(self)

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(
            {name: copy.deepcopy(v, memo) for name, v in self.__dict__.items() if name != "_home"}
        )
        return new


def home_of(predictor: Any, path: str | os.PathLike, digest: str) -> Home:
    """That `predictor`, as it is now, is in the bundle at `path`."""
    absolute = Path(os.path.abspath(path))
    return Home(absolute, digest, state_of(predictor), copy.deepcopy(_facts(predictor)))


def pickled(predictor: Any) -> tuple[str, str, str | None, int | None, str, bool]:
    """What `opened_again` makes `predictor` of.

    Raises:
        NotPicklableError: it is in no bundle, or has changed since, or its bundle is another one by
            now; the message has the remedy.
    """
    home, name = predictor._home, type(predictor).__name__
    if home is None:
        raise NotPicklableError(
            f"this {name} is in no bundle, and a pickle holds a path, never weights; {_SAVE}"
        )
    if not same_state(predictor, home.state) or _facts(predictor) != home.facts:
        remedy = _SAVE if predictor._needs_torch else "set it in the worker process instead"
        raise NotPicklableError(
            f"this {name} has changed since it was in {home.path}, which is what a pickle would "
            f"lead to; {remedy}"
        )
    try:
        read_folder(home.path, sha256=home.digest, wanted=())
    except BundleError as error:
        remedy = f"{_SAVE}, or put that bundle back"
        if not predictor._needs_torch:
            remedy = "put that bundle back"
        raise NotPicklableError(
            f"the bundle this {name} was in is no longer there: {error}; {remedy}"
        ) from error
    variant = getattr(predictor, "variant", None)
    threads = getattr(predictor, "threads", None)
    settings = variant, threads, str(predictor.device)
    return str(home.path), home.digest, *settings, predictor._needs_torch


def opened_again(
    path: str,
    digest: str,
    variant: str | None,
    threads: int | None,
    device: str,
    needs_torch: bool,
) -> Any:
    """The predictor `pickled` described, from its bundle.

    Raises:
        BundleError: the bundle is gone, or another one by now.
    """
    given: dict[str, Any] = {"sha256": digest, "threads": threads, "device": device}
    if not needs_torch:
        from learnkit.deploy.runtime_predictor import load_runtime

        return load_runtime(path, variant=variant, **given)
    from learnkit.bundle.variant import FLOAT32
    from learnkit.deploy.loading import load_learner

    return load_learner(path, variant=variant or FLOAT32, **given)


def _facts(predictor: Any) -> dict[str, Any]:
    """What can be assigned or changed in place, and is no part of `state`."""
    network = vars(predictor).get("model")
    weights = [] if network is None else [*network.parameters()]
    tensors = [] if network is None else [*weights, *network.buffers()]
    return {
        "metadata": predictor.metadata,
        "multi_label": predictor.multi_label,
        "threshold": predictor.threshold,
        "preprocessing": predictor.preprocessing,
        # training changes weights in place, and torch counts that
        "changes": [0 if one.is_inference() else one._version for one in tensors],
        "weights": [*map(id, weights)],
    }

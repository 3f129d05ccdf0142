"""The bundle a predictor stands in: its path and digest are all that a pickle holds.

What a worker process gets is opened from disk there, and refused if it is another model by then.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from learnkit.errors import BundleError, BundleWriteError, NotPicklableError
from learnkit.inference.model import same_state
from learnkit.storage.filesystem import check_path
from learnkit.storage.read_folder import read_folder

_SAVE = "save it first: predictor.save(path)"


class Home(NamedTuple):
    """The bundle on disk that holds a predictor, and what the predictor was then.

    Attributes:
        seen: digests of the bundles it was loaded from and saved to, as they were then.
    """

    path: Path
    digest: str
    state: tuple[Any, ...]
    facts: dict[str, Any]
    seen: Mapping[Path, str]

    def saved(self, digest: str) -> Home:
        """The same, written with this digest."""
        return self._replace(digest=digest, seen={**self.seen, place_of(self.path): digest})


def home_of(predictor: Any, path: str | os.PathLike, digest: str) -> Home:
    """That `predictor`, as it is now, is in the bundle at `path`."""
    check_path(path, BundleWriteError)
    # whoever unpickles may work in another folder
    absolute = Path(os.path.abspath(path))
    seen = {} if predictor._home is None else predictor._home.seen
    facts = copy.deepcopy(_facts(predictor))
    home = Home(absolute, digest, tuple(predictor.state), facts, seen)
    return home.saved(digest) if digest else home


def last_seen(predictor: Any, path: str | os.PathLike) -> str | None:
    """The digest of the bundle at `path` when `predictor` was in it; None if it never was."""
    return None if predictor._home is None else predictor._home.seen.get(place_of(path))


def take_home_of(predictor: Any, other: Any) -> None:
    """Let `predictor` be in no bundle, and take the place of those that `other` was in."""
    # no predictor has this state: a pickle is refused until it is saved
    predictor._home = None if other._home is None else other._home._replace(state=())


def place_of(path: str | os.PathLike) -> Path:
    """Where a path leads, whatever it is called."""
    return Path(os.path.realpath(path))


def pickled(predictor: Any) -> tuple[str, str, str | None, int | None, str]:
    """(path, digest, variant, threads, device): what opens `predictor` again.

    Raises:
        NotPicklableError: it is in no bundle, or has changed since, or its bundle is another one by
            now; the message has the remedy.
    """
    home, name = predictor._home, type(predictor).__name__
    if home is None or not home.state:
        raise NotPicklableError(
            f"this {name} is in no bundle, and a pickle holds a path, never weights; {_SAVE}"
        )
    if not same_state(predictor, home.state) or _facts(predictor) != home.facts:
        remedy = _SAVE if predictor.needs_torch else "set it in the worker process instead"
        raise NotPicklableError(
            f"this {name} has changed since it was in {home.path}, which is what a pickle would "
            f"lead to; {remedy}"
        )
    try:
        read_folder(home.path, sha256=home.digest, wanted=())
    except BundleError as error:
        remedy = f"{_SAVE}, or put that bundle back"
        if not predictor.needs_torch:
            remedy = "put that bundle back"
        raise NotPicklableError(
            f"the bundle this {name} was in is no longer there: {error}; {remedy}"
        ) from error
    threads = None if predictor.variant is None else predictor.threads
    return str(home.path), home.digest, predictor.variant, threads, str(predictor.device)


def _facts(predictor: Any) -> dict[str, Any]:
    """What can be assigned or changed in place, and is no part of `state`."""
    model = getattr(predictor.record.network, "model", None)
    weights = [] if model is None else [*model.parameters()]
    tensors = [] if model is None else [*weights, *model.buffers()]
    return {
        "metadata": predictor.metadata,
        "multi_label": predictor.multi_label,
        "threshold": predictor.threshold,
        "preprocessing": predictor.preprocessing,
        # training changes weights in place, and torch counts that
        # tensors made in inference mode have no count, and raise when asked
        "changes": [0 if one.is_inference() else one._version for one in tensors],
        # a parameter that takes the place of another counts from 0 again
        "weights": [*map(id, weights)],
    }

"""Many images: decoding in threads while the network works, a table with a row for every file.

Every forward pass has the same number of images, the last one being filled up: how a network adds
up depends on the size of the batch, so that only then an image gets the same bits whatever the
images beside it, their number, and those that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from learnkit.data.read_images import chunks, load_ahead
from learnkit.errors import LearnkitError, MissingExtraError, PredictionError
from learnkit.inference.prediction import Result
from learnkit.inference.tta import checked_views

if TYPE_CHECKING:
    import pandas as pd

    from learnkit.backends.session import Session


BATCH = 16  # small enough that filling up the last batch costs little


def check_batch_size(bs: Any) -> None:
    """Raise PredictionError unless `bs` is a whole number from 1 on."""
    if not isinstance(bs, int) or isinstance(bs, bool) or bs < 1:
        raise PredictionError(f"`bs`={bs!r}; a batch has at least one image: give a whole number")


class Predicts(Protocol):
    """What can predict many images: a `Predictor`, with torch or without."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names."""

    @property
    def detects_ood(self) -> bool:
        """Whether predictions say what is out of distribution."""

    def load(self, source: Any) -> Any:
        """One image ready for the network, or an ImageReadError."""

    def try_loaded(self, images: Sequence[Any]) -> list[Result]:
        """For each image that `load` gave its prediction, or the error in its place."""


def predict_stream(
    predictor: Predicts,
    items: Iterable[Any],
    *,
    bs: int,
    n_workers: int,
    tta: int | None = None,
) -> Iterator[tuple[Any, Result]]:
    """Each item with its prediction, or with the error that prevented one, in the order of `items`.

    Every forward pass has `bs` images, the last of them repeated where fewer could be read. While
    one batch is in the network the images of the next two are being decoded. With `tta` each is
    predicted from so many views; else from as many as the predictor has set.
    """
    check_batch_size(bs)
    views = {} if tta is None else {"tta": checked_views(tta)}
    loaded = load_ahead(predictor.load, items, n_ahead=2 * bs, n_workers=n_workers)
    for batch in chunks(loaded, bs):
        images = [image for _, image in batch if not isinstance(image, LearnkitError)]
        found = predictor.try_loaded(padded(images, bs), **views)[: len(images)] if images else []
        show_monitor(predictor, found)
        results = iter(found)
        for item, image in batch:
            yield item, image if isinstance(image, LearnkitError) else next(results)


def show_monitor(predictor: Predicts, results: Sequence[Result]) -> None:
    """Show predictions to the drift monitor of a predictor that may have one."""
    observe = getattr(predictor, "observe", None)
    if observe is not None:
        observe(results)


def padded(images: Sequence[Any], n: int) -> list[Any]:
    """`images`, at least one, and the last of them again until there are `n`."""
    return [*images, *images[-1:] * (n - len(images))]


def padded_run(
    network: Session, images: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None]:
    """(features (N, D), logits (N, C) or None) of at most `BATCH` images uint8 (H, W, channels).

    Always as many go through the network, so that an image's features do not depend on the others.

    Raises:
        PredictionError: the network gives no features.
    """
    filled = np.stack(padded(images, BATCH)) if len(images) else network.no_images()
    features, logits = network.run(filled)
    if features is None:
        raise PredictionError(network.no_features())
    return features[: len(images)], None if logits is None else logits[: len(images)]


def prediction_table(
    results: Iterable[tuple[Any, Result]],
    classes: Sequence[str],
    *,
    probs: bool = True,
    ood: bool = False,
) -> pd.DataFrame:
    """One row per item: path, verdict, label, confidence, error, and, if `probs`, `p(NAME)` each.

    With `ood` the columns is_ood (boolean), ood_score and p_value follow `error`. Rows with an
    error have no label, and NaN for numbers.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    pd = _pandas()
    kinds = dict.fromkeys(("path", "verdict", "label", "confidence", "error"), object)
    kinds |= {"confidence": "float64"}
    kinds |= {"is_ood": "boolean", "ood_score": "float64", "p_value": "float64"} if ood else {}
    rows, values = [], []
    for item, result in results:
        failed = isinstance(result, LearnkitError)
        own = {"error": str(result)} if failed else {k: getattr(result, k, None) for k in kinds}
        rows.append({**own, "path": str(item)})
        if probs:
            values.append([] if failed else result.probs.tolist())
            # who extends the model meanwhile adds columns; earlier rows have NaN there
            classes = classes if failed else max(classes, result.classes, key=len)
    table = pd.DataFrame(rows, columns=list(kinds), dtype=object).astype(kinds)
    if not probs:
        return table
    values = [row + [float("nan")] * (len(classes) - len(row)) for row in values]
    columns = [f"p({name})" for name in classes]
    return table.join(pd.DataFrame(values, columns=columns, index=table.index, dtype="float32"))


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError(
            "a table in memory is a DataFrame, and pandas is not installed: `pip install pandas`, "
            "or write the rows to a file with `out=`"
        ) from error
    return pandas

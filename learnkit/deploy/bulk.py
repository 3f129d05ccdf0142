"""Many images: decoding in threads while the network works, a table with a row for every file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learnkit.deploy.prediction import Prediction
from learnkit.errors import ImageReadError, LearnkitError, PredictionError

if TYPE_CHECKING:
    import pandas as pd

    from learnkit.deploy.predictor import Predictor

Result = Prediction | LearnkitError


def predict_stream(
    predictor: Predictor, items: Iterable[Any], *, bs: int, n_workers: int
) -> Iterator[tuple[Any, Result]]:
    """Each item with its prediction, or with the error that prevented one, in the order of `items`.

    While one batch is in the network the images of the next two are being decoded.
    """
    if bs < 1:
        raise PredictionError(f"`bs`={bs}; a batch has at least one image")
    loaded = _load_ahead(predictor.preprocessing.load, items, n_ahead=2 * bs, n_workers=n_workers)
    for batch in _chunks(loaded, bs):
        images = [image for _, image in batch if isinstance(image, Tensor)]
        results = iter(predictor.try_tensors(torch.stack(images)) if images else ())
        for item, image in batch:
            yield item, next(results) if isinstance(image, Tensor) else image


def _load_ahead(
    load: Callable[[Any], Tensor], items: Iterable[Any], *, n_ahead: int, n_workers: int
) -> Iterator[tuple[Any, Tensor | ImageReadError]]:
    """Each item with `load(item)` or the ImageReadError it raised, at most `n_ahead` waiting."""

    def load_or_error(item: Any) -> Tensor | ImageReadError:
        try:
            return load(item)
        except ImageReadError as error:
            return error

    if n_workers < 1:
        yield from ((item, load_or_error(item)) for item in items)
        return
    pool = ThreadPoolExecutor(n_workers, "learnkit-decode")
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(load_or_error, item)))
            if len(waiting) >= n_ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        for item, future in waiting:
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def prediction_table(
    results: Iterable[tuple[Any, Result]], classes: Sequence[str], *, probs: bool = True
) -> pd.DataFrame:
    """One row per item: path, label, confidence, error, and `p(NAME)` per class if `probs`.

    Rows with an error have no label, and NaN for numbers.
    """
    import pandas as pd

    rows, values = [], []
    for item, result in results:
        failed = isinstance(result, LearnkitError)
        label, confidence = (None, None) if failed else (result.label, result.confidence)
        rows.append((str(item), label, confidence, str(result) if failed else None))
        if probs:
            values.append([float("nan")] * len(classes) if failed else result.probs.tolist())
    table = pd.DataFrame(rows, columns=["path", "label", "confidence", "error"], dtype=object)
    table["confidence"] = table["confidence"].astype("float64")
    if not probs:
        return table
    columns = [f"p({name})" for name in classes]
    return table.join(pd.DataFrame(values, columns=columns, index=table.index, dtype="float32"))


def watched(stream: Iterable[Any], n: int, progress: bool) -> Iterable[Any]:
    """`stream` of `n` items behind a progress bar, if wanted."""
    if not progress:
        return stream
    from tqdm.auto import tqdm

    return tqdm(stream, total=n, desc="predict", unit="img")

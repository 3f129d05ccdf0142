"""Images of all requests at once: decoded in threads, predicted together in forward passes."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from learnkit.errors import LearnkitError
from learnkit.inference.batch import Predicts, show_monitor
from learnkit.inference.prediction import Result

_PATIENCE = 0.005  # seconds a forward pass waits for images that are being decoded


class Batcher:
    """Predicts images for any number of callers, in forward passes they share.

    Args:
        predictor: decodes with `load` and predicts with `try_loaded`.
        batch: images in one forward pass at most.
        n_workers: decoding threads.
        check: raises ImageReadError for images that are not to be decoded.
    """

    def __init__(
        self,
        predictor: Predicts,
        *,
        batch: int,
        n_workers: int,
        check: Callable[[Any], None] = lambda image: None,
    ):
        self._predictor, self._batch, self._check = predictor, batch, check
        self._decoding = ThreadPoolExecutor(n_workers, "learnkit-decode")
        self._passing = ThreadPoolExecutor(1, "learnkit-forward")
        self._changed = threading.Condition()
        self._ready: deque[tuple[_Job, int, Any]] = deque()
        self._n_decoding, self._under_way, self._stopped = 0, False, False

    async def predict(self, images: Sequence[Any]) -> list[Result]:
        """For each image its prediction, or the error in its place, in their order.

        Raises:
            Exception: whatever made a decoder or the forward pass fail that is no LearnkitError.
        """
        job = _Job(len(images))
        # all at once and before any is read: a pass must see that more are coming
        with self._changed:
            self._n_decoding += len(images)
        for number, image in enumerate(images):
            self._decoding.submit(self._decode, job, number, image)
        return await asyncio.wrap_future(job.done)

    def stop(self) -> None:
        """End the threads; whatever nobody waits for any more is dropped."""
        # decoders first: one that ends later would begin a pass in a pool that is shut down
        self._decoding.shutdown(cancel_futures=True)
        with self._changed:
            self._stopped = True
        self._passing.shutdown()

    def drain(self) -> None:
        """End the threads once all that was given is answered."""
        with self._changed:
            idle = lambda: not (self._n_decoding or self._ready or self._under_way)
            self._changed.wait_for(idle)
        self.stop()

    def _decode(self, job: _Job, number: int, image: Any) -> None:
        """Read one image, in a decoding thread."""
        loaded = None
        try:
            self._check(image)
            loaded = (job, number, self._predictor.load(image))
        except LearnkitError as error:
            job.put(number, error)
        except BaseException as error:
            job.fail(error)
            raise
        finally:
            with self._changed:
                self._n_decoding -= 1
                # under the same lock as the count: between the two `drain` would see nothing left
                if loaded is not None:
                    self._ready.append(loaded)
                self._changed.notify_all()
                self._schedule()

    def _schedule(self) -> None:
        """Let the next pass begin, if there is something for it and none is under way."""
        if self._ready and not self._under_way and not self._stopped:
            self._under_way = True
            self._passing.submit(self._pass)

    def _pass(self) -> None:
        """One forward pass, in the thread for those."""
        batch = self._taken()
        try:
            found = self._predictor.try_loaded([image for _, _, image in batch])
            show_monitor(self._predictor, found)
            for (job, number, _), result in zip(batch, found, strict=True):
                job.put(number, result)
        except LearnkitError as error:
            for job, number, _ in batch:
                job.put(number, error)
        except BaseException as error:
            for job, _, _ in batch:
                job.fail(error)
            raise
        finally:
            with self._changed:
                self._under_way = False
                self._schedule()
                self._changed.notify_all()

    def _taken(self) -> list[tuple[_Job, int, Any]]:
        """The images of the next pass: a full batch, or those there are when no more are coming."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._ready) >= self._batch or not self._n_decoding, _PATIENCE
            )
            n = min(self._batch, len(self._ready))
            return [self._ready.popleft() for _ in range(n)]


class _Job:
    """Images whose caller waits for all of them."""

    def __init__(self, n: int):
        self._results: list[Any] = [None] * n
        self._n_left, self._lock = n, threading.Lock()
        self.done: Future[list[Result]] = Future()
        self.done.set_running_or_notify_cancel()  # a caller who gives up changes nothing here
        if not n:
            self.done.set_result([])

    def put(self, number: int, result: Result) -> None:
        """Note what became of one image."""
        with self._lock:
            self._results[number] = result
            self._n_left -= 1
            # done already if one of them met an error that is none of learnkit's
            if not self._n_left and not self.done.done():
                self.done.set_result(self._results)

    def fail(self, error: BaseException) -> None:
        """Note that nothing will become of them."""
        with self._lock:
            self._n_left -= 1
            if not self.done.done():
                self.done.set_exception(error)

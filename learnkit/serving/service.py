"""The service: what a server does with each request, whatever the form of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnkit.errors import LearnkitError, PredictionError
from learnkit.inference.monitor import Monitor
from learnkit.inference.prediction import Prediction, Result
from learnkit.report.document import Span
from learnkit.serving.auth import check_bearer, is_bearer
from learnkit.serving.batching import Batcher
from learnkit.serving.http_errors import Refusal
from learnkit.serving.limits import Gate, Limits
from learnkit.serving.metrics import Gauges, Metrics, drift_gauges
from learnkit.serving.pages import front_page
from learnkit.serving.served_model import (
    ServedModel,
    alpha_in,
    flag_in,
    groups_in,
    labels_for,
    model_facts,
)
from learnkit.serving.unknown_images import UnknownImages
from learnkit.serving.uploads import Upload, check_pixels, read_uploads

if TYPE_CHECKING:
    from starlette.requests import Request

LOG = logging.getLogger("learnkit.serving")
UNKNOWN = "UNKNOWN"
_AGAIN = (
    "move that bundle away, or make room, and the server saves with its next change, its next "
    "reload (/reload or SIGHUP), or at its end, then into a folder beside it if need be"
)
Answer = tuple[int, Any]


@dataclass(frozen=True)
class Deployment:
    """One model as it is served: the predictor, how it learns, and how it predicts for many."""

    predictor: Any
    served: ServedModel
    batcher: Batcher

    @classmethod
    def of(
        cls, predictor: Any, save_to: str | os.PathLike | None, limits: Limits, n_workers: int
    ) -> Deployment:
        """The deployment of a predictor."""
        most = min(limits.pixels, predictor.preprocessing.max_pixels)
        check = partial(check_pixels, most=most)
        batcher = Batcher(predictor, batch=limits.batch, n_workers=n_workers, check=check)
        return cls(predictor, ServedModel(predictor, save_to, check=check), batcher)

    @property
    def monitor(self) -> Monitor | None:
        """The drift monitor, if the model can have one; not after its only class was undone."""
        has_one = getattr(self.predictor, "is_monitored", False)
        knows = getattr(self.predictor, "knows_classes", True)
        return self.predictor.monitor() if has_one and knows else None


class Service:
    """What the application does with requests; see `create_app`.

    Args:
        predictor: the model.
        allow_extend: whether who has the token may change it.
        token: of who may change or reload it.
        predict_token: of who may predict; None lets everybody.
        reopen: opens the model again.
        save_to: see `create_app`, as for the others.
        unknown: keeps images out of distribution.

    Attributes:
        is_alone: no other process serves at the same address.
        is_labelled: people teach the model on a page of this server, /label.
    """

    def __init__(
        self,
        predictor: Any,
        *,
        allow_extend: bool,
        token: str | None,
        predict_token: str | None,
        reopen: Callable[[], Any] | None,
        save_to: str | os.PathLike | None,
        limits: Limits | None,
        n_workers: int,
        drift_file: str | os.PathLike | None,
        unknown: UnknownImages | None = None,
    ):
        self.limits = limits or Limits()
        self.gate = Gate(self.limits)
        self._token, self._predict_token = token, predict_token
        self._allow_extend, self._reopen = allow_extend, reopen
        self._deploy = partial(
            Deployment.of, save_to=save_to, limits=self.limits, n_workers=n_workers
        )
        self.deployment: Deployment = self._deploy(predictor)
        # one thread: changes, saves and reloads come one after the other
        self._learning = ThreadPoolExecutor(1, "learnkit-learn")
        self.save_error: LearnkitError | None = None
        self.has_saved = self._is_reloading = False
        self.saved_beside: Path | None = None
        self.n_answers = self.n_predicted = 0
        self._metrics = Metrics(self._gauges)
        self.is_alone, self.is_labelled = True, False
        self._drift_file, self.unknown = drift_file, unknown
        self._watch()

    @property
    def served(self) -> ServedModel:
        """What learns, and is saved."""
        return self.deployment.served

    @property
    def monitor(self) -> Monitor | None:
        """The drift monitor, if the model can have one."""
        return self.deployment.monitor

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """When the application ends, save what an earlier attempt could not."""
        try:
            yield
        finally:
            self._learning.shutdown()  # a change that has begun is completed, and saved
            self.deployment.batcher.stop()
            if self.unknown is not None:
                self.unknown.close()
            self.close()
            self._save_drift()

    def save(self) -> None:
        """Save what was learned; `save_error` says why that failed."""
        try:
            self.served.save()
            self.save_error = None
            self.has_saved = self.has_saved or self.served.has_saved
        except LearnkitError as error:
            self.save_error = error
            LOG.error("what the model learned is not saved: %s. Here: %s", error, _AGAIN)

    def close(self) -> None:
        """Save for the last time; in a folder beside the place for it where that is refused."""
        self.save()
        if self.save_error is None or self.saved_beside is not None:
            return
        with contextlib.suppress(LearnkitError):  # `save_error` says already why
            self.saved_beside = self.served.save_beside()
            LOG.error("what the model learned is in %s", self.saved_beside)

    def _watch(self) -> None:
        """Watch for drift from now on, or from when the model knows a class, if it ever can tell.

        Raises:
            BundleCorruptError: the file of what was seen was not written by a monitor.
        """
        predictor = self.deployment.predictor
        able = getattr(predictor, "detects_ood", False) and hasattr(predictor, "monitor")
        if able and getattr(predictor, "knows_classes", True):
            predictor.monitor(file=self._drift_file)

    def _try_watch(self) -> None:
        try:
            self._watch()
        except LearnkitError as error:
            LOG.error("drift is not watched: %s", error)

    def _save_drift(self) -> None:
        if self.monitor is None:
            return
        try:
            self.monitor.save()
        except LearnkitError as error:
            LOG.error("what the drift monitor saw is not saved: %s", error)

    async def predict(self, request: Request) -> Answer:
        """Status and answer: a prediction or an error for every image, in their order.

        `alpha` asks for prediction sets that miss the true class of so many images at most.
        """
        self.check_client(request.headers)
        with self.gate.request() as ticket:
            uploads, fields = await read_uploads(request, ticket, self.limits)
            alpha = alpha_in(fields)
            deployment = self.deployment  # no `await` from here until it has the images
            results = await deployment.batcher.predict(uploads)
            if self.unknown is not None:
                self.unknown.offer(uploads, results)
        answers = [
            _answer(upload, result, alpha) for upload, result in zip(uploads, results, strict=True)
        ]
        content = {"model": deployment.served.digest, "predictions": answers}
        self._metrics.predicted(results)
        n_predicted = sum(isinstance(result, Prediction) for result in results)
        self.n_predicted += n_predicted
        if n_predicted:
            return 200, content
        error = answers[0]["error"] if len(answers) == 1 else "no image could be predicted"
        return 422, {"error": error, **content}

    async def extend(self, request: Request) -> Answer:
        """Status and answer: what changed. Nothing of the request is read without the token.

        An image counts once, however often it is sent, unless the form says `again=true`. The
        field `group` says what images belong to, once for all or once for each.
        What was learned is on disk when the answer says `saved`: killing the process loses nothing
        of it. Other requests are predicted meanwhile.
        """
        self._check_teacher(request.headers)
        self.served.check_can_extend()
        with self.gate.request() as ticket:
            uploads, fields = await read_uploads(request, ticket, self.limits)
            known = self.deployment.predictor.classes
            labels = labels_for(len(uploads), fields.get("label", []), known)
            how = {"again": flag_in(fields, "again"), "group": groups_in(fields, len(uploads))}
            answer = await self._change(lambda served: served.extend(uploads, labels, **how))
            self._metrics.learned(sum((answer[1]["change"]["images"] or {}).values()))
            return answer

    async def undo(self, request: Request) -> Answer:
        """Status and answer: what changed by taking back the last change, of three at most."""
        self._check_teacher(request.headers)
        self.served.check_can_extend()
        with self.gate.request():
            return await self._change(lambda served: served.undo())

    async def _change(self, change: Callable[[ServedModel], dict[str, Any]]) -> Answer:
        work = partial(self._changed, change)
        return 200, await asyncio.get_running_loop().run_in_executor(self._learning, work)

    def _changed(self, change: Callable[[ServedModel], dict[str, Any]]) -> dict[str, Any]:
        """Change the model that is served now and save it, in the thread for that."""
        found = change(self.served)
        self.save()
        if self.monitor is None:
            self._try_watch()
        return {
            "model": self.served.digest,
            "change": found,
            "saved": self.served.n_unsaved == 0,
        }

    async def reload(self, request: Request) -> Answer:
        """Status and answer: which model is served once it has been opened again.

        The former one answers until the new one is ready, and goes on if that cannot be opened.
        """
        if self.is_labelled:
            raise Refusal(403, "this server takes in by itself what others save of its model")
        if self._token is None:
            raise Refusal(403, "this server reloads for nobody; start it with --token-file")
        check_bearer(request.headers.get("authorization"), self._token)
        if not self.is_alone:
            raise Refusal(
                501,
                "several processes serve this model, and this is one of them; send SIGHUP to "
                "the server, which reloads all",
            )
        return 200, await self.reload_model()

    async def reload_model(self) -> dict[str, Any]:
        """Serve the model as it is on disk now; requests under way end with the former one.

        Raises:
            Refusal: 409 the new one cannot be opened, what the former one learned is not saved, or
                another reload is under way; 501 it was not opened from a disk. The former one goes
                on.
        """
        if self._reopen is None:
            raise Refusal(501, "this application was given its model and cannot open it again")
        if self._is_reloading:
            raise Refusal(409, "the model is being reloaded already; wait for that")
        # set before the first `await`: no other reload comes in between
        self._is_reloading, loop = True, asyncio.get_running_loop()
        try:
            former = await loop.run_in_executor(self._learning, self._replace)
        finally:
            self._is_reloading = False
        # it gets no images any more: whoever took it before gave it theirs without an `await`
        loop.run_in_executor(None, former.batcher.drain)
        return {
            "model": self.served.digest,
            "former": former.served.digest,
            "classes": list(self.deployment.predictor.classes),
        }

    def _replace(self) -> Deployment:
        """Open the model again and serve it, in the thread for changes; the former one."""
        former = self.deployment
        self.save()
        if former.served.n_unsaved:
            raise Refusal(
                409,
                f"what the model learned would be lost: {self.save_error or 'it is not saved'}. "
                f"Here: {_AGAIN}",
            )
        try:
            # after the save: it may be what was just written that is opened
            predictor = self._reopen()
        except LearnkitError as error:
            raise Refusal(409, f"not reloaded, the former model goes on: {error}") from error
        # before the new monitor is made, which goes on from this file
        self._save_drift()
        self.deployment = self._deploy(predictor)
        self._try_watch()
        return former

    async def health(self, request: Request) -> Answer:
        """Status and answer: how much is waiting, what is not saved yet, and whether images drift.

        The status of the server is "ok" also while images drift: a restart would not mend them.
        Where predicting takes a token, so does `drift`, which names classes.
        """
        is_told = self.monitor is not None and self.is_client(request.headers)
        return 200, {
            "status": "ok",
            **self._waiting(),
            "drift": self.monitor.to_dict() if is_told else None,
        }

    async def ready(self, request: Request) -> Answer:
        """Status and answer: whether images sent now are predicted, for what shares out requests.

        Not while as many wait as may, nor before the model has learned its first class.
        """
        if self.gate.is_full:
            raise self.gate.busy()
        if not getattr(self.deployment.predictor, "knows_classes", True):
            raise Refusal(503, "the model knows no class yet; teach it some with /extend")
        return 200, {"ready": True}

    def _waiting(self) -> dict[str, int]:
        """What waits and what is not saved, by name."""
        return {
            "images_waiting": self.gate.n_images,
            "requests": self.gate.n_requests,
            "unsaved_changes": self.served.n_unsaved,
        }

    def _gauges(self) -> Gauges:
        waiting = {name: [(None, n)] for name, n in self._waiting().items()}
        head = getattr(self.deployment.predictor, "continual", None)
        known = {} if head is None else {"class_images": [*head.n_images.items()]}
        return {**waiting, **known, **drift_gauges(self.monitor)}

    def metrics(self, headers: Mapping[str, str]) -> bytes:
        """What was answered, is waiting and is known, and whether images drift, for Prometheus.

        Counters begin at the server's start. Beyond 200 classes those that came later are counted
        together.
        """
        self.check_client(headers)
        return self._metrics.text()

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.n_answers += 1
        self._metrics.answered(path, status, seconds)

    async def model(self, request: Request) -> Answer:
        """Status and answer: what is served."""
        self.check_client(request.headers)
        return 200, {
            **model_facts(self.deployment.predictor),
            "model": self.served.digest,
            "can_extend": self._allow_extend and self.served.can_extend,
            "limits": vars(self.limits),
        }

    def front(self, headers: Mapping[str, str], address: str) -> bytes:
        """The page that says in a browser what this is; of the model only to who may predict."""
        predictor, facts = self.deployment.predictor, {}
        can_extend = self._allow_extend and self.served.can_extend
        if self.is_client(headers):
            height, width = predictor.preprocessing.size
            facts = {
                "model": Span(self.served.digest, "code"),
                "images are scaled to": f"{height} x {width} pixels",
                "unknown images": "are told" if predictor.detects_ood else "are not told",
                "classes": predictor.classes,
            }
        facts |= {
            "predicting": "takes a token" if self._predict_token else "is open to all",
            "teaching": self._teaching(can_extend),
        }
        takes = self._predict_token is not None
        return front_page(facts, address=address, takes_token=takes, learns=can_extend)

    def _teaching(self, can_extend: bool) -> Any:
        if self.is_labelled:
            return "on the page ", Span("label", "link"), ", for who has its link"
        return "takes a token" if can_extend else "is not possible"

    def is_client(self, headers: Mapping[str, str]) -> bool:
        """Whether who sends these headers may predict: everybody, where that takes no token."""
        tokens = [token for token in (self._predict_token, self._token) if token is not None]
        # who may teach may predict, so both tokens count
        open_to_all = self._predict_token is None
        return open_to_all or is_bearer(headers.get("authorization"), *tokens)

    def check_client(self, headers: Mapping[str, str]) -> None:
        """Raise Refusal 401 unless `is_client`."""
        if not self.is_client(headers):
            check_bearer(None, str(self._predict_token))

    def _check_teacher(self, headers: Mapping[str, str]) -> None:
        if self.is_labelled:
            raise Refusal(403, "this server is taught on its page /label alone")
        if not self._allow_extend or self._token is None:
            raise Refusal(
                403, "this server does not learn; start it with --allow-extend and a token"
            )
        check_bearer(headers.get("authorization"), self._token)


def _answer(upload: Upload, result: Result, alpha: float | None) -> dict[str, Any]:
    """What a client is told of one image.

    Raises:
        Refusal: 501 prediction sets of a model that has nothing to calibrate them by.
    """
    if not isinstance(result, Prediction):
        return {"name": upload.name, "error": str(result)}
    try:
        found = result.to_dict(alpha=alpha)
    except PredictionError as error:
        raise Refusal(501, str(error)) from error
    decision = UNKNOWN if result.is_ood else found["label"]
    return {"name": upload.name, "decision": decision, **found}

"""A model as a web application: /predict, /extend, /health, /model, /metrics.

Every answer is JSON, but for /metrics, which Prometheus reads.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from learnkit.errors import LearnkitError, MissingExtraError
from learnkit.inference.monitor import Monitor
from learnkit.inference.prediction import Prediction
from learnkit.serving.auth import check_bearer, check_exposure, checked_token
from learnkit.serving.batching import Batcher
from learnkit.serving.http_errors import Refusal, as_json
from learnkit.serving.limits import Gate, Limits
from learnkit.serving.metrics import METRICS_TYPE, metrics_text
from learnkit.serving.model_info import FORM, model_facts
from learnkit.serving.served_model import ServedModel, flag_in, groups_in, labels_for
from learnkit.serving.uploads import Upload, check_pixels, read_uploads

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

LOG = logging.getLogger("learnkit.serving")


def create_app(
    predictor: Any,
    *,
    allow_extend: bool = False,
    token: str | None = None,
    save_to: str | os.PathLike | None = None,
    limits: Limits | None = None,
    n_workers: int = 2,
    drift_file: str | os.PathLike | None = None,
) -> "FastAPI":
    """The FastAPI application that serves `predictor`; any ASGI server runs it, in one process.

    Args:
        predictor: any predictor of learnkit; it belongs to the application from now on.
        allow_extend: let clients with the token teach the model new images.
        token: 16 characters or more that only those have.
        save_to: bundle to write what was learned to, before the client is told that it was.
        limits: of requests, and of all that wait.
        n_workers: decoding threads.
        drift_file: where the drift monitor keeps what it saw, to go on after a restart; nowhere if
            None. It watches wherever the model detects images out of distribution.

    Raises:
        BundleCorruptError: `drift_file` was not written by a monitor.
        ServingError: `allow_extend` without a `token`, or a bad one.
        MissingExtraError: FastAPI is not installed.
    """
    check_exposure("127.0.0.1", allow_extend, token)
    if token is not None:
        checked_token(token)
    try:
        from fastapi import FastAPI
    except ImportError as error:
        raise MissingExtraError(
            'serving needs FastAPI, which is not installed: `pip install "learnkit[serve]"`'
        ) from error
    service = Service(predictor, token if allow_extend else None, save_to, limits, n_workers)
    service.watch(drift_file)
    # no pages of documentation: they load scripts from elsewhere
    app = FastAPI(title="learnkit", docs_url=None, redoc_url=None, lifespan=service.lifespan)
    app.state.service = service
    for handle in (service.predict, service.extend):
        app.post(f"/{handle.__name__}", openapi_extra={"requestBody": FORM})(_answering(handle))
    for handle in (service.health, service.model):
        app.get(f"/{handle.__name__}")(_answering(handle))
    app.get("/metrics")(_metrics_of(service))
    _answer_errors(app)
    return app


class Service:
    """What the application does with requests; see `create_app`."""

    def __init__(
        self,
        predictor: Any,
        token: str | None,
        save_to: str | os.PathLike | None,
        limits: Limits | None,
        n_workers: int,
    ):
        self.predictor, self._token = predictor, token
        self.limits = limits or Limits()
        self.gate = Gate(self.limits)
        most = min(self.limits.pixels, predictor.preprocessing.max_pixels)
        check = partial(check_pixels, most=most)
        self.served = ServedModel(predictor, save_to, check=check)
        self.batcher = Batcher(predictor, batch=self.limits.batch, n_workers=n_workers, check=check)
        self._learning = ThreadPoolExecutor(1, "learnkit-learn")
        self.save_error: LearnkitError | None = None

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """When the application ends, save what an earlier attempt could not."""
        try:
            yield
        finally:
            self.batcher.stop()
            self._learning.shutdown()  # a change that has begun is completed, and saved
            self.save()
            self._save_drift()

    def save(self) -> None:
        """Save what was learned; `save_error` says why that failed."""
        try:
            self.served.save()
            self.save_error = None
        except LearnkitError as error:
            self.save_error = error
            LOG.error("what the model learned is not saved: %s", error)

    def watch(self, drift_file: str | os.PathLike | None) -> None:
        """Watch for drift from now on, or from when the model knows a class, if it ever can tell.

        Raises:
            BundleCorruptError: `drift_file` was not written by a monitor.
        """
        self._drift_file = drift_file
        able = getattr(self.predictor, "detects_ood", False) and hasattr(self.predictor, "monitor")
        if able and getattr(self.predictor, "knows_classes", True):
            self.predictor.monitor(file=drift_file)

    def _watch_first_class(self) -> None:
        if self.monitor is None:
            try:
                self.watch(self._drift_file)
            except LearnkitError as error:
                LOG.error("drift is not watched: %s", error)

    @property
    def monitor(self) -> Monitor | None:
        """The drift monitor, if the model can have one."""
        has_one = getattr(self.predictor, "is_monitored", False)
        return self.predictor.monitor() if has_one else None

    def _save_drift(self) -> None:
        if self.monitor is None:
            return
        try:
            self.monitor.save()
        except LearnkitError as error:
            LOG.error("what the drift monitor saw is not saved: %s", error)

    async def predict(self, request: "Request") -> tuple[int, Any]:
        """Status and answer: a prediction or an error for every image, in their order."""
        with self.gate.request() as ticket:
            uploads, _ = await read_uploads(request, ticket, self.limits)
            results = await self.batcher.predict(uploads)
        answers = [
            {
                "name": upload.name,
                **(result.to_dict() if isinstance(result, Prediction) else {"error": str(result)}),
            }
            for upload, result in zip(uploads, results, strict=True)
        ]
        content = {"model": self.served.digest, "predictions": answers}
        if any(isinstance(result, Prediction) for result in results):
            return 200, content
        error = answers[0]["error"] if len(answers) == 1 else "no image could be predicted"
        return 422, {"error": error, **content}

    async def extend(self, request: "Request") -> tuple[int, Any]:
        """Status and answer: what changed. Nothing of the request is read without the token.

        An image counts once, however often it is sent, unless the form says `again=true`. The
        field `group` says what images belong to, once for all or once for each.
        What was learned is on disk when the answer says `saved`: killing the process loses nothing
        of it. Other requests are predicted meanwhile.
        """
        if self._token is None:
            raise Refusal(
                403, "this server does not learn; start it with --allow-extend and a token"
            )
        check_bearer(request.headers.get("authorization"), self._token)
        self.served.check_can_extend()
        with self.gate.request() as ticket:
            uploads, fields = await read_uploads(request, ticket, self.limits)
            labels = labels_for(len(uploads), fields.get("label", []))
            how = {"again": flag_in(fields, "again"), "group": groups_in(fields, len(uploads))}
            work = partial(self._learn, uploads, labels, **how)
            answer = await asyncio.get_running_loop().run_in_executor(self._learning, work)
        return 200, answer

    def _learn(self, uploads: list[Upload], labels: list[str], **how: Any) -> dict[str, Any]:
        change = self.served.extend(uploads, labels, **how)
        self.save()
        self._watch_first_class()
        saved = self.served.n_unsaved == 0
        return {"model": self.served.digest, "change": change, "saved": saved}

    async def health(self, request: "Request") -> tuple[int, Any]:
        """Status and answer: how much is waiting, what is not saved yet, and whether images drift.

        The status of the server is "ok" also while images drift: a restart would not mend them.
        """
        return 200, {
            "status": "ok",
            "images_waiting": self.gate.n_images,
            "requests": self.gate.n_requests,
            "unsaved_changes": self.served.n_unsaved,
            "drift": None if self.monitor is None else self.monitor.to_dict(),
        }

    def metrics(self) -> str:
        """What `health` says, for Prometheus."""
        gauges = {
            "images_waiting": self.gate.n_images,
            "requests": self.gate.n_requests,
            "unsaved_changes": self.served.n_unsaved,
        }
        return metrics_text(gauges, self.monitor)

    async def model(self, request: "Request") -> tuple[int, Any]:
        """Status and answer: what is served."""
        return 200, {
            **model_facts(self.predictor),
            "model": self.served.digest,
            "can_extend": self._token is not None and self.served.can_extend,
            "limits": vars(self.limits),
        }


def _answering(
    handle: Callable[["Request"], Awaitable[tuple[int, Any]]],
) -> Callable[["Request"], Awaitable["Response"]]:
    """An endpoint of FastAPI that answers what `handle` returns, or refuses, as JSON."""
    from starlette.requests import Request
    from starlette.responses import Response

    async def endpoint(request: Request) -> Response:
        headers: dict[str, str] = {}
        try:
            status, content = await handle(request)
        except Refusal as refusal:
            status, headers = refusal.status, refusal.headers
            content = {"error": str(refusal), **refusal.more}
        return Response(as_json(content), status, headers, media_type="application/json")

    endpoint.__name__, endpoint.__doc__ = handle.__name__, handle.__doc__
    return endpoint


def _metrics_of(service: Service) -> Callable[[], Awaitable["Response"]]:
    from starlette.responses import Response

    async def metrics() -> Response:
        """What /health says, in the text format of Prometheus."""
        return Response(service.metrics(), media_type=METRICS_TYPE)

    return metrics


def _answer_errors(app: "FastAPI") -> None:
    """Say as JSON what FastAPI would say otherwise, and nothing of what happened inside."""
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response

    async def refused(request: Request, error: Exception) -> Response:
        content = as_json({"error": f"{error.detail}; see /openapi.json for what there is"})
        return Response(content, error.status_code, error.headers, media_type="application/json")

    async def failed(request: Request, error: Exception) -> Response:
        sentence = "the server failed at this request; its log says why"
        return Response(as_json({"error": sentence}), 500, media_type="application/json")

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, failed)

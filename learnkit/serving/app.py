"""A model as a web application: predict, extend, undo, reload; health, metrics, and what there is.

Answers are JSON, or a line of text for each image where the client asks for plain text; /metrics
is what Prometheus reads.
"""

import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from learnkit.errors import MissingExtraError, ServingError
from learnkit.serving.access_log import Accounted, request_id
from learnkit.serving.auth import check_different, check_exposure, checked_token
from learnkit.serving.http_errors import Refusal, as_json, as_plain, prefers_plain
from learnkit.serving.limits import Limits
from learnkit.serving.metrics import METRICS_TYPE
from learnkit.serving.openapi import openapi_document
from learnkit.serving.pages import PAGE_HEADERS, docs_page
from learnkit.serving.service import Service
from learnkit.serving.unknown_images import MOST_KEPT, UnknownImages

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
    predict_token: str | None = None,
    save_to: str | os.PathLike | None = None,
    limits: Limits | None = None,
    n_workers: int = 2,
    drift_file: str | os.PathLike | None = None,
    reopen: Callable[[], Any] | None = None,
    keep_unknown: str | os.PathLike | None = None,
    keep_at_most: int = MOST_KEPT,
) -> "FastAPI":
    """The FastAPI application that serves `predictor`; any ASGI server runs it, in one process.

    Args:
        predictor: any predictor of learnkit; it belongs to the application from now on.
        allow_extend: let clients with the token teach the model new images, and take that back.
        token: 16 characters or more that only those have; they may also reload and predict.
        predict_token: 16 characters or more that only those have who may predict, and be told of
            the model; None lets everybody.
        save_to: bundle to write what was learned to, before the client is told that it was.
        limits: of requests, and of all that wait.
        n_workers: decoding threads.
        drift_file: where the drift monitor keeps what it saw, to go on after a restart; nowhere if
            None. It watches wherever the model detects images out of distribution.
        reopen: gives the predictor as it is on disk now, for /reload; None reloads nothing.
        keep_unknown: folder that images out of distribution are kept in, for `learnkit label`.
        keep_at_most: images in it, beyond which none come in.

    Raises:
        BundleCorruptError: `drift_file` was not written by a monitor.
        ServingError: `allow_extend` without a `token`, a bad one, or one for both; a folder for
            unknown images that cannot be used, or a model that tells none.
        MissingExtraError: FastAPI is not installed.
    """
    check_exposure("127.0.0.1", allow_extend, token)
    for name, one in (("`token`", token), ("`predict_token`", predict_token)):
        if one is not None:
            checked_token(one, name)
    check_different(token, predict_token)
    try:
        from fastapi import FastAPI
    except ImportError as error:
        raise MissingExtraError(
            'serving needs FastAPI, which is not installed: `pip install "learnkit[serve]"`'
        ) from error
    service = Service(
        predictor,
        allow_extend=allow_extend,
        token=token,
        predict_token=predict_token,
        reopen=reopen,
        save_to=save_to,
        limits=limits,
        n_workers=n_workers,
        drift_file=drift_file,
        unknown=_unknown_images(predictor, keep_unknown, keep_at_most),
    )

    class Application(FastAPI):
        """Whatever is answered, and by whichever part of it, has an id and a line in the log."""

        def build_middleware_stack(self) -> Any:
            # outermost, around Starlette's handling of errors: answers with 500 are counted, too
            return Accounted(_uncrowded(super().build_middleware_stack(), service), service.observe)

        def openapi(self) -> dict[str, Any]:
            return document

    # no pages of FastAPI's: they load scripts from elsewhere
    app = Application(title="learnkit", docs_url=None, redoc_url=None, lifespan=service.lifespan)
    app.state.service = service
    posted = (service.predict, service.extend, service.undo, service.reload)
    asked = (service.health, service.ready, service.model)
    for handle in posted:
        app.post(f"/{handle.__name__}")(_answering(handle))
    for handle in asked:
        app.api_route(f"/{handle.__name__}", methods=["GET", "HEAD"])(_answering(handle))
    app.get("/metrics")(_metrics_of(service))
    docs = {one.__name__: inspect.getdoc(one) or "" for one in (*posted, *asked, service.metrics)}
    document = openapi_document(docs, predict_token=predict_token is not None)
    _serve_pages(app, service)
    _answer_errors(app)
    return app


def _unknown_images(
    predictor: Any, folder: str | os.PathLike | None, most: int
) -> UnknownImages | None:
    """What keeps unknown images, if any are to be kept."""
    if folder is None:
        return None
    if not getattr(predictor, "detects_ood", False):
        raise ServingError(
            "--keep-unknown keeps images that the model flags as unknown, and this one tells none; "
            "serve one from `learnkit train --continual`"
        )
    return UnknownImages(folder, most)


def _answering(
    handle: Callable[["Request"], Awaitable[tuple[int, Any]]],
) -> Callable[["Request"], Awaitable["Response"]]:
    """An endpoint of FastAPI that answers what `handle` returns, or refuses."""
    from starlette.requests import Request
    from starlette.responses import Response

    async def endpoint(request: Request) -> Response:
        try:
            status, content = await handle(request)
        except Refusal as refusal:
            return _refusing(request, refusal)
        return _response(request, status, content)

    endpoint.__name__, endpoint.__doc__ = handle.__name__, handle.__doc__
    return endpoint


def _response(
    request: "Request",
    status: int,
    content: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
) -> "Response":
    """The answer, as text where the client prefers that and there is one; errors have the id."""
    from starlette.responses import Response

    if prefers_plain(request.headers.get("accept", "")):
        text = as_plain(content)
        if text is not None:
            return Response(text, status, headers, media_type="text/plain")
    if "error" in content:
        content = {**content, "request_id": request_id(request.scope)}
    return Response(as_json(content), status, headers, media_type="application/json")


def _refusing(request: "Request", refusal: Refusal) -> "Response":
    """The answer that a refusal is."""
    content = {"error": str(refusal), **refusal.more}
    return _response(request, refusal.status, content, refusal.headers)


def _uncrowded(app: Any, service: Service) -> Any:
    """The ASGI application `app`, which answers nothing but /health while it is too crowded."""
    from starlette.requests import Request

    async def served(scope: dict[str, Any], receive: Any, send: Any) -> None:
        # whoever watches /health would end a server that is only asked too much
        if scope["type"] == "http" and service.gate.is_crowded and scope["path"] != "/health":
            answer = _refusing(Request(scope), service.gate.crowded())
            await answer(scope, receive, send)
        else:
            await app(scope, receive, send)

    return served


def _metrics_of(service: Service) -> Callable[["Request"], Awaitable["Response"]]:
    from starlette.requests import Request
    from starlette.responses import Response

    async def metrics(request: Request) -> Response:
        """What Prometheus reads."""
        try:
            return Response(service.metrics(request.headers), media_type=METRICS_TYPE)
        except Refusal as refusal:
            return _refusing(request, refusal)

    return metrics


def _serve_pages(app: "FastAPI", service: Service) -> None:
    from starlette.requests import Request
    from starlette.responses import Response

    async def front(request: Request) -> Response:
        """What this server is, for people."""
        page = service.front(request.headers, str(request.base_url).rstrip("/"))
        return Response(page, headers=PAGE_HEADERS, media_type="text/html")

    async def docs() -> Response:
        """What can be asked, for people."""
        page = docs_page(app.openapi())
        return Response(page, headers=PAGE_HEADERS, media_type="text/html")

    app.get("/")(front)
    app.get("/docs")(docs)


def _answer_errors(app: "FastAPI") -> None:
    """Say what FastAPI would say otherwise in our form, and nothing of what happened inside."""
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response

    async def refused(request: Request, error: Exception) -> Response:
        content = {"error": f"{error.detail}; see /openapi.json for what there is"}
        return _response(request, error.status_code, content, error.headers)

    async def failed(request: Request, error: Exception) -> Response:
        # Starlette raises it again after this answer, and uvicorn logs the traceback, without an id
        LOG.error("request %s failed: %s", request_id(request.scope), type(error).__name__)
        sentence = "the server failed at this request; its log says why"
        return _response(request, 500, {"error": sentence})

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, failed)

"""A server for one model in one process, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.backends.processor import n_threads
from learnkit.deploy.hub_bundle import located
from learnkit.errors import MissingExtraError, ServingError, number_of
from learnkit.inference.monitor import drift_file
from learnkit.serving.access_log import print_access_log
from learnkit.serving.app import create_app
from learnkit.serving.auth import check_different, check_exposure, is_loopback
from learnkit.serving.http_errors import Refusal
from learnkit.serving.limits import Limits
from learnkit.serving.protocol import impatient, quiet
from learnkit.serving.service import Service
from learnkit.serving.unknown_images import MOST_KEPT
from learnkit.serving.workers import run_workers
from learnkit.storage.filesystem import locked
from learnkit.storage.write_folder import check_target

if TYPE_CHECKING:
    from learnkit.deploy.predictor import Predictor
    from learnkit.deploy.runtime_predictor import RuntimePredictor

LOG = logging.getLogger("learnkit.serving")
_GRACE_SECONDS = 30  # for requests under way when the server is told to stop
_FREE_OF_TORCH = ("onnxruntime-", "openvino-")


def serve(
    path: str | os.PathLike,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_extend: bool = False,
    token: str | None = None,
    predict_token: str | None = None,
    save_to: str | os.PathLike | None = None,
    limits: Limits | None = None,
    variant: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    n_workers: int = 2,
    processes: int = 1,
    keep_unknown: str | os.PathLike | None = None,
    keep_at_most: int = MOST_KEPT,
    say: Callable[[str], object] = print,
) -> None:
    """Serve the model exported to `path` until SIGINT or SIGTERM.

    Then requests under way are answered. What is learned is saved at each request for it, before
    that is answered. What the drift monitor sees is kept beside the model, in NAME.drift.json.
    SIGHUP opens the model again, as /reload does: what was saved to `save_to`, once something was.
    Each request is a line on the standard output, see `log_request`.

    Args:
        path: folder of an exported model, or "hf-hub:OWNER/NAME".
        host: address to listen at; the default is reached from this machine only.
        port: 0 for any that is free.
        allow_extend: see `create_app`, as for the tokens, `limits` and `n_workers`.
        token: see there.
        predict_token: see there.
        save_to: bundle for what was learned; default `path`, whose content is replaced.
        limits: see there.
        variant: of the bundle, such as "onnxruntime-int8", which runs without torch unless it may
            learn; or "float32". Default the one the bundle was saved from.
        threads: processor threads for the forward pass, whichever backend runs it; default all,
            shared out among `processes`.
        device: where the network runs: "cpu", or another that `learnkit devices` lists.
        n_workers: see there.
        processes: that serve at one address, each with the model in its memory, where nobody
            teaches. /metrics counts over all of them; each watches for drift in the images it
            gets, which is kept nowhere; SIGHUP reloads all, /reload none.
        keep_unknown: see `create_app`, as for `keep_at_most`.
        keep_at_most: see there.
        say: is told in one line each what is served, and where it is ready.

    Raises:
        ServingError: an address that cannot be used, or that exposes `extend` without a token;
            several `processes` that would learn, each something else; a model that another program
            is teaching.
        BundleError: no sound model at `path`, or no sound NAME.drift.json beside it.
        BundleWriteError: what was learned could not be saved.
    """
    uvicorn_module()  # before anything is loaded
    check_exposure(host, allow_extend, token)
    check_different(token, predict_token)
    check_processes(processes, allow_extend)
    save_to = path if save_to is None else save_to
    if allow_extend:
        check_target(Path(save_to))
    listener = bound_socket(host, port)
    work = partial(
        serve_at,
        listener,
        path,
        allow_extend=allow_extend,
        token=token,
        predict_token=predict_token,
        save_to=save_to,
        limits=limits or Limits(),
        variant=variant,
        threads=n_threads() // processes or 1 if threads is None and processes > 1 else threads,
        device=device,
        n_workers=n_workers,
        is_alone=processes == 1,
        keep_unknown=keep_unknown,
        keep_at_most=keep_at_most,
    )
    with contextlib.ExitStack() as until_ended:
        until_ended.enter_context(contextlib.closing(listener))
        if allow_extend:  # two programs that teach one model would each save what they know
            until_ended.enter_context(locked(Path(save_to)))
        if not is_loopback(host):
            who = "anyone" if predict_token is None else "anyone with a token"
            say(f"{who} who reaches this address can predict; put a proxy with TLS before it")
        address = address_of(host, listener.getsockname()[1])
        ready = lambda: say(f"ready at {address}")
        if processes == 1:
            work(say, ready)
        else:
            # longer than a worker waits for its requests, so that it ends by itself
            run_workers(processes, work, say=say, when_ready=ready, grace=_GRACE_SECONDS + 5)


def serve_at(
    listener: socket.socket,
    path: str | os.PathLike,
    say: Callable[[str], object],
    when_ready: Callable[[], object],
    *,
    save_to: str | os.PathLike,
    limits: Limits,
    variant: str | None,
    threads: int | None,
    device: str,
    is_alone: bool,
    **settings: Any,
) -> None:
    """Serve at a bound socket until SIGINT or SIGTERM; see `serve`.

    Args:
        listener: the socket.
        path: folder of an exported model.
        say: is told what happens.
        when_ready: is called when requests are answered.
        save_to: see `serve`, as for `limits`, `variant` and `threads`.
        limits: see there.
        variant: see there.
        threads: see there.
        device: see there.
        is_alone: no other process serves there.
        **settings: see `create_app`.
    """
    uvicorn = uvicorn_module()

    def opened(source: str | os.PathLike = path) -> Any:
        learning = settings["allow_extend"]
        how = {"variant": variant, "threads": threads, "device": device}
        found = open_model(source, **how, learning=learning)
        warm_up(found, limits.batch)
        return found

    predictor = opened()
    app = create_app(
        predictor,
        save_to=save_to,
        limits=limits,
        drift_file=drift_file(located(path)) if is_alone else None,
        reopen=lambda: opened(save_to if app.state.service.has_saved else path),
        **settings,
    )
    service = app.state.service
    service.is_alone = is_alone
    say(f"serving {number_of(len(predictor.classes), 'class')} from {os.fspath(path)}")
    config = uvicorn.Config(
        app,
        http=impatient(limits.seconds),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    quiet()
    print_access_log()
    uvicorn_server(uvicorn, config, when_ready, service, say).run(sockets=[listener])
    service.close()  # if the end was forced, nobody has yet
    if (error := service.save_error) is not None:
        if service.saved_beside is None:
            raise error
        raise ServingError(
            f"what was learned is in {service.saved_beside}; it was not saved to "
            f"{os.fspath(save_to)}: {error}"
        ) from error
    learned = f"; what was learned is in {os.fspath(save_to)}" if service.has_saved else ""
    answers = number_of(service.n_answers, "answer")
    counts = f"{answers} and {number_of(service.n_predicted, 'prediction')}"
    with contextlib.suppress(OSError):
        say(f"stopped after {counts}{learned}")


def check_processes(processes: int, allow_extend: bool) -> None:
    """Raise ServingError for a number of processes that cannot be."""
    if type(processes) is not int or processes < 1:
        raise ServingError(f"`processes` is {processes!r}; it must be a whole number of at least 1")
    if processes > 1 and allow_extend:
        raise ServingError(
            f"`processes` is {processes} and extending is allowed: each process would learn "
            "something else; serve with one, or teach a model elsewhere and reload it with SIGHUP"
        )


def open_model(
    path: str | os.PathLike,
    *,
    variant: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    learning: bool = False,
) -> Predictor | RuntimePredictor:
    """The predictor exported to `path`; see `serve`. One that is `learning` has torch."""
    bare = variant is not None and variant.startswith(_FREE_OF_TORCH)
    if not learning and (bare or importlib.util.find_spec("torch") is None):
        from learnkit.deploy.runtime_predictor import load_runtime

        return load_runtime(path, variant=variant, threads=threads, device=device)
    import torch

    from learnkit.deploy.predictor import load_learner

    if threads is not None:
        torch.set_num_threads(threads)
    return load_learner(path, variant=variant, threads=threads, device=device)


def warm_up(predictor: Any, batch: int) -> None:
    """Predict a full batch, so that time and memory are known before anybody relies on them."""
    # networks keep the memory of their largest batch, and are slow at their first
    image = np.zeros((*predictor.preprocessing.size, 3), np.uint8)
    if predictor.knows_classes:
        predictor.try_loaded([predictor.load(image)] * batch)
    else:  # it has learned nothing yet
        predictor.features([image] * batch, bs=batch, progress=False)


def uvicorn_server(
    uvicorn: Any,
    config: Any,
    when_ready: Callable[[], object],
    service: Service,
    say: Callable[[str], object],
    on_stop: Callable[[], object] = lambda: None,
) -> Any:
    """Uvicorn's server, which says when it is ready, and reloads and ends when it is told to.

    `on_stop` is called before it waits for the ends of requests: what streams ends there.
    """

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and not self.should_exit:
                if hasattr(signal, "SIGHUP"):  # not on Windows
                    loop = asyncio.get_running_loop()
                    loop.add_signal_handler(signal.SIGHUP, Reloader(service, say).ask)
                when_ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            with contextlib.suppress(OSError):  # nobody reads any more; the model is still saved
                say(f"stopping after {number_of(service.gate.n_requests, 'request')} under way")
            on_stop()
            await super().shutdown(sockets)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn's own raises the signals again afterwards: a stop asked for is no failure
            signals = (signal.SIGINT, signal.SIGTERM)
            former = {number: signal.signal(number, self.handle_exit) for number in signals}
            try:
                yield
            finally:
                for number, handler in former.items():
                    signal.signal(number, handler)

    server = Server(config)
    # uvicorn's own limit answers in a line of plain text, without an id, to whoever watches, too
    service.gate.n_connections = lambda: len(server.server_state.connections)
    return server


class Reloader:
    """Reloads the model whenever it is asked to, and says what became of that.

    Whoever asks while it does is served by one more reload: what was read may be outdated by then.
    """

    def __init__(self, service: Service, say: Callable[[str], object]):
        self._service, self._say = service, say
        self._is_wanted = False
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Reload soon, in the loop that runs."""
        self._is_wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        while self._is_wanted:
            self._is_wanted = False
            try:
                found = await self._service.reload_model()
            except Refusal as refusal:
                self._say(str(refusal))
            except Exception as error:
                # nobody awaits a signal's task: what goes wrong in it is told here or never
                LOG.error("not reloaded, the former model goes on", exc_info=error)
            else:
                n, digest = len(found["classes"]), found["model"][:12]
                self._say(f"reloaded: serving {number_of(n, 'class')}, model {digest}")


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with contextlib.ExitStack() as unless_bound:
            listener = unless_bound.enter_context(socket.socket(family, kind, protocol))
            # else a restart must wait until the former server's connections have left TIME_WAIT
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            unless_bound.pop_all()
            return listener
    # `bind` raises OverflowError for a port above 65,535
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ServingError(
            f"the address {host}:{port} cannot be used ({why}); choose another --host or --port"
        ) from error


def address_of(host: str, port: int) -> str:
    """The address of a server, for a browser.

    >>> address_of("::1", 8000)
    'http://[::1]:8000'
    """
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def uvicorn_module() -> Any:
    """Uvicorn; MissingExtraError if what serving needs is not installed."""
    try:
        import python_multipart  # noqa: F401  # what Starlette reads forms with
        import uvicorn
    except ImportError as error:
        raise MissingExtraError(
            f'serving needs {error.name}, which is not installed: `pip install "learnkit[serve]"`'
        ) from error
    return uvicorn

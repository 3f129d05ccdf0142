"""A server of the labelling page in one process, from its start to its end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from learnkit.deploy.hub_bundle import located
from learnkit.errors import ServingError, number_of
from learnkit.serving.app import create_app
from learnkit.serving.auth import is_loopback
from learnkit.serving.labelling.access import Access, check_reach, checked_origin
from learnkit.serving.labelling.inbox import OWN, check_folders
from learnkit.serving.labelling.queue import VIEWS
from learnkit.serving.labelling.routes import mount_labelling
from learnkit.serving.labelling.workplace import Workplace
from learnkit.serving.limits import Limits
from learnkit.serving.protocol import impatient, quiet
from learnkit.serving.server import bound_socket, open_model, uvicorn_module, uvicorn_server
from learnkit.storage.filesystem import locked
from learnkit.storage.write_folder import check_target

_LABELLED = ("is written to by the page of", "give each page an inbox of its own")
_GRACE_SECONDS = 1  # for requests under way; an end takes less than five in all


def serve_labelling(
    path: str | os.PathLike,
    inbox: str | os.PathLike,
    *,
    labelled: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    show: str = "unknown",
    good: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    behind_proxy: str | None = None,
    lock_classes: bool = False,
    names: bool = True,
    variant: str | None = None,
    threads: int | None = None,
    say: Callable[[str], object] = print,
    ready: Callable[[str], object] = lambda link: None,
) -> None:
    """Serve the page where the unknown images of an inbox are named, until SIGINT or SIGTERM.

    The model learns what is named in the same second. It is saved every two seconds at most; the
    journal in the inbox has what is between, so that no label is lost whenever this ends.

    Args:
        path: bundle of a model in the continual state.
        inbox: folder that images come into.
        labelled: folder for those that are named, a folder for each class; default `labelled`
            beside the inbox.
        out: bundle that is saved to; default `path`.
        show: "unknown" asks for images the model does not know, "unsure" also for those it is in
            doubt about, "all" for every one.
        good: the class of sound parts, which the page sets apart.
        host: address to listen at; any other than this machine's own needs `token`.
        port: 0 for any that is free.
        token: opens the page, beside the keys that are printed.
        behind_proxy: the address that browsers see, where a proxy with TLS stands before this.
        lock_classes: no new classes.
        names: keep the names that people give themselves in the journal.
        variant: see `load_learner`.
        threads: processor threads of the forward pass.
        say: is told in one line each what happens.
        ready: is called with the link when requests are answered.

    Raises:
        ServingError: a model that cannot learn, a folder or an address that cannot be used, a
            model that another program is teaching, or an inbox that another one labels.
        BundleError: no sound model at `path`.
    """
    uvicorn = uvicorn_module()
    inbox, out = Path(inbox), Path(path if out is None else out)
    labelled = inbox.parent / "labelled" if labelled is None else Path(labelled)
    _check(show, host, token, behind_proxy)
    check_folders(inbox, labelled)
    check_target(out)
    listener = bound_socket(host, port)
    # the inbox as well: two pages that teach two models would write one journal
    with contextlib.closing(listener), locked(out), locked(inbox / OWN, _LABELLED):
        how: dict[str, Any] = {"variant": variant, "threads": threads, "learning": True}
        predictor = open_model(path, **how)
        _check_learns(predictor, good)
        place = Workplace(
            predictor,
            inbox,
            labelled=labelled,
            out=out,
            reopen=lambda: open_model(out, **how),
            name=Path(located(path)).name,
            show=show,
            good=good,
            locked=lock_classes,
            named=names,
        )
        about = {"token": token, "origin": behind_proxy}
        tell = lambda link: say(f"another browser: open {link}")
        access = Access(host, listener.getsockname()[1], place.secret, say=tell, **about)
        app = create_app(predictor)
        mount_labelling(app, place, access)
        service = app.state.service

        def begun() -> None:
            _say_exposure(host, say)
            counts = place.views.state()["counts"]
            there = f"{number_of(place.n_files, 'image')} in {inbox}"
            say(f"{there}; {counts['done_today']} were named today")
            say(f"open {access.link}")
            say("stop with Ctrl-C: nothing that was named is lost")
            ready(access.link)

        config = uvicorn.Config(
            app,
            http=impatient(Limits().seconds),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            proxy_headers=False,
        )
        quiet()
        server = uvicorn_server(
            uvicorn, config, begun, service, lambda line: None, place.events.close
        )
        server.run(sockets=[listener])
        with contextlib.suppress(OSError):  # nobody reads any more
            say(_ended_text(place, out))


def _check(show: str, host: str, token: str | None, behind_proxy: str | None) -> None:
    """Refuse what cannot be served before anything is loaded."""
    if show not in VIEWS:
        raise ServingError(f"--show is {show!r}; it is one of {', '.join(VIEWS)}")
    check_reach(host, token)
    if behind_proxy is not None:
        checked_origin(behind_proxy)
        if token is None:
            raise ServingError(
                "behind a proxy others reach the page; put a token of 16 characters or more into "
                "a file and name it with --token-file"
            )


def _check_learns(predictor: Any, good: str | None) -> None:
    if getattr(predictor, "continual", None) is None:
        raise ServingError(
            "this model cannot learn: it is not in the continual state, which `learnkit train "
            "--continual` makes. To turn an exported one: learn = ImageLearner.from_bundle(MODEL, "
            "data); learn.init_continual(data); learn.export(MODEL)"
        )
    if good is not None and good not in predictor.classes:
        raise ServingError(
            f"--good is {good!r}, which is no class of the model: {list(predictor.classes)[:10]}"
        )


def _say_exposure(host: str, say: Callable[[str], object]) -> None:
    if not is_loopback(host):
        say(
            f"at {host} others reach the pictures and may teach the model if they have the token; "
            "what is sent can be read on the way: put a proxy with TLS before it (--behind-proxy)"
        )


def _ended_text(place: Workplace, out: Path) -> str:
    """What was saved."""
    learned = sum(one.state == "learned" for one in place.book.changes)
    if place.saver.is_saved:
        verb = "is" if learned == 1 else "are"
        return f"stopped; {number_of(learned, 'label')} in force {verb} in {out}"
    return (
        f"stopped; the labels since the last save are in {place.journal.path} and are learned when "
        "the page is opened again"
    )

"""Authorization: addresses only this machine reaches, and the tokens to teach and to predict."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path

from learnkit.errors import ServingError, number_of
from learnkit.serving.http_errors import Refusal

TOKEN_VARIABLE = "LEARNKIT_TOKEN"
PREDICT_TOKEN_VARIABLE = "LEARNKIT_PREDICT_TOKEN"
_SHORTEST = 16


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach `host`.

    >>> [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", "example.org")]
    [True, True, True, False, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(
    path: Path | None,
    environ: Mapping[str, str] = os.environ,
    variable: str = TOKEN_VARIABLE,
) -> str | None:
    """The token in the file at `path`, else that in the environment's `variable`, if any.

    Raises:
        ServingError: it is shorter than 16 characters, or no plain ASCII.
    """
    if path is not None:
        try:
            token, origin = path.read_text(encoding="utf-8").strip(), f"the token in {path}"
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise ServingError(f"the token in {path} cannot be read: {why}") from None
    elif variable in environ:
        token, origin = environ[variable].strip(), f"the token in ${variable}"
    else:
        return None
    return checked_token(token, origin)


def checked_token(token: str, origin: str = "`token`") -> str:
    """`token` itself; ServingError, which does not show it, if it is easily guessed."""
    if len(token) < _SHORTEST or not (token.isascii() and token.isprintable() and " " not in token):
        raise ServingError(
            f"{origin} has {number_of(len(token), 'character')}; it must have {_SHORTEST} or "
            "more, letters, "
            "digits and signs without spaces, for example from `openssl rand -hex 32`"
        )
    return token


def check_exposure(host: str, allow_extend: bool, token: str | None) -> None:
    """Raise ServingError if anyone who reaches `host` could change the model without a token."""
    if allow_extend and token is None:
        reach = "" if is_loopback(host) else f", and {host!r} can be reached from other machines"
        raise ServingError(
            f"extending is allowed and there is no token{reach}; put one into a file and name it "
            f"with --token-file, or into ${TOKEN_VARIABLE}"
        )


def check_different(token: str | None, predict_token: str | None) -> None:
    """Raise ServingError if whoever may predict could teach as well."""
    if token is not None and token == predict_token:
        raise ServingError(
            "the token to predict is the token to teach, too: whoever has it could change the "
            "model; make another one, for example with `openssl rand -hex 32`"
        )


def is_bearer(header: str | None, *tokens: str) -> bool:
    """Whether `header` is `Bearer TOKEN` with one of `tokens`; takes the same time for any."""
    scheme, _, given = (header or "").partition(" ")
    given = f"{scheme.lower()} {given.strip()}"  # the name of a scheme has no case
    # as bytes: `compare_digest` raises TypeError for texts beyond ASCII
    sent = given.encode("utf-8", "replace")
    # a list: `any` over a generator would stop at the first that fits, and its time would tell
    found = [hmac.compare_digest(sent, f"bearer {token}".encode()) for token in tokens]
    return any(found)


def check_bearer(header: str | None, *tokens: str) -> None:
    """Raise Refusal 401 unless `is_bearer`."""
    if not is_bearer(header, *tokens):
        raise Refusal(
            401,
            "the token is missing or wrong; send it as `Authorization: Bearer TOKEN`",
            {"WWW-Authenticate": "Bearer"},
        )

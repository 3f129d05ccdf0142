"""Who may label: one-time keys, signed cookies, and requests that come from the page itself."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from learnkit.errors import ServingError
from learnkit.serving.auth import is_loopback
from learnkit.serving.http_errors import Refusal
from learnkit.serving.server import address_of

COOKIE = "learnkit_label"
HEADER = "x-learnkit"
_HOURS = 12
_TRIES = 10
_ANY = ("0.0.0.0", "::", "")  # every address of this machine
_PAUSE = 60.0  # seconds without tries of the token after too many wrong ones


class Access:
    """Decides which requests are served.

    Args:
        host: that the server is bound to.
        port: likewise; the one that browsers name.
        secret: signs cookies, so that they are good after a restart.
        token: of a file, which opens the page for whoever has it; needed off this machine.
        origin: of the page where a proxy stands before the server, such as "https://parts.example".
        say: is told of each new key.
        clock: gives seconds since 1970.

    Raises:
        ServingError: a host that others reach without a token, or no origin.
    """

    def __init__(
        self,
        host: str,
        port: int,
        secret: bytes,
        *,
        token: str | None = None,
        origin: str | None = None,
        say: Callable[[str], object] = lambda link: None,
        clock: Callable[[], float] = time.time,
    ):
        check_reach(host, token)
        self._secret, self._token, self._say, self._clock = secret, token, say, clock
        self.origin = checked_origin(origin) if origin else None
        self.host, self.port, self._lock = host, port, threading.Lock()
        self._key, self._tries_left, self._locked_until = "", _TRIES, 0.0
        self.new_key()

    @property
    def address(self) -> str:
        """The address of the page's server, for a browser."""
        return self.origin or address_of(self.host, self.port)

    @property
    def link(self) -> str:
        """The address that opens the page once."""
        return f"{self.address}/label?key={self._key}"

    def new_key(self) -> str:
        """A key that opens the page once; the former one does no longer."""
        self._key, self._tries_left = secrets.token_urlsafe(18), _TRIES
        return self._key

    def login(self, key: str) -> str:
        """The header Set-Cookie for who has the key, or the token.

        Raises:
            Refusal: 403 a wrong key, 429 too many of them.
        """
        # else two who send the key at the same moment would both come in
        with self._lock:
            if hmac.compare_digest(_bytes(key), self._key.encode()):
                self.new_key()
                self._say(self.link)
            elif not self._is_token(key):
                raise self._wrong()
        expires = int(self._clock()) + 3600 * _HOURS
        value = f"{expires}.{secrets.token_hex(8)}"
        secure = "; Secure" if self.address.startswith("https:") else ""
        return (
            f"{COOKIE}={value}.{self._signature(value)}; Path=/label; Max-Age={3600 * _HOURS}; "
            f"HttpOnly; SameSite=Strict{secure}"
        )

    def _is_token(self, key: str) -> bool:
        if self._token is None:
            return False
        # before it is compared: a right token among too many tries must not be told from others
        if self._clock() < self._locked_until:
            raise Refusal(429, "too many wrong keys; wait a minute", {"Retry-After": "60"})
        return hmac.compare_digest(_bytes(key), self._token.encode())

    def _wrong(self) -> Refusal:
        self._tries_left -= 1
        if self._tries_left > 0:
            return Refusal(403, "this key is not good any more; open the newest link again")
        self.new_key()
        self._locked_until = self._clock() + _PAUSE
        self._say(self.link)
        return Refusal(429, "too many wrong keys; the console of the server shows a new link")

    def check_origin(self, method: str, headers: Mapping[str, str]) -> None:
        """Check that a request names the server's own host, and that its own page sends a POST.

        Else a page elsewhere, whose name is made to lead here, would be let in.

        Raises:
            Refusal: 421 another host, 403 another page.
        """
        host = headers.get("host", "").lower()
        if host not in self._hosts() and not (self.host in _ANY and _is_number(host, self.port)):
            raise Refusal(421, "this address is not the one that the labelling page is served at")
        own = f"{urlsplit(self.address).scheme}://{host}"
        is_own = headers.get("origin", "").lower() == own and headers.get(HEADER) == "1"
        if method == "POST" and not is_own:
            raise Refusal(403, "only the labelling page may ask for that")

    def _hosts(self) -> set[str]:
        if self.origin is not None:
            return {urlsplit(self.origin).netloc.lower()}
        names = {"127.0.0.1", "localhost", "[::1]"}
        if self.host in _ANY:
            names |= {socket.gethostname(), socket.getfqdn()}
        elif not is_loopback(self.host):
            names = {f"[{self.host}]" if ":" in self.host else self.host}
        # browsers leave port 80 out of the header Host
        port = "" if self.port == 80 else f":{self.port}"
        return {f"{one.lower()}{port}" for one in names}

    def owner(self, cookie: str) -> str:
        """Who holds a cookie, in 16 hexadecimal digits.

        Raises:
            Refusal: 401 there is none, it is not from here, or too old.
        """
        value, _, signature = cookie.rpartition(".")
        good = hmac.compare_digest(signature.encode(), self._signature(value).encode())
        expires, _, who = value.partition(".")
        if not good or not expires.isdigit() or int(expires) < self._clock():
            raise Refusal(401, "open the page by the link that the server's console shows")
        return who

    def _signature(self, value: str) -> str:
        # ids of images are made by the same secret, and begin otherwise: none signs a cookie
        digest = hmac.new(self._secret, b"cookie\0" + value.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _is_number(host: str, port: int) -> bool:
    """Whether a header Host is an address in numbers, which no name can be made to lead to."""
    name = host.removesuffix(f":{port}").removeprefix("[").removesuffix("]")
    try:
        return bool(ipaddress.ip_address(name)) and (host.endswith(f":{port}") or port == 80)
    except ValueError:
        return False


def check_reach(host: str, token: str | None) -> None:
    """Raise ServingError if others reach `host` and no token keeps them out."""
    if not is_loopback(host) and token is None:
        raise ServingError(
            f"--host is {host!r}, which other machines reach; put a token of 16 characters or more "
            "into a file, name it with --token-file, and open the page with /label?key=TOKEN"
        )


def checked_origin(origin: str) -> str:
    """An origin without a slash at its end; ServingError if it is none."""
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
        raise ServingError(
            f"--behind-proxy is {origin!r}; give the address that browsers see, such as "
            "https://parts.example"
        )
    return f"{parts.scheme}://{parts.netloc}"


def kept_secret(path: Path) -> bytes:
    """32 random bytes in a file that only this user reads, made when it is not there."""
    try:
        # O_EXCL: never over one that is there, by which ids in the journal were made
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        found = path.read_bytes()
        if len(found) == 32:
            return found
        # a crash cut it off before anything was made by it
        path.unlink()
        return kept_secret(path)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret := secrets.token_bytes(32))
        file.flush()
        os.fsync(file.fileno())
    return secret


def _bytes(key: str) -> bytes:
    """The bytes of a key, also of one that JSON spells with half a surrogate pair."""
    return key.encode(errors="surrogatepass")

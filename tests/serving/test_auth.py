"""Tokens and addresses: what may be reached from elsewhere, and by whom changed."""

import pytest

from learnkit.errors import ServingError
from learnkit.serving.auth import check_bearer, check_exposure, is_loopback, read_token
from learnkit.serving.http_errors import Refusal
from learnkit.serving.limits import Limits

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.0.7", False),
        ("localhost.example.org", False),
    ],
)
def test_only_loopback_addresses_stay_on_this_machine(host, here):
    assert is_loopback(host) is here


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_nobody_changes_a_model_without_a_token(host):
    with pytest.raises(ServingError, match="there is no token") as caught:
        check_exposure(host, True, None)
    assert ("other machines" in str(caught.value)) == (host == "0.0.0.0")
    check_exposure(host, True, TOKEN)
    check_exposure(host, False, None)


def test_the_token_comes_from_a_file_before_the_environment(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}-file\n", encoding="utf-8")
    environ = {"LEARNKIT_TOKEN": f"{TOKEN}-environment"}
    assert read_token(path, environ) == f"{TOKEN}-file"
    assert read_token(None, environ) == f"{TOKEN}-environment"
    assert read_token(None, {}) is None


@pytest.mark.parametrize("content", [b"", b"short", b"0123456789 abcdef", "ä".encode() * 20])
def test_a_token_that_is_easily_guessed_is_refused_and_never_shown(tmp_path, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ServingError, match=r"it must have 16 or more.*openssl rand") as caught:
        read_token(path, {})
    assert not content or content.decode() not in str(caught.value)


def test_a_token_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ServingError, match="none cannot be read: No such file"):
        read_token(tmp_path / "none", {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(ServingError, match="binary cannot be read: it is no text"):
        read_token(tmp_path / "binary", {})


def test_tokens_are_compared_in_constant_time(monkeypatch):
    seen = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: seen.append((a, b)) or a == b)
    check_bearer(f"Bearer {TOKEN}", TOKEN)
    for wrong in (None, TOKEN, f"Bearer {TOKEN[:-1]}"):
        with pytest.raises(Refusal, match="missing or wrong"):
            check_bearer(wrong, TOKEN)
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"queue": 0}, "`queue` is 0; a limit is above 0"),
        ({"seconds": -1}, "`seconds` is -1"),
        ({"images": 300}, "`images` is 300 and `queue` 256; one request must fit"),
        ({"request_bytes": 10**9}, "`request_bytes` is 1000000000 and `queue_bytes`"),
    ],
)
def test_limits_that_let_nothing_through_are_refused(limits, match):
    with pytest.raises(ServingError, match=match):
        Limits(**limits)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_name_of_the_scheme_has_no_case_and_the_token_has(scheme):
    check_bearer(f"{scheme} {TOKEN}", TOKEN)
    for wrong in (f"Basic {TOKEN}", f"{scheme} {TOKEN.upper()}", f"{scheme}{TOKEN}"):
        with pytest.raises(Refusal, match="missing or wrong"):
            check_bearer(wrong, TOKEN)

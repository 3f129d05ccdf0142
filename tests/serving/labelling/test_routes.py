"""The routes: who is let in, what pages are told, and what never leaves or enters."""

import io
import shutil

import numpy as np
import pytest
from deploy_helpers import strange
from labelling_helpers import client_of, ids_of, look, make_workplace, new_key, put
from PIL import Image
from serving_helpers import bomb

from learnkit.errors import ServingError
from learnkit.serving.http_errors import Refusal
from learnkit.serving.labelling.access import COOKIE, Access, checked_origin

SECRET = bytes(32)
POSTS = ("/label/answer", "/label/undo", "/label/class")
READS = (
    "/label/queue",
    "/label/groups",
    "/label/log",
    "/label/log.csv",
    "/label/events",
    "/label/image/0",
    "/label/heat/0",
)


def started(room):
    place = make_workplace(room)
    with client_of(place) as (client, _):
        look(place)
        client.place = place
        yield client


@pytest.fixture
def client(room):
    yield from started(room)


@pytest.fixture(scope="module")
def shared(bundle, tmp_path_factory):
    """A client for requests that change nothing; its cookie is given to each of them."""
    room = tmp_path_factory.mktemp("shared")
    shutil.copytree(bundle, room / "model")
    put(room / "inbox", "new", strange(5))
    for client in started(room):
        client.cookie = {"Cookie": f"{COOKIE}={client.cookies[COOKIE]}"}
        client.cookies.clear()
        yield client


def named(client, image, label, **more):
    asked = {"ids": [image], "label": label, "key": new_key(), **more}
    return client.post("/label/answer", json=asked)


def test_a_worker_is_asked_answers_and_takes_back(client):
    found = client.get("/label/queue?n=3").json()
    assert [one["flagged"] for one in found["images"]] == [True] * 3
    assert found["counts"]["waiting"] == 5
    first = found["images"][0]
    assert len(first["probs"]) == len(found["classes"]) == 2
    said = named(client, first["id"], "Scratch", new=True).json()
    assert (said["result"], said["n"], said["counts"]["done_today"]) == ("learned", 1, 1)
    assert {"name": "Scratch", "count": 1} in said["classes"]
    assert client.get("/model").json()["images_per_class"]["Scratch"] == 1
    back = client.post("/label/undo", json={"key": new_key()}).json()
    assert (back["undone"], back["counts"]["done_today"]) == (1, 0)
    asked = client.get(f"/label/queue?n=1&first={first['id']}").json()
    assert asked["images"][0]["id"] == first["id"]


def test_the_front_page_leads_to_where_the_model_is_taught(shared):
    page = shared.get("/").text
    assert 'on the page <a href="./label">label</a>, for who has its link' in page
    assert "is not possible" not in page
    assert shared.get("/label").status_code == 200
    said = {"extend": "taught on its page /label", "undo": "/label", "reload": "takes in by itself"}
    for path, sentence in said.items():  # options of `learnkit serve` do not mend these
        refused = shared.post(f"/{path}")
        assert (refused.status_code, sentence in refused.json()["error"]) == (403, True)


def test_what_a_page_holds_is_judged_anew_and_not_sent_again(client):
    ids = [one["id"] for one in client.get("/label/queue?n=2&tab=a").json()["images"]]
    again = client.get(f"/label/queue?n=2&tab=a&have={','.join(ids)}").json()
    assert {*again["held"]} == {*ids}
    assert not {*ids} & {one["id"] for one in again["images"]}
    named(client, ids[0], "Scratch", new=True)
    found = client.get(f"/label/queue?n=0&tab=a&have={','.join(ids)}").json()
    assert found["gone"] == [ids[0]]
    assert len(found["held"][ids[1]]["probs"]) == 3


def test_two_pages_are_never_asked_the_same_until_a_lease_ends(client):
    ours = {one["id"] for one in client.get("/label/queue?n=3&tab=a").json()["images"]}
    theirs = {one["id"] for one in client.get("/label/queue?n=3&tab=b").json()["images"]}
    assert (len(ours), len(theirs)) == (3, 2)
    assert not ours & theirs
    reloaded = {one["id"] for one in client.get("/label/queue?n=3&tab=a").json()["images"]}
    assert reloaded == ours
    client.place.inbox.clock.now += 61
    assert len(client.get("/label/queue?n=9&tab=b").json()["images"]) == 5


def test_who_comes_late_is_told_who_was_first(client):
    (image,) = [one["id"] for one in client.get("/label/queue?n=1").json()["images"]]
    named(client, image, "bad", who="Ben")
    late = named(client, image, "ok")
    assert late.status_code == 409
    assert late.json()["kind"] == "taken"
    assert (late.json()["by"], late.json()["label"]) == ("Ben", "bad")


@pytest.mark.parametrize("path", READS + POSTS)
def test_nothing_is_answered_without_the_cookie(shared, path):
    ask = shared.post if path in POSTS else shared.get
    answer = ask(path)
    assert answer.status_code == 401
    assert "link" in answer.json()["error"]


@pytest.mark.parametrize("cookie", ["", "1.a.b", "9999999999.a.", "x", "9999999999.a.b.c"])
def test_a_cookie_that_is_not_from_here_is_none(shared, cookie):
    assert shared.get("/label/queue", headers={"Cookie": f"{COOKIE}={cookie}"}).status_code == 401


def test_a_cookie_is_good_after_a_restart_and_not_for_ever():
    now = [1_700_000_000.0]
    first, second = (Access("127.0.0.1", 1, SECRET, clock=lambda: now[0]) for _ in range(2))
    header = first.login(first.new_key())
    value = header.partition("=")[2].partition(";")[0]
    assert len(second.owner(value)) == 16
    assert {"HttpOnly", "SameSite=Strict", "Path=/label"} <= {*header.split("; ")}
    now[0] += 12 * 3600 + 1
    with pytest.raises(Refusal, match="link"):
        second.owner(value)


@pytest.mark.parametrize("path", POSTS + ("/label/login",))
@pytest.mark.parametrize(
    "wrong",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:8080"},
        {"X-Learnkit": "0"},
    ],
    ids=["elsewhere", "null", "scheme", "header"],
)
def test_only_the_page_itself_may_post(shared, path, wrong):
    assert shared.post(path, json={}, headers={**shared.cookie, **wrong}).status_code == 403


@pytest.mark.parametrize("path", ("/label", "/label/login") + READS + POSTS)
@pytest.mark.parametrize("host", ["evil.example:8080", "127.0.0.1", "127.0.0.1:80801", ""])
def test_another_host_is_refused_before_anything_else(shared, path, host):
    ask = shared.post if path in (*POSTS, "/label/login") else shared.get
    assert ask(path, headers={**shared.cookie, "Host": host}).status_code == 421


def test_a_key_opens_once_and_ten_wrong_ones_make_it_worthless(room):
    said = []
    with client_of(make_workplace(room), login=False, say=said.append) as (client, access):
        key = access.new_key()
        login = lambda one: client.post("/label/login", json={"key": one}).status_code
        assert (login(key), login(key)) == (200, 403)
        assert len(said) == 1
        newest = said[0].partition("key=")[2]
        assert [login("wrong") for _ in range(9)][-1] == 429
        assert login(newest) == 403
        assert login(said[1].partition("key=")[2]) == 200


def test_other_machines_need_a_token_which_cannot_be_tried_out():
    with pytest.raises(ServingError, match="--token-file"):
        Access("0.0.0.0", 80, SECRET)
    now = [0.0]
    access = Access("0.0.0.0", 80, SECRET, token="t" * 16, clock=lambda: now[0])
    assert access.login("t" * 16)
    for wrong in ["wrong", "\ud800", "\xe9"] * 3 + ["wrong"]:
        with pytest.raises(Refusal, match="key"):
            access.login(wrong)
    with pytest.raises(Refusal, match="wait a minute"):
        access.login("t" * 16)
    now[0] = 61
    assert access.login("t" * 16)


@pytest.mark.parametrize(
    ("bound", "asked", "served"),
    [
        ("127.0.0.1", "localhost:80", True),
        ("::1", "[::1]:80", True),
        ("0.0.0.0", "192.168.1.9:80", True),
        ("0.0.0.0", "evil.example:80", False),
        ("10.0.0.1", "10.0.0.1:80", True),
        ("10.0.0.1", "10.0.0.2:80", False),
    ],
)
def test_hosts_that_lead_here(bound, asked, served):
    access = Access(bound, 8000, SECRET, token="t" * 16)
    asked = asked.replace(":80", ":8000")
    if served:
        access.check_origin("GET", {"host": asked})
        return
    with pytest.raises(Refusal) as refused:
        access.check_origin("GET", {"host": asked})
    assert refused.value.status == 421


def test_behind_a_proxy_the_address_of_the_page_counts():
    access = Access("127.0.0.1", 80, SECRET, token="t" * 16, origin="https://parts.example/")
    access.check_origin("GET", {"host": "parts.example"})
    access.check_origin(
        "POST", {"host": "parts.example", "origin": "https://parts.example", "x-learnkit": "1"}
    )
    assert "; Secure" in access.login("t" * 16)
    assert access.link.startswith("https://parts.example/label?key=")
    with pytest.raises(ServingError, match="--behind-proxy is 'parts'"):
        checked_origin("parts")


def test_every_answer_forbids_what_a_page_must_not_do(shared):
    for path in ("/label/queue", "/label/queue?view=none", f"/label/image/{'0' * 32}"):
        headers = shared.get(path, headers=shared.cookie).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


def test_a_picture_is_pixels_alone_turned_upright(client):
    image = Image.fromarray(np.full((20, 40, 3), 200, np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x8825] = 6, "SECRET PLACE", {1: "N"}
    image.save(client.place.inbox.folder / "turned.jpg", exif=exif, comment=b"SECRET")
    look(client.place)
    (image,) = ids_of(client.place, "turned")
    answer = client.get(f"/label/image/{image}?side=32")
    shown = Image.open(io.BytesIO(answer.content))
    assert answer.headers["content-type"] == "image/webp"
    assert shown.size == (16, 32)
    assert not shown.getexif()
    assert b"SECRET" not in answer.content
    assert b"EXIF" not in answer.content
    tag = {"If-None-Match": answer.headers["etag"]}
    assert client.get(f"/label/image/{image}?side=32", headers=tag).status_code == 304
    picture = client.place.book.pictures[image]
    assert (picture.w, picture.h) == (20, 40)


@pytest.mark.parametrize(
    "path",
    [
        "/label/image/..%2f..%2fmodel%2fconfig.json",
        "/label/image/../../model/config.json",
        "/label/image/new0.png",
        "/label/static/..%2froutes.py",
        "/label/static/index.html",
        "/label/static/%00",
        "/label/heat/..%2f..",
    ],
)
def test_paths_lead_nowhere(shared, path):
    assert shared.get(path, headers=shared.cookie).status_code == 404


def test_links_in_the_inbox_are_not_followed(client, room):
    secret = room / "secret.png"
    Image.new("RGB", (32, 32)).save(secret)
    (room / "inbox/link.png").symlink_to(secret)
    (room / "elsewhere").mkdir()
    secret.rename(room / "elsewhere/secret.png")
    (room / "inbox/folder").symlink_to(room / "elsewhere")
    look(client.place)
    assert ids_of(client.place, "link") == ids_of(client.place, "folder") == []


def test_a_bomb_is_listed_and_blocks_nobody(client, room):
    (room / "inbox/bomb.png").write_bytes(bomb())
    (room / "inbox/torn.png").write_bytes((room / "inbox/new0.png").read_bytes()[:60])
    look(client.place)
    found = client.get("/label/log").json()
    assert {one["name"] for one in found["unreadable"]} == {"bomb.png", "torn.png"}
    assert found["counts"]["unreadable"] == 2
    assert found["counts"]["waiting"] == 5


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'"x"', b"[" * 100_000], ids=["no", "list", "torn", "text", "deep"]
)
def test_what_is_no_object_is_refused(shared, body):
    answer = shared.post("/label/answer", content=body, headers=shared.cookie)
    assert (answer.status_code, answer.json()["error"]) == (400, "the body is no JSON object")


def test_what_is_too_large_is_refused(shared):
    body = b" " * 300_000
    assert shared.post("/label/answer", content=body, headers=shared.cookie).status_code == 413


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"ids": []},
        {"ids": "x"},
        {"ids": ["0"] * 501},
        {"ids": [["x"]]},
        {"ids": ["IMAGE"]},
        {"ids": ["IMAGE"], "label": 3},
        {"ids": ["IMAGE"], "label": "unheard of"},
        {"ids": ["IMAGE"], "action": "delete"},
        {"ids": ["IMAGE", "IMAGE"], "label": "ok"},
    ],
)
def test_answers_that_make_no_sense_change_nothing(shared, asked):
    image = ids_of(shared.place, "new")[0]
    ids = asked.get("ids")
    if isinstance(ids, list):
        asked = {**asked, "ids": [image if one == "IMAGE" else one for one in ids]}
    n, asked = len(shared.place.journal.lines), {"key": new_key(), **asked}
    answer = shared.post("/label/answer", json=asked, headers=shared.cookie)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]
    assert len(shared.place.journal.lines) == n


def test_a_request_without_a_key_of_its_own_is_refused(shared):
    asked = {"ids": ids_of(shared.place, "new")[:1], "label": "ok"}
    answer = shared.post("/label/answer", json=asked, headers=shared.cookie)
    assert (answer.status_code, "`key`" in answer.json()["error"]) == (400, True)


def test_hostile_names_come_and_go_as_text(client, room):
    name = "<img src=x onerror=alert(1)>.png"
    (room / "inbox" / name).write_bytes((room / "inbox/new0.png").read_bytes() + b"\0")
    look(client.place)
    (image,) = ids_of(client.place, "<img")
    named(client, image, "'&amp;", new=True)
    answer = client.get("/label/log")
    assert answer.headers["content-type"] == "application/json"
    line = answer.json()["lines"][0]
    assert (line["names"], line["label"]) == ([name], "'&amp;")
    named(client, ids_of(client.place, "new")[1], "bad", who="=cmd()")
    text = client.get("/label/log.csv")
    assert "'=cmd()" in text.text
    assert text.headers["content-disposition"].startswith("attachment")


def test_heat_is_a_map_of_the_image_for_a_class(client):
    import base64

    image = ids_of(client.place, "new")[0]
    found = client.get(f"/label/heat/{image}?label=bad").json()
    assert (found["h"], found["w"], found["of"]) == (32, 32, "bad")
    assert len(base64.b64decode(found["map"])) == 32 * 32
    assert client.get(f"/label/heat/{image}?label=none").status_code == 404


def test_alike_images_are_one_group_and_named_at_once(client):
    found = client.get("/label/groups?view=all").json()["groups"]
    assert sum(one["n"] for one in found) == 7
    ids = [one["id"] for one in found[0]["images"]]
    asked = {"ids": ids, "label": "Scratch", "new": True, "key": new_key()}
    assert client.post("/label/answer", json=asked).json()["n"] == len(ids)
    back = client.post("/label/undo", json={"key": new_key()}).json()
    assert back["undone"] == len(ids)

"""The application as clients meet it: right answers, and a sentence for everything else."""

import asyncio
import json
import threading
import time

import numpy as np
import pytest
from deploy_helpers import make_continual, make_predictor, renamed_as_before, shades, strange
from serving_helpers import BEARER, TOKEN, bomb, form, png

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from learnkit import load_learner
from learnkit.errors import MissingExtraError, ServingError
from learnkit.serving.app import create_app
from learnkit.serving.limits import Limits
from learnkit.serving.server import warm_up


def test_answers_are_those_of_the_predictor_in_the_order_sent(serving, predictor):
    client = serving()
    images = [png(image) for image in (*shades("ok", 2), *strange(1), *shades("<b>bad", 2))]
    answer = client.post("/predict", files=form(*images)).json()
    assert answer["model"] == client.get("/model").json()["model"]
    for entry, wanted in zip(answer["predictions"], predictor.predict_batch(images), strict=True):
        expected = wanted.to_dict()
        assert entry.pop("name") == "i.png"
        assert {k: entry[k] for k in ("label", "is_ood", "index")} == {
            k: expected[k] for k in ("label", "is_ood", "index")
        }
        assert entry["probs"] == pytest.approx(expected["probs"], abs=1e-5)
        assert entry["ood_score"] == pytest.approx(expected["ood_score"], rel=1e-4, abs=1e-4)
    alone = client.post("/predict", content=images[0])
    assert (alone.status_code, alone.headers["content-type"]) == (200, "application/json")
    assert alone.json()["predictions"][0]["label"] == "ok"


def test_one_bad_image_does_not_spoil_the_others(serving):
    client, good = serving(), png(shades("ok", 1)[0])
    answer = client.post("/predict", files=form(good, b"GIF89a", good[:80], bomb(), good))
    assert answer.status_code == 200
    first, *bad, last = answer.json()["predictions"]
    assert first["label"] == last["label"] == "ok"
    assert [set(entry) for entry in bad] == [{"name", "error"}] * 3
    assert "was not decoded" in bad[2]["error"]
    assert client.post("/predict", files=form(b"x", b"y")).status_code == 422


BAD_REQUESTS = {
    "no body": (400, "has no image", {}),
    "empty file": (400, "has no image", {"files": form(b"")}),
    "no image": (422, "it begins with b'text", {"content": b"text" * 9}),
    "a truncated image": (422, "damaged or incomplete", {"content": png(strange(1)[0])[:90]}),
    "a form without a boundary": (
        400,
        "the form cannot be read: Missing boundary",
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
    ),
    "a broken form": (
        400,
        "the form cannot be read",
        {"content": b"x" * 99, "headers": {"content-type": "multipart/form-data; boundary=b"}},
    ),
    "many images": (400, "Too many files", {"files": form(*[b"x"] * 5)}),
    "a large request": (413, "larger than the 20,000 bytes allowed", {"content": b"x" * 20_001}),
    "a large request of unknown length": (
        413,
        "larger than the 20,000 bytes",
        {"content": (b"x" * 1000 for _ in range(21))},
    ),
    "too many pixels": (422, "over the limit of 2,000", {"content": png(strange(1, size=48)[0])}),
    "a bomb": (422, "it was not decoded", {"content": bomb(9000, 9000)}),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_bad_requests_are_told_why_in_a_sentence(serving, what):
    status, sentence, request = BAD_REQUESTS[what]
    client = serving(limits=Limits(request_bytes=20_000, images=4, pixels=2000))
    answer = client.post("/predict", **request)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert sentence in answer.json()["error"]
    health = client.get("/health").json()
    assert (health["images_waiting"], health["requests"]) == (0, 0)


def form_body(*parts):
    """A form as bytes, of (name, value) for texts and (name, value, file name) for files."""
    found = b""
    for name, value, *file in parts:
        file = f'; filename="{file[0]}"' if file else ""
        found += f'--b\r\ncontent-disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        found += value + b"\r\n"
    return found + b"--b--\r\n"


FORM = {"content-type": "multipart/form-data; boundary=b"}
TEACHER = {**FORM, **BEARER}


def test_a_form_cut_off_anywhere_is_refused_and_nothing_of_it_learned(serving, predictor):
    client = serving(allow_extend=True, token=TOKEN)
    knowledge = predictor.continual.knowledge
    first, second = (png(image) for image in shades("ok", 2))
    body = form_body(("label", b"ok"), ("i", first, "1.png"), ("i", second, "2.png"))
    files = [body.index(first), body.index(second)]
    cuts = [1, 5, files[0] - 2, files[0], files[0] + 9, files[1] - 30, files[1], files[1] + 9]
    for cut in [*cuts, len(body) - 7, len(body) - 4, len(body) - 3]:
        for path, headers in (("/predict", FORM), ("/extend", TEACHER)):
            answer = client.post(path, content=body[:cut], headers=headers)
            assert answer.status_code == 400, (cut, answer.text)
            assert answer.json()["error"].startswith("the form"), (cut, answer.text)
    assert predictor.continual.knowledge is knowledge
    # what may follow the last boundary, or not, is nothing of the form
    for whole in (body, body[:-2], body + b"an epilogue"):
        answer = client.post("/predict", content=whole, headers=FORM)
        assert len(answer.json()["predictions"]) == 2


@pytest.mark.parametrize("headers", [FORM, {"content-type": "image/png"}])
def test_a_body_shorter_than_its_content_length_or_broken_off_is_refused(serving, headers):
    client, image = serving(), png(shades("ok", 1)[0])
    body = form_body(("i", image, "1.png")) if headers is FORM else image
    sent = []

    async def send(message):
        sent.append(message)

    def ask(declared, *messages):
        left = [*messages, {"type": "http.disconnect"}]

        async def receive():
            return left.pop(0)

        raw = {**headers, **({"content-length": str(declared)} if declared else {})}
        raw = [(name.encode(), value.encode()) for name, value in raw.items()]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": raw}
        asyncio.run(client.app({**scope, "query_string": b""}, receive, send))
        content = json.loads(sent.pop()["body"])
        return sent.pop()["status"], content.get("error", "")

    half, rest = ({"type": "http.request", "body": part} for part in (body[:99], body[99:]))
    assert ask(len(body), half | {"more_body": True}, rest) == (200, "")
    assert ask(None, half | {"more_body": True}, rest) == (200, "")
    for declared in (len(body), None):  # None: in chunks
        found = ask(declared, half | {"more_body": True})
        assert found == (400, "the request broke off before its end")
    status, sentence = ask(len(body) + 1, half | {"more_body": True}, rest)
    assert (status, f"says {len(body) + 1:,}; send all" in sentence) == (400, True)


def test_texts_that_are_no_utf8_are_refused_and_others_kept_as_they_are(serving, predictor):
    client, image = serving(allow_extend=True, token=TOKEN), png(shades("ok", 1)[0])
    knowledge, file = predictor.continual.knowledge, ("i", image, "1.png")
    for wrong in (b"\xff", b"gr\xfcn", b"\xc3", b"\xed\xa0\x80", image):
        for field in ("label", "comment"):
            body = form_body((field, wrong), ("label", b"ok"), file)
            answer = client.post("/extend", content=body, headers=TEACHER)
            assert answer.status_code == 422
            assert f"the field '{field}' is no text in 'utf-8'" in answer.json()["error"]
    for query in ("label=%FF", "label=ok&x=%C3"):
        answer = client.post(f"/extend?{query}", content=image, headers=BEARER)
        assert (answer.status_code, "in 'utf-8'" in answer.json()["error"]) == (422, True)
    unknown = {**TEACHER, "content-type": FORM["content-type"] + "; charset=hex"}
    answer = client.post("/extend", content=form_body(("label", b"ok"), file), headers=unknown)
    assert (answer.status_code, "'hex'" in answer.json()["error"]) == (422, True)
    assert predictor.continual.knowledge is knowledge
    latin = {**TEACHER, "content-type": "Multipart/Form-Data; charset=latin-1; boundary=b"}
    texts = (("grün".encode(), TEACHER), ("grün".encode("latin-1"), latin))
    for (text, headers), new in zip(texts, shades("new", 2), strict=True):
        body = form_body(("label", text), ("ü", png(new), "ü.png"))
        answer = client.post("/extend", content=body, headers=headers)
        assert answer.json()["change"]["images"] == {"grün": 1}
    answer = client.post("/extend?label=gr%C3%BCn&label", content=image, headers=BEARER)
    assert answer.status_code == 400
    named = client.post("/predict", content=form_body(("ü", image, "ü.png")), headers=FORM).json()
    assert [entry["name"] for entry in named["predictions"]] == ["ü.png"]


@pytest.mark.parametrize(
    ("headers", "n_read"),
    [
        ({b"content-length": b"1001"}, 1001),
        ({b"content-length": b"4001"}, 0),
        ({b"content-length": b"1001", b"expect": b"100-continue"}, 0),
        ({}, 5001),  # however long it is
    ],
)
def test_what_is_too_large_is_read_to_its_end_only_if_that_is_near(serving, headers, n_read):
    client = serving(limits=Limits(request_bytes=1000))
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
    sent, left = [], [1001, *[500] * 99] if not headers else [1000, 1]
    n_before = sum(left)

    async def receive():
        return {"type": "http.request", "body": b"x" * left.pop(0), "more_body": bool(left)}

    async def send(message):
        assert n_before - sum(left) == n_read  # first all of it is sent, then the answer is read
        sent.append(message)

    asyncio.run(client.app({**scope, "headers": [*headers.items()]}, receive, send))
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_client_that_does_not_go_on_sending_is_given_up(serving):
    client = serving(limits=Limits(seconds=0.05))
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    sent = []

    async def stalling():
        await asyncio.sleep(60)

    async def leaving():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    for receive in (stalling, leaving):
        asyncio.run(client.app({**scope, "query_string": b""}, receive, send))
    assert [message["status"] for message in sent if "status" in message] == [408, 400]
    assert client.app.state.service.gate.n_requests == 0


@pytest.mark.parametrize("path", ["/predict/", "/redoc", "/../etc/passwd", "/model/x"])
def test_there_is_nothing_else(serving, path):
    answer = serving().get(path, follow_redirects=False)
    assert answer.status_code in {307, 404, 405}
    assert "learnkit" not in answer.text


def test_names_from_clients_are_only_names(serving):
    client = serving()
    hostile = "../../<script>alert(1)</script>\u202e" + "x" * 900 + ".png"
    answer = client.post("/predict", files=form(b"no image", name=hostile))
    (entry,) = answer.json()["predictions"]
    assert entry["name"].startswith("script>")
    assert len(entry["name"]) == 200
    assert answer.text.isascii()
    names = {"../../etc/passwd": "passwd", "C:\\temp\\a.png": "a.png", "folder/": "image"}
    for sent, kept in names.items():
        answer = client.post("/predict", files=form(b"no image", name=sent))
        assert [entry["name"] for entry in answer.json()["predictions"]] == [kept]


def test_failures_inside_stay_inside(serving, predictor, monkeypatch):
    def broken(images):
        raise RuntimeError("secret /srv/model.py line 7")

    client, image = serving(raises=False), png(shades("ok", 1)[0])
    monkeypatch.setattr(predictor, "try_loaded", broken)
    answer = client.post("/predict", content=image)
    assert answer.status_code == 500
    assert answer.json() == {
        "error": "the server failed at this request; its log says why",
        "request_id": answer.headers["x-request-id"],
    }
    monkeypatch.undo()
    assert client.post("/predict", content=image).status_code == 200
    assert client.get("/health").json()["images_waiting"] == 0


class Slow:
    """A predictor that waits to be let go, and notes the size of every batch."""

    def __init__(self, predictor):
        self.batches, self.go = [], threading.Event()
        self.wrapped = predictor

    def __getattr__(self, name):
        return getattr(self.wrapped, name)

    def try_loaded(self, images):
        self.go.wait(20)
        self.batches.append(len(images))
        return self.wrapped.try_loaded(images)


def test_a_full_queue_is_told_at_once_and_requests_share_forward_passes(serving, predictor):
    slow = Slow(predictor)
    client = serving(slow, limits=Limits(queue=9, images=4, batch=8))
    image, answers = png(shades("ok", 1)[0]), []

    def ask(n):
        answers.append(client.post("/predict", files=form(*[image] * n)))

    threads = [threading.Thread(target=ask, args=(n,)) for n in (1, 4, 4)]
    for number, thread in enumerate(threads):
        thread.start()
        for _ in range(1000):
            if client.get("/health").json()["images_waiting"] == (1, 5, 9)[number]:
                break
            time.sleep(0.005)
    refused = client.post("/predict", content=image)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "busy with 9 images" in refused.json()["error"]
    slow.go.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert (sum(slow.batches), len(slow.batches)) == (9, 2)
    assert client.post("/predict", content=image).status_code == 200


def test_bytes_that_wait_are_bounded_together(serving, predictor):
    slow = Slow(predictor)
    client = serving(slow, limits=Limits(request_bytes=10_000, queue_bytes=10_000))
    image = png(shades("ok", 1)[0])
    thread = threading.Thread(target=client.post, args=("/predict",), kwargs={"content": image})
    thread.start()
    while not client.get("/health").json()["images_waiting"]:
        time.sleep(0.005)
    assert client.post("/predict", content=b"x" * 9000).status_code == 503
    slow.go.set()
    thread.join()


# -- extending ------------------------------------------------------------------------------------


def test_new_images_are_learned_as_the_predictor_itself_learns_them(serving, predictor, tmp_path):
    before = make_continual({"ok": 6, "<b>bad": 5})
    client = serving(allow_extend=True, token=TOKEN, save_to=tmp_path / "saved")
    images = [png(image) for image in shades("new", 4)]
    answer = client.post("/extend", files=form(*images), data={"label": "new"}, headers=BEARER)
    assert (answer.status_code, answer.json()["change"]["images"]) == (200, {"new": 4})
    before.extend(images, "new", progress=False)
    ours, wanted = predictor.continual.state()[1], before.continual.state()[1]
    assert all(ours[name].equal(wanted[name]) for name in wanted)
    assert answer.json()["saved"] is True
    assert client.get("/health").json()["unsaved_changes"] == 0
    facts = client.get("/model").json()
    assert facts["classes"] == ["ok", "<b>bad", "new"]
    assert facts["images_per_class"]["new"] == 4
    assert facts["model"] == answer.json()["model"]
    two = {"label": ["odd", "ok"]}
    images = [png(image) for image in (*shades("odd", 1), *shades("ok", 1))]
    answer = client.post("/extend", files=form(*images), data=two, headers=BEARER)
    assert answer.json()["change"]["images"] == {"odd": 1, "ok": 1}
    answer = client.post("/extend?label=odd", content=images[0], headers=BEARER)
    change = answer.json()["change"]
    assert change["n_images"]["odd"] == 1
    assert change["notes"][0].startswith("already learned: 1 of 1 images")
    answer = client.post("/extend?label=odd&again=true", content=images[0], headers=BEARER)
    assert answer.json()["change"]["n_images"]["odd"] == 2
    assert not predictor.continual.statistics.memory.given().any()
    client.post("/extend?label=odd&group=monday", content=images[0], headers=BEARER)
    assert predictor.continual.statistics.memory.given().count_nonzero() == 1


def test_what_was_learned_is_on_disk_when_the_client_is_told(predictor, tmp_path):
    """So that killing the server, which this one never ends by itself, loses nothing of it."""
    app = create_app(predictor, allow_extend=True, token=TOKEN, save_to=tmp_path / "saved")
    with TestClient(app) as client:
        image = png(shades("new", 1)[0])
        answer = client.post("/extend?label=new", content=image, headers=BEARER).json()
        saved = load_learner(tmp_path / "saved", sha256=answer["model"]).continual
        assert answer["saved"] is True
    assert saved.classes == ("ok", "<b>bad", "new")
    ours, wanted = saved.state()[1], predictor.continual.state()[1]
    assert all(ours[name].equal(wanted[name]) for name in wanted)
    assert app.state.service.served.n_unsaved == 0


def test_an_application_that_learned_nothing_saves_nothing(predictor, tmp_path):
    app = create_app(predictor, allow_extend=True, token=TOKEN, save_to=tmp_path / "saved")
    with TestClient(app) as client:
        bad = client.post("/extend?label=new", content=b"x", headers=BEARER)
        assert bad.status_code == 422
    assert not (tmp_path / "saved").exists()


def test_a_failed_save_is_kept_for_whoever_runs_the_server(predictor, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "mine.txt").write_text("keep", encoding="utf-8")
    app = create_app(predictor, allow_extend=True, token=TOKEN, save_to=tmp_path / "saved")
    with TestClient(app) as client:
        image = png(shades("new", 1)[0])
        answer = client.post("/extend?label=new", content=image, headers=BEARER)
        assert (answer.status_code, answer.json()["saved"]) == (200, False)
        assert client.get("/health").json()["unsaved_changes"] == 1
    assert "files that no bundle put there" in str(app.state.service.save_error)
    assert app.state.service.served.n_unsaved == 1


def test_what_another_wrote_to_the_served_bundle_is_not_written_over(predictor, tmp_path, caplog):
    path = tmp_path / "model"
    predictor.save(path)
    app = create_app(load_learner(path), allow_extend=True, token=TOKEN, save_to=path)
    other = load_learner(path)
    other.rename({"ok": "good"})
    theirs = other.save(path)
    image = png(shades("new", 1)[0])
    with TestClient(app) as client:
        answer = client.post("/extend?label=new", content=image, headers=BEARER).json()
        assert answer["saved"] is False
        assert "is another one by now" in str(app.state.service.save_error)
        assert "Here: move that bundle away, or make room, and the server saves with" in caplog.text
        path.rename(tmp_path / "theirs")
        answer = client.post("/undo", headers=BEARER).json()
        assert answer["saved"] is True
    assert load_learner(tmp_path / "theirs", sha256=theirs).classes[0] == "good"
    assert load_learner(path).classes[0] == "ok"


def test_what_was_learned_is_beside_the_bundle_that_another_wrote_when_the_server_ends(
    predictor, tmp_path
):
    path = tmp_path / "model"
    predictor.save(path)
    reopen = lambda: load_learner(path)
    about = {"allow_extend": True, "token": TOKEN, "save_to": path, "reopen": reopen}
    app = create_app(load_learner(path), **about)
    other = load_learner(path)
    other.rename({"ok": "good"})
    theirs = other.save(path)
    with TestClient(app) as client:
        image = png(shades("new", 1)[0])
        assert not client.post("/extend?label=new", content=image, headers=BEARER).json()["saved"]
        refused = client.post("/reload", headers=BEARER)
        assert refused.status_code == 409
        for said in ("would be lost: the bundle", "is another one by now", "/reload or SIGHUP"):
            assert said in refused.json()["error"]
        served = client.get("/model").json()["model"]
    assert load_learner(path, sha256=theirs).classes[0] == "good"
    beside = app.state.service.saved_beside
    assert beside == tmp_path / f"model.learned-{served[:12]}"
    assert "new" in load_learner(beside).classes


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"bearer {TOKEN}x",
        f"Basic {TOKEN}",
        "Bearer ",
        "Bearer \xff",
    ],
)
def test_only_who_has_the_token_changes_the_model(serving, predictor, header):
    client = serving(allow_extend=True, token=TOKEN)
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = client.post("/extend?label=ok", content=png(shades("ok", 1)[0]), headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert TOKEN not in answer.text
    assert predictor.continual.n_images == {"ok": 6, "<b>bad": 5}


def test_a_server_that_may_not_learn_does_not(serving, predictor):
    answer = serving().post("/extend?label=ok", content=b"x", headers=BEARER)
    assert answer.status_code == 403
    assert "--allow-extend" in answer.json()["error"]


def test_a_model_that_cannot_learn_says_so(serving):
    client = serving(make_predictor(), allow_extend=True, token=TOKEN)
    answer = client.post("/extend?label=ok", content=png(shades("ok", 1)[0]), headers=BEARER)
    assert (answer.status_code, "cannot learn" in answer.json()["error"]) == (501, True)
    facts = client.get("/model").json()
    assert (facts["can_extend"], facts["classes"]) == (False, ["ok", "NO", "ß/<b>"])


def test_a_change_that_fails_changes_nothing(serving, predictor):
    limits = Limits(pixels=2000)
    client = serving(allow_extend=True, token=TOKEN, limits=limits)
    knowledge, good = predictor.continual.knowledge, png(shades("new", 1)[0])
    large = png(strange(1, size=48)[0])
    requests = [
        (422, "image 'i.png' cannot be read", {"files": form(good, b"no"), "data": {"label": "n"}}),
        (422, "over the limit of 2,000", {"files": form(good, large), "data": {"label": "n"}}),
        (400, "0 labels for 1 image", {"files": form(good)}),
        (400, "2 labels for 3 images", {"files": form(*[good] * 3), "data": {"label": ["a", "b"]}}),
        (422, "label", {"files": form(good), "data": {"label": ""}}),
        (422, "OK", {"files": form(good), "data": {"label": "OK"}}),
        (422, "has 201 characters", {"files": form(good), "data": {"label": "x" * 201}}),
        (422, "can be printed", {"files": form(good), "data": {"label": "\u202eko"}}),
        (422, "spreadsheets would", {"files": form(good), "data": {"label": "=1+1"}}),
        (422, "begins with '@'", {"files": form(good), "data": {"label": "@SUM(A1)"}}),
        (400, "has no image", {"files": {"label": (None, "n")}}),
        (
            400,
            "2 groups for 1 image",
            {"files": form(good), "data": {"group": ["a", "b"], "label": "n"}},
        ),
        (400, "`again` is 'ja'", {"files": form(good), "data": {"label": "n", "again": "ja"}}),
    ]
    for status, sentence, request in requests:
        answer = client.post("/extend", headers=BEARER, **request)
        assert (answer.status_code, sentence in answer.json()["error"]) == (status, True), answer
        assert predictor.continual.knowledge is knowledge
    assert client.get("/health").json()["unsaved_changes"] == 0


def test_a_class_of_the_model_is_learned_by_whatever_name_it_has(serving, predictor):
    name = next(iter(predictor.classes))
    model = renamed_as_before(predictor, {name: "=1+1"})
    client = serving(model, allow_extend=True, token=TOKEN)
    before = model.continual.n_images["=1+1"]
    request = {"files": form(png(strange(1)[0])), "data": {"label": "=1+1"}}
    assert client.post("/extend", headers=BEARER, **request).status_code == 200
    assert model.continual.n_images["=1+1"] == before + 1


def test_an_application_without_a_token_that_may_learn_is_refused(predictor):
    with pytest.raises(ServingError, match="there is no token; put one into a file"):
        create_app(predictor, allow_extend=True)
    with pytest.raises(ServingError, match="`token` has 5 characters; it must have 16 or more"):
        create_app(predictor, allow_extend=True, token="short")


def test_fastapi_is_named_where_it_is_missing(predictor, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fastapi", None)
    with pytest.raises(MissingExtraError, match=r'pip install "learnkit\[serve\]"'):
        create_app(predictor)


def test_every_number_in_an_answer_is_json(serving, predictor):
    predictor.set(ood_threshold=0.5)
    blank = png(np.full((32, 32, 3), 0, "uint8"))
    text = serving().post("/predict", content=blank).text
    json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_health_and_metrics_tell_of_drift(serving, tmp_path):
    file = tmp_path / "m.drift.json"
    client = serving(drift_file=file)
    for image in strange(3):
        client.post("/predict", files=form(png(image)))
    told = client.get("/health").json()["drift"]
    assert (told["status"], told["images"], told["alarms"]) == ("ok", 3, [])
    assert told["sentence"].startswith("no drift in 3 images")
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.text.splitlines()
    assert "# TYPE learnkit_drift_images gauge" in lines
    assert "learnkit_drift_images 3.0" in lines
    assert "learnkit_drift_bound 20000.0" in lines
    assert "learnkit_images_waiting 0.0" in lines
    assert any(line.startswith('learnkit_drift_alarm{label="') for line in lines)
    assert not file.exists()  # a few images are not written one by one


def test_what_the_monitor_saw_is_kept_when_the_server_ends(predictor, tmp_path):
    file = tmp_path / "m.drift.json"
    for n_before in (0, 2):
        with TestClient(create_app(predictor, drift_file=file)) as client:
            assert client.get("/health").json()["drift"]["images"] == n_before
            for image in strange(2):
                client.post("/predict", files=form(png(image)))


def test_a_model_without_scores_is_served_without_a_monitor(serving):
    client = serving(make_predictor())
    assert client.get("/health").json()["drift"] is None
    assert "drift" not in client.get("/metrics").text


def test_a_server_whose_disk_is_gone_goes_on_and_says_so(predictor, tmp_path, caplog):
    (tmp_path / "gone").mkdir()
    with TestClient(create_app(predictor, drift_file=tmp_path / "gone" / "m.json")) as client:
        (tmp_path / "gone").rmdir()
        assert client.post("/predict", files=form(png(strange(1)[0]))).status_code == 200
    assert "what the drift monitor saw is not saved" in caplog.text


def test_a_model_that_knows_nothing_yet_is_served_and_taught(serving, tmp_path):
    file = tmp_path / "m.drift.json"
    options = {"allow_extend": True, "token": TOKEN, "drift_file": file}
    model = make_continual()
    warm_up(model, 3)
    client, image = serving(model, **options), png(shades("ok", 1)[0])
    answer = client.post("/predict", content=image)
    assert (answer.status_code, "knows no class yet" in answer.json()["error"]) == (422, True)
    facts = client.get("/model").json()
    assert (facts["classes"], facts["ood_threshold"], facts["can_extend"]) == ([], None, True)
    assert client.get("/health").json()["drift"] is None
    assert "learnkit_drift" not in client.get("/metrics").text
    for label in ("ok", "bad"):
        images = [png(one) for one in shades(label, 3)]
        given = {"files": form(*images), "data": {"label": label}}
        assert client.post("/extend", headers=BEARER, **given).status_code == 200
    answer = client.post("/predict", content=image).json()
    assert answer["predictions"][0]["label"] == "ok"
    assert client.get("/health").json()["drift"]["images"] == 1


def test_too_many_connections_are_told_in_the_form_of_all_refusals(serving, caplog):
    client = serving()
    gate = client.app.state.service.gate
    gate.n_connections = lambda: 1001
    image = png(shades("ok", 1)[0])
    with caplog.at_level("INFO", "learnkit.access"):
        refused = client.post("/predict", content=image)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.headers["connection"] == "close"
    assert "more than 1,000 open connections" in refused.json()["error"]
    assert refused.json()["request_id"] == refused.headers["x-request-id"]
    assert "POST /predict 503" in caplog.messages[-1]
    plain = client.post("/predict", content=image, headers={"Accept": "text/plain"})
    assert plain.text.startswith("the server has more than 1,000 open connections; ")
    assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 503]
    gate.n_connections = lambda: 1000
    assert client.post("/predict", content=image).status_code == 200

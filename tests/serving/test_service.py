"""Requests in every form a client may send them, and answers in every form it may ask for."""

import base64
import json
import re
import threading

import pytest
from deploy_helpers import make_continual, make_predictor, shades, strange
from serving_helpers import BEARER, TOKEN, bomb, form, png

pytest.importorskip("fastapi")

from learnkit.errors import BundleCorruptError, ServingError
from learnkit.serving.access_log import LOG, log_request
from learnkit.serving.app import create_app
from learnkit.serving.http_errors import as_plain, prefers_plain
from learnkit.serving.limits import Limits

PLAIN = {"Accept": "text/plain"}
PREDICT_TOKEN = "staple-of-the-shop-floor"
READER = {"Authorization": f"Bearer {PREDICT_TOKEN}"}


def encoded(*images, **fields):
    """A request in JSON."""
    return {"images": [base64.b64encode(image).decode() for image in images], **fields}


class TestDecision:
    """What is done with a part: the class, or that it is unknown."""

    def test_it_is_the_label_or_unknown(self, serving):
        images = [png(image) for image in (*shades("ok", 1), *strange(1))]
        known, unknown = serving().post("/predict", files=form(*images)).json()["predictions"]
        assert (known["decision"], known["is_ood"]) == ("ok", False)
        assert (unknown["decision"], unknown["is_ood"]) == ("UNKNOWN", True)
        assert unknown["label"] in unknown["probs"]

    def test_a_model_that_cannot_tell_unknown_images_decides_for_the_label(self, serving):
        (entry,) = (
            serving(make_predictor())
            .post("/predict", content=png(strange(1)[0]))
            .json()["predictions"]
        )
        assert entry["decision"] == entry["label"]

    def test_of_several_labels_it_is_all_of_them(self, serving):
        model = make_predictor(multi_label=True, threshold=1e-6)
        image = png(strange(1)[0])
        (entry,) = serving(model).post("/predict", content=image).json()["predictions"]
        assert entry["decision"] == entry["label"] == ["ok", "NO", "ß/<b>"]
        answer = serving(model).post("/predict", content=image, headers=PLAIN)
        assert answer.text == "ok, NO, ß/<b>\n"


class TestPlainText:
    """Gateways that read a line and no JSON."""

    def test_a_line_an_image_and_nothing_else(self, serving):
        client, image = serving(), png(shades("<b>bad", 1)[0])
        answer = client.post("/predict", content=image, headers=PLAIN)
        assert (answer.status_code, answer.text) == (200, "<b>bad\n")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        images = form(image, b"no image", png(strange(1)[0]))
        answer = client.post("/predict", files=images, headers=PLAIN)
        assert answer.text == "<b>bad\nERROR\nUNKNOWN\n"

    def test_errors_are_a_line_too_with_their_status(self, serving):
        client = serving()
        answer = client.post("/predict", content=b"no image", headers=PLAIN)
        assert (answer.status_code, answer.text.count("\n")) == (422, 1)
        assert "cannot be read" in answer.text
        answer = client.get("/nothing", headers=PLAIN)
        assert (answer.status_code, answer.text.count("\n")) == (404, 1)

    def test_a_class_name_cannot_break_the_line(self):
        entries = [{"decision": "ok\r\nadmin"}, {"decision": ["\u202ea", "\ud800"]}]
        assert as_plain({"predictions": entries}) == b"ok??admin\n?a, ?\n"

    @pytest.mark.parametrize(
        ("accept", "plain"),
        [
            ("", False),
            ("*/*", False),
            ("text/plain", True),
            ("TEXT/Plain ; charset=utf-8", True),
            ("text/html, */*;q=0.8", False),
            ("text/plain;q=0.5, application/json", False),
            ("text/plain, application/json;q=0.5", True),
            ("text/plain;q=0", False),
            ("text/plain;q=nan", False),
            ("text/plain;q=x", False),
            (",;,=", False),
        ],
    )
    def test_it_is_for_who_prefers_it_to_json(self, accept, plain):
        assert prefers_plain(accept) is plain


class TestPredictionSets:
    def test_alpha_gives_those_of_the_predictor_wherever_it_stands(self, serving, predictor):
        client, image = serving(), png(shades("ok", 1)[0])
        wanted = list(predictor.predict(image).prediction_set(0.2))
        asked = [
            client.post("/predict?alpha=0.2", content=image),
            client.post("/predict", files=form(image), data={"alpha": "0.2"}),
            client.post("/predict", json=encoded(image, alpha=0.2)),
        ]
        for answer in asked:
            assert answer.json()["predictions"][0]["prediction_set"] == wanted
        assert "prediction_set" not in client.post("/predict", content=image).text

    @pytest.mark.parametrize(
        "alpha", ["", "x", "0", "1", "-1", "nan", "inf", "1e999", "0.1&alpha=.2"]
    )
    def test_other_values_are_refused(self, serving, alpha):
        answer = serving().post(f"/predict?alpha={alpha}", content=png(shades("ok", 1)[0]))
        assert answer.status_code == 400
        assert "send one number between 0 and 1" in answer.json()["error"]

    def test_a_model_that_has_none_says_so(self, serving):
        client = serving(make_predictor())
        answer = client.post("/predict?alpha=0.1", content=png(shades("ok", 1)[0]))
        assert (answer.status_code, "calibrate" in answer.json()["error"]) == (501, True)


class TestJson:
    """Images in base64, for clients that write no forms."""

    def test_answers_are_those_of_a_form(self, serving):
        client = serving()
        images = [png(image) for image in (*shades("ok", 1), *strange(1))]
        wanted = client.post("/predict", files=form(*images, b"no image")).json()
        named = [
            {"name": "../i.png", "data": base64.b64encode(image).decode()}
            for image in (*images, b"no image")
        ]
        found = client.post("/predict", json={"images": named}).json()
        for one, other in zip(found["predictions"], wanted["predictions"], strict=True):
            # images may be in other passes of the network, which changes last bits
            assert {name: one.get(name) for name in ("name", "decision", "error")} == {
                name: other.get(name) for name in ("name", "decision", "error")
            }
            assert one.get("probs") == pytest.approx(other.get("probs"), abs=1e-5)
        uris = [f"data:image/png;base64,{one['data']}" for one in named]
        for entry in client.post("/predict", json={"images": uris}).json()["predictions"]:
            assert entry.pop("name") == "image"

    def test_learns_as_a_form_does(self, serving, predictor):
        client = serving(allow_extend=True, token=TOKEN)
        images = [png(image) for image in shades("neü", 3)]
        body = encoded(*images, label="neü", group=["a", "a", "b"], again=False)
        answer = client.post("/extend", json=body, headers=BEARER)
        assert answer.json()["change"]["images"] == {"neü": 3}
        body = encoded(*images[:2], label=["neü", "ok"], again=True)
        answer = client.post("/extend", json=body, headers=BEARER)
        assert answer.json()["change"]["images"] == {"neü": 1, "ok": 1}

    GOOD = base64.b64encode(png(shades("ok", 1)[0])).decode()
    WRONG = {
        "nothing": (400, "is no JSON", b""),
        "half of it": (400, "is no JSON", b'{"images": ["'),
        "no UTF-8": (400, "is no JSON", b'{"images": ["\xff"]}'),
        "deep": (400, "is no JSON", b"[" * 70),
        "a long number": (400, "is no JSON", b"9" * 10_000),
        "a list": (400, "no list `images`", b"[]"),
        "no images": (400, "no list `images`", b"{}"),
        "an object": (400, "no list `images`", b'{"images": {}}'),
        "none": (400, "has no image", b'{"images": []}'),
        "empty": (400, "has no image", b'{"images": [""]}'),
        "a number": (422, "image 1 of the JSON is no base64", b'{"images": [7]}'),
        "no base64": (422, "image 1 of the JSON is no base64", b'{"images": ["%%"]}'),
        "cut off": (422, "image 2 of the JSON", f'{{"images": ["{GOOD}", "QUJ"]}}'.encode()),
        "line breaks": (422, "without line breaks", b'{"images": ["QU\\nJD"]}'),
        "no ASCII": (422, "is no base64", '{"images": ["ä"]}'.encode()),
        "no data": (422, "is no base64", b'{"images": [{"name": "a"}]}'),
        "a name that is none": (422, "no base64", b'{"images": [{"name": 7, "data": "QUJD"}]}'),
        "many": (413, "has 5 images; 4 are allowed", b'{"images": ["","","","",""]}'),
        "parts": (413, "too many parts", b'{"images": [' + b"[]," * 99 + b"[]]}"),
        "a label that is none": (422, "`label` of the JSON is '7'", b'{"images": [], "label": 7}'),
        "half a character": (422, "surrogate", b'{"images": [], "label": "\\ud800"}'),
        "too large": (413, "larger than the 20,000 bytes", b" " * 20_001),
    }

    @pytest.mark.parametrize("what", WRONG)
    def test_what_is_wrong_is_told_and_nothing_learned(self, serving, predictor, what):
        status, sentence, body = self.WRONG[what]
        limits = Limits(request_bytes=20_000, images=4)
        client = serving(allow_extend=True, token=TOKEN, limits=limits)
        knowledge = predictor.continual.knowledge
        kind = {"Content-Type": "Application/JSON; charset=utf-8"}
        for path, headers in (("/predict", kind), ("/extend?label=ok", {**kind, **BEARER})):
            answer = client.post(path, content=body, headers=headers)
            assert (answer.status_code, sentence in answer.text) == (status, True), answer.text
        assert predictor.continual.knowledge is knowledge
        assert client.get("/health").json()["requests"] == 0

    def test_images_are_bounded_as_in_forms(self, serving):
        body = encoded(bomb(9000, 9000), png(shades("ok", 1)[0]))
        bad, good = serving().post("/predict", json=body).json()["predictions"]
        assert "was not decoded" in bad["error"]
        assert good["label"] == "ok"


class TestRequestIds:
    @pytest.mark.parametrize("path", ["/health", "/nothing", "/model"])
    def test_a_sane_one_is_kept_and_another_replaced(self, serving, path):
        client = serving()
        for kept in ("a", "line-3_shift.2", "7" * 64):
            answer = client.get(path, headers={"X-Request-ID": kept})
            assert answer.headers["x-request-id"] == kept
        wrong = ("", " ", "a b", "7" * 65, "a\tb", "<b>", b"\xff", "a;b")
        made = [client.get(path, headers={"X-Request-ID": id_}) for id_ in wrong]
        made = [one.headers["x-request-id"] for one in (client.get(path), *made)]
        assert len(set(made)) == len(made)
        assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)

    def test_errors_name_theirs(self, serving):
        client = serving()
        for answer in (client.get("/nothing"), client.post("/predict"), client.post("/extend")):
            assert answer.json()["request_id"] == answer.headers["x-request-id"]


class TestAccessLog:
    @pytest.fixture(autouse=True)
    def told(self, caplog):
        with caplog.at_level("INFO", LOG.name):
            yield caplog

    def test_a_line_for_each_request_with_its_seven_columns(self, serving, told):
        client = serving(allow_extend=True, token=TOKEN)
        answer = client.post("/extend?label=secret", headers={**BEARER, "X-Request-ID": "my-id"})
        (line,) = (record.getMessage() for record in told.records if record.name == LOG.name)
        when, id_, method, path, status, spent, sent = line.split(" ")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", when)
        assert (id_, method, path, status) == ("my-id", "POST", "/extend", "400")
        assert re.fullmatch(r"\d+\.\dms", spent)
        assert sent == f"{len(answer.content)}B"
        assert TOKEN not in line
        assert "secret" not in line

    @pytest.mark.parametrize(
        ("method", "path", "shown"),
        [
            ("GET", "/a\n2026 x GET / 200", "GET /a%0A2026%20x%20GET%20/%20200"),
            ("GET", "/\x1b[31m", "GET /%1B%5B31m"),
            ("G\rT", "/", "G%0DT /"),
            ("GET", "/ü\u202e\ud800", "GET /%C3%BC%E2%80%AE%3F"),
            ("", "", "- -"),
        ],
    )
    def test_nothing_from_outside_breaks_a_line_or_steers_a_terminal(
        self, told, method, path, shown
    ):
        log_request("id", method, path, 404, 0.0123, 7)
        assert told.messages[-1].endswith(f"Z id {shown} 404 12.3ms 7B")

    def test_lines_end(self, told):
        log_request("id", "GET" * 99, "/" + "x" * 9999, None, 0, 0)
        assert len(told.messages[-1]) < 300
        assert " - 0.0ms 0B" in told.messages[-1]

    def test_what_fails_inside_has_a_line_and_its_id_beside_the_reason(
        self, serving, predictor, monkeypatch, told
    ):
        def broken(images):
            raise RuntimeError("why")

        monkeypatch.setattr(predictor, "try_loaded", broken)
        answer = serving(raises=False).post("/predict", content=png(shades("ok", 1)[0]))
        id_ = answer.headers["x-request-id"]
        assert f"request {id_} failed: RuntimeError" in told.messages
        assert any(f" {id_} POST /predict 500 " in line for line in told.messages)


class TestReady:
    def test_it_is_while_images_are_predicted(self, serving):
        answer = serving().get("/ready")
        assert (answer.status_code, answer.json()) == (200, {"ready": True})

    @pytest.mark.parametrize("path", ["/ready", "/health"])
    def test_probes_that_want_no_body_are_answered(self, serving, path):
        assert serving().head(path).status_code == 200

    def test_it_is_not_before_a_class_is_known(self, serving):
        client = serving(make_continual(), allow_extend=True, token=TOKEN)
        answer = client.get("/ready")
        assert (answer.status_code, "knows no class yet" in answer.text) == (503, True)
        assert client.get("/health").status_code == 200
        image = form(*[png(image) for image in shades("ok", 2)])
        client.post("/extend?label=ok", files=image, headers=BEARER)
        assert client.get("/ready").status_code == 200

    def test_it_is_not_while_all_places_are_taken(self, serving):
        client = serving(limits=Limits(queue=4, images=4))
        gate = client.app.state.service.gate
        with gate.request() as ticket:
            ticket.take_images(4)
            answer = client.get("/ready")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 200


class TestUndo:
    def test_it_takes_back_what_was_learned_also_on_disk(self, serving, predictor, tmp_path):
        from learnkit import load_learner

        client = serving(allow_extend=True, token=TOKEN, save_to=tmp_path / "saved")
        before = predictor.continual.knowledge
        images = form(*[png(image) for image in shades("new", 2)])
        client.post("/extend?label=new", files=images, headers=BEARER)
        answer = client.post("/undo", headers=BEARER).json()
        assert (answer["change"]["what"], answer["change"]["images"]) == ("undo", {"new": -2})
        assert answer["saved"] is True
        assert predictor.continual.knowledge is before
        saved = load_learner(tmp_path / "saved", sha256=answer["model"])
        assert saved.classes == ("ok", "<b>bad")

    def test_nothing_to_take_back_is_told(self, serving):
        client = serving(make_continual({"ok": 2}), allow_extend=True, token=TOKEN)
        for _ in range(4):
            answer = client.post("/undo", headers=BEARER)
        assert (answer.status_code, "no change to undo" in answer.text) == (409, True)
        assert client.get("/health").json()["unsaved_changes"] <= 3

    @pytest.mark.parametrize("path", ["/undo", "/reload"])
    def test_it_takes_the_token(self, serving, path):
        assert serving().post(path, headers=BEARER).status_code == 403
        client = serving(allow_extend=True, token=TOKEN, predict_token=PREDICT_TOKEN)
        for headers in ({}, READER, {"Authorization": f"Bearer {TOKEN}x"}):
            assert client.post(path, headers=headers).status_code == 401

    def test_a_model_that_cannot_learn_cannot_undo(self, serving):
        client = serving(make_predictor(), allow_extend=True, token=TOKEN)
        assert client.post("/undo", headers=BEARER).status_code == 501


class TestPredictToken:
    """Predicting for who has a token; another one than that of who teaches."""

    @pytest.mark.parametrize("ask", [("POST", "/predict"), ("GET", "/model"), ("GET", "/metrics")])
    def test_what_tells_of_the_model_takes_a_token(self, serving, ask):
        client = serving(allow_extend=True, token=TOKEN, predict_token=PREDICT_TOKEN)
        image = png(shades("ok", 1)[0])
        wrong = ({}, {"Authorization": f"Bearer {PREDICT_TOKEN}x"}, {"Authorization": TOKEN})
        for headers in wrong:
            answer = client.request(*ask, content=image, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert PREDICT_TOKEN not in answer.text
        for headers in (READER, BEARER):
            assert client.request(*ask, content=image, headers=headers).status_code == 200

    def test_it_does_not_teach(self, serving, predictor):
        client = serving(allow_extend=True, token=TOKEN, predict_token=PREDICT_TOKEN)
        knowledge, image = predictor.continual.knowledge, png(shades("ok", 1)[0])
        answer = client.post("/extend?label=ok", content=image, headers=READER)
        assert answer.status_code == 401
        assert predictor.continual.knowledge is knowledge

    def test_probes_need_none_and_learn_nothing_of_the_model(self, serving):
        client = serving(predict_token=PREDICT_TOKEN)
        client.post("/predict", content=png(strange(1)[0]), headers=READER)
        assert client.get("/ready").status_code == 200
        assert client.get("/health").json()["drift"] is None
        assert client.get("/health", headers=READER).json()["drift"]["images"] == 1

    def test_one_token_for_both_is_refused(self, predictor):
        with pytest.raises(ServingError, match="could change the model; make another"):
            create_app(predictor, allow_extend=True, token=TOKEN, predict_token=TOKEN)
        with pytest.raises(ServingError, match="`predict_token` has 5 characters"):
            create_app(predictor, predict_token="short")


class TestReload:
    @pytest.fixture
    def disk(self):
        """Models to be opened one after the other; errors are raised."""
        return []

    @pytest.fixture
    def client(self, serving, disk):
        def reopen():
            found = disk.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        return serving(reopen=reopen, allow_extend=True, token=TOKEN)

    def label(self, client):
        return client.post("/predict", content=png(shades("ok", 1)[0]), headers=PLAIN).text

    def test_the_new_model_answers_and_learns(self, client, disk, predictor):
        former = client.get("/model").json()["model"]
        disk.append(make_continual({"fine": 6, "bad": 5, "odd": 4}))
        answer = client.post("/reload", headers=BEARER)
        assert (answer.status_code, answer.json()["classes"]) == (200, ["fine", "bad", "odd"])
        assert answer.json()["former"] == former
        assert client.get("/model").json()["model"] == answer.json()["model"] != former
        knowledge, image = predictor.continual.knowledge, png(shades("new", 1)[0])
        client.post("/extend?label=new", content=image, headers=BEARER)
        assert client.get("/model").json()["classes"] == ["fine", "bad", "odd", "new"]
        assert predictor.continual.knowledge is knowledge

    def test_a_broken_one_leaves_the_former(self, client, disk):
        before, label = client.get("/model").json(), self.label(client)
        disk.append(BundleCorruptError("model.safetensors was altered"))
        answer = client.post("/reload", headers=BEARER)
        assert answer.status_code == 409
        assert "the former model goes on: model.safetensors was altered" in answer.json()["error"]
        assert (client.get("/model").json(), self.label(client)) == (before, label)

    def test_what_fails_unexpectedly_leaves_it_too_and_another_attempt_is_possible(
        self, serving, predictor
    ):
        def reopen():
            raise MemoryError

        client = serving(reopen=reopen, token=TOKEN, raises=False)
        for _ in range(2):
            assert client.post("/reload", headers=BEARER).status_code == 500
        assert self.label(client) == "ok\n"

    def test_the_former_answers_what_it_has_and_what_comes_meanwhile(self, client, disk, predictor):
        from functools import partial

        begun, go = threading.Event(), threading.Event()
        service = client.app.state.service
        new = make_continual({"fine": 6, "bad": 5})

        def slow():
            begun.set()
            go.wait(20)
            return new

        service._reopen, former = slow, service.deployment
        threads = [threading.Thread(target=partial(client.post, "/reload", headers=BEARER))]
        threads[0].start()
        begun.wait(20)
        assert self.label(client) == "ok\n"
        again = client.post("/reload", headers=BEARER)
        assert (again.status_code, "already; wait" in again.json()["error"]) == (409, True)
        go.set()
        threads[0].join()
        assert client.get("/model").json()["classes"] == ["fine", "bad"]
        assert self.label(client) == "UNKNOWN\n"
        former.batcher._passing.shutdown(wait=True)  # its threads end, none hangs
        assert former.batcher._stopped

    def test_nothing_that_was_learned_is_lost(self, client, disk):
        image = png(shades("new", 1)[0])
        client.post("/extend?label=new", content=image, headers=BEARER)  # saved nowhere
        disk.append(make_continual({"fine": 6}))
        answer = client.post("/reload", headers=BEARER)
        assert (answer.status_code, "would be lost" in answer.json()["error"]) == (409, True)
        assert "new" in client.get("/model").json()["classes"]

    def test_an_application_that_was_given_its_model_says_so(self, serving):
        client = serving(allow_extend=True, token=TOKEN)
        answer = client.post("/reload", headers=BEARER)
        assert (answer.status_code, "given its model" in answer.json()["error"]) == (501, True)

    def test_the_token_reloads_where_nobody_may_teach(self, serving):
        client = serving(token=TOKEN, reopen=lambda: make_continual({"fine": 6, "bad": 5}))
        assert client.post("/reload", headers=BEARER).status_code == 200
        answer = client.post("/extend?label=x", content=b"x", headers=BEARER)
        assert answer.status_code == 403
        json.loads(answer.text)

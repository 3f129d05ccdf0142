"""The pages for people: they say what there is, and nothing in them is loaded or run."""

import re
from html.parser import HTMLParser

import pytest
from deploy_helpers import make_continual, make_predictor
from serving_helpers import TOKEN

pytest.importorskip("fastapi")

PREDICT_TOKEN = "staple-of-the-shop-floor"
READER = {"Authorization": f"Bearer {PREDICT_TOKEN}"}


class Page(HTMLParser):
    """The tags, links and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        names = dict(attributes)
        assert not [name for name in names if name.startswith("on")]
        self.links += [names[name] for name in ("href", "src", "action") if name in names]

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_nothing_is_loaded_or_run(serving, path):
    answer = serving().get(path)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script" not in policy
    page = Page(answer.text)
    assert not page.tags & {"script", "iframe", "object", "embed", "link", "form", "img", "base"}
    assert all(re.fullmatch(r"\./[a-z.]+", link) for link in page.links)
    assert page.links


def test_every_link_leads_somewhere(serving):
    client = serving()
    for path in ("/", "/docs"):
        for link in Page(client.get(path).text).links:
            assert client.get(f"/{link}").status_code == 200


def test_it_says_what_is_served_and_how_to_ask(serving):
    client = serving(allow_extend=True, token=TOKEN)
    page = Page(client.get("/", headers={"Host": "cam7:8000"}).text)
    digest = client.get("/model").json()["model"]
    for said in (digest, "32 x 32 pixels", "ok, <b>bad", "http://cam7:8000/predict", "/extend"):
        assert said in page.text
    assert "b" in page.tags  # of our own: the class shows as text
    assert "<b>bad" in page.text
    fixed = Page(serving(make_predictor()).get("/").text).text
    assert "/extend" not in fixed
    assert "are not told" in fixed


def test_names_from_outside_are_only_text(serving):
    hostile = "<script>alert(1)</script>\" onload='x'"
    client = serving(make_continual({hostile: 3, "ok": 3}))
    answer = client.get("/", headers={"Host": "<script>.example"})
    page = Page(answer.text)
    assert "script" not in page.tags
    assert hostile in page.text


def test_a_model_that_knows_nothing_or_much_has_a_page(serving):
    assert "has to be taught" in serving(make_continual()).get("/").text
    many = {f"class {number}": 1 + (number == 0) for number in range(103)}
    text = Page(serving(make_continual(many)).get("/").text).text
    assert "class 99, and 3 more" in text
    assert "class 100" not in text


def test_strangers_are_told_nothing_of_a_model_that_takes_a_token(serving):
    client = serving(predict_token=PREDICT_TOKEN)
    for page in (client.get("/").text, client.get("/docs").text):
        assert "bad" not in Page(page).text
        assert client.app.state.service.served.digest not in page
    assert "Authorization: Bearer TOKEN" in client.get("/").text
    assert "bad" in Page(client.get("/", headers=READER).text).text


def test_what_can_be_asked_is_all_there(serving):
    client = serving()
    page = Page(client.get("/docs").text)
    for path, operations in client.app.openapi()["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}" in page.text
            assert operation["summary"] in page.text
            for status in operation["responses"]:
                assert status in page.text
    for name in client.app.openapi()["components"]["schemas"]:
        assert name in page.text

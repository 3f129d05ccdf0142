"""The description of the server: sound by the standard, complete, and true of every answer.

`check_described` holds every answer in the tests of the application against it, see `conftest`.
"""

import re
from pathlib import Path

import pytest
from deploy_helpers import make_predictor, shades
from serving_helpers import BEARER, PAGES, TOKEN, check_described, form, png

pytest.importorskip("fastapi")
import jsonschema


@pytest.mark.parametrize("predict_token", [None, "staple-of-the-shop-floor"])
def test_it_is_sound_by_the_standard(serving, predict_token):
    validator = pytest.importorskip("openapi_spec_validator")
    client = serving(predict_token=predict_token)
    document = client.get("/openapi.json").json()
    validator.validate(document)
    assert document["openapi"] == "3.1.0"
    refused = {**document, "info": {}}
    with pytest.raises(Exception, match="'title' is a required property"):
        validator.validate(refused)


def test_it_has_all_that_is_served_and_nothing_else(serving):
    client = serving()
    served = {
        (route.path, method.lower())
        for route in client.app.routes
        for method in route.methods - {"HEAD"}
    }
    document = client.app.openapi()
    described = {(path, method) for path, found in document["paths"].items() for method in found}
    assert served == described | {(page, "get") for page in PAGES}


@pytest.mark.parametrize(
    ("path", "open_to_all", "closed"),
    [
        ("/predict", [], ["client", "teacher"]),
        ("/model", [], ["client", "teacher"]),
        ("/metrics", [], ["client", "teacher"]),
        ("/extend", ["teacher"], ["teacher"]),
        ("/undo", ["teacher"], ["teacher"]),
        ("/reload", ["teacher"], ["teacher"]),
        ("/health", [], []),
        ("/ready", [], []),
    ],
)
def test_who_needs_a_token_is_told_and_it_is_so(serving, path, open_to_all, closed):
    # each server on a model of its own: they close what they were given
    options = {"token": TOKEN, "allow_extend": True, "reopen": make_predictor}
    for token, names in ((None, open_to_all), ("staple-of-the-shop-floor", closed)):
        client = serving(make_predictor(), predict_token=token, **options)
        ((method, operation),) = client.app.openapi()["paths"][path].items()
        assert [name for one in operation["security"] for name in one] == names
        for scheme in client.app.openapi()["components"]["securitySchemes"].values():
            assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
        image = png(shades("ok", 1)[0]) if method == "post" else None
        refused = client.request(method, path, content=image).status_code == 401
        assert refused is bool(names)
        assert client.request(method, path, content=image, headers=BEARER).status_code != 401


def test_what_is_sent_is_described_in_each_of_its_forms(serving):
    document = serving().app.openapi()
    for path in ("/predict", "/extend"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert {*content} == {
            "multipart/form-data",
            "application/json",
            "application/octet-stream",
        }
    schema = {**document["components"]["schemas"]["Images"], "components": document["components"]}
    for right in ({"images": ["QUJD"]}, {"images": [{"data": "QUJD", "name": "a"}], "alpha": 0.1}):
        jsonschema.validate(right, schema)
    for wrong in ({}, {"images": []}, {"images": [7]}, {"images": ["QUJD"], "alpha": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_the_check_of_answers_notices_what_is_not_described(serving):
    client = serving(make_predictor())
    answer = client.post("/predict", files=form(png(shades("ok", 1)[0])))
    document = client.app.openapi()
    check_described(document, answer)
    answer._content = answer.content.replace(b'"confidence"', b'"trust"')
    with pytest.raises(jsonschema.ValidationError):
        check_described(document, answer)


def test_the_readme_names_all_of_it(serving):
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = text[text.index("\n| ask | answer |") : text.index("An error is a status")]
    named = set(re.findall(r"(?:POST |GET |`)(/[a-z.]*)`", rows))
    assert named == {*serving().app.openapi()["paths"], *PAGES}

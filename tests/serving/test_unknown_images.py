"""Unknown images that a server keeps for whoever labels them."""

import logging

import pytest
from deploy_helpers import make_predictor, shades, strange
from serving_helpers import form, png

from learnkit.errors import ServingError
from learnkit.serving.app import create_app


def sent(client, *images):
    return client.post("/predict", files=form(*map(png, images))).json()["predictions"]


def test_what_is_flagged_is_kept_byte_for_byte_and_nothing_else(serving, tmp_path):
    known, unknown = shades("ok", 1, seed=4)[0], strange(1)[0]
    client = serving(keep_unknown=tmp_path)
    assert [one["is_ood"] for one in sent(client, known, unknown)] == [False, True]
    sent(client, unknown)  # the same again
    client.app.state.service.unknown.close()
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == png(unknown)
    assert len(kept.stem) == len("20260101T000000000Z_12345678")
    assert kept.suffix == ".png"


def test_a_full_folder_takes_no_more_and_loses_none_and_the_log_says_so_once(
    serving, tmp_path, caplog
):
    client = serving(keep_unknown=tmp_path, keep_at_most=2)
    with caplog.at_level(logging.ERROR, "learnkit.serving"):
        sent(client, *strange(5))
        client.app.state.service.unknown.close()
    assert len([*tmp_path.iterdir()]) == 2
    assert [one.getMessage() for one in caplog.records] == [
        f"{tmp_path} holds 2 images: no more unknown ones are kept until some are labelled "
        "(--keep-at-most)"
    ]


def test_a_folder_that_is_not_there_is_said_before_anything_is_served(predictor, tmp_path):
    with pytest.raises(ServingError, match=r"--keep-unknown is .*missing.*make it"):
        create_app(predictor, keep_unknown=tmp_path / "missing")


def test_a_model_that_tells_no_unknown_images_keeps_none(tmp_path):
    with pytest.raises(ServingError, match="this one tells none"):
        create_app(make_predictor(), keep_unknown=tmp_path)

"""Warnings for the user: where they are said, and when."""

import pickle
import warnings

import pytest
from torch._utils import ExceptionWrapper

from learnkit import errors
from learnkit.data.image import read_image
from learnkit.errors import LearnkitError, warn_user, warned_after


@warned_after
def learn(n, *, then=()):
    """As a verb of learnkit that warns, and calls others."""
    warn_user(f"{n} images count twice now")
    for one in then:
        learn(one)
    return 1 // n


@pytest.fixture
def said():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


class TestWarnedAfter:
    def test_says_what_a_call_warned_of_when_it_has_succeeded(self, said):
        assert learn(1) == 1
        assert [str(one.message) for one in said] == ["1 images count twice now"]
        assert said[0].filename == __file__

    def test_says_nothing_of_a_call_that_failed(self, said):
        with pytest.raises(ZeroDivisionError):
            learn(0)
        assert said == []
        learn(1)
        assert len(said) == 1

    def test_says_nothing_of_a_call_within_one_that_failed(self, said):
        with pytest.raises(ZeroDivisionError):
            learn(2, then=[1, 0])
        assert said == []

    def test_says_a_thing_once_and_in_order(self, said):
        learn(2, then=[3, 2, 1])
        numbers = [str(one.message)[0] for one in said]
        assert numbers == ["2", "3", "1"]

    def test_is_not_deaf_in_what_comes_after(self, said):
        with pytest.raises(ZeroDivisionError):
            learn(0)
        warn_user("by itself")
        assert [str(one.message) for one in said] == ["by itself"]


KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LearnkitError)
]


class TestErrorsOfOtherProcesses:
    """torch raises an error of a reading process again, its traceback in the message."""

    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
    def test_every_kind_says_what_it_said_there(self, kind):
        try:
            raise kind("image 'a: b.png' is\nno image; remove it")
        except LearnkitError:
            wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
        assert "Traceback" in wrapped.exc_msg
        with pytest.raises(kind) as caught:
            wrapped.reraise()
        assert str(caught.value) == "image 'a: b.png' is\nno image; remove it"

    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
    def test_every_kind_pickles(self, kind):
        again = pickle.loads(pickle.dumps(kind("Caught in the rain")))
        assert (type(again), str(again)) == (kind, "Caught in the rain")


def test_a_missing_file_is_a_file_that_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read_image(tmp_path / "none.png")
    said = f"image {str(tmp_path / 'none.png')!r} cannot be read: there is no such file"
    assert str(caught.value) == said
    assert isinstance(caught.value, errors.ImageReadError)


def test_a_missing_package_is_named_as_of_any_import_error():
    error = errors.MissingExtraError("onnx is not installed", name="onnx")
    assert (str(error), error.name) == ("onnx is not installed", "onnx")


def test_a_notebook_shows_the_lines_of_the_caller_and_the_message(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read_image(tmp_path / "none.png")
    *lines, message = caught.value._render_traceback_()
    assert [__file__ in line for line in lines] == [True]
    assert 'read_image(tmp_path / "none.png")' in lines[0]
    assert message == f"learnkit.errors.ImageNotFoundError: {caught.value}\n"

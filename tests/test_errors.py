"""Warnings for the user: where they are said, and when."""

import warnings

import pytest

from learnkit.errors import warn_user, warned_after


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

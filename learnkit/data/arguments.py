"""Checks of numbers that several verbs of data take: counts and seeds."""

from typing import Any

import numpy as np

from learnkit.errors import DataError


def check_number(name: str, value: Any, *, least: int, hint: str = "") -> None:
    """Raise DataError unless `value` is a whole number of `least` or more.

    >>> check_number("bs", 8, least=1)
    >>> check_number("bs", 2.0, least=1)
    Traceback (most recent call last):
    learnkit.errors.DataError: `bs` is 2.0; give a whole number from 1 on
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise DataError(f"`{name}` is {value!r}; give a whole number from {least} on{hint}")


def check_seed(seed: Any) -> None:
    """Raise DataError unless `seed` is a whole number of 0 or more, or None: another every time."""
    if seed is not None:
        check_number("seed", seed, least=0, hint=", or None for another result every time")

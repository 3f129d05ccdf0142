"""How operators and procedures are called: errors with HALCON's numbers, tuples of any length.

HDevEngine's classes call the same functions, with inputs and outputs by name.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np

from learnkit.errors import LearnkitError
from learnkit.halcon import errors
from learnkit.halcon.errors import (
    HError,
    HTupleConversionError,
    as_halcon_error,
    operator_error,
)

P = ParamSpec("P")
T = TypeVar("T")

# By name, for those who call through HDevEngine's classes.
CALLABLES: dict[str, Callable[..., Any]] = {}
OUTPUTS: dict[str, tuple[str, ...]] = {}

_TRUE, _FALSE = (True, 1, "true"), (False, 0, "false")


def operator(*outputs: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function raise HALCON's errors, and be found by name; `outputs` are HALCON's names."""
    return functools.partial(_registered, outputs=outputs)


# Procedures are called alike; their own complaints are an `HError` without a number.
procedure = operator


def _registered(function: Callable[P, T], *, outputs: tuple[str, ...]) -> Callable[P, T]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs)
        try:
            given.arguments.update(_plain_arguments(signature, given.arguments))
            return function(*given.args, **given.kwargs)
        # first: it is a LearnkitError, too, and has its number already
        except HError:
            raise
        except LearnkitError as error:
            raise as_halcon_error(error) from error

    CALLABLES[function.__name__], OUTPUTS[function.__name__] = run, outputs
    return run


def _plain_arguments(signature: inspect.Signature, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as Python has them: one text, file or number of a tuple of one, lists of arrays.

    Raises:
        HOperatorError: 1200 and the place of the parameter, it is no text, or no name of a file.
    """
    found = {name: without_array(value) for name, value in given.items()}
    for place, (name, parameter) in enumerate(signature.parameters.items(), 1):
        # annotations are texts: `from __future__ import annotations` leaves them so
        if name not in given or parameter.annotation not in _SCALARS:
            continue
        kinds, what = _SCALARS[parameter.annotation]
        found[name] = value = one_value(given[name])
        # a NUL in the name of a file would end in Python's own ValueError
        if kinds and (not isinstance(value, kinds) or "\0" in str(value)):
            raise operator_error(
                errors.H_ERR_WIPT1 + place - 1,
                f"`{name}` is {given[name]!r:.80}; it is {what}",
            )
    return found


# By annotation: what is checked here, and how it is called; ranges of numbers are with each use.
_SCALARS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "str | int": ((str, int), "text or a whole number"),
    "Handle": ((MutableMapping,), "a dictionary"),
    "str | os.PathLike[str]": ((str, os.PathLike), "the name of a file or folder"),
    "bytes": ((bytes, bytearray, memoryview), "bytes"),
    "int": ((), ""),
    "float": ((), ""),
}


def is_whole(value: Any, least: int, most: int) -> bool:
    """Whether it is a whole number in `least..most`; True and 1.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def without_array(value: Any, n_dims: int = 1) -> Any:
    """An array or tensor of at most `n_dims` dimensions as lists and numbers; all else as it is.

    Comparisons with what scripts may pass, and its truth, then are those of HALCON's tuples; arrays
    of more dimensions are images.

    >>> without_array(np.array([1, 2])), without_array(np.float64(.5)), without_array("a")
    ([1, 2], 0.5, 'a')
    """
    is_array = hasattr(value, "__array__") and hasattr(value, "tolist")
    return value.tolist() if is_array and value.ndim <= n_dims else value


def one_value(value: Any) -> Any:
    """The only element of a tuple, of numpy's numbers Python's; all else as it is.

    >>> one_value([3]), one_value(np.int64(3)), one_value([3, 4])
    (3, 3, [3, 4])
    """
    if isinstance(value, list | tuple | np.ndarray | np.generic):
        found = as_tuple(value)
        return found[0] if len(found) == 1 else value
    return value


def input_names(function: Callable[..., Any]) -> list[str]:
    """Names of a function's inputs in their documented order."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]


def same_name(one: str, other: str) -> bool:
    """Whether HALCON's name and the binding's are one: `DLSampleBatch` and `dlsample_batch`."""
    return one.replace("_", "").lower() == other.replace("_", "").lower()


def as_tuple(value: Any, *, nested: bool = False) -> list[Any]:
    """A list of what may be a scalar, any sequence, or a dictionary with the keys 0, 1, 2, ...

    HALCON's JSON has scalars for tuples of one element, and such dictionaries for arrays. Tuples in
    tuples, which only other programs write, are refused unless they may be `nested`.

    >>> as_tuple(3), as_tuple((3, 4)), as_tuple({"0": "a", "1": "b"}), as_tuple([])
    ([3], [3, 4], ['a', 'b'], [])
    """
    if isinstance(value, Mapping) and value and _is_array(value):
        # by number: as texts '10' stands before '2'
        return [value[key] for key in sorted(value, key=int)]
    if isinstance(value, np.ndarray):
        return value.reshape(-1).tolist()
    value = without_array(value)
    values = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if not nested and any(isinstance(one, list | tuple | set | np.ndarray) for one in values):
        raise operator_error(
            errors.H_ERR_CTPL_WTYP, f"{value!r:.80} is a tuple of tuples; HALCON's hold none"
        )
    return [one.item() if isinstance(one, np.generic) else one for one in values]


def _is_array(value: Mapping[Any, Any]) -> bool:
    keys = {str(key) for key in value}
    return keys == {str(place) for place in range(len(value))}


def is_nothing(value: Any) -> bool:
    """Whether this stands for no dictionary: None, an empty tuple or dictionary."""
    return value is None or (isinstance(value, Sequence | Mapping) and not value)


def as_dict(value: Any) -> dict[str, Any]:
    """The dictionary meant; `[]`, `{}` and None are all none."""
    if is_nothing(value):
        return {}
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        (value,) = value
    if not isinstance(value, Mapping):
        raise operator_error(
            errors.H_ERR_DL_MODEL_UNSUPPORTED_GENPARAM,
            f"{value!r:.100} is a {type(value).__name__}; give a dictionary, or [] for none",
        )
    return dict(value)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system says of a file that cannot be written into error 7781."""
    try:
        yield
    except OSError as error:
        raise operator_error(
            errors.H_ERR_DL_FILE_WRITE,
            f"{os.fspath(path)!r} cannot be written: {error.strerror}; name another place",
        ) from error


def as_bool(value: Any, name: str) -> bool:
    """True or False of what HALCON writes for them: 'true' and 'false', 1 and 0."""
    one = one_value(value)
    # the type first: 1.0 equals 1, and an array has no single truth
    if isinstance(one, bool | int | str) and one in (*_TRUE, *_FALSE):
        return one in _TRUE
    raise wrong_value(name, value, "'true' or 'false'")


def wrong_value(name: str, value: Any, allowed: str) -> HError:
    """Error 7914: the value of a parameter is none of those there are."""
    return operator_error(
        errors.H_ERR_DL_MODEL_UNSUPPORTED_GENVALUE,
        f"{name!r} is {value!r:.100}; it takes {allowed}",
    )


def checked_params(
    given: Any, defaults: Mapping[str, Any], where: str, *, of_operator: bool = True
) -> dict[str, Any]:
    """`defaults` with what is given.

    Raises:
        HError: A key is unknown (7911 where an operator is called); the message lists those known.
    """
    given = as_dict(given)
    if unknown := [key for key in given if key not in defaults]:
        known = ", ".join(map(repr, defaults)) or "no key"
        told = f"{where} does not know {unknown[0]!r}; it takes {known}"
        if of_operator:
            raise operator_error(errors.H_ERR_DL_MODEL_UNSUPPORTED_GENPARAM, told)
        raise HError(told)
    return {**defaults, **{key: without_array(value, _ANY) for key, value in given.items()}}


_ANY = 64  # dimensions: no parameter is an image


def one_of(value: Any, where: str) -> Any:
    """The only element of a tuple, as operators whose name ends in `_s` return it."""
    found = as_tuple(value, nested=True)
    if len(found) != 1:
        raise HTupleConversionError(f"{where} has {len(found)} elements; the `_s` form needs one")
    return found[0]


class HDevProcedure:
    """A procedure by its name.

    Args:
        name: such as "preprocess_dl_samples".

    Raises:
        HError: there is none of this name.
    """

    def __init__(self, name: str):
        if not isinstance(name, str) or name not in CALLABLES:
            raise HError(
                f"there is no procedure {name!r} here; learnkit.halcon lists those there are"
            )
        self.name = name

    @classmethod
    def load_external(cls, name: str) -> HDevProcedure:
        """The procedure of this name; no file is read."""
        return cls(name)


class HDevProcedureCall:
    """A call of a procedure: inputs are set, `execute` runs it, outputs are asked for.

    Args:
        procedure: what to call.
    """

    def __init__(self, procedure: HDevProcedure):
        self.procedure = procedure
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}

    def set_input_control_param_by_name(self, name: str, value: Any) -> None:
        """Set an input by HALCON's name, such as "DLSampleBatch", or the binding's.

        Raises:
            HError: the procedure has no such input.
        """
        known = input_names(CALLABLES[self.procedure.name])
        found = [one for one in known if same_name(one, name)]
        if not found:
            raise HError(f"{self.procedure.name} has no input {name!r}; it has {', '.join(known)}")
        self._inputs[found[0]] = value

    set_input_iconic_param_by_name = set_input_control_param_by_name

    def execute(self) -> None:
        """Run the procedure."""
        function = CALLABLES[self.procedure.name]
        try:
            # apart from the call: a TypeError of the procedure itself is no missing input
            inspect.signature(function).bind(**self._inputs)
        except TypeError as error:
            raise HError(f"{self.procedure.name} cannot be called: {error}; set it") from error
        found = function(**self._inputs)
        names = OUTPUTS[self.procedure.name]
        # a single output is returned as it is, and None where there is no output
        values = found if len(names) > 1 else (found,) * len(names)
        self._outputs = dict(zip(names, values, strict=True))

    def get_output_control_param_by_name(self, name: str) -> Any:
        """An output, after `execute`.

        Raises:
            HError: the procedure has no such output, or did not run.
        """
        found = [value for one, value in self._outputs.items() if same_name(one, name)]
        if not found:
            known = ", ".join(OUTPUTS[self.procedure.name]) or "none"
            raise HError(f"{self.procedure.name} has no output {name!r}; it has {known}")
        return found[0]

    get_output_iconic_param_by_name = get_output_control_param_by_name

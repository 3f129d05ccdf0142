"""HALCON's dictionary operators, on plain dictionaries."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from learnkit.errors import DataError
from learnkit.halcon.errors import H_ERR_DL_FILE_READ, operator_error
from learnkit.halcon.operators import (
    as_tuple,
    checked_params,
    is_whole,
    one_of,
    operator,
    writing,
    wrong_value,
)
from learnkit.storage.formats import finite_or_none, parse_json

Handle = MutableMapping[Any, Any]
# `set_dict_tuple_at` fills with zeros up to it: a slip is not to take all memory
_MAX_INDEX = 10_000_000
# HALCON's JSON values, and what they are without a parameter.
_JSON: dict[str, Any] = {
    "convert_json_arrays_to": "tuple",
    "json_value_true": True,
    "json_value_false": False,
    "json_value_null": None,
}


@operator("DictHandle")
def create_dict() -> dict[str, Any]:
    """An empty dictionary."""
    return {}


@operator("CopiedDictHandle")
def copy_dict(dict_handle: Handle, gen_param_name: Any = (), gen_param_value: Any = ()) -> Handle:
    """A copy that shares no dictionary with the first."""
    return copy.deepcopy(dict_handle)


@operator()
def set_dict_tuple(dict_handle: Handle, key: str | int, tuple: Any) -> None:
    """Set a key; what it held before is gone."""
    dict_handle[key] = tuple


@operator()
def set_dict_tuple_at(dict_handle: Handle, key: str | int, index: int, value: Any) -> None:
    """Set one element of a tuple; it grows by zeros up to `index`."""
    if not is_whole(index, 0, _MAX_INDEX):
        raise DataError(f"`index` is {index!r:.80}; it is a place in 0..{_MAX_INDEX}")
    values = as_tuple(dict_handle.get(key, []))
    values += [0] * (index + 1 - len(values))
    values[index] = value
    dict_handle[key] = values


@operator("Tuple")
def get_dict_tuple(dict_handle: Handle, key: str | int) -> list[Any]:
    """The tuple of a key as a list; of one element, too.

    >>> get_dict_tuple({"class_names": "ok"}, "class_names")
    ['ok']
    """
    return as_tuple(_value(dict_handle, key), nested=True)


@operator("Tuple")
def get_dict_tuple_s(dict_handle: Handle, key: str | int) -> Any:
    """The only element of a key's tuple."""
    return one_of(_value(dict_handle, key), repr(key))


@operator()
def set_dict_object(object: Any, dict_handle: Handle, key: str | int) -> None:
    """Set a key to an image; the image comes first, as in HALCON."""
    dict_handle[key] = object


@operator("Object")
def get_dict_object(dict_handle: Handle, key: str | int) -> Any:
    """The image of a key."""
    return _value(dict_handle, key)


@operator("GenParamValue")
def get_dict_param(dict_handle: Handle, gen_param_name: str, dict_key: Any = ()) -> list[Any]:
    """'keys'; or for each key 'key_exists' (1 or 0), or 'key_data_type' ('tuple', 'object')."""
    if gen_param_name == "keys":
        return list(dict_handle)
    keys = as_tuple(dict_key)
    if gen_param_name == "key_exists":
        return [int(key in dict_handle) for key in keys]
    if gen_param_name == "key_data_type":
        values = (_value(dict_handle, key) for key in keys)
        return ["object" if isinstance(one, np.ndarray) else "tuple" for one in values]
    raise DataError(
        f"`gen_param_name` is {gen_param_name!r}; it takes 'keys', 'key_exists' or 'key_data_type'"
    )


@operator("GenParamValue")
def get_dict_param_s(dict_handle: Handle, gen_param_name: str, dict_key: Any = ()) -> Any:
    """The only element of `get_dict_param`."""
    return one_of(get_dict_param(dict_handle, gen_param_name, dict_key), repr(gen_param_name))


@operator()
def remove_dict_key(dict_handle: Handle, key: Any) -> None:
    """Remove keys; those that are not there are no error."""
    for one in as_tuple(key):
        if isinstance(one, str | int):
            dict_handle.pop(one, None)


@operator("DictHandle")
def read_dict(
    file_name: str | os.PathLike[str], gen_param_name: Any = (), gen_param_value: Any = ()
) -> dict[str, Any]:
    """The dictionary in a JSON file.

    Differs from HALCON: arrays are lists where 'convert_json_arrays_to' is not given.

    Args:
        file_name: of the file.
        gen_param_name: 'convert_json_arrays_to', 'json_value_true', 'json_value_false',
            'json_value_null'.
        gen_param_value: 'dict' makes arrays dictionaries with the keys 0, 1, ..., 'tuple' lists; of
            the others what stands for true, false and null.

    Raises:
        HOperatorError: 7911 and 7914, another parameter or value.
        HOperatorError: 7780, the file is missing, no JSON, or HALCON's binary form, which is
            closed; the message has the line that writes it as JSON.
    """
    path = Path(file_name)
    if not path.is_file():
        raise operator_error(H_ERR_DL_FILE_READ, f"there is no file {str(file_name)!r}")
    if path.suffix == ".hdict":
        raise operator_error(
            H_ERR_DL_FILE_READ,
            f"{path.name!r} is HALCON's binary form, which is closed; write it as JSON in "
            f"HDevelop: write_dict (DLDataset, '{path.stem}.json', [], [])",
        )
    found = parse_json(path.read_bytes(), path.name)
    return _with_forms(found, _json_param(gen_param_name, gen_param_value))


def _json_param(names: Any, values: Any) -> dict[str, Any]:
    names, values = as_tuple(names), as_tuple(values)
    if len(names) != len(values):
        raise wrong_value("gen_param_value", values, f"one value for each of {names}")
    given = dict(zip(names, values, strict=True))
    param = checked_params(given, _JSON, "JSON")
    if param["convert_json_arrays_to"] not in ("dict", "tuple"):
        name = "convert_json_arrays_to"
        raise wrong_value(name, param[name], "'dict' or 'tuple'")
    return param


def _with_forms(value: Any, param: Mapping[str, Any]) -> Any:
    """A value of JSON with what stands for its arrays, true, false and null."""
    if isinstance(value, dict):
        return {key: _with_forms(one, param) for key, one in value.items()}
    if isinstance(value, list):
        values = [_with_forms(one, param) for one in value]
        return dict(enumerate(values)) if param["convert_json_arrays_to"] == "dict" else values
    # by type: the numbers 1 and 0 equal true and false
    if value is None or isinstance(value, bool):
        return param[
            {True: "json_value_true", False: "json_value_false"}.get(value, "json_value_null")
        ]
    return value


@operator()
def write_dict(
    dict_handle: Handle,
    file_name: str | os.PathLike[str],
    gen_param_name: Any = (),
    gen_param_value: Any = (),
) -> None:
    """Write a dictionary as JSON, whatever the file is called; images cannot be in it."""
    text = json_text(dict_handle)
    with writing(file_name):
        Path(file_name).write_text(text, encoding="utf-8")


@operator("JsonString")
def dict_to_json(
    dict_handle: Handle, gen_param_name: Any = (), gen_param_value: Any = ()
) -> list[str]:
    """The dictionary as JSON."""
    return [json_text(dict_handle)]


@operator("JsonString")
def dict_to_json_s(dict_handle: Handle, gen_param_name: Any = (), gen_param_value: Any = ()) -> str:
    """The dictionary as JSON."""
    return json_text(dict_handle)


@operator("DictHandle")
def json_to_dict(
    json_string: str, gen_param_name: Any = (), gen_param_value: Any = ()
) -> list[dict[str, Any]]:
    """The dictionary that a JSON text holds."""
    return [json_to_dict_s(json_string, gen_param_name, gen_param_value)]


@operator("DictHandle")
def json_to_dict_s(
    json_string: str, gen_param_name: Any = (), gen_param_value: Any = ()
) -> dict[str, Any]:
    """The dictionary that a JSON text holds."""
    found = parse_json(json_string.encode(), "the text")
    return _with_forms(found, _json_param(gen_param_name, gen_param_value))


@operator("Dict")
def as_python_dict(dict_handle: Handle) -> dict[str, Any]:
    """The dictionary itself."""
    return dict_handle


as_python_dict_s = from_python_dict = as_python_dict


def _value(dict_handle: Handle, key: str | int) -> Any:
    if key not in dict_handle:
        known = ", ".join(map(repr, list(dict_handle)[:10])) or "no key"
        raise DataError(f"the dictionary has no key {key!r}; it has {known}")
    return dict_handle[key]


def plain(value: Any) -> Any:
    """A value as JSON holds it: arrays as lists, NaN (the recall of no image) as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [*map(plain, value)]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return finite_or_none(value) if isinstance(value, float) else value


def json_text(value: Any) -> str:
    """A dictionary as strict JSON; DataError for what it cannot hold."""
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, default=_plain)
    # what holds itself is a ValueError of json's, what is nested too deep a RecursionError
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the dictionary cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is no tuple; images go with write_dl_samples")

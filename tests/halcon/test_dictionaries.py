"""HALCON's dictionary operators on plain dictionaries."""

import numpy as np
import pytest

import learnkit.halcon as ha
from learnkit.halcon.operators import as_tuple


def test_a_tuple_comes_back_as_a_list_whatever_its_length():
    one = ha.create_dict()
    ha.set_dict_tuple(one, "names", ["a", "b"])
    ha.set_dict_tuple(one, "name", "a")
    assert ha.get_dict_tuple(one, "names") == ["a", "b"]
    assert ha.get_dict_tuple(one, "name") == ["a"]
    assert ha.get_dict_tuple_s(one, "name") == "a"


def test_the_s_form_refuses_other_lengths_than_one():
    with pytest.raises(ha.HTupleConversionError, match="'names' has 2 elements"):
        ha.get_dict_tuple_s({"names": ["a", "b"]}, "names")


def test_a_missing_key_names_those_there_are():
    with pytest.raises(ha.HOperatorError, match="no key 'x'; it has 'a'"):
        ha.get_dict_tuple({"a": 1}, "x")


def test_a_copy_shares_no_dictionary():
    first = {"a": {"b": [1]}}
    second = ha.copy_dict(first, [], [])
    second["a"]["b"].append(2)
    assert first == {"a": {"b": [1]}}


def test_setting_an_element_behind_the_end_fills_with_zeros():
    one = {"t": [1]}
    ha.set_dict_tuple_at(one, "t", 3, 7)
    assert one == {"t": [1, 0, 0, 7]}


def test_parameters_of_a_dictionary():
    one = {"image": np.zeros((2, 2)), "ids": [1]}
    assert ha.get_dict_param(one, "keys", []) == ["image", "ids"]
    assert ha.get_dict_param(one, "key_exists", ["ids", "x"]) == [1, 0]
    assert ha.get_dict_param(one, "key_data_type", ["image", "ids"]) == ["object", "tuple"]
    assert ha.get_dict_param_s(one, "key_exists", "x") == 0
    with pytest.raises(ha.HOperatorError, match="takes 'keys', 'key_exists' or 'key_data_type'"):
        ha.get_dict_param(one, "size", [])


def test_objects_come_first_and_keys_are_removed():
    one, image = {}, np.zeros((2, 2))
    ha.set_dict_object(image, one, "image")
    assert ha.get_dict_object(one, "image") is image
    ha.remove_dict_key(one, ["image", "x"])
    assert one == {}


def test_json_is_written_and_read(tmp_path):
    one = {"class_ids": np.array([3])[0], "names": ["ß"], "real": 0.5}
    ha.write_dict(one, tmp_path / "d.json", [], [])
    assert ha.read_dict(tmp_path / "d.json", [], []) == {
        "class_ids": 3,
        "names": ["ß"],
        "real": 0.5,
    }
    assert (
        ha.json_to_dict_s(ha.dict_to_json_s(one), [], [])
        == ha.json_to_dict(ha.dict_to_json(one)[0])[0]
    )


def test_images_do_not_go_into_json():
    with pytest.raises(ha.HOperatorError, match="images go with write_dl_samples"):
        ha.dict_to_json_s({"image": np.zeros(2)})


def test_the_binary_form_is_refused_with_the_line_that_writes_json(tmp_path):
    (tmp_path / "parts.hdict").write_bytes(b"HDICT")
    with pytest.raises(
        ha.HOperatorError, match=r"write_dict \(DLDataset, 'parts.json', \[\], \[\]\)"
    ) as e:
        ha.read_dict(tmp_path / "parts.hdict", [], [])
    assert e.value.error_code == 7780


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff"])
def test_damaged_json_is_refused(tmp_path, content):
    (tmp_path / "d.json").write_bytes(content)
    with pytest.raises(ha.HOperatorError):
        ha.read_dict(tmp_path / "d.json", [], [])


def test_a_missing_file_is_7780(tmp_path):
    with pytest.raises(ha.HOperatorError, match="there is no file") as e:
        ha.read_dict(tmp_path / "d.json", [], [])
    assert e.value.error_code == ha.errors.H_ERR_DL_FILE_READ


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (3, [3]),
        ("a", ["a"]),
        ([], []),
        (None, []),
        ((1, 2), [1, 2]),
        ({"0": 5, "1": 6}, [5, 6]),
        ({1: "b", 0: "a"}, ["a", "b"]),
        ({str(i): i for i in range(12)}, list(range(12))),
        (np.array([[1, 2]]), [1, 2]),
        ({}, [{}]),
        ({"0": 5, "2": 6}, [{"0": 5, "2": 6}]),
    ],
)
def test_tuples_come_in_many_forms(value, found):
    assert as_tuple(value) == found


def test_everything_else_of_halcon_says_where_it_is():
    with pytest.raises(AttributeError, match="operators and procedures for deep learning alone"):
        _ = ha.threshold

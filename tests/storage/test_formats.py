import json
import struct

import pytest
import safetensors.torch
import torch

from learnkit.errors import BundleCorruptError, ExportError
from learnkit.storage.formats import (
    MAX_DEPTH,
    MAX_HEADER_BYTES,
    parse_json,
    parse_tensors,
    tensors_to_bytes,
    to_json,
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"x": {"a": 1, "b": 2, "a": 1}}', "'a' stands twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": [-Infinity]}', "-Infinity is not"),
        (b'{"a": 1e999}', "too large a number"),
        (b'{"a": 1', "not strict JSON"),
        (b'{"a": "\xff"}', "not strict JSON"),
        (b'{"a": "\\ud800"}', "not strict JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "9{40} is too large a number"),
        (b'{"a": [-1' + b"0" * 400 + b"]}", "-10{38} is too large a number"),
        (b"[1, 2]", "holds a JSON list"),
        (b"", "not strict JSON"),
        (b"[" * 50_000, f"deeper than {MAX_DEPTH}"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, f"deeper than {MAX_DEPTH}"),
    ],
)
def test_unsound_json_is_refused_with_file_and_reason(text, reason):
    with pytest.raises(BundleCorruptError, match=f"config.json .*{reason}"):
        parse_json(text, "config.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": "' + b'\\"' * 1_000_000, "not strict JSON: Unterminated string"),
        (b"{" + b",".join(b'"%d":1' % (i % 100_000) for i in range(100_001)) + b"}", "'0' stands"),
        (
            b"{" + b",".join(b'"%d":1' % i for i in range(100_000)) + b',"99999":1}',
            "'99999' stands twice",
        ),
    ],
)
def test_large_unsound_json_is_refused_in_linear_time(text, reason):
    """In quadratic time the first takes hours, and the last one minutes."""
    with pytest.raises(BundleCorruptError, match=reason):
        parse_json(text, "config.json")


def test_json_keeps_names_that_other_formats_change():
    names = {
        "NO": "010",
        "ß\u0301": "a/b",
        'quo"te': "[[[[{{{{",
        "nul\u0000": True,
        "x": [1, 2.5, None],
    }
    assert parse_json(to_json(names), "x.json") == names


def test_brackets_inside_strings_are_not_nesting():
    assert parse_json(json.dumps({"a": "[" * 1000 + '\\"['}).encode(), "x")["a"].startswith("[[[")


def test_tensors_of_any_layout_and_sharing_come_back_bit_equal():
    base = torch.randn(4, 3, 5, 5)
    tensors = {
        "plain": base,
        "shared": base,
        "view": base[1:3],
        "transposed": base.transpose(0, 3),
        "channels_last": base.to(memory_format=torch.channels_last),
        "expanded": torch.ones(1).expand(6),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "half": base.half(),
        "parameter": torch.nn.Parameter(base[0]),
    }
    found = parse_tensors(tensors_to_bytes(tensors), "model.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor.detach())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weights_are_refused_both_ways_by_name(bad):
    tensors = {"good": torch.ones(2), "body.conv.weight": torch.tensor([1.0, bad])}
    with pytest.raises(ExportError, match=r"body.conv.weight.*NaN or infinite"):
        tensors_to_bytes(tensors)
    with pytest.raises(BundleCorruptError, match=r"model.safetensors.*body.conv.weight"):
        parse_tensors(safetensors.torch.save(tensors), "model.safetensors")


def _file(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _entry(start, end, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HOSTILE = {
    "empty": b"",
    "short": b"\x01\x00",
    "header beyond the file": struct.pack("<Q", 100) + b"{}",
    "header of 2**63": struct.pack("<Q", 2**63) + b"{}",
    "header over the cap": _file(b"{" + b" " * MAX_HEADER_BYTES + b"}"),
    "not json": _file(b"nonsense"),
    "duplicate names": _file(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "nested": _file(b"[" * 10_000),
    "truncated data": _file({"a": _entry(0, 4)}, b"\x00\x00"),
    "extra tail": _file({"a": _entry(0, 4)}, bytes(9)),
    "overlap": _file({"a": _entry(0, 4), "b": _entry(2, 6)}, bytes(6)),
    "gap": _file({"a": _entry(0, 4), "b": _entry(8, 12)}, bytes(12)),
    "negative shape": _file({"a": _entry(0, 4, shape=(-1,))}, bytes(4)),
    "overflowing shape": _file({"a": _entry(0, 4, shape=(2**62, 2**62))}, bytes(4)),
    "unknown type": _file({"a": _entry(0, 4, dtype="F33")}, bytes(4)),
    "no entry": _file({"a": 3}, bytes(4)),
    "shape and size differ": _file({"a": _entry(0, 4, shape=(2,))}, bytes(4)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tensor_files_are_refused_by_name(case):
    with pytest.raises(BundleCorruptError, match=r"model\.safetensors"):
        parse_tensors(HOSTILE[case], "model.safetensors")


def test_too_many_tensors_are_refused_before_the_library_sees_them(monkeypatch):
    monkeypatch.setattr("learnkit.storage.formats.MAX_TENSORS", 2)
    monkeypatch.setattr(safetensors.torch, "load", lambda data: pytest.fail("was parsed"))
    header = {name: _entry(i * 4, i * 4 + 4) for i, name in enumerate("abc")}
    with pytest.raises(BundleCorruptError, match="lists 3 tensors; at most 2"):
        parse_tensors(_file(header, bytes(12)), "model.safetensors")

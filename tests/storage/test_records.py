import math
from dataclasses import dataclass, field

import pytest

from learnkit.errors import BundleCorruptError
from learnkit.storage.formats import NOT_STORED, OPTIONAL, from_plain, read_field, to_plain


@dataclass(frozen=True)
class Point:
    x: float
    name: str | None = None


@dataclass(frozen=True)
class Path:
    points: tuple[Point, ...]
    counts: dict[str, int]
    closed: bool = False
    thumbnail: bytes = field(default=b"", metadata=NOT_STORED)


PATH = Path((Point(1.5), Point(2.0, "end")), {"a": 1}, closed=True, thumbnail=b"x")


def test_records_survive_and_what_is_not_stored_stays_at_home():
    plain = to_plain(PATH)
    assert plain == {
        "points": [{"x": 1.5, "name": None}, {"x": 2.0, "name": "end"}],
        "counts": {"a": 1},
        "closed": True,
    }
    assert from_plain(Path, plain, "f") == Path(PATH.points, PATH.counts, closed=True)
    assert to_plain(Point(math.nan)) == {"x": None, "name": None}
    assert math.isnan(from_plain(Point, {"x": None, "name": None}, "f").x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"closed": 1}, "f: `closed` is 1; it must be a bool"),
        ({"more": 1}, "f: a Path has the fields"),
        ({"points": [{"x": "1", "name": None}]}, "f: `points`: `x` is '1'; it must be a float"),
        ({"points": [{"x": 1.0}]}, "f: `points`: a Point has the fields"),
        ({"points": {"x": 1.0}}, "f: `points` is {'x': 1.0}; it must be a tuple"),
        ({"counts": {"a": True}}, "f: `counts` is True; it must be a int"),
    ],
)
def test_what_does_not_fit_is_named_with_file_field_value_and_rule(change, message):
    with pytest.raises(BundleCorruptError) as error:
        from_plain(Path, {**to_plain(PATH), **change}, "f")
    assert message in str(error.value)


def test_one_field_is_checked_as_those_of_a_record_are():
    values = {"n": 1, "names": ["a"], "layout": {"f": {"": "0."}}, "none": None}
    assert read_field(values, "n", int, "f") == 1
    assert read_field(values, "names", tuple[str, ...], "f") == ("a",)
    assert read_field(values, "names", list, "f") == ["a"]
    assert read_field(values, "layout", dict[str, dict[str, str]], "f") == values["layout"]
    assert read_field(values, "none", dict | None, "f") is None
    for name, kind, message in [
        ("m", int, "f: `m` is missing; it must be a int"),
        ("n", bool, "f: `n` is 1; it must be a bool"),
        ("names", dict, "f: `names` is ['a']; it must be a dict"),
        ("layout", dict[str, str], "f: `layout` is {'': '0.'}; it must be a str"),
        ("none", list, "f: `none` is None; it must be a list"),
    ]:
        with pytest.raises(BundleCorruptError) as error:
            read_field(values, name, kind, "f")
        assert str(error.value) == message
    with pytest.raises(BundleCorruptError, match="`names` is 1 long; it must be a dict"):
        read_field(values, "names", dict, "f", shown=lambda value: f"{len(value)} long")


@dataclass(frozen=True)
class Marked:
    x: float
    marks: tuple[int, ...] = field(default=(), metadata=OPTIONAL)


def test_what_is_optional_may_be_missing_and_is_written_where_it_says_something():
    for record, plain in ((Marked(1.0), {"x": 1.0}), (Marked(1.0, (2,)), {"x": 1.0, "marks": [2]})):
        assert to_plain(record) == plain
        assert from_plain(Marked, plain, "f") == record
    with pytest.raises(BundleCorruptError, match="`marks`"):
        from_plain(Marked, {"x": 1.0, "marks": None}, "f")
    with pytest.raises(BundleCorruptError, match="fields"):
        from_plain(Marked, {"marks": []}, "f")

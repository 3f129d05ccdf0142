"""COCO's JSON goes in and comes out, and pycocotools reads what is written."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from learnkit.data.annotations.boxes import UPRIGHT, corners_of_rotated, written
from learnkit.data.annotations.coco import (
    RAW,
    annotations_of_mask,
    coco_dictionary,
    coco_rows,
    drawn_mask,
)
from learnkit.data.annotations.masks import IGNORE
from learnkit.errors import DataError

IMAGES = [
    {"id": 7, "file_name": "a/1.jpg", "width": 10, "height": 8, "license": 3, "split": "valid"},
    {"id": 3, "file_name": "2.jpg", "width": 20, "height": 20},
]
BOX = {"id": 11, "image_id": 7, "category_id": 90, "bbox": [1.5, 2, 3, 4.25], "iscrowd": 0}
POLYGON = {
    **BOX,
    "id": 12,
    "category_id": 2,
    "segmentation": [[1, 1, 6, 1, 6, 5]],
    "area": 10.0,
    "note": {"by": ["ß"]},
}
RUNS = {
    **BOX,
    "id": 5,
    "iscrowd": 1,
    "segmentation": {"size": [8, 10], "counts": [33, 2, 45]},
}
CATEGORIES = [
    {"id": 90, "name": "bolt", "supercategory": "metal"},
    {"id": 2, "name": "nut"},
]


def coco(*annotations, **changes):
    return {
        "info": {"year": 2026},
        "images": copy.deepcopy(IMAGES),
        "annotations": [copy.deepcopy(one) for one in annotations],
        "categories": copy.deepcopy(CATEGORIES),
    } | changes


def by_pycocotools(told):
    found = COCO()
    found.dataset = json.loads(json.dumps(told, allow_nan=False))
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
    return found


def test_every_key_comes_back():
    told = coco(BOX, POLYGON, RUNS)
    before = copy.deepcopy(told)
    rows, ids, kept = coco_rows(told)
    assert told == before
    assert ids == {"bolt": 90, "nut": 2}
    assert [row["path"] for row in rows] == ["a/1.jpg", "2.jpg"]
    assert rows[0]["boxes"][0] == (1.5, 2, 4.5, 6.25)
    assert rows[0]["box_labels"] == ["bolt", "nut", "bolt"]
    assert (rows[0]["license"], rows[0]["split"], rows[1]["boxes"]) == (3, "valid", [])
    back = coco_dictionary(rows, ids, kept)
    areas = [one | {"area": 12.75, "iscrowd": one["iscrowd"]} for one in (BOX, RUNS)]
    wanted = coco(areas[0], POLYGON, areas[1], categories=CATEGORIES[::-1])
    assert json.loads(json.dumps(back)) == wanted


def test_pycocotools_reads_what_is_written_and_draws_the_same():
    rows, ids, kept = coco_rows(coco(POLYGON, RUNS))
    oracle = by_pycocotools(coco_dictionary(rows, ids, kept))
    assert oracle.getCatIds() == [2, 90]
    assert oracle.getAnnIds(imgIds=[7], iscrowd=False) == [12]
    first = oracle.loadAnns([12])[0]
    polygon, runs = (oracle.annToMask(oracle.anns[i]).astype(bool) for i in (12, 5))
    assert first["bbox"] == POLYGON["bbox"]
    found = drawn_mask(rows[0], [4, 9], (10, 8), 1)
    assert (runs & polygon).sum() == runs.sum() < polygon.sum()  # one lies on the other
    wanted = np.where(runs, 9, np.where(polygon, 4, 1))
    assert found.tolist() == wanted.tolist()


places = st.integers(-(10**6), 10**6).map(lambda n: n / 1000)
lengths = st.integers(1, 10**6).map(lambda n: n / 1000)


@st.composite
def datasets(draw):
    names = draw(st.lists(st.text(min_size=1, max_size=4), unique=True, min_size=1, max_size=3))
    ids = draw(st.lists(st.integers(0, 10**6), unique=True, min_size=3, max_size=3))
    images = [
        {"id": number, "file_name": f"{number}.png", "width": 30, "height": 20, "own": [number]}
        for number in draw(st.lists(st.integers(0, 10**9), unique=True, min_size=1, max_size=3))
    ]
    annotations = []
    for number in range(draw(st.integers(0, 4))):
        annotation = {
            "id": number * 3,
            "image_id": draw(st.sampled_from(images))["id"],
            "category_id": draw(st.sampled_from(ids[: len(names)])),
            "bbox": [draw(places), draw(places), draw(lengths), draw(lengths)],
            "area": draw(lengths),
            "iscrowd": draw(st.integers(0, 1)),
        }
        if draw(st.booleans()):
            annotation["segmentation"] = [draw(st.lists(places, min_size=6, max_size=6))]
        annotations.append(annotation)
    order = {image["id"]: place for place, image in enumerate(images)}
    annotations.sort(key=lambda one: order[one["image_id"]])
    categories = [{"id": i, "name": name} for i, name in sorted(zip(ids, names, strict=False))]
    return {"images": images, "annotations": annotations, "categories": categories}


@given(datasets())
def test_what_is_read_is_written_again(told):
    rows, ids, kept = coco_rows(told)
    back = coco_dictionary(rows, ids, kept)
    assert back == told
    assert json.loads(json.dumps(back, allow_nan=False)) == told


@given(
    st.lists(
        st.tuples(places, places, lengths, lengths, st.floats(-3.1, 3.1)), min_size=1, max_size=4
    )
)
def test_rotated_boxes_are_four_corners_that_are_read_again(boxes):
    row = {"image_id": 1, "path": "1.png", "rotated_boxes": boxes}
    row |= {"box_labels": ["a"] * len(boxes), "width": 9, "height": 9}
    told = coco_dictionary([row], {"a": 0}, {})
    by_pycocotools(told)
    back = coco_rows(told, rotated=True)[0][0]["rotated_boxes"]
    # the direction of a box of a thousandth of a pixel is known to a millionth only
    found, wanted = (corners_of_rotated(one) for one in (back, boxes))
    np.testing.assert_allclose(found, wanted, atol=1e-7, rtol=0)
    for one, corners in zip(told["annotations"], wanted, strict=True):
        x, y, width, height = one["bbox"]
        np.testing.assert_allclose(corners.min(0), [x, y], atol=1e-8)
        np.testing.assert_allclose(corners.max(0), [x + width, y + height], atol=1e-8)


def test_masks_are_one_annotation_a_class():
    mask = np.array([[0, 3, 3], [0, 0, 9], [3, 0, 9]], np.uint16)
    names = {0: "background", 3: "soil", 9: "crop"}
    found = annotations_of_mask(mask, names)
    assert found["box_labels"] == ["soil", "crop"]
    assert [tuple(map(int, one)) for one in found[UPRIGHT]] == [(0, 0, 3, 3), (2, 1, 3, 3)]
    row = {"path": "a.png", **found}
    assert drawn_mask(row, [3, 9], (3, 3), 0).tolist() == mask.tolist()
    mask[0, 0] = IGNORE
    with pytest.raises(DataError, match="a mask has 1 pixel of no class, which COCO cannot say"):
        annotations_of_mask(mask, names)


def test_ids_that_are_there_twice_or_missing_are_given_anew():
    rows, ids, kept = coco_rows(coco(BOX, POLYGON))
    rows[1] = {**rows[0], "image_id": 8, "path": "c.png"}
    rows[1][RAW] = [{**one} for one in rows[0][RAW]]
    del rows[1][RAW][1]["id"]
    told = coco_dictionary(rows, ids, kept)
    numbers = [one["id"] for one in told["annotations"]]
    assert len(set(numbers)) == 4
    assert numbers[1] == 12


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "the file has 'images' None; COCO's JSON has lists 'images', 'annotations' and"),
        (coco(categories={}), r"the file has 'categories' \{\}; COCO's JSON has lists"),
        (coco(images=[1]), "image 0 is 1; it is a dictionary"),
        (coco(images=[{"file_name": "a"}]), r"image 0 has no 'id'; it has \['file_name'\]"),
        (coco(images=[{"id": "1"}]), "image 0 has 'id' '1'; it is a whole number from 0 on"),
        (coco(images=[{"id": 1 << 63}]), "image 0 has 'id' 9223372036854775808; it is a whole"),
        (coco(images=[{"id": 5}]), "image 5 has no 'file_name'"),
        (coco(images=[{"id": 5, "file_name": ""}]), "image 5 has 'file_name' ''; it is a text"),
        (coco(images=[IMAGES[0], IMAGES[0]]), "image 1 has 'id' 7, as another one has"),
        (coco(images=[{**IMAGES[0], "width": 0}]), "image 7 has 'width' 0; it is a whole number"),
        (coco(categories=[{"id": 1}]), "category 0 has no 'name'"),
        (coco(categories=[{"id": True, "name": "a"}]), "category 0 has 'id' True; it is a whole"),
        (coco(categories=CATEGORIES[:1] * 2), "category 1 has 'id' 90 and 'name' 'bolt', of which"),
        (coco({**BOX, "image_id": 4}), "annotation 0 has 'image_id' 4; it is the 'id' of an image"),
        (coco({**BOX, "image_id": [7]}), r"annotation 0 has 'image_id' \[7\]; it is the 'id' of"),
        (coco({**BOX, "category_id": 1}), "annotation 0 of image 7 has 'category_id' 1; it is the"),
        (coco({"id": 1, "image_id": 7}), "annotation 0 of image 7 has no 'category_id'; it has"),
        (coco({**BOX, "bbox": [1, 2, 10**400, 3]}), r"image 7 has 'bbox' \[1, 2, 10{20,}"),
        (coco({**BOX, "bbox": [1, 2, 3]}), r"image 7 has 'bbox' \[1, 2, 3\]; it is \[x, y, width"),
        (coco({**BOX, "bbox": [1, 2, 0, 3]}), r"'bbox' \[1, 2, 0, 3\]; it is .*, with an area"),
        (coco({**BOX, "bbox": [1, 2, "3", 4]}), "image 7 has 'bbox'"),
        (coco({**BOX, "bbox": [1, 2, np.inf, 4]}), "image 7 has 'bbox'"),
        (coco({**BOX, "iscrowd": 2}), "image 7 has 'iscrowd' 2; it is 0 or 1"),
        (coco(BOX, BOX), "annotation 1 of image 7 has 'id' 11, as another one has; each has its"),
        (coco({**BOX, "segmentation": [[1, 2]]}), r"image 7: 'segmentation'\[0\] is \[1, 2\]; a p"),
        (
            coco({**BOX, "segmentation": {"size": [10, 8], "counts": [80]}}),
            r"image 7: 'segmentation' has 'size' \[10, 8\]; its image has \[8, 10\]",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_broken_file_is_refused_by_image_and_key(told, message):
    with pytest.raises(DataError, match=message):
        coco_rows(told)


@pytest.mark.parametrize(
    "name", ["../a.png", "a/../../b.png", "a\\..\\b", "/a", "C:\\a", "\\\\h\\a"]
)
def test_a_file_name_that_leaves_the_folder_is_refused(name):
    with pytest.raises(DataError, match=r"image 7 has 'file_name' .*; it must lie below"):
        coco_rows(coco(images=[{"id": 7, "file_name": name}]))


def test_files_that_are_missing_or_no_strict_json_are_refused(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(coco(BOX)), encoding="utf-8")
    assert coco_rows(path) == coco_rows(coco(BOX))
    for text, message in (
        ("{", "instances.json is not strict JSON"),
        ('{"images": [], "images": []}', "the key 'images' stands twice"),
        ('{"images": [NaN]}', "NaN"),
        ("[" * 1000, "nested deeper than"),
        ("[]", "not an object"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            coco_rows(path)
    with pytest.raises(DataError, match=r"there is no file .*; `source` is COCO's JSON"):
        coco_rows(tmp_path / "none.json")


def test_masks_need_a_segmentation_of_every_box():
    row = coco_rows(coco(BOX, POLYGON))[0][0]
    with pytest.raises(DataError, match=r"image 'a/1.jpg': 'segmentation' is missing in some of"):
        drawn_mask(row, [1, 2], (10, 8), 0)


def test_boxes_that_are_not_four_right_angles_are_no_rotated_ones():
    with pytest.raises(DataError, match=r"annotation 11 of image 7 has 'segmentation' None; `rot"):
        coco_rows(coco(BOX), rotated=True)
    skewed = {**BOX, "segmentation": [[0, 0, 5, 0, 7, 5, 1, 5]]}
    with pytest.raises(DataError, match=r"image 7: 'segmentation': .* no rectangle"):
        coco_rows(coco(skewed), rotated=True)


def test_coordinates_are_written_to_a_billionth():
    assert written([[0.1 + 0.2, 84.8 + 0.5 - 0.5]]) == [[0.3, 84.8]]

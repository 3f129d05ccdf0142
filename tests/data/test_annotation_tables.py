"""Masks, boxes and anomalies are columns of a dataset: read, checked, kept, and written."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from learnkit.data.annotations.masks import IGNORE, mask_pixels, write_mask
from learnkit.data.dataset import ImageDataset
from learnkit.errors import DataError, ImageReadError

SIZE = (12, 9)  # width, height
MASK = np.zeros(SIZE[::-1], np.uint8)
MASK[2:5, 3:9] = 1
MASK[6:, 1:3] = 2
ON_DISK = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)


def image(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 99).save(path)


def segmented(root, n=4, parts=("train", "valid")):
    for part in parts:
        for i in range(n):
            image(root / part / "images" / f"{i}.jpg")
            write_mask(root / part / "masks" / f"{i}.png", np.roll(MASK, i, 1) * (i != 1))
    return root


def frames_equal(one, other, *columns):
    names = columns or list(one.frame)
    for name in names:
        assert one.frame[name].tolist() == other.frame[name].tolist(), name
    assert (one.classes, one.class_ids, one.task) == (other.classes, other.class_ids, other.task)
    return True


def test_masks_are_read_from_folders_of_splits(tmp_path):
    data = ImageDataset.from_masks(segmented(tmp_path), ["soil", "weed", "crop"])
    assert data.task == "segmentation"
    assert data.classes == ["crop", "soil", "weed"]
    assert data.class_ids == [2, 0, 1]
    assert data.splits == ["train", "valid"]
    assert data.labels[:2] == [("crop", "soil", "weed"), ("soil",)]
    assert data.frame["mask"][0] == "train/masks/0.png"
    assert data.mask(0).tolist() == MASK.tolist()
    assert data.mask(0).dtype == np.uint16
    assert data.mask(-1).tolist() == np.roll(MASK, 3, 1).tolist()


def test_every_verb_keeps_the_columns(tmp_path):
    data = ImageDataset.from_masks(segmented(tmp_path, 8, [""]), ["soil", "weed", "crop"])
    parts = data.split(0.5, 0.5, 0, seed=3, stratify=False)
    assert parts.labels == data.labels
    for part in (parts.train, parts.sample(5), parts.filter(lambda t: t["image_id"] > 2)):
        assert part.task == "segmentation"
        for row, path in enumerate(part.frame["path"]):
            original = data.frame["path"].tolist().index(path)
            assert part.mask(row).tolist() == data.mask(original).tolist()
    groups = parts.groups(r"images/(\d)")
    assert groups == [str(i) for i in range(8)]
    dropped = data.drop(pd.DataFrame({"path": ["images/3.jpg"]}))
    assert len(dropped) == 7
    assert dropped.task == "segmentation"
    other = data.frame.assign(mask=data.frame["mask"][::-1].tolist())
    assert ImageDataset(other, tmp_path).fingerprint() != data.fingerprint()


def test_masks_of_any_code_are_written_as_ids(tmp_path):
    colours = {"soil": (9, 9, 9), "crop": (0, 200, 0)}
    pixels = np.zeros((*SIZE[::-1], 3), np.uint8)
    pixels[...] = 9
    pixels[:3] = (0, 200, 0)
    pixels[5:, 7:] = (255, 0, 255)
    image(tmp_path / "images" / "a" / "1.png")
    (tmp_path / "masks" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "masks" / "a" / "1.png")
    data = ImageDataset.from_masks(tmp_path, codes=colours, ignore=(255, 0, 255))
    wanted = np.zeros(SIZE[::-1], int)
    wanted[:3], wanted[5:, 7:] = 1, IGNORE
    assert data.mask(0).tolist() == wanted.tolist()
    with pytest.raises(DataError, match=r"do not hold class ids .*`dataset.write_masks\(folder\)`"):
        data.to_halcon()
    written = data.write_masks(tmp_path / "ids")
    assert frames_equal(written, data, "path", "label", "split")
    assert written.mask(0).tolist() == wanted.tolist()
    ids = np.where(wanted == IGNORE, 255, wanted)
    assert mask_pixels(tmp_path / "ids" / "images" / "a" / "1.png").tolist() == ids.tolist()
    assert frames_equal(ImageDataset.from_halcon(written.to_halcon()), written)
    with pytest.raises(DataError, match="holds something; give one that is new or empty"):
        data.write_masks(tmp_path / "ids")


def test_what_is_ignored_is_a_class_that_halcon_ignores(tmp_path):
    root = segmented(tmp_path, 2, [""])
    data = ImageDataset.from_masks(root, codes={"soil": 0, "weed": 1}, ignore=2)
    told = data.to_halcon()
    assert told["class_names"] == ["soil", "weed", "ignore 2"]
    assert told["class_ids"] == [0, 1, 2]
    assert told["ignore_class_ids"] == [2]
    back = ImageDataset.from_halcon(json.loads(json.dumps(told)))
    assert frames_equal(back, data)
    assert back.mask(0).tolist() == data.mask(0).tolist()
    with pytest.raises(DataError, match="pixels of no class, which COCO cannot say"):
        data.to_coco()


def test_masks_come_back_from_coco(tmp_path):
    data = ImageDataset.from_masks(segmented(tmp_path), codes={"background": 0, "weed": 1, "x": 2})
    told = data.to_coco()
    assert told["categories"][1] == {"id": 1, "name": "weed"}
    boxes = ImageDataset.from_coco(json.loads(json.dumps(told)), tmp_path)
    assert boxes.task == "detection"
    assert boxes.frame["boxes"][0] == ((3, 2, 9, 5), (1, 6, 3, 9))
    back = boxes.write_masks(tmp_path / "again")
    assert frames_equal(back, data, "path", "split", "label")
    for row in range(len(data)):
        assert boxes.mask(row).tolist() == back.mask(row).tolist() == data.mask(row).tolist()


def test_objects_are_boxes_with_their_segmentation_and_are_numbered_again(tmp_path):
    numbers = np.zeros(SIZE[::-1], np.uint16)
    numbers[1:4, 2:7], numbers[6:8, 0:2], numbers[5, 11] = 300, 7, 1000
    image(tmp_path / "images" / "1.png")
    write_mask(tmp_path / "labels" / "1.png", numbers)
    data = ImageDataset.from_instances(tmp_path, "cell", masks="labels")
    assert data.frame["boxes"][0] == ((0, 6, 2, 8), (2, 1, 7, 4), (11, 5, 12, 6))
    assert data.frame["box_labels"][0] == ("cell",) * 3
    assert data.labels == [("cell",)]
    assert data.mask(0).tolist() == (numbers > 0).astype(int).tolist()
    data.write_masks(tmp_path / "again", instances=True)
    again = mask_pixels(tmp_path / "again" / "images" / "1.png")
    assert (
        again.tolist() == np.unique(numbers, return_inverse=True)[1].reshape(again.shape).tolist()
    )
    rotated = ImageDataset.from_instances(tmp_path, "cell", masks="labels", rotated=True)
    assert rotated.frame["rotated_boxes"][0][1] == (4.5, 2.5, 2.5, 1.5, 0)


def anomalies(root):
    for part, kind in (("train", "good"), ("test", "good"), ("test", "cut"), ("test", "dent")):
        for i in range(2):
            image(root / part / kind / f"{i}.png")
    for i in range(2):
        path = root / "ground_truth" / "cut" / f"{i}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(MASK.clip(0, 1) * 255).convert("RGB").save(path)
    return root


def test_anomalies_are_read_from_the_layout_of_mvtec(tmp_path):
    data = ImageDataset.from_folder(anomalies(tmp_path), good="good")
    assert data.task == "anomaly_detection"
    assert data.classes == ["cut", "dent", "good"]
    assert data.splits == ["train", "test"]
    masks = dict(zip(data.frame["path"], map(data.mask, range(len(data))), strict=True))
    assert masks["test/cut/1.png"].tolist() == MASK.clip(0, 1).tolist()
    assert masks["train/good/0.png"].tolist() == (MASK * 0).tolist()
    assert masks["test/dent/0.png"] is None
    told = data.to_halcon()
    assert told["class_names"] == ["ok", "nok"]
    assert told["anomaly_dir"] == str(tmp_path)
    (cut,) = [s for s in told["samples"] if s["image_file_name"] == "test/cut/1.png"]
    assert cut["anomaly_label"] == "nok"
    assert cut["anomaly_kind"] == "cut"
    assert cut["anomaly_file_name"] == "ground_truth/cut/1_mask.png"
    assert frames_equal(ImageDataset.from_halcon(json.loads(json.dumps(told))), data)
    data.to_csv(tmp_path / "all.csv")
    assert frames_equal(ImageDataset.from_csv(tmp_path / "all.csv", good="good"), data)
    written = data.write_masks(tmp_path / "written")
    assert written.task == "anomaly_detection"
    for row in range(len(data)):
        one, other = written.mask(row), data.mask(row)
        assert (one is None and other is None) or one.tolist() == other.tolist()


def test_halcons_own_anomalies_are_ok_and_nok(tmp_path):
    for name in ("a.png", "b.png"):
        image(tmp_path / name)
    write_mask(tmp_path / "masks" / "b.png", MASK)
    samples = [
        {"image_file_name": "a.png", "image_id": 4, "anomaly_label": "ok"},
        {"image_file_name": "b.png", "image_id": 9, "anomaly_label": "nok"},
    ]
    samples[1]["anomaly_file_name"] = "b.png"
    told = {"image_dir": str(tmp_path), "anomaly_dir": str(tmp_path / "masks")}
    told |= {"class_names": ["ok", "nok"], "class_ids": [0, 1], "samples": samples, "own": {"a": 1}}
    data = ImageDataset.from_halcon(told)
    assert data.labels == ["ok", "nok"]
    assert data.mask(1).tolist() == MASK.clip(0, 1).tolist()
    assert data.to_halcon() == told
    samples[0]["anomaly_label"] = "good"
    with pytest.raises(DataError, match="'anomaly_label' 'good'; 'class_names' are"):
        ImageDataset.from_halcon(told)


BOXES = "path,split,label,x1,y1,x2,y2,who\n"
ROTATED = "path,split,label,row,col,phi,length1,length2\n"


def boxes_csv(root, text, n=2):
    for i in range(n):
        image(root / f"{i}.png")
    (root / "boxes.csv").write_text(text)
    return root / "boxes.csv"


def test_a_csv_of_one_row_per_box_is_one_row_per_image(tmp_path):
    rows = "0.png,train,nut,1,2,5.5,6,ann\n0.png,train,bolt,0,0,3,3,bob\n1.png,valid,,,,,,\n"
    path = boxes_csv(tmp_path, BOXES + rows)
    data = ImageDataset.from_csv(path, box_cols=["x1", "y1", "x2", "y2"])
    assert data.task == "detection"
    assert data.labels == [("bolt", "nut"), ()]
    assert data.frame["boxes"].tolist() == [((1, 2, 5.5, 6), (0, 0, 3, 3)), ()]
    assert data.frame["box_labels"].tolist() == [("nut", "bolt"), ()]
    assert data.frame["who"].tolist() == [["ann", "bob"], []]
    assert data.splits == ["train", "valid"]


def test_rotated_boxes_of_a_csv_are_halcons_and_half_a_pixel_is_added_once(tmp_path):
    path = boxes_csv(tmp_path, ROTATED + "0.png,train,nut,4.8,3.35,-2.3292,2.73,1.96\n", 1)
    columns = ["row", "col", "phi", "length1", "length2"]
    data = ImageDataset.from_csv(path, box_cols=columns)
    assert data.frame["rotated_boxes"][0] == ((3.85, 5.3, 2.73, 1.96, -2.3292),)
    told = data.to_halcon()["samples"][0]
    values = {f"bbox_{name}": told[f"bbox_{name}"] for name in columns}
    assert values == {
        "bbox_row": [4.8],
        "bbox_col": [3.35],
        "bbox_phi": [-2.3292],
        "bbox_length1": [2.73],
        "bbox_length2": [1.96],
    }


def test_halcons_boxes_enclose_the_pixels_they_name(tmp_path):
    """Rows 2 to 4 and columns 3 to 8 of `MASK`, whose middles HALCON counts from 0."""
    image(tmp_path / "a.png")
    sample = {"image_file_name": "a.png", "bbox_label_id": 5, "bbox_row1": 1.5, "bbox_col1": 2.5}
    sample |= {"bbox_row2": 4.5, "bbox_col2": 8.5}
    told = {"image_dir": str(tmp_path), "class_names": "x", "class_ids": 5, "samples": sample}
    ((box,),) = ImageDataset.from_halcon(told).frame["boxes"]
    x0, y0, x1, y1 = map(int, box)
    assert (MASK[y0:y1, x0:x1] == 1).all()
    assert (MASK == 1).sum() == (x1 - x0) * (y1 - y0)


numbers = st.integers(0, 6_000).map(lambda n: n / 1000)
sides = st.integers(1, 3_000).map(lambda n: n / 1000)
labels = st.lists(st.sampled_from(["a", "ß", "7"]), min_size=2, max_size=2)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(
    st.lists(st.tuples(numbers, numbers, sides, sides), min_size=2, max_size=2),
    st.floats(-math.pi, math.pi),
    labels,
    st.sampled_from(["boxes", "rotated_boxes"]),
)
def test_boxes_come_back_from_every_form(tmp_path, places, phi, names, kind):
    rows = [(x, y, x + w, y + h) for x, y, w, h in places]
    if kind == "rotated_boxes":
        rows = [(x, y, w, h, phi) for x, y, w, h in places]
    rows = [tuple(round(value, 9) for value in row[:4]) + row[4:] for row in rows]
    frame = pd.DataFrame({"path": ["0.png", "1.png"], "split": ["train", "test"]})
    frame[kind], frame["box_labels"] = [rows, []], [names, []]
    for path in frame["path"]:
        if not (tmp_path / path).exists():
            image(tmp_path / path, (40, 40))
    data = ImageDataset(frame, tmp_path, classes=["a", "ß", "7"])
    for told in (data.to_halcon(), json.loads(json.dumps(data.to_halcon()))):
        assert frames_equal(ImageDataset.from_halcon(told, check_files=False), data)
    data.to_csv(tmp_path / "x.csv")
    csv = ImageDataset.from_csv(tmp_path / "x.csv", check_files=False)
    for name in data.frame:
        assert csv.frame[name].tolist() == data.frame[name].tolist()
    rotated = kind == "rotated_boxes"
    coco = ImageDataset.from_coco(data.to_coco(), tmp_path, rotated=rotated, check_files=False)
    assert frames_equal(coco, data, "path", "label", "split", "box_labels")
    for one, other in zip(coco.frame[kind], data.frame[kind], strict=True):
        np.testing.assert_allclose(np.array(one)[..., :4], np.array(other)[..., :4], atol=1e-8)
    if not rotated:
        assert coco.frame["boxes"].tolist() == data.frame["boxes"].tolist()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None
)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=4, max_size=4))
def test_masks_come_back_from_every_form(tmp_path, pixels):
    root = tmp_path / str(len(list(tmp_path.iterdir())))
    mask = np.array([3, 17, 255, 65_534])[np.array(pixels)]
    image(root / "images" / "1.png", mask.shape[::-1])
    write_mask(root / "masks" / "1.tif.png", mask)
    (root / "masks" / "1.tif.png").rename(root / "masks" / "1.png")
    ids = {"a": 3, "b": 17, "c": 255, "d": 65_534}
    data = ImageDataset.from_masks(root, codes=ids)
    data.to_csv(root / "x.csv")
    others = [ImageDataset.from_csv(root / "x.csv", codes=ids)]
    others += [ImageDataset.from_halcon(json.loads(json.dumps(data.to_halcon())))]
    for other in others:
        assert frames_equal(other, data)
        assert other.mask(0).tolist() == mask.tolist()
    written = data.write_masks(root / "new")
    assert written.mask(0).tolist() == mask.tolist()
    drawn = ImageDataset.from_coco(data.to_coco(), root).mask(0)
    assert drawn.tolist() == mask.tolist()


def test_several_labels_are_joined_in_a_csv(tmp_path):
    frame = pd.DataFrame({"path": ["1", "2"], "label": [["a", "b"], []], "split": ["train", ""]})
    data = ImageDataset(frame, tmp_path)
    data.to_csv(tmp_path / "x.csv")
    back = ImageDataset.from_csv(tmp_path / "x.csv", label_delim=";", check_files=False)
    assert frames_equal(back, data)
    with pytest.raises(DataError, match="class 'a' holds the `label_delim` 'a'; say another one"):
        data.to_csv(tmp_path / "x.csv", label_delim="a")


def test_names_in_a_csv_stay_what_they_are(tmp_path):
    names = ["=1+1", 'a"b,c', "<b>", "x\ny", "007", "NA"]
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(6)], "label": names})
    ImageDataset(frame, tmp_path).to_csv(tmp_path / "x.csv")
    back = ImageDataset.from_csv(tmp_path / "x.csv", check_files=False)
    assert back.labels == names


def boxed(**columns):
    found = {"path": ["0.png"], "boxes": [[(1, 1, 3, 3)]], "box_labels": [["a"]]} | columns
    return pd.DataFrame({name: pd.Series(value, dtype=object) for name, value in found.items()})


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (boxed(boxes=[[(1, 1, 1, 3)]]), r"'0.png' has 'boxes'\[0\] .*; x0 lies left of x1, y0 abo"),
        (boxed(boxes=[[(1, 5, 2, 3)]]), r"has 'boxes'\[0\] .*: it has no area, remove or mend it"),
        (boxed(boxes=[[(1, 1, 2)]]), r"has 'boxes' .*; it is a list of \(x0, y0, x1, y1\)"),
        (boxed(boxes=["x"]), r"has 'boxes' 'x'; it is a list of"),
        (boxed(boxes=[[(1, 1, math.nan, 2)]]), "all its numbers must be finite"),
        (boxed(boxes=[[(1, 1, 2, 2)] * 2]), "image '0.png' has 2 'boxes' and 1 'box_labels'"),
        (boxed(rotated_boxes=[[]]), r"the table has columns \['boxes', 'rotated_boxes'\]; a data"),
        (boxed().drop(columns="boxes"), r"boxes are 'box_labels' and one of \['boxes', 'rotated_b"),
        (boxed().drop(columns="box_labels"), "boxes are 'box_labels' and one of"),
        (
            boxed(label=[["b"]]),
            "has a 'label' that is not the classes of the boxes; leave",
        ),
        (boxed(box_labels=[[""]]), "1 image, such as .*0.png.* has no label"),
        (boxed(mask=["../m.png"]), "path '../m.png' climbs with '..'"),
        (
            boxed(rotated_boxes=[[(5, 5, 2, 1, 90.0)]]).drop(columns="boxes"),
            r"'rotated_boxes'\[0\] .*90.0\]; phi is in radians, and lies in -2 pi..2 pi",
        ),
        (
            boxed(rotated_boxes=[[(5, 5, 2, 0, 1.0)]]).drop(columns="boxes"),
            "half edges are above 0: it has no area",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_boxes_that_break_a_rule_are_refused_at_the_door(tmp_path, frame, message):
    with pytest.raises(DataError, match=message):
        ImageDataset(frame, tmp_path)


@pytest.mark.parametrize("read", ["df", "coco", "halcon"])
def test_boxes_outside_their_image_are_refused_where_files_are_read(tmp_path, read):
    image(tmp_path / "0.png")
    inside = ImageDataset(boxed(boxes=[[(8, 1, 15.9, 3)]]), tmp_path)
    outside = ImageDataset(boxed(boxes=[[(8, 1, 16.1, 3)]]), tmp_path)
    readers = {
        "df": lambda data: ImageDataset.from_df(data.frame.drop(columns="label"), tmp_path),
        "coco": lambda data: ImageDataset.from_coco(data.to_coco(), tmp_path),
        "halcon": lambda data: ImageDataset.from_halcon(data.to_halcon()),
    }
    assert frames_equal(readers[read](inside), inside, "boxes")
    message = r"'0.png' has 'boxes'\[0\] .*more than half lies outside the 12 x 9 pixels"
    with pytest.raises(DataError, match=message):
        readers[read](outside)


def test_an_image_of_another_size_than_coco_tells_is_refused(tmp_path):
    image(tmp_path / "0.png")
    told = ImageDataset(boxed(), tmp_path).to_coco()
    told["images"][0]["width"] = 13
    message = "image 0, '0.png', is 12 x 9; 'width' and 'height' are 13 and 9"
    with pytest.raises(DataError, match=message):
        ImageDataset.from_coco(told, tmp_path)
    (tmp_path / "0.png").unlink()
    with pytest.raises(DataError, match="1 of 1 image do not exist"):
        ImageDataset.from_coco(told, tmp_path)
    with pytest.raises(DataError, match="`folder` is None; say where the images are"):
        ImageDataset.from_coco(told)


def test_masks_that_do_not_fit_are_refused_at_the_door(tmp_path):
    root, read = segmented(tmp_path, 2, [""]), ImageDataset.from_masks
    with pytest.raises(DataError, match=r"has the values 2 \(6 pixels\); known are 0, 1: n"):
        read(root, ["soil", "weed"])
    write_mask(root / "masks" / "1.png", MASK[:, :5])
    with pytest.raises(DataError, match=r"1.png' is 5 x 9 and its image 12 x 9; they must"):
        read(root, ["soil", "weed", "crop"])
    (root / "masks" / "1.png").write_bytes(b"no mask")
    with pytest.raises(ImageReadError, match=r"1.png' cannot be read"):
        read(root, ["soil", "weed", "crop"])
    (root / "masks" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images have no mask, .*1.jpg'; a mask has"):
        read(root, ["soil", "weed", "crop"])
    with pytest.raises(DataError, match="has no folders 'pictures' and 'masks', nor have folders"):
        read(root, ["soil", "weed", "crop"], images="pictures")
    (root / "images" / "1.jpg").unlink()
    write_mask(root / "masks" / "7.png", MASK)
    with pytest.warns(UserWarning, match="1 mask without image, such as '7.png'"):
        read(root, ["soil", "weed", "crop"])


def test_anomalies_that_do_not_fit_are_refused_at_the_door(tmp_path):
    root = anomalies(tmp_path)
    with pytest.raises(DataError, match=r"`good` is 'ok', and no folder .*'dent', 'good'"):
        ImageDataset.from_folder(root, good="ok")
    image(root / "ground_truth" / "cut" / "1_mask.png", (3, 3))
    with pytest.raises(DataError, match=r"1_mask.png' is 3 x 3 and its image 12 x 9"):
        ImageDataset.from_folder(root, good="good")
    image(root / "loose.png")
    with pytest.raises(DataError, match=r"1 image outside class folders, .*loose.png'; put"):
        ImageDataset.from_folder(root, good="good")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (BOXES + "0.png,train,a,1,2,x,4,\n", {}, r"row 0, of image '0.png', has the box .*'x'"),
        (
            BOXES + "0.png,train,a,1,2,3,4,\n0.png,test,a,1,2,3,4,\n",
            {},
            "is in 'train' and",
        ),
        (
            BOXES + "0.png,train,a,1,2,3,4,\n",
            {"box_cols": ["x1", "y1"]},
            "`box_cols` is",
        ),
        (
            BOXES + "0.png,train,a,1,2,3,4,\n",
            {"box_cols": list("abcd")},
            "it needs 'a', once",
        ),
        (
            "path,boxes,box_labels\n0.png,{},[]\n",
            {"box_cols": None},
            r"'boxes' has '\{\}'; it",
        ),
        ("path,boxes,box_labels\n0.png,[1,[]\n", {"box_cols": None}, "'boxes' has '.1'; it is a l"),
        ("path,mask,label\n0.png,m.png,a\n", {"box_cols": None}, "a column 'mask'; say what its"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_tables_of_boxes_that_say_nothing_are_refused(tmp_path, text, options, message):
    path = boxes_csv(tmp_path, text)
    with pytest.raises(DataError, match=message):
        ImageDataset.from_csv(path, **{"box_cols": ["x1", "y1", "x2", "y2"], **options})


def test_a_dataset_of_a_bare_table_does_not_guess_what_masks_mean(tmp_path):
    data = ImageDataset.from_masks(segmented(tmp_path), ["soil", "weed", "crop"])
    bare = ImageDataset(data.frame, data.root)
    with pytest.raises(DataError, match="what the masks' pixels stand for is not known"):
        bare.mask(0)


def test_the_keys_of_halcons_dictionary_come_back(tmp_path):
    root = segmented(tmp_path, 1, [""])
    sample = {"image_file_name": "0.jpg", "image_id": 5, "segmentation_file_name": "0.png"}
    sample |= {
        "split": "validation",
        "dlsample_file_name": "5_dlsample.hdict",
        "own": [1, {"a": 2}],
    }
    told = {"image_dir": str(root / "images"), "segmentation_dir": str(root / "masks")}
    told |= {"class_names": ["soil", "weed", "crop"], "class_ids": [0, 1, 2], "samples": [sample]}
    told |= {
        "class_weights": [1, 2, 3],
        "preprocess_param": {"image_width": 9},
        "dlsample_dir": "d",
    }
    data = ImageDataset.from_halcon(told)
    assert data.mask(0).tolist() == MASK.tolist()
    assert data.to_halcon() == told
    moved = ImageDataset.from_halcon({**told, "segmentation_dir": "gone"}, mask_dir=root / "masks")
    assert moved.mask(0).tolist() == MASK.tolist()
    unread = ImageDataset.from_halcon(told, check_files=False)
    assert unread.labels == [()]
    assert unread.to_halcon() == told


NAMES = ["nut", "ß", "7"]


@st.composite
def dl_datasets(draw):
    """HALCON's dictionaries of every type, as it writes them; no file is there."""
    kind = draw(st.sampled_from(["several", "masks", "anomalies", "rectangle1", "rectangle2"]))
    ids = draw(st.lists(st.integers(0, 65_534), unique=True, min_size=3, max_size=3))
    names, ids = (["ok", "nok"], [0, 1]) if kind == "anomalies" else (NAMES, sorted(ids))
    samples = []
    for number in draw(st.lists(st.integers(0, 10**9), unique=True, min_size=1, max_size=3)):
        sample = {"image_file_name": f"a/{number}.png", "image_id": number}
        if draw(st.booleans()):
            sample["split"] = draw(st.sampled_from(["train", "validation", "test"]))
        if kind == "several":
            chosen = draw(st.lists(st.sampled_from(NAMES), unique=True))
            sample["image_label_id"] = [ids[NAMES.index(name)] for name in sorted(chosen)]
        elif kind == "masks":
            sample["segmentation_file_name"] = f"{number}_mask.png"
        elif kind == "anomalies":
            sample["anomaly_label"] = draw(st.sampled_from(names))
            if sample["anomaly_label"] == "nok" and draw(st.booleans()):
                sample["anomaly_file_name"] = f"b/{number}.png"
        else:
            n = draw(st.integers(0, 3))
            sample["bbox_label_id"] = [draw(st.sampled_from(ids)) for _ in range(n)]
            low = [[draw(numbers) for _ in range(n)] for _ in range(2)]
            long = [[draw(sides) for _ in range(n)] for _ in range(2)]
            if kind == "rectangle1":
                high = np.round(np.array(low) + np.array(long), 9).tolist()
                keys, values = ("row1", "col1", "row2", "col2"), (*low, *high)
            else:
                phi = [draw(st.floats(-3.14, 3.14)) for _ in range(n)]
                keys, values = ("row", "col", "phi", "length1", "length2"), (*low, phi, *long)
            sample |= {f"bbox_{key}": value for key, value in zip(keys, values, strict=True)}
        samples.append(sample | draw(st.dictionaries(st.just("own"), st.lists(st.integers()))))
    found = {"image_dir": "/images", "class_names": names, "class_ids": ids, "samples": samples}
    if kind in ("masks", "anomalies"):
        found["segmentation_dir" if kind == "masks" else "anomaly_dir"] = "/masks"
    return found | {"preprocess_param": {"image_width": 9}}


@given(dl_datasets())
def test_halcons_dictionaries_of_every_type_come_back(told):
    data = ImageDataset.from_halcon(told, check_files=False)
    back = data.to_halcon()
    if not data.multi_label or data.task != "classification":
        assert back == told
    else:  # the labels of an image are sorted by name
        for sample in (*back["samples"], *told["samples"]):
            sample["image_label_id"] = sorted(sample["image_label_id"])
        assert back == told
    assert json.loads(json.dumps(back, allow_nan=False)) == back

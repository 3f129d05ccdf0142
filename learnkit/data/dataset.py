"""`ImageDataset`: which images there are, what is on them, and what each is used for.

A thin immutable object over one table; every method returns a new dataset and none touches a file.
The work is done by functions over tables: `readers`, `annotation_tables`, `split`, `checks`,
`display`.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from learnkit.data.annotation_tables import (
    Annotated,
    Columns,
    annotated_df_table,
    anomaly_table,
    coco_of_table,
    coco_table,
    halcon_table,
    instances_table,
    masks_table,
    row_mask,
    with_written_masks,
    write_instances,
)
from learnkit.data.annotations.csv_cells import with_json_cells
from learnkit.data.annotations.dl_samples import halcon_dictionary
from learnkit.data.annotations.masks import mask_codes
from learnkit.data.annotations.overlay import Overlay
from learnkit.data.arguments import check_seed
from learnkit.data.display import counts_document, show_images, summary
from learnkit.data.groups import by_index, groups_of
from learnkit.data.labels import Label, targets_of, weights_of_classes
from learnkit.data.readers import csv_table, folder_table, names_table
from learnkit.data.split import (
    check_shares,
    check_training_splits,
    check_unsplit,
    in_split,
    rows_drawn,
    split_column,
    split_counts,
    splits_in,
)
from learnkit.data.table import (
    clean_table,
    fingerprint_of,
    numbers_of_classes,
    rows_kept,
    rows_shown,
    task_of,
)
from learnkit.errors import DataError, SplitError, number_of, warned_after
from learnkit.report.document import Document
from learnkit.report.notebook import Shown

if TYPE_CHECKING:
    from typing_extensions import Self

    from learnkit.data.annotations.masks import MaskCodes
    from learnkit.data.store import ImageStore
    from learnkit.learner.dataloaders import DataLoaders

AnyPath = str | os.PathLike[str]


class ImageDataset(Shown):
    """A table of labelled images below one folder.

    Args:
        frame: Columns `path` (relative to `root`, or absolute) and `label` (a name, or a list of
            names for multi-label data); optionally `image_id`, `split` ("train", "valid", "test" or
            empty) and any others. Instead of `label`: `boxes`, of each image a list of
            (x0, y0, x1, y1) in pixels from the upper left corner of the image, or `rotated_boxes`
            of (x, y, length1, length2, phi), middle, half edges and counter-clockwise angle in
            radians; beside one of them `box_labels`, their class names. `mask` is the path of a
            mask, or empty.
        root: The folder that paths are relative to.
        classes: Every class name, if more than the labels show.
        class_ids: A number per class name, carried for `to_halcon`.
        case_sensitive: Names that differ only in case are of two classes on purpose, as letters
            are. A model that learns from this dataset keeps to that.

    Raises:
        DataError: The table breaks a rule: no rows, double columns, paths or ids, labels missing or
            spelled in two ways that look the same.
    """

    _store: "ImageStore | None" = None  # what `preprocess` filled
    _unread: tuple[str, ...] = ()  # images below the folder, in formats that are not read
    _codes: "MaskCodes | None" = None  # what the masks' pixels stand for
    _good: str | None = None  # the class of images without anomaly
    _kept: Mapping[str, Any] = MappingProxyType({})  # what else the file that was read says

    def __init__(
        self,
        frame: pd.DataFrame,
        root: AnyPath,
        *,
        classes: Sequence[str] | None = None,
        class_ids: Mapping[str, int] | None = None,
        case_sensitive: bool = False,
    ) -> None:
        self._root, self._case_sensitive = Path(os.path.abspath(root)), case_sensitive
        self._frame, self._classes, self._multi_label = clean_table(
            frame, self._root, classes, case_sensitive=case_sensitive
        )
        self._class_ids = numbers_of_classes(class_ids, self._classes)

    @classmethod
    def from_folder(
        cls,
        folder: AnyPath,
        *,
        splits: bool = True,
        allow_empty: bool = False,
        case_sensitive: bool = False,
        good: str | None = None,
    ) -> "Self":
        """Dataset of every image below `folder`, labelled with the name of the folder it lies in.

        If every top-level folder is called train, valid, val, validation or test (capitals aside),
        those are the splits and the folders below them the classes; folders with other images
        beside two of them are asked about. Images in formats that are not read are counted. One
        class alone is fine here (new images for a trained classifier, say); `check_split` refuses
        to train on it.

        Args:
            folder: The folder that holds the class folders, at any depth.
            splits: False takes such top-level folders for classes.
            allow_empty: Accept folders without images, as classes without images.
            case_sensitive: See the class.
            good: The class of images without anomaly, for anomaly detection: other classes are
                kinds of defects, in the layout of MVTec AD (train/good, test/KIND, masks in
                ground_truth/KIND/NAME_mask.png) or without splits or masks.

        Raises:
            DataError: No folder, no images, images outside class folders, an empty class folder, or
                splits beside other folders; no image is `good`, or a mask is of another size than
                its image.
        """
        if good is not None:
            found = anomaly_table(folder, good, splits=splits)
            return cls._of(found, case_sensitive=case_sensitive)
        frame, classes, unread = folder_table(folder, splits=splits, allow_empty=allow_empty)
        found = Annotated(frame, folder, classes, None, {"_unread": tuple(map(str, unread))})
        return cls._of(found, case_sensitive=case_sensitive)

    @classmethod
    def from_names(
        cls,
        folder: AnyPath,
        pattern: str | re.Pattern[str] | None = None,
        *,
        case_sensitive: bool = False,
    ) -> "Self":
        r"""Dataset of every image below `folder`, labelled by its file name.

        Args:
            folder: Searched at every depth.
            pattern: Regular expression whose group `label`, or only group, is the label. Other
                named groups become columns: `r"(?P<label>\w+?)_(?P<serial>\d+)"` allows
                `split(group="serial")`. None takes the name without digits and separators at its
                end: "rust_017.png" is of "rust".
            case_sensitive: See the class.

        Raises:
            DataError: No images, a pattern without such a group, or file names it does not match.
        """
        frame, unread = names_table(folder, pattern)
        found = Annotated(frame, folder, None, None, {"_unread": tuple(map(str, unread))})
        return cls._of(found, case_sensitive=case_sensitive)

    @classmethod
    def from_csv(
        cls,
        csv: AnyPath,
        folder: AnyPath | None = None,
        *,
        sep: str = ",",
        encoding: str = "utf-8",
        **columns: Any,
    ) -> "Self":
        """Dataset of a CSV file with one row per image, or per box; see `from_df` for the columns.

        Everything is read as text, so that classes called NA, 007 or None keep their names. What
        `to_csv` wrote is read back.

        Args:
            csv: The file; its first line names the columns.
            folder: What paths are relative to; None is the folder of the file.
            sep: Between the columns.
            encoding: Of the text: "cp1252" for many files of Windows, "utf-16" for some of Excel.
            **columns: As in `from_df`: `path_col`, `label_col`, `box_cols`, ...

        Raises:
            DataError: The file is missing or no table, or as in `from_df`.
        """
        table = csv_table(csv, sep, encoding)
        return cls.from_df(table, Path(csv).parent if folder is None else folder, **columns)

    @classmethod
    def from_df(
        cls,
        frame: pd.DataFrame,
        folder: AnyPath,
        *,
        path_col: str = "path",
        label_col: str | Sequence[str] = "label",
        split_col: str | None = None,
        label_delim: str | None = None,
        suffix: str = "",
        box_cols: Sequence[str] | None = None,
        codes: Mapping[str, Any] | None = None,
        ignore: Any = None,
        good: str | None = None,
        check_files: bool = True,
        case_sensitive: bool = False,
    ) -> "Self":
        """Dataset of a table with one row per image; further columns are kept.

        Args:
            frame: The table; left unchanged.
            folder: What paths are relative to.
            path_col: Column of paths, below `folder` or absolute.
            label_col: Column of class names (text or integers), or of lists of them; or several
                columns, one per class, of 0 and 1: one label per image where every row has exactly
                one 1, else several.
            split_col: Column of "train", "valid" (or "val", "validation"), "test" or nothing, or of
                booleans: whether a row is for validation; None takes a column called `split` if
                there is one.
            label_delim: What separates several labels in one cell; makes the data multi-label.
            suffix: Added to every path, such as ".jpg" where the table leaves it out.
            box_cols: Of a table with one row per box, whose label is the box's: the columns of
                x0, y0, x1, y1 in pixels from the image's upper left corner; or, five, of HALCON's
                row, col, phi, length1, length2, where (0, 0) is the middle of the first pixel.
            codes: Of a table with a column `mask`: {class: pixel value or (r, g, b)}; the classes
                in a mask are the labels of its image.
            ignore: As in `from_masks`.
            good: Of a table with a column `mask`: the class of images without anomaly.
            check_files: Look whether every file is there, masks fit and boxes lie in their images.
            case_sensitive: See the class.

        Raises:
            DataError: A column is missing or there twice, a label is missing, a path climbs out
                of `folder`, is listed twice or does not exist; a box or a mask breaks its rule.
        """
        columns = Columns(path_col, label_col, split_col, label_delim, suffix, box_cols)
        said = {"codes": codes, "ignore": ignore, "good": good, "check_files": check_files}
        found = annotated_df_table(frame, folder, columns, **said)
        return cls._of(found, case_sensitive=case_sensitive)

    @classmethod
    def from_masks(
        cls,
        folder: AnyPath,
        classes: Sequence[str] | None = None,
        *,
        images: str = "images",
        masks: str = "masks",
        codes: Mapping[str, Any] | None = None,
        binary: str | None = None,
        ignore: Any = None,
    ) -> "Self":
        """Dataset for segmentation: images and a mask of each, whose classes are its labels.

        An image's mask has its name, whatever the extension, or its name and "_mask", as PNG, TIFF
        or BMP of 1, 8 or 16 bits, with a palette or in colour. Every mask is read once.

        Args:
            folder: Holds the two folders, or train, valid and test that do.
            classes: Names in the order of the pixel values 0, 1, 2, ...
            images: The folder of images.
            masks: The folder of masks.
            codes: Instead of `classes`: {name: pixel value or (r, g, b)}.
            binary: Instead: what every value but 0 is, beside "background".
            ignore: Value or colour of pixels of no class, or a list of them.

        Raises:
            DataError: No such folders; a mask is missing, of another size than its image, or has
                pixels that are neither of a class nor ignored.
            ImageReadError: A file is damaged, or of a format that changes values, such as JPEG.
        """
        ids, known = mask_codes(classes, codes, binary, ignore)
        return cls._of(masks_table(folder, images, masks, ids, known))

    @classmethod
    def from_instances(
        cls, folder: AnyPath, name: str, *, rotated: bool = False, **places: Any
    ) -> "Self":
        """Dataset of boxes around the objects that masks number; 0 is no object.

        Args:
            folder: As in `from_masks`.
            name: The class of the objects.
            rotated: Take the smallest rotated boxes instead of upright ones.
            **places: `images` and `masks`, as in `from_masks`.

        Raises:
            DataError: As in `from_masks`.
            ImageReadError: As in `from_masks`.
        """
        return cls._of(instances_table(folder, name, rotated=rotated, **places))

    @classmethod
    def from_coco(
        cls,
        source: Mapping[str, Any] | AnyPath,
        folder: AnyPath | None = None,
        *,
        rotated: bool = False,
        check_files: bool = True,
    ) -> "Self":
        """Dataset of boxes in COCO's JSON; `to_coco` gives ids and further keys back.

        Segmentations stay in the column `coco_raw_annotations`: `mask` and `write_masks` draw them.

        Args:
            source: The file, or the dictionary it holds.
            folder: Of the images; None is the folder of the file.
            rotated: Take rotated boxes out of segmentations of four right angles.
            check_files: Look whether every image is there, and of the size that is told.

        Raises:
            DataError: A key is missing or mistyped, an id is there twice or unknown, a box has no
                area or lies outside its image, or a file name leaves the folder.
        """
        return cls._of(coco_table(source, folder, check_files=check_files, rotated=rotated))

    @classmethod
    def from_halcon(
        cls,
        dataset: Mapping[str, Any] | AnyPath,
        image_dir: AnyPath | None = None,
        *,
        mask_dir: AnyPath | None = None,
        check_files: bool = True,
        case_sensitive: bool = False,
    ) -> "Self":
        """Dataset of a DLDataset dictionary of any type; further keys are kept.

        Class ids need not be contiguous; `class_ids` and `to_halcon` give them back. Where an image
        has several ids, or none, all labels are tuples.

        Args:
            dataset: Has `class_names`, `class_ids` and `samples`, each with `image_file_name`,
                perhaps `image_id` and `split`, and what its type asks for: `image_label_id`,
                `segmentation_file_name`, `anomaly_label` or `bbox_label_id`; left unchanged. Or the
                JSON file that holds it.
            image_dir: Where the images are now; None takes the dictionary's own `image_dir`.
            mask_dir: Where masks are now; None takes its `segmentation_dir` or `anomaly_dir`.
            check_files: Look whether every file is there, masks fit and boxes lie in their images.
                Without, images for segmentation have no labels.
            case_sensitive: See the class.

        Raises:
            DataError: A key is missing, ids and names do not fit each other, a sample has no label
                or an unknown one, or a file name is absolute, climbs with ".." or does not exist.
        """
        found = halcon_table(dataset, image_dir, mask_dir, check_files=check_files)
        return cls._of(found, case_sensitive=case_sensitive)

    def to_halcon(self) -> dict[str, Any]:
        """DLDataset dictionary of JSON types; `from_halcon` reads it back to an equal dataset.

        Extra columns become keys of the samples where they hold JSON types. Coordinates of boxes
        are written to a billionth of a pixel. The class of an anomaly is learnkit's own key
        `anomaly_kind`, values of masks that are ignored its `ignore_class_ids`.

        Raises:
            DataError: An image lies outside the root, or masks do not hold ids of classes.
        """
        said = {"good": self._good, "codes": self._codes, "kept": self._kept}
        rows = self._frame.to_dict("records")
        return halcon_dictionary(rows, self._root, self._class_ids, self.task, **said)

    def to_coco(self) -> dict[str, Any]:
        """COCO's dictionary, ready for JSON, of boxes or masks, with the ids that were read.

        Rotated boxes are polygons of their corners; of masks each class in an image is one
        annotation in run lengths. Coordinates are written to a billionth of a pixel.

        Raises:
            DataError: There are neither; an image lies outside the root; or masks have pixels of no
                class.
        """
        rows = self._frame.to_dict("records")
        return coco_of_table(rows, self._root, self._class_ids, self._codes, self._kept)

    def to_csv(self, path: AnyPath, *, label_delim: str = ";") -> None:
        """Write the table as CSV in UTF-8 for `from_csv`.

        Several labels are joined, to be read with the same `label_delim=`; boxes are JSON, and
        their classes are read from there; of masks say `codes=` or `good=`. A name that
        spreadsheets would compute (=, +, - or @ in front) stays as it is.

        Raises:
            DataError: A class name holds `label_delim`.
        """
        with_json_cells(self._frame, label_delim).to_csv(
            path, index=False, errors="surrogateescape"
        )

    @property
    def task(self) -> str:
        """What can be learned: "classification", "segmentation", "anomaly_detection", "detection".

        Anomaly detection where `good` was said, detection where there are boxes, segmentation where
        there are masks.
        """
        return task_of(self._frame, self._good)

    def mask(self, row: int) -> np.ndarray | None:
        """The mask of the image in a row, uint16 (H, W); None if it has none.

        Of segmentation it holds class ids, and 65535 where no class is; of anomalies 1 and 0. Of
        boxes with segmentations these are drawn, smaller ones on top, over "background".

        Raises:
            ImageReadError: Image or mask cannot be read.
            DataError: The mask has another size than its image, or values of no class.
        """
        return row_mask(
            self._frame.iloc[row].to_dict(), self._root, self._class_ids, self._codes, self._good
        )

    def write_masks(self, folder: AnyPath, *, instances: bool = False) -> "Self":
        """The dataset with its masks as grey PNG files in a new folder, of class ids, or of 1.

        Args:
            folder: New, or empty; holds NAME.png for each image, in its own folder.
            instances: Number the objects of each image 1, 2, ... instead, in the order of their
                boxes; the dataset comes back as it is.

        Raises:
            DataError: The folder holds something, or there is nothing to draw.
        """
        if instances:
            write_instances(self._frame, folder, self._root)
            return self
        said = (self._root, self._class_ids, self._codes, self._good)
        found = with_written_masks(self._frame, folder, *said)
        return self._of(found, case_sensitive=self._case_sensitive)

    @property
    def frame(self) -> pd.DataFrame:
        """A copy of the table: image_id int64, path, label, split ("" if none), extra columns."""
        return self._frame.copy()

    @property
    def root(self) -> Path:
        """The folder relative paths start from, absolute."""
        return self._root

    @property
    def classes(self) -> list[str]:
        """Class names, sorted (as numbers where all are integers); sub-datasets keep them all."""
        return list(self._classes)

    @property
    def class_ids(self) -> list[int]:
        """The number of each class in the dictionary this was read from; 0, 1, 2, ... otherwise."""
        return [self._class_ids[name] for name in self._classes]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self._classes)

    @property
    def case_sensitive(self) -> bool:
        """Whether names that differ only in case are of two classes on purpose."""
        return self._case_sensitive

    @property
    def multi_label(self) -> bool:
        """Whether an image has a tuple of names for a label."""
        return self._multi_label

    @property
    def labels(self) -> list[Label]:
        """One name, or tuple of names, per image."""
        return self._frame["label"].tolist()

    @property
    def targets(self) -> np.ndarray:
        """Index of each label in `classes`, int64 (N,); of multi-labels 0 or 1, int64 (N, C)."""
        return targets_of(self.labels, self._classes, multi_label=self._multi_label)

    @property
    def paths(self) -> list[Path]:
        """Absolute path of each image."""
        return [self._root / path for path in self._frame["path"]]

    def __len__(self) -> int:
        return len(self._frame)

    def __repr__(self) -> str:
        shown = summary(self._frame["split"], self._unread)
        size = f"{number_of(len(self), 'image')}, {number_of(self.n_classes, 'class')}"
        return f"ImageDataset({size}; {shown}; {self._root})"

    def filter(
        self, keep: Sequence[bool] | np.ndarray | pd.Series | Callable[[pd.DataFrame], Any]
    ) -> "Self":
        """The rows for which `keep` is true; a callable gets the table. Classes stay as they are.

        Raises:
            DataError: `keep` is not one boolean per row.
        """
        kept = self._frame[rows_kept(keep, self._frame)]
        return self._with(kept.reset_index(drop=True), _unread=())

    def sample(
        self,
        n: int | None = None,
        seed: int = 42,
        *,
        fraction: float | None = None,
        stratify: bool = False,
    ) -> "Self":
        """Some images, drawn without replacement, in the order they stand here.

        Args:
            n: How many.
            seed: Of the draw.
            fraction: Share in 0..1, instead of `n`.
            stratify: Draw the same share of every class.

        Raises:
            DataError: Neither or both of `n` and `fraction`, or one out of its range.
        """
        return self.filter(rows_drawn(self._frame, n, fraction, seed=seed, stratify=stratify))

    @property
    def splits(self) -> list[str]:
        """The splits that hold images, in the order train, valid, test."""
        return splits_in(self._frame)

    @property
    def train(self) -> "Self":
        """The training images. SplitError if there are none."""
        return self.filter(in_split(self._frame, "train"))

    @property
    def valid(self) -> "Self":
        """The validation images. SplitError if there are none."""
        return self.filter(in_split(self._frame, "valid"))

    @property
    def test(self) -> "Self":
        """The test images. SplitError if there are none."""
        return self.filter(in_split(self._frame, "test"))

    @warned_after
    def split(
        self,
        train: float = 0.7,
        valid: float = 0.15,
        test: float | None = None,
        *,
        seed: int = 42,
        stratify: bool = True,
        group: Any = None,
        overwrite: bool = False,
    ) -> "Self":
        """The same images, each assigned to train, valid or test.

        The result depends on the set of images, not on the order of rows. Multi-label images are
        stratified by the rarest of their labels.

        Args:
            train: Share in 0..1.
            valid: Share in 0..1.
            test: Share in 0..1; None is the rest.
            seed: Of the shuffle; None for another one every time.
            stratify: Give every class these shares; False gives them to the whole only.
            group: Images of one group stay together (one part seen from several sides, a burst, one
                patient): a column; a regular expression whose only group, or whole match, in the
                path is the group; `{file: group}`; or one value per row.
            overwrite: Replace a split there already is.

        Raises:
            SplitError: A share is wrong, there is a split already, or one asked for stays empty.
        """
        check_seed(seed)
        shares = check_shares(train, valid, test)
        if not overwrite:
            check_unsplit(self._frame, repr(self))
        try:
            groups = None if group is None else self.groups(group)
        except DataError as error:
            raise SplitError(str(error)) from error
        column = split_column(self._frame, shares, seed=seed, stratify=stratify, groups=groups)
        return self._with(self._frame.assign(split=column))

    def groups(self, group: Any) -> list[Any]:
        """The group of every row, as `split` and `extend` mean `group`.

        Raises:
            DataError: It does not say one for every row.
        """
        group = by_index("group", group)
        if isinstance(group, Mapping):
            return groups_of({self.root / file: name for file, name in group.items()}, self.paths)
        return groups_of(group, self._frame["path"].tolist(), dict(self._frame.items()))

    def check_split(self) -> None:
        """Return if a classifier can be trained and evaluated by this split.

        Raises:
            SplitError: There is no train or no valid.
            DataError: Train has one class only, or another split has a label train lacks.
        """
        check_training_splits(self._frame, multi_label=self._multi_label)

    def counts(self) -> pd.DataFrame:
        """Number of images, classes x splits (`unassigned` for none); zeros included."""
        return split_counts(self._frame, self._classes)

    def class_weights(self, balance: bool | str = True) -> dict[str, float]:
        """Weight of every class in a loss, {name: weight}, with a mean of 1 over the images.

        Of the training images, if there are any, else of all. With several labels per image it is
        the weight of the images that show a label (torch's `pos_weight`).

        Args:
            balance: True weighs inversely to the number of images, so that all classes count alike;
                "sqrt" inversely to its root, False all alike.
        """
        rows = self.train if "train" in self.splits else self
        found = weights_of_classes(rows.labels, self._classes, balance)
        return found if balance else dict.fromkeys(found, 1.0)

    def show(
        self, n: int = 9, *, seed: int | None = 42, axes: Any = None, side: float = 2.0
    ) -> np.ndarray:
        """Array of matplotlib axes with `n` images and their labels; unreadable ones say so.

        Masks and boxes are drawn over their images.

        Args:
            n: Number of images, at most; fewer when the dataset is smaller.
            seed: Of the drawing by lot; None takes the first `n`.
            axes: Axes to draw on, one per image; None makes a figure.
            side: Inches per image in that figure.
        """
        shown = self.filter(rows_shown(self._frame, n, seed))
        drawn = Overlay(shown._frame.to_dict("records"), shown.mask, self._class_ids)
        return show_images(shown.paths, shown.labels, axes=axes, side=side, overlay=drawn)

    def document(self) -> Document:
        """Images per class and split, as notebooks show them."""
        return counts_document(self.counts(), len(self), self._root, self._unread)

    def check(
        self,
        fast: bool = False,
        *,
        min_images: int = 10,
        limits: Mapping[str, float | None] | None = None,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Findings, worst first: finding, severity, path, class, split, detail, paths.

        Masks that cannot be read or say nothing, bad images among those to learn from, and boxes
        that reach outside their image, are tiny or there twice are found, too.

        `path` is the image to drop, if one is ("" otherwise); `paths` are all that are meant.
        Severity is "error" (training fails or its numbers lie), "warning" or "info".

        Args:
            fast: Read headers and bytes only: damage inside a file, near duplicates and unused bits
                are not looked for, nor are dark, bright, blank and blurred images.
            min_images: Classes with fewer are reported, and counted in train if there is a split.
            limits: Of single images: `dark` (55), `bright` (200) and `blank` (1.0) in grey levels,
                `blurred` (0.12), `shape` (2.5 times the middle aspect), `aspect` (20), `side` (8
                pixels). None for one of them: not looked for.
            progress: Show a bar.
        """
        from learnkit.data.checks import find_problems  # here: it imports scipy

        options = {"fast": fast, "min_images": min_images, "progress": progress}
        options |= {"limits": limits or {}, "mask_of": self.mask, "good": self._good}
        return find_problems(self._frame, self._root, self._classes, self._unread, **options)

    def drop(self, findings: pd.DataFrame) -> "Self":
        """Without the image in `path` of each finding; select the rows of `check()` you mean."""
        from learnkit.data.checks import not_in_findings

        return self.filter(not_in_findings(self._frame, findings))

    def fingerprint(self, *, content: bool = False, progress: bool = True) -> str:
        """sha256 in hex of classes, paths, labels and splits, whatever the row order and root.

        Args:
            content: Take the bytes of every file in: a changed file changes the fingerprint.
            progress: Show a bar while files are read.
        """
        return fingerprint_of(self._frame, self._root, self._classes, content, progress)

    @warned_after
    def preprocess(
        self,
        folder: AnyPath,
        size: Any = None,
        *,
        n_workers: int | None = None,
        progress: bool = True,
        **recipe: Any,
    ) -> "Self":
        """The same dataset, whose `dataloaders()` read pixels from a store instead of files.

        Every image is decoded and resized once, into one memory-mapped array in `folder`, beside
        the hashes of the files and the recipe. After a kill at any moment the same call goes on;
        files that are new or have changed are read again, there and by `dataloaders()`, and
        processes may share a store. Training sees the pixels it sees without; what is predicted or
        evaluated later is read from its files.

        Args:
            folder: Absent, empty, or a store by the same recipe.
            size: Height and width in pixels; an int means a square, None 224.
            n_workers: Decoding threads; None is one per processor.
            progress: Show a bar.
            **recipe: As in `dataloaders`: `method`, `channels`, ..., or all as `preprocessing`.

        Raises:
            UnreadableImagesError: Images cannot be read; all of them are named, the others stored.
            DataError: The folder holds something else, a store by another recipe, or cannot be
                written.
        """
        from learnkit.data.store import ImageStore, recipe_of

        store = ImageStore(folder, recipe_of(self.paths, size, **recipe))
        files = dict(zip(self._frame["path"], self.paths, strict=True))
        return self._with(
            self._frame, _store=store.fill(files, n_workers=n_workers, progress=progress)
        )

    def dataloaders(
        self, size: Any = None, bs: int = 64, *, augment: Any = None, **kwargs: Any
    ) -> "DataLoaders":
        """Fastai DataLoaders of the splits, see `learner.dataloaders.image_dataloaders`.

        Without `size` 224 x 224 pixels, or what `preprocess` stored.
        """
        from learnkit.learner.dataloaders import image_dataloaders

        if self._store is not None:
            kwargs = self._store.options(size, kwargs)
        return image_dataloaders(self, size=size, bs=bs, augment=augment, **kwargs)

    @classmethod
    def _of(cls, found: Annotated, *, case_sensitive: bool = False) -> "Self":
        """The dataset of what a reader found."""
        named = {"classes": found.classes, "class_ids": found.class_ids}
        data = cls(found.frame, found.root, **named, case_sensitive=case_sensitive)
        data.__dict__.update(found.traits)
        return data

    def _with(self, frame: pd.DataFrame, **changes: Any) -> "Self":
        """Another table of the same kind; it was checked when this one was made."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _frame=frame, **changes)
        return other

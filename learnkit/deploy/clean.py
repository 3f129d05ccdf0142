"""A folder of images looked through: what is damaged or double, and which labels are wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learnkit.deploy.corrections import COLUMNS, FORMULA
from learnkit.errors import DataError
from learnkit.inference.evaluation import facts_of
from learnkit.interpret.page.folder_page import FolderImages, cleaning_data, digests_of
from learnkit.interpret.page.page import page_target, write_page
from learnkit.report.document import Document, Items, Paragraph, Section, Span, share_text
from learnkit.report.notebook import Shown

if TYPE_CHECKING:
    import pandas as pd

    from learnkit.continual.label_issues import LabelErrors
    from learnkit.data.dataset import ImageDataset

_UNREADABLE = ("unreadable", "empty file")
_SHOWN = 20


@dataclass(frozen=True, eq=False)
class FolderReport(Shown):
    """What there is to clean in a folder of images.

    Attributes:
        data: the images.
        findings: what `data.check()` found.
        errors: the ranking of the labels of the images that can be read.
        facts: of the model whose features the ranking rests on.
    """

    data: ImageDataset
    findings: pd.DataFrame
    errors: LabelErrors
    facts: Mapping[str, str]

    @property
    def unreadable(self) -> dict[str, str]:
        """Why images cannot be read, by their path below the folder."""
        rows = self.findings[self.findings["finding"].isin(_UNREADABLE)]
        return dict(zip(rows["path"], rows["detail"], strict=True))

    @cached_property
    def images(self) -> FolderImages:
        """What the page shows."""
        root = self.data.root
        return FolderImages(self.errors, root, self.findings, self.unreadable, self.facts)

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row per image, the most suspicious label first: what corrections are written into.

        `path`, `sha256`, `old`; `new`, the likeliest class; an empty `action`, into which
        "relabel" or "drop" is written; `marked_at`; `why` an image is worth a look; and the numbers
        of the ranking. Images that cannot be read stand last.
        """
        import pandas as pd

        frame, why = self.errors.frame, self._reasons()
        names = self.images.names
        paths = [names[place] for place in frame["place"]]
        digests = digests_of(self.errors.items)
        table = pd.DataFrame(
            {
                "path": paths,
                "sha256": [digests[place] for place in frame["place"]],
                "old": frame["label"],
                "new": frame["predicted"].fillna(""),
                "action": "",
                "marked_at": "",
                "why": ["; ".join(why.get(path, ())) for path in paths],
            }
        ).join(frame[["p_label", "p_predicted", "p_wrong", "false_discovery", "ood_score"]])
        labels = dict(zip(self.data.frame["path"], self.data.labels, strict=True))
        lost = [
            {"path": path, "old": labels[path], "why": f"unreadable: {detail}"}
            for path, detail in self.unreadable.items()
        ]
        for row, digest in zip(
            lost, digests_of([self.data.root / one["path"] for one in lost]), strict=True
        ):
            row["sha256"] = digest
        if lost:
            texts = pd.DataFrame(lost, columns=table.columns)
            texts[[*COLUMNS, "why"]] = texts[[*COLUMNS, "why"]].fillna("")
            table = pd.concat([table, texts.astype(table.dtypes)], ignore_index=True)
        return table

    def _reasons(self) -> dict[str, list[str]]:
        """Why each image is worth a look, by path."""
        found: dict[str, list[str]] = {}
        frame, names = self.errors.frame, self.images.names
        for row in frame[frame["suspect"]].itertuples():
            text = f"looks like {row.predicted} ({share_text(row.p_predicted, 0)})"
            found.setdefault(names[row.place], []).append(text)
        for row in frame[frame["outlier"]].itertuples():
            found.setdefault(names[row.place], []).append("unlike all others")
        for row in self.findings[self.findings["path"] != ""].itertuples():
            found.setdefault(row.path, []).append(f"{row.finding}: {row.detail}")
        return found

    def quoted_table(self) -> pd.DataFrame:
        """`table` with a quote (') before texts that spreadsheets would compute."""

        def quoted(text: Any) -> Any:
            return f"'{text}" if isinstance(text, str) and text.startswith(FORMULA) else text

        texts = [*COLUMNS[:4], "why"]
        return self.table.assign(**{name: self.table[name].map(quoted) for name in texts})

    def page_data(
        self, *, max_mb: float = 25, command: str = "", created: str | None = None
    ) -> dict[str, Any]:
        """All that the page of it shows, as JSON types.

        Args:
            max_mb: megabytes of pictures and numbers.
            command: that made it.
            created: when, as "2026-11-25T22:50Z"; default now.
        """
        return cleaning_data(self.images, max_mb=max_mb, command=command, created=created)

    def save_html(self, path: str | os.PathLike, *, force: bool = False, **about: Any) -> Path:
        """Write the page to a file and return its path.

        Args:
            path: ends in .html; an earlier page of learnkit's is replaced.
            force: replace any other file, too.
            **about: as for `page_data`.

        Raises:
            UsageError: the name does not end in .html, or another file stands there.
        """
        path = page_target(path, force=force)
        return write_page(path, self.page_data(**about))

    def __str__(self) -> str:
        kinds = self.findings["finding"].value_counts()
        said = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        outliers = int(self.errors.frame["outlier"].sum())
        return f"{self.errors}; {outliers} unlike all others; findings: {said or 'none'}"

    def document(self) -> Document:
        """The ranking, and the first findings of each kind."""
        sections = [
            Section(
                f"{severity}: {kind} ({len(rows)})",
                [
                    Items(
                        [
                            f"{row.path or row.paths}: {row.detail}"
                            for row in rows[:_SHOWN].itertuples()
                        ]
                    )
                ],
                is_open=severity == "error",
            )
            for (severity, kind), rows in self.findings.groupby(["severity", "finding"], sort=False)
        ]
        return Document(
            [*self.errors.document().content, Paragraph(Span(str(self), "faint")), *sections]
        )


def look_through(
    predictor: Any,
    data: ImageDataset,
    *,
    limits: Mapping[str, float | None] | None = None,
    min_images: int = 10,
    progress: bool = True,
) -> FolderReport:
    """What there is to clean among images: `data.check()` and the labels that are probably wrong.

    Args:
        predictor: whose network gives the features; what it has learned plays no part.
        data: the images, of all splits.
        limits: as in `ImageDataset.check`.
        min_images: as in `ImageDataset.check`.
        progress: show progress bars.

    Raises:
        DataError: no two classes have images that can be read.
    """
    findings = data.check(limits=limits, min_images=min_images, progress=progress)
    lost = set(findings["path"][findings["finding"].isin(_UNREADABLE)])
    # `label_errors` refuses images that cannot be read
    readable = data.filter(~data.frame["path"].isin(lost).to_numpy())
    if not len(readable):
        raise DataError(f"no image can be read ({len(data)} given); `check` says why")
    errors = predictor.label_errors(readable, progress=progress)
    return FolderReport(data, findings, errors, facts_of(predictor))

"""The book of labelling: every image and every change, from the journal, and the files' places."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from learnkit.serving.labelling.inbox import Inbox, InboxImage, move_file
from learnkit.serving.labelling.journal import (
    NAMED,
    Change,
    Journal,
    Line,
    replay,
    with_images,
)

_STATES = {"skip": "skipped", "unusable": "unusable", "ask": "ask", "sure": "sure"}


class Book:
    """All pictures by id, all changes, and the journal that both follow from.

    Args:
        journal: of what was done so far.
        inbox: where the files are.
    """

    def __init__(self, journal: Journal, inbox: Inbox):
        self.journal, self.inbox = journal, inbox
        self.changes = replay(journal.lines)
        # reentrant: the desk holds it around `write`, which takes it again
        self.lock, self.version = threading.RLock(), 0
        self.pictures: dict[str, InboxImage] = {}
        self.unreadable: dict[str, str] = {}  # why, by the file's name
        self._sorted: tuple[int, dict[str, list[InboxImage]]] = (-1, {})
        for change in self.changes:
            for image in change.images:
                self._settle(self._picture_of(image))

    def _picture_of(self, image: Line) -> InboxImage:
        known = self.pictures.get(image["id"])
        if known is None:
            place = self.inbox.folder / image["name"]
            known = InboxImage(image["id"], image["sha"], image["name"], place)
            self.pictures[known.id] = known
        return known

    def write(self, line: Line) -> Change | None:
        """Put a line into the journal and take it into account; the change it is about.

        Raises:
            OSError: it cannot be written; nothing has changed.
        """
        with self.lock:
            change = self.changes.apply(self.journal.append(line))
            touched = [image["id"] for image in change.images] if change else []
            if change and change.state == "undone":  # also what a change of classes had moved
                touched += change.about.get("files", ())
            for image in touched:
                self._settle(self.pictures[image])
            return change

    def write_images(
        self, pictures: Sequence[InboxImage], said: Sequence[Line], **line: Any
    ) -> Any:
        """Put a line about images into the journal; what the model said goes along."""
        images = [
            {"id": one.id, "sha": one.sha, "name": one.name, **about}
            for one, about in zip(pictures, said, strict=True)
        ]
        return cast("Change", self.write(with_images(images, **line)))

    def _settle(self, picture: InboxImage) -> None:
        """The state, label and place of a picture by the changes in force."""
        self.version += 1
        picture.state, picture.label = "waiting", None
        picture.place = self.inbox.source(picture)
        last = self.changes.last_of(picture.id)
        if last is None:
            return
        picture.state = last.state if last.do == NAMED else _STATES[last.do]
        picture.label = last.label
        self._follow(picture, last)

    def _follow(self, picture: InboxImage, last: Change) -> None:
        """Where the file of a picture is by its last change, and by changes of its class since."""
        file = last.about.get("files", {}).get(picture.id)
        for change in self.changes.of_classes if picture.label else ():
            if change.line > last.line and change.counts:
                moved = change.about.get("files", {})
                if picture.id in moved:
                    file, picture.label = moved[picture.id], change.about["to"]
        if file is not None:
            picture.place = self.inbox.labelled / file

    def settle_all(self, pictures: Iterable[InboxImage]) -> None:
        """Bring pictures, and their files, to where the changes in force want them."""
        with self.lock:
            for picture in pictures:
                before = picture.place
                self._settle(picture)
                move_file(before, picture.place)

    def put_files_right(self) -> None:
        """Move every file to where the journal says it is, as after a crash between the two."""
        may_be: dict[str, list[Path]] = {}
        for change in self.changes:
            for image, file in change.about.get("files", {}).items():
                may_be.setdefault(image, []).append(self.inbox.labelled / file)
        for image, places in may_be.items():
            picture = self.pictures[image]
            for place in (self.inbox.source(picture), *places):
                if place != picture.place and place.exists():
                    with contextlib.suppress(OSError):  # told when it is next asked for
                        move_file(place, picture.place)

    def add(self, picture: InboxImage) -> bool:
        """Take in an image that came; whether it was not known."""
        with self.lock:
            known = self.pictures.setdefault(picture.id, picture)
            if known is picture or known.state == "gone":
                self.version += 1
                known.state = "waiting"
            # the journal, which older ones come from, has no sizes
            known.w, known.h = picture.w, picture.h
            return known is picture

    def lose(self, picture: InboxImage) -> None:
        """Note that the file of an image that waits is gone; until it comes again."""
        with self.lock:
            if picture.waits:
                self.version += 1
                picture.state = "gone"

    def waiting(self) -> list[InboxImage]:
        """The pictures that may be asked for."""
        return self.in_state("waiting", "skipped")

    def in_state(self, *states: str) -> list[InboxImage]:
        """The pictures in these states, state by state as they came."""
        by_state = self._by_state()
        return [one for state in states for one in by_state.get(state, ())]

    def counts(self) -> Counter[str]:
        """How many pictures are in each state."""
        return Counter({state: len(found) for state, found in self._by_state().items()})

    def _by_state(self) -> dict[str, list[InboxImage]]:
        """The pictures by their state; of many thousands, sorted out once after each change."""
        with self.lock:
            if self._sorted[0] != self.version:
                found: dict[str, list[InboxImage]] = {}
                for one in self.pictures.values():
                    found.setdefault(one.state, []).append(one)
                self._sorted = self.version, found
            return self._sorted[1]

"""The desk: labels, what is put aside, changes of classes, and all of it taken back.

All that changes something runs in one thread, one after the other. A label is in the journal before
its file is moved, moved before it is learned, and learned before that is noted; whatever a crash
leaves in between is done when the desk is opened again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from learnkit.continual.knowledge import Knowledge
from learnkit.errors import ContinualStateError, LearnkitError
from learnkit.serving.http_errors import Refusal
from learnkit.serving.labelling.book import Book
from learnkit.serving.labelling.inbox import InboxImage
from learnkit.serving.labelling.journal import ASIDE, CLASSES, NAMED, Change, seconds_of
from learnkit.serving.labelling.label_names import checked_name
from learnkit.serving.labelling.ledger import labels_known, with_class_change
from learnkit.serving.labelling.queue import Leases
from learnkit.serving.labelling.requests import (
    Answer,
    Repeats,
    check_class_change,
    check_name,
    key_in,
    label_in,
    outcome_of,
    who_in,
)
from learnkit.serving.labelling.scores import Scores
from learnkit.serving.labelling.teacher import Teacher

MOST = 600  # images of one answer; so many can be in a group
_SURE = 0.8  # from here on the model takes an image for that class


class Desk:
    """What a person at the page can do.

    Args:
        book: of images and changes.
        teacher: the model.
        scores: of the images, judged anew by `judge` after every change.
        leases: of images to browsers.
        locked: whether no class may be made.
        named: whether the names of people are kept.
        judge: is called after a change with the ids of images; how many others are known now.
        changed: is called whenever something has changed.
        done: is called after each step of a change, with its name; tests end the process there.
        clock: gives seconds since 1970.
    """

    def __init__(
        self,
        book: Book,
        teacher: Teacher,
        scores: Scores,
        leases: Leases,
        *,
        locked: bool = False,
        named: bool = True,
        judge: Callable[[], int] = lambda: 0,
        changed: Callable[[], object] = lambda: None,
        done: Callable[[str], object] = lambda step: None,
        clock: Callable[[], float] = time.time,
    ):
        self.book, self.teacher, self.scores, self.leases = book, teacher, scores, leases
        self.locked, self.named = locked, named
        self._judge, self._changed, self._done, self._clock = judge, changed, done, clock
        self._repeats = Repeats(clock)
        self.trouble: str | None = None
        self.inbox_trouble: str | None = None

    def open(self) -> int:
        """Do what a crash left undone; how many labels were learned that the model had not."""
        for change in [*self.book.changes]:
            if change.about.get("undoing") and change.state != "undone":
                self.book.write({"do": "undone", "of": change.key})
        # before anything is learned: features not kept are read from the files, where they belong
        self.book.put_files_right()
        waiting = [one for one in self.book.changes if one.state == "queued"]
        before = self.teacher.digest
        for change in waiting:
            self._check_learnable(change)
        self.teacher.catch_up()
        for change in waiting:
            if change.state == "queued":
                self._note_learned(change, before, time.perf_counter())
        return len(waiting)

    def _check_learnable(self, change: Change) -> None:
        """Refuse a change that was not learned before a crash, and cannot be now."""
        try:
            self.teacher.ledger.folded(self.book.changes)
        except LearnkitError as error:
            self.book.write({"do": "refused", "of": change.key, "reason": str(error)})

    # -- what pages ask for ----------------------------------------------------------------------

    @property
    def knowledge(self) -> Knowledge:
        """What the model knows."""
        return self.teacher.knowledge

    def _repeated(self, key: str, make: Callable[[], Answer]) -> Answer:
        """The answer to what was asked under this key before, or the one that is made now."""
        change = self.book.changes.by_key.get(key)
        if change and key not in self._repeats and not change.about.get("failed"):
            return 200, outcome_of(change)  # asked before a restart
        try:
            found = self._repeats.answer(key, make)
        except LearnkitError as error:
            raise Refusal(422, str(error), more={"kind": "refused"}) from error
        except OSError as error:
            self.trouble = f"cannot save: {error.strerror or error}"
            self._changed()
            raise Refusal(507, self.trouble, more={"kind": "disk"}) from error
        self.trouble = None
        return found

    def answer(self, asked: dict[str, Any], owner: str = "") -> Answer:
        """Name images, or put them aside; see the contract of POST /label/answer."""
        key = key_in(asked)
        return self._repeated(key, lambda: self._answer(asked, key, owner))

    def _answer(self, asked: dict[str, Any], key: str, owner: str) -> Answer:
        pictures = self._pictures(asked.get("ids"))
        self._check_free(pictures, bool(asked.get("correct")), owner)
        if "action" in asked:
            return self._put_aside(asked, key, pictures)
        label = label_in(asked, self.knowledge, locked=self.locked)
        reloaded = self._reload_if_changed()
        # before it is learned: the class is known then, and the model sure of it
        said = self._suspicion(pictures[0], label)
        answered = self._known_already(pictures, label, bool(asked.get("correct")))
        # before it is written: this answer would be the last one itself
        since = self._since(pictures[0].sha) if answered else None
        files = self.book.inbox.targets(pictures, label)
        # before the journal: where no folder can be made there is nothing to take back
        if not answered:
            (self.book.inbox.labelled / label).mkdir(parents=True, exist_ok=True)
        about = {
            "key": key,
            "who": who_in(asked, named=self.named),
            "do": NAMED,
            "label": label,
            "files": files,
        }
        about |= {name: True for name in ("blind", "again", "correct") if asked.get(name) is True}
        change = self._written(pictures, about)
        self._move(change, pictures)
        self._learn(change)
        content = {**outcome_of(change), "suspicion": said, "since": since}
        content |= {"already": label if answered else None, "n_known_now": self._judge()}
        self._changed()
        if reloaded:
            error = "another program changed the model; it was opened again, with this label"
            return 409, {"error": error, "kind": "model", **content}
        return 200, content

    def _pictures(self, ids: Any) -> list[InboxImage]:
        if not isinstance(ids, list) or not 0 < len(ids) <= MOST:
            raise Refusal(400, f"`ids` is a list of 1 to {MOST} ids of images")
        found = [self.book.pictures.get(one) if isinstance(one, str) else None for one in ids]
        if None in found or len({*ids}) < len(ids):
            raise Refusal(404, "there is no such image any more", more={"kind": "gone"})
        for picture in found:
            if not os.path.lexists(picture.place):
                self.book.lose(picture)
                self._changed()
                raise Refusal(
                    404, f"{picture.name} is gone", more={"kind": "gone", "gone": [picture.id]}
                )
        return found

    def _check_free(self, pictures: Sequence[InboxImage], correct: bool, owner: str) -> None:
        """Raise Refusal 409 for an image that somebody else has named meanwhile."""
        for one in pictures:
            last = self.book.changes.last_of(one.id)
            if last is None or last.do != NAMED or correct:
                continue
            who, label = last.about.get("who") or "", one.label
            seconds = max(0, round(self._clock() - seconds_of(last.about["t"])))
            raise Refusal(
                409,
                f"{who or 'Somebody'} named it {label} {seconds} s ago",
                more={"kind": "taken", "by": who, "label": label, "seconds": seconds},
            )

    def _known_already(self, pictures: Sequence[InboxImage], label: str, correct: bool) -> bool:
        """Whether all are learned under this label; Refusal 409 if one is under another."""
        names = labels_known(
            self.knowledge.statistics, self.teacher.rows([one.sha for one in pictures])
        )
        for picture, name in zip(pictures, names, strict=True):
            if name not in (None, label) and not correct:
                since = self._since(picture.sha)
                raise Refusal(
                    409,
                    f"it was learned as {name}. Correct it?",
                    more={"kind": "already", "already": name, "since": since, "id": picture.id},
                )
        return all(name == label for name in names)

    def _suspicion(self, picture: InboxImage, label: str) -> dict[str, Any] | None:
        """The known class that the model takes an image of a new one for, if it is sure."""
        if self.knowledge.n_images.get(label) or picture.id not in self.scores:
            return None
        said = self.scores.of(picture.id)
        sure = not said["flagged"] and (said["p"] or 0) >= _SURE
        return {"label": said["said"], "p": said["p"]} if sure else None

    def _since(self, sha: str) -> str | None:
        """When the same bytes were named last; None if that was not here."""
        times = [
            one.about["t"]
            for one in self.book.changes
            if one.do == NAMED and one.counts and any(image["sha"] == sha for image in one.images)
        ]
        return max(times, default=None)

    def _written(self, pictures: Sequence[InboxImage], about: dict[str, Any]) -> Change:
        said = [self.scores.of(one.id) if one.id in self.scores else {} for one in pictures]
        with self.book.lock:
            was = [one.label for one in pictures]
            former = [one.place for one in pictures]
            if any(was):
                about["was"] = was
            change = self.book.write_images(pictures, said, **about)
            for one, place in zip(pictures, former, strict=True):
                one.place = place  # it is there until it is moved
                self.leases.drop(one.id)
        self._done("journal")
        self._changed()
        return change

    def _move(self, change: Change, pictures: Sequence[InboxImage]) -> None:
        try:
            self.book.settle_all(pictures)
        except OSError:
            self.book.write({"do": "undone", "of": change.key, "failed": True})
            self.book.put_files_right()
            raise
        self._done("moved")

    def _learn(self, change: Change) -> None:
        """Learn the images of a label, or refuse them and leave the model as it is."""
        started, images = time.perf_counter(), self.book.changes.teaching(change)
        with self.teacher.lock:
            before = self.teacher.digest
            try:
                if "was" in change.about:  # the label before is in force no longer
                    known = self.teacher.ledger.folded(self.book.changes)
                else:
                    # sums are exact: as if all were folded anew, at the cost of these images
                    known, _ = self.teacher.ledger.extended(self.knowledge, change, images)
                self.teacher.put(known, "label")
            except LearnkitError as error:
                self.book.write({"do": "refused", "of": change.key, "reason": str(error)})
                return
            self._done("learned")
            self._note_learned(change, before, started)
        self._done("noted")

    def _note_learned(self, change: Change, before: str, started: float) -> None:
        n = self.knowledge.n_images.get(change.label or "", 0)
        ms = round(1000 * (time.perf_counter() - started))
        line = {"do": "learned", "of": change.key, "before": before, "after": self.teacher.digest}
        self.book.write({**line, "ms": ms, "n": n})

    def _put_aside(self, asked: dict[str, Any], key: str, pictures: Sequence[InboxImage]) -> Answer:
        action = asked["action"]
        if action not in ASIDE:
            raise Refusal(400, f"`action` is {str(action)[:20]!a}; it is one of {', '.join(ASIDE)}")
        about = {"key": key, "who": who_in(asked, named=self.named), "do": action}
        if action == "unusable":
            about["files"] = self.book.inbox.targets(pictures, None)
        change = self._written(pictures, about)
        self._move(change, pictures)
        self._changed()
        return 200, {**outcome_of(change), "result": "moved", "action": action}

    def _reload_if_changed(self) -> bool:
        if not self.teacher.is_changed_elsewhere():
            return False
        self.teacher.reload()
        self._judge()
        return True

    # -- taking back, and changes of classes -----------------------------------------------------

    def undo(self, asked: dict[str, Any]) -> Answer:
        """Take back one change, or all from one on; see the contract of POST /label/undo."""
        key = key_in(asked)
        return self._repeated(f"undo {key}", lambda: self._undo(asked, key))

    def _undo(self, asked: dict[str, Any], key: str) -> Answer:
        found = self._to_undo(asked)
        counts: dict[str, int] = {}
        for change in found:
            name = change.label or change.do
            counts[name] = counts.get(name, 0) + len(change.images)
        ids = list(dict.fromkeys(image["id"] for one in found for image in one.images))
        content = {
            "undone": len(ids),
            "changes": len(found),
            "ids": ids,
            "label": found[0].label,
            "labels": counts,
        }
        if asked.get("dry") is True:
            return 200, content
        keys, who = [one.key for one in found], who_in(asked, named=self.named)
        with self.teacher.lock:
            self._reload_if_changed()
            # before the journal: what cannot be taken back alone leaves no line
            known = self._known_without(found)
            self.book.write({"do": "undo", "key": key, "who": who, "of": keys})
            self._done("journal")
            if known is not None and known.digest != self.teacher.digest:
                self.teacher.put(known, "undo")
            self._done("learned")
            for change in found:
                self.book.write({"do": "undone", "of": change.key, "after": self.teacher.digest})
        self._done("noted")
        self.book.put_files_right()
        self._done("moved")
        self._judge()
        self._changed()
        return 200, content

    def _known_without(self, changes: Sequence[Change]) -> Knowledge | None:
        """What is known without some changes, None if they teach nothing.

        Raises:
            Refusal: 409 a later change rests on one of them.
        """
        if all(one.do in ASIDE for one in changes):
            return None
        try:
            keys = [one.key for one in changes]
            return self.teacher.ledger.folded(self.book.changes, keys)
        except ContinualStateError as error:
            raise Refusal(409, str(error), more={"kind": "rests"}) from error

    def _to_undo(self, asked: dict[str, Any]) -> list[Change]:
        """The changes that are meant, the last one first."""
        changes = [one for one in self.book.changes if one.state != "undone"]
        if "of" in asked:
            found = [one for one in changes if one.key == asked["of"]]
        elif isinstance(asked.get("line"), int):
            found = [one for one in changes if one.line >= asked["line"]]
        else:
            found = changes[-1:]
        if not found:
            raise Refusal(409, "there is nothing to take back", more={"kind": "nothing"})
        return found[::-1]

    def change_class(self, asked: dict[str, Any]) -> Answer:
        """Rename, merge or forget a class; see the contract of POST /label/class."""
        if "check" in asked:
            check_name(str(asked["check"]), self.knowledge)
            return 200, {"ok": True}
        key = key_in(asked)
        return self._repeated(key, lambda: self._change_class(asked, key))

    def _change_class(self, asked: dict[str, Any], key: str) -> Answer:
        do = next((one for one in CLASSES if one in asked), None)
        if do is None:
            raise Refusal(400, "send `check`, `rename` and `to`, `merge` and `into`, or `forget`")
        name, to = asked[do], asked.get("to" if do == "rename" else "into")
        self._reload_if_changed()
        check_class_change(do, name, to, self.knowledge)
        to = checked_name(to) if do != "forget" else None
        about = {"key": key, "who": who_in(asked, named=self.named), "do": do, "from": name}
        about |= {} if to is None else {"to": to}
        # before the journal, too: what cannot be changed leaves no line
        known = with_class_change(self.teacher.knowledge, Change(key, do, [], 0, about=about))
        # files of labels that the model refused lie in the class's folder as well
        pictures = [one for one in self.book.in_state("learned", "refused") if one.label == name]
        if to is not None:
            about["files"] = self.book.inbox.targets(pictures, to)
            (self.book.inbox.labelled / to).mkdir(parents=True, exist_ok=True)
        before = self.teacher.digest
        started = time.perf_counter()
        change = self.book.write(about)
        self._done("journal")
        self.book.settle_all(pictures)
        self._done("moved")
        with self.teacher.lock:
            self.teacher.put(known, do)
            self._done("learned")
            self._note_learned(change, before, started)
        self._done("noted")
        self._judge()
        self._changed()
        return 200, {"result": "learned"}

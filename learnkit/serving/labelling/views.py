"""Views: what a page is told of the desk, as JSON types."""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from datetime import time as dtime
from typing import Any

import numpy as np

from learnkit.serving.labelling.desk import MOST, Desk
from learnkit.serving.labelling.inbox import InboxImage
from learnkit.serving.labelling.journal import CLASSES, NAMED, Change, stamp
from learnkit.serving.labelling.queue import SECONDS, asking_order, is_blind
from learnkit.serving.labelling.teacher import Saver
from learnkit.uncertainty.scoring import unit_rows
from learnkit.uncertainty.similarity import cut_of, groups_alike

_LIKE, _COMPARED = 2, 300  # labelled images shown beside one; the last ones it is compared with
_LOOKED, _SURPRISES = 30, 20  # of the last labels, how many may differ from what was sure
_MIXED, _LEAST = 0.3, 5  # share of today's images of a class that went to another, of at least


class Views:
    """What can be seen of a desk.

    Args:
        desk: what is shown.
        saver: says whether all is saved.
        model: the name of the model.
        show: what is asked for unless a page asks for another view.
        good: the class of sound parts, for the page to set apart.
        clock: gives seconds since 1970.
    """

    def __init__(
        self,
        desk: Desk,
        saver: Saver,
        *,
        model: str,
        show: str = "unknown",
        good: str | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self.desk, self.saver, self.model, self.show, self.good = desk, saver, model, show, good
        self._clock, self._lock = clock, threading.Lock()
        self.n_reading = 0
        self._orders: dict[str, tuple[tuple[int, int], list[InboxImage]]] = {}
        self._embedded: dict[str, np.ndarray] = {}

    # -- the state -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What stands beside every picture: counts, classes, what is wrong."""
        desk, knowledge = self.desk, self.desk.teacher.knowledge
        counts, order = desk.book.counts(), self.order(self.show)
        classes = [{"name": name, "count": n} for name, n in knowledge.n_images.items() if n]
        scoring, today = desk.scores.scoring, self._today()
        n_new = len(desk.scores.unjudged())
        error = self.saver.error
        not_saved = None if error is None else f"cannot save: {error}"
        waiting = counts["waiting"] + counts["skipped"] - n_new
        last = next((one for one in reversed([*desk.book.changes]) if one.do == NAMED), None)
        return {
            "model": self.model,
            "digest": desk.teacher.digest,
            "threshold": None if scoring is None else scoring.threshold.value,
            "classes": classes,
            "counts": {
                "waiting": len(order),
                "sure": waiting - len(order) + counts["sure"],
                "done_today": sum(len(one.images) for one in today),
                "asked": counts["ask"],
                "unreadable": len(desk.book.unreadable),
                "refused": counts["refused"],
                "unusable": counts["unusable"],
                "skipped": counts["skipped"],
                "reading": self.n_reading + n_new,
            },
            "show": self.show,
            "good": self.good,
            "lock_classes": desk.locked,
            "names": desk.named,
            "saved": self.saver.is_saved,
            "trouble": desk.trouble or not_saved or desk.inbox_trouble,
            "last": last.images[0]["id"] if last and last.counts else None,
            "notes": self._notes(today),
        }

    def _today(self) -> list[Change]:
        """Labels in force that were given today, as the clock on the wall says."""
        midnight = datetime.combine(datetime.fromtimestamp(self._clock()).date(), dtime.min)
        start = stamp(midnight.timestamp())
        named = (one for one in self.desk.book.changes if one.do == NAMED and one.counts)
        # stamps are of one length and all in UTC, so that they sort as texts
        return [one for one in named if one.about["t"] >= start]

    def _notes(self, today: Sequence[Change]) -> list[dict[str, Any]]:
        """What may be wrong with camera, light or names: many surprises, classes that mix."""
        sure = [
            (one.label, image)
            for one in today
            for image in one.images
            if image.get("flagged") is False and image.get("said") is not None
        ]
        notes = []
        differ = sum(label != image["said"] for label, image in sure[-_LOOKED:])
        if differ >= _SURPRISES:
            text = f"many surprises: {differ} of the last {_LOOKED} labels are other than what "
            text += "the model was sure of. Have camera, light or names changed?"
            notes.append({"kind": "drift", "text": text, "like": []})
        return notes + self._mixed(sure)

    @staticmethod
    def _mixed(sure: Sequence[tuple[str | None, dict[str, Any]]]) -> list[dict[str, Any]]:
        """A note for each class of which another took many of today's images."""
        by_said: dict[str, list[tuple[str | None, dict[str, Any]]]] = {}
        for label, image in sure:
            by_said.setdefault(image["said"], []).append((label, image))
        notes = []
        for said, pairs in by_said.items():
            for other in dict.fromkeys(label for label, _ in pairs if label != said):
                took = [image for label, image in pairs if label == other]
                if len(took) < _LEAST or len(took) <= _MIXED * len(pairs):
                    continue
                own = [image for label, image in pairs if label == said]
                text = f"{len(took)} of today's {len(pairs)} images that the model was sure are "
                text += f"{said} were named {other}. Do the two look alike, or is one misnamed?"
                like = [{"id": took[-1]["id"], "label": other}]
                like += [{"id": one["id"], "label": said} for one in own[-1:]]
                notes.append({"kind": "mixed", "text": text, "like": like})
        return notes

    # -- the queue -------------------------------------------------------------------------------

    def order(self, view: str) -> list[InboxImage]:
        """The pictures that are asked for in a view, in their order."""
        # read before the order is made: what changes meanwhile makes it anew
        version = self.desk.book.version, self.desk.scores.version
        if self._orders.get(view, ((), []))[0] != version:
            self._orders[view] = version, self._order(view)
        return self._orders[view][1]

    def _order(self, view: str) -> list[InboxImage]:
        scores = self.desk.scores
        waiting = self.desk.book.waiting()
        judged = scores.is_judged([one.id for one in waiting])
        waiting = [one for one, is_judged in zip(waiting, judged, strict=True) if is_judged]
        if not waiting:
            return []
        places = scores.places([one.id for one in waiting])
        skipped = np.array([one.state == "skipped" for one in waiting])
        found = asking_order(
            [one.name for one in waiting],
            scores.ood[places],
            scores.lead[places],
            scores.flagged[places],
            skipped,
            view,
        )
        return [waiting[place] for place in found]

    def queue(
        self, n: int, view: str, have: Sequence[str], first: str | None, owner: str
    ) -> dict[str, Any]:
        """Up to `n` further images for a browser, what it holds judged anew, and the state."""
        leases, book = self.desk.leases, self.desk.book
        with self._lock:  # two pages that ask at once are given different images
            kept = [one for one in have if self._holds(one, owner)]
            images = [] if n < 1 else self._next(n, view, {*have}, first, owner)
        held = {one: self._judged(one) for one in kept}
        return {
            "images": [self.item(one) for one in images],
            "gone": [one for one in have if one not in held],
            "held": held,
            "holding": [one for one in leases.of(owner) if one in book.pictures],
            **self.state(),
        }

    def _holds(self, image: str, owner: str) -> bool:
        picture = self.desk.book.pictures.get(image)
        is_asked = picture is not None and picture.waits and image in self.desk.scores
        return is_asked and self.desk.leases.take(image, owner)

    def _next(
        self, n: int, view: str, have: set[str], first: str | None, owner: str
    ) -> list[InboxImage]:
        leases, pictures = self.desk.leases, self.desk.book.pictures
        order = self.order(view)
        asked = {one.id for one in order}
        # what was put off comes last, though the page that did so may still hold it
        held = [pictures[one] for one in leases.of(owner) if one in asked]
        own = [one for one in held if one.state != "skipped"]
        lead = [pictures[first]] if first in pictures and pictures[first].waits else []
        lead = [one for one in lead if one.id in self.desk.scores]
        found: list[InboxImage] = []
        for picture in dict.fromkeys(one.id for one in [*lead, *own, *order]):
            if len(found) >= n:
                break
            if picture not in have and leases.take(picture, owner):
                found.append(pictures[picture])
        return found

    def _judged(self, image: str) -> dict[str, Any]:
        scores = self.desk.scores
        said = scores.of(image)
        return {"probs": scores.probs(image), "ood": said["ood"], "flagged": said["flagged"]}

    def item(self, picture: InboxImage) -> dict[str, Any]:
        """An image, as a page knows it."""
        return {
            "id": picture.id,
            "sha": picture.sha,
            "w": picture.w,
            "h": picture.h,
            "name": picture.name.rpartition("/")[2],
            "blind": is_blind(picture.id),
            "like": self._like(picture),
            "lease": int(SECONDS),
            "skipped": picture.state == "skipped",
            **self._judged(picture.id),
        }

    def _like(self, picture: InboxImage) -> list[dict[str, Any]]:
        """The labelled images that it looks most like."""
        learned = self.desk.book.in_state("learned")[-_COMPARED:]
        if not learned:
            return []
        own = self._unit(picture.sha)
        nearness = np.array([self._unit(one.sha) @ own for one in learned])
        nearest = np.argsort(-nearness, kind="stable")[:_LIKE]
        return [{"id": learned[place].id, "label": learned[place].label} for place in nearest]

    def _unit(self, sha: str) -> np.ndarray:
        """The embedded features of an image, zeros where none are kept."""
        kept, root = self.desk.teacher.kept, self.desk.teacher.head.settings.root
        if sha not in self._embedded:
            if len(self._embedded) >= 4 * _COMPARED:
                self._embedded.clear()
            row = np.zeros((1, kept.width), np.float32)
            row = kept.block(kept.places([sha])) if sha in kept else row
            self._embedded[sha] = unit_rows(row, root=root)[0]
        return self._embedded[sha]

    # -- many at once ----------------------------------------------------------------------------

    def groups(self, view: str, owner: str) -> dict[str, Any]:
        """Groups of waiting images that are alike, the largest first, and the state."""
        desk, scoring = self.desk, self.desk.scores.scoring
        free = [one for one in self.order(view) if desk.leases.is_free(one.id, owner)][:MOST]
        root = desk.teacher.head.settings.root
        found = groups_alike(
            desk.scores.features([one.id for one in free]), cut_of(scoring), root=root
        )
        groups = []
        for places in found:
            images = [self.item(free[place]) for place in places]
            probs = np.array([one["probs"] for one in images])
            label, p = None, None
            if probs.size:
                mean = probs.mean(0)
                label, p = desk.scores.classes[mean.argmax()], round(float(mean.max()), 4)
            groups.append({"label": label, "p": p, "n": len(places), "images": images})
        return {"groups": groups, **self.state()}

    # -- the log ---------------------------------------------------------------------------------

    def log(self, n: int, before: int | None) -> dict[str, Any]:
        """The last changes, agreement of people and model, what could not be read, the state."""
        changes = [*self.desk.book.changes]
        shown = [one for one in changes if before is None or one.line < before]
        return {
            "lines": [self._line(one) for one in shown[: -n - 1 : -1]],
            "more": len(shown) > n,
            "agreement": self._agreement(changes),
            "unreadable": [
                {"name": name, "why": why} for name, why in self.desk.book.unreadable.items()
            ],
            "asked": [
                {"id": one.id, "name": one.name, "who": last.about.get("who", "") if last else ""}
                for one in self.desk.book.in_state("ask")
                for last in [self.desk.book.changes.last_of(one.id)]
            ],
            **self.state(),
        }

    @staticmethod
    def _line(change: Change) -> dict[str, Any]:
        about = change.about
        return {
            "line": change.line,
            "key": change.key,
            "t": about["t"],
            "who": about.get("who", ""),
            "do": change.do,
            "ids": [one["id"] for one in change.images],
            "names": [one["name"].rpartition("/")[2] for one in change.images],
            "label": about.get("to") if change.do in CLASSES else change.label,
            "was": about.get("from") or next(iter(about.get("was", ())), None),
            "said": about.get("said"),
            "p": about.get("p"),
            "ood": about.get("ood"),
            "flagged": about.get("flagged"),
            "blind": bool(about.get("blind")),
            "state": change.state
            if change.do in (NAMED, *CLASSES) or not change.counts
            else "moved",
            "reason": about.get("reason"),
            "after": about.get("after"),
        }

    @staticmethod
    def _agreement(changes: Sequence[Change]) -> dict[str, int]:
        pairs = [
            (one.label == image["said"], bool(one.about.get("blind")))
            for one in changes
            if one.do == NAMED and one.counts
            for image in one.images
            if image.get("said") is not None
        ]
        blind = [agreed for agreed, is_blind in pairs if is_blind]
        agreed = sum(agreed for agreed, _ in pairs)
        return {
            "n": len(pairs),
            "agreed": agreed,
            "blind_n": len(blind),
            "blind_agreed": sum(blind),
        }

    def log_csv(self) -> str:
        """The whole log as CSV; no cell begins a formula."""
        file = io.StringIO()
        lines = [self._line(one) for one in self.desk.book.changes]
        writer = csv.writer(file)
        columns = [*self._line(Change("", NAMED, [], 0, about={"t": ""}))]
        writer.writerow(columns)
        for line in lines:
            writer.writerow([_cell(line[name]) for name in columns])
        return file.getvalue()


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet computes, and that UTF-8 can hold.

    >>> _cell("=1+1"), _cell(["a", "b"]), _cell(None)
    ("'=1+1", 'a b', '')
    """
    if isinstance(value, list):
        value = " ".join(value)
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
        return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
    return "" if value is None else value

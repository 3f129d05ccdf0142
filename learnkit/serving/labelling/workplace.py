"""The workplace: the desk with all that runs beside it, from its start to its end.

One thread looks into the inbox and passes what is new through the network, one judges the queue
anew after a change, one saves; whatever people ask for is done in one more, thing by thing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from learnkit.errors import ImageReadError, LearnkitError
from learnkit.inference.batch import BATCH, padded_run
from learnkit.inference.model import model_digest
from learnkit.serving.http_errors import Refusal
from learnkit.serving.labelling.access import kept_secret
from learnkit.serving.labelling.book import Book
from learnkit.serving.labelling.desk import Desk
from learnkit.serving.labelling.events import Events
from learnkit.serving.labelling.inbox import OWN, Inbox, InboxImage
from learnkit.serving.labelling.journal import Journal
from learnkit.serving.labelling.kept_features import KeptFeatures
from learnkit.serving.labelling.queue import Leases
from learnkit.serving.labelling.scores import Scores
from learnkit.serving.labelling.teacher import Saver, Teacher
from learnkit.serving.labelling.views import Views
from learnkit.serving.served_model import ServedModel
from learnkit.serving.uploads import Upload
from learnkit.storage.filesystem import open_regular, write_file
from learnkit.uncertainty.scoring import Scoring

_POLL, _FIRST_POLL = 2.0, 1.0  # seconds between looks into the inbox
_AFTER_ERROR = 10.0
_AT_ONCE = 128  # images judged before an answer; the others are right behind it
_AT_START, _STEP = 1024, 8192  # images judged before the first page; between two of what is told
_SIDES = (16, 4096)
_PICTURES = 64  # encoded pictures that are kept
_PASS = 10.0  # seconds at most for a pass of the network that has begun, on a busy machine
_SAVING = 3.5  # seconds for the last save; the journal has what does not get through


class Workplace:
    """A model, an inbox, and who labels; everything that the routes need.

    Args:
        predictor: in the continual state; it belongs to the workplace from now on.
        inbox: folder that images come into.
        labelled: folder with a folder for each class; default one beside the inbox.
        out: bundle that is saved to.
        reopen: opens the model at `out` anew.
        name: of the model, for people.
        show: "unknown", "unsure" or "all".
        good: the class of sound parts, if the page is to set it apart.
        locked: whether no classes can be made.
        named: whether the names of people are kept.
        clock: seconds since 1970.
        steady: seconds for leases and for files that stand still.
        done: see `Desk`.

    Raises:
        ServingError: a folder that cannot be used, or a damaged journal.
    """

    def __init__(
        self,
        predictor: Any,
        inbox: Path,
        *,
        labelled: Path | None = None,
        out: Path,
        reopen: Callable[[], Any],
        name: str = "model",
        show: str = "unknown",
        good: str | None = None,
        locked: bool = False,
        named: bool = True,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        done: Callable[[str], object] = lambda step: None,
    ):
        self.store = inbox / OWN
        folder = inbox.parent / "labelled" if labelled is None else labelled
        checked = Inbox(inbox, folder, b"", steady)  # before anything is written
        self.store.mkdir(mode=0o700, exist_ok=True)
        self.secret = kept_secret(self.store / "secret")
        self.inbox = Inbox(inbox, checked.labelled, self.secret, steady)
        self.journal = Journal(self.store / "journal.jsonl", clock)
        self.predictor, self.events = predictor, Events()
        network = predictor.record.network
        self.kept = KeptFeatures(self.store, network.n_features, body_digest(predictor))
        self.book = Book(self.journal, self.inbox)
        self.teacher = Teacher(predictor, out, self.book, self.kept, self.store, reopen)
        self.scores = Scores(self.kept)
        self.served: ServedModel | None = None  # what says beside the page which model it is
        self.desk = Desk(
            self.book,
            self.teacher,
            self.scores,
            Leases(steady),
            locked=locked,
            named=named,
            judge=self.judge,
            changed=self.changed,
            done=done,
            clock=clock,
        )
        self.saver = Saver(self.teacher, self._told_of_save)
        self._after_save = done
        self.views = Views(self.desk, self.saver, model=name, show=show, good=good, clock=clock)
        self.working = ThreadPoolExecutor(1, "learnkit-label")
        self._hopeless: dict[str, tuple[int, int]] = {}  # size and time of unreadable files
        self.n_files = 0  # in the inbox, when it was looked into last
        self._taken: set[str] = set()  # names of files taken in, as long as they are there
        self._ended, self._judging = threading.Event(), threading.Condition()
        self._generation = self._judged = 0
        self._encoded: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._encoding = threading.Lock()
        self._threads = [
            threading.Thread(target=one, name=f"learnkit-{one.__name__}", daemon=True)
            for one in (self.watch, self.judge_all)
        ]

    def open(self) -> None:
        """Do what a crash left undone, judge what is known, and begin to look into the inbox."""
        n_before = self.desk.open()
        self.know()
        self.look(known_only=True)
        self._generation += 1  # what is not judged yet is by the thread for that
        if n_before or self.teacher.head.knowledge is not self.saver.saved:
            self.saver.ask()
        self.saver.start()
        for thread in self._threads:
            thread.start()

    def close(self) -> bool:
        """End the threads and save; whether everything is in the bundle then."""
        self._ended.set()
        self.events.close()
        with self._judging:
            self._judging.notify_all()
        self.working.shutdown(cancel_futures=True)  # what has begun is completed
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_SAVING / 4)
        is_saved = self.saver.stop(_SAVING)
        for thread in self._threads:  # one within torch when Python ends would abort the process
            if thread.ident is not None:
                thread.join(_PASS)
        # after the last save, which may write to it
        self.journal.close()
        self.kept.close()
        return is_saved

    # -- images that come ------------------------------------------------------------------------

    def watch(self) -> None:
        """Look into the inbox until the end."""
        pause = _FIRST_POLL
        while not self._ended.wait(pause):
            pause = _POLL if self.try_look() else _AFTER_ERROR
            if self.desk.trouble is not None:
                self.recheck_disk()

    def recheck_disk(self) -> None:
        """See whether labels can be written again, for pages that wait for that."""
        probe = self.store / "probe"
        try:
            # a block of bytes: a full disk may still take an empty file
            write_file(probe, lambda file: file.write(bytes(4096)))
        except OSError:
            return
        probe.unlink(missing_ok=True)
        self.desk.trouble = None
        self.changed()

    def try_look(self) -> bool:
        """Look into the inbox; False if that is impossible now, which pages are told."""
        try:
            self.look()
        except (OSError, LearnkitError) as error:
            self.desk.inbox_trouble = f"the inbox cannot be read: {error}"
            self.changed()
            return False
        self.desk.inbox_trouble = None
        return True

    def look(self, *, known_only: bool = False) -> int:
        """Take in the images that came, once their files stand still; how many.

        Args:
            known_only: only files that were there before, and are as they were: at the start.
        """
        files = self.inbox.files()
        self.n_files = len(files)
        for picture in self.book.waiting():
            if picture.name not in files:
                self.book.lose(picture)
        known, new = [], []
        self._taken &= files.keys() - {one.name for one in self.book.in_state("gone")}
        for name in sorted(files) if known_only else self.inbox.settled(files):
            noted = self.kept.files.get(name)
            kept = (files[name].st_size, files[name].st_mtime_ns)
            if noted and (noted["size"], noted["mtime"]) == kept and noted["sha"] in self.kept:
                if name not in self._taken:
                    known.append(noted)
            elif name not in self.book.unreadable or not known_only:
                new.append(name)
        found = self._take(known, _AT_START if known_only else None)
        if not known_only:
            # a file that could not be read is read again once it is another
            now = {name: (files[name].st_size, files[name].st_mtime_ns) for name in new}
            failed = self.book.unreadable
            found += self._read(
                [x for x in new if x not in failed or self._hopeless.get(x) != now[x]]
            )
        if found:
            self.changed()
        return found

    def _take(self, images: list[dict[str, Any]], at_most: int | None = None) -> int:
        """Take in images whose features are kept, and judge them, or as many as `at_most`."""
        new = []
        for one in images:
            picture = self.inbox.image(one)
            self._taken.add(picture.name)
            if self.book.add(picture) or picture.id not in self.scores:
                new.append((picture.id, picture.sha))
        self.scores.add(new, at_most)
        return len(new)

    def _read(self, names: list[str]) -> int:
        """Decode new images, and pass them through the network; how many could be read."""
        n_read = 0
        self.views.n_reading = len(names)
        for start in range(0, len(names), BATCH):
            if self._ended.is_set():
                break
            images, pixels = [], []
            for name in names[start : start + BATCH]:
                if not self._ended.is_set() and (found := self._decoded(name)) is not None:
                    images.append(found[0])
                    pixels.append(found[1])
            if images and not self._ended.is_set():
                rows, _ = padded_run(self.predictor.record.network, pixels)
                self.kept.add(images, rows)
                n_read += self._take(images)
                self.changed()
            self.views.n_reading = max(0, len(names) - start - BATCH)
        self.views.n_reading = 0
        return n_read

    def _decoded(self, name: str) -> tuple[dict[str, Any], Any] | None:
        try:
            data, stat = self.inbox.read(name)
        except OSError:
            return None  # gone again, or a link by now
        try:
            size, pixels = self.teacher.decoded(data, name)
        except ImageReadError as error:
            self._hopeless[name] = stat.st_size, stat.st_mtime_ns
            self.book.unreadable[name] = str(error)
            return None
        self.book.unreadable.pop(name, None)
        about = {"sha": hashlib.sha256(data).hexdigest(), "name": name}
        return {**about, "size": stat.st_size, "mtime": stat.st_mtime_ns, **size}, pixels

    # -- judging ---------------------------------------------------------------------------------

    def know(self) -> None:
        """Judge from now on by what the model knows at this moment."""
        self.scores.know(self._scoring(), self.teacher.head.classes)

    def _scoring(self) -> Scoring | None:
        known = self.teacher.knowledge
        return None if known.derived is None else known.scoring

    def judge(self) -> int:
        """Judge anew what is seen next, the rest right after; how many are unknown no longer."""
        self.know()
        order = [one.id for one in self.views.order(self.views.show)[:_AT_ONCE]]
        pictures = self.book.pictures
        held = [one for one in self.desk.leases.held() if one in pictures and pictures[one].waits]
        held = [one for one in held if one in self.scores]
        first = list(dict.fromkeys([*held, *order]))[:_AT_ONCE]
        places = self.scores.places(first)
        before = self.scores.flagged[places].copy()
        self.scores.rescore(first)
        with self._judging:
            self._generation += 1
            self._judging.notify_all()
        return int((before & ~self.scores.flagged[places]).sum())

    def judge_all(self) -> None:
        """Judge the whole queue anew after each change, until the end."""
        while not self._ended.is_set():
            with self._judging:
                outdated = lambda: self._judged != self._generation or self._ended.is_set()
                self._judging.wait_for(outdated)
                generation = self._generation
            outdated = lambda wanted=generation: self._generation != wanted or self._ended.is_set()
            images = [*self.scores.unjudged(), *(one.id for one in self.book.waiting())]
            images = list(dict.fromkeys(images))
            for start in range(0, len(images), _STEP):
                self.scores.rescore(images[start : start + _STEP], outdated)
                if outdated():
                    break
                self.changed()
            # the one it began with: where that is outdated, the loop goes round again
            self._judged = generation
            if self.served is not None:
                self.served.digest = model_digest(self.predictor)
            self.changed()

    def changed(self) -> None:
        """Tell pages, and have saved what is not."""
        if not self.saver.is_saved:
            self.saver.ask()
        self.events.publish("state", self.views.state)

    def _told_of_save(self, error: LearnkitError | None) -> None:
        self._after_save("saved")
        if self.scores.scoring is not self._scoring():  # another program had changed the model
            self.judge()
        self.changed()

    # -- pictures --------------------------------------------------------------------------------

    def picture(self, image: str, side: int) -> bytes:
        """A picture of an image, of `side` pixels at most, in WebP: pixels alone, turned upright.

        Raises:
            Refusal: 404 there is none of this id, or its file is gone; 422 it cannot be read.
        """
        found = self.book.pictures.get(image)
        if found is None:
            raise Refusal(404, "there is no such image", more={"kind": "gone"})
        side = min(max(side, _SIDES[0]), _SIDES[1])
        with self._encoding:
            if (image, side) in self._encoded:
                self._encoded.move_to_end((image, side))
                return self._encoded[image, side]
        # without the lock, as it takes long: two may encode the same, and neither waits
        data = self._encode(found, side)
        with self._encoding:
            self._encoded[image, side] = data
            while len(self._encoded) > _PICTURES:
                self._encoded.popitem(last=False)
        return data

    def _encode(self, picture: InboxImage, side: int) -> bytes:
        shown = self.decoded(picture)
        shown.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        # of pixels alone: what else the file says, where and when it was taken, stays here
        Image.fromarray(np.asarray(shown)).save(file, "WEBP", quality=90, method=2)
        return file.getvalue()

    def decoded(self, picture: InboxImage) -> Image.Image:
        """The image of a picture in its own size, upright.

        Raises:
            Refusal: 404 its file is gone, 422 it cannot be read.
        """
        try:
            with open_regular(picture.place, follow=False) as file:
                data = Upload(file.read(), picture.name)
            return self.predictor.preprocessing.decode(data)
        except ImageReadError as error:
            raise Refusal(422, str(error), more={"kind": "gone"}) from error
        except OSError as error:
            raise Refusal(404, f"{picture.name} is gone", more={"kind": "gone"}) from error

    def heat(self, image: str, label: str | None) -> dict[str, Any]:
        """Where an image speaks for a class, the likeliest if None.

        Raises:
            Refusal: 404 no such image or class, 409 the network has no heatmaps.
        """
        found = self.book.pictures.get(image)
        if found is None or (label is not None and label not in self.predictor.classes):
            raise Refusal(404, "there is no such image or class", more={"kind": "gone"})
        try:
            heat = self.predictor.heatmap(self.decoded(found), target=label, progress=False)
        except LearnkitError as error:
            raise Refusal(409, str(error), more={"kind": "heat"}) from error
        ((name, values),) = heat.maps.items()
        pixels = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
        return {
            "h": pixels.shape[0],
            "w": pixels.shape[1],
            "map": base64.b64encode(pixels.tobytes()).decode(),
            "of": name,
            "empty": not pixels.any(),
        }


def body_digest(predictor: Any) -> str:
    """SHA-256 (hex) of what decides the features of an image: the network, and how it is read."""
    record = predictor.record
    digest = hashlib.sha256(repr(sorted(predictor.preprocessing.to_dict().items())).encode())
    digest.update(record.network.backend.encode() + record.network.precision.encode())
    if record.converted is not None:
        for name, data in sorted(record.converted.files.items()):
            digest.update(name.encode() + hashlib.sha256(data).digest())
        return digest.hexdigest()
    # without the head, which learns: features do not depend on it
    body = record.network.model[0]
    for name, tensor in sorted(body.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

"""The teacher: labels put into the model, and the model onto the disk, group by group."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from learnkit.continual.change_report import ChangeReport
from learnkit.continual.knowledge import Knowledge
from learnkit.data.image import naming_errors, open_picture
from learnkit.deploy.home import take_home_of
from learnkit.errors import ContinualStateError, LearnkitError
from learnkit.inference.batch import BATCH, padded_run
from learnkit.serving.labelling.book import Book
from learnkit.serving.labelling.inbox import InboxImage
from learnkit.serving.labelling.journal import Change
from learnkit.serving.labelling.kept_features import KeptFeatures
from learnkit.serving.labelling.ledger import Ledger, is_in, read_knowledge, write_knowledge
from learnkit.serving.uploads import Upload, check_pixels
from learnkit.storage.filesystem import open_regular

_BASE = "base.safetensors"
_TURNED = (5, 6, 7, 8)  # orientations in EXIF that swap width and height
_EVERY = 2.0  # seconds from the end of one save to the next at least


class Teacher:
    """A predictor that learns from the book of labelling.

    Args:
        predictor: in the continual state; it belongs to the teacher from now on.
        out: bundle that is saved to; what was learned is in it, or in the journal.
        book: of what was labelled.
        kept: features of the images.
        store: folder for what all starts from.
        reopen: opens the model at `out` anew.

    Attributes:
        lock: held while the model is changed; not while it is saved.
    """

    def __init__(
        self,
        predictor: Any,
        out: Path,
        book: Book,
        kept: KeptFeatures,
        store: Path,
        reopen: Callable[[], Any],
    ):
        self.predictor, self.out, self.book, self.kept = predictor, out, book, kept
        self._base_file, self._reopen = store / _BASE, reopen
        self.on_disk, self.lock = _digest_at(out), threading.RLock()
        self.ledger = self._opened_ledger()
        self.digest = self.knowledge.digest

    @property
    def head(self) -> Any:
        """The head that keeps class statistics."""
        return self.predictor.continual

    @property
    def knowledge(self) -> Knowledge:
        """What the model knows at this moment."""
        return self.head.knowledge

    @property
    def origin(self) -> str:
        """Of the features that are kept."""
        return self.predictor.record.network.origin(BATCH)

    def _opened_ledger(self) -> Ledger:
        base = read_knowledge(self._base_file)
        if base is None or base.digest != self.book.changes.base:
            return Ledger(self.knowledge, self.rows, self.origin)
        return Ledger(base, self.rows, self.origin)

    def catch_up(self) -> bool:
        """Learn what the journal has and the model has not; whether anything was.

        Raises:
            OSError: what all starts from cannot be kept.
        """
        changes, own = self.book.changes, self.knowledge.digest
        ours = self.ledger.base.digest == changes.base and own in changes.digests
        if not ours:
            self._begin_anew()
        known = self.ledger.folded(changes)
        if known.digest == own:
            return False
        self.put(known, "label")
        return True

    def _begin_anew(self) -> None:
        """Start from the model as it is; what it has learned of the changes is noted."""
        known = self.knowledge
        self.ledger.base = known
        sealed = [one.key for one in self.book.changes if one.counts and self._is_in(known, one)]
        write_knowledge(self._base_file, known)
        self.book.write({"do": "base", "digest": known.digest, "sealed": sealed})

    def _is_in(self, known: Knowledge, change: Change) -> bool:
        try:
            return is_in(known, change, self.rows)
        except LearnkitError:  # images that are gone were learned when they were there
            return True

    def put(self, known: Knowledge, what: str) -> ChangeReport:
        """Let the model know this from now on; what changed.

        Raises:
            LearnkitError: nothing can be derived from it; the model is as before.
        """
        report = self.head.replace_knowledge(known, what)
        self.digest = self.knowledge.digest
        return report

    def rows(self, shas: Sequence[str]) -> torch.Tensor:
        """Exact features float32 (N, D) of images by their SHA-256; read anew if not kept.

        Raises:
            ContinualStateError: an image is neither kept nor where it was.
            ImageReadError: one cannot be read.
        """
        found = self.kept.exact(shas)
        if found is None:
            missing = [sha for sha in dict.fromkeys(shas) if self.kept.exact([sha]) is None]
            places = {one.sha: one for one in self.book.pictures.values()}
            for sha in missing:
                self._read_again(places.get(sha), sha)
            found = self.kept.exact(shas)
        return torch.from_numpy(found.copy())

    def _read_again(self, picture: InboxImage | None, sha: str) -> None:
        try:
            if picture is None:
                raise FileNotFoundError
            with open_regular(picture.place, follow=False) as file:
                data = file.read()
        except OSError as error:
            name = sha[:8] if picture is None else picture.name
            raise ContinualStateError(
                f"the image {name} is needed to take something back, and is not where it was; put "
                "its file there again"
            ) from error
        image, pixels = self.decoded(data, picture.name)
        # no file has this time, so that none counts as read by it
        image |= {"sha": sha, "name": picture.name, "size": len(data), "mtime": -1}
        self.kept.add([image], padded_run(self.predictor.record.network, [pixels])[0])

    def decoded(self, data: bytes, name: str) -> tuple[dict[str, Any], Any]:
        """({w, h} as it is shown, pixels as the network takes them) of an image file's bytes.

        Raises:
            ImageReadError: it cannot be read.
        """
        upload, recipe = Upload(data, name), self.predictor.preprocessing
        check_pixels(upload, recipe.max_pixels)
        with naming_errors(name, upload):
            image = open_picture(upload)
            width, height = image.size
            turned = recipe.exif_transpose and image.getexif().get(0x0112, 1) in _TURNED
        upload.seek(0)
        size = {"w": height, "h": width} if turned else {"w": width, "h": height}
        return size, self.predictor.load(upload)

    def is_changed_elsewhere(self) -> bool:
        """Whether another program has written the model since it was read or saved here."""
        return _digest_at(self.out) not in (self.on_disk, None)

    def reload(self) -> None:
        """Open the model as another program left it, and learn what it has not.

        Raises:
            LearnkitError: it cannot be opened; the former one goes on.
        """
        opened = self._reopen()
        # in place of the head alone: whoever serves the predictor goes on with it
        self.head.replace_knowledge(opened.continual.knowledge, "reload")
        self.predictor.digest = opened.digest
        take_home_of(self.predictor, opened)
        self.on_disk = _digest_at(self.out)
        self.catch_up()
        self.digest = self.knowledge.digest

    def save(self) -> Knowledge:
        """What is in the bundle at `out` from now on.

        Raises:
            LearnkitError: it cannot be written; what stood there still does.
        """
        with self.lock:  # else what another program saved would be written over
            if self.is_changed_elsewhere():
                self.reload()
            known = self.knowledge
        # not under the lock: saving takes long, and labels are learned meanwhile
        digest = self.predictor.save(self.out)
        self.on_disk = digest
        # else a label came meanwhile, and the model is no longer what is on the disk
        if self.knowledge is known:
            self.predictor.digest = digest
        return known


def _digest_at(folder: Path) -> str | None:
    """SHA-256 of the manifest of a bundle; None while there is none."""
    try:
        return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    except OSError:
        return None


class Saver:
    """Saves in a thread of its own, at most every two seconds, whatever was learned by then.

    Args:
        teacher: what is saved.
        told: is called after each attempt, with the error or None.
    """

    def __init__(self, teacher: Teacher, told: Callable[[LearnkitError | None], None]):
        self._teacher, self._told = teacher, told
        self._changed = threading.Condition()
        self.saved: Knowledge | None = teacher.knowledge
        self._is_wanted = self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="learnkit-save", daemon=True)
        self.error: LearnkitError | None = None

    @property
    def is_saved(self) -> bool:
        """Whether all that is known is on the disk, in the bundle."""
        # knowledge is replaced, never changed: the same object is the same state
        return self.saved is self._teacher.knowledge

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def ask(self) -> None:
        """Save soon."""
        with self._changed:
            self._is_wanted = True
            self._changed.notify_all()

    def stop(self, seconds: float) -> bool:
        """Save what is not saved, and end; False if that takes longer than this."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        # `join` raises of a thread that never began
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive() and self.is_saved

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_wanted or self._is_ending)
                # before it is saved: who asks during that is served by one more save
                self._is_wanted = False
                ending = self._is_ending
            if not self.is_saved:
                self.save_now()
            if ending:
                return
            ended = time.monotonic()
            with self._changed:
                left = lambda: max(0.0, ended + _EVERY - time.monotonic())  # noqa: B023  # called here
                self._changed.wait_for(lambda: self._is_ending, left())

    def save_now(self) -> None:
        """Save, and tell what came of it."""
        try:
            self.saved, self.error = self._teacher.save(), None
        except LearnkitError as error:
            self.error, self._is_wanted = error, True  # and again in two seconds
        self._told(self.error)

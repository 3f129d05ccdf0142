"""Unknown images that are kept: what the line's server flags, in the inbox of whoever labels it."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from learnkit.data.image import IMAGE_EXTENSIONS, open_picture
from learnkit.errors import LearnkitError, ServingError, number_of
from learnkit.inference.prediction import Prediction, Result
from learnkit.serving.uploads import Upload
from learnkit.storage.filesystem import write_file

LOG = logging.getLogger("learnkit.serving")
MOST_KEPT = 5000


class UnknownImages:
    """Keeps images out of distribution as files TIME_HASH.EXT, in a thread, until there are enough.

    Nothing is removed: while the folder is full nothing comes in, and the log says so. The same
    bytes are kept once, as long as they are there.

    Args:
        folder: where; the inbox of `learnkit label`.
        most: images in it at most, whoever put them there.
        clock: gives seconds since 1970.

    Raises:
        ServingError: there is no such folder, it cannot be written to, or `most` is below 1.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        most: int = MOST_KEPT,
        clock: Callable[[], float] = time.time,
    ):
        self.folder, self.most, self._clock = Path(folder), most, clock
        if most < 1:
            raise ServingError(f"`keep_at_most` is {most}; it is a number of images from 1 on")
        if not self.folder.is_dir() or not os.access(self.folder, os.W_OK):
            raise ServingError(
                f"--keep-unknown is {str(folder)!r}, which is no folder that can be written to; "
                "make it, or check the spelling"
            )
        # one thread: of two, each would see room for the last image
        self._keeping = ThreadPoolExecutor(1, "learnkit-keep")
        self._said: str | None = None

    def offer(self, uploads: Sequence[Upload], results: Sequence[Result]) -> None:
        """Keep those of some images that are flagged, soon; nobody waits for that."""
        for upload, result in zip(uploads, results, strict=True):
            if isinstance(result, Prediction) and result.is_ood:
                self._keeping.submit(self._keep, upload.getvalue())

    def close(self) -> None:
        """Keep what was offered, and end."""
        self._keeping.shutdown()

    def _keep(self, data: bytes) -> None:
        try:
            self._write(data)
        except (OSError, LearnkitError) as error:
            self._say(f"an unknown image could not be kept: {error}")

    def _write(self, data: bytes) -> None:
        # listed for each image: whoever labels takes files out meanwhile
        digest, names = hashlib.sha256(data).hexdigest()[:8], os.listdir(self.folder)
        there = [one for one in names if Path(one).suffix.lower() in IMAGE_EXTENSIONS]
        if any(Path(one).stem.endswith(f"_{digest}") for one in there):
            return
        if len(there) >= self.most:
            self._say(
                f"{self.folder} holds {number_of(len(there), 'image')}: no more unknown ones are "
                "kept until "
                "some are labelled (--keep-at-most)"
            )
            return
        now = self._clock()
        when = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f"{int(now % 1 * 1000):03d}Z"
        kind = str(open_picture(Upload(data, "image")).format).lower().replace("jpeg", "jpg")
        # whole at once: whoever watches the folder never sees a half
        write_file(self.folder / f"{when}_{digest}.{kind}", lambda file: file.write(data))
        self._said = None

    def _say(self, sentence: str) -> None:
        """Say it once, not for each image of a day."""
        if sentence != self._said:
            LOG.error("%s", sentence)
            self._said = sentence

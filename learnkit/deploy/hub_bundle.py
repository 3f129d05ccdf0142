"""Bundles on the Hugging Face hub: fetched into its cache, and published; files of data, no code.

Needs huggingface_hub, which comes with timm; neither torch nor timm is imported.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from learnkit.backends.extras import extra
from learnkit.errors import (
    BundleCorruptError,
    BundleError,
    BundleNotFoundError,
    BundleWriteError,
    LearnkitError,
    warn_user,
)
from learnkit.storage.filesystem import check_path
from learnkit.storage.read_folder import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    ON_HUB,
    VARIANTS,
    check_sizes,
    read_folder,
)

SECONDS = 10.0  # for an answer of the hub
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_PLACE = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# what a repository may have beside a bundle; anything else was put there by someone
_BESIDE = {".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"}
_OURS = [f"{VARIANTS}/*", "*.safetensors", "config.json", MANIFEST]


def located(
    path: str | os.PathLike,
    file: str | None = None,
    *,
    revision: str | None = None,
    sha256: str | None = None,
) -> str | os.PathLike:
    """The folder of a bundle: `path`, `file` in it, or where `hf-hub:OWNER/NAME` is fetched to.

    That is the cache of the Hugging Face hub; `@REVISION` may follow NAME. Only what the bundle's
    manifest lists is fetched, after its sizes are known. A revision that is a commit, or the bundle
    that `sha256` pins, is taken from the cache without asking if it is there; without an answer of
    the hub so is the last one that was fetched, with a warning.

    Raises:
        BundleNotFoundError: no such repository or revision, no bundle in it, or no way to it.
        BundleCorruptError: the repository holds other files than its manifest lists.
        BundleError: `path` is none, the name breaks a rule, or `revision` is given for a folder.
        MissingExtraError: huggingface_hub is not installed.
    """
    check_path(path, BundleError)
    if file is not None:
        check_path(file, BundleError, "file")
        path = Path(path) / file
    text = Path(path).as_posix()
    if not text.startswith(ON_HUB):
        if revision is not None:
            raise BundleError(f"`revision`={revision!r} is for {ON_HUB}OWNER/NAME; leave it out")
        return path
    name, own = _checked(text.removeprefix(ON_HUB) + ("" if revision is None else f"@{revision}"))
    hub, asked = extra("huggingface_hub"), own or "main"
    kept = _kept(hub, name, asked)
    if kept is not None:
        pinned = sha256 is not None and read_folder(kept, wanted=()).digest == sha256
        # a commit never changes, a branch may have moved
        if _COMMIT.fullmatch(asked) or pinned:
            return kept
    try:
        with _asking(hub, f"{ON_HUB}{name}@{asked}"):
            return _fetched(hub, name, asked)
    except _NoAnswer as error:
        if kept is None:
            raise
        warn_user(f"{error}; the model that was fetched before is taken, commit {kept.name}")
        return kept


def publish(repository: str, write: Callable[[Path], Any], *, private: bool = True) -> str:
    """The digest of the bundle that `write` wrote to a folder, put into a repository.

    Raises:
        BundleWriteError: the hub refuses or does not answer, or the repository holds other things.
        BundleError: the name breaks a rule.
        MissingExtraError: huggingface_hub is not installed.
    """
    name, branch = _checked(repository.removeprefix(ON_HUB))
    hub = extra("huggingface_hub")
    api = hub.HfApi()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "model")
        # first: a model that cannot be written leaves no empty repository behind
        digest = write(folder).digest
        try:
            api.create_repo(name, private=private, exist_ok=True)
            if branch is not None:
                api.create_branch(name, branch=branch, exist_ok=True)
            _check_repository(name, api.list_repo_files(name, revision=branch))
            api.upload_folder(
                repo_id=name,
                folder_path=folder,
                revision=branch,
                commit_message=f"Bundle {digest}",
                delete_patterns=_OURS,  # of an earlier bundle; those written now stay
            )
        except (OSError, hub.errors.HTTPError) as error:
            # BundleWriteError is an OSError, too
            if isinstance(error, LearnkitError):
                raise
            raise BundleWriteError(
                f"{name} cannot be written on {hub.constants.ENDPOINT}: {_first_line(error)}. Log "
                "in with `hf auth login`, or set HF_TOKEN, as one who may write there"
            ) from error
    return digest


class _NoAnswer(BundleNotFoundError):
    """The hub does not answer."""


def _checked(text: str) -> tuple[str, str | None]:
    """(OWNER/NAME, revision or None)."""
    found = _PLACE.fullmatch(text)
    # the hub's own rules, held before it is asked
    if found is None or ".." in text or "--" in text.partition("@")[0]:
        raise BundleError(
            f"{text!r:.200} names no repository of the hub; write {ON_HUB}OWNER/NAME, or "
            f"{ON_HUB}OWNER/NAME@REVISION for a branch, a tag or a commit"
        )
    return found[1], found[2]


def _kept(hub: ModuleType, name: str, revision: str) -> Path | None:
    """The snapshot of this revision in the cache, if it is whole."""
    manifest = hub.try_to_load_from_cache(name, MANIFEST, revision=revision)
    # None, or the cache's mark for a file that the revision does not have
    if not isinstance(manifest, str):
        return None
    folder = Path(manifest).parent
    try:
        listed = read_folder(folder, wanted=()).manifest["files"]
    except BundleError:
        return None
    # the manifest is fetched first: others may be missing after an interruption
    return folder if all((folder / one).is_file() for one in listed) else None


def _fetched(hub: ModuleType, name: str, revision: str) -> Path:
    """The folder in the cache that holds all files of a bundle."""
    about = {"revision": revision, "files_metadata": True, "timeout": SECONDS}
    info = hub.HfApi().model_info(name, **about)
    sizes = {one.rfilename: one.size for one in info.siblings or ()}
    if MANIFEST not in sizes:
        raise BundleNotFoundError(f"{name} on the hub holds no bundle: it has no {MANIFEST}")
    if (sizes[MANIFEST] or 0) > MAX_MANIFEST_BYTES:
        raise BundleCorruptError(f"{name}: {MANIFEST} has {sizes[MANIFEST]} bytes, far too many")
    folder = Path(hub.hf_hub_download(name, MANIFEST, revision=revision)).parent
    entries = read_folder(folder, wanted=()).manifest["files"]
    listed = {one: entry["size"] for one, entry in entries.items()}
    if other := [one for one, size in listed.items() if sizes.get(one) != size]:
        raise BundleCorruptError(
            f"{name}: {MANIFEST} lists {other[0]} with {listed[other[0]]} bytes, and the "
            f"repository has {sizes.get(other[0])}"
        )
    check_sizes(folder, listed)
    for one in listed:
        # the manifest's commit, which the folder is named by: a branch may move meanwhile
        hub.hf_hub_download(name, one, revision=folder.name)
    return folder


@contextmanager
def _asking(hub: ModuleType, text: str) -> Iterator[None]:
    """Say in one sentence what the hub refuses, or that it does not answer."""
    try:
        yield
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError) as error:
        raise BundleNotFoundError(
            f"{text} is not there, or not for you; check the spelling, and for one that is private "
            "log in with `hf auth login`"
        ) from error
    # BundleNotFoundError is an OSError, too
    except BundleError:
        raise
    except (OSError, hub.errors.HTTPError) as error:
        raise _NoAnswer(
            f"{text} cannot be fetched from {hub.constants.ENDPOINT}: {_first_line(error)}. Ways "
            "out: a filled cache (HF_HOME), a mirror (HF_ENDPOINT), or a copy of the repository's "
            "files in a folder, which opens by its path"
        ) from error


def _check_repository(name: str, files: list[str]) -> None:
    """Raise BundleWriteError if a repository holds what is no bundle's."""
    if MANIFEST not in files and (foreign := sorted({*files} - _BESIDE)):
        raise BundleWriteError(
            f"{name} holds files that no bundle put there ({', '.join(foreign[:3])}); a bundle "
            "replaces nothing but a bundle: choose another repository"
        )


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""A folder of files as one string of bytes, and back: a zip whose members are stored as they are.

Nothing is compressed, so what comes out is no larger than what went in. `read_folder` checks the
files themselves afterwards.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from learnkit.errors import BundleCorruptError, BundleError
from learnkit.storage.read_folder import MANIFEST, is_plain_name

_FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the earliest a zip knows: equal folders give equal bytes
_MAX_FILES = 1_000
_BEGINNING = b"PK\3\4"  # of a zip


def packed(folder: Path) -> bytes:
    """The files in `folder`, at any depth, as bytes; `unpack` writes them again."""
    # sorted: file systems list equal folders in different orders
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            member = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _FIRST_DAY)
            archive.writestr(member, path.read_bytes())
    return buffer.getvalue()


def unpack(data: bytes, folder: Path) -> None:
    """Write the files that `packed` put into `data` below `folder`, which is there and empty.

    Raises:
        BundleError: `data` are no such bytes.
        BundleCorruptError: they are cut short; a name leaves the folder or occurs twice; a member
            is compressed, or its checksum is wrong.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            # all names, before the first file is written
            _check_members(members, len(data))
            for member in members:
                target = folder / member.filename
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(archive.read(member))
    # zipfile raises the second for compression that it does not know, the last if encrypted
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        if data.startswith(_BEGINNING):
            raise BundleCorruptError(
                f"the {len(data):,} bytes begin as a bundle does, and are damaged or cut short "
                f"({error}); give all that `to_bytes` returned"
            ) from error
        raise BundleError(
            f"{len(data)} bytes that begin with {data[:4]!r} are no bundle ({error}); give what "
            "`to_bytes` returned, or the path of a folder"
        ) from error


def _check_members(members: list[zipfile.ZipInfo], n_bytes: int) -> None:
    """Raise BundleCorruptError unless every member is stored plainly, once, under a safe name."""
    names = [member.filename for member in members]
    if MANIFEST not in names or len(names) > _MAX_FILES:
        raise BundleCorruptError(f"the bytes hold {len(names)} files and have to hold {MANIFEST}")
    for member in members:
        if not is_plain_name(member.filename) or names.count(member.filename) > 1:
            raise BundleCorruptError(
                f"the bytes hold {member.filename!r}, which is twice there or not a plain name "
                "inside the bundle"
            )
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise BundleCorruptError(f"{member.filename} is compressed or encrypted in the bytes")
    # in a crafted archive members overlap, and unpack to more than it is
    if sum(member.file_size for member in members) > n_bytes:
        raise BundleCorruptError("the bytes claim to hold more than they are")

"""Atomic replacement of files: a reader finds the old bytes or the new ones, even after a kill or a power cut.

`replacing` renames a finished file to its name. `write_blocks`, `write_new` and `copy_file` write a new file, flush it
to disk, and compute its digest meanwhile. New folders are made by `teacher.files.folders`.
"""

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

LONGEST_NAME = 200
"""Longest temporary name in bytes; file systems allow 255."""
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{12}~(\.[^.]*)?", re.DOTALL)
"""Matches the names of unfinished files of `replacing`, which are hidden and contain a random token."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, to be written in the block; then it is flushed to disk and renamed to `path`.

    The temporary path is unique, has the suffix of `path`, and no file exists there yet; after an error the file is
    removed. The final file has the permissions that the umask gives to new files. Missing parent folders are made.

    Raises:
        OSError: the file cannot be written; it names `path`, which is unchanged, and no temporary file remains.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix if len(path.suffix) <= 16 else ""
    temporary = path.with_name(f".{shortened(path.name)}.{uuid.uuid4().hex[:12]}~{suffix}")
    try:
        mode = _new_file_mode(temporary)
        yield temporary
        if not temporary.is_symlink():
            _set_mode(temporary, mode)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


class Written(NamedTuple):
    """Length in bytes and SHA-256 of a written file."""

    bytes: int
    sha256: str


BLOCK = 2**24
"""Bytes copied at a time."""


def write_blocks(path: Path, blocks: Iterable[memoryview], size: int) -> Written:
    """Write a new file of `size` bytes block by block and flush it to disk; returns its length and digest.

    Each block is hashed while it is written. Raises FileExistsError if the file exists, OSError if it cannot be written
    or has another length afterwards.
    """
    digest = hashlib.sha256()
    with path.open("xb", buffering=0) as stream, ThreadPoolExecutor(max_workers=1) as hasher:
        for block in blocks:
            hashed = hasher.submit(digest.update, block)
            done = 0
            while done < len(block):
                done += os.write(stream.fileno(), block[done:])
            hashed.result()
        os.fsync(stream.fileno())
        found = os.fstat(stream.fileno()).st_size
    if found != size:
        raise OSError(f"{path} has {found} bytes after {size} were written")
    return Written(size, digest.hexdigest())


def write_new(path: Path, content: bytes) -> Written:
    """Write a new file and flush it to disk; returns its length and digest."""
    return write_blocks(path, [memoryview(content)], len(content))


def link_file(source: Path, target: Path) -> None:
    """Replace a file by a hard link to `source`, or by a copy if the file system has no links.

    Files are never modified in place in this project, so `source` does not change through the link.
    """
    if target.exists() and target.samefile(source):
        return
    with replacing(target) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def copy_file(source: Path, target: Path) -> Written:
    """Copy into a new file and flush it to disk; returns its length and digest."""
    with source.open("rb", buffering=0) as stream:
        pieces = iter(lambda: memoryview(stream.read(BLOCK)), b"")
        return write_blocks(target, pieces, source.stat().st_size)


def flush_folder(folder: Path) -> None:
    """Flush a folder to disk, without which new names and renames in it may not survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that cannot flush folders
            raise
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder. Call it only while holding the folder's lock,
    because otherwise a running process may own such a file."""
    for path in folder.glob(".*"):
        if TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def shortened(name: str) -> str:
    """The name, or its beginning if it is too long to make a temporary name of it."""
    return os.fsdecode(os.fsencode(name)[: LONGEST_NAME - 32])


def _new_file_mode(temporary: Path) -> int:
    """Permissions of a new file here, found by creating one: reading the umask would change it for all threads."""
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)
        temporary.unlink()


def _set_mode(temporary: Path, mode: int) -> None:
    """Set the permissions of a file, unless they are right or it is a hard link, whose other names share them."""
    found = temporary.stat()
    if found.st_mode & 0o777 != mode and found.st_nlink == 1:
        temporary.chmod(mode)

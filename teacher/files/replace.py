"""Files written whole: whoever reads one finds the old bytes or the new ones, also after a kill or a power cut.

`replacing` and `new_folder` put something finished into place; `write_blocks`, `write_new` and `copy_file` write a new
file, flush it to disk, and take its digest on the way.
"""

import errno
import glob
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from teacher.files.locks import FolderLock, LockedError

LONGEST_NAME = 200
"""Bytes of a temporary name; file systems allow 255, and long titles of films come close to that."""
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{12}~(\.[^.]*)?", re.DOTALL)
"""Names that `replacing` gives to unfinished files: hidden, with a token that no other process draws."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; at the end it is flushed to disk and renamed over `path`, else removed.

    The temporary path has the suffix of `path`, names no file yet, and belongs to this call alone. Whatever writes it,
    the file that remains has the access that the umask gives to new files. Missing parent folders are made.

    Raises:
        OSError: the file cannot be written; it names `path`, which is as it was, and no temporary file is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix if len(path.suffix) <= 16 else ""
    temporary = path.with_name(f".{_shortened(path.name)}.{uuid.uuid4().hex[:12]}~{suffix}")
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


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, with a name of its own; at the end its files are flushed and it becomes `path`.

    When something is raised inside, it is removed and `path` is as it was. What killed processes left of the same
    folder goes as well, but nothing that a living process writes.

    Raises:
        ValueError: `path` is something already, other than an empty folder, at the beginning or at the end.
    """
    path = Path(path)
    _check_free(path)
    _remove_staging(path)
    staging = path.with_name(f".{_shortened(path.name)}.{uuid.uuid4().hex[:12]}.part")
    staging.mkdir(parents=True)
    try:
        with FolderLock(staging, what=str(path)):
            yield staging
        for file in sorted(staging.rglob("*")):
            if file.is_dir():
                flush_folder(file)
            elif not file.is_symlink():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        flush_folder(staging)
        _check_free(path)
        try:
            os.replace(staging, path)
        except OSError:
            _check_free(path)  # made by another process in the meantime
            raise
        flush_folder(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_free(path: Path) -> None:
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise ValueError(f"{path} exists already; choose another folder, or remove it first")


def _remove_staging(path: Path) -> None:
    """Unfinished folders that nobody writes. The newest are left alone: their owners may not hold their locks yet."""
    for left in path.parent.glob(f".{glob.escape(_shortened(path.name))}.*.part"):
        token = left.name.split(".")[-2]
        try:
            if re.fullmatch(r"[0-9a-f]{12}", token) and time.time() - left.stat().st_mtime > NEW_S:
                with FolderLock(left):
                    shutil.rmtree(left, ignore_errors=True)
        except (LockedError, OSError):
            continue


NEW_S = 60.0
"""Seconds for which an unfinished folder counts as new."""


class Written(NamedTuple):
    """What a file holds, by its length in bytes and its SHA-256."""

    bytes: int
    sha256: str


BLOCK = 2**24
"""Bytes copied at a time."""


def write_blocks(path: Path, blocks: Iterable[memoryview], size: int) -> Written:
    """Write a new file of `size` bytes block by block and flush it to disk; its length and digest.

    Each block is hashed while it is written. Raises FileExistsError where there is a file, OSError where it cannot be
    written or has another length afterwards.
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
    """Write a new file and flush it to disk; its length and digest."""
    return write_blocks(path, [memoryview(content)], len(content))


def link_file(source: Path, target: Path) -> None:
    """Replace a file by a hard link to `source`, or by a copy where the file system has no links. Files are only ever
    replaced, so that a link is never written through."""
    if target.exists() and target.samefile(source):
        return
    with replacing(target) as temporary:
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def copy_file(source: Path, target: Path) -> Written:
    """Copy into a new file, flushed to disk; its length and digest."""
    with source.open("rb", buffering=0) as stream:
        pieces = iter(lambda: memoryview(stream.read(BLOCK)), b"")
        return write_blocks(target, pieces, source.stat().st_size)


def flush_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on disk: new files and renames survive a power cut only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that flush no folders say so with these
            raise
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left of files they were replacing. Call it only while holding the folder's lock:
    a living process of another run may own such a file otherwise."""
    for path in folder.glob(".*"):
        if TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[: LONGEST_NAME - 32])


def _new_file_mode(temporary: Path) -> int:
    """Access that a new file gets here. The umask itself can only be read by setting it, for all threads."""
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)
        temporary.unlink()


def _set_mode(temporary: Path, mode: int) -> None:
    """Left alone where nothing differs, and on hard links: their other names have the right access already."""
    found = temporary.stat()
    if found.st_mode & 0o777 != mode and found.st_nlink == 1:
        temporary.chmod(mode)

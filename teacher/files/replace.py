"""Files written whole: whoever reads one finds the old bytes or the new ones, also after a kill or a power cut.

`replacing` puts a finished file into place. `write_blocks`, `write_new` and `copy_file` write a new one, flush it to
disk, and take its digest on the way. New folders are made by `teacher.files.folders`.
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


def shortened(name: str) -> str:
    """The beginning of a name, short enough for a temporary name to be made of it."""
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

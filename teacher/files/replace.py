"""Replacing a file whole: whoever reads it finds the old bytes or the new ones, also after a kill or a power cut."""

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

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
        OSError: the file cannot be written, safetensors' own error for that included; it names `path`, which is as it
            was, and no temporary file is left.
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
    except SafetensorError as error:
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


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

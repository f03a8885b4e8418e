"""Folders: a lock for one writer (`FolderLock`), atomic creation (`new_folder`), finding moved files (`Moved`).

The lock is the kernel's (flock) on the file `.lock` in the folder. It ends with the process that holds it, so there are
no stale locks on one machine or on file systems that support locks between machines (NFS, Lustre with `flock`). On a
file system without locks, a note in the file replaces it: its owner renews it every few seconds, and a note that was
not renewed for a while, or whose process has ended, is stale.
"""

import errno
import fcntl
import glob
import json
import os
import re
import shlex
import shutil
import socket
import stat
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from teacher.files.replace import flush_folder, shortened
from teacher.files.text import read_json

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Error numbers of flock on file systems without locks."""
RENEWED_EVERY_S = 5.0
STALE_AFTER_S = 60.0
"""Without the kernel's locks, seconds without renewal after which an owner on another machine counts as dead."""
LONGEST_COMMAND = 200
LONGEST_NOTE = 1 << 16


class LockedError(ValueError):
    """Another process is writing to the folder. The message names it in one line."""


class FolderLock:
    """An exclusive lock for writing to a folder; use it as a context manager, or with `take` and `release`.

    Raises LockedError naming the owner if the lock is taken, also by another run within the same process.
    """

    def __init__(self, folder: Path, *, what: str = "it") -> None:
        """what: the content of the folder, for the message ("the run", "the features")."""
        self.folder, self._what = Path(folder), what
        self._descriptor = -1
        self._kernel = True
        self._done = threading.Event()

    @property
    def path(self) -> Path:
        """The lock file; it exists while the lock is taken, and after a kill until the lock is next released."""
        return self.folder / LOCK

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def take(self) -> None:
        """Take the lock; makes the folder if it is missing. Raises LockedError, or OSError if it cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = self._open()
            try:
                self._kernel = _flock(descriptor)
                if not self._kernel and self._note_is_fresh():
                    raise BlockingIOError(errno.EAGAIN, "a fresh note")
                if self._still_named(descriptor):
                    self._check_own(descriptor)
                    break
                os.close(descriptor)  # its last owner removed the name between our opening and locking it
            except BlockingIOError as error:
                os.close(descriptor)
                raise LockedError(self._refusal()) from error
            except BaseException:
                os.close(descriptor)
                raise
        self._descriptor = descriptor
        try:
            self._write_note()
        except OSError:
            self.release()
            raise
        if not self._kernel:
            self._done.clear()
            threading.Thread(target=self._renew, name="lock", daemon=True).start()

    def release(self) -> None:
        """Release the lock, if it is taken."""
        if self._descriptor < 0:
            return
        self._done.set()
        descriptor, self._descriptor = self._descriptor, -1
        if self._still_named(descriptor):
            self.path.unlink(missing_ok=True)
        os.close(descriptor)

    def _open(self) -> int:
        """Open or create the lock file, without following links or waiting for pipes."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(self.path, flags, 0o666)
        except PermissionError as error:
            if not os.path.lexists(self.path):
                raise  # nobody writes here, and we may not either
            refusal = self._refusal("a process of another account")
            raise LockedError(f"{refusal}; if that process has ended, have {self.path} removed") from error
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            raise self._foreign("is a link, a folder or a socket") from error
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(descriptor)
            raise self._foreign("has other names too" if stat.S_ISREG(found.st_mode) else "is no regular file")
        return descriptor

    def _check_own(self, descriptor: int) -> None:
        """Raise LockedError unless the file is empty or contains a note of `FolderLock` (or half a note, after a power
        cut), so that no other file of that name is overwritten."""
        content = os.pread(descriptor, LONGEST_NOTE + 1, 0)
        try:
            note = json.loads(content) if 0 < len(content) <= LONGEST_NOTE else None
        except (ValueError, RecursionError):
            note = None
        if (
            content.strip(b"\0")
            and not content.startswith(b'{"host": ')
            and not (isinstance(note, dict) and {"pid", "host"} <= set(note))
        ):
            raise self._foreign("holds something else")

    def _foreign(self, fault: str) -> LockedError:
        return LockedError(
            f"{self.path} {fault}, so it is not the lock of a folder; move it elsewhere or remove it, and run again"
        )

    def _still_named(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.lstat())
        except OSError:
            return False

    def _write_note(self) -> None:
        note = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": shlex.join(sys.argv)[:LONGEST_COMMAND],
        }
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(note).encode(), 0)

    def _note(self) -> dict[str, Any]:
        try:
            return read_json(self.path, limit=LONGEST_NOTE)
        except (OSError, ValueError):
            return {}

    def _note_is_fresh(self) -> bool:
        note = self._note()
        if note.get("host") == socket.gethostname() and note.get("pid") != os.getpid():
            return _runs(note.get("pid"), note.get("started"))
        return bool(note) and abs(time.time() - self.path.stat().st_mtime) < STALE_AFTER_S

    def _renew(self) -> None:
        while not self._done.wait(RENEWED_EVERY_S):
            try:
                os.utime(self._descriptor)
            except OSError:
                return

    def _refusal(self, owner: str = "another process") -> str:
        """The message; `owner` is the description used if the owner's note cannot be read."""
        note = self._note()
        if note:
            owner = f"process {note.get('pid')} on {note.get('host')} since {note.get('since')} ({note.get('command')})"
        owner = "".join(c if c.isprintable() else "?" for c in owner)
        return (
            f"{self.folder}: {self._what} is being written by {owner}; wait until it is done, or choose another --out"
        )


def _flock(descriptor: int) -> bool:
    """Lock an open file; False if the file system has no locks, BlockingIOError if it is taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def wait_for_lock(descriptor: int) -> None:
    """Wait for the lock of an open file, which lasts until it is closed; without locks in the file system, return."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _runs(pid: object, started: object) -> bool:
    """Whether a process of this machine runs; `started`, if known, tells it from a later one with the same number."""
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    now = _started(pid)
    return started is None or now is None or started == now


def _started(pid: int) -> int | None:
    """Start time of a process in the kernel's ticks; None if it is not available."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; at the end of the block its files are flushed and it is renamed to `path`.

    If an error is raised inside, it is removed and `path` is unchanged. Temporary folders of `path` that killed
    processes left are removed too, but none that a running process writes.

    Raises:
        ValueError: `path` exists, other than as an empty folder, at the beginning or at the end.
    """
    path = Path(path)
    _check_free(path)
    _remove_staging(path)
    staging = path.with_name(f".{shortened(path.name)}.{uuid.uuid4().hex[:12]}.part")
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
    """Remove unfinished folders without a writer, except new ones, whose owners may not hold their locks yet."""
    for left in path.parent.glob(f".{glob.escape(shortened(path.name))}.*.part"):
        token = left.name.split(".")[-2]
        try:
            if re.fullmatch(r"[0-9a-f]{12}", token) and time.time() - left.stat().st_mtime > NEW_S:
                with FolderLock(left):
                    shutil.rmtree(left, ignore_errors=True)
        except (LockedError, OSError):
            continue


NEW_S = 60.0
"""Age in seconds up to which an unfinished folder counts as new."""


HIGHEST = 8
"""Most folders in which a moved file is searched (the recording one and those above it), and parts of its path."""
MOST_MISSES = 4
"""Number of missing files of one folder after which its other files count as missing too."""


class Moved:
    """Finds the files whose paths `folder` recorded, also after they were moved together with it.

    A file is taken where it lay. Where it is gone, the end of its path, two parts of it at least, is tried below
    `folder` and the folders above it: /old/demo/world/clips/a.mp4, noted by a folder that is /new/demo/features now, is
    found at /new/demo/world/clips/a.mp4. A relative path counts from the working directory first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()
        self._found: dict[Path, Path] = {}
        self._misses: Counter[Path] = Counter()

    def __call__(self, path: Path, size: int | None = None) -> Path:
        """The current path of a file, or the recorded one if it is not found.

        size: its length in bytes, if known; another file of that name is not accepted.
        """
        path = Path(path)
        beside = self._found.get(path.parent)
        if beside is not None:
            return beside / path.name
        if self._misses[path.parent] >= MOST_MISSES:
            return path
        found = next((one for one in self._candidates(path) if _is(one, size)), None)
        if found is None:
            self._misses[path.parent] += 1
            return path
        self._found[path.parent] = found.parent
        return found

    def _candidates(self, path: Path) -> "list[Path]":
        tail = [part for part in path.parts if part not in (path.anchor, "..")][-HIGHEST:]
        above = [self.folder, *self.folder.parents][:HIGHEST]
        return [path, *(one.joinpath(*tail[k:]) for k in range(max(1, len(tail) - 1)) for one in above)]


def _is(path: Path, size: int | None) -> bool:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return size is None or status.st_size == size

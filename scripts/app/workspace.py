"""Files of the web page: uploads of visitors, results, and when both are removed."""

import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from teacher.files import FolderLock, LockedError
from teacher.files.folders import LOCK

PREFIX = "mf-app-"
KEEP_RESULTS = 24
"""Number of clicks whose results stay; older ones are removed."""
KEEP_RESULTS_BYTES = 2 * 2**30
KEEP_UPLOADS_S = 3600.0
KEEP_UPLOADS_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A temporary folder with `uploads`, into which the server writes what visitors send, and `results`."""

    root: Path
    _made: list[Path] = field(default_factory=list)
    """Folders of results, oldest first."""
    _used: dict[Path, float] = field(default_factory=dict)
    """Time at which an upload was last used, or first found, by a monotonic clock."""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _closed: threading.Event = field(default_factory=threading.Event)

    @classmethod
    @contextmanager
    def temporary(cls) -> Iterator[Self]:
        """A workspace that is removed at the end; those of servers that were killed are removed first."""
        remove_leftovers()
        while True:
            root = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
            owner = FolderLock(root, what="the page")
            try:
                owner.take()
                break
            except LockedError:  # another server, starting too, took it for a leftover
                continue
        workspace = cls(root=root)
        try:
            workspace.prepare()
            yield workspace
        finally:
            workspace.remove()
            owner.release()

    @property
    def uploads(self) -> Path:
        """Folder of the uploaded files."""
        return self.root / "uploads"

    @property
    def results(self) -> Path:
        """Folder of the results, one subfolder per click."""
        return self.root / "results"

    def prepare(self) -> None:
        """Make both folders, readable by this user only."""
        for folder in (self.uploads, self.results):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remove(self) -> None:
        """Remove everything; afterwards no thread can make anything here."""
        with self._lock:
            self._closed.set()
            _remove(self.root)

    def upload(self, sent: object) -> Path | None:
        """The uploaded file, None for none. Raises ValueError for anything but a regular file in `uploads`, so that a
        request cannot name other files of the server."""
        if sent is None:
            return None
        path = Path(sent) if isinstance(sent, str | os.PathLike) else None
        if path is None or not path.resolve().is_relative_to(self.uploads.resolve()):
            raise ValueError("send the video itself; files of the server are not opened")
        if path.is_symlink() or not path.is_file():
            raise ValueError("the video is no longer here; send it again")
        with self._lock:
            self._used[path] = time.monotonic()
        return path

    def new_result(self) -> Path:
        """An empty folder for the results of one click, with a random name; the oldest ones are removed."""
        with self._lock:
            if self._closed.is_set():
                raise ValueError("the page is being closed")
            sizes = [_size(folder) for folder in self._made]
            while self._made and (len(sizes) >= KEEP_RESULTS or sum(sizes) > KEEP_RESULTS_BYTES):
                shutil.rmtree(self._made.pop(0), ignore_errors=True)
                sizes.pop(0)
            folder = self.results / secrets.token_urlsafe(16)
            folder.mkdir(mode=0o700)
            self._made.append(folder)
            return folder

    def drop(self, folder: Path) -> None:
        """Remove the folder of an unfinished result."""
        with self._lock:
            self._made.remove(folder)
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, *, keep: Path | None = None) -> None:
        """Remove uploads unused for an hour, and the longest unused ones beyond 2 GiB in all, but not `keep`."""
        with self._lock:
            now, sizes = time.monotonic(), {}
            for file in self.uploads.rglob("*"):
                try:
                    if file.is_file():
                        sizes[file] = file.stat().st_size
                except OSError:  # another request renamed it meanwhile
                    continue
            used = {file: self._used.get(file, now) for file in sizes}
            total = 0
            for file in sorted(sizes, key=lambda file: (file == keep, used[file]), reverse=True):
                total += sizes[file]
                if file != keep and (now - used[file] > KEEP_UPLOADS_S or total > KEEP_UPLOADS_BYTES):
                    del used[file]
                    file.unlink(missing_ok=True)
                    if file.parent != self.uploads and not any(file.parent.iterdir()):
                        file.parent.rmdir()
            self._used.clear()
            self._used.update(used)


def remove_leftovers() -> None:
    """Remove workspaces of this user whose servers have ended; a running server holds the lock of its folder."""
    for folder in Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid() or not (folder / LOCK).is_file():
                continue
            with FolderLock(folder, what="the page"):
                _remove(folder)
        except (LockedError, OSError):
            continue


def _remove(folder: Path) -> None:
    for _ in range(5):  # a thread of the server may be writing a file meanwhile
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())

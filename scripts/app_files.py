"""Files of the web page: what visitors sent, what was made for them, and when both go."""

import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

KEEP_RESULTS = 24
"""Clicks whose files can still be heard; older ones are removed."""
KEEP_UPLOADS_S = 3600.0
KEEP_UPLOADS_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A temporary folder with `uploads`, into which the server writes what visitors send, and `results`."""

    root: Path

    @property
    def uploads(self) -> Path:
        return self.root / "uploads"

    @property
    def results(self) -> Path:
        return self.root / "results"

    def prepare(self) -> None:
        """Make both folders, readable by nobody else."""
        for folder in (self.uploads, self.results):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def upload(self, sent: object) -> Path | None:
        """The file a visitor sent, None for none. ValueError for anything that is not a regular file in `uploads`: what
        a request names is not opened because it was named."""
        if sent is None:
            return None
        path = Path(sent) if isinstance(sent, str | os.PathLike) else None
        if path is None or not path.resolve().is_relative_to(self.uploads.resolve()):
            raise ValueError("send the video itself; files of the server are not opened")
        if path.is_symlink() or not path.is_file():
            raise ValueError("the video is no longer here; send it again")
        os.utime(path)
        return path

    def new_result(self) -> Path:
        """An empty folder for what one click makes, under a name that cannot be guessed; removes the oldest ones."""
        folders = sorted((f for f in self.results.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime_ns)
        for old in folders[: max(0, len(folders) - KEEP_RESULTS + 1)]:
            shutil.rmtree(old, ignore_errors=True)
        folder = self.results / secrets.token_urlsafe(16)
        folder.mkdir(mode=0o700)
        return folder

    def sweep(self, *, keep: Path | None = None) -> None:
        """Remove uploads that nobody used for an hour, and the longest unused ones beyond 2 GiB, but not `keep`."""
        files = [(f, f.stat()) for f in self.uploads.rglob("*") if f.is_file() and f != keep]
        files.sort(key=lambda item: item[1].st_mtime, reverse=True)
        total, now = 0 if keep is None else keep.stat().st_size, time.time()
        for file, status in files:
            total += status.st_size
            if now - status.st_mtime > KEEP_UPLOADS_S or total > KEEP_UPLOADS_BYTES:
                file.unlink(missing_ok=True)
                if file.parent != self.uploads and not any(file.parent.iterdir()):
                    file.parent.rmdir()
